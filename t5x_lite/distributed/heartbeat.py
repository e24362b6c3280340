"""Whether all processes of a run are alive: each tells the first one, which tells all who is not.

jax has such a watch of its own, which aborts a process without saying much (exit code 134); it is
left as the last resort, and as what ends the others at once when process 0, which serves all this,
has died. Here a process that hears of a missing one names it and ends with START_AGAIN.
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

SECONDS = 60  # the default
_FAREWELL = 5.0  # seconds process 0 goes on serving, for the others to hear why they end
_at_hand: "Heartbeat | None" = None


def start(seconds: float) -> None:
    """Watch over the others: one that is not heard of for so long is missing."""
    global _at_hand
    if processes.count() > 1:
        _at_hand = Heartbeat(seconds)


def leave(code: int, why: str | Exception) -> None:
    """Leave the others in peace (code 0); or end this process, and the others, who are told why.

    Does nothing where there are no others. When a process dies, the exchanges of the others fail
    before anybody knows why: such an error waits until that is known.
    """
    global _at_hand
    if _at_hand is None:
        return
    if code == 0:
        _at_hand.close()
        _at_hand = None
        return
    if isinstance(why, MissingProcessError):
        print(f"t5x_lite: {why}; ending, to be started again", file=sys.stderr, flush=True)
        end(START_AGAIN, str(why))
    if isinstance(why, Exception):
        traceback.print_exception(why)
        if isinstance(why, jax.errors.JaxRuntimeError):
            print("t5x_lite: is a process missing? ...", file=sys.stderr, flush=True)
            time.sleep(1.5 * _at_hand.seconds + 2)
        why = f"{type(why).__name__}: {str(why)[:300]}"
    end(code, why)


def end(code: int, why: str) -> NoReturn:
    """End this process at once, and the others with it, which are told why."""
    if _at_hand is not None:
        _at_hand.tell(code, why)
    sys.stdout.flush()
    os._exit(code)


class Heartbeat:
    """Two threads: one speaks with process 0, the other sees that the first comes back."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._tick = min(2.0, seconds / 8)
        self._left = threading.Event()
        self._answered = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}  # a process's last sign of life, and when
        self._gone: set[int] = set()  # who left in peace
        self._threads = [
            threading.Thread(target=target, name="pulse", daemon=True)
            for target in (self._beat, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop both, in peace."""
        self._left.set()
        processes.post(f"left/{processes.index()}", 0)
        for thread in self._threads:
            thread.join(self._tick * 4)

    def tell(self, code: int, why: str) -> None:
        """Have all others end with this code."""
        self._left.set()
        why = " ".join(why.split())
        verdict = [code, f"{processes.name(processes.index())} ended: {why}", processes.index()]
        processes.post("verdict/0", verdict)
        self._part()

    def _beat(self) -> None:
        beats = 0
        while not self._left.wait(self._tick):
            beats += 1
            try:
                processes.overwrite(f"pulse/{processes.index()}", beats)
                self._answered = time.monotonic()
                if processes.is_first():
                    self._look()
                if verdict := processes.posted("verdict").get(0):
                    self._obey(*verdict)
            except jax.errors.JaxRuntimeError:
                continue  # `_guard` knows for how long

    def _look(self) -> None:
        """Who has not been heard of; in process 0."""
        now = time.monotonic()
        self._gone |= set(processes.posted("left"))
        said = processes.posted("pulse")
        for number in range(processes.count()):
            sign = said.get(number, 0)
            if number not in self._heard or sign != self._heard[number][0]:
                self._heard[number] = sign, now
        missing = [
            number
            for number, (_, at) in self._heard.items()
            if now - at > self.seconds and number not in self._gone and number != 0
        ]
        if missing:
            names = ", ".join(map(processes.name, missing))
            why = f"{names}: not heard of for {self.seconds:.0f} s"
            processes.post("verdict/0", [START_AGAIN, why, None])

    def _guard(self) -> None:
        before = time.monotonic()
        while not self._left.wait(self._tick):
            # As long as Python runs at all, this is put off: else C prints the stacks and ends it.
            faulthandler.dump_traceback_later(10 * self.seconds + 60, exit=True)
            now = time.monotonic()
            if now - before > self.seconds / 2:  # this process itself was stopped
                self._answered = now
            before = now
            if now - self._answered > self.seconds:
                why = f"{processes.name(0)}: no answer for {self.seconds:.0f} s"
                self._obey(START_AGAIN, why, None, answered=False)
        faulthandler.cancel_dump_traceback_later()

    def _obey(self, code: int, why: str, who: int | None, *, answered: bool = True) -> None:
        if who == processes.index():
            return
        again = ", to be started again" if code == START_AGAIN else ""
        print(
            f"t5x_lite: {why}; process {processes.index()} ends with code {code}{again}; "
            "its stacks:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        if answered:
            self._part()
        os._exit(code)

    def _part(self) -> None:
        """Say that this one has heard; process 0 serves the others until they have, too."""
        if not processes.is_first():
            processes.post(f"left/{processes.index()}", 0)
            return
        until = time.monotonic() + max(_FAREWELL, 3 * self._tick)
        others = set(range(1, processes.count()))
        while time.monotonic() < until and not others <= set(processes.posted("left")):
            time.sleep(0.1)
