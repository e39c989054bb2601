"""How much a classifier's predictions depend on each parameter: the Fisher information.

Its diagonal, which elastic weight consolidation holds parameters by (Kirkpatrick et al.
2017), from the exact gradient of every example; and the file that keeps it.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base import keys
from flax_adapt.base.checks import Check, Row, one_of, present
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Batch, Key, Params
from flax_adapt.train import sharding
from flax_adapt.weights import strict
from flax_adapt.weights.files import safetensors as safetensors_file
from flax_adapt.weights.files import writing

FILE = "fisher.safetensors"
_LABEL = 0xF15  # the key of a drawn label meets no other of its example

# Whose label the likelihood is of: the example's own ("empirical Fisher"), or one that
# the model draws (the Fisher information itself).
LABELS: dict[str, Callable[[Array, Array, Key], Array]] = {
    "empirical": lambda logits_N, label, key: label,
    "model": lambda logits_N, label, key: jax.random.categorical(key, logits_N),
}


# Rules of a section `fisher`.
ROWS = (
    one_of("fisher.labels", lambda fisher: fisher.labels, LABELS),
    Row(
        lambda fisher: fisher.num_examples >= 0,
        "fisher.num_examples={0.num_examples} must be >= 0",
    ),
    Row(
        lambda fisher: fisher.batch_size >= 1,
        "fisher.batch_size={0.batch_size} must be at least 1",
    ),
    Row(
        lambda fisher: 0 <= fisher.decay <= 1,
        "fisher.decay={0.decay} must lie in [0, 1]",
    ),
)
CHECKS = (Check(lambda at: present(at.section.fisher), ROWS),)


def estimate(
    model: nn.Module,
    params: Params,
    batches: Iterable[Batch],
    prepare: Callable[[Batch], Any],
    *,
    labels: str,
    seed: int,
    mesh: Mesh,
) -> Params:
    """Returns the tree of F, float32: of every parameter the mean over the examples of

        (d log p(label | example) / d parameter)^2

    batches: of the host, weight 0: does not count. prepare(batch) makes the inputs of
    them that a classifier takes. labels: of LABELS. Nothing is dropped.
    """
    laid_out = sharding.tree_shardings(params, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    zeros = jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), out_shardings=laid_out)
    adding = _adding(model, prepare, labels)
    add = jax.jit(adding, out_shardings=(laid_out, everywhere))
    total, count = zeros(params), 0.0
    for batch in batches:
        placed = sharding.put_batch(batch, mesh)
        total, number = add(total, params, placed, seed)
        count += float(number)
    if not count:
        raise UserError("fisher: none of the examples counts: all are undecodable")
    return jax.tree.map(lambda leaf: leaf / count, total)


def _adding(
    model: nn.Module, prepare: Callable[[Batch], Any], labels: str
) -> Callable[..., tuple[Params, Array]]:
    """(total, params, batch, seed) -> (total and the squares of a batch, their number)."""

    def log_likelihood(params: Params, inputs: Any, label: Array, key: Key) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], inputs)
        logits_N = model.apply({"params": params}, one, None)[0]
        chosen = LABELS[labels](jax.lax.stop_gradient(logits_N), label, key)
        return jax.nn.log_softmax(logits_N)[chosen]

    gradients = jax.vmap(jax.grad(log_likelihood), (None, 0, 0, 0))

    def add(total: Params, params: Params, batch: Batch, seed: Any):
        key = jax.random.fold_in(jax.random.key(seed), _LABEL)
        key_B = keys.example_keys(key, batch["index"])
        grads = gradients(params, prepare(batch), batch["label"], key_B)
        weight_B = batch["weight"]

        def sum_squares(leaf: Array, grad: Array) -> Array:
            return leaf + jnp.tensordot(weight_B, jnp.square(grad), axes=1)

        return jax.tree.map(sum_squares, total, grads), jnp.sum(weight_B)

    return add


def online(new: Params, old: Mapping[str, Any], decay: float) -> Params:
    """Returns decay * old + new (online EWC, Schwarz et al. 2018).

    new: a tree. old: leaves by name of an earlier task, {} for none; those that the new
    model has not, or in another shape, are left out.
    """
    leaves = strict.flatten(new)
    for name in shared(leaves, old):
        leaves[name] = decay * np.asarray(old[name]) + np.asarray(leaves[name])
    return strict.unflatten(leaves)


def shared(leaves: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The names that both have, in the same shape."""
    return [k for k in leaves if k in others and leaves[k].shape == others[k].shape]


def save(path: Path, tree: Params) -> None:
    """Writes a safetensors file of all leaves by name, whole or not at all."""
    leaves = strict.flatten(tree)

    def tensors():
        for name in sorted(leaves):
            yield name, np.asarray(leaves[name], np.float32)

    writing.write_file(path, tensors, writing.save_safetensors)


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns what `save` wrote, by name; any fault of the file is a UserError."""
    with safetensors_file.opened(path) as found:
        leaves = {name: tensor.get() for name, tensor in found.items()}
    for name, leaf in leaves.items():
        if not np.all(np.isfinite(leaf)) or np.min(leaf, initial=0) < 0:
            raise UserError(f"{path}: {name} has numbers that are no mean of squares")
    return leaves
