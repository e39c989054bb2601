"""Which weights a stage keeps: those of its task, or less of them."""

from typing import Any

from flax_adapt import objectives
from flax_adapt.objectives import classify


def task_without(section: Any, *parts: str) -> str:
    """The task of a stage; where its model has one of `parts`, of the encoder alone; where
    another task is trained beside, that.
    """
    beside = objectives.beside_of(section.objective)
    has_part = any(section.model[part] is not None for part in parts)
    return beside or ("encoder" if has_part else objectives.task_of(section.objective))


def kept_task(section: Any) -> str:
    """The task whose weights a stage exports.

    Where there is a projector, or adaptors, only the encoder (and what was trained
    beside): what stands on them is dropped with them.
    """
    return task_without(section, "projector", "adaptor")


def keeps_classifier(section: Any) -> bool:
    """Whether a stage exports a head that tells classes."""
    tells_classes = section.objective.name in classify.OF_CLASSES
    return tells_classes and kept_task(section) == "classify"
