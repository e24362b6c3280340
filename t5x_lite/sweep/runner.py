"""Run the stages of a study, one or several at a time, each in its own process."""

import contextlib
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5x_lite.console import duration
from t5x_lite.distributed.child_process import ChildProcess
from t5x_lite.distributed.processes import START_AGAIN
from t5x_lite.distributed.signals import SignalRequests
from t5x_lite.evaluation.evaluation_report import EVALUATIONS, LOSS, Figures, best_of_each_task
from t5x_lite.io import atomic
from t5x_lite.io.file_lock import file_lock
from t5x_lite.io.metric_writers import METRICS
from t5x_lite.io.run_records import read_json_lines
from t5x_lite.io.safe_files import read_json
from t5x_lite.metrics.glue_average import benchmark_averages
from t5x_lite.sweep.stages import Stage

DONE, FAILED, CONFIG = "done.json", "failed.json", "run.gin"
OUTPUT = "output.txt"  # output of a stage's process
RUNS = "runs"
_LOG = logging.getLogger(__name__)
_GRACE = 300.0  # seconds in which a stopped run may save a checkpoint
_POLL = 0.2  # seconds


class SweepJob(NamedTuple):
    """A row at one seed.

    Attributes:
        row: Name of the row.
        seed: The seed.
        stages: Its stages, each after those it needs.
    """

    row: str
    seed: int
    stages: Sequence[Stage]


class StageState(NamedTuple):
    """The state of a stage.

    Attributes:
        state: "done", "failed", "stopped" (it can be resumed) or "unfinished".
        reason: Why it failed.
    """

    state: str
    reason: str = ""


class Runs:
    """Runs the stages of jobs. Stages that are done in the directory are not run again.

    Args:
        directory: Directory of the study.
        flags: Command-line flags of every run.
        everywhere: Gin bindings of every run.
        stop_time: The `time.monotonic()` at which all runs are stopped; None is no limit.
        command: The command that starts `t5x_lite`.

    Attributes:
        stop: Set to stop all runs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = (),
        everywhere: Sequence[str] = (),
        stop_time: float | None = None,
        command: Sequence[str] = (sys.executable, "-m", "t5x_lite"),
    ):
        self._directory = directory
        self._flags, self._everywhere, self._stop_time = flags, everywhere, stop_time
        self._command = command
        self.stop = threading.Event()

    def folder(self, stage: Stage) -> Path:
        """Return the directory of a stage; the first row that needed it has given it its name."""
        existing = sorted((self._directory / RUNS).glob(f"*-{stage.key}"))
        return existing[0] if existing else self._directory / RUNS / stage.folder

    def run_all(
        self, jobs: Sequence[SweepJob], *, at_once: int, on_end: Callable[[SweepJob], None]
    ) -> None:
        """Run jobs until all are done or failed, or until the runs are stopped.

        Args:
            jobs: The jobs.
            at_once: Number of jobs that run at the same time, each on its share of the CPU cores.
            on_end: Called with each job that is done or failed.
        """
        waiting: queue.SimpleQueue[SweepJob] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)

        def work(cores: Sequence[int] | None) -> None:
            with contextlib.suppress(queue.Empty):
                while not self._is_stopping():
                    job = waiting.get_nowait()
                    if self._run_job(job, cores):
                        on_end(job)

        threads = [threading.Thread(target=work, args=(cores,)) for cores in _core_shares(at_once)]
        # SIGTERM and Ctrl-C stop all runs, which save and can be resumed; a second one ends this
        # process, and the runs with it, at once. Only the main thread can catch signals.
        is_main = threading.current_thread() is threading.main_thread()
        stopping = SignalRequests(
            signal.SIGTERM,
            signal.SIGINT,
            on_signal=lambda number: self.stop.set(),
            exit_on_second=True,
        )
        with stopping if is_main else contextlib.nullcontext():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _run_job(self, job: SweepJob, cores: Sequence[int] | None) -> bool:
        """Run a job's stages; return False if it was stopped."""
        start = time.monotonic()
        for stage in job.stages:
            ended = self._run_stage(stage, cores)
            if ended.state == "stopped":
                return False
            if ended.state == "failed":
                _LOG.error(f"{job.row}, seed {job.seed}: {stage.name} failed: {ended.reason}")
                return True
        _LOG.info(f"{job.row}, seed {job.seed}: done in {duration(time.monotonic() - start)}")
        return True

    def _run_stage(self, stage: Stage, cores: Sequence[int] | None) -> StageState:
        """Run a stage unless it is done; other processes that share the directory wait."""
        (self._directory / RUNS).mkdir(parents=True, exist_ok=True)
        with file_lock(self._directory / RUNS / f".{stage.key}.lock"):
            folder = self.folder(stage)
            if (folder / DONE).is_file():
                return StageState("done")
            if self._is_stopping():
                return StageState("stopped")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).unlink(missing_ok=True)
            config = stage.text(self._folders(stage), self._everywhere)
            atomic.write_text(folder / CONFIG, config)
            start = time.monotonic()
            code = self._run_process(
                [stage.kind, f"--gin_file={folder / CONFIG}"], folder / OUTPUT, cores
            )
            if code == 0:
                seconds = time.monotonic() - start
                record = {"name": stage.name, "seconds": seconds, "figures": figures(folder)}
                atomic.write_json(folder / DONE, record)
                return StageState("done")
            if self._is_stopping() or code == START_AGAIN:
                return StageState("stopped")
            reason = f"exit code {code}: {_last_error(folder / OUTPUT)}"
            atomic.write_json(folder / FAILED, {"reason": reason})
            return StageState("failed", reason)

    def _folders(self, stage: Stage) -> Mapping[str, str]:
        """Return the directories of a stage and of those it needs, by key."""
        folders = {stage.key: str(self.folder(stage))}
        for key in stage.needs:
            (folder,) = (self._directory / RUNS).glob(f"*-{key}")
            folders[key] = str(folder)
        return folders

    def _run_process(self, arguments: Sequence[str], log: Path, cores: Sequence[int] | None) -> int:
        """Run a command to its end, or until the runs are stopped; return its exit code."""
        command = [*self._command, *arguments, *self._flags]
        with (
            open(log, "ab") as file,
            ChildProcess(command, environment=_environment(), output=file) as child,
        ):
            if cores is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(child.pid, cores)
            while not self._is_stopping():
                if (code := child.wait(_POLL)) is not None:
                    return code
            child.send(signal.SIGTERM)
            code = child.wait(_GRACE)
            return START_AGAIN if code is None else code

    def _is_stopping(self) -> bool:
        if self._stop_time is not None and time.monotonic() >= self._stop_time:
            self.stop.set()
        return self.stop.is_set()


def state_of(folder: Path) -> StageState:
    """Return the state of the stage in a directory: "done", "failed" or "unfinished"."""
    if (folder / DONE).is_file():
        return StageState("done")
    if (folder / FAILED).is_file():
        return StageState("failed", read_json(folder / FAILED)["reason"])
    return StageState("unfinished")


def result_of(folder: Path) -> dict[str, Any]:
    """Read the result of a finished stage: its "name", "seconds", and "figures" by step."""
    result = read_json(folder / DONE)
    result["figures"] = {int(step): scores for step, scores in result["figures"].items()}
    return result


def figures(folder: Path) -> Figures:
    """Read validation losses and scores by "task/metric", of each step that was evaluated.

    They are in metrics.jsonl of a training run and in evaluations.jsonl of an evaluation.

    Args:
        folder: Directory of a run.
    """
    by_step: dict[int, dict[str, float]] = {}
    for record in read_json_lines(folder / METRICS):
        kind, _, task = record["kind"].partition("/")
        of_step = by_step.setdefault(record["step"], {})
        if kind == "validation":
            of_step[f"{task}/loss"] = record["loss"]
        elif kind == "metrics" and task != "averages":
            scores = {k: v for k, v in record.items() if k not in ("step", "kind")}
            of_step |= {f"{task}/{name}": value for name, value in scores.items()}
    for record in read_json_lines(folder / EVALUATIONS):
        if record["task"] != "averages":
            skipped = ("step", "split", "task", "target_tokens", "examples")
            scores = {k: v for k, v in record.items() if k not in skipped}
            of_step = by_step.setdefault(record["step"], {})
            of_step |= {f"{record['task']}/{name}": value for name, value in scores.items()}
    return {step: scores for step, scores in by_step.items() if scores}


def _environment() -> dict[str, str]:
    """Return the environment of a single process, also if this one was launched by a cluster."""
    cluster_variables = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")
    kept = {name: value for name, value in os.environ.items() if name not in cluster_variables}
    return {**kept, "JAX_NUM_PROCESSES": "1", "PYTHONUNBUFFERED": "1"}


def _last_error(log: Path) -> str:
    """Return the last error in a run's output, or else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["there is no output"])[-1][:400]


def _core_shares(number: int) -> list[Sequence[int] | None]:
    """Split the CPU cores among runs at the same time; None if a run may use all of them."""
    if number == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * number
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < number:
        return [None] * number
    return [cores[i::number] for i in range(number)]


def column_score(figures: Figures, name: str) -> float | None:
    """Return the value of a metric at the best checkpoint of its task; None if there is none.

    The best checkpoint of a task has the highest mean of its metrics, as in the T5 paper.
    "glue/average" and "super_glue/average" average the best of every task. For a loss it is the
    lowest value.

    Args:
        figures: Scores by step.
        name: "task/metric".
    """
    if name.endswith(f"/{LOSS}"):
        losses = [scores[name] for scores in figures.values() if name in scores]
        return min(losses) if losses else None
    best: dict[str, float] = {}
    for _, scores in best_of_each_task(figures).values():
        best |= scores
    averages = {f"{name}/average": value for name, value in benchmark_averages(best).items()}
    return (best | averages).get(name)
