"""Penalties: terms that go with any objective, as a stage's `penalties` lists them.

    loss_fn = penalties.add(loss_fn, config.penalties, model, fresh=report.fresh)

Each section has a name, one of PENALTIES, and a weight; the loss has one more term for
each, weight times what the metric of that name measures. What a penalty compares with is
frozen: `frozen["start"]`, "ewc", "lwf", "der" (see each). Evaluation has no penalties.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Batch, Key, LossFn, Params
from flax_adapt.objectives import classify
from flax_adapt.objectives.parameter_penalties import (
    Penalty,
    ewc,
    l2_sp,
    weight_distance,
)
from flax_adapt.objectives.prediction_penalties import NOISES, der, er, lwf, r3f

# What must hold of a section's own fields, and how the user is told.
Rules = Sequence[tuple[bool, str]]


def _l2_sp_rules(config: Any) -> Rules:
    alpha, beta = config.alpha, config.beta
    text = f"alpha={alpha} and beta={beta} must be at least 0"
    return [(min(alpha, beta) >= 0, text)]


def _r3f_rules(config: Any) -> Rules:
    noises = [*NOISES]
    return [
        (config.noise in noises, f"noise={config.noise!r} must be one of {noises}"),
        (0 < config.eps < math.inf, f"eps={config.eps} must be above 0"),
    ]


def _lwf_rules(config: Any) -> Rules:
    value = config.temperature
    return [(0 < value < math.inf, f"temperature={value} must be above 0")]


class Kind(NamedTuple):
    """What a penalty is, and what it needs of its stage.

    rules: of its own fields. starts: it needs weights to start from. classifies: logits of
    classes. replays: rows of earlier tasks, which it takes from the objective. refers: its
    `of` names earlier stages.
    """

    make: Callable[[Any, nn.Module, Collection[str]], Penalty]
    rules: Callable[[Any], Rules] = lambda config: ()
    starts: bool = False
    classifies: bool = False
    replays: bool = False
    refers: bool = False


PENALTIES = {
    "weight_distance": Kind(weight_distance, starts=True),
    "l2_sp": Kind(l2_sp, _l2_sp_rules, starts=True),
    "ewc": Kind(ewc, refers=True),
    "r3f": Kind(r3f, _r3f_rules, classifies=True),
    "lwf": Kind(lwf, _lwf_rules, classifies=True, refers=True),
    "er": Kind(er, classifies=True, replays=True),
    "der": Kind(der, classifies=True, replays=True, refers=True),
}


def add(
    loss_fn: LossFn,
    sections: Sequence[Any],
    model: nn.Module,
    fresh: Collection[str] = (),
) -> LossFn:
    """Returns the loss with a term for every section; metrics have them by name.

    fresh: names of the leaves that are new in this stage (`Report.fresh` of `weights`).
    What an objective stops, such as a gradient into the backbone, no penalty stops.
    """
    if not sections:
        return loss_fn
    kinds = [choose("penalties.name", section.name, PENALTIES) for section in sections]
    made = [
        (section.name, section.weight, kind.make(section, model, fresh))
        for section, kind in zip(sections, kinds, strict=True)
    ]
    own = _of_target if any(kind.replays for kind in kinds) else lambda batch: batch
    classifies = any(kind.classifies for kind in kinds)

    def penalised(params: Params, frozen: Params, batch: Batch, key_B: Key):
        if classifies:  # one pass for the objective and all penalties
            logits_BN = classify.logits_of(model, params, batch, key_B)
            batch = {**batch, classify.LOGITS: logits_BN}
        metrics = loss_fn(params, frozen, own(batch), key_B)[1]
        found = {
            name: penalty(params, frozen, batch, key_B) for name, _, penalty in made
        }
        loss = metrics["loss"]
        for name, weight, _ in made:
            loss = loss.plus(weight, found[name])
        return loss.value(), {**metrics, "loss": loss, **found}

    return penalised


def _of_target(batch: Batch) -> Batch:
    """The batch in which replayed rows do not count."""
    weight_B = jnp.where(batch["domain"] == 0, batch["weight"], 0)
    return {**batch, "weight": weight_B}


def check(section: Any) -> None:
    """Raises UserError for a stage whose penalties cannot be, or not go with the rest."""
    names = [penalty.name for penalty in section.penalties]
    if len({*names}) < len(names):
        raise UserError(f"penalties={names}: each can be there once")
    for penalty in section.penalties:
        kind = choose("penalties.name", penalty.name, PENALTIES)
        objective = section.objective.name
        rules = (
            (
                0 <= penalty.weight < math.inf,
                f"weight={penalty.weight} must be at least 0",
            ),
            (
                not kind.starts or section.init_from != "scratch",
                "needs weights to stay near, but init_from='scratch'",
            ),
            (
                not kind.classifies or objective in classify.OF_CLASSES,
                f"compares classes: the objective must be one of {classify.OF_CLASSES}, "
                f"not {objective!r}",
            ),
            (
                not kind.replays or section.replay is not None,
                "is of examples of earlier tasks: give the stage a `replay`",
            ),
            *kind.rules(penalty),
        )
        for holds, problem in rules:
            if not holds:
                raise UserError(f"penalties: {penalty.name!r} {problem}")


def references(section: Any) -> dict[str, tuple[str, ...]]:
    """{penalty: what its `of` names}, of a stage."""
    return {
        penalty.name: (penalty.of,) if isinstance(penalty.of, str) else penalty.of
        for penalty in section.penalties
        if PENALTIES[penalty.name].refers
    }
