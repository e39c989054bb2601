"""Facebook's MAE: encoder alone, `mae_visualize_*` with the decoder, or fine-tuned.

We read files of torch, with the tensors in "model", and write a safetensors file with the same
names, for `model.load_state_dict(safetensors.torch.load_file(path))`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flax_adapt.weights import writable
from flax_adapt.weights.files import reading, writing
from flax_adapt.weights.formats import torch_vit
from flax_adapt.weights.names import timm as timm_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content

TABLE = timm_names.FACEBOOK
SUFFIX = ".safetensors"
FIXED = dict(
    layer_norm_eps=torch_vit.LAYER_NORM_EPS,
    gelu=torch_vit.GELU,
    qkv_bias=True,
    last_block=None,
    adaptor=None,
    traits=None,
)
SOURCE = "Facebook's MAE"
# Whether the file has a norm after the pooling -> the pooling.
POOLING = {False: "cls", True: "mean_norm"}


def detect(path: Path) -> bool:
    """Whether a file has the decoder; files without it look like those of timm."""
    return torch_vit.is_vit(path) and torch_vit.has_decoder(path)


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a file."""
    with reading.open_tensors(path, known) as tensors:
        return torch_vit.model_config(path, TABLE, tensors, known)


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the pooling of a fine-tuned model: `--global_pool`, or `--cls_token`."""
    return POOLING[torch_vit.has_fc_norm(path, known)]


def class_names(path: Path) -> None:
    """Returns None: a file has no names of classes."""
    del path


def pixel_statistics(path: Path) -> None:
    """Returns None: a file has no mean and std of pixels."""
    del path


def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> AbstractContextManager[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    own = POOLING[torch_vit.has_fc_norm(path, known)]
    return torch_vit.open_source(path, TABLE, known, task, pooling, own, ())


def write(path: Path, content: Content) -> None:
    """Writes a safetensors file; raises UserError for a model that it cannot hold."""
    writable.check_config(path, SOURCE, content, FIXED, kind="vit")
    writable.check_no_extras(path, SOURCE, content)
    writable.check_file(path, SOURCE, SUFFIX)
    writable.check_pooling(path, SOURCE, content, tuple(POOLING.values()))
    table = (
        timm_names.with_pooled_norm(TABLE) if content.pooling == "mean_norm" else TABLE
    )
    tensors = translate.to_tensors(table, content.leaves, content.config, "")
    writing.write_file(path, tensors, writing.save_safetensors)
