"""References of a stage: to earlier stages by name, to the config's `init`, or to a path.

A stage with one seed is called NAME, one with several seeds NAME/seed_S for each of them;
NAME then means the run of the same seed (`stage.draws`).
Whether a path exists and has suitable weights is checked by the stage that opens it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.objectives import exported, penalties
from flax_adapt.stage.draws import label


def labels(section: Any) -> list[str]:
    """Returns the names by which later stages refer to this stage's runs, as `stage:NAME`."""
    return [label(section, seed) for seed in section.seeds]


class _Reference(NamedTuple):
    """A field, and its text: `stage:LABEL`, "pretrained", or a path."""

    field: str
    text: str
    at: Context

    @property
    def label(self) -> str | None:
        """The name of the stage that the text refers to, None if it is no stage."""
        is_stage = self.text.startswith("stage:")
        return self.text.removeprefix("stage:") if is_stage else None


def _references(at: Context) -> list[_Reference]:
    fields = [(field, at.section[field]) for field in ("init_from", "teacher")]
    for penalty, texts in penalties.references_of(at.section).items():
        fields += [(f"penalties: `of` of {penalty!r}", text) for text in texts]
    return [_Reference(field, text, at) for field, text in fields]


_TEACHER = (
    Row(
        lambda at: (
            (at.section.objective.name == "distill") == (at.section.teacher != "none")
        ),
        "objective {0.section.objective.name!r} and teacher={0.section.teacher!r} do not "
        "fit: 'distill' needs a teacher, the others have 'none'",
    ),
)
_EXISTS = (
    Row(
        lambda it: it.label is None or it.label in it.at.earlier,
        lambda it: (
            f"{it.field}={it.text!r} is no earlier stage; there are: "
            f"{', '.join(it.at.earlier)}"
        ),
    ),
    Row(
        lambda it: it.text != "pretrained" or it.at.config.init,
        "{0.field}='pretrained' but the config's `init` is empty; give init=PATH of a "
        "Hugging Face folder",
    ),
)


class _PenaltyReference(NamedTuple):
    """A penalty, a reference of its `of`, and that stage's section (None: it is no stage)."""

    penalty: str
    text: str
    section: Any


def _penalty_references(at: Context, *names: str) -> list[_PenaltyReference]:
    stages = {f"stage:{name}": section for name, section in at.earlier.items()}
    return [
        _PenaltyReference(penalty, text, stages.get(text))
        for penalty, texts in penalties.references_of(at.section).items()
        for text in texts
        if penalty in names
    ]


def _references_of(*names: str) -> Callable[[Context], list[_PenaltyReference]]:
    return lambda at: _penalty_references(at, *names)


# A penalty compares with the export of the stage that it refers to. Weights from a path
# can be checked only when they are opened.
_FISHER = (
    Row(
        lambda it: it.section is not None and it.section.fisher is not None,
        "penalties: `of` of {0.penalty!r}, {0.text!r}, must be 'stage:NAME' of a stage with "
        "a section `fisher`",
    ),
)
_CLASSIFIER = (
    Row(
        lambda it: it.section is None or exported.exports_classifier(it.section),
        "penalties: `of` of {0.penalty!r}, {0.text!r}, keeps no classifier: name a stage of "
        "objective 'classify' with model.projector and model.adaptor None",
    ),
)
CHECKS = (
    Check(checks.stage, _TEACHER),
    Check(_references, _EXISTS),
    Check(_references_of("ewc"), _FISHER),
    Check(_references_of("lwf", "der"), _CLASSIFIER),
)
