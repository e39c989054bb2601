"""Counts what a compiled program does: products, bytes of main memory, collectives."""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from flax_adapt.plan import hlo, products
from flax_adapt.plan.hlo import Computation, Instruction, Module, Shape

# Instructions that move no bytes themselves.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done"),
    *("copy-done", "partition-id", "replica-id", "opt-barrier", "domain"),
}
_READS_PART = {"dynamic-slice", "gather"}
_UPDATE = "dynamic-update-slice"


class Collective(NamedTuple):
    """A collective: its kind, the devices of a group, and its bytes on one chip.

    The bytes are those of the whole array: the gathered one, the one that is reduced.
    """

    kind: str
    devices: int
    bytes: int

    @property
    def traffic(self) -> float:
        """The bytes that a chip sends at least, in a ring of `devices`."""
        return _TRAFFIC[self.kind](self.devices) * self.bytes


def _ring(devices: int) -> float:
    return (devices - 1) / devices


# Kind -> (devices of a group) -> bytes sent by a chip, relative to those of the array.
_TRAFFIC: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda devices: 2 * _ring(devices),
    "all-gather": _ring,
    "reduce-scatter": _ring,
    "all-to-all": _ring,
    "ragged-all-to-all": _ring,
    "collective-broadcast": _ring,
    "collective-permute": lambda devices: 1.0,
}
KINDS = tuple(_TRAFFIC)


class Cost(NamedTuple):
    """What one instruction costs on one chip, and how often it runs."""

    instruction: Instruction
    times: int
    flops: float
    bytes: int
    collective: Collective | None


def count_costs(module: Module, devices: int) -> list[Cost]:
    """Returns the costs of all instructions; devices: of the whole program."""
    found = []
    for one, computation, times in hlo.walk(module):
        collective = _collective(one, computation, devices)
        moved = 0 if collective else bytes_of(module, one, computation)
        flops = products.flops_of(module, one, computation)
        if collective or moved or flops:
            found.append(Cost(one, times, flops, moved, collective))
    return found


def sum_flops(found: Iterable[Cost]) -> float:
    """Returns 2 times the multiply-adds of all products, of one chip."""
    return sum(cost.times * cost.flops for cost in found)


def sum_by_kind(found: Iterable[Cost]) -> dict[str, dict[str, int]]:
    """Returns {kind: {"count": runs, "bytes": bytes on one chip}} of collectives."""
    kinds: dict[str, dict[str, int]] = {}
    for cost in found:
        if cost.collective is not None:
            row = kinds.setdefault(cost.collective.kind, {"count": 0, "bytes": 0})
            row["count"] += cost.times
            row["bytes"] += cost.times * cost.collective.bytes
    return dict(sorted(kinds.items()))


def bytes_of(module: Module, one: Instruction, computation: Computation) -> int:
    """Returns the bytes of main memory that an instruction reads and writes.

    Of an array of which a slice is read or replaced in place, they are those of the slice.
    """
    if one.op in _FREE or one.op.endswith("-done"):
        return 0
    if one.op in _READS_PART:
        return 2 * _main(one.shapes)
    if one.op == _UPDATE:
        return 2 * _main([computation.operand(one, 1)])
    if one.op == "copy-start":
        return _main(one.shapes[:2])
    if one.op == "slice-start":  # its results are the operand, the slice, and a flag
        source, part = one.shapes[:2]
        return part.bytes * (source.is_main + part.is_main)
    if one.op == "fusion":
        return _fusion_bytes(module, one, computation)
    results = [shape for shape in one.shapes if not _is_workspace(one, shape)]
    return _main([*computation.shapes_of(one), *results])


def _is_workspace(one: Instruction, shape: Shape) -> bool:
    """Returns whether a result is room that a GPU library may use, of a fixed size."""
    return (
        one.op == "custom-call" and shape.dtype in ("s8", "u8") and len(one.shapes) > 1
    )


def _main(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if shape.is_main)


def _fusion_bytes(module: Module, one: Instruction, computation: Computation) -> int:
    (name,) = one.calls("calls")
    inner = module.computations[name]
    total = 0
    for number, operand in enumerate(one.operands):
        shapes = computation.instructions[operand].shapes
        whole = _main(shapes)
        part = _read_part(inner, number)
        total += whole if part is None else min(whole, part)
    return total + sum(
        shape.bytes if part is None else part
        for shape, part in zip(one.shapes, _written(inner), strict=False)
        if shape.is_main
    )


def _users(inner: Computation, name: str) -> list[tuple[Instruction, int]]:
    """Returns (instruction, place of the operand) of all users, through bitcasts."""
    found = []
    for one in inner.instructions.values():
        for place, operand in enumerate(one.operands):
            if operand == name and one.op == "bitcast":
                found += _users(inner, one.name)
            elif operand == name:
                found.append((one, place))
    return found


def _read_part(inner: Computation, number: int) -> int | None:
    """Returns the bytes that a fusion reads of a parameter; None: all of it."""
    names = [
        one.name
        for one in inner.instructions.values()
        if one.op == "parameter" and one.literal == str(number)
    ]
    users = [user for name in names for user in _users(inner, name)]
    total = 0
    for one, place in users:
        if place == 0 and one.op in _READS_PART:
            total += sum(shape.bytes for shape in one.shapes)
        elif not (place == 0 and one.op == _UPDATE):
            return None
    return total if users else None


def _written(inner: Computation) -> list[int | None]:
    """Returns the bytes that a fusion writes of each of its results; None: all of them."""
    root = inner.instructions[inner.root]
    names = root.operands if root.op == "tuple" else (root.name,)
    return [_update(inner, inner.instructions[name]) for name in names]


def _update(inner: Computation, one: Instruction) -> int | None:
    while one.op == "bitcast":
        one = inner.instructions[one.operands[0]]
    return inner.operand(one, 1).bytes if one.op == _UPDATE else None


def _collective(
    one: Instruction, computation: Computation, devices: int
) -> Collective | None:
    """Returns the collective that an instruction is or starts; its end is not counted."""
    kind = one.op.removesuffix("-start")
    if kind not in _TRAFFIC:
        return None
    group = group_size(one.attributes, devices)
    moved = sum(shape.bytes for shape in computation.shapes_of(one))
    return Collective(kind, group, moved * (group if kind == "all-gather" else 1))


def group_size(attributes: str, devices: int) -> int:
    """Returns the number of devices of a group, from one of the forms of replica_groups.

    {{0,1},{2,3}}: 2. [4,2]<=[8]: 2. mesh['a'=4,'b'=2] {'b'}: 2. {} or none: all devices.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
