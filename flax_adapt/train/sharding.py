"""Sharding: one mesh ("data", "fsdp", "tensor") and one table, regex -> PartitionSpec."""

import contextlib
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base import placement, rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.placement import AXES, BATCH
from flax_adapt.base.types import Batch

# Parameters and their optimizer moments have names with the same end, so one table is for
# both.
RULES = (
    (r".*/(query|key|value|up|gate)/kernel", PartitionSpec("fsdp", "tensor")),
    (r".*/(out|down|shortcut|linear)/kernel", PartitionSpec("tensor", "fsdp")),
    (r".*/patch_embed/kernel", PartitionSpec(None, "fsdp")),
    # Convolutions [Y, X, in, out].
    (r".*/conv[123]?/kernel", PartitionSpec(None, None, None, "fsdp")),
    # The vocabulary is the long side of the embedding, and of the logits made with it.
    (r".*/embed/token", PartitionSpec("tensor", "fsdp")),
    (
        r".*(decoder/embed|embed/project|predict|pooler|head|head_dist|transform)/kernel",
        PartitionSpec("fsdp", None),
    ),
    (r"(.*/)?(projector|predictor)/layer_\d+/kernel", PartitionSpec("fsdp", None)),
    # Adaptors of values, which are split by heads over "tensor" before and after. Not over
    # "fsdp": jaxlib 0.10.2 on CPUs then gets a D x D product wrong where the parts of an
    # accumulated batch have one row a device (a test compares).
    (r"(.*/)?adaptor/(channel_mixing|squeeze)", PartitionSpec("tensor", None)),
    (r"(.*/)?adaptor/widen", PartitionSpec(None, "tensor")),
    (r"(.*/)?adaptor/[^/]+(scale|shift)|(.*/)?adaptor/head_mixing", PartitionSpec()),
    # Low-rank adaptors (`surgery.lora`): the long side is split as that of their kernel.
    (r"(.*/)?lora/.*/(query|key|value|up|gate)/a", PartitionSpec("fsdp", None)),
    (r"(.*/)?lora/.*/(query|key|value|up|gate)/b", PartitionSpec(None, "tensor")),
    (r"(.*/)?lora/.*/(out|down)/a", PartitionSpec("tensor", None)),
    (r"(.*/)?lora/.*/(out|down)/b", PartitionSpec(None, "fsdp")),
    # Keys of earlier steps (`objectives.contrast`): rows are split as those of a batch.
    (r"(.*/)?queue", BATCH),
    # Logits of all replayed rows (`objectives.prediction_penalties`).
    (r"(.*/)?der/(logits|first)", PartitionSpec()),
    # States of a teacher, of all examples (`objectives.teacher`).
    (r"(.*/)?teacher_states/\d+", PartitionSpec()),
    (r".*/(bias|scale|\w+_token|position|token_type)", PartitionSpec()),
    (r"(.*/)?batch_stats/.*/(mean|var)", PartitionSpec()),
    (r"(.*/)?(step|count|seed)", PartitionSpec()),
)


def make_mesh(config: Any, devices: Any = None) -> Mesh:
    """Returns the mesh of `devices`, by default all, with the axes of AXES.

    `config`: data, fsdp, tensor, the sizes of the axes; one of them may be -1: all
    remaining devices. Raises UserError unless the sizes multiply to the number of devices.
    """
    devices = _by_process() if devices is None else devices
    sizes = [config[axis] for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // max(known, 1)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        asked = ", ".join(f"{axis}={config[axis]}" for axis in AXES)
        raise UserError(f"mesh: {asked} does not use {len(devices)} devices exactly")
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def _by_process() -> list[jax.Device]:
    """Returns all devices by process, so that each process feeds consecutive rows."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def share_of_process(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process feeds part `index` of `count` of a global batch.

    Processes that share the axis "tensor" feed the same part. Raises UserError unless its
    size divides the devices of a process or is a multiple of them.
    """
    tensor, local = mesh.shape["tensor"], len(mesh.local_devices)
    if tensor % local and local % tensor:
        raise UserError(
            f"mesh: tensor={tensor} must divide the {local} devices of a process, or be "
            "a multiple of them"
        )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((shards,))
    held = {rows[0].start or 0 for rows in places.values() if rows is not None}
    return min(held) // len(held), shards // len(held)


def all_devices() -> Mesh:
    """Returns the mesh of all devices of all processes, for work without a config's mesh.

    The batch is split over it; parameters are whole on every device.
    """
    return make_mesh(dict(data=-1, fsdp=1, tensor=1))


def whole_on_every_device(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of results that every process reads whole."""
    return NamedSharding(mesh, PartitionSpec())


def one_device() -> Mesh:
    """Returns a mesh of the first local device, for work that is too small to be sharded."""
    return Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1, 1), AXES)


@functools.cache
def _stored(name: str) -> PartitionSpec:
    """Returns the spec of one parameter, that of nothing divided for an unknown name."""
    spec: PartitionSpec = rules.first(RULES, name, PartitionSpec())
    return spec


def placing(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which a step on `mesh` is traced: see `base.placement`."""
    return placement.using(mesh, _stored)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every leaf of params or of a TrainState, by RULES."""
    specs = rules.assign("sharding.RULES", RULES, tree)
    return jax.tree.map(
        lambda spec, leaf: NamedSharding(
            mesh, placement.fit(spec, np.shape(leaf), mesh)
        ),
        specs,
        tree,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def describe(tree: Any, mesh: Mesh) -> Any:
    """Returns `jax.ShapeDtypeStruct`s of a tree of arrays or shapes, sharded by RULES."""
    return jax.tree.map(
        lambda leaf, laid_out: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=laid_out
        ),
        *(tree, tree_shardings(tree, mesh)),
    )


def describe_batch(batch: Any, mesh: Mesh) -> Batch:
    """Returns the shapes of a global batch, split over ("data", "fsdp") as by `put_batch`."""
    placed = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=placed),
        batch,
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """Returns copies of host arrays (the same on every process), sharded by RULES."""
    shardings = tree_shardings(tree, mesh)
    if jax.process_count() == 1:
        # By way of a copy on the host: `may_alias=False` still aliases the source where
        # there are several devices, and donation would then delete it.
        return jax.tree.map(
            lambda leaf, sharding: jax.device_put(np.array(leaf), sharding),
            *(tree, shardings),
        )

    def place(leaf, sharding):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: np.array(host[index])
        )

    # device_put would gather every leaf from all processes, only to compare them.
    return jax.tree.map(place, tree, shardings)


def check_batch_size(batch_size: int, accum_steps: int, mesh: Mesh) -> None:
    """Raises UserError unless each of `accum_steps` parts of a batch can be sharded evenly."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accum_steps):
        raise UserError(
            f"batch_size={batch_size} must be a multiple of data x fsdp = {shards} "
            f"devices times accum_steps={accum_steps}"
        )


def whole_batch_size(batch_size: int, mesh: Mesh) -> int:
    """Returns the smallest multiple of data x fsdp devices from `batch_size` on."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // shards) * shards


def put_batch(batch: Any, mesh: Mesh) -> Batch:
    """Returns one global batch of the rows of all processes, split over ("data", "fsdp")."""
    placed = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(placed, rows), batch
    )
