"""Child processes: start a program or a Python function, read its lines, stop it, leave no orphans.

Every child runs in a session of its own, so that Ctrl-C in a terminal reaches only the process that
started it, which then stops its children as it needs. Every child ends when that process ends,
however it ends. There are two kinds, because the kernel offers this only to one of them:

* `ChildProcess` runs any program. Linux kills it when its parent dies (prctl PR_SET_PDEATHSIG).
* `start_function` runs a Python function, with `multiprocessing`. Its process watches the parent
  from a thread. PR_SET_PDEATHSIG would kill it too early, when the *thread* that started it ends,
  and the workers of an executor are started by any thread that submits work.

This module imports nothing outside the standard library, so that small programs may use it.
"""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Self

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_NOT_FOUND = 127  # a shell's exit code for a command that does not exist
# Seconds to wait for the last lines of a child that has ended: one of its own children may hold
# the pipe open for longer.
_LAST_LINES = 10.0
# "spawn" starts a fresh interpreter. A fork of this process would copy the locks of its other
# threads (jax, TensorFlow), in whatever state they are, and could block forever.
SPAWN = multiprocessing.get_context("spawn")


class ChildProcess:
    """A running program; a context manager that kills it at the end of the block.

    On Linux it is killed when the thread that started it ends, so start it from a thread that
    outlives it. On other systems it survives a parent that is killed.

    Exit codes are those of `subprocess`: -n after signal n. A program that cannot be executed ends
    with 127 and a line on standard error.

    Args:
        command: The program and its arguments.
        environment: All its environment variables; None passes on those of this process.
        output: A file that takes standard output and standard error. Without it and `on_line` both
            go where those of this process go.
        on_line: Called from a thread with each line of standard output, without its newline. It
            takes the lines of standard error too, unless there is an `on_error_line`.
        on_error_line: The same for standard error alone.
        on_exit: Called from a thread as soon as the program has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
        on_line: Callable[[str], None] | None = None,
        on_error_line: Callable[[str], None] | None = None,
        on_exit: Callable[[], None] | None = None,
    ):
        errors = None if output is None and on_line is None else subprocess.STDOUT
        errors = errors if on_error_line is None else subprocess.PIPE
        self._process = subprocess.Popen(
            # See `_execute`. -I and -S exclude the user's settings and all packages: this
            # interpreter lives for some 50 ms.
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output if on_line is None else subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._readers = [
            _thread(_read, pipe, call)
            for pipe, call in (
                (self._process.stdout, on_line),
                (self._process.stderr, on_error_line),
            )
            if pipe is not None
        ]
        if on_exit is not None:
            _thread(self._wait_and_call, on_exit)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    @property
    def is_reading(self) -> bool:
        """Whether more lines may come."""
        return any(reader.is_alive() for reader in self._readers)

    def send(self, number: int) -> None:
        """Send a signal to the program; does nothing if it has ended."""
        self._process.send_signal(number)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the program has ended and its lines were read.

        Args:
            seconds: Give up after this time; None waits without limit.

        Returns:
            The exit code, or None if the program still runs.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        for reader in self._readers:
            reader.join(_LAST_LINES)
        return code

    def stop(self, grace_seconds: float) -> int:
        """Ask the program to end with SIGTERM, and kill it if it does not.

        Args:
            grace_seconds: The time between SIGTERM and SIGKILL.

        Returns:
            The exit code.
        """
        self.send(signal.SIGTERM)
        code = self.wait(grace_seconds)
        return self.kill() if code is None else code

    def kill(self) -> int:
        """Kill the program and the rest of its process group, and return the exit code."""
        with contextlib.suppress(ProcessLookupError):
            if self.is_alive:
                os.killpg(self.pid, signal.SIGKILL)
        code = self.wait()
        assert code is not None
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _wait_and_call(self, on_exit: Callable[[], None]) -> None:
        self._process.wait()
        on_exit()


def start_function(
    function: Callable[..., object], *arguments: object, name: str
) -> multiprocessing.process.BaseProcess:
    """Call a function in a new Python process, which ends when this process ends.

    Args:
        function: Importable by its name, so not a local function.
        *arguments: Anything that can be pickled, and connections of `SPAWN.Pipe()`.
        name: Name of the process.

    Returns:
        The started process.
    """
    process = SPAWN.Process(target=_call, args=(function, arguments), name=name)
    process.start()
    return process


def end_with_parent() -> None:
    """End this process, which `multiprocessing` started, as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        with contextlib.suppress(Exception):
            parent.join()
        os._exit(1)

    _thread(watch)


def _call(function: Callable[..., object], arguments: Sequence[object]) -> None:
    os.setsid()
    end_with_parent()
    function(*arguments)


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _read(pipe: IO[str], on_line: Callable[[str], None]) -> None:
    with pipe:
        for line in pipe:
            on_line(line.rstrip("\n"))


def _execute(parent: int, command: list[str]) -> None:
    """Replace this process by a program that dies with its parent.

    Only the child itself can make this request, before it becomes the program. `preexec_fn` of
    `subprocess` would run it in a fork of the parent, where Python code may block forever on a lock
    of another thread, and which jax warns of.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            sys.exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(_NOT_FOUND)


if __name__ == "__main__":
    _execute(int(sys.argv[1]), sys.argv[2:])
