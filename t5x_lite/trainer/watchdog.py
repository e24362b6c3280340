"""A run that does not come on: the stacks of all threads, and an end that a launcher undoes."""

import dataclasses
import faulthandler
import sys
import threading

from t5x_lite.distributed import heartbeat, processes
from t5x_lite.errors import require_field
from t5x_lite.trainer.goodput import START_UP, TimeLedger


@dataclasses.dataclass(frozen=True, kw_only=True)
class HangTimeouts:
    """For how long nothing may happen before a process ends itself, to be started again.

    step_seconds: from one step to the next, waiting for data included. other_seconds: for one
    evaluation or one save. start_seconds: from when the data is ready to the end of the first step:
    restoring, compiling, waiting for the other processes. None waits for ever. While data is being
    made nothing is watched.
    """

    step_seconds: float | None = 900.0
    other_seconds: float | None = 7200.0
    start_seconds: float | None = 7200.0

    def __post_init__(self):
        for name, seconds in dataclasses.asdict(self).items():
            require_field(self, name, seconds is None or seconds > 0, "None or positive")


class Watchdog:
    """Looks at the ledger of a run from a thread of its own; a context manager."""

    def __init__(self, patience: HangTimeouts, ledger: TimeLedger):
        self._patience, self._ledger = patience, ledger
        limits = [limit for limit in dataclasses.astuple(patience) if limit is not None]
        self._tick = min([5.0, *(limit / 8 for limit in limits)])

    def __enter__(self) -> "Watchdog":
        self._ledger.spend(START_UP)  # it has been since now
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._left.wait(self._tick):
            purpose, seconds = self._ledger.at_hand
            if (limit := self._limit(purpose)) is not None and seconds > limit:
                bite(f"{seconds:.0f} s of {purpose!r} after step {self._ledger.step:,}")

    def _limit(self, purpose: str) -> float | None:
        if purpose == START_UP:
            return self._patience.start_seconds
        of_a_step = purpose in ("steps", "recomputed steps", "waiting for data")
        return self._patience.step_seconds if of_a_step else self._patience.other_seconds


def bite(what: str) -> None:
    """Leave the stacks of all threads and end this process, and with it the others."""
    why = f"{what} without coming on"
    print(f"watchdog: {why}; the stacks of all threads:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    heartbeat.end(processes.START_AGAIN, why)
