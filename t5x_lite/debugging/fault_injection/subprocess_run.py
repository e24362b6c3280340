"""A training run as a child process: its output with times, signals, exit code."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import Signals

import t5x_lite
from t5x_lite.distributed import local_launcher
from t5x_lite.distributed.child_process import ChildProcess

STEP = re.compile(r"^(?:\[0\] )?step ([\d,]+)/")
FIRST = re.compile(r"first step finished .* after the start \((.*)\)")


class TrainProcess:
    """A started `t5x_lite train`; several processes run under `distributed.local_launcher`.

    Args:
        arguments: Arguments of `t5x_lite`, beginning with "train".
        processes: Number of processes that train.
        devices: Number of simulated devices of each of several processes.
    """

    def __init__(self, arguments: Sequence[str], *, processes: int = 1, devices: int = 4):
        command = [sys.executable, "-m", t5x_lite.__name__, *arguments]
        if processes > 1:
            pod = ["--processes", str(processes), "--devices", str(devices), "--grace", "20"]
            launcher = [sys.executable, "-m", local_launcher.__name__]
            command = [*launcher, *pod, "--", *command]
        self.start_time = time.monotonic()
        self.lines: list[tuple[float, str]] = []  # (time.monotonic() of its arrival, line)
        self._changed = threading.Condition()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._child = ChildProcess(command, environment=environment, on_line=self._add)

    @property
    def text(self) -> str:
        """All lines so far."""
        return "\n".join(line for _, line in self.lines)

    @property
    def pids(self) -> list[int]:
        """The processes that train: the children of a launcher, or the one process itself."""
        pid = self._child.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children] or [pid]

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._child.is_alive

    def wait_for(
        self, matches: Callable[[str], object], seconds: float, *, since: float = 0.0
    ) -> float | None:
        """Wait for a line.

        Args:
            matches: Returns a true value for the line.
            seconds: The longest time to wait.
            since: The `time.monotonic()` after which the line has to arrive.

        Returns:
            The `time.monotonic()` at which it arrived; None if the run ended or the time is over.
        """
        deadline, seen = time.monotonic() + seconds, 0
        with self._changed:
            while True:
                is_reading = self._child.is_reading  # read before the lines, so that none is missed
                for arrival, line in self.lines[seen:]:
                    if arrival > since and matches(line):
                        return arrival
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or not is_reading:
                    return None
                self._changed.wait(min(left, 0.2))

    def send(self, number: Signals) -> None:
        """Send a signal to the process, or to the launcher of several processes."""
        self._child.send(number)

    def end(self, seconds: float) -> int:
        """Wait for the end, and kill the run if it does not come in time.

        Args:
            seconds: The longest time to wait.

        Returns:
            The exit code, -n after signal n.
        """
        code = self._child.wait(seconds)
        return self._child.kill() if code is None else code

    def _add(self, line: str) -> None:
        with self._changed:
            self.lines.append((time.monotonic(), line.rstrip()))
            self._changed.notify_all()
