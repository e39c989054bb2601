"""Stages that ask the same question: trained alike, from other weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax_adapt.base import config as configs
from flax_adapt.experiment import held_out

# What two such stages may differ in.
_OWN = ("name", "init_from")


def train_alike(one: Any, other: Any) -> bool:
    """Returns whether two stages differ in their name and their initial weights alone."""
    return _drop_own(one) == _drop_own(other)


def list_earlier(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns {stage: the earlier stages with its metric on its data}.

    results: of all runs, in their order.
    """
    tested: dict[Any, list[str]] = {}
    found: dict[str, list[str]] = {}
    for one in results:
        if one["stage"] not in found:
            alike = tested.setdefault((one["metric"], one["eval_data"]), [])
            found[one["stage"]] = [*alike]
            alike.append(one["stage"])
    return found


def find_base(sections: Mapping[str, Any], name: str, earlier: Sequence[str]) -> str:
    """Returns the stage that a stage's gain is about; "" without any.

    It is the first of `earlier`, of `list_earlier`, that is trained alike from other
    weights, else the first of all.
    """
    twins = (one for one in earlier if train_alike(sections[one], sections[name]))
    return next(twins, earlier[0] if earlier else "")


def _drop_own(section: Any) -> dict[str, Any]:
    plain = configs.plain(section)
    return {name: value for name, value in plain.items() if name not in _OWN}


def name_weights(sections: Mapping[str, Any], name: str) -> str:
    """Returns what a stage with labels began with, before any stage that saw labels.

    sections: of all stages by name. The result is a stage without labels, "pretrained" or
    "scratch".
    """
    while name in sections and held_out.sees_labels(sections[name]):
        name = sections[name].init_from.removeprefix("stage:").partition("/")[0]
    return name
