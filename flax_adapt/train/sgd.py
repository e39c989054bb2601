"""Stochastic gradient descent with momentum, as torch.optim.SGD computes it."""

from collections.abc import Callable
from typing import Any

import optax

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params


def check(config: Any) -> None:
    """Raises UserError for a section `optim.sgd` that cannot be."""
    momentum, nesterov = config.momentum, config.nesterov
    if not 0 <= momentum < 1:
        raise UserError(f"optim.sgd: momentum={momentum} must lie in [0, 1)")
    if nesterov and momentum == 0:
        raise UserError("optim.sgd: nesterov=True needs a momentum above 0")


def sgd(
    config: Any, schedule: optax.Schedule, decays: Callable[[Params], Any]
) -> optax.GradientTransformation:
    """SGD with coupled weight decay (torch.optim.SGD, dampening 0).

    `config`: optim section; sgd has momentum, nesterov. With lr of the schedule, u = 0:

        g <- g + weight_decay * theta          of leaves that `decays` names
        u <- momentum * u + g
        theta <- theta - lr * u                nesterov: lr * (g + momentum * u)

    The decay goes through the momentum, and the learning rate stays outside of it.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.trace(config.sgd.momentum, nesterov=config.sgd.nesterov),
        optax.scale_by_learning_rate(schedule),
    )
