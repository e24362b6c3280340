"""Signals as requests: recorded when they come, and read by a program when it is ready for them."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self


class SignalRequests:
    """Records signals instead of ending the process; a context manager, for the main thread.

    The handlers from before are restored at the end of the block.

    Python runs its handlers in the main thread only, and not while that thread is inside a long
    call, such as a training step that waits for other processes. What must not wait is given as
    `on_signal` or `exit_on_second`: both are served by a thread of their own, at once.

    Args:
        *numbers: The signals to record.
        on_signal: Called with the number of each signal, from a thread.
        exit_on_second: End the process at the second signal, with the exit code 128 + its number,
            whatever the main thread is doing.
    """

    def __init__(
        self,
        *numbers: signal.Signals,
        on_signal: Callable[[int], None] | None = None,
        exit_on_second: bool = False,
    ):
        self.received: list[int] = []  # all of them, in order
        self._numbers, self._on_signal, self._exit_on_second = numbers, on_signal, exit_on_second
        self._num_taken = 0
        self._thread: threading.Thread | None = None

    def take(self) -> list[int]:
        """Return the signals that came since the last call, in order."""
        new = self.received[self._num_taken :]
        self._num_taken += len(new)
        return new

    def __enter__(self) -> Self:
        # First the thread, then the handlers: no signal is recorded that the thread does not see.
        if self._on_signal is not None or self._exit_on_second:
            self._listen()
        self._before: Mapping[int, Any] = {
            number: signal.signal(number, lambda number, _: self.received.append(number))
            for number in self._numbers
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._thread is not None:
            signal.set_wakeup_fd(self._fd_before)
            self._sender.close()  # ends the thread's loop
            self._thread.join()
            self._receiver.close()

    def _listen(self) -> None:
        # The C part of Python writes the number of a signal to this socket when it arrives.
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._serve, name="signals", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        count = 0
        while numbers := self._receiver.recv(16):
            for number in numbers:
                if number not in self._numbers:  # of other handlers in this process
                    continue
                count += 1
                if count > 1 and self._exit_on_second:
                    os._exit(128 + number)
                if self._on_signal is not None:
                    self._on_signal(number)
