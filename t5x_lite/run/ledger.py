"""Where the seconds of a launch go: every one of them to exactly one purpose."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# What a launch's time is spent on. "steps" alone is what it is there for.
START_UP = "start-up"  # also what is at hand until the first step has ended
PURPOSES = (
    *("steps", "recomputed steps", START_UP, "restoring", "compiling"),
    *("waiting for data", "evaluating", "saving"),
)


class Ledger:
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
