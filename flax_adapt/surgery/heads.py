"""A classifier that goes on to more classes: one growing head for a sequence of tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flax_adapt.errors import UserError

LEAVES = ("head/kernel", "head/bias")


def grow(
    leaves: Mapping[str, Any],
    init: Mapping[str, Any],
    old_classes: Sequence[str],
    new_classes: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the leaves with a head of more classes, and leaf -> what was done.

    The logits of the old classes stay as they are; those of new ones begin as `init`,
    fresh parameters of the larger model, has them. The old classes are the first of the
    new ones, in the same order, or it is a UserError.
    """
    count = len(old_classes)
    if tuple(new_classes[:count]) != tuple(old_classes):
        raise UserError(
            f"model.grow_head: the weights name the classes {tuple(old_classes)}, which "
            f"must come first among {tuple(new_classes)}; list them first in data.classes"
        )
    grown = {}
    for name in LEAVES:
        old, fresh = (np.asarray(part[name], np.float32) for part in (leaves, init))
        grown[name] = np.concatenate([old, fresh[..., count:]], axis=-1)
    rule = f"grown from {count} to {len(new_classes)} classes"
    changed = {name: rule for name in grown if len(new_classes) > count}
    return {**leaves, **grown}, changed
