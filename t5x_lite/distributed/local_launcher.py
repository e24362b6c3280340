"""Runs a command in several processes on this machine, as a simulated pod, with restarts.

`launch/local_pod.py` is its command line. It imports no jax, so that it starts at once.
"""

import argparse
import itertools
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TextIO

from t5x_lite.distributed.child_process import ChildProcess
from t5x_lite.distributed.signals import SignalRequests
from t5x_lite.errors import ConfigError, require

CONFIGURATION = 2  # exit codes that a restart would only repeat
INTERRUPTED = 130
# gloo prints a line with these words for every group of devices.
_NOISE = "Expected number of connected peer ranks"
_POLL_SECONDS = 0.2
USAGE = """
For example, two processes with four devices each, restarted after failures up to three times:

  launch/local_pod.py --processes=2 --devices=4 --restarts=3 -- \\
      t5x_lite train --gin_file=recipes/tiny_embedded.gin --gin.MODEL_DIR=runs/pod

Before training, `t5x_lite doctor` checks the pod once. SIGTERM and Ctrl-C are passed on: the run
saves its last step and ends. A second one is passed on too and ends the run at once.
The exit code is that of the first process that failed; 128 + n for one killed by signal n.
"""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A simulated pod and the command that runs on it.

    Args:
        command: What every process runs; a first word "t5x_lite" means this Python's package.
        processes: The number of processes.
        devices: The number of simulated CPU devices of each process.
        restarts: How often all processes are restarted when one fails. Invalid configuration and
            Ctrl-C cause no restart.
        grace: Seconds that the other processes have to end by themselves when one has failed; then
            they are killed.
        doctor: Run `t5x_lite doctor` with the same configuration before `t5x_lite train`, and do
            not train if it fails.
        environment: Environment variables of every process.

    Raises:
        ConfigError: For numbers that are too small, and without a command.
    """

    command: Sequence[str]
    processes: int = 2
    devices: int = 4
    restarts: int = 0
    grace: float = 60.0
    doctor: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self):
        require(
            min(self.processes, self.devices) >= 1 and self.restarts >= 0 and self.command,
            "--processes and --devices take 1 or more, --restarts 0 or more, and a command after "
            f"-- is needed; got {self.processes}, {self.devices}, {self.restarts} and the command "
            f"{' '.join(self.command)!r}",
        )

    @property
    def doctor_pod(self) -> "Pod | None":
        """The pod that runs `t5x_lite doctor` first; None if there is none to run."""
        if not self.doctor or tuple(self.command[:2]) != ("t5x_lite", "train"):
            return None
        devices = f"--devices={self.processes * self.devices}"
        command = ["t5x_lite", "doctor", devices, *self.command[2:]]
        return replace(self, command=command, restarts=0, doctor=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pod that the command line describes; ends this process with its exit code."""
    parser = argparse.ArgumentParser(
        prog="local_pod.py",
        description="Run a command in several processes that are a simulated pod.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--devices", type=int, default=4, help="of each process; default 4")
    parser.add_argument("--restarts", type=int, default=0, help="default 0")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds; default 60")
    parser.add_argument(
        "--no_doctor", dest="doctor", action="store_false", help="train without checking the pod"
    )
    parser.add_argument("command", nargs="*", metavar="-- COMMAND")
    try:
        pod = Pod(**vars(parser.parse_args(arguments)))
    except ConfigError as error:
        parser.error(error.message)
    sys.exit(run(pod))


def run(pod: Pod) -> int:
    """Run a pod until it ends, with its restarts; for the main thread.

    Args:
        pod: The pod.

    Returns:
        The exit code: 0, or that of the first process that failed.
    """
    with SignalRequests(signal.SIGTERM, signal.SIGINT) as signals:
        if pod.doctor_pod is not None:
            code = _Launch(pod.doctor_pod, signals).run()
            if code or signals.received:
                return code or 128 + signals.received[0]
        for restart in itertools.count(1):
            code = _Launch(pod, signals).run()
            final = code in (0, CONFIGURATION, INTERRUPTED) or signals.received
            if final or restart > pod.restarts:
                return code
            _log(f"restarting all processes ({restart} of {pod.restarts})")
    raise AssertionError


class _Launch:
    """One start of all processes."""

    def __init__(self, pod: Pod, signals: SignalRequests):
        self._pod, self._signals = pod, signals
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # indices, in order of time
        port = _free_port()
        self._processes = [self._start(index, port) for index in range(pod.processes)]
        pids = (f"{index} is {process.pid}" for index, process in enumerate(self._processes))
        _log(f"process {', '.join(pids)}")

    def run(self) -> int:
        """Wait for all; returns the exit code of the first that failed, or 0."""
        first_failure, deadline = 0, None
        running = set(range(self._pod.processes))
        while running:
            for number in self._signals.take():
                for index in running:
                    self._processes[index].send(number)
            try:
                ended = self._ended.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if deadline is not None and time.monotonic() > deadline:
                    _log(f"killing process {', '.join(map(str, sorted(running)))}, still running")
                    for index in running:
                        self._processes[index].kill()
                    deadline = None
                continue
            running.remove(ended)
            code = self._processes[ended].wait() or 0
            if code and not first_failure:
                first_failure = code if code > 0 else 128 - code
                deadline = time.monotonic() + self._pod.grace
            if code:
                _log(f"process {ended} {_ending(code)}")
        return first_failure

    def _start(self, index: int, port: int) -> ChildProcess:
        command = list(self._pod.command)
        if command[0] == "t5x_lite":
            command[:1] = [sys.executable, "-m", "t5x_lite"]
        environment = self._pod.environment | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self._pod.devices),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(self._pod.processes),
            "JAX_PROCESS_ID": str(index),
            "PYTHONUNBUFFERED": "1",
        }
        return ChildProcess(
            command,
            environment=environment,
            on_line=partial(_copy, sys.stdout, index),
            on_error_line=partial(_copy, sys.stderr, index),
            on_exit=partial(self._ended.put, index),
        )


def _copy(target: TextIO, index: int, line: str) -> None:
    if _NOISE not in line:
        target.write(f"[{index}] {line}\n")  # in one call: several threads write
        target.flush()


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _log(text: str) -> None:
    print(f"local_pod: {text}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
