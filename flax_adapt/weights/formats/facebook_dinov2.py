"""Facebook's DINOv2, `dinov2_*_pretrain.pth`: the encoder alone, with or without registers.

We read files of torch and write a safetensors file with the same names, for
`model.load_state_dict(safetensors.torch.load_file(path))`. The mask token of pre-training is
not a part of our models: it is ignored, and written as zeros.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.weights import writable
from flax_adapt.weights.files import reading, writing
from flax_adapt.weights.formats import torch_vit
from flax_adapt.weights.formats.facebook import class_names as class_names
from flax_adapt.weights.formats.facebook import pixel_statistics as pixel_statistics
from flax_adapt.weights.names import timm as timm_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content

TABLE = timm_names.DINOV2
SUFFIX = ".safetensors"
FIXED = dict(
    layer_norm_eps=torch_vit.LAYER_NORM_EPS,
    gelu=torch_vit.GELU,
    qkv_bias=True,
    last_block=None,
    adaptor=None,
)
SOURCE = "Facebook's DINOv2"
# The linear probe of one layer, in its official code.
POOLING = "cls_mean"


def detect(path: Path) -> bool:
    """Whether a file has the mask token and LayerScale of DINOv2."""
    return torch_vit.is_vit(path) and torch_vit.is_dinov2(path)


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a file."""
    with reading.open_tensors(path, known) as tensors:
        return torch_vit.model_config(path, TABLE, tensors, known)


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the pooling of the model's own linear probe."""
    del path, known
    return POOLING


def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> AbstractContextManager[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    return torch_vit.open_source(path, TABLE, known, task, pooling, POOLING, ())


def write(path: Path, content: Content) -> None:
    """Writes a safetensors file; raises UserError for a model that it cannot hold."""
    writable.check_config(path, SOURCE, content, FIXED, kind="vit")
    writable.check_no_extras(path, SOURCE, content)
    writable.check_file(path, SOURCE, SUFFIX)
    if content.task != "encoder":
        raise UserError(
            f"{path}: {SOURCE} is an encoder alone; save the task 'encoder'"
        )
    traits = content.config["traits"]
    names = ("registers", "swiglu", "position_resize")
    own = traits and make_fields(layer_scale=True, **{k: traits[k] for k in names})
    if traits is None or traits != own:
        raise UserError(
            f"{path}: {SOURCE} has LayerScale and a position of CLS, unlike "
            f"traits={traits}; choose another format"
        )
    table = timm_names.with_swiglu(TABLE) if traits["swiglu"] else TABLE
    tensors = translate.to_tensors(table, content.leaves, content.config, "")
    zeros = {"mask_token": (1, content.config["width"])}
    tensors = translate.with_zeros(tensors, zeros)
    writing.write_file(path, tensors, writing.save_safetensors)
