"""The learning rate by step: a warm-up, then one of SCHEDULES."""

from typing import Any

import optax

from flax_adapt.base import checks
from flax_adapt.base.checks import Row, one_of

# The learning rate after warm-up, from `lr` to 0 over `num_steps` optimizer steps.
SCHEDULES = {
    "linear": lambda lr, num_steps: optax.linear_schedule(lr, 0.0, num_steps),
    "cosine": lambda lr, num_steps: optax.cosine_decay_schedule(lr, num_steps),
    "constant": lambda lr, num_steps: optax.constant_schedule(lr),
}


WARMUP = (
    Row(
        lambda optim: optim.warmup_steps >= 0,
        "optim.warmup_steps={0.warmup_steps} must be at least 0",
    ),
)
SCHEDULE = (one_of("optim.schedule", lambda optim: optim.schedule, SCHEDULES),)
# Rules of a section `optim`.
ROWS = (*WARMUP, *SCHEDULE)


def warmup_steps(config: Any, num_steps: int) -> int:
    """Returns the number of warm-up steps: `optim.warmup_steps` if it is below num_steps.

    Otherwise it is a tenth of num_steps (ours). 500 of 10 000 steps: 500. 500 of 200
    steps: 20. Raises UserError for a negative number.
    """
    checks.run(WARMUP, config)
    fits = config.warmup_steps < num_steps
    return config.warmup_steps if fits else num_steps // 10


def schedule(config: Any, num_steps: int) -> optax.Schedule:
    """Returns the learning rate by step (0 first): 0 -> lr over warm-up, then `schedule`.

    `config`: optim section. Raises UserError for an unknown schedule or a negative warm-up.
    """
    warmup = warmup_steps(config, num_steps)
    checks.run(SCHEDULE, config)
    after = SCHEDULES[config.schedule](config.lr, num_steps - warmup)
    if warmup == 0:
        return after
    rise = optax.linear_schedule(0.0, config.lr, warmup)
    return optax.join_schedules([rise, after], [warmup])
