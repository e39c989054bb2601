"""Architectures of ResNets: the numbers that one is built from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError
from flax_adapt.models.architecture import LastBlock

# Output channels of a block, in multiples of its planes (He et al. 2016, table 1).
EXPANSION = 4
MAX_STAGES = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The architecture of a ResNet with bottleneck blocks; raises UserError for wrong values.

    image_size      of the input images; the shape of no parameter depends on it
    stem_width      channels after the first convolution
    planes, depths  of each stage: width of its 3x3 convolutions, number of its blocks; all
                    published ResNets have four stages
    batch_norm_momentum  the weight of each batch in the running statistics
    last_block      None is an ordinary one; else of kind "resized": `LastBlock`
    """

    kind: str
    image_size: int
    channels: int
    stem_width: int
    planes: tuple[int, ...]
    depths: tuple[int, ...]
    batch_norm_eps: float
    batch_norm_momentum: float
    last_block: LastBlock | None

    def __post_init__(self):
        # Lists, as JSON has them, would not hash.
        for name in ("planes", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_stages(self)
        _check_last_block(self.last_block)


def _check_stages(config: ResNetConfig) -> None:
    planes, depths = config.planes, config.depths
    if not 1 <= len(planes) == len(depths) <= MAX_STAGES or min(planes + depths) < 1:
        raise UserError(
            f"model.planes={planes} and model.depths={depths} must have a number of at "
            f"least 1 for each of 1 to {MAX_STAGES} stages"
        )
    if not 0 < config.batch_norm_momentum <= 1:
        raise UserError(
            f"model.batch_norm_momentum={config.batch_norm_momentum} must lie in (0, 1]"
        )


def _check_last_block(last_block: LastBlock | None) -> None:
    """Raises UserError for a last block that a ResNet cannot have.

    A ResNet always ends in a ReLU, and it has no LayerNorm, for which norm_width is
    meant.
    """
    if last_block is None:
        return
    wanted = dict(kind="resized", relu=True, norm_width=0, mlp_dim=0)
    for name, value in wanted.items():
        found = getattr(last_block, name)
        if found != value:
            raise UserError(
                f"model.last_block.{name}={found!r} must be {value!r} for a resnet"
            )


def output_width(config_model: Mapping[str, Any]) -> int:
    """Returns the width of the features of a model config of any kind.

    The last block is taken to be an ordinary one.
    """
    if config_model["kind"] == "resnet":
        return EXPANSION * config_model["planes"][-1]
    return config_model["width"]


class BottleneckPlan(NamedTuple):
    """The arguments of a block; `projects`: its shortcut has a convolution."""

    stage: int
    number: int
    planes: int
    width: int
    stride: int
    projects: bool


def bottleneck_plans(config: ResNetConfig) -> list[BottleneckPlan]:
    """Returns the blocks of an encoder in order; `stage` counts from 1, as torch does.

    A shortcut has a convolution where shapes differ, and in a resized last block always
    (Bordes et al. 2023: at D = 2048, too).
    """
    plans, width = [], config.stem_width
    sizes = zip(config.planes, config.depths, strict=True)
    for stage, (planes, depth) in enumerate(sizes, start=1):
        for number in range(depth):
            end = EXPANSION * planes
            stride = 2 if stage > 1 and number == 0 else 1
            projects = stride > 1 or width != end
            plans.append(BottleneckPlan(stage, number, planes, end, stride, projects))
            width = end
    if config.last_block is not None:
        plans[-1] = plans[-1]._replace(width=config.last_block.width, projects=True)
    return plans
