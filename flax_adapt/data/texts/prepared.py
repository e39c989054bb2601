"""Sources of texts from prepared TensorFlow datasets."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data import prepared, records
from flax_adapt.data.base import UNLABELLED, NumberedNames, Source
from flax_adapt.data.rows import NOT_UTF8, Fields


def open_tfds_texts(name: str, config_data: ConfigDict) -> Source:
    """Returns the source of NAME[:config]; labels are a ClassLabel or numbers.

    Raises UserError where it is not prepared, or lacks a field of the section.
    """
    opened = prepared.open_prepared(name, config_data)
    wanted = _list_fields(config_data)
    missing = [field for field in wanted if field not in opened.features]
    if missing:
        raise errors.UserError(
            f"data.text_fields, data.label_field: tfds:{name} has no {missing[0]!r};"
            f" there is {prepared.describe_features(opened.features)}"
        )
    prefix, named = f"{name}/{config_data.split}", config_data.label_kind == "class"
    rows = (
        (f"{prefix}/{i:06d}", fields)
        for i, fields in enumerate(_read_rows(opened, config_data.split, wanted, named))
    )
    gathered = records.gather_rows(rows, config_data, opened.where, str)
    names = gathered.keys if gathered.broken else NumberedNames(prefix, opened.count)
    classes = _find_classes(opened, gathered, config_data)
    found = records.make_source(opened.where, names, gathered, config_data, classes)
    every = NumberedNames(prefix, opened.count)

    def identify() -> list[str]:
        pairs = zip(every, opened.identify(config_data.split), strict=True)
        return [name for known, name in pairs if known not in gathered.broken]

    return dataclasses.replace(found, identify=identify)


def _list_fields(config_data: ConfigDict) -> list[str]:
    label = [config_data.label_field] if config_data.label_field else []
    return [*config_data.text_fields, *label]


def _read_rows(
    opened: prepared.PreparedDataset, split: str, wanted: list[str], named: bool
) -> Iterator[Fields]:
    """Yields the fields `wanted` of every record as Python values; named: classes by name."""
    found, features = opened.records(split, {}), opened.features
    for i in range(len(found)):
        record = found[i]
        try:
            fields = {key: _to_python(record[key]) for key in wanted}
        except UnicodeDecodeError:
            yield NOT_UTF8
            continue
        for key in wanted if named else ():
            fields[key] = _name_class(fields[key], features[key])
        yield fields


def _to_python(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value.decode() if isinstance(value, bytes) else value


def _name_class(value: Any, feature: Any) -> Any:
    """Returns the class name of a ClassLabel's number; -1 and other values unchanged."""
    names = getattr(feature, "names", None)
    return names[value] if names and value != UNLABELLED else value


def _find_classes(
    opened: prepared.PreparedDataset,
    gathered: records.GatheredRows,
    config_data: ConfigDict,
) -> tuple[str, ...]:
    """Returns the class names: those of the ClassLabel, else the labels of all splits."""
    if not config_data.label_field or config_data.label_kind == "number":
        return ()
    own = getattr(opened.features[config_data.label_field], "names", None)
    if own:
        return tuple(name.strip() for name in own)
    label = [config_data.label_field]
    rows = (_read_rows(opened, split, label, True) for split in opened.info.splits)
    values = (records.read_values(split, config_data) for split in rows)
    return records.order_class_names([gathered.values, *values])
