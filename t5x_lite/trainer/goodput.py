"""How much of a run's time went into steps, and what became of the rest, over all its launches.

Each launch leaves a record in the model directory, written anew every few seconds, so that a killed
one has left its own. What lies between a launch's last record and the next one's beginning is time
when the run was down.
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

# What a launch's time is spent on. "steps" alone is what it is there for.
START_UP = "start-up"  # also what is at hand until the first step has ended
PURPOSES = (
    *("steps", "recomputed steps", START_UP, "restoring", "compiling"),
    *("waiting for data", "evaluating", "saving"),
)


class TimeLedger:
    """Counts seconds by purpose; read by other threads while it counts.

    began: `time.perf_counter()` of the launch's beginning, perhaps before this object was made.
    """

    def __init__(self, began: float):
        self._lock = threading.Lock()
        self._purpose, self._since, self._entered = START_UP, began, began
        self._seconds: dict[str, float] = dict.fromkeys(PURPOSES, 0.0)
        self.step = 0  # the newest

    def spend(self, purpose: str) -> None:
        """From now on time goes to this purpose."""
        with self._lock:
            now = time.perf_counter()
            self._seconds[self._purpose] += now - self._since
            self._purpose, self._since, self._entered = purpose, now, now

    def until_now(self, purpose: str) -> None:
        """What went to the purpose at hand since it was last booked was for this one."""
        with self._lock:
            now = time.perf_counter()
            self._seconds[purpose] += now - self._since
            self._since = now

    @contextlib.contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Time inside goes to this purpose, afterwards to what it went to before."""
        before = self._purpose
        self.spend(purpose)
        try:
            yield
        finally:
            self.spend(before)

    def waited_for(self, items: Iterable[Item], purpose: str) -> Iterator[Item]:
        """The items; the time until each comes goes to a purpose."""
        each = iter(items)
        while True:
            with self.spending(purpose):
                try:
                    item = next(each)
                except StopIteration:
                    return
            yield item

    @property
    def at_hand(self) -> tuple[str, float]:
        """The purpose at hand, and for how many seconds it has been or the step has taken."""
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
_PURPOSES = {
    "weights": "restoring",
    "rest of compiling": "compiling",
    "first step": "compiling",
}


class StartupTimer:
    """Laps between the start of the process and the first step's end.

    The first lap began with the process itself (on Linux; elsewhere when this file was imported),
    so it holds Python's and the libraries' own start.
    """

    def __init__(self):
        self._began = self._last = time.perf_counter() - _age_of_process()
        self._laps: dict[str, float] = {}
        self.ledger = TimeLedger(self._began)
        self.open = True  # until the first step has ended

    def lap(self, name: str) -> None:
        """End a lap; laps of one name add up."""
        self.ledger.until_now(_PURPOSES.get(name, "start-up"))
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """Every lap, and their sum as "total"."""
        return {**self._laps, "total": self._last - self._began}

    def line(self) -> str:
        """Return the time to the first step and its laps as a log line."""
        laps = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self._laps.items())
        return f"first step finished {duration(self.seconds['total'])} after the start ({laps})"


def _age_of_process() -> float:
    """Seconds since the process began."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks_after_boot = int(fields[19])  # field 22 of proc(5); two stand before the bracket
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - ticks_after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED


FOLDER = "goodput"
_EVERY = 10.0  # seconds between two records


class Goodput(Callback):
    """Keeps the record of a launch; the first process's, whose time stands for all."""

    def __init__(self, model_dir: epath.PathLike, ledger: TimeLedger):
        self._ledger = ledger
        self._folder = epath.Path(model_dir) / FOLDER
        age = sum(ledger.seconds.values())
        self._began = time.time() - age
        self._path = self._folder / f"{self._began:.3f}.json"
        self._before = read_launches(model_dir)
        self._reached = max((each["step"] for each in self._before), default=0)
        self._written, self._has_begun = 0.0, False

    def __enter__(self) -> "Goodput":
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def before_step(self, step: int, state: Any) -> None:
        """Tell steps that an earlier launch had taken and lost from new ones.

        The first step of a launch belongs to what came before it (`trainer.goodput`).
        """
        if self._has_begun:
            self._ledger.spend("recomputed steps" if step <= self._reached else "steps")

    def after_step(self, moment: StepInfo) -> None:
        """Record the step, and write the goodput file from time to time."""
        self._has_begun = True
        self._ledger.step = moment.step
        if time.monotonic() - self._written > _EVERY:
            self._write()

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        seconds = {name.replace(" ", "_"): each for name, each in self.seconds().items()}
        report("goodput", {"share": self.shares()["steps"], **seconds})

    def on_save(self, step: int) -> None:
        self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds of all launches by purpose, and when the run was down."""
        launches = [self._ledger.seconds, *(each["seconds"] for each in self._before)]
        total = {name: sum(each.get(name, 0.0) for each in launches) for name in PURPOSES}
        ends = [each["began"] + sum(each["seconds"].values()) for each in self._before]
        starts = [*(each["began"] for each in self._before), self._began][1:]
        down = sum(max(0.0, start - end) for end, start in zip(ends, starts, strict=True))
        return {**total, "down": down}

    def shares(self) -> dict[str, float]:
        """The same as parts of 1."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {name: each / whole for name, each in seconds.items()}

    def line(self) -> str:
        """Return the goodput and where the other time went, the largest amounts first."""
        seconds, shares = self.seconds(), self.shares()
        lost = sorted(set(seconds) - {"steps"}, key=lambda name: -seconds[name])
        losses = ", ".join(f"{name} {duration(seconds[name])}" for name in lost if seconds[name])
        launches = len(self._before) + 1
        return (
            f"goodput {shares['steps']:.1%}: {duration(seconds['steps'])} of training steps in "
            f"{duration(sum(seconds.values()))} over {launches} launch{'es' * (launches > 1)} "
            f"({losses})"
        )

    def _write(self) -> None:
        self._written = time.monotonic()
        if not processes.is_first():
            return
        record = {
            "began": self._began,
            "step": self._ledger.step,
            "seconds": self._ledger.seconds,
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, record, indent=None)
        except OSError:  # a full disk is no reason to end a run, and the next record says more
            return


def read_launches(model_dir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a run's launches so far, in order; one that cannot be read is left out."""
    found = []
    for path in sorted((epath.Path(model_dir) / FOLDER).glob("*.json")):
        try:
            record = read_json(path)
            found.append({name: record[name] for name in ("began", "step", "seconds")})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
