"""The processes of one run: how they find each other, wait for each other and agree.

A TPU pod runs one process a host; a simulated pod (`launch/local_pod.py`) some on one machine. They
meet in the coordination service of `jax.distributed`, which the first of them serves. What is said
through it is JSON and small. With one process all functions do what there is to do and take no
time. Every process makes the same calls in the same order; calls for different things (`what`) may
be made from different threads.
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
from jax._src import distributed  # its client has no public name; orbax takes it from here too
from jax.experimental import multihost_utils

from t5x_lite.errors import ConfigError

# Exit code of a process that did not finish but can go on: EX_TEMPFAIL of sysexits.h.
START_AGAIN = 75
FLAGS = ("coordinator_address", "num_processes", "process_id")
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_DEVICES = "JAX_NUM_CPU_DEVICES"  # of each process: jax's own variable
_WAIT = 600.0  # seconds a process waits for the others, where nothing long is going on
LONG = 30 * 24 * 3600.0  # where one works and the others wait: a dead one is noticed elsewhere
_SLOW = 5.0  # seconds of waiting that are logged
_HERE = "t5x_lite"  # the folder of our keys and barriers

Value = TypeVar("Value")
_LOG = logging.getLogger(__name__)
_rounds: Counter[str] = Counter()
_hosts: list[str] = []
_barriers: Counter[str] = Counter()


class MissingProcessError(RuntimeError):
    """Some processes did not come where the others waited; `missing` are their numbers."""

    def __init__(self, message: str, missing: Sequence[int]):
        super().__init__(message)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class DistributedConfig:
    """Where the processes meet and who this one is; all None where the cluster tells.

    One process alone needs no meeting; if it has one, its devices talk as those of several would,
    which adds in the same order.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @classmethod
    def find(
        cls, flags: Mapping[str, str | None], environment: Mapping[str, str]
    ) -> "DistributedConfig":
        """Read flags, then environment variables; ConfigError if they say half of it."""
        said = {name: flags.get(name) or environment.get(_VARIABLES[name]) for name in FLAGS}
        meeting = cls(
            said["coordinator_address"],
            _number(said["num_processes"], "num_processes"),
            _number(said["process_id"], "process_id"),
        )
        alone = meeting.num_processes == 1 and meeting.coordinator_address is None
        if alone or not any(said.values()):
            return meeting
        if lacking := [name for name in FLAGS if not said[name]]:
            variables = ", ".join(_VARIABLES[name] for name in lacking)
            raise ConfigError(
                f"lacking --{' and --'.join(lacking)} (or {variables} in the environment); wanted "
                f"all of --{', --'.join(FLAGS)}, or none where the cluster tells"
            )
        if not 0 <= (meeting.process_id or 0) < (meeting.num_processes or 0):
            raise ConfigError(
                f"process_id must be at least 0 and below num_processes; got {meeting.process_id} "
                f"of {meeting.num_processes}"
            )
        return meeting


def initialize(
    meeting: DistributedConfig, *, heartbeat_seconds: int = 100, wait_seconds: int = 300
) -> None:
    """Join the other processes, once, before any device is touched.

    A TPU pod, Slurm and Open MPI tell jax who is there; elsewhere `meeting` must, or this process
    is alone. wait_seconds: for the others. heartbeat_seconds: jax ends this process when another
    has not been heard of for so long.
    """
    known = meeting.coordinator_address is not None
    told = meeting.num_processes != 1 and cluster_tells(os.environ)
    if jax.distributed.is_initialized() or not (known or told):
        return
    if meeting.process_id:
        _wait_for_the_first(meeting, wait_seconds)
    before = signal.getsignal(signal.SIGTERM)
    slow = threading.Timer(_SLOW, _log_who_waits, [meeting, wait_seconds])
    slow.daemon = True
    slow.start()
    try:
        jax.distributed.initialize(
            **vars(meeting),
            cluster_detection_method="deactivate" if known else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=wait_seconds,
        )
    except ValueError as error:
        # A TPU VM of its own has no cluster to tell; anywhere else somebody meant to have one.
        if "should be defined" in str(error) or "must be defined" in str(error):
            return
        raise
    finally:
        slow.cancel()
    # jax's service keeps SIGTERM for a notice that comes a step later; until a run says otherwise
    # (`distributed.preemption`), it ends the process as everywhere.
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    _hosts[:] = gather(socket.gethostname(), "hosts")


def simulate_devices(total: int | None) -> None:
    """Simulate so many CPU devices over all processes; a launcher that did so itself wins."""
    if total is None or _DEVICES in os.environ:
        return
    if total < 1 or total % count():
        raise ConfigError(
            f"{total} simulated devices do not divide among {count()} processes", "CPU_DEVICES"
        )
    if jax.config.jax_num_cpu_devices != total // count():  # pyright: ignore
        jax.config.update("jax_num_cpu_devices", total // count())


def index() -> int:
    """The number of this process, from 0; touches no device."""
    return distributed.global_state.process_id


def count() -> int:
    """How many processes there are; touches no device."""
    return distributed.global_state.num_processes


def is_first() -> bool:
    """Whether this process writes the files and speaks for all."""
    return index() == 0


def name(number: int) -> str:
    """A process as people look for it: its number and its host."""
    return f"process {number} on {_hosts[number]}" if _hosts else f"process {number}"


def barrier(what: str, *, seconds: float = _WAIT) -> None:
    """Return once all processes are here; MissingProcessError, naming those missing, if not."""
    if count() == 1:
        return
    place = f"barrier/{what}/{_barriers[what]}"
    _barriers[what] += 1
    overwrite(f"{place}/{index()}", 0)
    try:
        _client().wait_at_barrier(f"{_HERE}/{place}", round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        missing = sorted(set(range(count())) - set(posted(place)))
        if not missing:
            raise
        raise MissingProcessError(
            f"waited {seconds:.0f} s at {what!r} for {', '.join(map(name, missing))}", missing
        ) from error
    _delete(f"{place}/{index()}")


def gather(value: Any, what: str = "gather", *, seconds: float = _WAIT) -> list[Any]:
    """The values of all processes, in the order of their numbers, on all of them."""
    if count() == 1:
        return [value]
    found = _exchange({index(): value}, what, seconds)
    return [found[number] for number in range(count())]


def broadcast(value: Any, what: str = "broadcast", *, seconds: float = _WAIT) -> Any:
    """The first process's value, on all of them."""
    if count() == 1:
        return value
    return _exchange({0: value} if is_first() else {}, what, seconds)[0]


def check_same(what: str, value: Any) -> None:
    """Raise ConfigError, on all processes, if `value` is not the same on all of them.

    Of dicts and of lists that are equally long only what differs is named.
    """
    first, mine = json.loads(json.dumps(broadcast(value))), json.loads(json.dumps(value))
    different = None if first == mine else _difference(first, mine)
    for number, found in enumerate(gather(different)):
        if found is not None:
            raise ConfigError(
                f"the processes differ in {what}: {name(0)} has {found[0]!r}, {name(number)} has "
                f"{found[1]!r}"
            )


def first_then_others(make: Callable[[], Value]) -> Value:
    """Call `make` in the first process while the others wait, then in all others.

    For what is made once and then found: on a file system that all share only the first one works.
    A ConfigError of the first one is raised by all.
    """
    if count() == 1:
        return make()
    error: ConfigError | None = None
    made: Value | None = None
    if is_first():
        try:
            made = make()
        except ConfigError as raised:
            error = raised
    said = broadcast(error and [error.message, *error.names], "the first alone", seconds=LONG)
    if said is not None:
        raise error or ConfigError(*said)
    return made if is_first() else make()  # pyright: ignore


def post(key: str, value: Any) -> None:
    """Leave a value for all processes; the first that is left under a key stays."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one
        _client().key_value_set(f"{_HERE}/{key}", json.dumps(value))


def hear(key: str, *, seconds: float) -> Any:
    """What somebody posted under a key, waiting so long for it, or None."""
    try:
        return json.loads(_client().blocking_key_value_get(f"{_HERE}/{key}", round(seconds * 1000)))
    except jax.errors.JaxRuntimeError:
        return None


def overwrite(key: str, value: Any) -> None:
    """Leave a value for all processes in place of what is there."""
    _set(key, json.dumps(value))


def posted(folder: str) -> dict[int, Any]:
    """What was left under folder/0, folder/1 ... by now; raises what jax does without an answer."""
    return {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in _all(folder)}


def is_preempted(step: int) -> bool:
    """Whether jax's preemption service stops all processes after `step` steps.

    To be asked after every step. It listens to platforms' notices; SIGTERM is kept from it.
    """
    if distributed.global_state.preemption_sync_manager is None:
        return False
    return multihost_utils.reached_preemption_sync_point(step)


def _exchange(mine: Mapping[int, Any], what: str, seconds: float) -> dict[int, Any]:
    number = _rounds[what]
    _rounds[what] += 1
    for key, value in mine.items():
        overwrite(f"said/{what}/{number}/{key}", value)
    barrier(what, seconds=seconds)
    found = posted(f"said/{what}/{number}")
    # All are past the round before this one, so nobody reads it any more.
    _delete(f"said/{what}/{number - 1}/{index()}")
    return found


def _difference(one: Any, other: Any) -> tuple[Any, Any]:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    if isinstance(one, dict) and isinstance(other, dict):
        names = [n for n in {**one, **other} if one.get(n) != other.get(n)]
        return {n: one.get(n) for n in names}, {n: other.get(n) for n in names}
    return one, other


def _wait_for_the_first(meeting: DistributedConfig, seconds: float) -> None:
    """Return once somebody answers at the address: jax itself would end the process if nobody does.

    Raises ConfigError when the time is over.
    """
    host, _, port = (meeting.coordinator_address or "").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"--coordinator_address takes HOST:PORT; got {meeting.coordinator_address!r}"
        )
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"process {meeting.process_id} of {meeting.num_processes} found nobody at "
                    f"{meeting.coordinator_address} within {seconds} s: {error}"
                ) from error
        time.sleep(0.2)


def _log_who_waits(meeting: DistributedConfig, seconds: float) -> None:
    who = "a process" if meeting.process_id is None else f"process {meeting.process_id}"
    where = meeting.coordinator_address or "the address that the cluster tells"
    _LOG.info(f"{who} is waiting up to {seconds} s for the others at {where} ...")


def cluster_tells(environment: Mapping[str, str]) -> bool:
    """Whether jax finds the other processes by itself, and there are or may be others."""
    from jax._src import cloud_tpu_init

    ranks = ("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    told = any(me in environment and environment.get(n, "1") != "1" for me, n in ranks)
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    return told or (cloud_tpu_init.running_in_cloud_tpu_vm and not on_cpu)


def _number(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"--{flag} ({_VARIABLES[flag]}) takes a number; got {text!r}")
    return int(text)


def _client() -> Any:
    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(f"{_HERE}/{key}", value, allow_overwrite=True)


def _all(folder: str) -> list[tuple[str, str]]:
    return _client().key_value_dir_get(f"{_HERE}/{folder}/")


def _delete(key: str) -> None:
    _client().key_value_delete(f"{_HERE}/{key}")
