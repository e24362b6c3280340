"""Parser of XLA's scheduled HLO text: computations, instructions, shapes, loops, stack frames.

This module only reads what the compiler wrote. `costs`, `memory` and `collectives` interpret it.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")


class Shape(NamedTuple):
    """An array's element type, dimensions and memory layout.

        bf16[8,512]{1,0:T(8,128)(2,1)S(1)}

    Attributes:
        dtype: The element type, such as "bf16".
        dims: The dimensions.
        order: Indices of the dimensions from minor to major.
        tile: The minor dimensions are padded to multiples of these sizes.
        space: The memory space: 0 is main memory (HBM); on a TPU, 1 is on-chip memory, 2 a
            semaphore and 5 host memory.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Size in memory, including the padding of tiles."""
        physical = [self.dims[i] for i in reversed(self.order)]
        physical = [1] * (len(self.tile) - len(physical)) + physical
        for i, size in enumerate(reversed(self.tile)):
            physical[-1 - i] = -(-physical[-1 - i] // size) * size
        return math.prod(physical) * _element_bits(self.dtype) // 8


class Frame(NamedTuple):
    """A stack frame: a line of Python code.

    Attributes:
        file: Path of the file.
        function: Qualified name of the function.
        line: Number of the line.
    """

    file: str
    function: str
    line: int


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
        name: Its name, unique in the program.
        opcode: The operation, such as "fusion".
        shapes: Shape of the result; for a tuple, of each array in order.
        operands: Names of the operands; for "parameter" the number, for "constant" the value.
        attributes: The text after the operands: attributes, metadata and backend config.
        is_root: Whether its result is that of the computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The path of JAX names that the instruction came from."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate of its cycles; 0 if there is none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else 0

    @property
    def is_kernel(self) -> bool:
        """Whether it is a hand-written kernel, for which the compiler has no estimate."""
        return "tpu_custom_call" in self.attributes

    @property
    def stated_cost(self) -> tuple[int, int]:
        """FLOPs and bytes that a kernel's `cost_estimate` states; 0 if it states none."""
        match = re.search(r'"cost_estimate":\{([^}]*)\}', self.attributes)
        counts = dict(re.findall(r'"(\w+)":"(\d+)"', match[1])) if match else {}
        return int(counts.get("flops", 0)), int(counts.get("bytes_accessed", 0))

    def called(self, attribute: str) -> str | None:
        """Return the computation that an attribute names: calls, body, condition, to_apply."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


class Computation(NamedTuple):
    """A computation: instructions in the order in which they run.

    Attributes:
        name: Its name.
        instructions: The instructions.
    """

    name: str
    instructions: tuple[Instruction, ...]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(i for i in self.instructions if i.is_root)

    def by_name(self) -> Mapping[str, Instruction]:
        """Return the instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    def parameter(self, number: int) -> Instruction | None:
        """Return the parameter with a number; None if there is none."""
        parameters = (i for i in self.instructions if i.opcode == "parameter")
        return next((i for i in parameters if i.operands == (str(number),)), None)


class Module:
    """A compiled program.

    Args:
        text: Its scheduled HLO text.

    Attributes:
        computations: Computations by name.
        trips: Trip counts of loops by name, for callers that know one which the text does not have.
        entry: Name of the entry computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.trips: dict[str, int] = {}
        self.entry = ""
        self._text = text
        self._parse(text)

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]

    def _parse(self, text: str) -> None:
        name, instructions = "", []
        for line in text.splitlines():
            if line.startswith("}"):
                self.computations[name] = Computation(name, tuple(instructions))
                name, instructions = "", []
            elif name:
                if parsed := _instruction(line):
                    instructions.append(parsed)
            elif header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                name = header[2]
                self.entry = name if header[1] else self.entry

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[Frame, int]]:
        """Stack frames by number, with the number of the caller (0: none)."""
        head = self._text.split("\n%", 1)[0]
        files = dict(re.findall(r'^(\d+) "(.*)"$', _section(head, "FileNames"), re.MULTILINE))
        functions = dict(
            re.findall(r'^(\d+) "(.*)"$', _section(head, "FunctionNames"), re.MULTILINE)
        )
        locations = {
            number: Frame(files.get(file, ""), functions.get(function, ""), int(line))
            for number, file, function, line in re.findall(
                r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)",
                _section(head, "FileLocations"),
                re.MULTILINE,
            )
        }
        frames = re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
            _section(head, "StackFrames"),
            re.MULTILINE,
        )
        # The text has the number of the parent plus 1; 1 means that there is no parent.
        return {int(n): (locations[at], int(parent or 1) - 1) for n, at, parent in frames}

    def stack(self, instruction: Instruction) -> list[Frame]:
        """Return the stack frames that an instruction was traced in, innermost first."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        number, frames = int(match[1]) if match else 0, []
        while number in self._frames and len(frames) < 100:
            frame, number = self._frames[number]
            frames.append(frame)
        return frames

    def trip_count(self, loop: Instruction) -> int:
        """Return the number of times that a `while` runs its body.

        The compiler states it, or the condition compares a counter that starts at 0 with a
        constant.

        Args:
            loop: The instruction.

        Raises:
            ValueError: The text has no trip count.
        """
        if loop.name in self.trips:
            return self.trips[loop.name]
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition, body = (self[loop.called(a) or ""] for a in ("condition", "body"))
        limits = [int(c) for c in self._constants(condition)]
        if not limits:
            raise ValueError(f"the program's text has no trip count of the loop {loop.name}")
        return max(1, -(-max(limits) // self._increment(condition, body)))

    def _constants(self, computation: Computation) -> Iterator[str]:
        """Yield the 32-bit integer constants of a computation and of its fusions."""
        for instruction in computation.instructions:
            if instruction.opcode == "constant" and instruction.shapes[0].dtype in ("s32", "u32"):
                yield instruction.operands[0]
            if called := instruction.called("calls"):
                yield from self._constants(self[called])

    def _increment(self, condition: Computation, body: Computation) -> int:
        """Return what the body adds to the counter of the condition; 1 if that is unknown."""
        reads = [i for i in condition.instructions if i.opcode == "get-tuple-element"]
        inside, root = body.by_name(), body.root
        for read in reads:
            index = int((re.search(r"index=(\d+)", read.attributes) or [0, 0])[1])
            if root.opcode != "tuple" or index >= len(root.operands):
                continue
            step = inside.get(root.operands[index])
            if step is None or step.opcode != "add":
                continue
            for operand in step.operands:
                constant = inside.get(operand)
                if constant is not None and constant.opcode == "constant":
                    return max(1, int(constant.operands[0]))
        return 1


def _section(head: str, title: str) -> str:
    """Return the lines below a title in the head of the text."""
    match = re.search(rf"^{title}\n(.*?)(?:\n\n|\Z)", head, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def _instruction(line: str) -> Instruction | None:
    """Parse a line such as `ROOT %add.3 = f32[8]{0} add(%a, %b), metadata={...}`."""
    match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = parse_shapes(rest[:end]), rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    if opcode in ("constant", "parameter"):
        operands = (inside.strip(),)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match[2], opcode, shapes, operands, rest[close + 1 :], bool(match[1]))


def _closing(text: str, opening: int) -> int:
    """Return the index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


@functools.lru_cache(maxsize=100_000)
def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a shape, or of a tuple of shapes in order."""
    shapes = []
    for dtype, dims, order, layout in _ARRAY.findall(text):
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        minor_to_major = tuple(int(d) for d in order.split(",") if d)
        if len(minor_to_major) != len(sizes):
            minor_to_major = tuple(reversed(range(len(sizes))))
        tile = _TILE.search(layout)
        space = re.search(r"S\((\d+)\)", layout)
        tiles = tuple(int(t) for t in tile[1].split(",")) if tile else ()
        shapes.append(Shape(dtype, sizes, minor_to_major, tiles, int(space[1]) if space else 0))
    return tuple(shapes)


@functools.lru_cache(maxsize=1000)
def _element_bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match[1]) if match else 8


def runs(module: Module, instruction: Instruction) -> Iterator[tuple[Computation, int]]:
    """Yield the computations that an instruction runs, with the number of times.

    Of the branches of a conditional it yields only the most expensive.

    Args:
        module: The program.
        instruction: The instruction.
    """
    if instruction.opcode == "while":
        yield module[instruction.called("body") or ""], module.trip_count(instruction)
    elif instruction.opcode == "call":
        yield module[instruction.called("to_apply") or ""], 1
    elif instruction.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        branches = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        branches += [instruction.called(f"{way}_computation") or "" for way in ("true", "false")]
        known = [module[name] for name in branches if name in module.computations]
        yield max(known, key=lambda branch: _cycles(module, branch)), 1


def _cycles(module: Module, computation: Computation) -> int:
    """Return the estimated cycles of a computation, with those that it runs."""
    return sum(
        instruction.cycles
        + sum(times * _cycles(module, inner) for inner, times in runs(module, instruction))
        for instruction in computation.instructions
    )


def collective_inside(module: Module, instruction: Instruction) -> Instruction | None:
    """Return the collective that an instruction is or that its fusion contains; else None.

    Args:
        module: The program.
        instruction: The instruction.
    """
    if collective_kind(instruction.opcode) or is_between_slices(instruction):
        return instruction
    if instruction.opcode == "fusion":
        name = instruction.called("calls") or ""
        is_custom = "kind=kCustom" in instruction.attributes
        return next(
            (i for i in module[name].instructions if is_custom and collective_kind(i.opcode)), None
        )
    return None


def is_between_slices(instruction: Instruction) -> bool:
    """Return whether an instruction starts or ends a transfer between TPU slices.

    Such a collective is compiled to a send and a recv. The program waits for the recv.
    """
    is_recv = instruction.opcode in ("recv", "recv-done")
    return is_recv and "megascale" in instruction.attributes


def collective_kind(opcode: str) -> str | None:
    """Return the kind of collective of an opcode, also of its start or done; else None."""
    plain = opcode.removesuffix("-start").removesuffix("-done")
    return plain if plain in COLLECTIVES else None
