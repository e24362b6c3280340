"""Diagnose the facts of all hosts: what is wrong, and the remedy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.planning.plan_report import gigabytes

_MAX_CLOCK_DIFFERENCE = 5.0  # seconds; beyond it, times of files and logs cannot be compared
_SLOW = 10.0  # seconds for a sum of a few kilobytes


class Diagnosis(NamedTuple):
    """The result of one check.

    Attributes:
        what: What was checked.
        seen: What was found.
        cure: The remedy; "" if nothing is wrong.
    """

    what: str
    seen: str
    cure: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the run must not start."""
        return bool(self.cure)


class Requirements(NamedTuple):
    """What a run needs.

    Attributes:
        devices: Number of devices over all hosts; None is any number.
        disk: Bytes of free disk space by the gin name of the directory.
        memory: Bytes of free memory of a host.
    """

    devices: int | None
    disk: Mapping[str, int]
    memory: int


def diagnose(
    hosts: Sequence[Mapping[str, Any]], names: Sequence[str], requirements: Requirements
) -> list[Diagnosis]:
    """Check the facts of all hosts.

    Args:
        hosts: Facts of each host (`host_facts.facts`, with "storage" and "clock").
        names: Name of each host.
        requirements: What the run needs.

    Returns:
        The results of all checks, in a fixed order.
    """
    return [
        _processes(hosts, names),
        _same(hosts, names, "git revision", lambda host: host["revision"], _SHIP),
        _same(hosts, names, "package versions", lambda host: host["versions"], _INSTALL),
        _same(hosts, names, "configuration", lambda host: host["config"], _FLAGS),
        _same(hosts, names, "kind of device", lambda host: host["device_kind"], _KIND),
        _devices(hosts, names, requirements.devices),
        _clocks(hosts, names),
        _problems(
            hosts,
            names,
            "model directory",
            "storage",
            "writable, and shared by all hosts",
            "MODEL_DIR must be writable and on storage that all hosts share: a mounted bucket, "
            "NFS, Lustre",
        ),
        _data(hosts, names),
        *[
            _free_space(hosts, names, directory, size, f"disk at {directory}", ("disk", directory))
            for directory, size in requirements.disk.items()
        ],
        _free_space(hosts, names, "memory", requirements.memory, "memory of a host", ("memory",)),
    ]


_SHIP = "install the same revision on all hosts; launch/tpu_vm.py copies one to all workers"
_INSTALL = "install the same versions on all hosts, or use one image for all"
_FLAGS = "give every process the same gin files and flags"
_KIND = "a run needs one kind of device: exclude the other hosts"


def _processes(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    return Diagnosis("processes", f"{len(hosts)} connected" if len(hosts) > 1 else "one")


def _same(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    value_of: Callable[[Mapping[str, Any]], Any],
    cure: str,
) -> Diagnosis:
    """Check that a value is equal on all hosts; report those that differ from the majority."""
    values = [value_of(host) for host in hosts]
    usual = max(values, key=values.count)
    odd = [number for number, value in enumerate(values) if value != usual]
    if not odd:
        seen = usual if isinstance(usual, str) else "the same on all hosts"
        return Diagnosis(what, seen)
    number = odd[0]
    if isinstance(usual, Mapping):
        other = values[number]
        keys = [key for key in usual if usual[key] != other.get(key)]
        differing = ", ".join(f"{key} {other.get(key)} instead of {usual[key]}" for key in keys)
    else:
        differing = f"{values[number]} instead of {usual}"
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
        "another program may use them (`ps`, or restart the host); a host that still lacks devices "
        "is faulty: replace it. For fewer hosts than expected, start the command on all of them"
    )
    return Diagnosis("devices", seen, cure)


def _clocks(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    times = [host["clock"] for host in hosts]
    difference = max(times) - min(times)
    if difference <= _MAX_CLOCK_DIFFERENCE:
        return Diagnosis("clocks", f"{difference:.1f} s apart" if len(hosts) > 1 else "one")
    middle = sorted(times)[len(times) // 2]
    odd = max(range(len(times)), key=lambda number: abs(times[number] - middle))
    return Diagnosis(
        "clocks",
        f"{names[odd]} is {times[odd] - middle:+.0f} s off",
        "set it: `sudo timedatectl set-ntp true`, or restart the host's time service",
    )


def _problems(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    key: str,
    fine: str,
    cure: str,
) -> Diagnosis:
    """Report the problems that hosts have stated as text under a key."""
    bad = [f"{name} {host[key]}" for name, host in zip(names, hosts, strict=True) if host[key]]
    return Diagnosis(what, _first_problem(bad) or fine, cure if bad else "")


def _data(hosts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Diagnosis:
    bad = [
        f"{name}: {problem}"
        for name, host in zip(names, hosts, strict=True)
        for problem in host["data"]
    ]
    if bad:
        cure = "check DATA_DIR, VOCABULARY, the paths of the tasks, and their permissions"
        return Diagnosis("data and vocabulary", _first_problem(bad), cure)
    if all(host["stores"] for host in hosts):
        return Diagnosis("data and vocabulary", "tokenized and readable")
    return Diagnosis(
        "data and vocabulary",
        "readable, not tokenized yet; `train` tokenizes when it starts, or run `t5x_lite cache`",
    )


def _free_space(
    hosts: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    what: str,
    needed: int,
    title: str,
    path: Sequence[str],
) -> Diagnosis:
    """Check that every host has enough free memory or disk space."""
    values = []
    for host in hosts:
        value: Any = host
        for key in path:
            value = value[key]
        values.append(value)
    known = [value for value in values if value is not None]
    if not known:
        return Diagnosis(title, "unknown")
    least = min(known)
    seen = f"{gigabytes(least)} free; the run needs about {gigabytes(needed)}"
    if least >= needed:
        return Diagnosis(title, seen)
    cure = (
        "stop other programs on the host, or use hosts with more memory"
        if what == "memory"
        else "free disk space, keep fewer checkpoints (CheckpointPolicy.keep), or set another path"
    )
    return Diagnosis(title, f"{names[values.index(least)]}: {seen}", cure)


def collective(total: float, seconds: float) -> Diagnosis:
    """Check a small sum over all devices.

    Args:
        total: Its result divided by the correct one.
        seconds: Its duration.
    """
    seen = f"correct, in {1e3 * seconds:.1f} ms"
    if total != 1.0:
        cure = "a device computes wrong results: test devices one at a time, and exclude its host"
        return Diagnosis("a sum over all devices", f"{total:.6f} of the correct result", cure)
    if seconds > _SLOW:
        cure = "the network between hosts is slow: on GPUs see NCCL_DEBUG=INFO and the interface"
        return Diagnosis("a sum over all devices", seen, cure)
    return Diagnosis("a sum over all devices", seen)


def _first_problem(problems: Sequence[str]) -> str:
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""
