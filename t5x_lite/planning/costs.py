"""The cost of each instruction of a compiled step, and the part of the model that it belongs to.

There are three counts: the compiler's estimate in cycles, FLOPs of matrix products, and bytes read
from and written to main memory. Each is multiplied by the trip counts of the loops around it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from t5x_lite.planning.hlo import Computation, Instruction, Module, Shape, collective_inside, runs
from t5x_lite.planning.matmul_flops import product_flops

FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional"}
_PACKAGE = __name__.partition(".")[0]
# The parts of a step by the `jax.named_scope` that its code is traced in. The first that an
# instruction's name has counts: the decoder of a loop over tokens is the decoder.
_SCOPES = {
    "encoder": "encoder",
    "decoder": "decoder",
    "optimizer": "optimizer",
    "metrics": "metrics",
    "loss": "loss",
    "output_layer": "loss",
    "token_choice": "choice of tokens",
}


class Cost(NamedTuple):
    """An instruction's cost over a whole step on one device.

    Attributes:
        part: "encoder", "decoder", "loss" (with the output layer), "optimizer", "metrics",
            "choice of tokens" or "other".
        direction: "forward", "backward", "recomputed" or "update"; or the phase of a generation.
        module: The function of this package that the instruction was traced in.
        line: File and line of that function's call.
        opcode: The operation.
        repeats: Number of executions in a step.
        cycles: The compiler's estimate; for a hand-written kernel, computed from its stated cost.
        flops: FLOPs of matrix products; for a kernel, as it states them.
        bytes: Bytes of main memory traffic; for a kernel, as it states them.
        kernel: Whether it is a hand-written kernel, for which the compiler has no estimate.
    """

    part: str
    direction: str
    module: str
    line: str
    opcode: str
    repeats: int
    cycles: float
    flops: float
    bytes: float
    kernel: bool

    def seconds(self, *, peak: float, bandwidth: float) -> float:
        """Return the least time: that of its FLOPs at the peak or its bytes at full bandwidth.

        Args:
            peak: FLOPs per second of a device.
            bandwidth: Bytes per second of its memory.
        """
        return max(self.flops / peak, self.bytes / bandwidth)


KernelCycles = Callable[[float, float], float]  # of (FLOPs, bytes)


def costs(
    module: Module,
    kernel_cycles: KernelCycles = lambda flops, moved: 0.0,
    phases: Mapping[str, str] = MappingProxyType({}),
) -> list[Cost]:
    """Compute the cost of every instruction that is executed by itself, outside of a fusion.

    Args:
        module: The compiled program.
        kernel_cycles: Cycles of a hand-written kernel from its FLOPs and bytes.
        phases: For a generation, which has phases instead of directions: the phase of each loop by
            the loop's name, and under "" the phase of everything else.
    """
    instruction_costs: list[Cost] = []

    def visit(computation: Computation, repeats: int, phase: str | None) -> None:
        names = computation.by_name()
        for instruction in computation.instructions:
            for inner, times in runs(module, instruction):
                visit(inner, repeats * times, phases.get(instruction.name, phase))
            if instruction.opcode not in FREE:
                cost = _cost(module, instruction, names, repeats)
                if phase is not None:
                    cost = cost._replace(direction=phase)
                if instruction.is_kernel:
                    flops, moved = instruction.stated_cost
                    cycles = kernel_cycles(flops, moved) * repeats
                    cost = cost._replace(
                        flops=float(flops * repeats), bytes=float(moved * repeats), cycles=cycles
                    )
                instruction_costs.append(cost)

    visit(module[module.entry], 1, phases.get(""))
    return instruction_costs


def _cost(
    module: Module, instruction: Instruction, names: Mapping[str, Instruction], repeats: int
) -> Cost:
    frames = module.stack(instruction)
    package_frames = [frame for frame in frames if f"/{_PACKAGE}/" in frame.file]
    # All dense layers have the same innermost frame. The frame of the caller distinguishes them.
    is_dense = len(package_frames) > 1 and package_frames[0].function == "Dense.__call__"
    frame = package_frames[1] if is_dense else next(iter(package_frames), None)
    module_name, line = "", ""
    if frame is not None:
        module_name = frame.function.replace(".<locals>", "") + (" > Dense" if is_dense else "")
        line = f"{frame.file.rpartition(f'/{_PACKAGE}/')[2]}:{frame.line}"
    return Cost(
        part=part_of(instruction.op_name),
        direction=_direction(instruction.op_name),
        module=module_name,
        line=line,
        opcode=instruction.opcode,
        repeats=repeats,
        cycles=float(instruction.cycles * repeats),
        flops=float(_flops(module, instruction, names) * repeats),
        bytes=float(_traffic(module, instruction, names) * repeats),
        kernel=instruction.is_kernel,
    )


def part_of(op_name: str) -> str:
    """Return the part of a step that an instruction belongs to.

        jit(train_step)/transpose(jvp(decoder))/while/body/add    decoder
        jit(train_step)/optimizer/vmap()/reduce_sum               optimizer
        state.params['encoder']['layers']                         encoder

    Args:
        op_name: The path of JAX names in the instruction's metadata.

    Returns:
        A part, as `Cost.part` lists them.
    """
    for scope, part in _SCOPES.items():
        if re.search(rf"[(/]{scope}[)/]|params\[\\?'{scope}", op_name):
            return part
    return "other"


def _direction(op_name: str) -> str:
    """Return the direction of an instruction by the transformations in its path of JAX names."""
    if "rematted_computation" in op_name:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "update"


def _flops(module: Module, instruction: Instruction, names: Mapping[str, Instruction]) -> int:
    """Return the FLOPs of matrix products in an instruction or its fusion."""
    if instruction.opcode != "fusion":
        return product_flops(instruction, names)
    inside = module[instruction.called("calls") or ""]
    inner = inside.by_name()
    return sum(_flops(module, i, inner) for i in inside.instructions)


# ------------------------------------------------------------------------------ memory traffic


def _traffic(module: Module, instruction: Instruction, names: Mapping[str, Instruction]) -> int:
    """Return the bytes that an instruction reads from and writes to main memory."""
    if instruction.opcode == "send" or instruction.opcode.endswith(("-done", "-update")):
        return 0  # counted at the start, or at the recv that belongs to a send
    if collective_inside(module, instruction):
        return 0  # collectives count as network traffic (`collectives`)
    reads = 0
    for number, name in enumerate(instruction.operands):
        operand = names.get(name)
        if operand is None or len(operand.shapes) != 1 or operand.shapes[0].space:
            continue
        reads += _read(module, instruction, number, operand.shapes[0])
    return reads + _written(module, instruction, names)


def _main_memory(shapes: Sequence[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.space)


def _read(module: Module, instruction: Instruction, number: int, shape: Shape) -> int:
    """Return the bytes read of an operand: those of the slice for a slice, none if updated."""
    if instruction.opcode == "fusion":
        inside = module[instruction.called("calls") or ""]
        parameter = inside.parameter(number)
        return shape.bytes if parameter is None else _read_inside(module, inside, parameter)
    if instruction.opcode in ("dynamic-slice", "gather", "slice", "slice-start"):
        return min(shape.bytes, sum(s.bytes for s in instruction.shapes)) if number == 0 else 0
    if instruction.opcode == "dynamic-update-slice" and number == 0:
        return 0
    return shape.bytes


def _read_inside(module: Module, inside: Computation, value: Instruction) -> int:
    """Return the bytes that a fusion reads of one of its values, at most the whole value."""
    whole, total = value.shapes[0].bytes, 0
    for user in inside.instructions:
        for number, name in enumerate(user.operands):
            if name != value.name or user.opcode in ("parameter", "constant"):
                continue
            if user.opcode in ("bitcast", "reshape"):
                total += _read_inside(module, inside, user)
            else:
                total += _read(module, user, number, value.shapes[0])
    return min(whole, total)


def _written(module: Module, instruction: Instruction, names: Mapping[str, Instruction]) -> int:
    """Return the bytes written to main memory: only the update of an update in place."""
    if instruction.opcode == "dynamic-update-slice":
        update = names.get(instruction.operands[1])
        return min(_main_memory(instruction.shapes), update.shapes[0].bytes if update else 0)
    if instruction.opcode in ("copy-start", "slice-start"):
        return _main_memory(instruction.shapes[1:2])
    if instruction.opcode != "fusion":
        return _main_memory(instruction.shapes)
    inside = module[instruction.called("calls") or ""]
    inner, root = inside.by_name(), inside.root
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    written = 0
    for shape, result in zip(instruction.shapes, results, strict=False):
        if shape.space:
            continue
        while result.opcode == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        if result.opcode == "dynamic-update-slice" and result.operands[1] in inner:
            written += min(shape.bytes, inner[result.operands[1]].shapes[0].bytes)
        else:
            written += shape.bytes
    return written


# ---------------------------------------------------------------------------------- summaries


def summed(
    costs: Sequence[Cost], key: Callable[[Cost], tuple[str, ...]]
) -> dict[tuple[str, ...], Cost]:
    """Add up costs by a key.

    Args:
        costs: The costs.
        key: The key of a cost, such as its part and direction.

    Returns:
        The sums by key, in descending order of cycles. Fields that are not counts have the values
        of the first cost of the key.
    """
    totals: dict[tuple[str, ...], Cost] = {}
    for cost in costs:
        before = totals.get(key(cost))
        totals[key(cost)] = cost if before is None else _plus(before, cost)
    return dict(sorted(totals.items(), key=lambda item: -item[1].cycles))


def _plus(a: Cost, b: Cost) -> Cost:
    return a._replace(
        repeats=a.repeats + b.repeats,
        cycles=a.cycles + b.cycles,
        flops=a.flops + b.flops,
        bytes=a.bytes + b.bytes,
        kernel=a.kernel or b.kernel,
    )
