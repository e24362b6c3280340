"""Collectives of a compiled step: kind, mesh axis, bytes, and how much of them compute hides.

The compiler estimates no time for them. Here it is bytes over bandwidth of the links a group of
chips can use, after "How to Scale Your Model" (Austin et al. 2025, chapter 3): a ring sends
(n - 1) / n of the gathered array over both directions of every torus dimension that the group
spans, over half of that where the dimension does not close to a ring.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from t5x_lite.hardware.topologies import Topology
from t5x_lite.planning.hlo import (
    COLLECTIVES,
    Computation,
    Instruction,
    Module,
    collective_inside,
    collective_kind,
    is_between_slices,
    runs,
)

# How often the whole array crosses a ring, in units of (n - 1) / n of its bytes.
_PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}


class MeshPosition(NamedTuple):
    """Where a device stands: slice, and coordinates of its chip."""

    slice: int
    coords: tuple[int, ...]


class Layout(NamedTuple):
    """The mesh over a topology: names and sizes of its axes, and each device's place in order."""

    topology: Topology
    axes: Mapping[str, int]
    places: Sequence[MeshPosition]


class Collective(NamedTuple):
    """A collective of one computation. bytes: of the whole array on a device, gathered.

    axis: mesh axes its groups span, joined by "+". seconds, exposed: once. repeats: a step.
    """

    kind: str
    axis: str
    bytes: float
    seconds: float
    exposed: float
    repeats: int
    asynchronous: bool
    op_name: str


class _Flight(NamedTuple):
    collective: Collective
    ends: float


def exposed_seconds(
    module: Module, layout: Layout, *, clock: float, begin: str | None = None
) -> tuple[list[Collective], float]:
    """Every collective, and the seconds a device of this clock waits for them in a step.

    begin: the computation to count, once; None for the whole program.

    A collective starts where it is issued or where the one before has left the links, and hides
    behind the estimated compute until its result is asked for. One that is not split into start and
    done hides behind nothing.
    """
    found: list[Collective] = []

    def visit(computation: Computation, repeats: int) -> float:
        now, free, waited = 0.0, 0.0, 0.0
        flying: dict[str, _Flight] = {}
        for instruction in computation.instructions:
            for inside, times in runs(module, instruction):
                waited += times * visit(inside, repeats * times)
            inner = collective_inside(module, instruction)
            now += instruction.cycles / clock
            if inner is None:
                continue
            key = _identity(instruction, inner)
            if _is_end(instruction):
                flight = flying.pop(key, None)
                if flight is not None:
                    late = max(0.0, flight.ends - now)
                    found.append(flight.collective._replace(exposed=late))
                    now, waited = now + late, waited + late
                continue
            collective = _describe(instruction, inner, layout, repeats)
            free = max(now, free) + collective.seconds
            if _is_start(instruction):
                flying[key] = _Flight(collective._replace(asynchronous=True), free)
            else:
                late = free - now
                found.append(collective._replace(exposed=late))
                now, waited = now + late, waited + late
        found.extend(flight.collective for flight in flying.values())
        return waited

    return found, visit(module[begin or module.entry], 1)


def _is_start(instruction: Instruction) -> bool:
    split = instruction.opcode.endswith("-start") or is_between_slices(instruction)
    return split or instruction.name.startswith("async-collective-start")


def _is_end(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done") or instruction.name.startswith(
        "async-collective-done"
    )


def _identity(instruction: Instruction, inner: Instruction) -> str:
    """What a start and its done have in common: the channel, or the start's name."""
    if instruction.opcode.endswith("-done"):
        return instruction.operands[0]
    if instruction.opcode.endswith("-start") or is_between_slices(instruction):
        return instruction.name
    channel = re.search(r"channel_id=(\d+)", inner.attributes)
    return channel[1] if channel else instruction.name


def _describe(
    instruction: Instruction, inner: Instruction, layout: Layout, repeats: int
) -> Collective:
    kind = collective_kind(inner.opcode) or ""
    shapes = inner.shapes
    if inner.opcode == "collective-permute-start":
        shapes = shapes[1:2]  # operand, result, and what the wires need
    elif inner.opcode == "all-gather-start":
        shapes = shapes[len(shapes) // 2 :]  # operands, results
    group = group_of(inner.attributes, len(layout.places))
    if is_between_slices(inner):
        kind, shapes = _kind_between_slices(inner), shapes[:1]
        # Slices follow one another along the first axis of the mesh.
        slices = layout.topology.slices
        group = [i * (len(layout.places) // slices) for i in range(slices)]
    size = float(sum(shape.bytes for shape in shapes if shape.dims or len(shapes) == 1))
    if "all-reduce-scatter" in (instruction.called("calls") or ""):
        kind = "reduce-scatter"  # computed as an all-reduce of which each keeps a slice
    elif kind == "reduce-scatter":
        size *= len(group)
    return Collective(
        kind=kind,
        axis=axes_of(group, layout),
        bytes=size,
        seconds=transfer_seconds(kind, size, group, layout),
        exposed=0.0,
        repeats=repeats,
        asynchronous=False,
        op_name=instruction.op_name or inner.op_name,
    )


def _kind_between_slices(instruction: Instruction) -> str:
    found = re.search(r'transfer_type="(\w+)"', instruction.attributes)
    kind = found[1].lower().replace("_", "-") if found else ""
    return kind if kind in COLLECTIVES else "all-to-all"


def group_of(attributes: str, devices: int) -> list[int]:
    """The devices of a collective's first group, in any of the forms XLA writes them."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])]
        chosen = re.findall(r"'([^']+)'", found[2])
        group, stride = [0], 1
        for name, size in reversed(axes):
            if name in chosen:
                group = [d + i * stride for i in range(size) for d in group]
            stride *= size
        return sorted(group)
    if found := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        import numpy as np

        shape, dims = ([int(n) for n in found[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[3]:
            ids = ids.transpose([int(n) for n in found[3].split(",")])
        return sorted(ids.reshape(shape)[0].tolist())
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return sorted(int(n) for n in found[1].split(","))
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return sorted({int(found[1]), int(found[2])})
    return list(range(devices))


def axes_of(group: Sequence[int], layout: Layout) -> str:
    """The mesh axes along which the devices of a group differ, such as "data+fsdp"."""
    strides, stride = {}, 1
    for name, size in reversed(list(layout.axes.items())):
        strides[name] = (stride, size)
        stride *= size
    return "+".join(
        name
        for name in layout.axes
        if len({device // strides[name][0] % strides[name][1] for device in group}) > 1
    )


def transfer_seconds(kind: str, size: float, group: Sequence[int], layout: Layout) -> float:
    """How long a group of devices takes to move `size` bytes a device, its links all its own."""
    count, chip = len(group), layout.topology.chip
    if count < 2:
        return 0.0
    places = [layout.places[device] for device in group]
    if kind == "collective-permute":
        crossed = size
    elif kind == "all-to-all":
        crossed = size / 4  # bidirectional ring: a quarter of what an all-gather sends
    else:
        crossed = _PASSES[kind] * size * (count - 1) / count
    seconds = 0.0
    if len({place.slice for place in places}) > 1 and chip.dcn:
        # Each chip of a slice carries its share of what the slices exchange.
        inside = max(1, count // len({place.slice for place in places}))
        seconds += crossed / inside / chip.dcn
    return seconds + crossed / _bandwidth(places, layout.topology)


def _bandwidth(places: Sequence[MeshPosition], topology: Topology) -> float:
    """Bytes a second a chip can send into the dimensions that a group of chips spans."""
    chip = topology.chip
    if not chip.torus:
        return chip.ici / chip.devices
    first = places[0]
    spanned = [
        i
        for i, _ in enumerate(topology.shape)
        if any(p.coords[i] != first.coords[i] for p in places)
    ]
    if not spanned:  # the cores of one chip: through its memory
        return chip.hbm_bandwidth / chip.devices
    per_dimension = chip.ici / chip.torus
    total = sum(per_dimension * (1.0 if topology.wrapped[i] else 0.5) for i in spanned)
    return total / chip.devices
