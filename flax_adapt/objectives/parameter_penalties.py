"""Penalties on parameters: on their distance to initial values, plain or by importance.

A penalty has the same value in every part of a batch. It is a `Mean` with count 1, so that
the parts add up to the penalty itself (`metrics.Loss`). All functions that build one take
the section of the penalty, the model, and the names of the leaves that are new in the stage.
"""

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import rules
from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import Array, Batch, Key, Params

# (params, frozen, batch, key_B) -> Mean
Penalty: TypeAlias = Callable[[Params, Params, Batch, Key], Mean]
START, EWC = "start", "ewc"


def _count_once(value: Array) -> Mean:
    """Returns a value that does not depend on the examples as a mean with count 1."""
    return Mean(value, jnp.float32(1))


def square_distance(params: Params, start: Params, names: Collection[str]) -> Array:
    """Returns the sum of (w - w0)^2 over the leaves `names`. (1, 2) and (3, 5): 13."""
    ours, theirs = rules.name_leaves(params), rules.name_leaves(start)
    parts = [jnp.sum(jnp.square(ours[name] - theirs[name])) for name in sorted(names)]
    return sum(parts, start=jnp.float32(0))


def _pretrained_names(params: Params, fresh: Collection[str]) -> list[str]:
    return [name for name in rules.names(params) if name not in fresh]


def weight_distance(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty sum (w - w0)^2 over all leaves but new ones, w0 = `frozen["start"]`.

    An ablation of S1: it keeps the weights near the initial ones in place of distillation
    (ours in the leaves that it sums over: METHODS).
    """
    del config, model

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        return _count_once(
            square_distance(params, frozen[START], _pretrained_names(params, fresh))
        )

    return penalty


def l2_sp(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty alpha / 2 sum (w - w0)^2 + beta / 2 sum w^2 (Li et al. 2018).

    The first sum is over leaves with loaded initial weights, w0 = `frozen["start"]`, the
    second over new leaves. `config`: alpha, beta.
    """
    del model

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        known = square_distance(params, frozen[START], _pretrained_names(params, fresh))
        leaves = rules.name_leaves(params)
        new = [jnp.sum(jnp.square(leaves[name])) for name in leaves if name in fresh]
        total = sum(new, start=jnp.float32(0))
        return _count_once(config.alpha / 2 * known + config.beta / 2 * total)

    return penalty


def ewc(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty sum F (theta - theta*)^2 (Kirkpatrick et al. 2017).

    The paper has a factor of 1/2, left out here (ours). `frozen["ewc"]` holds "fisher", F,
    and "center", theta*, trees of the penalised leaves. F is the mean square of the
    gradient of the log-likelihood of one example (`fisher`). For several tasks the penalty
    is the sum of their penalties less its minimum (`fisher.join_penalties`).
    """
    del config, model, fresh

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        ours = rules.name_leaves(params)
        held = (rules.name_leaves(frozen[EWC][name]) for name in ("fisher", "center"))
        fisher, center = held
        parts = [
            jnp.sum(fisher[name] * jnp.square(ours[name] - center[name]))
            for name in fisher
        ]
        return _count_once(sum(parts, start=jnp.float32(0)))

    return penalty
