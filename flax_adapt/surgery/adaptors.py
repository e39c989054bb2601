"""Drops the adaptors of GLAD attention (`models.AdaptorConfig`; S4, Yoon et al. 2023)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.types import Params

PATTERN = re.compile(r"(.*/)?adaptor/.*")


def is_adaptor(name: str) -> bool:
    """Whether a leaf is an adaptor's, as `encoder/block_00/attention/adaptor/logit_scale`."""
    return PATTERN.fullmatch(name) is not None


def leaves_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the leaf names that are of adaptors, in the same order."""
    return tuple(name for name in names if is_adaptor(name))


def drop(params: Params) -> dict[str, Any]:
    """Returns the parameters without adaptors: the tree of the model without adaptors."""
    return {
        name: drop(part) if isinstance(part, Mapping) else part
        for name, part in params.items()
        if name != "adaptor"
    }
