"""Adafactor: the second moment of a matrix is a row and a column (Shazeer and Stern 2018)."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from flax_adapt.base.checks import Check, Row, one_of
from flax_adapt.base.types import Params

# The dtypes of a first moment; None: that of the parameters, float32.
MOMENT_DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}
# What is added to squared gradients and to the size of parameters (section 9).
_EPS = 1e-30


def _has_range(adafactor: Any) -> bool:
    return (
        adafactor.min_factored >= 1
        and 0 < adafactor.decay_rate < 1
        and 0 < adafactor.clip < math.inf
        and 0 <= adafactor.momentum < 1
    )


def _reads(optim: Any) -> bool:
    others = [optim[name] for name in ("recadam", "lars", "sgd", "solve")]
    return optim.mu_dtype == "float32" or all(one is None for one in others)


# Rules of a section `optim`.
ROWS = (
    one_of("optim.mu_dtype", lambda optim: optim.mu_dtype, MOMENT_DTYPES),
    Row(
        _reads,
        "optim.mu_dtype={0.mu_dtype!r} is of AdamW and Adafactor: other optimizers keep "
        "float32",
    ),
    Row(
        lambda optim: optim.adafactor is None or _has_range(optim.adafactor),
        "optim.adafactor: min_factored={0.adafactor.min_factored} must be at least 1, "
        "decay_rate={0.adafactor.decay_rate} and momentum={0.adafactor.momentum} below 1, "
        "clip={0.adafactor.clip} above 0",
    ),
)
CHECKS = (Check(lambda at: [at.section.optim], ROWS),)


def adafactor(
    config: Any, schedule: optax.Schedule, decays: Callable[[Params], Any]
) -> optax.GradientTransformation:
    """Returns Adafactor with the learning rate of a schedule and decoupled weight decay.

    `config`: optim section; adafactor has min_factored (matrices whose two axes are at
    least that long are factored), decay_rate (the exponent of beta_2, section 7.2), clip
    (the largest root mean square of an update, section 6), by_scale (updates are
    multiplied by the root mean square of the parameter, section 8; lr is then relative)
    and momentum (0: none; kept in `mu_dtype`). Weight decay is that of AdamW (ours).
    """
    own = config.adafactor
    steps = [
        optax.scale_by_factored_rms(
            decay_rate=own.decay_rate,
            min_dim_size_to_factor=own.min_factored,
            epsilon=_EPS,
        ),
        optax.clip_by_block_rms(own.clip),
    ]
    if own.by_scale:
        steps.append(optax.scale_by_param_block_rms())
    if own.momentum:
        dtype = MOMENT_DTYPES[config.mu_dtype]
        steps.append(optax.ema(own.momentum, debias=False, accumulator_dtype=dtype))
    steps += [
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.scale_by_learning_rate(schedule),
    ]
    return optax.chain(*steps)
