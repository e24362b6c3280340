"""Goodput: the fraction of a run's time that went into training steps, over all its launches.

Every second of a launch is counted for one purpose (`PURPOSES`), such as steps, evaluating or
saving. Each launch writes its counts to MODEL_DIR/goodput/<time of its start>.json every few
seconds, so that a killed launch has recorded all but its last seconds. The time between the end of
one launch's record and the start of the next launch counts as "down".

An example: a run is launched at 12:00, spends 60 s on its start and 540 s on steps 1 to 540, and is
killed at 12:10. Its last checkpoint is that of step 500. It is launched again at 12:20, spends 60 s
on its start, computes steps 501 to 540 a second time in 40 s, and ends after 500 more seconds of
steps. Of 1,800 s in total, 1,040 s were steps that count:

    steps 540 + 500 | recomputed steps 40 | start-up 60 + 60 | down 600    -> goodput 57.8 %
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from t5x_lite.console import duration
from t5x_lite.distributed import processes
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json
from t5x_lite.training.callbacks import Callback, Report, StepInfo

Item = TypeVar("Item")

# What a launch spends its time on. Only "steps" is progress.
START_UP = "start-up"  # the default purpose until the first step has ended
PURPOSES = (
    *("steps", "recomputed steps", START_UP, "restoring", "compiling"),
    *("waiting for data", "evaluating", "saving"),
)


class TimeLedger:
    """Counts the seconds of a launch by purpose; other threads may read it meanwhile.

    Args:
        began: `time.perf_counter()` at the start of the launch, which may be before this object
            exists. Everything since then counts as start-up at first.
    """

    def __init__(self, began: float):
        self._lock = threading.Lock()
        # `_since`: up to when time is counted. `_entered`: when the current purpose began.
        self._purpose, self._since, self._entered = START_UP, began, began
        self._seconds: dict[str, float] = dict.fromkeys(PURPOSES, 0.0)
        self.step = 0  # the newest finished step

    def switch_to(self, purpose: str) -> None:
        """Count the time from now on for another purpose, or for a new start of the same one.

        Args:
            purpose: One of `PURPOSES`.
        """
        with self._lock:
            now = time.perf_counter()
            self._seconds[self._purpose] += now - self._since
            self._purpose, self._since, self._entered = purpose, now, now

    def charge_elapsed_to(self, purpose: str) -> None:
        """Count the time since the last count for `purpose`, instead of for the current purpose.

        For a part whose purpose is known only when it ends. The current purpose does not change.

        Args:
            purpose: One of `PURPOSES`.
        """
        with self._lock:
            now = time.perf_counter()
            self._seconds[purpose] += now - self._since
            self._since = now

    @contextlib.contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Count the time inside the context for `purpose`, then continue with the one before.

        Args:
            purpose: One of `PURPOSES`.
        """
        before = self._purpose
        self.switch_to(purpose)
        try:
            yield
        finally:
            self.switch_to(before)

    def timed_items(self, items: Iterable[Item], purpose: str) -> Iterator[Item]:
        """Yield `items`, and count the time until each of them arrives for `purpose`.

        Args:
            items: Any iterable, such as prefetched batches.
            purpose: One of `PURPOSES`.
        """
        iterator = iter(items)
        while True:
            with self.spending(purpose):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def current(self) -> tuple[str, float]:
        """The current purpose, and the seconds since the last `switch_to`."""
        with self._lock:
            return self._purpose, time.perf_counter() - self._entered

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every purpose up to now, in the order of `PURPOSES`."""
        with self._lock:
            now = time.perf_counter() - self._since
            return {
                name: self._seconds[name] + (now if name == self._purpose else 0.0)
                for name in PURPOSES
            }


_IMPORTED = time.perf_counter()
# The purposes of those parts of the start that are not simply start-up.
_PURPOSE_OF_PART = {
    "weights": "restoring",
    "rest of compiling": "compiling",
    "first step": "compiling",
}


class StartupTimer:
    """Measures the parts of a launch's start, up to the end of the first step.

    The first part begins with the process itself (on Linux; elsewhere when this module was
    imported), so that it contains the start of Python and the import of the libraries.
    """

    def __init__(self):
        self._began = self._last = time.perf_counter() - _process_age()
        self._seconds: dict[str, float] = {}
        self.ledger = TimeLedger(self._began)
        self.open = True  # until the first step has ended

    def lap(self, name: str) -> None:
        """End a part of the start; the next one begins.

        Args:
            name: The part, as logged. Parts of the same name are added up.
        """
        self.ledger.charge_elapsed_to(_PURPOSE_OF_PART.get(name, START_UP))
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every part, and their sum as "total"."""
        return {**self._seconds, "total": self._last - self._began}

    def line(self) -> str:
        """Return the time to the first step and its parts as a log line."""
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self._seconds.items())
        return f"first step finished {duration(self.seconds['total'])} after the start ({parts})"


def _process_age() -> float:
    """Seconds since the process began."""
    try:
        # Field 22 of proc(5) is the start in ticks after boot. Field 2 is the command in
        # parentheses, which may contain spaces: what follows it begins with field 3.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks_after_boot = int(fields[22 - 3])
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - ticks_after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED


FOLDER = "goodput"
_WRITE_SECONDS = 10.0  # between two records: the most that a killed launch loses


class Goodput(Callback):
    """Writes the record of this launch, and sums up those of all launches.

    The first process writes and counts: processes step together, so that its time is that of all.

    Args:
        model_dir: The run's directory.
        ledger: The seconds of this launch.
    """

    def __init__(self, model_dir: epath.PathLike, ledger: TimeLedger):
        self._ledger = ledger
        self._folder = epath.Path(model_dir) / FOLDER
        age = sum(ledger.seconds.values())
        self._began = time.time() - age
        self._path = self._folder / f"{self._began:.3f}.json"
        self._earlier = read_launches(model_dir)
        # Steps up to here were computed by an earlier launch, but lost with its end.
        self._computed_before = max((launch["step"] for launch in self._earlier), default=0)
        self._written_at, self._first_step_done = 0.0, False

    def __enter__(self) -> "Goodput":
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def before_step(self, step: int, state: Any) -> None:
        """Count the time of steps that an earlier launch had computed and lost as recomputed.

        The first step of a launch counts as part of its start, since it waits for compilation.
        """
        if self._first_step_done:
            recomputed = step <= self._computed_before
            self._ledger.switch_to("recomputed steps" if recomputed else "steps")

    def after_step(self, moment: StepInfo) -> None:
        """Note the step, and write the record every few seconds."""
        self._first_step_done = True
        self._ledger.step = moment.step
        if time.monotonic() - self._written_at > _WRITE_SECONDS:
            self._write()

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Report the goodput and the seconds of every purpose with each log line."""
        seconds = {name.replace(" ", "_"): value for name, value in self.seconds().items()}
        report("goodput", {"share": self.fractions()["steps"], **seconds})

    def on_save(self, step: int) -> None:
        """Write the record together with each checkpoint."""
        self._write()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all launches by purpose, and those between launches as "down"."""
        launches = [self._ledger.seconds, *(launch["seconds"] for launch in self._earlier)]
        total = {name: sum(spent.get(name, 0.0) for spent in launches) for name in PURPOSES}
        # Between the end of each earlier launch and the start of the one after it. Clocks of
        # different machines may disagree: a negative time counts as none.
        ends = [launch["began"] + sum(launch["seconds"].values()) for launch in self._earlier]
        starts = [*(launch["began"] for launch in self._earlier), self._began][1:]
        down = sum(max(0.0, start - end) for end, start in zip(ends, starts, strict=True))
        return {**total, "down": down}

    def fractions(self) -> dict[str, float]:
        """Return the seconds of all launches by purpose as fractions that add up to 1."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {name: value / whole for name, value in seconds.items()}

    def line(self) -> str:
        """Return the goodput and where the other time went, the largest amounts first."""
        seconds, fractions = self.seconds(), self.fractions()
        lost = sorted(set(seconds) - {"steps"}, key=lambda name: -seconds[name])
        losses = ", ".join(f"{name} {duration(seconds[name])}" for name in lost if seconds[name])
        launches = len(self._earlier) + 1
        return (
            f"goodput {fractions['steps']:.1%}: {duration(seconds['steps'])} of training steps in "
            f"{duration(sum(seconds.values()))} over {launches} launch{'es' * (launches > 1)} "
            f"({losses})"
        )

    def _write(self) -> None:
        self._written_at = time.monotonic()
        if not processes.is_first():
            return
        record = {
            "began": self._began,
            "step": self._ledger.step,
            "seconds": self._ledger.seconds,
        }
        # A full disk must not end a run, and the next record contains everything in this one.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, record, indent=None)


def read_launches(model_dir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the records of a run's launches so far, oldest first.

    A record that cannot be read is skipped: the statistics are not worth refusing to train.

    Args:
        model_dir: The run's directory.

    Returns:
        A dict for each launch: "began" (seconds since 1970), "step" (its newest step) and "seconds"
        (by purpose).
    """
    launches = []
    for path in sorted((epath.Path(model_dir) / FOLDER).glob("*.json")):
        try:
            record = read_json(path)
            launches.append({name: record[name] for name in ("began", "step", "seconds")})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return launches
