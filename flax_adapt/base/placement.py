"""Where activations lie on a mesh while a step is traced: one table, name -> PartitionSpec.

Parameters are stored in parts over "fsdp" (`train.sharding.RULES`), and so is the batch.
XLA's partitioner alone may split a matmul of the two by the parameter, and then keeps the
whole batch on every chip. So models and objectives name their arrays: `place` puts an
activation where ACTIVATIONS says, `gather` makes a parameter whole along "fsdp" right
where it is used, and its gradient is summed straight into the stored parts.

All of this happens within `using` alone, which the steps enter while they are traced.
Outside of it, and on one device, every function here returns its argument unchanged.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base import rules
from flax_adapt.base.types import Array

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that divide a batch
BATCH = PartitionSpec(ROWS)
# Pattern of an activation's name -> how it is divided. Axes that the spec leaves out, and
# those that the devices do not divide evenly, are left to the partitioner.
ACTIVATIONS = (
    # Images, masks, keys of examples, feature maps, pooled features: rows alone.
    (r"inputs|maps|pooled", BATCH),
    # The residual stream x_BLD is whole in L and D.
    (r"embeddings|states|predictions", PartitionSpec(ROWS, None, None)),
    # x_BLHK by heads, x_BLF by hidden units, logits_BMV by the vocabulary.
    (r"heads", PartitionSpec(ROWS, None, "tensor", None)),
    (r"hidden|logits", PartitionSpec(ROWS, None, "tensor")),
    # A batch [parts, B / parts, ...] that is run in parts.
    (r"parts", PartitionSpec(None, ROWS)),
    # Keys [B, D] that every query of a contrast is compared with, and the queue: whole.
    (r"compared", PartitionSpec(None, None)),
)


class Placement(NamedTuple):
    """A mesh of several devices, and the PartitionSpec of a stored parameter by its name."""

    mesh: Mesh
    stored: Callable[[str], PartitionSpec]


# The platform of the mesh in use, of one device too; None: JAX's default.
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "platform", default=None
)
_CURRENT: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "placement", default=None
)


@contextlib.contextmanager
def using(mesh: Mesh, stored: Callable[[str], PartitionSpec]) -> Iterator[None]:
    """Places activations on `mesh` in what is traced within; nothing on one device.

    stored: name of a parameter -> its spec, that of nothing divided for an unknown name.
    """
    token = _CURRENT.set(Placement(mesh, stored) if mesh.size > 1 else None)
    platform = _PLATFORM.set(mesh.devices.flat[0].platform)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        _PLATFORM.reset(platform)


def platform() -> str:
    """Returns the platform that is traced for: "cpu", "gpu" or "tpu".

    It is that of the mesh in use, which may be of hardware that is not there; outside of
    `using` the default one of JAX.
    """
    return _PLATFORM.get() or jax.default_backend()


def is_active() -> bool:
    """Returns whether arrays are placed: a mesh of several devices is in use."""
    return _CURRENT.get() is not None


def num_parts(axes: Any, mesh: Mesh) -> int:
    """Returns into how many parts one entry of a PartitionSpec divides a dimension."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def fit(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, otherwise: Any = None
) -> PartitionSpec:
    """Returns `spec` of an array, with `otherwise` for what it cannot divide evenly."""
    fits = [
        axes if size % num_parts(axes, mesh) == 0 else otherwise
        for axes, size in zip(spec, shape, strict=False)
    ]
    return PartitionSpec(*fits)


def place(name: str, tree: Any) -> Any:
    """Returns arrays of one kind of activation, placed as ACTIVATIONS says of its name.

    Raises KeyError for a name that the table lacks.
    """
    spec = _spec(name)
    return jax.tree.map(functools.partial(_constrain, spec), tree)


def _spec(name: str) -> PartitionSpec:
    spec: PartitionSpec | None = rules.first(ACTIVATIONS, name, None)
    if spec is None:
        raise KeyError(f"placement.ACTIVATIONS has no {name!r}")
    return spec


def _constrain(spec: PartitionSpec, x: Array) -> Array:
    current = _CURRENT.get()
    if current is None:
        return x
    free = PartitionSpec.UNCONSTRAINED
    fitted = fit(spec, x.shape, current.mesh, otherwise=free)
    fitted = PartitionSpec(*fitted, *[free] * (x.ndim - len(fitted)))
    if all(axes is free for axes in fitted):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(current.mesh, fitted))


def divides(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether the mesh in use divides an activation of this shape evenly.

    False outside of `using`, where nobody says which devices the program is for.
    """
    current = _CURRENT.get()
    if current is None:
        return _PLATFORM.get() is not None
    return fit(_spec(name), shape, current.mesh) == _spec(name)


def on_parts(run: Callable[..., Array], names: Sequence[str], *arrays: Array) -> Array:
    """Returns run(*arrays), which every device computes of its own parts of the arrays.

    For kernels, which XLA cannot divide. names: of the activations `arrays`, each of which
    `divides`; the result is divided as the first one.
    """
    current = _CURRENT.get()
    if current is None:
        return run(*arrays)
    specs = tuple(map(_spec, names))
    how: dict[str, Any] = dict(mesh=current.mesh, in_specs=specs, out_specs=specs[0])
    parted: Array = jax.shard_map(run, check_vma=False, **how)(*arrays)
    return parted


def stack(trees: list[Any]) -> Any:
    """Returns parameters of several blocks as one tree of leaves with a first axis.

    The leaves are divided as those of one block are, each block's part where it was.
    """
    paths = jax.tree.unflatten(jax.tree.structure(trees[0]), rules.names(trees[0]))
    return jax.tree.map(_stack_leaves, paths, *trees)


def _stack_leaves(name: str, *leaves: Array) -> Array:
    stacked, current = jnp.stack(leaves), _CURRENT.get()
    if current is None:
        return stacked
    spec = fit(current.stored(name), leaves[0].shape, current.mesh)
    placed = NamedSharding(current.mesh, PartitionSpec(None, *spec))
    return jax.lax.with_sharding_constraint(stacked, placed)


def as_used(name: str, kernel: Array) -> Array:
    """Returns a stored parameter, whole along "fsdp"; `tensor` still divides it.

    Its transpose would place the gradient as the parameter is used: see `gather`.
    """
    return _place_parameter(name, kernel, without=("fsdp",))


def as_stored(name: str, gradient: Array) -> Array:
    """Returns the gradient of a parameter, divided as the parameter is stored.

    First it is placed as the parameter is used. Without that the partitioner may compute
    one part of the gradient on each chip, for which it gathers the rows of the whole
    batch. XLA makes one reduce-scatter of the sum and the slice for GPUs; for TPUs (libtpu
    0.0.42) it keeps both, as it does for `psum_scatter`: see benchmarks/results/plan.md.
    """
    return _place_parameter(name, as_used(name, gradient), without=())


def _place_parameter(name: str, leaf: Array, without: tuple[str, ...]) -> Array:
    current = _CURRENT.get()
    if current is None:
        return leaf
    spec = fit(current.stored(name), leaf.shape, current.mesh)
    spec = PartitionSpec(*(None if axes in without else axes for axes in spec))
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(current.mesh, spec))


def gather(name: str, kernel: Array) -> Array:
    """Returns the parameter as it is used; its gradient is divided as it is stored."""
    return _gather(name, kernel) if is_active() else kernel


def on_gathered(name: str, run: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `run(x, kernel, ...)` on the gathered kernel: see `gather`."""

    def whole(x: Array, kernel: Array, *how: Any, **named: Any) -> Array:
        return run(x, gather(name, kernel), *how, **named)

    return whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(name: str, kernel: Array) -> Array:
    return as_used(name, kernel)


def _gather_forward(name: str, kernel: Array) -> tuple[Array, None]:
    return as_used(name, kernel), None


def _gather_backward(name: str, kept: None, slope: Array) -> tuple[Array]:
    return (as_stored(name, slope),)


_gather.defvjp(_gather_forward, _gather_backward)
