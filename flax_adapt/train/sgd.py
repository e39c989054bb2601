"""Stochastic gradient descent with momentum, as torch.optim.SGD computes it."""

from collections.abc import Callable
from typing import Any

import optax

from flax_adapt.base.checks import Check, Row
from flax_adapt.base.types import Params

# Rules of a section `optim`.
ROWS = (
    Row(
        lambda optim: optim.sgd is None or 0 <= optim.sgd.momentum < 1,
        "optim.sgd: momentum={0.sgd.momentum} must lie in [0, 1)",
    ),
    Row(
        lambda optim: optim.sgd is None or optim.sgd.momentum or not optim.sgd.nesterov,
        "optim.sgd: nesterov=True needs a momentum above 0",
    ),
)
CHECKS = (Check(lambda at: [at.section.optim], ROWS),)


def sgd(
    config: Any, schedule: optax.Schedule, decays: Callable[[Params], Any]
) -> optax.GradientTransformation:
    """SGD with coupled weight decay (torch.optim.SGD, dampening 0).

    `config`: optim section; sgd has momentum, nesterov. With lr of the schedule, u = 0:

        g <- g + weight_decay * theta          for leaves where `decays` is true
        u <- momentum * u + g
        theta <- theta - lr * u                nesterov: lr * (g + momentum * u)

    The momentum includes the weight decay, but not the learning rate.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.trace(config.sgd.momentum, nesterov=config.sgd.nesterov),
        optax.scale_by_learning_rate(schedule),
    )
