"""Moving averages of parameters: of all of them, to be evaluated and exported (EMA weights).

A running average of the iterates generalises better than the last one (Polyak and
Juditsky 1992; in the exponential form Tarvainen and Valpola 2017, equation 1).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Row, one_of, present
from flax_adapt.base.types import AVERAGE, Array, Carry, Key, Params

# 1 - m, what the average takes of the new parameters, by the share of the steps done.
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


def moved(average: Params, params: Params, rate: Array | float) -> Params:
    """Returns average + rate * (params - average). 2, 5 and rate 1/3: 3."""
    return jax.tree.map(
        lambda known, new: known + rate * (new - known), average, params
    )


def make_carry(config: Any, num_steps: int) -> Carry:
    """`config`: momentum, schedule. Carries "ema", an average of all parameters.

    It starts as the parameters that training starts from, and follows them after every
    one of `num_steps` optimizer steps.
    """
    checks.run(ROWS, config)

    def init(params: Params, key: Key) -> dict[str, Any]:
        del key
        return {AVERAGE: params}

    def update(
        carried: dict[str, Any], params: Params, handed: dict[str, Any], step: Array
    ) -> dict[str, Any]:
        del handed
        done = step.astype(jnp.float32) / num_steps
        rate = SCHEDULES[config.schedule](config.momentum, done)
        return {AVERAGE: moved(carried[AVERAGE], params, rate)}

    return Carry((AVERAGE,), init, update, whole_batches=False)
