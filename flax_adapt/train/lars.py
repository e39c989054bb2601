"""LARS, the optimizer of linear probes (You et al. 2017)."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from flax_adapt.base.checks import Check, Row
from flax_adapt.base.types import Params


def _has_range(lars: Any) -> bool:
    return 0 <= lars.momentum < 1 and 0 < lars.trust <= 1


# Rules of a section `optim`.
ROWS = (
    Row(
        lambda optim: optim.lars is None or _has_range(optim.lars),
        "optim.lars: momentum={0.lars.momentum} must lie in [0, 1), trust={0.lars.trust} in "
        "(0, 1]",
    ),
)
CHECKS = (Check(lambda at: [at.section.optim], ROWS),)


def lars(
    config: Any, schedule: optax.Schedule, decays: Callable[[Params], Any]
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate scaling, as in MAE (He et al. 2022, official code).

    `config`: optim section; lars has momentum, trust. With lr of the schedule, u = 0:

        g <- g + weight_decay * theta          for leaves where `decays` is true
        g <- g * trust * |theta| / |g|         for matrices, unless one norm is 0
        u <- momentum * u + g
        theta <- theta - lr * u

    optax.lars multiplies by lr before the momentum, which differs where lr changes.
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
