"""Collectives of a compiled step: kind, mesh axes, bytes, and how much compute hides of them.

The compiler estimates no time for them. The estimate here is bytes over the bandwidth of the links
that a group of chips can use, after "How to Scale Your Model" (Austin et al. 2025, chapter 3): a
ring sends (n - 1) / n of the gathered array over both directions of every torus dimension that the
group spans, over half of that where the dimension does not close to a ring.
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
    """The slice of a device and the coordinates of its chip."""

    slice: int
    coords: tuple[int, ...]


class Layout(NamedTuple):
    """A mesh over a topology.

    Attributes:
        topology: the machine.
        axes: sizes of the mesh axes by name.
        positions: the position of every device, in the order of the mesh.
    """

    topology: Topology
    axes: Mapping[str, int]
    positions: Sequence[MeshPosition]


class Collective(NamedTuple):
    """A collective of one computation.

    Attributes:
        kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or "collective-permute".
        axis: the mesh axes that its groups span, joined by "+".
        bytes: of the whole array on a device, gathered.
        seconds: of one execution.
        exposed: seconds of one execution that no compute hides.
        repeats: executions a step.
        asynchronous: whether XLA split it into a start and a done.
        op_name: the operation in the JAX program.
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
    """A collective that was started, and the time at which it ends."""

    collective: Collective
    ends: float


def exposed_seconds(
    module: Module, layout: Layout, *, clock: float, begin: str | None = None
) -> tuple[list[Collective], float]:
    """List every collective, and add up the seconds that a device waits for them in a step.

    A collective starts when it is issued or when the previous one has left the links, and overlaps
    with the estimated compute until its result is needed. One that is not split into start and done
    overlaps with nothing.

    Args:
        module: the compiled program.
        layout: the mesh on its topology.
        clock: cycles a second, to turn the compiler's cycles into seconds.
        begin: the computation to count, once; None for the whole program.

    Returns:
        The collectives, and the exposed seconds.
    """
    collectives: list[Collective] = []

    def visit(computation: Computation, repeats: int) -> float:
        # Seconds since the start of the computation: the current instruction, and when the links
        # become free; and the total time spent waiting.
        now, free, waited = 0.0, 0.0, 0.0
        in_flight: dict[str, _Flight] = {}
        for instruction in computation.instructions:
            for inside, times in runs(module, instruction):
                waited += times * visit(inside, repeats * times)
            inner = collective_inside(module, instruction)
            now += instruction.cycles / clock
            if inner is None:
                continue
            key = _identity(instruction, inner)
            if _is_end(instruction):
                flight = in_flight.pop(key, None)
                if flight is not None:
                    exposed_now = max(0.0, flight.ends - now)
                    collectives.append(flight.collective._replace(exposed=exposed_now))
                    now, waited = now + exposed_now, waited + exposed_now
                continue
            collective = _describe(instruction, inner, layout, repeats)
            free = max(now, free) + collective.seconds
            if _is_start(instruction):
                in_flight[key] = _Flight(collective._replace(asynchronous=True), free)
            else:
                exposed_now = free - now
                collectives.append(collective._replace(exposed=exposed_now))
                now, waited = now + exposed_now, waited + exposed_now
        collectives.extend(flight.collective for flight in in_flight.values())
        return waited

    return collectives, visit(module[begin or module.entry], 1)


def _is_start(instruction: Instruction) -> bool:
    split = instruction.opcode.endswith("-start") or is_between_slices(instruction)
    return split or instruction.name.startswith("async-collective-start")


def _is_end(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done") or instruction.name.startswith(
        "async-collective-done"
    )


def _identity(instruction: Instruction, inner: Instruction) -> str:
    """Return what a start and its done share: the channel, or the name of the start."""
    if instruction.opcode.endswith("-done"):
        return instruction.operands[0]
    if instruction.opcode.endswith("-start") or is_between_slices(instruction):
        return instruction.name
    channel = re.search(r"channel_id=(\d+)", inner.attributes)
    return channel[1] if channel else instruction.name


def _describe(
    instruction: Instruction, inner: Instruction, layout: Layout, repeats: int
) -> Collective:
    """Return the collective `inner` that an instruction is or contains."""
    kind = collective_kind(inner.opcode) or ""
    shapes = inner.shapes
    if inner.opcode == "collective-permute-start":
        shapes = shapes[1:2]  # operand, result, and contexts of the transfer
    elif inner.opcode == "all-gather-start":
        shapes = shapes[len(shapes) // 2 :]  # operands, results
    group = group_of(inner.attributes, len(layout.positions))
    if is_between_slices(inner):
        kind, shapes = _kind_between_slices(inner), shapes[:1]
        # Slices follow one another along the first axis of the mesh.
        slices = layout.topology.slices
        group = [i * (len(layout.positions) // slices) for i in range(slices)]
    size = float(sum(shape.bytes for shape in shapes if shape.dims or len(shapes) == 1))
    if "all-reduce-scatter" in (instruction.called("calls") or ""):
        kind = "reduce-scatter"  # computed as an all-reduce of which each device keeps a slice
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
    """Return the kind of a transfer between slices, by its attribute."""
    match = re.search(r'transfer_type="(\w+)"', instruction.attributes)
    kind = match[1].lower().replace("_", "-") if match else ""
    return kind if kind in COLLECTIVES else "all-to-all"


def group_of(attributes: str, devices: int) -> list[int]:
    """Return the devices of a collective's first group, from any of the forms that XLA writes."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])]
        chosen = re.findall(r"'([^']+)'", match[2])
        group, stride = [0], 1
        for name, size in reversed(axes):
            if name in chosen:
                group = [d + i * stride for i in range(size) for d in group]
            stride *= size
        return sorted(group)
    if match := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        import numpy as np

        shape, dims = ([int(n) for n in match[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            ids = ids.transpose([int(n) for n in match[3].split(",")])
        return sorted(ids.reshape(shape)[0].tolist())
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return sorted(int(n) for n in match[1].split(","))
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return sorted({int(match[1]), int(match[2])})
    return list(range(devices))


def axes_of(group: Sequence[int], layout: Layout) -> str:
    """Name the mesh axes along which the devices of a group differ, such as "data+fsdp"."""
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
    """Estimate how long a group of devices takes to move `size` bytes each over idle links."""
    count, chip = len(group), layout.topology.chip
    if count < 2:
        return 0.0
    positions = [layout.positions[device] for device in group]
    if kind == "collective-permute":
        crossed = size
    elif kind == "all-to-all":
        crossed = size / 4  # bidirectional ring: a quarter of what an all-gather sends
    else:
        crossed = _PASSES[kind] * size * (count - 1) / count
    seconds = 0.0
    if len({position.slice for position in positions}) > 1 and chip.dcn:
        # Each chip of a slice carries its share of what the slices exchange.
        inside = max(1, count // len({position.slice for position in positions}))
        seconds += crossed / inside / chip.dcn
    return seconds + crossed / _bandwidth(positions, layout.topology)


def _bandwidth(positions: Sequence[MeshPosition], topology: Topology) -> float:
    """Return the bytes a second that a chip can send along the dimensions that a group spans."""
    chip = topology.chip
    if not chip.torus:
        return chip.ici / chip.devices
    first = positions[0]
    spanned = [
        i
        for i, _ in enumerate(topology.shape)
        if any(p.coords[i] != first.coords[i] for p in positions)
    ]
    if not spanned:  # the cores of one chip: through its memory
        return chip.hbm_bandwidth / chip.devices
    per_dimension = chip.ici / chip.torus
    total = sum(per_dimension * (1.0 if topology.wrapped[i] else 0.5) for i in spanned)
    return total / chip.devices
