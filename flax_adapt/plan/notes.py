"""Warnings of a plan: what lies whole on every chip, and sizes that pad badly."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from flax_adapt.base import rules
from flax_adapt.models import masking
from flax_adapt.plan import hlo
from flax_adapt.plan.topology import GIB, Topology
from flax_adapt.stage.shapes import Described

# From these sizes on a copy on every chip is worth a warning.
_BATCH_BYTES, _PARAMETER_BYTES = 16 * 2**20, 4 * 2**20
_FILLED = 0.8  # a share of the lanes below it is worth a warning
_MOST = 3


def list_warnings(
    described: Described, module: hlo.Module | None, topology: Topology
) -> list[str]:
    """Returns sentences; module: the compiled program, None where it did not fit."""
    found = [*_copied(described), *_padded(described, topology)]
    if module is not None:
        found = [*_whole_batch(described, module), *found]
    return found


def _shards(described: Described, *axes: str) -> int:
    mesh = described.batch["position"].sharding.mesh
    return math.prod(mesh.shape[axis] for axis in axes)


def token_counts(described: Described) -> tuple[int, ...]:
    """Returns the numbers of tokens of an example that the model has states of."""
    config, section = described.model.config, described.stage.config
    objective = section.objective.get("masked", section.objective)
    if described.model.modality == "text":
        length = section.data.seq_len
        share = objective.get("max_masked_fraction", None)
        return (length, *([masking.max_hidden(length, share)] if share else []))
    if not hasattr(config, "num_patches"):
        return ()
    patches = config.num_patches
    hidden = objective.get("hidden_ratio", None)
    visible = [] if hidden is None else [masking.num_visible(patches, hidden)]
    return tuple(n for count in (*visible, patches) for n in (count, count + 1))


def _whole_batch(described: Described, module: hlo.Module) -> Iterator[str]:
    """Yields the largest arrays of one chip that have the global batch."""
    batch = described.stage.config.batch_size // described.program.accum_steps
    if _shards(described, "data", "fsdp") == 1:
        return
    has_batch = _batch_test(described, batch)
    found: dict[str, int] = {}
    for one, _, _ in hlo.walk(module):
        for shape in one.shapes:
            if shape.bytes >= _BATCH_BYTES and has_batch(shape.dims):
                found[f"{shape.dtype}{[*shape.dims]}"] = shape.bytes
    for text in sorted(found, key=lambda text: -found[text])[:_MOST]:
        yield (
            f"{text}, {found[text] / GIB:.2f} GiB, has the global batch of {batch} on "
            "every chip"
        )


def _batch_test(described: Described, batch: int) -> Callable[[tuple[int, ...]], bool]:
    """Returns sizes -> whether an array of them has the global batch of examples or tokens.

    A batch that is also a size of the model tells nothing by itself, but beside the tokens
    of an example.
    """
    tokens = {*token_counts(described)}
    own = batch // _shards(described, "data", "fsdp")
    leaves = jax.tree.leaves(described.state.params)
    of_model = {size for leaf in leaves for size in leaf.shape}
    plain = {batch, *(batch * length for length in tokens)} - of_model

    def has_batch(sizes: tuple[int, ...]) -> bool:
        both = batch in sizes and bool(tokens & {*sizes}) and own not in sizes
        return both or bool(plain & {*sizes})

    return has_batch


def _copied(described: Described) -> Iterator[str]:
    """Yields the large parameters that are not split, where a mesh splits parameters."""
    if _shards(described, "fsdp", "tensor") == 1:
        total = sum(_bytes(leaf) for leaf in jax.tree.leaves(described.state))
        if _shards(described, "data") > 1 and total > GIB:
            yield (
                f"parameters and optimizer, {total / GIB:.2f} GiB, are copied to every "
                "chip: mesh.fsdp splits them"
            )
        return
    for name, leaf in rules.name_leaves(described.state.params).items():
        if _bytes(leaf) >= _PARAMETER_BYTES and leaf.sharding.is_fully_replicated:
            size = _bytes(leaf) / 2**20
            yield f"{name} {[*leaf.shape]}, {size:.0f} MiB, is copied to every chip"


def _bytes(leaf: Any) -> int:
    return int(leaf.size * leaf.dtype.itemsize)


def _padded(described: Described, topology: Topology) -> Iterator[str]:
    """Yields sizes of which the lanes of the chip's matrix unit are filled badly."""
    lanes = topology.chip.lanes
    for name, size in product_sizes(described).items():
        share = size / (-(-size // lanes) * lanes)
        if share < _FILLED:
            yield (
                f"{name}={size} fills {share:.0%} of the {lanes} lanes of a {topology.kind}"
            )


def product_sizes(described: Described) -> dict[str, int]:
    """Returns the sizes that matrix products have, by name, as a chip has them."""
    tensor = _shards(described, "tensor")
    parts = {"": described.model.config}
    decoder = getattr(described.model, "decoder_config", None)
    if decoder is not None:
        parts["decoder "] = decoder
    found: dict[str, int] = {}
    for part, config in parts.items():
        if not hasattr(config, "heads"):
            continue
        found[f"{part}head_dim"] = config.width // config.heads
        found[f"{part}width"] = config.width
        found[f"{part}mlp_dim a chip"] = config.mlp_dim // tensor
    longest = max(token_counts(described), default=0)
    return {**found, **({"tokens of an example": longest} if longest else {})}
