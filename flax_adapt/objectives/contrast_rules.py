"""Rules for a stage with the objective "contrast": for its fields, heads and views."""

import math
from typing import Any, NamedTuple

from flax_adapt.base.checks import Check, Context, Row, one_of, present
from flax_adapt.objectives import ema
from flax_adapt.objectives.info_nce import FORMS

# Rules of the objective "contrast", a section with form, temperature, momentum and queue.
ROWS = (
    one_of(
        "objective.momentum_schedule", lambda it: it.momentum_schedule, ema.SCHEDULES
    ),
    one_of("objective.form", lambda it: it.form, FORMS),
    Row(
        lambda it: 0 < it.temperature < math.inf,
        "objective.temperature={0.temperature} must be larger than 0",
    ),
    Row(
        lambda it: 0 <= it.momentum <= 1,
        "objective.momentum={0.momentum} must lie in [0, 1]",
    ),
    Row(
        lambda it: it.queue_size >= 1 or not FORMS[it.form].queue,
        "objective.queue_size={0.queue_size} must be at least 1: the keys that {0.form!r} "
        "compares with",
    ),
    Row(
        lambda it: it.queue_size == 0 or FORMS[it.form].queue,
        "objective.queue_size={0.queue_size} must be 0: {0.form!r} has no queue",
    ),
)


class Heads(NamedTuple):
    """A form, and the fields of the projector that it is used with."""

    form: str
    projector: Any


NO_PROJECTOR = (
    "model.projector.layers=0: a queue has the width of the projector; use "
    "objective.form='moco_v3', or layers of 1 or more"
)
# Rules of the heads on the encoder: projector and predictor.
HEADS = (
    Row(
        lambda heads: (
            not heads.projector.predictor_layers or not FORMS[heads.form].queue
        ),
        "model.projector.predictor_layers={0.projector.predictor_layers} must be 0: "
        "{0.form!r} has no predictor",
    ),
    Row(
        lambda heads: heads.projector.layers or not FORMS[heads.form].queue,
        NO_PROJECTOR,
    ),
)


def _contrasts(at: Context) -> list[Context]:
    return [at] if at.section.objective.name == "contrast" else []


def _heads(at: Context) -> list[Heads]:
    section = at.section
    return [
        Heads(section.objective.form, section.model.projector) for _ in _contrasts(at)
    ]


# Rules of the stage: it needs a projector section, whole batches (each example is compared
# with all others), and for text dropout or drop path, which make the two views differ.
_STAGE = (
    Row(
        lambda at: at.section.model.projector is not None,
        "model.projector must be given for objective 'contrast' (layers=0, "
        "predictor_layers=0: none)",
    ),
    Row(
        lambda at: at.section.optim.accum_steps == 1,
        "optim.accum_steps={0.section.optim.accum_steps} must be 1: 'contrast' compares "
        "all examples of a batch with each other",
    ),
    Row(
        lambda at: (
            at.section.data.modality != "text"
            or at.section.model.dropout
            or at.section.model.drop_path
        ),
        "model.dropout=0 and drop_path=0 make the two views of a text the same; set one of "
        "them above 0, such as dropout=0.1",
    ),
)


class _Images(NamedTuple):
    """A data section of images, and the objective that takes them."""

    data: Any
    objective: str

    @property
    def views(self) -> int:
        """The number of views of an image that the objective compares; 0: it needs none."""
        return 2 if self.objective == "contrast" else 0


def _images(at: Context) -> list[_Images]:
    sections = [at.section.data, *(it.data for it in present(at.section.eval))]
    name = at.section.objective.name
    return [_Images(it, name) for it in sections if it.modality == "image"]


_VIEWS = (
    Row(
        lambda it: len(it.data.views) == it.views,
        lambda it: (
            f"data.views of {it.data.source} has {len(it.data.views)} augmentations; "
            f"objective {it.objective!r} needs {it.views}"
        ),
    ),
)
CHECKS = (
    Check(_contrasts, _STAGE),
    Check(lambda at: [it.section.objective for it in _contrasts(at)], ROWS),
    Check(_heads, HEADS),
    Check(_images, _VIEWS),
)
