"""The model config of a ResNet, from shapes of tensors with torchvision's names.

Tensors do not show the size of images, eps and momentum of batch norm, which convolution of a
block has the stride of 2 (torchvision and timm: the 3x3 one), and timm's anti-aliasing.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.models.resnet_config import EXPANSION, MAX_STAGES
from flax_adapt.weights import fields
from flax_adapt.weights.files import reading
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.resnet import TORCHVISION

# Assumed values: those of torch.nn.BatchNorm2d, and of models for ImageNet.
ASSUMED = dict(image_size=224, batch_norm_eps=1e-5, batch_norm_momentum=0.1)
STEM_SIZE = 7
KIND = "ResNet of bottleneck blocks"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
FIRST = "layer1.0.conv1.weight"
Tensors = Mapping[str, LazyTensor]
_shape = functools.partial(translate.shape_of, KIND)


def is_resnet(path: Path) -> bool:
    """Whether a path is a file of tensors with torchvision's names."""
    if path.suffix not in SUFFIXES or path.is_dir():
        return False
    return FIRST in reading.tensor_names(path)


def model_config(
    where: Path, tensors: Tensors, stated: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns our model config of the tensors; stated: fields of ASSUMED with known values.

    Raises UserError for a ResNet that our models cannot compute.
    """
    translate.check_names(where, TORCHVISION, tensors)
    stem_width, channels, rows, columns = _shape(where, tensors, "conv1.weight", 4)
    if (rows, columns) != (STEM_SIZE, STEM_SIZE):
        raise UserError(
            f"{where}: conv1.weight is a convolution of {rows} x {columns}: our stem has "
            f"{STEM_SIZE} x {STEM_SIZE}"
        )
    if "bn1.running_mean" not in tensors:
        raise UserError(
            f"{where}: no running statistics (bn1.running_mean): our models have batch "
            "norm, no other"
        )
    known = [f"layer{number}" for number in range(1, MAX_STAGES + 1)]
    stages = [name for name in known if f"{name}.0.conv1.weight" in tensors] or known
    config = {
        "kind": "resnet",
        "channels": channels,
        "stem_width": stem_width,
        "planes": [_planes(where, tensors, stage) for stage in stages],
        "depths": [_depth(tensors, stage) for stage in stages],
        "last_block": None,
        **ASSUMED,
        **stated,
    }
    fields.check_sizes(str(where), config)
    return config


def _planes(where: Path, tensors: Tensors, stage: str) -> int:
    """Returns the width of the 3x3 convolutions of a stage.

    Raises UserError unless its first block is an ordinary bottleneck block.
    """
    if (
        f"{stage}.0.conv3.weight" not in tensors
        and f"{stage}.0.conv2.weight" in tensors
    ):
        raise UserError(
            f"{where}: blocks of two convolutions (ResNet-18, ResNet-34): our models "
            "have bottleneck blocks alone"
        )
    planes = _shape(where, tensors, f"{stage}.0.conv1.weight", 4)[0]
    inner = _shape(where, tensors, f"{stage}.0.conv2.weight", 4)[1]
    width = _shape(where, tensors, f"{stage}.0.conv3.weight", 4)[0]
    if inner != planes:
        raise UserError(
            f"{where}: grouped convolutions ({stage}.0.conv2.weight; ResNeXt): our models "
            "cannot do this"
        )
    if width != EXPANSION * planes:
        raise UserError(
            f"{where}: {stage}.0 widens {planes} channels to {width}, not {EXPANSION} "
            "times (wide ResNets): our models cannot do this"
        )
    return planes


def _depth(tensors: Tensors, stage: str) -> int:
    pattern = re.compile(rf"{stage}\.(\d{{1,4}})\.")
    return len({int(found[1]) for name in tensors if (found := pattern.match(name))})
