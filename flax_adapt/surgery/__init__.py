"""Surgery on trained models: another width of the last block, GLAD's adaptors, LoRA.

check_resize(section, config.model, init_from)
surgery = SURGERY[config.model.kind]
resized = surgery.resize(TrainedBlock(leaves, init, config_model, section, key, components))

params = lora.add(params, section, key)
params = lora.merge(params, section)
backbone = drop_adaptors(params)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from flax_adapt import models
from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Context, Row, builds, present
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
from flax_adapt.surgery.last_block import ResizedWeights, TrainedBlock

__all__ = [
    "SURGERY",
    "ResizeRequest",
    "Surgery",
    "TrainedBlock",
    "adaptors",
    "check_resize",
    "drop_adaptors",
    "heads",
    "last_block",
    "lora",
    "matched",
    "moments",
    "resnet",
]


class Surgery(Protocol):
    """Resizing of one kind of model: the modules `last_block` and `resnet` have it."""

    # Rules of a section `model.resize`; each is checked on a `ResizeRequest`.
    ROWS: Sequence[Row]

    def resize(self, trained: TrainedBlock) -> ResizedWeights: ...


# Kind of model -> how its last block is resized.
SURGERY: dict[str, Surgery] = {
    "vit": last_block,
    "bert": last_block,
    "roberta": last_block,
    "resnet": resnet,
}


class ResizeRequest(NamedTuple):
    """A requested resizing, for checks.

    section: `model.resize` of a stage. model: the model config before. init_from: of the
    stage, such as "pretrained" or "scratch".
    """

    section: Any
    model: Any
    init_from: str


def _resize_requests(at: Context) -> list[ResizeRequest]:
    sections = present(at.section.model.resize)
    return [ResizeRequest(it, at.config.model, at.section.init_from) for it in sections]


def _requests_of(surgery: Surgery) -> Callable[[Context], list[ResizeRequest]]:
    return lambda at: [
        it for it in _resize_requests(at) if SURGERY[it.model["kind"]] is surgery
    ]


_BUILDS = (builds(lambda it: models.check_resize(it.model, it.section)),)
CHECKS = (
    Check(_resize_requests, last_block.OF_ANY),
    Check(_requests_of(last_block), last_block.ROWS),
    Check(_requests_of(resnet), resnet.ROWS),
    Check(_resize_requests, _BUILDS),
)


def check_resize(section: Any, config_model: Any, init_from: str) -> None:
    """Raises UserError for a section `model.resize` that the model or its weights cannot have.

    config_model: the model config before. init_from: the stage's.
    """
    rows = (*last_block.OF_ANY, *SURGERY[config_model["kind"]].ROWS, *_BUILDS)
    checks.run(rows, ResizeRequest(section, config_model, init_from))
