"""ResNets with torchvision's names: files of torchvision or timm, folders of timm's hub.

We read `.pth` and `.safetensors`, and write a safetensors file, for
`model.load_state_dict(safetensors.torch.load_file(path))`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import choose
from flax_adapt.weights import fields, writable
from flax_adapt.weights.files import reading, writing
from flax_adapt.weights.formats import timm, torch_resnet
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.resnet import TORCHVISION
from flax_adapt.weights.writable import Content

TABLE = TORCHVISION
SOURCE, SUFFIX, POOLING = "torchvision", ".safetensors", "mean"
# Fields that a file does not hold, with the values that all its readers assume.
FIXED = dict(last_block=None, batch_norm_eps=torch_resnet.ASSUMED["batch_norm_eps"])
# Supported architectures of timm; others with the same tensors compute something else
# (anti-aliasing, ...).
ARCHITECTURES = dict.fromkeys(
    ("resnet26", "resnet50", "resnet101", "resnet152", "resnet200")
)
# Arguments of timm with the only supported value; the tensors do not show others.
SUPPORTED: dict[str, Any] = dict(
    output_stride=32, aa_layer=None, act_layer=None, block=None, norm_layer=None
)
# Task -> parts of the parameters that it does not have.
DROPPED = {"encoder": ("head",), "classify": ()}


def detect(path: Path) -> bool:
    """Whether a path is a file with torchvision's names, or a folder of timm with a ResNet."""
    return timm.has_resnet(path) if path.is_dir() else torch_resnet.is_resnet(path)


def _fields_of_config(path: Path) -> dict[str, Any]:
    """Returns the fields of the model config that only config.json has; for a file {}."""
    if not path.is_dir():
        return {}
    theirs, where = timm.config_json(path), f"{path}/{reading.CONFIG}"
    choose(
        f"{where}: architecture", fields.text(theirs.get("architecture")), ARCHITECTURES
    )
    fields.check_supported(where, theirs["model_args"], SUPPORTED)
    found = theirs["model_args"].get("global_pool", theirs.get("global_pool", "avg"))
    choose(f"{where}: global_pool", fields.text(found), {"avg": None, "": None})
    side = timm.image_side(path)
    return {} if side is None else {"image_size": side}


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a folder or file."""
    fields.check_known(path, known, (reading.WEIGHTS,))
    with reading.open_tensors(path, known) as tensors:
        return torch_resnet.model_config(path, tensors, _fields_of_config(path))


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the only pooling of ResNets."""
    del path, known
    return POOLING


class_names = timm.class_names
pixel_statistics = timm.pixel_statistics


@contextlib.contextmanager
def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    fields.check_known(path, known, (reading.WEIGHTS,))
    stated = _fields_of_config(path)
    with reading.open_tensors(path, known) as tensors:
        config = torch_resnet.model_config(path, tensors, stated)
        fields.check_task(path, config, task)
        leaves, found = translate.to_leaves(TABLE, tensors, DROPPED[task], task)
        found["assumed"] = fields.assumed_values(
            config, pooling, {*stated, "pooling"}, task
        )
        yield config, leaves, found


def write(path: Path, content: Content) -> None:
    """Writes a safetensors file; raises UserError for a model that it cannot hold."""
    writable.check_config(path, SOURCE, content, FIXED, kind="resnet")
    writable.check_no_extras(path, SOURCE, content)
    writable.check_file(path, SOURCE, SUFFIX)
    tensors = translate.to_tensors(TABLE, content.leaves, content.config, "")
    writing.write_file(path, tensors, writing.save_safetensors)
