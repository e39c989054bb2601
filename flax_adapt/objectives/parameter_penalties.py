"""Penalties on what parameters are: how far they went, by leaves and by importance.

The same in every part of a batch: a mean over one thing, with count 1. The parts then
add up to the penalty itself (`metrics.Loss`).
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


def _once(value: Array) -> Mean:
    """A penalty on the parameters: it does not depend on the examples."""
    return Mean(value, jnp.float32(1))


def square_distance(params: Params, start: Params, names: Collection[str]) -> Array:
    """Returns the sum of (w - w0)^2 over the leaves named. (1, 2) and (3, 5): 13."""
    ours, theirs = rules.named(params), rules.named(start)
    parts = [jnp.sum(jnp.square(ours[name] - theirs[name])) for name in sorted(names)]
    return sum(parts, start=jnp.float32(0))


def _known(params: Params, fresh: Collection[str]) -> list[str]:
    return [name for name in rules.names(params) if name not in fresh]


def weight_distance(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """sum (w - w0)^2 over all leaves but new ones, w0 = `frozen["start"]`.

    The ablation of S1 that holds on to the start in place of distillation (ours in what
    it sums over: METHODS).
    """
    del config, model

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        return _once(square_distance(params, frozen[START], _known(params, fresh)))

    return penalty


def l2_sp(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """alpha / 2 sum (w - w0)^2 + beta / 2 sum w^2 (Li et al. 2018).

    The first sum is over leaves that the stage starts with, the second over those that
    are new. `config`: alpha, beta.
    """
    del model

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        known = square_distance(params, frozen[START], _known(params, fresh))
        leaves = rules.named(params)
        new = [jnp.sum(jnp.square(leaves[name])) for name in leaves if name in fresh]
        total = sum(new, start=jnp.float32(0))
        return _once(config.alpha / 2 * known + config.beta / 2 * total)

    return penalty


def ewc(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """sum F (theta - theta*)^2 (Kirkpatrick et al. 2017; METHODS has no 1/2).

    `frozen["ewc"]`: "fisher" and "center", trees of the leaves that are held. F is the
    mean square of the gradient of the log-likelihood of one example (`fisher`). Of
    several tasks: the sum of their penalties less its minimum (`fisher.together`).
    """
    del config, model, fresh

    def penalty(params, frozen, batch, key_B):
        del batch, key_B
        ours = rules.named(params)
        held = (rules.named(frozen[EWC][name]) for name in ("fisher", "center"))
        fisher, center = held
        parts = [
            jnp.sum(fisher[name] * jnp.square(ours[name] - center[name]))
            for name in fisher
        ]
        return _once(sum(parts, start=jnp.float32(0)))

    return penalty
