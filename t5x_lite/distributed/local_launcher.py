"""A pod on this machine: several processes with simulated devices, and who starts them again."""

import argparse
import ctypes
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from t5x_lite.errors import ConfigError

CONFIGURATION = 2  # exit codes that starting again would only repeat
INTERRUPTED = 130
_CHATTER = "Expected number of connected peer ranks"  # gloo, for every group of devices
USAGE = """
For example, two processes with four devices each, started again after faults up to three times:

  launch/local_pod.py --processes=2 --devices=4 --restarts=3 -- \\
      t5x_lite train --gin_file=recipes/tiny_embedded.gin --gin.MODEL_DIR=runs/pod

Before training `t5x_lite doctor` examines the pod, once. SIGTERM and Ctrl-C are passed on: the run
saves its last step. A second one is passed on as well.
The exit code is that of the first process that failed; 128 + n for one killed by signal n.
"""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What runs where.

    command: of every process; "t5x_lite" stands for this Python's. processes, devices: how many,
    and simulated CPU devices of each. restarts: how often all are started again when one fails;
    wrong configuration and Ctrl-C end the pod. grace: seconds the others are given to end by
    themselves when one has failed; then they are killed. doctor: examine the pod with the same
    configuration before `t5x_lite train` starts, and start nothing that is not fit.
    """

    command: Sequence[str]
    processes: int = 2
    devices: int = 4
    restarts: int = 0
    grace: float = 60.0
    doctor: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self):
        if min(self.processes, self.devices) < 1 or self.restarts < 0 or not self.command:
            raise ConfigError(
                "wanted processes and devices of 1 or more, restarts of 0 or more, and a command "
                "after --"
            )

    @property
    def examination(self) -> "Pod | None":
        """The pod that examines this one; None where nothing is to be examined."""
        if not self.doctor or tuple(self.command[:2]) != ("t5x_lite", "train"):
            return None
        devices = f"--devices={self.processes * self.devices}"
        command = ["t5x_lite", "doctor", devices, *self.command[2:]]
        return replace(self, command=command, restarts=0, doctor=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a pod as the command line says; ends with its exit code."""
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
        "--no_doctor", dest="doctor", action="store_false", help="train without examining the pod"
    )
    parser.add_argument("command", nargs="*", metavar="-- COMMAND")
    try:
        pod = Pod(**vars(parser.parse_args(arguments)))
    except ConfigError as error:
        parser.error(error.message)
    sys.exit(run(pod))


def run(pod: Pod) -> int:
    """Run a pod to its end, starting it again as it says; returns the exit code."""
    with _Signals() as signals:
        if pod.examination is not None:
            unfit = _Launch(pod.examination, signals).run()
            if unfit or signals.came:
                return unfit or 128 + signals.came[0]
        for restart in itertools.count(1):
            code = _Launch(pod, signals).run()
            final = code in (0, CONFIGURATION, INTERRUPTED) or signals.came
            if final or restart > pod.restarts:
                return code
            _say(f"starting all processes again ({restart} of {pod.restarts})")
    raise AssertionError


class _Signals:
    """Catches what is to be passed on."""

    def __init__(self):
        self.came: list[int] = []

    def __enter__(self) -> "_Signals":
        wanted = (signal.SIGTERM, signal.SIGINT)
        main_thread = threading.current_thread() is threading.main_thread()
        self._before = (
            {n: signal.signal(n, lambda number, _: self.came.append(number)) for n in wanted}
            if main_thread
            else {}
        )
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Launch:
    """One start of all processes."""

    def __init__(self, pod: Pod, signals: _Signals):
        self._pod, self._signals = pod, signals
        self._ended: queue.Queue[int] = queue.Queue()  # numbers of processes
        port = _free_port()
        self._processes = [self._start(number, port) for number in range(pod.processes)]
        _say(f"process {', '.join(f'{n} is {p.pid}' for n, p in self._enumerated())}")
        self._threads = [
            *(self._thread(self._wait, n) for n in range(pod.processes)),
            *(self._thread(_copy, p.stdout, sys.stdout, n) for n, p in self._enumerated()),
            *(self._thread(_copy, p.stderr, sys.stderr, n) for n, p in self._enumerated()),
        ]

    def run(self) -> int:
        """Wait for all; returns the exit code of the first that failed, or 0."""
        passed_on, first_failure, deadline = len(self._signals.came), 0, None
        running = set(range(self._pod.processes))
        while running:
            for number in self._signals.came[passed_on:]:
                passed_on += 1
                self._send(running, number)
            try:
                ended = self._ended.get(timeout=0.2)
            except queue.Empty:
                if deadline is not None and time.monotonic() > deadline:
                    _say(f"killing process {', '.join(map(str, sorted(running)))}, still there")
                    self._send(running, signal.SIGKILL)
                    deadline = None
                continue
            running.remove(ended)
            code = self._processes[ended].returncode
            if code and not first_failure:
                first_failure = code if code > 0 else 128 - code
                deadline = time.monotonic() + self._pod.grace
            if code:
                _say(f"process {ended} {_ending(code)}")
        for thread in self._threads:
            thread.join()
        return first_failure

    def _start(self, number: int, port: int) -> subprocess.Popen[str]:
        command = list(self._pod.command)
        if command[0] == "t5x_lite":
            command[:1] = [sys.executable, "-m", "t5x_lite"]
        environment = self._pod.environment | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self._pod.devices),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(self._pod.processes),
            "JAX_PROCESS_ID": str(number),
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C comes through here alone
            preexec_fn=end_with_parent,
        )

    def _send(self, running: set[int], number: int) -> None:
        for each in running:
            self._processes[each].send_signal(number)

    def _wait(self, number: int) -> None:
        self._processes[number].wait()
        self._ended.put(number)

    def _enumerated(self) -> list[tuple[int, subprocess.Popen[str]]]:
        return list(enumerate(self._processes))

    def _thread(self, target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # pyright: ignore
        thread.start()
        return thread


def _copy(source: IO[str], target: IO[str], number: int) -> None:
    for line in source:
        if _CHATTER in line:
            continue
        target.write(f"[{number}] {line}")
        target.flush()


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _say(text: str) -> None:
    print(f"local_pod: {text}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def end_with_parent() -> None:
    """Have Linux kill the process when this one is killed; elsewhere it would be left behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
