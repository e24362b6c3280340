"""The peak memory of a device during a compiled step, by kind of array.

The program's text has the sizes of the arguments. The kinds of temporary arrays are found by a
replay of the schedule, which determines the arrays that are in main memory at the same time. The
total is always the compiler's; the part that the replay cannot explain is called "unattributed".
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from t5x_lite.planning.hlo import Computation, Instruction, Module, Shape, runs

_ALIASES = {"bitcast", "get-tuple-element", "tuple", "while", "optimization-barrier"}
GRADIENTS, ACTIVATIONS = "gradients", "activations"
COPIES, WORKING = "copies of weights", "working arrays"


class Buffer(NamedTuple):
    """An array in main memory at the peak.

    Attributes:
        bytes: Its size.
        kind: Such as "weights" or "activations".
        name: Its shape and the operation that computes it.
    """

    bytes: int
    kind: str
    name: str


class Memory(NamedTuple):
    """Peak memory of one device.

    Attributes:
        total: Bytes, by the compiler.
        split: Bytes by kind, which add up to the total.
        largest: The largest arrays.
    """

    total: int
    split: Mapping[str, int]
    largest: Sequence[Buffer]


def memory(module: Module, compiler: Mapping[str, int]) -> Memory:
    """Split the memory of a compiled step by kind.

    Args:
        module: The compiled program.
        compiler: The compiler's numbers (`compilation.Compiled.memory`).
    """
    arguments = {"weights": 0, "optimizer state": 0, "batch": 0}
    weights: set[tuple[int, ...]] = set()
    largest = []
    for parameter in _parameters(module):
        kind = _argument_kind(parameter.op_name)
        size = sum(shape.bytes for shape in parameter.shapes if shape.space == 0)
        arguments[kind] += size
        largest.append(Buffer(size, kind, _short_name(parameter.op_name)))
        if kind == "weights":
            weights.add(_squeezed(parameter.shapes[0].dims))
    arguments["batch"] += compiler["argument"] - sum(arguments.values())  # alignment
    live = _replay(module, module[module.entry], weights)
    temporary = _scaled(live, compiler["temp"])
    split = {
        **arguments,
        **temporary,
        "metrics": compiler["output"] - compiler["alias"],
        "program": compiler["generated_code"],
    }
    total = sum(split.values())
    ordered = sorted([*largest, *live], key=lambda buffer: -buffer.bytes)
    return Memory(total, {k: v for k, v in split.items() if v}, ordered[:12])


def _parameters(module: Module) -> Iterator[Instruction]:
    return (i for i in module[module.entry].instructions if i.opcode == "parameter")


def _argument_kind(op_name: str) -> str:
    if ".opt_state" in op_name:
        return "optimizer state"
    return "weights" if "params" in op_name else "batch"


def _scaled(live: Sequence[Buffer], total: int) -> dict[str, int]:
    """Return sizes by kind that add up to `total`."""
    kinds: dict[str, int] = dict.fromkeys((GRADIENTS, ACTIVATIONS, COPIES, WORKING), 0)
    for buffer in live:
        kinds[buffer.kind] += buffer.bytes
    replayed = sum(kinds.values())
    if replayed > total:  # the compiler reuses more memory than the replay assumes
        kinds = {kind: size * total // replayed for kind, size in kinds.items()}
    return {**kinds, "unattributed": total - sum(kinds.values())}


# ------------------------------------------------------------------------------ the replay


class _Array(NamedTuple):
    """An allocation, with the numbers of its first and its last instruction."""

    buffer: Buffer
    first: int
    last: int


def _replay(
    module: Module, computation: Computation, weights: set[tuple[int, ...]]
) -> list[Buffer]:
    """Return the arrays in memory at the peak of a computation, with those of its loops."""
    arrays = _arrays(module, computation, weights)
    inside = {
        number: max(
            (_replay(module, inner, weights) for inner, _ in runs(module, instruction)),
            key=_size,
            default=[],
        )
        for number, instruction in enumerate(computation.instructions)
        if instruction.opcode in ("while", "call", "conditional")
    }
    changes: dict[int, int] = {}
    for array in arrays:
        changes[array.first] = changes.get(array.first, 0) + array.buffer.bytes
        changes[array.last + 1] = changes.get(array.last + 1, 0) - array.buffer.bytes
    live, peak, peak_number = 0, -1, 0
    for number in range(len(computation.instructions)):
        live += changes.get(number, 0)
        total = live + _size(inside.get(number, []))
        if total > peak:
            peak, peak_number = total, number
    buffers = [a.buffer for a in arrays if a.first <= peak_number <= a.last]
    return buffers + inside.get(peak_number, [])


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(buffer.bytes for buffer in buffers)


def _arrays(
    module: Module, computation: Computation, weights: set[tuple[int, ...]]
) -> list[_Array]:
    """Return the allocations of a computation that are neither its arguments nor its results."""
    holds: dict[str, list[tuple[int, ...]]] = {}  # value -> for each element its allocations
    made: list[tuple[Shape, Instruction, int]] = []
    last: dict[int, int] = {}
    for number, instruction in enumerate(computation.instructions):
        used = {a for name in instruction.operands for part in holds.get(name, []) for a in part}
        for allocation in used:
            last[allocation] = number
        holds[instruction.name] = parts = _aliases(module, instruction, holds)
        for element, shape in enumerate(instruction.shapes):
            if parts[element] is None and shape.space == 0 and instruction.opcode != "parameter":
                made.append((shape, instruction, number))
                parts[element] = (len(made) - 1,)
                last[len(made) - 1] = number
        holds[instruction.name] = [part or () for part in parts]
    results = {a for part in holds[computation.root.name] for a in part}
    loops = _loops(computation)
    return [
        _Array(_buffer(shape, instruction, weights, loops), number, last[allocation])
        for allocation, (shape, instruction, number) in enumerate(made)
        if allocation not in results and shape.bytes
    ]


def _aliases(module: Module, instruction: Instruction, holds: Mapping[str, list]) -> list:
    """Return for each element of a result the allocations it shares; None if it needs its own."""
    count = len(instruction.shapes)
    parts = [holds.get(name, [()]) for name in instruction.operands]
    if instruction.opcode in ("tuple",):
        return [part for operand in parts for part in operand][:count]
    if instruction.opcode in ("while", "optimization-barrier", "bitcast"):
        return list(parts[0])[:count]
    if instruction.opcode == "get-tuple-element":
        index = int((re.search(r"index=(\d+)", instruction.attributes) or [0, 0])[1])
        return [parts[0][index] if index < len(parts[0]) else ()]
    shared: list = [None] * count
    if instruction.opcode == "dynamic-update-slice":
        shared[0] = parts[0][0]
    if instruction.opcode.endswith("-done"):
        return [tuple(a for part in parts[0] for a in part)] * count
    for element, operand in _in_place(module, instruction):
        if element < count and operand < len(parts):
            shared[element] = parts[operand][0]
    return shared


def _in_place(module: Module, instruction: Instruction) -> Iterator[tuple[int, int]]:
    """Yield the elements of a result that overwrite an operand, with the operand's number."""
    for element, operand in re.findall(r"\{(\d*)\}: \((\d+), \{\}", instruction.attributes):
        yield int(element or 0), int(operand)
    if instruction.opcode != "fusion":
        return
    inside = module[instruction.called("calls") or ""]
    inner, root = inside.by_name(), inside.root
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for element, result in enumerate(results):
        while result.opcode == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            target = inner.get(result.operands[0])
            while target is not None and target.opcode == "bitcast":
                target = inner.get(target.operands[0])
            if target is not None and target.opcode == "parameter":
                yield element, int(target.operands[0])


def _loops(computation: Computation) -> dict[str, str]:
    """Return the op_name of the loop by the name of each value that a tuple passes to it."""
    tuples = {i.name: i for i in computation.instructions if i.opcode == "tuple"}
    return {
        name: loop.op_name
        for loop in reversed(computation.instructions)  # the first loop's name stays
        if loop.opcode == "while" and loop.operands[0] in tuples
        for name in tuples[loop.operands[0]].operands
    }


def _buffer(
    shape: Shape,
    instruction: Instruction,
    weights: set[tuple[int, ...]],
    loops: Mapping[str, str],
) -> Buffer:
    op_name = instruction.op_name
    if "/" not in op_name:  # made by XLA, such as the array that a loop fills
        op_name = loops.get(instruction.name, op_name)
    is_weight = _squeezed(shape.dims) in weights and math.prod(shape.dims) > 1
    forward = "jvp(" in op_name and "transpose(" not in op_name
    gathered = "all-gather" in instruction.name or "async-collective" in instruction.name
    if gathered or (forward and is_weight):  # gathered, or cast to the type of activations
        kind = COPIES
    elif is_weight:
        kind = GRADIENTS
    elif forward:
        kind = ACTIVATIONS
    else:
        kind = WORKING
    dims = ",".join(map(str, shape.dims))
    return Buffer(shape.bytes, kind, f"{shape.dtype}[{dims}] {_short_name(op_name)}".strip())


def _squeezed(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sorted dimensions without ones, which ignores transpositions."""
    return tuple(sorted(d for d in dims if d > 1))


def _short_name(op_name: str) -> str:
    """Return an op_name without quotes' escapes and the name of the step."""
    return op_name.replace("\\'", "'").removeprefix("jit(train_step)/")
