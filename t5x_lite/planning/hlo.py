"""A compiled program as data: XLA's scheduled HLO text, parsed as far as its costs need.

Everything here is a fact the compiler wrote down. What it means is in `costs` and `memory`.
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
    """An array's element type, dimensions, and how it lies in memory.

    order: dimensions from minor to major. tile: sizes the minor dimensions are padded to multiples
    of. space: 0 is main memory (HBM); on a TPU 1 is on-chip memory, 2 a semaphore, 5 the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Size in memory, the padding of tiles included."""
        physical = [self.dims[i] for i in reversed(self.order)]
        physical = [1] * (len(self.tile) - len(physical)) + physical
        for i, size in enumerate(reversed(self.tile)):
            physical[-1 - i] = -(-physical[-1 - i] // size) * size
        return math.prod(physical) * _element_bits(self.dtype) // 8


class Frame(NamedTuple):
    """A place in a program's text."""

    file: str
    function: str
    line: int


class Instruction(NamedTuple):
    """One line of a computation. shapes: its result, or the arrays of a tuple in order."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The path of JAX names this instruction came from."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's own estimate, 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def is_kernel(self) -> bool:
        """Whether it is a hand-written kernel, which the compiler cannot look into."""
        return "tpu_custom_call" in self.attributes

    @property
    def stated(self) -> tuple[int, int]:
        """FLOPs and bytes of a kernel by its author's count, 0 where there is none."""
        found = re.search(r'"cost_estimate":\{([^}]*)\}', self.attributes)
        counts = dict(re.findall(r'"(\w+)":"(\d+)"', found[1])) if found else {}
        return int(counts.get("flops", 0)), int(counts.get("bytes_accessed", 0))

    def called(self, attribute: str) -> str | None:
        """The computation named by an attribute: calls, body, condition, to_apply."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


class Computation(NamedTuple):
    """Instructions in the order they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.instructions if i.is_root)

    def by_name(self) -> Mapping[str, Instruction]:
        """Instructions by their names."""
        return {instruction.name: instruction for instruction in self.instructions}

    def parameter(self, number: int) -> Instruction | None:
        """The parameter with this number."""
        found = (i for i in self.instructions if i.opcode == "parameter")
        return next((i for i in found if i.operands == (str(number),)), None)


class Module:
    """A whole program."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.trips: dict[str, int] = {}  # of loops, where the reader knows better than the text
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
            elif found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                name = found[2]
                self.entry = name if found[1] else self.entry

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[Frame, int]]:
        """Stack frames by number, each with its caller's number (0: none)."""
        head = self._text.split("\n%", 1)[0]
        files = dict(re.findall(r'^(\d+) "(.*)"$', _section(head, "FileNames"), re.MULTILINE))
        functions = dict(
            re.findall(r'^(\d+) "(.*)"$', _section(head, "FunctionNames"), re.MULTILINE)
        )
        places = {
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
        # The file counts parents from 1 beyond their number: 1 means that there is none.
        return {int(n): (places[at], int(parent or 1) - 1) for n, at, parent in frames}

    def stack(self, instruction: Instruction) -> list[Frame]:
        """Where in the program's text the instruction comes from, innermost first."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        number, frames = int(found[1]) if found else 0, []
        while number in self._frames and len(frames) < 100:
            frame, number = self._frames[number]
            frames.append(frame)
        return frames

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` runs its body; ValueError where the text does not say.

        The compiler notes it, or the condition compares a counter that starts at 0 with a constant.
        """
        if loop.name in self.trips:
            return self.trips[loop.name]
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition, body = (self[loop.called(a) or ""] for a in ("condition", "body"))
        limits = [int(c) for c in self._constants(condition)]
        if not limits:
            raise ValueError(f"the text does not say how often {loop.name} repeats")
        return max(1, -(-max(limits) // self._increment(condition, body)))

    def _constants(self, computation: Computation) -> Iterator[str]:
        for instruction in computation.instructions:
            if instruction.opcode == "constant" and instruction.shapes[0].dtype in ("s32", "u32"):
                yield instruction.operands[0]
            if called := instruction.called("calls"):
                yield from self._constants(self[called])

    def _increment(self, condition: Computation, body: Computation) -> int:
        """What the body adds to the counter that the condition reads."""
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
    found = re.search(rf"^{title}\n(.*?)(?:\n\n|\Z)", head, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = parse_shapes(rest[:end]), rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    if opcode in ("constant", "parameter"):
        operands = (inside.strip(),)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], opcode, shapes, operands, rest[close + 1 :], bool(found[1]))


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


@functools.lru_cache(maxsize=100_000)
def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape or of a tuple of shapes, in order."""
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
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 8


def runs(module: Module, instruction: Instruction) -> Iterator[tuple[Computation, int]]:
    """The computations an instruction runs one after the other, and how often."""
    if instruction.opcode == "while":
        yield module[instruction.called("body") or ""], module.trip_count(instruction)
    elif instruction.opcode == "call":
        yield module[instruction.called("to_apply") or ""], 1
    elif instruction.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        branches = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        branches += [instruction.called(f"{way}_computation") or "" for way in ("true", "false")]
        known = [module[name] for name in branches if name in module.computations]
        yield max(known, key=lambda branch: _cycles(module, branch)), 1  # the dearest


def _cycles(module: Module, computation: Computation) -> int:
    return sum(
        instruction.cycles
        + sum(times * _cycles(module, inner) for inner, times in runs(module, instruction))
        for instruction in computation.instructions
    )


def collective_inside(module: Module, instruction: Instruction) -> Instruction | None:
    """The collective an instruction is, or that the fusion it is carries out; else None."""
    if collective_kind(instruction.opcode) or is_between_slices(instruction):
        return instruction
    if instruction.opcode == "fusion":
        name = instruction.called("calls") or ""
        is_one = "kind=kCustom" in instruction.attributes
        return next(
            (i for i in module[name].instructions if is_one and collective_kind(i.opcode)), None
        )
    return None


def is_between_slices(instruction: Instruction) -> bool:
    """Whether an instruction begins or ends an exchange between TPU slices.

    There a send and a recv stand for a collective; the recv is the one that is waited for.
    """
    is_recv = instruction.opcode in ("recv", "recv-done")
    return is_recv and "megascale" in instruction.attributes


def collective_kind(opcode: str) -> str | None:
    """The kind of collective an opcode is or is the start or end of, else None."""
    plain = opcode.removesuffix("-start").removesuffix("-done")
    return plain if plain in COLLECTIVES else None
