"""Rendezvous: check that all processes of a run come, and name those that do not.

`t5x_lite doctor` does it before the processes connect: jax itself waits for them and then ends
without a name. Process 0 listens at the address of jax's later service. The others send it their
number and host, and it answers with all that came.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping

from t5x_lite.distributed.processes import DistributedConfig, split_address
from t5x_lite.errors import ConfigError

_LATENCY = 60.0  # seconds by which the answer may come later than process 0 stops waiting


def wait_for_all(config: DistributedConfig, *, seconds: float) -> None:
    """Wait until all processes have made this call.

    Args:
        config: How the processes find each other. It does nothing for a single process.
        seconds: The longest time to wait.

    Raises:
        ConfigError: In all processes, if some do not come; it names those that are missing.
    """
    config = config.from_cluster()
    if config.coordinator_address is None or (config.num_processes or 1) == 1:
        return
    host, port = split_address(config)
    if config.process_id == 0:
        hosts = _collect_hosts(port, config.num_processes or 1, seconds)
    else:
        hosts = _ask_first_process((host, port), config, seconds)
    numbers = range(config.num_processes or 1)
    missing = [number for number in numbers if str(number) not in hosts]
    if missing:
        present = ", ".join(
            f"{number} on {hosts[str(number)]}" for number in numbers if str(number) in hosts
        )
        raise ConfigError(
            f"{len(missing)} of {len(numbers)} processes did not come within {seconds:.0f} s: "
            f"{', '.join(map(str, missing))}; there were {present}; check whether the command was "
            f"started on the hosts that are missing, and whether they reach "
            f"{config.coordinator_address}"
        )


def _collect_hosts(port: int, expected: int, seconds: float) -> Mapping[str, str]:
    """Return the host of each process that came, by its number; runs in process 0."""
    hosts, connections, until = {"0": socket.gethostname()}, [], time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port), reuse_port=False))
        while len(hosts) < expected and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError, OSError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5.0)
                number, host = json.loads(connection.makefile().readline())
                hosts[str(number)] = host
                connections.append(connection)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(hosts).encode() + b"\n")
    return hosts


def _ask_first_process(
    address: tuple[str, int], config: DistributedConfig, seconds: float
) -> Mapping[str, str]:
    """Return what `_collect_hosts` does, from process 0."""
    until = time.monotonic() + seconds
    message = json.dumps([config.process_id, socket.gethostname()]).encode() + b"\n"
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(address, 5.0) as connection,
        ):
            connection.sendall(message)
            connection.settimeout(seconds + _LATENCY)
            if answer := connection.makefile().readline():
                return json.loads(answer)
        time.sleep(0.2)
    raise ConfigError(
        f"process {config.process_id} of {config.num_processes} found no process 0 at "
        f"{config.coordinator_address} within {seconds:.0f} s: check whether process 0 was "
        "started, and whether this host reaches it"
    )
