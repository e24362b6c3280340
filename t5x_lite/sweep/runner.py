"""Runs of a study, one after another or a few at once, each in a process of its own."""

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
from t5x_lite.io.json_lines import read_json_lines
from t5x_lite.io.metric_writers import METRICS
from t5x_lite.io.safe_files import read_json
from t5x_lite.metrics.glue_average import benchmark_averages
from t5x_lite.sweep.stages import Stage

DONE, FAILED, CONFIG = "done.json", "failed.json", "run.gin"
OUTPUT = "output.txt"  # of a stage's process; its own log is beside it
RUNS = "runs"
_LOG = logging.getLogger(__name__)
_GRACE = 300.0  # seconds that a run is given to save when all is to stop
_LOOK = 0.2


class SweepJob(NamedTuple):
    """A row at one seed: its stages, each after what it needs."""

    row: str
    seed: int
    stages: Sequence[Stage]


class Ended(NamedTuple):
    """How a stage ended: "done", "failed" with a reason, or "stopped", to be gone on with."""

    state: str
    reason: str = ""


class Runs:
    """Carries out the stages of jobs below a directory; what is done there is not done again.

    command: what starts `t5x_lite`. flags: for every run. until: the `time.monotonic()` at which
    all stops. everywhere: bindings for all runs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = (),
        everywhere: Sequence[str] = (),
        until: float | None = None,
        command: Sequence[str] = (sys.executable, "-m", "t5x_lite"),
    ):
        self._directory = directory
        self._flags, self._everywhere, self._until = flags, everywhere, until
        self._command = command
        self.stop = threading.Event()

    def folder(self, stage: Stage) -> Path:
        """Where a stage runs: whichever row made it gave it its name."""
        made = sorted((self._directory / RUNS).glob(f"*-{stage.key}"))
        return made[0] if made else self._directory / RUNS / stage.folder

    def carry_out(
        self, todo: Sequence[SweepJob], *, at_once: int, done: Callable[[SweepJob], None]
    ) -> None:
        """Do all jobs, `at_once` at a time, telling `done` of each that ended well or failed."""
        waiting: queue.SimpleQueue[SweepJob] = queue.SimpleQueue()
        for job in todo:
            waiting.put(job)

        def work(cores: Sequence[int] | None) -> None:
            with contextlib.suppress(queue.Empty):
                while not self._over():
                    job = waiting.get_nowait()
                    if self._do(job, cores):
                        done(job)

        threads = [threading.Thread(target=work, args=(cores,)) for cores in _shares(at_once)]
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

    def _do(self, job: SweepJob, cores: Sequence[int] | None) -> bool:
        """Do a job's stages; False if it was stopped."""
        began = time.monotonic()
        for stage in job.stages:
            ended = self._stage(stage, cores)
            if ended.state == "stopped":
                return False
            if ended.state == "failed":
                _LOG.error(f"{job.row}, seed {job.seed}: {stage.name} failed: {ended.reason}")
                return True
        _LOG.info(f"{job.row}, seed {job.seed}: done in {duration(time.monotonic() - began)}")
        return True

    def _stage(self, stage: Stage, cores: Sequence[int] | None) -> Ended:
        (self._directory / RUNS).mkdir(parents=True, exist_ok=True)
        with file_lock(self._directory / RUNS / f".{stage.key}.lock"):
            folder = self.folder(stage)
            if (folder / DONE).is_file():
                return Ended("done")
            if self._over():
                return Ended("stopped")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).unlink(missing_ok=True)
            config = stage.text(self._folders(stage), self._everywhere)
            atomic.write_text(folder / CONFIG, config)
            began = time.monotonic()
            code = self._run([stage.kind, f"--gin_file={folder / CONFIG}"], folder / OUTPUT, cores)
            if code == 0:
                seconds = time.monotonic() - began
                record = {"name": stage.name, "seconds": seconds, "figures": figures(folder)}
                atomic.write_json(folder / DONE, record)
                return Ended("done")
            if self._over() or code == START_AGAIN:
                return Ended("stopped")
            reason = f"exit code {code}: {_reason(folder / OUTPUT)}"
            atomic.write_json(folder / FAILED, {"reason": reason})
            return Ended("failed", reason)

    def _folders(self, stage: Stage) -> Mapping[str, str]:
        """Where a stage and those that it needs lie."""
        found = {stage.key: str(self.folder(stage))}
        for key in stage.needs:
            (made,) = (self._directory / RUNS).glob(f"*-{key}")
            found[key] = str(made)
        return found

    def _run(self, arguments: Sequence[str], log: Path, cores: Sequence[int] | None) -> int:
        """Run to the end, or until all stops; returns the exit code."""
        command = [*self._command, *arguments, *self._flags]
        with (
            open(log, "ab") as file,
            ChildProcess(command, environment=_environment(), output=file) as child,
        ):
            if cores is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(child.pid, cores)
            while not self._over():
                if (code := child.wait(_LOOK)) is not None:
                    return code
            child.send(signal.SIGTERM)
            code = child.wait(_GRACE)
            return START_AGAIN if code is None else code

    def _over(self) -> bool:
        if self._until is not None and time.monotonic() >= self._until:
            self.stop.set()
        return self.stop.is_set()


def state_of(folder: Path) -> Ended:
    """How the stage of a folder stands; "unfinished" if it has neither ended well nor failed."""
    if (folder / DONE).is_file():
        return Ended("done")
    if (folder / FAILED).is_file():
        return Ended("failed", read_json(folder / FAILED)["reason"])
    return Ended("unfinished")


def outcome_of(folder: Path) -> dict[str, Any]:
    """What a finished stage left: "seconds", and "figures" by step."""
    found = read_json(folder / DONE)
    found["figures"] = {int(step): scores for step, scores in found["figures"].items()}
    return found


def figures(folder: Path) -> Figures:
    """Scores and held-out losses by "task/metric", of each step that was evaluated."""
    found: dict[int, dict[str, float]] = {}
    for record in read_json_lines(folder / METRICS):
        kind, _, task = record["kind"].partition("/")
        of_step = found.setdefault(record["step"], {})
        if kind == "validation":
            of_step[f"{task}/loss"] = record["loss"]
        elif kind == "metrics" and task != "averages":
            scores = {k: v for k, v in record.items() if k not in ("step", "kind")}
            of_step |= {f"{task}/{name}": value for name, value in scores.items()}
    for record in read_json_lines(folder / EVALUATIONS):
        if record["task"] != "averages":
            skipped = ("step", "split", "task", "target_tokens", "examples")
            scores = {k: v for k, v in record.items() if k not in skipped}
            of_step = found.setdefault(record["step"], {})
            of_step |= {f"{record['task']}/{name}": value for name, value in scores.items()}
    return {step: scores for step, scores in found.items() if scores}


def _environment() -> dict[str, str]:
    """That of this process, for one that is alone, whatever launched this one."""
    meeting = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")
    kept = {name: value for name, value in os.environ.items() if name not in meeting}
    return {**kept, "JAX_NUM_PROCESSES": "1", "PYTHONUNBUFFERED": "1"}


def _reason(log: Path) -> str:
    """The last error that a run told of, or what it said last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:400]


def _shares(number: int) -> list[Sequence[int] | None]:
    """The cores of each of so many runs at once; None where they need not share."""
    if number == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * number
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < number:
        return [None] * number
    return [cores[i::number] for i in range(number)]


def column_score(figures: Figures, name: str) -> float | None:
    """The best value of "task/metric", a loss at its lowest; None where there is none.

    The best checkpoint of a task is that with the highest mean of its metrics, as in the T5 study;
    "glue/average" and "super_glue/average" average the best of every task.
    """
    if name.endswith(f"/{LOSS}"):
        found = [scores[name] for scores in figures.values() if name in scores]
        return min(found) if found else None
    best: dict[str, float] = {}
    for _, scores in best_of_each_task(figures).values():
        best |= scores
    averages = {f"{name}/average": value for name, value in benchmark_averages(best).items()}
    return (best | averages).get(name)
