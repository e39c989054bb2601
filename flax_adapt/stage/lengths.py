"""Compares constants that are counted in steps with the length of a stage.

A constant that is published for hundreds of thousands of steps may fill a short stage or be
longer. Each rule of RULES is about one such constant. It returns one line for the log if the
constant was cut or scaled elsewhere, or is too long and not changed, and "" otherwise.
"""

from collections.abc import Callable
from typing import Any

from flax_adapt.models.heads import PROBE_MOMENTUM
from flax_adapt.objectives import ema
from flax_adapt.train import anchors, schedules

# The share from which on initial weights, statistics or random keys are logged.
_MUCH = 0.5


def list_notes(section: Any) -> list[str]:
    """Returns a line for the log for every constant that does not fit a stage's length."""
    found = (rule(section, section.num_steps) for rule in RULES)
    return [note for note in found if note]


def _warmup(section: Any, num_steps: int) -> str:
    asked = section.optim.warmup_steps
    takes = schedules.warmup_steps(section.optim, num_steps)
    if takes != asked:
        return f"optim.warmup_steps={asked} would fill num_steps={num_steps}: cut to {takes}"
    if takes > _MUCH * num_steps:
        return f"optim.warmup_steps={asked} is most of num_steps={num_steps}"
    return ""


def _recadam(section: Any, num_steps: int) -> str:
    recall = section.optim.recadam
    if recall is None:
        return ""
    k, t0 = anchors.recall_schedule(recall, num_steps)
    if t0 >= num_steps:
        return (
            f"optim.recadam.t0={t0:g} is not reached in num_steps={num_steps}: the "
            "pretrained weights stay as they are; lower t0, or set t0=0 and k=0"
        )
    if (k, t0) != (recall.k or anchors.K, recall.t0 or anchors.T0):
        return (
            f"optim.recadam: k={k:g} and t0={t0:g} in num_steps={num_steps} (published: "
            f"{anchors.K:g} and {anchors.T0:g})"
        )
    return ""


def _average(section: Any, num_steps: int) -> str:
    if section.ema is None:
        return ""
    advice = "set ema.warmup=True, or lower ema.momentum"
    share = ema.share_of_start(section.ema, num_steps)
    return _note_start("ema", "average", share, _MUCH / 10, num_steps, advice)


def _key_encoder(section: Any, num_steps: int) -> str:
    objective = section.objective
    if objective.name != "contrast":
        return ""
    how = dict(momentum=objective.momentum, schedule=objective.momentum_schedule)
    share = ema.share_of_start(ema.without_warmup(**how), num_steps)
    field = f"objective.momentum={objective.momentum}"
    advice = "a lower momentum follows faster"
    return _note_start(field, "key encoder", share, _MUCH, num_steps, advice)


def _note_start(
    field: str, average: str, share: float, most: float, num_steps: int, advice: str
) -> str:
    """Returns the note about a moving average if the initial weights are too much of it.

    share: the share of the initial weights in the average. most: the share that is accepted.
    """
    if share < most:
        return ""
    return (
        f"{field}: {share:.0%} of the {average} are the initial weights after "
        f"num_steps={num_steps}; {advice}"
    )


def _queue(section: Any, num_steps: int) -> str:
    objective = section.objective
    size = objective.queue_size if objective.name == "contrast" else 0
    fills = -(-size // section.batch_size)
    if fills <= _MUCH * num_steps:
        return ""
    return (
        f"objective.queue_size={size} holds random keys in the first {fills} of num_steps="
        f"{num_steps} steps; a smaller queue fills sooner"
    )


def _head_norm(section: Any, num_steps: int) -> str:
    if not section.model.head_norm or section.optim.solve is not None:
        return ""
    share = (1 - PROBE_MOMENTUM) ** num_steps
    if share < _MUCH / 10:
        return ""
    return (
        f"model.head_norm: {share:.0%} of its running statistics are still mean 0 and "
        f"variance 1 after num_steps={num_steps}; take more steps"
    )


# Rules about warm-up of the learning rate, RecAdam's t0, averages of weights, filling a
# queue, and running statistics. Schedules of replay and of the learning rate need none:
# they are shares of a stage.
RULES: tuple[Callable[[Any, int], str], ...] = (
    _warmup,
    _recadam,
    _average,
    _key_encoder,
    _queue,
    _head_norm,
)
