"""Checks of the classes in training and test data, before a classifier is trained."""

import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data.images import folder

_MOST = 5  # classes that a message names


class LabelledExamples(Protocol):
    """Examples with their data section, labels and class names."""

    config: ConfigDict

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


def check_several(examples: LabelledExamples) -> None:
    """Raises UserError where all labels are of one class: every answer would be right."""
    counts = count_classes(examples)
    if len(counts) != 1:
        return
    ((name, count),) = counts.items()
    raise errors.UserError(
        f"{describe(examples)}: all {count} labelled examples are of the class {name!r},"
        f" and a classifier needs two or more"
        f"{folder.describe_nesting(examples.config)}"
    )


def check_known(train: LabelledExamples, test: LabelledExamples) -> None:
    """Raises UserError where the test data have a class without a training example.

    No classifier could name it, so that its examples would all count as wrong.
    """
    known, asked = count_classes(train), count_classes(test)
    unknown = [name for name in asked if name not in known]
    if not unknown:
        return
    named = ", ".join(_describe(name, asked[name], known) for name in unknown[:_MOST])
    more = f" and {len(unknown) - _MOST} more" if len(unknown) > _MOST else ""
    raise errors.UserError(
        f"{describe(test)} has classes without a single example in {describe(train)}:"
        f" {named}{more}; the training data have {_few(known)}: give the same classes the"
        " same names in both, or leave out what cannot be learnt"
    )


def check_same(train: LabelledExamples, test: LabelledExamples) -> None:
    """Runs `check_known`; also raises UserError where label numbers mean other classes."""
    check_known(train, test)
    if train.class_names != test.class_names:
        raise errors.UserError(
            f"{describe(train)} has the classes {train.class_names} but {describe(test)}"
            f" has {test.class_names}; list the same in data.classes of both"
        )


def count_classes(examples: LabelledExamples) -> dict[str, int]:
    """Returns {class name: number of examples}, without empty classes, in label order."""
    labels = examples.labels
    if labels.dtype.kind == "f":
        return {}
    names = examples.class_names
    counts = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def describe(examples: LabelledExamples) -> str:
    """Returns the source and the split, for messages."""
    return f"{examples.config.source} {examples.config.split}"


def _describe(name: str, count: int, known: Sequence[str] | dict[str, Any]) -> str:
    near = next((other for other in known if _canonical(other) == _canonical(name)), "")
    meant = f", is it {near!r}?" if near else ""
    return f"{name!r} ({count} example{'s' if count > 1 else ''}{meant})"


def _canonical(name: str) -> Any:
    """Returns the same value for names that are easily confused: Cat and cat, 1 and 1.0."""
    try:
        return float(name)
    except ValueError:
        folded = unicodedata.normalize("NFKC", name).casefold()
        return "".join(c for c in folded if c.isalnum()) or folded


def _few(names: dict[str, Any]) -> str:
    more = f" and {len(names) - 2 * _MOST} more" if len(names) > 2 * _MOST else ""
    return f"{list(names)[: 2 * _MOST]}{more}"
