"""Reads the text of a compiled XLA program: computations, instructions, shapes.

It is what `jax.stages.Compiled.as_text` returns, of one device of a partitioned program.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes of an element; types that are missing here have no size (tokens, opaque).
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16, "bf16": 2}
_BITS = re.compile(r"[suf](\d+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Shape(NamedTuple):
    """An array: its element type, its sizes, and whether it lies in the main memory (HBM)."""

    dtype: str
    dims: tuple[int, ...]
    is_main: bool

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The number of bytes, without padding."""
        bits = _BITS.match(self.dtype)
        size = int(bits[1]) / 8 if bits else 0
        return int(self.size * _BYTES.get(self.dtype, size))


class Instruction(NamedTuple):
    """One instruction.

    shapes: of its result, one, or those of a tuple. operands: names of instructions of the
    same computation. literal: the text between the brackets. attributes: the rest.
    """

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute such as `dim_labels=bf_io->bf`, "" if missing."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^ ,]+)", self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns the numbers of an attribute such as `dimensions={0,1}`."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

    def calls(self, name: str) -> list[str]:
        """Returns the names of computations in an attribute, such as `calls=%fused`."""
        return _NAME.findall(self.attribute(name))


class Computation(NamedTuple):
    """Instructions by name, in order; root: the name of the one that is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def shapes_of(self, instruction: Instruction) -> list[Shape]:
        """Returns the shapes of all operands."""
        found = (self.instructions[name] for name in instruction.operands)
        return [shape for one in found for shape in one.shapes]

    def operand(self, instruction: Instruction, number: int) -> Shape:
        """Returns the first shape of an operand."""
        return self.instructions[instruction.operands[number]].shapes[0]


class Module(NamedTuple):
    """A compiled program: computations by name, and the name of the first one."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Returns the module of the text of a compiled program."""
    computations: dict[str, Computation] = {}
    entry = ""
    lines: list[str] = []
    header: re.Match[str] | None = None
    for line in text.splitlines():
        if header is None:
            header, lines = _HEADER.match(line), []
        elif line.rstrip() == "}":  # metadata of kernels has lines that begin with it
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = _computation(name, lines)
            header = None
        else:
            lines.append(line)
    return Module(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        found = _LINE.match(line)
        if found is not None:
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    """Reads `SHAPE op(operands), attributes`."""
    end = _close(text, 0) if text.startswith("(") else text.index(" ")
    shapes, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _close(rest, start)
    literal = rest[start + 1 : stop - 1]
    operands = tuple(_NAME.findall(literal))
    return Instruction(
        name, rest[:start], read_shapes(shapes), operands, literal, rest[stop:]
    )


def _close(text: str, start: int) -> int:
    """Returns the place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Returns all arrays of a text such as `(f32[2,3]{1,0:T(8,128)S(1)}, u32[])`."""
    return tuple(
        Shape(
            dtype,
            tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size),
            not re.search(r"S\([1-9]", layout),
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )


class Step(NamedTuple):
    """An instruction that is run `times` times by itself, not as a part of a fusion."""

    instruction: Instruction
    computation: Computation
    times: int


def walk(module: Module) -> Iterator[Step]:
    """Yields all instructions that the program runs, those of loops once with their count.

    Every branch of a conditional is counted. What a fusion consists of is not visited.
    """
    yield from _walk(module, module.computations[module.entry], 1)


def _walk(module: Module, computation: Computation, times: int) -> Iterator[Step]:
    for one in computation.instructions.values():
        yield Step(one, computation, times)
        inner = times * (trip_count(module, one) if one.op == "while" else 1)
        for name in _run_by(one):
            yield from _walk(module, module.computations[name], inner)


def _run_by(one: Instruction) -> list[str]:
    """Returns the computations that an instruction runs, without reductions and fusions."""
    attributes = _CALLED.get(one.op, ())
    return [name for attribute in attributes for name in one.calls(attribute)]


_CALLED = {
    "while": ("body",),
    "call": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "async-start": ("calls",),
}


def trip_count(module: Module, loop: Instruction) -> int:
    """Returns how often a loop runs: by its annotation, else by the bound of its condition.

    The bound is the only integer that the condition compares with (loops count from 0); 1
    where that is unclear.
    """
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    (condition,) = loop.calls("condition")
    instructions = module.computations[condition].instructions.values()
    found = [
        int(one.literal)
        for one in instructions
        if one.op == "constant" and one.literal.isdigit()
    ]
    return found[0] if len(found) == 1 else 1
