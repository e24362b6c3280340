"""Where the time before the first step goes, from the start of the process."""

import os
import time
from pathlib import Path

from t5x_lite.run.console import duration
from t5x_lite.run.ledger import Ledger

_IMPORTED = time.perf_counter()
_PURPOSES = {
    "weights": "restoring",
    "compiling beyond that": "compiling",
    "first step": "compiling",
}


class Startup:
    """Laps between the start of the process and the first step's end.

    The first lap began with the process itself (on Linux; elsewhere when this file was imported),
    so it holds Python's and the libraries' own start.
    """

    def __init__(self):
        self._began = self._last = time.perf_counter() - _age_of_process()
        self._laps: dict[str, float] = {}
        self.ledger = Ledger(self._began)
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
        """Say the sum and the laps in words."""
        laps = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self._laps.items())
        return f"the first step ended {duration(self.seconds['total'])} after the start ({laps})"


def _age_of_process() -> float:
    """Seconds since the process began."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks_after_boot = int(fields[19])  # field 22 of proc(5); two stand before the bracket
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - ticks_after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED
