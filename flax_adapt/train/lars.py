"""LARS, the optimizer of linear probes (You et al. 2017)."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params


def check(config: Any) -> None:
    """Raises UserError for a section `optim.lars` that cannot be."""
    momentum, trust = config.momentum, config.trust
    if not (0 <= momentum < 1 and 0 < trust <= 1):
        raise UserError(
            f"optim.lars: momentum={momentum} must lie in [0, 1), trust={trust} in (0, 1]"
        )


def lars(
    config: Any, schedule: optax.Schedule, decays: Callable[[Params], Any]
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate scaling, as in MAE (He et al. 2022, official code).

    `config`: optim section; lars has momentum, trust. With lr of the schedule, u = 0:

        g <- g + weight_decay * theta          of leaves that `decays` names
        g <- g * trust * |theta| / |g|         of matrices, unless one norm is 0
        u <- momentum * u + g
        theta <- theta - lr * u

    optax.lars has lr inside of u, which differs where lr changes.
    """
    scale = optax.scale_by_trust_ratio(trust_coefficient=config.lars.trust)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.masked(scale, lambda params: jax.tree.map(_is_matrix, params)),
        optax.trace(config.lars.momentum),
        optax.scale_by_learning_rate(schedule),
    )


def _is_matrix(leaf: Any) -> bool:
    return leaf.ndim > 1
