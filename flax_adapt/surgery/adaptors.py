"""Dropping the adaptors of GLAD attention (`models.AdaptorConfig`; METHODS S4)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.types import Params

PATTERN = re.compile(r"(.*/)?adaptor/.*")


def is_adaptor(name: str) -> bool:
    """Whether a leaf, as in `encoder/block_00/attention/adaptor/logit_scale`, is of one."""
    return PATTERN.fullmatch(name) is not None


def leaves_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns those that are of adaptors."""
    return tuple(name for name in names if is_adaptor(name))


def drop(params: Params) -> dict[str, Any]:
    """Returns the backbone: the same tree, to the leaf, as of a model without adaptors."""
    return {
        name: drop(part) if isinstance(part, Mapping) else part
        for name, part in params.items()
        if name != "adaptor"
    }
