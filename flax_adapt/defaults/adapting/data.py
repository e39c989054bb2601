"""The data of the config `adapt`: separate sources, each SOURCE or SOURCE@SPLIT."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.data import source as sources
from flax_adapt.defaults import shared

# The share of the labels that is tested on where there is no test set (ours).
TESTED = 0.2
# Argument -> the split that it reads where none is named.
SPLITS = {"unlabelled": "train", "labelled": "train", "test": "test", "source": "train"}
_SPLITLESS = "; hold some out with data.subset and part='rest'"


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
        test = {**labelled, "subset": {**part, "part": "rest"}}
        return Opened(unlabelled, {**labelled, "subset": part}, test, source)
    test = _section(args, "test", make.labelled_data)
    _check_test(args, labelled, test)
    return Opened(unlabelled, labelled, test, source)


def check_schemes(args: Any) -> None:
    """Raises UserError for a source without its kind, such as a path alone."""
    for role in SPLITS:
        typed = args[role]
        if typed and ":" not in typed:
            raise UserError(
                f"{role}={typed} names no kind of source: folder:{typed} is a folder of "
                "images, or csv:, jsonl:, parquet:, hf:, tfds:, tar: or text: of other kinds"
            )


def _section(args: Any, role: str, make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the data section of an argument.

    Without a split it is that of the role, or all of a source that has no splits.
    """
    typed = args[role]
    what, at, split = typed.rpartition("@")
    named = bool(at) and "/" not in split and ":" in what
    what, split = (what, split) if named else (typed, SPLITS[role])
    try:
        return _open(make(what, split))
    except UserError as error:
        said = _in_words_of(role, typed, what, error)
    if named or split == "train":
        raise said
    try:  # a folder of classes, or one file, without splits
        return _open(make(what, "train"))
    except UserError:
        raise said from None


def _open(section: dict[str, Any]) -> dict[str, Any]:
    sources.open_source(ConfigDict(section))
    return section


def _check_classes(args: Any, labelled: dict[str, Any]) -> None:
    names = sources.open_source(ConfigDict(labelled)).class_names
    if len(names) < 2:
        has = f"only the class {names[0]!r}" if names else "no classes"
        raise UserError(
            f"labelled={args.labelled} has {has}; a classifier needs two or more: a folder "
            "for each class, or a column of labels (label_field=NAME)"
        )


def _check_test(args: Any, labelled: dict[str, Any], test: dict[str, Any]) -> None:
    """Raises UserError for a test set that was trained on, and for one of other classes."""
    ours, theirs = ((s["source"], s["split"]) for s in (labelled, test))
    if ours == theirs:
        raise UserError(
            f"test={args.test} are the examples of labelled={args.labelled}: give others, "
            "or leave test out, which holds a fifth of the labels out"
        )
    known, tested = (
        sources.open_source(ConfigDict(s)).class_names for s in (labelled, test)
    )
    more = [name for name in tested if name not in known]
    if more or not tested:
        raise UserError(
            f"test={args.test} has {f'the classes {more}' if more else 'no classes'}, and "
            f"labelled={args.labelled} has {list(known)}: their names must be the same"
        )


def _in_words_of(role: str, typed: str, what: str, error: UserError) -> UserError:
    """Returns the error of a source with the argument that named it."""
    said = str(error).replace(": give one of these names as the split", "")
    how = f"; name a split as in {role}={what}@NAME" if "data.split" in said else ""
    said = said.replace(_SPLITLESS, "").replace(f"data.source='{what}': ", "")
    said = said.replace("data.split=", "the split ").replace("data.source", role)
    return UserError(f"{role}={typed}: {said}{how}")
