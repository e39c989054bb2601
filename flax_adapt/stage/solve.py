"""A stage that trains only a linear head, by an exact solution on features computed once.

Its single step is the solution (`train.linear`). The stage is evaluated, stored and
exported like any other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import Array, Batch, Metrics, Params
from flax_adapt.models import batch_stats
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import programs
from flax_adapt.stage.stage import Stage
from flax_adapt.train import linear, optim, sharding
from flax_adapt.train import step as steps
from flax_adapt.train.state import TrainState

_HEAD = {"head/kernel", "head/bias"}


def make_step(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples, mesh: Mesh
) -> steps.TrainStep:
    """Returns `step(state, batch) -> (state, metrics)`, which puts the solved head into a state.

    The step reads all `examples`, not augmented, and ignores the batch. Raises UserError
    where `optim.freeze` does not freeze all other parameters.
    """
    section = stage.config.optim
    trains = rules.name_leaves(optim.trainable(section.freeze, params))
    more = sorted(
        name for name, trained in trains.items() if trained and name not in _HEAD
    )
    if more:
        raise UserError(
            f"stage {stage.label}: optim.solve finds the head alone, but optim.freeze "
            f"leaves {', '.join(more[:3])} to train"
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        del batch
        x_nD, labels_n = extract_features(stage, model, state.params, examples, mesh)
        solved = linear.fit(
            x_nD, labels_n, model.num_classes, section.solve, seed=stage.seed
        )
        return _with_head(state, solved, mesh), _metrics(solved, x_nD, labels_n)

    return step


def extract_features(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (features float32 [n, D], labels int32 [n]), the inputs and labels of the head.

    They are of every example that can be decoded, once, not augmented and without dropout.
    Every process gets all of them.
    """
    run = _share_encoder(model, programs.describe_inputs(stage.config.data), mesh)
    share = sharding.share_of_process(mesh)
    batches = data.eval_batches(examples, stage.config.batch_size, *share)
    found = [
        jax.device_get(run(params, sharding.put_batch(batch, mesh)))
        for batch in batches
    ]
    x_nD, label_n, weight_n = (
        np.concatenate(rows) for rows in zip(*found, strict=True)
    )
    return x_nD[weight_n > 0], label_n[weight_n > 0]


@functools.lru_cache(programs.KEPT)
def _share_encoder(
    model: nn.Module, inputs: str, mesh: Mesh
) -> Callable[[Params, Batch], tuple[Array, Array, Array]]:
    """Returns (params, batch) -> (features [B, D], labels [B], weights [B]), compiled once.

    inputs: `programs.describe_inputs` of the batches.
    """
    prepare = stage_fisher.inputs_of(model, configs.from_text(inputs))

    def encode(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        width = params["head"]["kernel"].shape[0]
        # With the identity for a head the logits are the features.
        plain = model.clone(num_classes=width, head_norm=False)
        head = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
        variables = {"params": {**params, "head": head}}
        with sharding.placing(mesh):
            x_BD = plain.apply(variables, prepare(batch), None)
        return x_BD, batch["label"], batch["weight"]

    return jax.jit(encode, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _with_head(
    state: TrainState, solved: linear.LinearSolution, mesh: Mesh
) -> TrainState:
    """Returns the state after the step, with the solver's mean and variance in batch norm."""
    leaves = {
        "head": {"kernel": solved.kernel, "bias": solved.bias},
        batch_stats.NAME: {"norm": {"mean": solved.mean, "var": solved.variance}},
    }
    leaves = jax.tree.map(np.float32, leaves)
    head, statistics = batch_stats.split(sharding.put(leaves, mesh))
    return state.replace(
        step=state.step + 1,
        params={**state.params, **head},
        extra={**state.extra, batch_stats.NAME: statistics},
    )


def _metrics(
    solved: linear.LinearSolution, x_nD: np.ndarray, labels_n: np.ndarray
) -> Metrics:
    """Returns loss and accuracy of the training examples, and the L2 penalty."""
    count = len(labels_n)
    right = np.sum(solved.logits(x_nD).argmax(axis=1) == labels_n)
    measured: dict[str, Any] = {
        "loss": Loss.of(_mean(solved.loss * count, count)),
        "accuracy": _mean(right, count),
        "l2": _mean(solved.l2, 1),
        steps.BAD_LEAF: _mean(-1, 1),
    }
    return measured


def _mean(total: float, count: int) -> Mean:
    return Mean(jnp.float32(total), jnp.float32(count))
