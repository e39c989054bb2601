"""Checked fields of a config.json; a mistake names the field."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.errors import UserError, choose

NUMBERS = {bool: "bool", int: "positive whole number", float: "positive float"}
GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}


def check_numbers(
    where: str,
    theirs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> None:
    """Every named field must be of the type of its default, and positive."""
    for name in names:
        kind, value = type(defaults[name]), theirs[name]
        if type(value) is not kind or (kind is not bool and value <= 0):
            raise UserError(f"{where}: {name}={value!r} must be a {NUMBERS[kind]}")


def check_supported(
    where: str, theirs: Mapping[str, Any], supported: Mapping[str, Any]
) -> None:
    """A named field that is there must have the only value that can be built."""
    for name, value in supported.items():
        if name in theirs and theirs[name] != value:
            raise UserError(
                f"{where}: {name}={theirs[name]!r} is not supported, only {value!r}"
            )


def gelu(where: str, hidden_act: Any) -> str:
    """Returns which GELU of ours an activation is."""
    return choose(f"{where}: hidden_act", str(hidden_act), GELU)


def labels_json(num_classes: int, class_names: tuple[str, ...] | None) -> dict:
    """Returns id2label and label2id; classes without a name are LABEL_0, LABEL_1, ..."""
    named = class_names or ()
    if len(named) > num_classes or len(set(named)) != len(named):
        raise UserError(
            f"class_names={named} must be different, and no more than the "
            f"{num_classes} outputs of the head"
        )
    labels = [*named, *(f"LABEL_{n}" for n in range(len(named), num_classes))]
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def class_names(where: str, theirs: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the names in id2label; None where there are none, or only LABEL_i."""
    labels = theirs.get("id2label")
    if not labels:
        return None
    numbers = [str(number) for number in range(len(labels))]
    if not isinstance(labels, dict) or set(labels) != set(numbers):
        raise UserError(f"{where}: id2label must map 0, 1, ... to names")
    found = tuple(str(labels[number]) for number in numbers)
    default = tuple(f"LABEL_{number}" for number in numbers)
    return None if found == default else found
