"""The processes of one run: how they connect, wait for each other, and exchange small values.

A TPU pod runs one process on each host; a simulated pod (`launch/local_pod.py`) runs several on one
machine. They communicate through the coordination service of `jax.distributed`, which process 0
serves. Values are JSON and small. With a single process all functions return at once.

All processes make the same calls in the same order. Calls of different `what` may be made from
different threads.

This is the only module that uses `jax._src`, whose coordination client and cluster detection have
no public names; orbax uses the same client.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from t5x_lite.errors import ConfigError, require

# Exit code of a process that did not finish and can be resumed: EX_TEMPFAIL of sysexits.h.
START_AGAIN = 75
FLAGS = ("coordinator_address", "num_processes", "process_id")
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_DEVICES = "JAX_NUM_CPU_DEVICES"  # of each process: jax's own variable
_WAIT = 600.0  # seconds to wait for the others, unless one of them works for long
# Seconds to wait for one that works, such as tokenizing: the heartbeat notices if it dies.
LONG = 30 * 24 * 3600.0
_SLOW = 5.0  # seconds of waiting after which it is logged
_PREFIX = "t5x_lite"  # of our keys and barriers in the coordination service

Value = TypeVar("Value")
_LOG = logging.getLogger(__name__)
_rounds: Counter[str] = Counter()
_hosts: list[str] = []  # by number of process
_barriers: Counter[str] = Counter()


class MissingProcessError(RuntimeError):
    """Some processes did not reach a barrier in time.

    Args:
        message: Which barrier, and the names of the processes.
        missing: The numbers of the processes.
    """

    def __init__(self, message: str, missing: Sequence[int]):
        super().__init__(message)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other; all None where the cluster provides it.

    A single process needs none of it. If it has an address, its devices communicate as those of
    several processes do, so that sums have the same order and the same bits.

    Args:
        coordinator_address: "HOST:PORT" of process 0.
        num_processes: The number of processes.
        process_id: The number of this process, from 0.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @classmethod
    def find(
        cls, flags: Mapping[str, str | None], environment: Mapping[str, str]
    ) -> "DistributedConfig":
        """Read flags, and environment variables for flags that are not given.

        Args:
            flags: Values of `FLAGS` by name; None is not given.
            environment: The environment variables, such as JAX_PROCESS_ID.

        Returns:
            The configuration.

        Raises:
            ConfigError: If only some of the values are given, or one is invalid.
        """
        given = {name: flags.get(name) or environment.get(_VARIABLES[name]) for name in FLAGS}
        config = cls(
            given["coordinator_address"],
            _number(given["num_processes"], "num_processes"),
            _number(given["process_id"], "process_id"),
        )
        alone = config.num_processes == 1 and config.coordinator_address is None
        if alone or not any(given.values()):
            return config
        if lacking := [name for name in FLAGS if not given[name]]:
            variables = ", ".join(_VARIABLES[name] for name in lacking)
            raise ConfigError(
                f"lacking --{' and --'.join(lacking)} (or {variables} in the environment); "
                f"expected all of --{', --'.join(FLAGS)}, or none where the cluster provides them"
            )
        require(
            0 <= (config.process_id or 0) < (config.num_processes or 0),
            f"process_id must be at least 0 and below num_processes; got {config.process_id} of "
            f"{config.num_processes}",
        )
        return config

    def from_cluster(self) -> "DistributedConfig":
        """Return this configuration, filled in by jax's detection if the cluster provides it."""
        if self.coordinator_address is not None or not in_cluster(os.environ):
            return self
        with contextlib.suppress(Exception):  # `jax.distributed.initialize` raises the same error
            detected = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, 60
            )
            return DistributedConfig(*detected[:3])
        return self


def initialize(
    config: DistributedConfig, *, heartbeat_seconds: int = 100, wait_seconds: int = 300
) -> None:
    """Connect to the other processes, once, before any device is used.

    A later call, and one for a single process, does nothing.

    Args:
        config: How to find them. TPU pods, Slurm and Open MPI provide it to jax.
        heartbeat_seconds: jax ends this process when it misses another one for this time.
        wait_seconds: The longest time to wait for the others.

    Raises:
        ConfigError: If process 0 cannot be reached in time.
    """
    given = config.coordinator_address is not None
    detected = config.num_processes != 1 and in_cluster(os.environ)
    if jax.distributed.is_initialized() or not (given or detected):
        return
    if config.process_id:
        _wait_for_the_first(config, wait_seconds)
    before = signal.getsignal(signal.SIGTERM)
    slow = threading.Timer(_SLOW, _log_waiting, [config, wait_seconds])
    slow.daemon = True
    slow.start()
    try:
        jax.distributed.initialize(
            **vars(config),
            cluster_detection_method="deactivate" if given else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=wait_seconds,
        )
    except ValueError as error:
        # A single TPU VM has no cluster to detect; elsewhere the error is a user's.
        if "should be defined" in str(error) or "must be defined" in str(error):
            return
        raise
    finally:
        slow.cancel()
    # jax's preemption service has taken over SIGTERM, for a notice that all processes get a step
    # later. Until a run has its own handler (`distributed.preemption`), SIGTERM ends the process.
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    _hosts[:] = gather(socket.gethostname(), "hosts")


def simulate_devices(total: int | None) -> None:
    """Simulate CPU devices, divided evenly among the processes.

    It does nothing if JAX_NUM_CPU_DEVICES is set: a launcher simulates devices itself.

    Args:
        total: The number of devices of all processes; None simulates none.

    Raises:
        ConfigError: If the number does not divide.
    """
    if total is None or _DEVICES in os.environ:
        return
    if total < 1 or total % count():
        raise ConfigError(
            f"{total} simulated devices do not divide among {count()} processes", "CPU_DEVICES"
        )
    if jax.config.jax_num_cpu_devices != total // count():  # pyright: ignore
        jax.config.update("jax_num_cpu_devices", total // count())


def index() -> int:
    """Return the number of this process, from 0; uses no device."""
    return distributed.global_state.process_id


def count() -> int:
    """Return the number of processes; uses no device."""
    return distributed.global_state.num_processes


def is_first() -> bool:
    """Return whether this is process 0, which writes files and log lines for all."""
    return index() == 0


def name(number: int) -> str:
    """Return a process's number and host, for messages: "process 3 on host-a"."""
    return f"process {number} on {_hosts[number]}" if _hosts else f"process {number}"


def barrier(what: str, *, seconds: float = _WAIT) -> None:
    """Wait until all processes have made this call.

    Args:
        what: The name of the barrier, for messages.
        seconds: The longest time to wait.

    Raises:
        MissingProcessError: If some process does not come in time; it names them.
    """
    if count() == 1:
        return
    key = f"barrier/{what}/{_barriers[what]}"
    _barriers[what] += 1
    overwrite(f"{key}/{index()}", 0)
    try:
        _client().wait_at_barrier(f"{_PREFIX}/{key}", round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        missing = sorted(set(range(count())) - set(posted(key)))
        if not missing:
            raise
        raise MissingProcessError(
            f"waited {seconds:.0f} s at {what!r} for {', '.join(map(name, missing))}", missing
        ) from error
    _delete(f"{key}/{index()}")


def gather(value: Any, what: str = "gather", *, seconds: float = _WAIT) -> list[Any]:
    """Exchange a value of each process.

    Args:
        value: The value of this process, JSON and small.
        what: The name of the exchange, for messages.
        seconds: The longest time to wait for the others.

    Returns:
        The values of all processes, in the order of their numbers, in every process.

    Raises:
        MissingProcessError: If some process does not come in time.
    """
    if count() == 1:
        return [value]
    values = _exchange({index(): value}, what, seconds)
    return [values[number] for number in range(count())]


def broadcast(value: Any, what: str = "broadcast", *, seconds: float = _WAIT) -> Any:
    """Return process 0's value in every process; `what` and `seconds` are as in `gather`."""
    if count() == 1:
        return value
    return _exchange({0: value} if is_first() else {}, what, seconds)[0]


def check_same(what: str, value: Any) -> None:
    """Check that a value is the same in all processes.

    Args:
        what: What the value is, for the error.
        value: The value of this process, JSON and small.

    Raises:
        ConfigError: In all processes, if two differ. Of dicts, and of lists of the same length, it
            shows only the difference.
    """
    first, local = json.loads(json.dumps(broadcast(value))), json.loads(json.dumps(value))
    difference = None if first == local else _difference(first, local)
    for number, pair in enumerate(gather(difference)):
        if pair is not None:
            raise ConfigError(
                f"the processes differ in {what}: {name(0)} has {pair[0]!r}, {name(number)} has "
                f"{pair[1]!r}"
            )


def first_then_others(make: Callable[[], Value]) -> Value:
    """Call a function in process 0 while the others wait, then in the others.

    It is for what is made once and then read: on a file system that all processes share, only
    process 0 does the work.

    Args:
        make: The function.

    Returns:
        What the function returns in this process.

    Raises:
        ConfigError: In all processes, if process 0 raises it.
    """
    if count() == 1:
        return make()
    error: ConfigError | None = None
    result: Value | None = None
    if is_first():
        try:
            result = make()
        except ConfigError as raised:
            error = raised
    failure = broadcast(error and [error.message, *error.names], "first process", seconds=LONG)
    if failure is not None:
        raise error or ConfigError(*failure)
    return result if is_first() else make()  # pyright: ignore


def post(key: str, value: Any) -> None:
    """Store a value for all processes, unless the key has one: the first value stays."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the key has a value
        _client().key_value_set(f"{_PREFIX}/{key}", json.dumps(value))


def wait_for(key: str, *, seconds: float) -> Any:
    """Return the value of a key, waiting for it up to this time; None if it has none by then."""
    try:
        milliseconds = round(seconds * 1000)
        return json.loads(_client().blocking_key_value_get(f"{_PREFIX}/{key}", milliseconds))
    except jax.errors.JaxRuntimeError:
        return None


def overwrite(key: str, value: Any) -> None:
    """Store a value for all processes, replacing an earlier one."""
    _set(key, json.dumps(value))


def posted(folder: str) -> dict[int, Any]:
    """Return the values of folder/0, folder/1 and so on; without a connection, jax's error."""
    return {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in _all(folder)}


def is_preempted(step: int) -> bool:
    """Return whether jax's preemption service stops all processes after this step.

    The service receives the notices of cloud platforms. SIGTERM is handled by
    `distributed.preemption` instead.

    Args:
        step: The number of finished steps; the function has to be called after every step.
    """
    if distributed.global_state.preemption_sync_manager is None:
        return False
    return multihost_utils.reached_preemption_sync_point(step)


def _exchange(values: Mapping[int, Any], what: str, seconds: float) -> dict[int, Any]:
    number = _rounds[what]
    _rounds[what] += 1
    for key, value in values.items():
        overwrite(f"exchange/{what}/{number}/{key}", value)
    barrier(what, seconds=seconds)
    gathered = posted(f"exchange/{what}/{number}")
    # All processes have left the round before this one, so none reads its values any more.
    _delete(f"exchange/{what}/{number - 1}/{index()}")
    return gathered


def _difference(one: Any, other: Any) -> tuple[Any, Any]:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    if isinstance(one, dict) and isinstance(other, dict):
        names = [n for n in {**one, **other} if one.get(n) != other.get(n)]
        return {n: one.get(n) for n in names}, {n: other.get(n) for n in names}
    return one, other


def _wait_for_the_first(config: DistributedConfig, seconds: float) -> None:
    """Wait until process 0 listens at its address; jax would end this process if it never does."""
    host, port = split_address(config)
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"process {config.process_id} of {config.num_processes} found no process 0 at "
                    f"{config.coordinator_address} within {seconds} s: {error}"
                ) from error
        time.sleep(0.2)


def split_address(config: DistributedConfig) -> tuple[str, int]:
    """Return host and port of the coordinator's address; ConfigError if it is not HOST:PORT."""
    host, _, port = (config.coordinator_address or "").rpartition(":")
    require(
        host and port.isdecimal(),
        f"--coordinator_address takes HOST:PORT; got {config.coordinator_address!r}",
    )
    return host.strip("[]"), int(port)


def _log_waiting(config: DistributedConfig, seconds: float) -> None:
    process = "a process" if config.process_id is None else f"process {config.process_id}"
    address = config.coordinator_address or "the address that the cluster provides"
    _LOG.info(f"{process} is waiting up to {seconds} s for the others at {address} ...")


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether jax detects the other processes itself, and there are or may be others.

    Args:
        environment: The environment variables, in which Slurm and Open MPI describe the processes.
    """
    ranks = ("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    several = any(rank in environment and environment.get(size, "1") != "1" for rank, size in ranks)
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    return several or (cloud_tpu_init.running_in_cloud_tpu_vm and not on_cpu)


def _number(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"--{flag} ({_VARIABLES[flag]}) takes a number; got {text!r}")
    return int(text)


def _client() -> Any:
    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(f"{_PREFIX}/{key}", value, allow_overwrite=True)


def _all(folder: str) -> list[tuple[str, str]]:
    return _client().key_value_dir_get(f"{_PREFIX}/{folder}/")


def _delete(key: str) -> None:
    _client().key_value_delete(f"{_PREFIX}/{key}")
