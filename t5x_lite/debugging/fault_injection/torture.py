"""`t5x_lite torture`: a run under injected faults, compared with the same run without faults."""

import logging
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.command import Invocation
from t5x_lite.console import Console, count, duration, logged_wait
from t5x_lite.debugging.compare import first_difference, read_step_hashes
from t5x_lite.debugging.fault_injection.faults import FAULTS, LONG, Fault, FaultContext
from t5x_lite.debugging.fault_injection.subprocess_run import FIRST, STEP, TrainProcess
from t5x_lite.errors import ConfigError

DATA = "data"  # directory of the token stores, which only these runs read
# One purpose and its time in the log line of the first step: "compiling 1 min 12.5 s".
LAP = re.compile(r"([a-z][a-z ]*[a-z]) (?:(\d+) min )?([\d.]+) s")
_LOG = logging.getLogger(__name__)
# Settings of all runs: retry failed saves soon, and hash the weights often.
CHILD = (
    "--gin.CheckpointPolicy.retry_seconds=0.5",
    "--gin.CheckpointPolicy.save_timeout_seconds=30",
    "--gin.StepHashes.params_every_steps=10",
)


class Outcome(NamedTuple):
    """The outcome of a fault.

    Attributes:
        fault: Name of the fault.
        step: The last logged step before it.
        recovery: Seconds from the fault to the next logged step; None if the run had finished.
        parts: The time of the restart by purpose, as its log line states it.
    """

    fault: str
    step: int
    recovery: float | None
    parts: str


def torture(
    *,
    model_dir: str,
    steps: int,
    invocation: Invocation,
    minutes: float = 10.0,
    num_faults: int | None = None,
    faults: Sequence[str] | None = None,
    processes: int = 1,
    devices: int = 4,
    elsewhere_bound: float | None = 0.1,
    missing_seconds: float = 15.0,
    seed: int = 0,
    log_every_steps: int = 5,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train undisturbed, then again under faults, and verify that both are bit-exact.

    A run that ends before its faults are used up is started again from the beginning. All runs get
    one batch that is not finite. Token stores are made in `model_dir` and corrupted there; those of
    other runs are not touched.

    Args:
        model_dir: Directory for all runs.
        steps: Number of training steps of each run.
        invocation: Its gin files and settings are those of `t5x_lite train`.
        minutes: Minutes of injecting faults.
        num_faults: Stop after this number of faults; None is no limit.
        faults: Names of the faults to inject; None is all.
        processes: Processes of a run; more than 1 are a simulated pod.
        devices: Simulated devices of each process of a pod.
        elsewhere_bound: A last run is killed and resumed with other numbers of processes and
            devices. It must get the same batches, and |weights - weights| <= bound * |weights| must
            hold for the norms of all weights at the end. None skips it.
        missing_seconds: Seconds without a heartbeat after which a process counts as dead.
        seed: Seed of the faults and their times.
        log_every_steps: Steps between two lines of metrics, which the faults wait for.
        describe_config: Not used.

    Raises:
        ConfigError: A setting is invalid.
        AssertionError: An outcome is not the expected one.
    """
    root = Path(model_dir)
    table = [fault for fault in FAULTS if fault.processes <= processes]
    if unknown := set(faults or ()) - {fault.name for fault in table}:
        raise ConfigError(
            f"there is no fault {', '.join(sorted(unknown))}; expected some of "
            f"{', '.join(fault.name for fault in table)}",
            "torture.faults",
        )
    table = [fault for fault in table if faults is None or fault.name in faults]
    chance = random.Random(seed)
    pod = PodShape(processes, devices)
    train = (
        *("train", *invocation.gin_arguments, f"--missing_seconds={missing_seconds}"),
        *("--gin_file=runs/nan_batch.gin", f"--gin.NAN_STEP={chance.randint(2, steps)}"),
        f"--gin.Data.data_dir={root / DATA}",
        f"--gin.train.log_every_steps={log_every_steps}",
    )
    with logged_wait(_LOG, f"running {count(steps, 'step')} without faults"):
        _finish(pod.launch(train, root / "undisturbed"))
    outcomes, deadline, runs = [], time.monotonic() + minutes * 60, 0
    queue: list[Fault] = []
    while time.monotonic() < deadline and len(outcomes) < (num_faults or 10**9):
        directory, runs = root / f"tortured_{runs:02d}", runs + 1
        shutil.rmtree(directory, ignore_errors=True)
        launch = partial(pod.launch, train, directory)
        run = launch()
        while time.monotonic() < deadline and len(outcomes) < (num_faults or 10**9):
            queue = queue or chance.sample(table, len(table))
            fault = queue.pop()
            outcome, run = _inject(FaultContext(run, directory, chance, root / DATA), launch, fault)
            if outcome is None:
                queue.insert(0, fault)  # it is injected in a later run
                break
            outcomes.append(outcome)
            _LOG.info(_line(len(outcomes), outcome))
        _finish(run)
        _assert_same(root / "undisturbed", directory, steps)
        _LOG.info(f"run {runs} with faults: weights and step hashes equal those without faults")
    _show(Console(), outcomes, steps, runs)
    if elsewhere_bound is not None:
        other = pod.unlike()
        distance = _resume_elsewhere(pod, other, train, root, chance, steps)
        assert distance <= elsewhere_bound, (
            f"the last weights differ by {distance:.2e} of their norm"
        )
        _LOG.info(
            f"killed and resumed on {other}: same batches; the last weights differ from those "
            f"without faults by {distance:.1e} of their norm (bound: {elsewhere_bound:g})"
        )


class PodShape(NamedTuple):
    """The processes and devices of a run, and the flags that set them."""

    processes: int
    devices: int  # of each of several processes; the flags of a run set those of a single one
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices} devices"

    def launch(self, train: Sequence[str], directory: Path) -> TrainProcess:
        """Start or resume the run in a directory."""
        flags = [f"--gin.MODEL_DIR={directory}", *CHILD, *self.flags]
        return TrainProcess([*train, *flags], processes=self.processes, devices=self.devices)

    def unlike(self) -> "PodShape":
        """Return another number of processes with half the devices, all on the data axis."""
        number = 1 if self.processes > 1 else 2
        total = max(self.processes * self.devices // 2, number)
        flags = f"--gin.CPU_DEVICES={total}", "--gin.MESH={'data': -1}"
        return PodShape(number, total // number, flags)


def _resume_elsewhere(
    pod: PodShape,
    other: PodShape,
    train: Sequence[str],
    root: Path,
    chance: random.Random,
    steps: int,
) -> float:
    """Kill a run, resume it on another pod, and return its `_distance` from `undisturbed`."""
    directory = root / "elsewhere"
    shutil.rmtree(directory, ignore_errors=True)
    context = FaultContext(pod.launch(train, directory), directory, chance, root / DATA)
    context.wait_for_steps()
    context.wait_for_checkpoints(1)
    context.run.send(signal.SIGKILL)
    context.run.end(LONG)
    _finish(other.launch(train, directory))
    return _distance(root / "undisturbed", directory, steps)


def _inject(
    context: FaultContext, launch: Callable[[], TrainProcess], fault: Fault
) -> tuple[Outcome | None, TrainProcess]:
    """Inject a fault and restart; return the outcome and the restarted run.

    The outcome is None if the run ended before the fault.
    """
    if fault.at_start:
        context.wait_for_checkpoints(1)  # so that there is one to restore
        context.run.send(signal.SIGKILL)
        context.run.end(LONG)
        context.run = launch()
    run = context.run
    codes = fault.inject(context)
    injected_at = time.monotonic()
    code = run.end(LONG)
    assert code in codes, f"{fault.name}: exit code {code}\n{run.text}"
    if code == 0:
        return None, run
    again = launch()
    stepped = again.wait_for(STEP.match, LONG)
    for words in context.expected:
        assert words in again.text, f"{fault.name}: no {words!r} in\n{again.text}"
    assert stepped is not None or again.end(LONG) == 0, f"{fault.name}: no step\n{again.text}"
    steps = (int(m[1].replace(",", "")) for _, line in run.lines if (m := STEP.match(line)))
    parts = next((m[1] for _, line in again.lines if (m := FIRST.search(line))), "")
    recovery = None if stepped is None else stepped - injected_at
    return Outcome(fault.name, max(steps, default=0), recovery, parts), again


def _finish(run: TrainProcess) -> None:
    """Wait for the end of a run and check its exit code."""
    code = run.end(24 * 3600)
    assert code == 0, f"exit code {code}\n{run.text}"


def _distance(one: Path, other: Path, steps: int) -> float:
    """Return the norm of the difference of the last weights, relative to their norm.

    The hashes of the examples and the batch of every step must be the same.
    """
    batches = [
        {
            step: (line["ids"], line["batch"])
            for step, line in read_step_hashes(str(directory)).items()
        }
        for directory in (one, other)
    ]
    assert batches[0] == batches[1], f"{one} and {other} did not get the same batches"
    states = [_last_state(directory, steps) for directory in (one, other)]
    names = [name for name in states[0] if name.startswith("params/")]
    pairs = [[np.float64(state[name]) for state in states] for name in names]
    squares = sum(np.sum(np.square(left - right)) for left, right in pairs)
    return float(np.sqrt(squares / sum(np.sum(np.square(left)) for left, _ in pairs)))


def _assert_same(one: Path, other: Path, steps: int) -> None:
    """Compare the hashes of all steps, and every bit of the last state."""
    receipts = [read_step_hashes(str(directory)) for directory in (one, other)]
    difference = first_difference(*receipts)
    assert difference is None, (
        f"{one} and {other} diverge at step {difference.step}: {difference.what} differ"
    )
    for directory, hashes in zip((one, other), receipts, strict=True):
        assert sorted(hashes) == list(range(1, steps + 1)), f"{directory} lacks steps"
    states = [_last_state(directory, steps) for directory in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), f"{name} differs in {other}"


def _last_state(directory: Path, step: int) -> dict[str, np.ndarray]:
    with Checkpointer(directory) as saved:
        assert saved.find_corruption(step) is None
        return saved.arrays(step)


def _line(number: int, outcome: Outcome) -> str:
    took = "" if outcome.recovery is None else f", next step after {duration(outcome.recovery)}"
    parts = f" ({outcome.parts})" if outcome.parts else ""
    return f"fault {number}: {outcome.fault} near step {outcome.step:,}: as expected{took}{parts}"


def _show(console: Console, outcomes: Sequence[Outcome], steps: int, runs: int) -> None:
    rows = []
    for fault in FAULTS:
        of_fault = [outcome for outcome in outcomes if outcome.fault == fault.name]
        seconds = [outcome.recovery for outcome in of_fault if outcome.recovery is not None]
        if of_fault:
            median = duration(float(np.median(seconds))) if seconds else "-"
            rows.append((fault.name, fault.expected, f"{len(of_fault)}", median))
    console.table(
        f"{count(len(outcomes), 'fault')} in {count(runs, 'run')} of {count(steps, 'step')}; every "
        "outcome as expected, all last states bit-exact to that without faults",
        ("fault", "expected", "times", "to the next step"),
        rows,
    )
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, minutes, seconds in LAP.findall(outcome.parts):
            times.setdefault(name, []).append(60 * float(minutes or 0) + float(seconds))
    console.table(
        "Time to the first step after a fault",
        ("part", "median", "longest"),
        [
            (name, duration(float(np.median(values))), duration(max(values)))
            for name, values in times.items()
        ],
    )
