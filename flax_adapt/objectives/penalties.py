"""Penalties: additional loss terms for any objective, as a stage's `penalties` lists them.

    loss_fn = penalties.add(loss_fn, config.penalties, model, fresh=report.fresh)

Each section has a name, one of PENALTIES, and a weight. It adds one term to the loss: the
weight times the metric of that name. The arrays that a penalty compares with get no
gradient: `frozen["start"]`, "ewc", "lwf", "der" (see each). Evaluation has no penalties.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Context, Row, one_of, present
from flax_adapt.base.errors import choose
from flax_adapt.base.types import Batch, Key, LossFn, Params
from flax_adapt.data import drawing
from flax_adapt.objectives import classify
from flax_adapt.objectives.parameter_penalties import (
    Penalty,
    ewc,
    l2_sp,
    weight_distance,
)
from flax_adapt.objectives.prediction_penalties import NOISES, der, er, lwf, r3f

_L2_SP = (
    Row(
        lambda it: min(it.alpha, it.beta) >= 0,
        "penalties: 'l2_sp' alpha={0.alpha} and beta={0.beta} must be at least 0",
    ),
)
_R3F = (
    Row(
        lambda it: it.noise in NOISES,
        lambda it: f"penalties: 'r3f' noise={it.noise!r} must be one of {[*NOISES]}",
    ),
    Row(
        lambda it: 0 < it.eps < math.inf, "penalties: 'r3f' eps={0.eps} must be above 0"
    ),
)
_LWF = (
    Row(
        lambda it: 0 < it.temperature < math.inf,
        "penalties: 'lwf' temperature={0.temperature} must be above 0",
    ),
)


class Kind(NamedTuple):
    """A kind of penalty: its constructor, and its requirements on the stage.

    rows: rules of its own fields. starts: the stage must load initial weights. classifies:
    the model must predict classes. replays: the batch must have replayed rows of earlier
    tasks; the objective leaves these rows out. refers: its field `of` names earlier stages.
    """

    make: Callable[[Any, nn.Module, Collection[str]], Penalty]
    rows: Sequence[Row] = ()
    starts: bool = False
    classifies: bool = False
    replays: bool = False
    refers: bool = False


PENALTIES = {
    "weight_distance": Kind(weight_distance, starts=True),
    "l2_sp": Kind(l2_sp, _L2_SP, starts=True),
    "ewc": Kind(ewc, refers=True),
    "r3f": Kind(r3f, _R3F, classifies=True),
    "lwf": Kind(lwf, _LWF, classifies=True, refers=True),
    "er": Kind(er, classifies=True, replays=True),
    "der": Kind(der, classifies=True, replays=True, refers=True),
}


def add(
    loss_fn: LossFn,
    sections: Sequence[Any],
    model: nn.Module,
    fresh: Collection[str] = (),
) -> LossFn:
    """Returns `loss_fn` with a term for every section; metrics have their values by name.

    fresh: names of the leaves that are new in this stage (`Report.fresh` of `weights`).
    Where an objective stops a gradient, such as that to the backbone, the penalties still
    have it. Raises UserError for an unknown name.
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
    """Returns the batch, the weights of its replayed rows set to 0."""
    weight_B = jnp.where(batch["domain"] == 0, batch["weight"], 0)
    return {**batch, "weight": weight_B}


def references_of(section: Any) -> dict[str, tuple[str, ...]]:
    """Returns {name of a penalty: the references in its `of`} of the section of a stage."""
    return {
        penalty.name: (penalty.of,) if isinstance(penalty.of, str) else penalty.of
        for penalty in section.penalties
        if PENALTIES[penalty.name].refers
    }


class _StagePenalty(NamedTuple):
    """The section of a penalty, its kind, and the section of its stage."""

    penalty: Any
    kind: Kind
    section: Any


def _penalties(at: Context) -> list[_StagePenalty]:
    section = at.section
    return [
        _StagePenalty(one, PENALTIES[one.name], section) for one in section.penalties
    ]


def _of_kind(name: str) -> Callable[[Context], list[Any]]:
    return lambda at: [it.penalty for it in _penalties(at) if it.penalty.name == name]


def _has_repeated(at: Context) -> bool:
    names = [penalty.name for penalty in at.section.penalties]
    return len({*names}) < len(names)


_ONCE = (
    Row(
        lambda at: not _has_repeated(at),
        lambda at: (
            f"penalties={[it.name for it in at.section.penalties]}: each can be there once"
        ),
    ),
)
_KNOWN = (one_of("penalties.name", lambda penalty: penalty.name, PENALTIES),)
# Rules of every penalty: its weight, and the requirements of its kind on the stage.
_FITS = (
    Row(
        lambda it: 0 <= it.penalty.weight < math.inf,
        "penalties: {0.penalty.name!r} weight={0.penalty.weight} must be at least 0",
    ),
    Row(
        lambda it: not it.kind.starts or it.section.init_from != "scratch",
        "penalties: {0.penalty.name!r} needs weights to stay near, but "
        "init_from='scratch'",
    ),
    Row(
        lambda it: (
            not it.kind.classifies or it.section.objective.name in classify.OF_CLASSES
        ),
        f"penalties: {{0.penalty.name!r}} compares classes: the objective must be one of "
        f"{classify.OF_CLASSES}, not {{0.section.objective.name!r}}",
    ),
    Row(
        lambda it: not it.kind.replays or it.section.replay is not None,
        "penalties: {0.penalty.name!r} is of examples of earlier tasks: give the stage a "
        "`replay`",
    ),
)


class _Der(NamedTuple):
    """The number of stages that `of` of "der" names, and the number of replayed sources."""

    stages: int
    sources: int


def _der(at: Context) -> list[_Der]:
    sources = [len(drawing.list_sections(it)) for it in present(at.section.replay)]
    return [
        _Der(len(penalty.of), *sources)
        for penalty in at.section.penalties
        if penalty.name == "der"
    ]


_DER = (
    Row(
        lambda it: it.stages == it.sources,
        "penalties: `of` of 'der' names {0.stages} stages for {0.sources} sources of "
        "replay.data: one for each, that learnt it",
    ),
)
CHECKS = (
    Check(lambda at: at.section.penalties, _KNOWN),
    Check(checks.stage, _ONCE),
    Check(_penalties, _FITS),
    *(Check(_of_kind(name), kind.rows) for name, kind in PENALTIES.items()),
    Check(_der, _DER),
)
