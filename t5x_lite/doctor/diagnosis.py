"""From what all hosts say of themselves to what is wrong, and what to do about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.planning.plan_report import gigabytes

_CLOCKS = 5.0  # seconds apart: beyond, storage and logs of different hosts no longer agree
_SLOW = 10.0  # seconds for a few kilobytes


class Diagnosis(NamedTuple):
    """One thing that was looked at: what was seen, and, if that is wrong, the cure."""

    what: str
    seen: str
    cure: str = ""

    @property
    def wrong(self) -> bool:
        """Whether a run must not start like this."""
        return bool(self.cure)


class Wanted(NamedTuple):
    """What a run needs: devices over all hosts (None: any number), bytes of room and of memory."""

    devices: int | None
    room: Mapping[str, int]
    memory: int


def diagnose(
    hosts: Sequence[Mapping[str, Any]], names: Sequence[str], wanted: Wanted
) -> list[Diagnosis]:
    """Findings about hosts, in a fixed order, from what each says (`host_facts.facts` and more)."""
    return [
        _processes(hosts, names),
        _same(hosts, names, "git revision", lambda host: host["revision"], _SHIP),
        _same(hosts, names, "package versions", lambda host: host["versions"], _INSTALL),
        _same(hosts, names, "configuration", lambda host: host["config"], _FLAGS),
        _same(hosts, names, "kind of device", lambda host: host["device_kind"], _KIND),
        _devices(hosts, names, wanted.devices),
        _clocks(hosts, names),
        _each(
            hosts,
            names,
            "model directory",
            "storage",
            "writable, and one for all hosts",
            "MODEL_DIR must be writable and lie on storage that all hosts share: a mounted bucket, "
            "NFS, Lustre",
        ),
        _data(hosts, names),
        *[
            _room(hosts, names, directory, size, f"disk at {directory}", ("room", directory))
            for directory, size in wanted.room.items()
        ],
        _room(hosts, names, "memory", wanted.memory, "memory of a host", ("memory",)),
    ]


_SHIP = "install the same revision everywhere; launch/tpu_vm.py ships one to all workers"
_INSTALL = "install again on the hosts that differ, or use one image for all"
_FLAGS = "give every process the same gin files and flags"
_KIND = "a run wants one kind of device: leave the other hosts out"


def _processes(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    return Diagnosis("processes", f"{len(hosts)} met" if len(hosts) > 1 else "one")


def _same(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    look: Callable[[Mapping[str, Any]], Any],
    cure: str,
) -> Diagnosis:
    """What must be equal: the odd hosts are held against what most say."""
    said = [look(host) for host in hosts]
    usual = max(said, key=said.count)
    odd = [number for number, each in enumerate(said) if each != usual]
    if not odd:
        seen = usual if isinstance(usual, str) else "the same everywhere"
        return Diagnosis(what, seen)
    number = odd[0]
    if isinstance(usual, Mapping):
        other = said[number]
        keys = [key for key in usual if usual[key] != other.get(key)]
        differing = ", ".join(f"{key} {other.get(key)} instead of {usual[key]}" for key in keys)
    else:
        differing = f"{said[number]} instead of {usual}"
    more = f", and {len(odd) - 1} more hosts" if len(odd) > 1 else ""
    return Diagnosis(what, f"{names[number]} has {differing}{more}", cure)


def _devices(
    hosts: Sequence[Mapping[str, Any]], names: Sequence[str], expected: int | None
) -> Diagnosis:
    counts = [host["devices"] for host in hosts]
    total, most = sum(counts), max(counts)
    if total == expected or (expected is None and min(counts) == most):
        return Diagnosis(
            "devices", f"{total}, {most} on each host" if len(hosts) > 1 else f"{total}"
        )
    short = [
        f"{name} sees {count}"
        for name, count in zip(names, counts, strict=True)
        if count < most or len(hosts) == 1
    ]
    seen = f"{total}{f' instead of {expected}' if expected else ''}: " + (
        f"{', '.join(short)}, others {most}" if short else f"{len(hosts)} hosts of {most} each"
    )
    cure = (
        "another program may hold them (`ps`, or restart the host); a host that stays short is "
        "faulty: have it replaced. Fewer hosts than expected: start the command on all of them"
    )
    return Diagnosis("devices", seen, cure)


def _clocks(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    times = [host["clock"] for host in hosts]
    apart = max(times) - min(times)
    if apart <= _CLOCKS:
        return Diagnosis("clocks", f"{apart:.1f} s apart" if len(hosts) > 1 else "one")
    middle = sorted(times)[len(times) // 2]
    odd = max(range(len(times)), key=lambda number: abs(times[number] - middle))
    return Diagnosis(
        "clocks",
        f"{names[odd]} is {times[odd] - middle:+.0f} s off",
        "set it: `sudo timedatectl set-ntp true`, or restart the host's time service",
    )


def _each(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    key: str,
    fine: str,
    cure: str,
) -> Diagnosis:
    """Something every host tells trouble of, in words."""
    bad = [f"{name} {host[key]}" for name, host in zip(names, hosts, strict=True) if host[key]]
    return Diagnosis(what, _first_of(bad) or fine, cure if bad else "")


def _data(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    bad = [
        f"{name}: {trouble}"
        for name, host in zip(names, hosts, strict=True)
        for trouble in host["data"]
    ]
    if bad:
        cure = "check DATA_DIR, VOCABULARY and the paths of the tasks, and who may read them"
        return Diagnosis("data and vocabulary", _first_of(bad), cure)
    if all(host["stores"] for host in hosts):
        return Diagnosis("data and vocabulary", "tokenized and readable")
    return Diagnosis(
        "data and vocabulary",
        "readable, not tokenized yet: the first start does it, or `t5x_lite cache` before it",
    )


def _room(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    needed: int,
    title: str,
    path: Sequence[str],
) -> Diagnosis:
    found = []
    for host in hosts:
        value: Any = host
        for key in path:
            value = value[key]
        found.append(value)
    known = [value for value in found if value is not None]
    if not known:
        return Diagnosis(title, "unknown")
    least = min(known)
    seen = f"{gigabytes(least)} free; a run wants about {gigabytes(needed)}"
    if least >= needed:
        return Diagnosis(title, seen)
    cure = (
        "stop other programs on the host, or take hosts with more memory"
        if what == "memory"
        else "make room, keep fewer checkpoints (CheckpointPolicy.keep), or set another directory"
    )
    return Diagnosis(title, f"{names[found.index(least)]}: {seen}", cure)


def collective(total: float, seconds: float) -> Diagnosis:
    """The verdict on a small sum over all devices: its result over the right one, its time."""
    seen = f"right, in {1e3 * seconds:.1f} ms"
    if total != 1.0:
        cure = "a device computes wrongly: leave its host out (devices one at a time will tell)"
        return Diagnosis("a sum over all devices", f"{total:.6f} of what it must be", cure)
    if seconds > _SLOW:
        cure = "the network between hosts is slow: on GPUs see NCCL_DEBUG=INFO and the interface"
        return Diagnosis("a sum over all devices", seen, cure)
    return Diagnosis("a sum over all devices", seen)


def _first_of(troubles: Sequence[str]) -> str:
    more = f", and {len(troubles) - 1} more" if len(troubles) > 1 else ""
    return f"{troubles[0]}{more}" if troubles else ""
