"""The diagonal of the Fisher information: how much the likelihood depends on a parameter.

Elastic weight consolidation weighs its penalty by it (Kirkpatrick et al. 2017). It is
computed from the exact gradient of every example, and stored in a safetensors file. The
likelihood is that of a classifier, or without labels that of a masked model (`of_loss`).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base import keys, placement, rules
from flax_adapt.base.checks import Check, Row, one_of, present
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Batch, Key, LossFn, Params
from flax_adapt.train import sharding
from flax_adapt.weights import strict
from flax_adapt.weights.files import safetensors as safetensors_file
from flax_adapt.weights.files import writing

FILE = "fisher.safetensors"
_TINY = np.finfo(np.float32).tiny
_LABEL = 0xF15  # folded into the PRNG key of drawn labels and masks

# Which label the likelihood is of: the example's own ("empirical Fisher"), or one drawn
# from the model's prediction (the Fisher information itself).
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


# (parameters, a batch of one example, its key [1]) -> log-likelihood, a scalar.
Likelihood: TypeAlias = Callable[[Params, Batch, Key], Array]


def of_classes(
    model: nn.Module, prepare: Callable[[Batch], Any], labels: str
) -> Likelihood:
    """Returns the log-likelihood log p(label | example) of a classifier, without dropout.

    prepare: batch -> inputs of the model. labels: a key of LABELS.
    """

    def log_likelihood(params: Params, one: Batch, key_1: Key) -> Array:
        logits_N = model.apply({"params": params}, prepare(one), None)[0]
        drawn = jax.lax.stop_gradient(logits_N)
        chosen = LABELS[labels](drawn, one["label"][0], key_1[0])
        return jax.nn.log_softmax(logits_N)[chosen]

    return log_likelihood


def of_loss(loss_fn: LossFn) -> Likelihood:
    """Returns the negative loss of an example, for a masked model log p(hidden | visible).

    For masked tokens it is exactly that, divided by their number. For pixels it is that of
    a normal error of variance 1/2, divided by the number of hidden pixels, up to a constant.
    One mask per example is drawn from its key. Ours: the published online EWC (Schwarz et
    al. 2018) is of policies and classifiers.
    """
    return lambda params, one, key_1: -loss_fn(params, {}, one, key_1)[0]


def estimate(
    likelihood: Likelihood,
    params: Params,
    batches: Iterable[Batch],
    *,
    seed: int,
    mesh: Mesh,
) -> Params:
    """Returns F, float32, a tree like `params`: the mean over the examples of

        (d log p(example) / d parameter)^2

    batches: numpy arrays of this process; examples of weight 0 do not count. Raises
    UserError if no example counts.
    """
    laid_out = sharding.tree_shardings(params, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    zeros = jax.jit(_zeros_like, out_shardings=laid_out)
    add = jax.jit(_make_adder(likelihood, mesh), out_shardings=(laid_out, everywhere))
    total, count = zeros(params), 0.0
    for batch in batches:
        placed = sharding.put_batch(batch, mesh)
        total, number = add(total, params, placed, seed)
        count += float(number)
    if not count:
        raise UserError("fisher: none of the examples counts: all are undecodable")
    return jax.tree.map(lambda leaf: leaf / count, total)


def _zeros_like(params: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, params)


@functools.lru_cache(8)  # the same function for the same likelihood: it compiles once
def _make_adder(
    likelihood: Likelihood, mesh: Mesh
) -> Callable[..., tuple[Params, Array]]:
    """Returns (total, params, batch, seed) -> (total + squares, number of examples)."""

    def gradient(params: Params, example: Batch, key: Key) -> Params:
        one, key_1 = jax.tree.map(lambda leaf: leaf[None], (example, key))
        return jax.grad(likelihood)(params, one, key_1)

    gradients = jax.vmap(gradient, (None, 0, 0))

    def add(total: Params, params: Params, batch: Batch, seed: Any):
        key = jax.random.fold_in(jax.random.key(seed), _LABEL)
        key_B = keys.example_keys(key, batch["index"])
        with sharding.placing(mesh):
            # Each device has the whole gradients of its own examples.
            whole = rules.map_named(placement.as_used, params)
            rows = placement.place("inputs", (batch, key_B))
        grads = gradients(whole, *rows)
        with sharding.placing(mesh):
            grads = placement.place("inputs", grads)
        weight_B = batch["weight"]

        def sum_squares(leaf: Array, grad: Array) -> Array:
            return leaf + jnp.tensordot(weight_B, jnp.square(grad), axes=1)

        return jax.tree.map(sum_squares, total, grads), jnp.sum(weight_B)

    return add


def add_decayed(new: Params, old: Mapping[str, Any], decay: float) -> Params:
    """Returns decay * old + new (online EWC, Schwarz et al. 2018).

    new: a tree. old: {name: leaf} of an earlier task, {} for none. Its leaves that the new
    model does not have, or has in another shape, are left out.
    """
    leaves = strict.flatten(new)
    for name in shared_names(leaves, old):
        leaves[name] = decay * np.asarray(old[name]) + np.asarray(leaves[name])
    return strict.unflatten(leaves)


def join_penalties(
    parts: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the penalties of several tasks as one, {"fisher": {name: F}, "center": ...}.

    parts: such a dict of each task. Up to a constant, sum_t F_t (theta - theta_t)^2 is
    F (theta - center)^2 with F = sum_t F_t and center = sum_t F_t theta_t / F. Where F is
    0, center is the last theta_t. F 1 and 3 around 2 and 6: 4 around 5.
    """
    sums: dict[str, np.ndarray] = {}
    centers: dict[str, np.ndarray] = {}
    for part in parts:
        for name, leaf in part["fisher"].items():
            new, center = np.asarray(leaf), np.asarray(part["center"][name])
            before = sums.get(name, np.zeros_like(new))
            sums[name] = before + new
            share = np.where(sums[name] > 0, new / np.maximum(sums[name], _TINY), 1)
            old = centers.get(name, center)
            centers[name] = (old + share * (center - old)).astype(center.dtype)
    return {"fisher": sums, "center": centers}


def shared_names(leaves: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Returns the names of the leaves that both have in the same shape."""
    return [k for k in leaves if k in others and leaves[k].shape == others[k].shape]


def save(path: Path, tree: Params) -> None:
    """Writes all leaves by name to a safetensors file, float32, as a whole or not at all."""
    leaves = strict.flatten(tree)

    def tensors():
        for name in sorted(leaves):
            yield name, np.asarray(leaves[name], np.float32)

    writing.write_file(path, tensors, writing.save_safetensors)


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns {name: leaf} of a file of `save`; raises UserError for any fault of it."""
    with safetensors_file.open_tensors(path) as found:
        leaves = {name: tensor.get() for name, tensor in found.items()}
    for name, leaf in leaves.items():
        if not np.all(np.isfinite(leaf)) or np.min(leaf, initial=0) < 0:
            raise UserError(f"{path}: {name} has numbers that are no mean of squares")
    return leaves
