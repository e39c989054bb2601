"""The data of the config `adapt`: separate sources, each SOURCE or SOURCE@SPLIT."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.base.remote.addresses import SCHEMES
from flax_adapt.data import source as sources
from flax_adapt.data import subset
from flax_adapt.defaults import shared
from flax_adapt.defaults.source import drop_missing_labels

# The share of the labels that is tested on where there is no test set (ours).
TESTED = 0.2
# The most examples of the source on which forgetting is measured (ours).
MEASURED = 2_000
# Argument -> the split that it reads where none is named.
SPLITS = {"unlabelled": "train", "labelled": "train", "test": "test", "source": "train"}
_SPLITLESS = r"; hold (some|examples) out with data\.subset and part='rest'"


class Opened(NamedTuple):
    """Data sections; None: of an argument that was not given."""

    unlabelled: dict[str, Any] | None
    labelled: dict[str, Any] | None
    test: dict[str, Any] | None
    source: dict[str, Any] | None


def open_sections(args: Any, make: Any) -> Opened:
    """Returns the data sections of the arguments that SPLITS names.

    make: `modality.Images` or `Texts`. They are opened, so that a wrong name is an error
    now. Without `test`, a fifth of the labelled examples is tested on.
    """
    unlabelled, source = (
        _section(args, role, make.unlabelled_data) if args[role] else None
        for role in ("unlabelled", "source")
    )
    if not args.labelled:
        if args.test:
            raise UserError(
                f"test={args.test} is to test a classifier: give labelled=SOURCE, too"
            )
        return Opened(unlabelled, None, None, source)
    labelled = _section(args, "labelled", make.labelled_data)
    _check_classes(args, labelled)
    if not args.test:
        part = {**shared.ALL, "fraction": 1 - TESTED}
        _check_count(args, labelled, part)
        test = {**labelled, "subset": {**part, "part": "rest"}}
        return Opened(unlabelled, {**labelled, "subset": part}, test, source)
    test = _section(args, "test", make.labelled_data)
    _check_test(args, labelled, test)
    return Opened(unlabelled, labelled, test, source)


def measured_source(args: Any, make: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the section of the source on which forgetting is measured.

    With its classes, where it has them; at most MEASURED examples. found: that of
    `open_sections`, which may be packed and without labels.
    """
    section = found
    if not section["label_field"] and args.label_field:
        with contextlib.suppress(UserError):
            section = _section(args, "source", make.labelled_data)
    if section["modality"] == "text":
        section = {**section, "layout": "padded"}
    count = len(sources.open_source(ConfigDict(section)))
    part = {**shared.ALL, "fraction": min(1.0, MEASURED / count)}
    return {**section, "subset": part}


def check_schemes(args: Any) -> None:
    """Raises UserError for a source without its kind, such as a path alone."""
    for role in SPLITS:
        typed = args[role]
        kind, colon, _ = typed.partition(":")
        if typed and (not colon or kind in SCHEMES):
            raise UserError(
                f"{role}={typed} names no kind of source: folder:{typed} is a folder of "
                "images, or csv:, jsonl:, parquet:, hf:, tfds:, tar: or text: of other kinds"
            )


def _section(args: Any, role: str, make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the data section of an argument.

    Without a split it is that of the role, or all of a source that has no splits.
    """
    typed = args[role]
    what, named = sources.split_of(typed)
    split = named or SPLITS[role]
    try:
        return _open_role(role, make, what, split)
    except UserError as error:
        said = _in_words_of(role, typed, what, error)
    if named or split == "train":
        raise said
    try:  # a folder of classes, or one file, without splits
        return _open_role(role, make, what, "train")
    except UserError as error:
        # Without splits, what is wrong is in the data.
        other = _in_words_of(role, typed, what, error)
        raise (said if "split" in str(other) else other) from None


def _open_role(
    role: str, make: Callable[..., Any], what: str, split: str
) -> dict[str, Any]:
    """Returns the opened section; what is read without labels need not have any."""
    section = make(what, split)
    if role in ("unlabelled", "source"):
        return drop_missing_labels(section)
    return _open(section)


def _open(section: dict[str, Any]) -> dict[str, Any]:
    sources.open_source(ConfigDict(section))
    return section


def _check_classes(args: Any, labelled: dict[str, Any]) -> None:
    source = sources.open_source(ConfigDict(labelled))
    names = source.class_names
    _check_no_numbers(args, source)
    if len(names) < 2:
        has = f"only the class {names[0]!r}" if names else "no classes"
        raise UserError(
            f"labelled={args.labelled} has {has}; a classifier needs two or more: a folder "
            "for each class, or a column of labels (label_field=NAME)"
        )


def _check_count(args: Any, labelled: dict[str, Any], part: dict[str, Any]) -> None:
    """Raises UserError where a share of each class leaves nothing to test on."""
    source = sources.open_source(ConfigDict(labelled))
    if len(subset.chosen_rows(source, ConfigDict(part))) == len(source):
        most = int(np.bincount(source.labels[source.labels >= 0]).max())
        raise UserError(
            f"labelled={args.labelled} has {most} examples of a class at most, too few to "
            "hold a fifth out to test on: label 3 or more of each class, or give "
            "test=SOURCE"
        )


def _check_no_numbers(args: Any, source: Any) -> None:
    """Raises UserError for labels that are measurements, not classes."""
    names = source.class_names
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return
    many = 2 * len(names) > len(source)
    if many or not all(number.is_integer() for number in numbers):
        raise UserError(
            f"labelled={args.labelled} has {len(names)} different numbers as labels, such "
            f"as {names[0]} and {names[-1]}: adapt trains classifiers, not regressions; of "
            "texts, `flax-adapt run --config=text_finetune:regress=True,...` trains one"
        )


def _check_test(args: Any, labelled: dict[str, Any], test: dict[str, Any]) -> None:
    """Raises UserError for a test set that was trained on, and for one of other classes."""
    known: subset.Identities = {}
    ours, theirs = (ConfigDict(section) for section in (labelled, test))
    shared = subset.list_shared(ours, theirs, known)
    if shared and shared == subset.list_identities(theirs, known):
        raise UserError(
            f"test={args.test} are examples of labelled={args.labelled}, which are trained "
            "on: give others, or leave test out, which holds a fifth of the labels out"
        )
    classes, tested = (
        sources.open_source(ConfigDict(s)).class_names for s in (labelled, test)
    )
    more = [name for name in tested if name not in classes]
    if more or not tested:
        raise UserError(
            f"test={args.test} has {f'the classes {more}' if more else 'no classes'}, and "
            f"labelled={args.labelled} has {list(classes)}: their names must be the same"
        )


def _in_words_of(role: str, typed: str, what: str, error: UserError) -> UserError:
    """Returns the error of a source with the argument that named it."""
    said = str(error).replace(": give one of these names as the split", "")
    how = f"; name a split as in {role}={what}@NAME" if "data.split" in said else ""
    said = re.sub(_SPLITLESS, "", said).replace(f"data.source='{what}': ", "")
    said = said.replace("data.split=", "the split ").replace("data.source", role)
    return UserError(f"{role}={typed}: {said}{how}")
