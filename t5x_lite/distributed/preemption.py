"""Preemption and Ctrl-C: all processes of a run stop after the same step, which is then saved.

SIGTERM and SIGINT (Ctrl-C) request a stop in the process that receives them; so does jax's
preemption service. No process may run beyond the last step, or it would wait for the others inside
the next one. So the process that received the signal posts a notice. A thread of every process
reads it, holds the training loop of its process between two steps, and exchanges with the others
how many steps were taken. The last step is the one after the largest number.
"""

import logging
import signal
import threading
from typing import NamedTuple, Self

from t5x_lite.distributed import processes
from t5x_lite.distributed.processes import START_AGAIN, MissingProcessError
from t5x_lite.distributed.signals import SignalRequests

_LOG = logging.getLogger(__name__)
_AGREEMENT_SECONDS = 60.0  # for the processes to exchange how many steps they took
_NOTICE_SECONDS = 1.0  # between two checks whether the run has ended


class StopRequest(NamedTuple):
    """Why a run stops.

    Args:
        number: The signal.
        process: The process that received it; None for a notice of jax's preemption service.
    """

    number: int
    process: int | None

    @property
    def exit_code(self) -> int:
        """START_AGAIN (75), for a launcher to restart the run; after Ctrl-C 130, which does not."""
        return 128 + self.number if self.number == signal.SIGINT else START_AGAIN

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        if self.process is None:
            return "preempted"
        return name if processes.count() == 1 else f"{name} to {processes.name(self.process)}"


class PreemptionHandler:
    """Turns SIGTERM and SIGINT into a request to stop; a context manager, for the main thread.

    A second signal ends the process at once. That loses no more than the steps since the last
    checkpoint: a checkpoint is complete or is ignored.
    """

    def __init__(self):
        self._signals = SignalRequests(
            signal.SIGINT, signal.SIGTERM, on_signal=self._on_signal, exit_on_second=True
        )
        # Calls of `reached`. It counts them, not steps: a rollback repeats the numbers of steps.
        self._count = 0
        self._last: tuple[int, StopRequest] | None = None  # the count at the last step, and why
        self._between_steps = threading.Lock()
        self._closed = threading.Event()
        self._agreement: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._signals.__enter__()
        if processes.count() > 1:
            self._agreement = threading.Thread(target=self._agree, name="stopping", daemon=True)
            self._agreement.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._signals.__exit__(*error)
        if self._agreement is not None:
            self._agreement.join()

    def reached(self) -> StopRequest | None:
        """Return why to stop now, or None; to be called after every step, by all processes."""
        if processes.count() == 1:
            received = self._signals.received
            return StopRequest(received[0], processes.index()) if received else None
        with self._between_steps:
            self._count += 1
            if self._last is not None and self._count >= self._last[0]:
                return self._last[1]
        return StopRequest(signal.SIGTERM, None) if processes.is_preempted(self._count) else None

    def _on_signal(self, number: int) -> None:
        if processes.count() > 1:
            processes.post("stop", [number, processes.index()])
        name = signal.Signals(number).name
        _LOG.info(f"{name}: saving and stopping after this step; a second signal ends at once")

    def _agree(self) -> None:
        while not self._closed.is_set():
            if (notice := processes.wait_for("stop", seconds=_NOTICE_SECONDS)) is None:
                continue
            with self._between_steps:  # no step begins while the others rely on this number
                try:
                    counts = processes.gather(self._count, "stop", seconds=_AGREEMENT_SECONDS)
                except MissingProcessError as error:
                    _LOG.warning(f"the processes did not agree on a last step: {error}")
                    return
                self._last = (max(counts) + 1, StopRequest(*notice))
            return
