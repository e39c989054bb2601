"""Makes a source of texts and labels from rows with named fields.

`data.text_fields` names one text, or the two of a pair. `data.label_field` names the label
("": none), and `data.label_kind` is its kind: "class" or "number". A row that lacks a
field, or has another type in it, is broken: it is left out, named and counted.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data.base import UNLABELLED, Source, Texts
from flax_adapt.data.rows import NOT_UTF8, Fields

# The label -1, which means "no label" in the Hugging Face and TFDS test sets of GLUE.
NO_LABEL = str(UNLABELLED)


class BrokenRow(Exception):
    """A row that cannot be used; the text is the reason."""


class GatheredRows(NamedTuple):
    """The readable rows of a split, in order, and the reasons why others are broken.

    keys: of the readable rows. values: their class names or numbers. broken: {name: reason}.
    """

    keys: list[Any]
    texts: list[Texts]
    values: list[Any]
    broken: dict[str, str]


def gather_rows(
    rows: Iterable[tuple[Any, Fields]],
    config_data: ConfigDict,
    where: str,
    name_of: Callable[[Any], str],
) -> GatheredRows:
    """Reads rows (key, fields), and sorts them into readable and broken ones.

    name_of: key -> name of the row, such as line -> FILE:LINE. Raises UserError where no row
    is readable, such as for a field that no row has.
    """
    good = GatheredRows([], [], [], {})
    seen: set[str] = set()
    for key, fields in rows:
        if not isinstance(fields, str):
            seen.update(fields)
        try:
            texts, value = (
                read_texts(fields, config_data),
                read_value(fields, config_data),
            )
        except BrokenRow as error:
            good.broken[name_of(key)] = str(error)
        else:
            good.keys.append(key)
            good.texts.append(texts)
            good.values.append(value)
    if not good.keys:
        _refuse_empty(seen, good.broken, config_data, where)
    return good


def read_texts(fields: Fields, config_data: ConfigDict) -> Texts:
    """Returns the text, or both texts of a pair; raises BrokenRow."""
    return tuple(
        _read_text(_read_field(fields, name), name) for name in config_data.text_fields
    )


def read_value(fields: Fields, config_data: ConfigDict) -> str | float | None:
    """Returns the class name or the number, None without a label field; raises BrokenRow."""
    if not config_data.label_field:
        return None
    value = _read_field(fields, config_data.label_field)
    return KINDS[config_data.label_kind](value)


def read_values(rows: Iterable[Fields], config_data: ConfigDict) -> list[Any]:
    """Returns the labels of another split, without those of its broken rows."""
    found = []
    for fields in rows:
        with contextlib.suppress(BrokenRow):
            found.append(read_value(fields, config_data))
    return found


def _read_field(fields: Fields, name: str) -> Any:
    if isinstance(fields, str):
        raise BrokenRow(fields)
    if name not in fields:
        raise BrokenRow(f"no field {name!r}")
    return fields[name]


def _read_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BrokenRow(f"{name!r} is no string but {_shorten(value)}")
    if not _is_unicode(value):
        raise BrokenRow(NOT_UTF8)
    return value


def _is_unicode(value: str) -> bool:
    """Returns whether all are characters; JSON may contain half a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _read_class_name(value: Any) -> str:
    """Returns the name without spaces around it; raises BrokenRow for an empty one."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        shown = _shorten(value)
        raise BrokenRow(f"the label is no string or whole number but {shown}")
    name = str(value).strip()
    if not name:
        raise BrokenRow("the label is empty")
    return name


def _read_number(value: Any) -> float:
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise BrokenRow(f"the label is no number but {_shorten(value)}") from error
    if not math.isfinite(number):
        raise BrokenRow(f"the label is {number}")
    return number


def _shorten(value: Any) -> str:
    return repr(value)[:50]


# data.label_kind -> (label in the file) -> class name or number
KINDS: dict[str, Callable[[Any], Any]] = {
    "class": _read_class_name,
    "number": _read_number,
}


def order_class_names(values_by_split: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Returns all class names in order: whole numbers by value, other names as text.

    A split with only the label -1 has no labels. Among other labels, -1 is a class.
    """
    found: set[str] = set()
    for values in values_by_split:
        names = set(values)
        found |= set() if names == {NO_LABEL} else names
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def make_source(
    where: str,
    names: Sequence[str],
    gathered: GatheredRows,
    config_data: ConfigDict,
    classes: tuple[str, ...],
) -> Source:
    """Returns the source of readable rows.

    classes: the names of label 0, 1, ...; () for numbers and without labels.
    """
    labels = _make_labels(gathered, config_data, classes)
    texts = gathered.texts
    return Source(
        where=where,
        names=names,
        class_names=classes,
        read=lambda i: (texts[i], labels[i].item()),
        read_labels=lambda: labels,
        broken=gathered.broken,
    )


def _make_labels(
    gathered: GatheredRows, config_data: ConfigDict, classes: tuple[str, ...]
) -> np.ndarray:
    """Returns labels, int32 [n], -1 where there is none; for numbers float32 [n]."""
    if not config_data.label_field:
        return np.full(len(gathered.texts), UNLABELLED, np.int32)
    if config_data.label_kind == "number":
        return np.array(gathered.values, np.float32)
    row = {name: i for i, name in enumerate(classes)}
    return np.array([row.get(name, UNLABELLED) for name in gathered.values], np.int32)


def _refuse_empty(
    seen: set[str], broken: dict[str, str], config_data: ConfigDict, where: str
) -> None:
    """Raises UserError that says why no row is readable; seen: all fields of the rows."""
    if not broken:
        raise errors.UserError(f"data.source: {where} has no text at all")
    wanted = {"text_fields": config_data.text_fields}
    if config_data.label_field:
        wanted["label_field"] = (config_data.label_field,)
    for setting, names in wanted.items():
        missing = [name for name in names if name not in seen]
        if seen and missing:
            raise errors.UserError(
                f"data.{setting}: {where} has no field {missing[0]!r} in any row;"
                f" there is {sorted(map(str, seen))}"
            )
    name, reason = next(iter(broken.items()))
    raise errors.UserError(
        f"data.source: {where} has no row that can be read; {name}: {reason}"
    )
