"""A run that does not come on: the stacks of all threads, and an end that a launcher undoes."""

import dataclasses
import faulthandler
import sys
import threading

from t5x_lite import processes, pulse
from t5x_lite.errors import ConfigError
from t5x_lite.run.ledger import UNTIL_FIRST_STEP, Ledger
from t5x_lite.run.observers import Observer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """For how long nothing may happen before a process ends itself, to be started again.

    step_seconds: from one step to the next, waiting for data included. other_seconds: for one
    evaluation or one save. None waits for ever. Before the first step, and while it is compiled,
    nothing is watched.
    """

    step_seconds: float | None = 900.0
    other_seconds: float | None = 7200.0

    def __post_init__(self):
        if min(self.step_seconds or 1, self.other_seconds or 1) <= 0:
            raise ConfigError(
                f"step_seconds and other_seconds take None or more than 0; got {self}",
                "Patience.step_seconds",
                "Patience.other_seconds",
            )


class Watchdog(Observer):
    """Looks at the ledger of a run from a thread of its own."""

    def __init__(self, patience: Patience, ledger: Ledger):
        self._patience, self._ledger = patience, ledger
        limits = (patience.step_seconds, patience.other_seconds)
        self._tick = min(5.0, *(limit / 8 for limit in limits if limit is not None), 5.0)

    def __enter__(self) -> "Watchdog":
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
        if purpose in UNTIL_FIRST_STEP:
            return None
        of_a_step = purpose in ("steps", "recomputed steps", "waiting for data")
        return self._patience.step_seconds if of_a_step else self._patience.other_seconds


def bite(what: str) -> None:
    """Leave the stacks of all threads and end this process, and with it the others."""
    why = f"{what} without coming on"
    print(f"watchdog: {why}; the stacks of all threads:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    pulse.end(processes.START_AGAIN, why)
