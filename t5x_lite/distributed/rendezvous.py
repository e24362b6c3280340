"""Who is there before the processes of a run meet: jax itself waits, and ends without a name.

Process 0 listens where jax's service will be; the others tell it their number and host, and all
hear who did not come. It is the first thing `t5x_lite doctor` does.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping

from t5x_lite.distributed.processes import DistributedConfig, cluster_tells
from t5x_lite.errors import ConfigError

_LONGEST = 60.0  # seconds that an answer may be later than the one who waits for it


def call(meeting: DistributedConfig, *, seconds: float) -> None:
    """Return once all processes have answered; ConfigError, in all of them, naming the missing."""
    meeting = _told_by_cluster(meeting)
    if meeting.coordinator_address is None or (meeting.num_processes or 1) == 1:
        return
    host, _, port = meeting.coordinator_address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(
            f"--coordinator_address takes HOST:PORT; got {meeting.coordinator_address!r}"
        )
    if meeting.process_id == 0:
        came = _listen(int(port), meeting.num_processes or 1, seconds)
    else:
        came = _answer((host.strip("[]"), int(port)), meeting, seconds)
    numbers = range(meeting.num_processes or 1)
    missing = [number for number in numbers if str(number) not in came]
    if missing:
        there = ", ".join(
            f"{number} on {came[str(number)]}" for number in numbers if str(number) in came
        )
        raise ConfigError(
            f"{len(missing)} of {len(numbers)} processes did not come within {seconds:.0f} s: "
            f"{', '.join(map(str, missing))}; there were {there}; see whether the command was "
            f"started on the hosts that are missing, and whether they reach "
            f"{meeting.coordinator_address}"
        )


def _told_by_cluster(meeting: DistributedConfig) -> DistributedConfig:
    if meeting.coordinator_address is not None or not cluster_tells(os.environ):
        return meeting
    from jax._src.clusters import ClusterEnv

    with contextlib.suppress(Exception):  # jax.distributed will say what is wrong
        told = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 60)
        return DistributedConfig(*told[:3])
    return meeting


def _listen(port: int, expected: int, seconds: float) -> Mapping[str, str]:
    came, lines, until = {"0": socket.gethostname()}, [], time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port), reuse_port=False))
        while len(came) < expected and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError, OSError):
                line = stack.enter_context(server.accept()[0])
                line.settimeout(5.0)
                number, host = json.loads(line.makefile().readline())
                came[str(number)] = host
                lines.append(line)
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(came).encode() + b"\n")
    return came


def _answer(
    address: tuple[str, int], meeting: DistributedConfig, seconds: float
) -> Mapping[str, str]:
    until = time.monotonic() + seconds
    said = json.dumps([meeting.process_id, socket.gethostname()]).encode() + b"\n"
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(address, 5.0) as line,
        ):
            line.sendall(said)
            line.settimeout(seconds + _LONGEST)
            if heard := line.makefile().readline():
                return json.loads(heard)
        time.sleep(0.2)
    raise ConfigError(
        f"process {meeting.process_id} of {meeting.num_processes} found nobody at "
        f"{meeting.coordinator_address} within {seconds:.0f} s: see whether process 0 was started, "
        f"and whether this host reaches it"
    )
