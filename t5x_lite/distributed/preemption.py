"""The wish to stop, of a person or a platform, in any process, and the last step that all agree on.

SIGTERM and SIGINT (Ctrl-C) ask for it; jax's preemption service may too. No process may run ahead
of the last step, or the others would wait for it in the middle of the next. So whoever is asked
posts a notice; a thread of every process sees it, holds its own loop between two steps, and tells
the others how far that loop has come. The last step is the one after the furthest.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from t5x_lite.distributed import processes
from t5x_lite.distributed.processes import START_AGAIN, MissingProcessError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGREE = 60.0  # seconds for the processes to tell each other how far they are


class StopRequest(NamedTuple):
    """Why a run stops: a signal, and the process that was sent it; None for jax's service."""

    number: int
    process: int | None

    @property
    def exit_code(self) -> int:
        """START_AGAIN for a launcher; a person who pressed Ctrl-C wants no new start."""
        return 128 + self.number if self.number == signal.SIGINT else START_AGAIN

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        if self.process is None:
            return "preempted"
        return name if processes.count() == 1 else f"{name} to {processes.name(self.process)}"


class PreemptionHandler:
    """Catches the wish to stop; a context manager, for the main thread.

    A second signal ends the process at once, whatever it is doing: checkpoints are complete or do
    not count.
    """

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._asked = 0  # how often; a run that goes back to a checkpoint counts on
        self._wish: StopRequest | None = None  # of this process alone
        self._agreed: tuple[int, StopRequest] | None = None  # what count it is at the last step
        self._between_steps = threading.Lock()
        self._left = threading.Event()

    def __enter__(self) -> "PreemptionHandler":
        # Python's handlers wait for the main thread, which may be deep in a step: through this
        # socket the thread hears of a signal at once.
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda number, _: self._ask(number))
            for number in _SIGNALS
        }
        self._threads = [threading.Thread(target=self._hear_signals, name="signals", daemon=True)]
        if processes.count() > 1:
            thread = threading.Thread(target=self._hear_notice, name="stopping", daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd)
        self._mouth.close()
        for thread in self._threads:
            thread.join()
        self._ear.close()

    def reached(self) -> StopRequest | None:
        """Why to stop now, or None; asked after every step, equally often by all processes."""
        if processes.count() == 1:
            return self._wish
        with self._between_steps:
            self._asked += 1
            if self._agreed is not None and self._asked >= self._agreed[0]:
                return self._agreed[1]
        return StopRequest(signal.SIGTERM, None) if processes.is_preempted(self._asked) else None

    def _ask(self, number: int) -> None:
        self._wish = self._wish or StopRequest(number, processes.index())

    def _hear_signals(self) -> None:
        came = 0
        while heard := self._ear.recv(16):
            for number in (each for each in heard if each in _SIGNALS):
                if (came := came + 1) > 1:
                    os._exit(128 + number)
                self._ask(number)
                if processes.count() > 1:
                    processes.post("stop", [number, processes.index()])
                name = signal.Signals(number).name
                self._report(f"{name}: stopping after a step; a second one ends at once")

    def _hear_notice(self) -> None:
        while not self._left.is_set():
            if (notice := processes.hear("stop", seconds=1.0)) is None:
                continue
            with self._between_steps:
                try:
                    counts = processes.gather(self._asked, "stop", seconds=_AGREE)
                except MissingProcessError as error:
                    self._report(f"no last step was agreed on: {error}")
                    return
                self._agreed = (max(counts) + 1, StopRequest(*notice))
            return
