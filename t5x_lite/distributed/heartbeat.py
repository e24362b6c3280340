"""Heartbeats: all processes of a run notice when one is missing, name it, and exit.

Every process sends its heartbeat to process 0, which announces to the others which of them are
missing. They then exit with START_AGAIN, for a launcher to restart the run, and name the missing
ones. jax has a similar check, which aborts a process (exit code 134) without naming
the missing one. It remains as a last resort, and it ends the others at once when process 0, whose
service carries the heartbeats, has died.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from typing import NoReturn

import jax

from t5x_lite.distributed import processes
from t5x_lite.distributed.processes import START_AGAIN, MissingProcessError

SECONDS = 60  # the default of --missing_seconds
# Seconds that process 0 keeps serving after an error, so that the others can read the reason.
_SERVE_SECONDS = 5.0
_heartbeat: "Heartbeat | None" = None  # of this process


def start(seconds: float) -> None:
    """Start the heartbeat of this process; does nothing if there is only one process.

    Args:
        seconds: The time without a heartbeat after which a process is missing.
    """
    global _heartbeat
    if processes.count() > 1:
        _heartbeat = Heartbeat(seconds)


def leave(code: int, why: str | Exception = "") -> None:
    """Exit cleanly (code 0), or end this process and the others, which print the reason.

    It does nothing if there is only one process. When a process dies, collectives of the others
    fail before the missing heartbeat is noticed. So after an error of jax this process waits until
    the missing process would be named.

    Args:
        code: The exit code. For 0 this function stops the heartbeat and returns.
        why: The reason, for the other processes; not needed for code 0.
    """
    global _heartbeat
    if _heartbeat is None:
        return
    if code == 0:
        _heartbeat.close()
        _heartbeat = None
        return
    if isinstance(why, MissingProcessError):
        print(f"t5x_lite: {why}; exiting for a restart", file=sys.stderr, flush=True)
        end(START_AGAIN, str(why))
    if isinstance(why, Exception):
        traceback.print_exception(why)
        if isinstance(why, jax.errors.JaxRuntimeError):
            print("t5x_lite: checking for a missing process ...", file=sys.stderr, flush=True)
            time.sleep(1.5 * _heartbeat.seconds + 2)
        why = f"{type(why).__name__}: {str(why)[:300]}"
    end(code, why)


def end(code: int, why: str) -> NoReturn:
    """End this process at once, and all others with the same exit code.

    Args:
        code: The exit code.
        why: The reason, which the other processes print.
    """
    if _heartbeat is not None:
        _heartbeat.end_others(code, why)
    sys.stdout.flush()
    os._exit(code)


class Heartbeat:
    """Two threads: one exchanges heartbeats with process 0, the other notices if that one hangs.

    Args:
        seconds: The time without a heartbeat after which a process is missing.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._tick = min(2.0, seconds / 8)
        self._closed = threading.Event()
        self._answered = time.monotonic()  # the last answer of process 0's service
        # In process 0: the last heartbeat of each process, and when it came.
        self._last: dict[int, tuple[int, float]] = {}
        self._exited: set[int] = set()  # processes that exited cleanly
        self._threads = [
            threading.Thread(target=target, name="heartbeat", daemon=True)
            for target in (self._send_heartbeats, self._watch_service)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop both threads, and let the others know that this process exits cleanly."""
        self._closed.set()
        processes.post(f"exited/{processes.index()}", 0)
        for thread in self._threads:
            thread.join(self._tick * 4)

    def end_others(self, code: int, why: str) -> None:
        """Make all other processes end.

        Args:
            code: Their exit code.
            why: The reason, which they print.
        """
        self._closed.set()
        reason = f"{processes.name(processes.index())} ended: {' '.join(why.split())}"
        processes.post("end/0", [code, reason, processes.index()])
        self._acknowledge()

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._closed.wait(self._tick):
            beats += 1
            try:
                processes.overwrite(f"heartbeat/{processes.index()}", beats)
                self._answered = time.monotonic()
                if processes.is_first():
                    self._find_missing()
                if message := processes.posted("end").get(0):
                    self._end_for(*message)
            except jax.errors.JaxRuntimeError:
                continue  # `_watch_service` measures for how long

    def _find_missing(self) -> None:
        """Make all processes end if one is missing; runs in process 0."""
        now = time.monotonic()
        self._exited |= set(processes.posted("exited"))
        beats = processes.posted("heartbeat")
        for number in range(processes.count()):
            beat = beats.get(number, 0)
            if number not in self._last or beat != self._last[number][0]:
                self._last[number] = beat, now
        missing = [
            number
            for number, (_, at) in self._last.items()
            if now - at > self.seconds and number not in self._exited and number != 0
        ]
        if missing:
            names = ", ".join(map(processes.name, missing))
            reason = f"{names}: no heartbeat for {self.seconds:.0f} s"
            processes.post("end/0", [START_AGAIN, reason, None])

    def _watch_service(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self._tick):
            # Postponed as long as Python runs. If all of Python hangs, code in C prints the stacks
            # and ends the process.
            faulthandler.dump_traceback_later(10 * self.seconds + 60, exit=True)
            now = time.monotonic()
            if now - before > self.seconds / 2:  # this process itself was stopped (SIGSTOP)
                self._answered = now
            before = now
            if now - self._answered > self.seconds:
                reason = f"{processes.name(0)}: no answer for {self.seconds:.0f} s"
                self._end_for(START_AGAIN, reason, None, answered=False)
        faulthandler.cancel_dump_traceback_later()

    def _end_for(self, code: int, why: str, sender: int | None, *, answered: bool = True) -> None:
        """End this process for a reason that another one sent; ignore messages of its own."""
        if sender == processes.index():
            return
        restart = ", for a restart" if code == START_AGAIN else ""
        print(
            f"t5x_lite: {why}; process {processes.index()} ends with code {code}{restart}; "
            "its stacks:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        if answered:
            self._acknowledge()
        os._exit(code)

    def _acknowledge(self) -> None:
        """Confirm that this process ends; process 0 waits until the others have confirmed it."""
        if not processes.is_first():
            processes.post(f"exited/{processes.index()}", 0)
            return
        until = time.monotonic() + max(_SERVE_SECONDS, 3 * self._tick)
        others = set(range(1, processes.count()))
        while time.monotonic() < until and not others <= set(processes.posted("exited")):
            time.sleep(0.1)
