"""Surgery on trained models: another width of the last block, adaptors of two kinds.

surgery = SURGERY[config.model.kind]
surgery.check(section, config.model, init_from)
resized = surgery.resize(leaves, init, config_model, section, key, components)

params = lora.add(params, section, key)
params = lora.merge(params, section)
backbone = drop_adaptors(params)
"""

from typing import Any, Protocol

import numpy as np

from flax_adapt.base.types import Key
from flax_adapt.surgery import (
    adaptors,
    heads,
    last_block,
    lora,
    matched,
    moments,
    resnet,
)
from flax_adapt.surgery.adaptors import drop as drop_adaptors
from flax_adapt.surgery.last_block import Leaves, Resized

__all__ = [
    "SURGERY",
    "Surgery",
    "adaptors",
    "drop_adaptors",
    "heads",
    "last_block",
    "lora",
    "matched",
    "moments",
    "resnet",
]


class Surgery(Protocol):
    """What differs between the kinds of models: the modules `last_block` and `resnet`."""

    def check(self, section: Any, config_model: Any, init_from: str) -> None: ...

    def resize(
        self,
        leaves: Leaves,
        init: Leaves,
        config_model: Any,
        section: Any,
        key: Key,
        components_dD: np.ndarray | None,
    ) -> Resized: ...


# Kind of model -> how its last block is resized.
SURGERY: dict[str, Surgery] = {
    "vit": last_block,
    "bert": last_block,
    "roberta": last_block,
    "resnet": resnet,
}
