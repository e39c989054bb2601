"""Exponential moving averages of parameters, which are evaluated and exported (EMA weights).

A running average of the iterates generalises better than the last one (Polyak and
Juditsky 1992; in the exponential form Tarvainen and Valpola 2017, equation 1).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Row, one_of, present
from flax_adapt.base.types import AVERAGE, Array, Carry, Key, Params

# (momentum, share of the steps done) -> 1 - m, the weight of the new parameters.
SCHEDULES: dict[str, Callable[[float, Array], Any]] = {
    "constant": lambda momentum, done: 1 - momentum,
    # Chen et al. 2021, official code: m rises to 1.
    "cosine": lambda momentum, done: (1 - momentum) * (1 + jnp.cos(math.pi * done)) / 2,
}


# Rules of a section `ema`.
ROWS = (
    one_of("ema.schedule", lambda ema: ema.schedule, SCHEDULES),
    Row(
        lambda ema: 0 <= ema.momentum <= 1,
        "ema.momentum={0.momentum} must lie in [0, 1]",
    ),
)
CHECKS = (Check(lambda at: present(at.section.ema), ROWS),)


def move_towards(average: Params, params: Params, rate: Array | float) -> Params:
    """Returns the tree average + rate * (params - average). 2, 5 and rate 1/3: 3."""
    return jax.tree.map(
        lambda known, new: known + rate * (new - known), average, params
    )


def rate_at(config: Any, step: Array, num_steps: int) -> Array:
    """Returns 1 - m, the weight of the parameters after `step` (1, 2, ...) in the average.

    `config`: momentum, schedule, warmup. step: float32. With `warmup` m is
    (1 + step) / (10 + step) at most, as in timm and TensorFlow: the window of the average is
    then a ninth of the steps done, until that of `momentum` is shorter. Without warm-up the
    initial weights, a random head among them, are most of the average of a short stage.
    """
    rate = SCHEDULES[config.schedule](config.momentum, step / num_steps)
    rate = jnp.broadcast_to(rate, jnp.shape(step))  # a constant has no shape of its own
    return jnp.maximum(rate, 9 / (10 + step)) if config.warmup else rate


def share_of_start(config: Any, num_steps: int) -> float:
    """Returns the share of the initial weights in the average after `num_steps` steps.

    Momentum 0.99 rising to 1 by cosine, 100 steps, no warm-up: 0.61.
    """
    steps = jnp.arange(1, num_steps + 1, dtype=jnp.float32)
    return float(jnp.prod(1 - rate_at(config, steps, num_steps)))


def without_warmup(momentum: float, schedule: str) -> ConfigDict:
    """Returns a section `ema` for an average that training uses, such as a key encoder."""
    return ConfigDict(dict(momentum=momentum, schedule=schedule, warmup=False))


def make_carry(config: Any, num_steps: int) -> Carry:
    """Returns the `Carry` of "ema", a moving average of all parameters.

    `config`: momentum, schedule, warmup. The average is the initial weights at step 0, and
    is updated after every one of `num_steps` optimizer steps, see `rate_at`. Raises
    UserError for fields that are out of range.
    """
    checks.run(ROWS, config)

    def init(params: Params, key: Key) -> dict[str, Any]:
        del key
        return {AVERAGE: params}

    def update(
        carried: dict[str, Any],
        params: Params,
        carry_input: dict[str, Any],
        step: Array,
    ) -> dict[str, Any]:
        del carry_input
        rate = rate_at(config, step.astype(jnp.float32), num_steps)
        return {AVERAGE: move_towards(carried[AVERAGE], params, rate)}

    return Carry((AVERAGE,), init, update, whole_batches=False)
