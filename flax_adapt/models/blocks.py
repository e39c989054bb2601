"""Stacks of transformer blocks: unrolled or as one loop, recomputed or kept.

Parameters are those of the unrolled blocks, block_00, block_01, ..., whatever the section
`memory` says. A loop stacks the parameters of blocks of one architecture inside the step.
The stack is divided over the mesh as the parameters are, so it costs one more copy of a
chip's own part of them, and one of their gradients (for BERT-large over 16 chips 85 MB
each); in return checkpoints, exports, optimizers, weight decay by name and layer-wise
rates need no second layout. A last block that is resized, an extra one, or one of
selected tokens (`residual`) follows the loop.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flax_adapt.base import memory, placement
from flax_adapt.base.types import Array, Key
from flax_adapt.models import architecture, layers
from flax_adapt.models.architecture import ViTConfig
from flax_adapt.models.layers import ATTENTIONS, SUMS, Block, Dtype, Initialiser
from flax_adapt.models.residual import Select

# Values that blocks store for `apply(mutable=...)`.
_STORED = (SUMS, ATTENTIONS)
# Fields in which the blocks of one loop may differ.
VARYING = ("drop_path", "is_local")


def make_blocks(
    config: ViTConfig,
    kernel_init: Initialiser,
    dropout: float,
    drop_path: float,
    dtype: Dtype,
) -> list[Block]:
    """Returns the blocks of a stack, named block_00, block_01, ..."""
    return [
        Block(
            plan.config,
            kernel_init,
            dropout,
            plan.drop_path,
            dtype,
            plan.resized,
            name=f"block_{number:02d}",
        )
        for number, plan in enumerate(architecture.block_plans(config, drop_path))
    ]


def run(
    blocks: Sequence[Any],
    x_BLD: Array,
    key_B: Key | None,
    *between: Any,
    select: Select | None = None,
) -> list[Array]:
    """Returns the state x_BLD after every block.

    blocks: bound modules, called as block(x_BLD, *between, key_B, select). The keys of a
    block are `keys.fold(key_B, number)`, from 1. select: of the last block, see `residual`.
    """
    how = memory.current()
    if not blocks or blocks[0].is_initializing() or how == memory.NOTHING_SAVED:
        return _unrolled(blocks, x_BLD, key_B, *between, select=select)
    stored = [name for name in _STORED if blocks[0].is_mutable_collection(name)]

    def through(params: list[Any], x_BLD: Array) -> tuple[list[Array], list[Any]]:
        states: list[Array] = [x_BLD]
        found: list[Any] = []
        for start, group in _groups(blocks, select is not None):
            own = params[start : start + len(group)]
            last = select if start + len(group) == len(blocks) else None
            call = _call(group[0], stored, key_B, *between, select=last)
            walk = _loop if how.scan and len(group) > 1 else _one_by_one
            more, kept = walk(call, group, own, start, states[-1])
            states, found = states + more, found + kept
        return states[1:], found

    _, _, whole = memory.REMAT[how.remat]
    through = jax.checkpoint(through) if whole else through
    states, found = through([block.variables["params"] for block in blocks], x_BLD)
    for block, kept in zip(blocks, found, strict=True):
        _store(block, kept)
    return states


def _unrolled(
    blocks: Sequence[Any],
    x_BLD: Array,
    key_B: Key | None,
    *between: Any,
    select: Select | None,
) -> list[Array]:
    states = []
    for number, block in enumerate(blocks, start=1):
        last = select if number == len(blocks) else None
        x_BLD = block(x_BLD, *between, layers.fold_or_none(key_B, number), last)
        states.append(x_BLD)
    return states


def _groups(blocks: Sequence[Any], last_alone: bool) -> list[tuple[int, list[Any]]]:
    """Returns [(index of the first, consecutive blocks that differ in VARYING alone)].

    last_alone: whether the last block is a group of its own.
    """

    def kind(numbered: tuple[int, Any]) -> tuple[Any, ...]:
        number, block = numbered
        alone = last_alone and number == len(blocks) - 1
        # Blocks with other parameters, as the first one of ModernBERT, are no part of it.
        form = jax.tree.structure(block.variables["params"])
        return block.config, block.dropout, block.resized, alone, form

    groups = []
    for _, members in itertools.groupby(enumerate(blocks), kind):
        numbers, group = zip(*members, strict=True)
        groups.append((numbers[0], list(group)))
    return groups


def _call(
    block: Any,
    stored: list[str],
    key_B: Key | None,
    *between: Any,
    select: Select | None,
) -> Any:
    """Returns (params, number, fields of the block, x_BLD) -> (x_BLD, what is stored)."""
    # Without its name and parent: a module on its own, whose parameters are arguments.
    alone = block.clone(parent=None, name=None)

    def call(params: Any, number: Any, own: Any, x_BLD: Array) -> tuple[Array, Any]:
        key = layers.fold_or_none(key_B, number)
        one = alone.clone(**own)
        arguments = (x_BLD, *between, key, select)
        return one.apply({"params": params}, *arguments, mutable=stored)

    return call


def _one_by_one(
    call: Any, group: list[Any], params: list[Any], start: int, x_BLD: Array
) -> tuple[list[Array], list[Any]]:
    states, found = [], []
    for number, (block, own) in enumerate(zip(group, params, strict=True), start + 1):
        fields = _fields(block)

        def step(own: Any, x_BLD: Array, number=number, fields=fields):
            return call(own, number, fields, x_BLD)

        x_BLD, kept = memory.remat(step, in_loop=False)(own, x_BLD)
        states.append(x_BLD)
        found.append(kept)
    return states, found


def _loop(
    call: Any, group: list[Any], params: list[Any], start: int, x_BLD: Array
) -> tuple[list[Array], list[Any]]:
    count = len(group)
    stacked = placement.stack(params)
    number_N = jnp.arange(start + 1, start + 1 + count, dtype=jnp.uint32)
    fields_N, same = _stack_fields(group)

    def step(own: Any, number: Array, fields: Any, x_BLD: Array) -> tuple[Array, Any]:
        return call(own, number, {**same, **fields}, x_BLD)

    recomputed = memory.remat(step, in_loop=True)

    def body(x_BLD: Array, layer: Any) -> tuple[Array, Any]:
        x_BLD, kept = recomputed(*layer, x_BLD)
        return x_BLD, (x_BLD, kept)

    _, (states, kept) = jax.lax.scan(body, x_BLD, (stacked, number_N, fields_N))
    each = [jax.tree.map(lambda leaf, n=n: leaf[n], kept) for n in range(count)]
    return [states[n] for n in range(count)], each


def _fields(block: Any) -> dict[str, Any]:
    return {name: getattr(block, name) for name in VARYING if hasattr(block, name)}


def _stack_fields(group: list[Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Returns ({field: array [N] of blocks that differ in it}, {field: value of all})."""
    each = [_fields(block) for block in group]
    same = {
        name: value
        for name, value in each[0].items()
        if all(one[name] == value for one in each)
    }
    differ = [name for name in each[0] if name not in same]
    stacked = {name: jnp.asarray([one[name] for one in each]) for name in differ}
    return stacked, same


def _store(block: Any, kept: Any) -> None:
    """Stores the collections of a block that ran on its own, as if it had run in place."""
    for collection, values in kept.items():
        for name, value in values.items():
            block.put_variable(collection, name, value)
