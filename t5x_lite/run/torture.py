"""`t5x_lite torture`: a real run under faults, held against the same run that nothing disturbed."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from t5x_lite.checkpoints import Checkpoints
from t5x_lite.errors import ConfigError
from t5x_lite.run.compare import first_difference, receipts_of
from t5x_lite.run.console import Console, duration
from t5x_lite.run.faults import FAULTS, LONG, Fault, Scene
from t5x_lite.run.launched import FIRST, STEP, Launched

CHILD = ("--gin.CheckpointPolicy.retry_seconds=0.5", "--gin.Receipts.params_every_steps=10")


class Outcome(NamedTuple):
    """What came of a fault. recovery: seconds from it to the next step's line, and their parts."""

    fault: str
    step: int
    recovery: float | None
    parts: str


def torture(
    *,
    model_dir: str,
    steps: int,
    arguments: Sequence[str] = (),
    minutes: float = 10.0,
    num_faults: int | None = None,
    faults: Sequence[str] | None = None,
    processes: int = 1,
    devices: int = 4,
    seed: int = 0,
    log_every_steps: int = 5,
    describe_config: Callable[[], str] = str,
) -> None:
    """Run to `steps` undisturbed, then again under faults; both must be the same to the bit.

    arguments: of `t5x_lite train`. minutes: faults are made for so long; num_faults: or until there
    were so many. faults: names of the table's; None is all. processes, devices: of a simulated pod.
    A run that ends before is begun anew. Both runs meet one batch that is not a number.

    Raises ConfigError for wrong settings, and AssertionError where an outcome is not as expected.
    """
    root, console = Path(model_dir), Console()
    table = [fault for fault in FAULTS if fault.processes <= processes]
    if unknown := set(faults or ()) - {fault.name for fault in table}:
        raise ConfigError(
            f"there is no fault {', '.join(sorted(unknown))}; wanted some of "
            f"{', '.join(fault.name for fault in table)}",
            "torture.faults",
        )
    table = [fault for fault in table if faults is None or fault.name in faults]
    chance = random.Random(seed)
    nan_at = chance.randint(2, steps)

    def launch(directory: Path) -> Launched:
        of_run = [f"--gin.MODEL_DIR={directory}", f"--gin.train.log_every_steps={log_every_steps}"]
        train = [f"--nan_at={nan_at}", "train", *arguments, *of_run, *CHILD]
        return Launched(train, processes=processes, devices=devices)

    with console.waiting(f"running {steps:,} steps that nothing disturbs"):
        _to_the_end(launch(root / "undisturbed"))
    outcomes, until, runs = [], time.monotonic() + minutes * 60, 0
    queue: list[Fault] = []
    while time.monotonic() < until and len(outcomes) < (num_faults or 10**9):
        directory, runs = root / f"tortured_{runs:02d}", runs + 1
        shutil.rmtree(directory, ignore_errors=True)
        run = launch(directory)
        while time.monotonic() < until and len(outcomes) < (num_faults or 10**9):
            queue = queue or chance.sample(table, len(table))
            fault = queue.pop()
            outcome, run = _disturb(run, lambda: launch(directory), directory, fault, chance)  # noqa: B023
            if outcome is None:
                queue.insert(0, fault)  # it comes in a later run
                break
            outcomes.append(outcome)
            console.note(_line(len(outcomes), outcome))
        _to_the_end(run)
        _assert_same(root / "undisturbed", directory, steps)
        console.note(f"run {runs} under faults has the weights and receipts of the undisturbed one")
    _show(console, outcomes, steps, runs)


def _disturb(
    run: Launched,
    launch: Callable[[], Launched],
    directory: Path,
    fault: Fault,
    chance: random.Random,
) -> tuple[Outcome | None, Launched]:
    """Make a fault and start again; returns the outcome and the run that goes on.

    There is no outcome if the run ended before the fault came.
    """
    if fault.at_start:
        Scene(run, directory, chance).wait_for_checkpoints(1)  # so that there is one to restore
        run.send(signal.SIGKILL)
        run.end(LONG)
        run = launch()
    scene = Scene(run, directory, chance)
    codes = fault.does(scene)
    happened = time.monotonic()
    code = run.end(LONG)
    assert code in codes, f"{fault.name}: exit code {code}\n{run.text}"
    if code == 0:
        return None, run
    again = launch()
    stepped = again.wait_for(STEP.match, LONG)
    for words in scene.expected:
        assert words in again.text, f"{fault.name}: no {words!r} in\n{again.text}"
    assert stepped is not None or again.end(LONG) == 0, f"{fault.name}: no step\n{again.text}"
    steps = (int(m[1].replace(",", "")) for _, line in run.lines if (m := STEP.match(line)))
    parts = next((m[1] for _, line in again.lines if (m := FIRST.search(line))), "")
    recovery = None if stepped is None else stepped - happened
    return Outcome(fault.name, max(steps, default=0), recovery, parts), again


def _to_the_end(run: Launched) -> None:
    code = run.end(24 * 3600)
    assert code == 0, f"exit code {code}\n{run.text}"


def _assert_same(one: Path, other: Path, steps: int) -> None:
    """The receipts of all steps, and every bit of the last state."""
    receipts = [receipts_of(str(directory)) for directory in (one, other)]
    parting = first_difference(*receipts)
    assert parting is None, f"{one} and {other} part at step {parting.step}: {parting.what} differ"
    for directory, found in zip((one, other), receipts, strict=True):
        assert sorted(found) == list(range(1, steps + 1)), f"{directory} lacks receipts"
    states = [_last_state(directory, steps) for directory in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), f"{name} differs in {other}"


def _last_state(directory: Path, step: int) -> dict[str, np.ndarray]:
    with Checkpoints(directory) as saved:
        assert saved.damage(step) is None
        return saved.arrays(step)


def _line(number: int, outcome: Outcome) -> str:
    took = "" if outcome.recovery is None else f", next step after {duration(outcome.recovery)}"
    parts = f" ({outcome.parts})" if outcome.parts else ""
    return f"fault {number}: {outcome.fault} near step {outcome.step:,}: as expected{took}{parts}"


def _show(console: Console, outcomes: Sequence[Outcome], steps: int, runs: int) -> None:
    rows = []
    for fault in FAULTS:
        own = [outcome for outcome in outcomes if outcome.fault == fault.name]
        took = [outcome.recovery for outcome in own if outcome.recovery is not None]
        if own:
            median = duration(float(np.median(took))) if took else "-"
            rows.append((fault.name, fault.expected, f"{len(own)}", median))
    console.table(
        f"{len(outcomes)} faults in {runs} runs of {steps:,} steps: every outcome as expected, "
        "all ends equal to the undisturbed run's to the bit",
        ("fault", "expected", "times", "to the next step"),
        rows,
    )
