"""Decides which weights a stage exports: those of its whole model, or of the encoder alone."""

from typing import Any

from flax_adapt import objectives
from flax_adapt.objectives import classify


def task_without(section: Any, *parts: str) -> str:
    """Returns the task of the weights of a stage after `parts` of its model are removed.

    parts: fields of the section `model`, such as "projector". If the model has one of them,
    the task is "encoder", as a head that was trained on a projector or on adaptors does not
    work without them. Where a second task is trained on the plain encoder (GLAD's
    regularizer "masked"), it is that task.
    """
    second_task = objectives.second_task_of(section.objective)
    has_part = any(section.model[part] is not None for part in parts)
    return second_task or (
        "encoder" if has_part else objectives.task_of(section.objective)
    )


def exported_task(section: Any) -> str:
    """Returns the task whose weights a stage exports: without projector and adaptors."""
    return task_without(section, "projector", "adaptor")


def exports_classifier(section: Any) -> bool:
    """Returns whether a stage exports a head that predicts classes."""
    tells_classes = section.objective.name in classify.OF_CLASSES
    return tells_classes and exported_task(section) == "classify"
