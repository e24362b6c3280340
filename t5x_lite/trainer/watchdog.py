"""Watchdog: ends a run that makes no progress, after printing the stacks of all threads."""

import dataclasses
import faulthandler
import sys
import threading
from typing import NoReturn

from t5x_lite.distributed import heartbeat, processes
from t5x_lite.errors import require_field
from t5x_lite.trainer.goodput import START_UP, TimeLedger


@dataclasses.dataclass(frozen=True, kw_only=True)
class HangTimeouts:
    """The time without progress after which a process ends, for a launcher to restart the run.

    There is no limit while data is prepared, which may take days.

    Args:
        step_seconds: The longest time from one step to the next, waiting for data included; None is
            no limit.
        other_seconds: The longest time of one evaluation or one save; None is no limit.
        start_seconds: The longest time from when the data is ready to the end of the first step:
            restoring, compiling and waiting for the other processes; None is no limit.

    Raises:
        ConfigError: For a limit that is not positive.
    """

    step_seconds: float | None = 900.0
    other_seconds: float | None = 7200.0
    start_seconds: float | None = 7200.0

    def __post_init__(self):
        for name, seconds in dataclasses.asdict(self).items():
            require_field(self, name, seconds is None or seconds > 0, "None or positive")


class Watchdog:
    """Watches the progress of a run from a thread; a context manager.

    Args:
        timeouts: The limits.
        ledger: What the run is doing, and since when.
    """

    def __init__(self, timeouts: HangTimeouts, ledger: TimeLedger):
        self._timeouts, self._ledger = timeouts, ledger
        limits = [limit for limit in dataclasses.astuple(timeouts) if limit is not None]
        self._tick = min([5.0, *(limit / 8 for limit in limits)])

    def __enter__(self) -> "Watchdog":
        # Preparing the data, which has no limit, was start-up too: restart the clock of it.
        self._ledger.switch_to(START_UP)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._tick):
            purpose, seconds = self._ledger.current
            if (limit := self._limit(purpose)) is not None and seconds > limit:
                abort(f"{seconds:.0f} s of {purpose!r} after step {self._ledger.step:,}")

    def _limit(self, purpose: str) -> float | None:
        if purpose == START_UP:
            return self._timeouts.start_seconds
        of_a_step = purpose in ("steps", "recomputed steps", "waiting for data")
        return self._timeouts.step_seconds if of_a_step else self._timeouts.other_seconds


def abort(what: str) -> NoReturn:
    """Print the stacks of all threads, and end this process and the others for a restart.

    Args:
        what: What made no progress, and for how long.
    """
    why = f"{what} without progress"
    print(f"watchdog: {why}; the stacks of all threads:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    heartbeat.end(processes.START_AGAIN, why)
