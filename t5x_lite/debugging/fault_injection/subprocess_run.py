"""A training run in a process of its own, as a person sees it: its lines, its end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from t5x_lite.debugging.fault_injection import nan_batch
from t5x_lite.distributed import local_launcher

STEP = re.compile(r"^(?:\[0\] )?step ([\d,]+)/")
FIRST = re.compile(r"the first step ended .* after the start \((.*)\)")


class TrainProcess:
    """A started `t5x_lite train`; several processes run under `distributed.local_launcher`."""

    def __init__(self, arguments: Sequence[str], *, processes: int = 1, devices: int = 4):
        command = [sys.executable, "-m", nan_batch.__name__, *arguments]
        if processes > 1:
            pod = ["--processes", str(processes), "--devices", str(devices), "--grace", "20"]
            command = [sys.executable, "-m", local_launcher.__name__, *pod, "--", *command]
        self.began = time.monotonic()
        self.lines: list[tuple[float, str]] = []  # with when they came
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All it said so far."""
        return "\n".join(line for _, line in self.lines)

    @property
    def pids(self) -> list[int]:
        """The processes that train."""
        pid = self._process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found] or [pid]

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_for(
        self, said: Callable[[str], object], seconds: float, *, since: float = 0.0
    ) -> float | None:
        """Wait for a line, and return when it came; None if the run ended or time is over."""
        until, seen = time.monotonic() + seconds, 0
        with self._changed:
            while True:
                for came, line in self.lines[seen:]:
                    if came > since and said(line):
                        return came
                seen = len(self.lines)
                left = until - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    return None
                self._changed.wait(min(left, 1.0))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to what was started: one process, or the pod of them."""
        self._process.send_signal(number)

    def end(self, seconds: float) -> int:
        """Wait for the end; returns the exit code, -n for signal n. Kills what does not end."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(10)
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                with self._changed:
                    self.lines.append((time.monotonic(), line.rstrip()))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
