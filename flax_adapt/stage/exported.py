"""Which part of its weights a stage exports: all of its model, or the encoder alone."""

from typing import Any

from flax_adapt import objectives
from flax_adapt.objectives import classify


def task_without(section: Any, *parts: str) -> str:
    """Returns the task of a stage whose model has none of `parts`.

    With one of them that is "encoder": what stands on a projector or on adaptors makes no
    sense without them. Where a second task is trained on the plain encoder (GLAD's
    regularizer "masked"), it is that.
    """
    beside = objectives.beside_of(section.objective)
    has_part = any(section.model[part] is not None for part in parts)
    return beside or ("encoder" if has_part else objectives.task_of(section.objective))


def exported_task(section: Any) -> str:
    """Returns the task whose weights a stage exports: without projector and adaptors."""
    return task_without(section, "projector", "adaptor")


def exports_classifier(section: Any) -> bool:
    """Returns whether a stage exports a head that predicts classes."""
    tells_classes = section.objective.name in classify.OF_CLASSES
    return tells_classes and exported_task(section) == "classify"
