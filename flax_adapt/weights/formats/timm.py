"""timm's ViTs: folders as on its hub, or one file of tensors, in both directions.

A folder has config.json with `architecture`, `global_pool`, `model_args`. Of a file
alone the architecture is read off the tensors (see `torch_vit`).
"""

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.weights import fields, writable
from flax_adapt.weights.files import files, reading, writing
from flax_adapt.weights.formats import torch_vit
from flax_adapt.weights.names import timm as timm_names
from flax_adapt.weights.names import translate

TABLE = timm_names.TIMM
# What a file cannot say otherwise; a folder can say which GELU.
FIXED = dict(layer_norm_eps=torch_vit.LAYER_NORM_EPS, last_block=None, adaptor=None)
GELU = {None: "erf", "gelu": "erf", "gelu_tanh": "tanh"}
ACT_LAYER = {"erf": "gelu", "tanh": "gelu_tanh"}
# Pooling of ours -> timm's; "mean_norm" also has `fc_norm`.
GLOBAL_POOL = {"cls": "token", "mean": "avg", "mean_norm": "avg"}
# Arguments whose other values leave no trace in the tensors.
SUPPORTED: dict[str, Any] = dict(
    norm_layer=None, pool_include_prefix=False, block_fn=None, attn_layer=None
)
# timm knows a model by the name of an architecture; all of them are one class.
ARCHITECTURES = {
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
}
# Those that `torchvision` reads, or refuses by name.
RESNET = re.compile(r"(?!vit_).*resne[xs]?t")
MEAN, STD = "mean", "std"


def detect(path: Path) -> bool:
    """Whether it is a folder of timm's, or a file of a ViT with timm's names."""
    if path.is_dir():
        return _architecture(path) is not None and not has_resnet(path)
    return torch_vit.is_vit(path) and not torch_vit.has_decoder(path)


def has_resnet(folder: Path) -> bool:
    """Whether it is a folder of timm's, not with a ViT but with a kind of ResNet."""
    return bool(RESNET.match(fields.text(_architecture(folder))))


def _architecture(folder: Path) -> Any:
    """What config.json says; None: it is no folder of timm's."""
    file = folder / reading.CONFIG
    if not files.is_file(file):
        return None
    return reading.read_json(file).get("architecture")


def config_json(path: Path) -> dict[str, Any]:
    """Returns config.json with a dict of `model_args`; of a file, {}."""
    if not path.is_dir():
        return {"model_args": {}, "pretrained_cfg": {}}
    theirs = reading.read_json(path / reading.CONFIG)
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(theirs.setdefault(name, {}), dict):
            raise UserError(f"{path}/{reading.CONFIG}: {name} must be an object")
    return theirs


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a folder or file."""
    with reading.open_tensors(path) as tensors:
        return torch_vit.model_config(path, TABLE, tensors, _known(path) | dict(known))


def _known(path: Path) -> dict[str, Any]:
    """What config.json tells and tensors do not."""
    theirs, where = config_json(path), f"{path}/{reading.CONFIG}"
    args = theirs["model_args"]
    fields.check_supported(where, args, SUPPORTED)
    if "quickgelu" in fields.text(theirs.get("architecture")):
        raise UserError(f"{where}: QuickGELU: our models cannot do this")
    act = args.get("act_layer")
    if act not in tuple(GELU):
        raise UserError(
            f"{where}: act_layer={fields.show(act)} is not one of {tuple(GELU)}"
        )
    known: dict[str, Any] = {"gelu": GELU[act]} if act else {}
    return known | ({"heads": args["num_heads"]} if "num_heads" in args else {})


def pooling(path: Path) -> str:
    """Returns the pooling of a classifier, see `_pooling`."""
    return _pooling(path)[0]


def _pooling(path: Path) -> tuple[str, bool]:
    """Returns the pooling of a classifier, and whether config.json tells it.

    Of a file alone it is the mean where there is a norm for that, else taken to be CLS.
    """
    theirs, has_norm = config_json(path), torch_vit.has_fc_norm(path)
    found = theirs["model_args"].get("global_pool", theirs.get("global_pool"))
    default = "avg" if has_norm else "token"
    known = {"token": "cls", "": "cls", "avg": "mean_norm" if has_norm else "mean"}
    text = fields.text(default if found is None else found)
    where = f"{path}/{reading.CONFIG}: global_pool"
    return choose(where, text, known), found is not None


def class_names(path: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes, if a folder has them in order."""
    found = config_json(path).get("label_names")
    if found is None or isinstance(found, dict):
        return None
    if not isinstance(found, list) or {*map(type, found)} != {str}:
        raise UserError(f"{path}/{reading.CONFIG}: label_names must be a list of names")
    return tuple(found)


def pixel_statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1], if a folder tells."""
    theirs = config_json(path)["pretrained_cfg"]
    if MEAN not in theirs or STD not in theirs:
        return None
    renamed = {"image_mean": theirs[MEAN], "image_std": theirs[STD]}
    return fields.pixel_statistics(f"{path}/{reading.CONFIG}", renamed)


def opened(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> AbstractContextManager[translate.Opened]:
    """Gives (model config, {leaf: what reads it}, fields of `strict.Report`)."""
    own, is_told = _pooling(path)
    told = ("pooling",) if is_told else ()
    known = _known(path) | dict(known)
    return torch_vit.opened(path, TABLE, known, task, pooling, own, told)


def write(
    path: Path,
    config: Mapping[str, Any],
    leaves: Mapping[str, Any],
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
    tokenizer: Path | None,
    class_names: tuple[str, ...] | None,
) -> None:
    """Writes a folder for `timm.create_model("local-dir:PATH", pretrained=True)`."""
    writable.check_config(path, "timm", config, FIXED, kind="vit")
    writable.check_nothing_beside(path, "timm", tokenizer=tokenizer)
    if task == "mae":
        raise UserError(f"{path}: timm has no decoder; save the task 'encoder'")
    bias = leaves.get("head/bias")
    num_classes = 0 if bias is None else len(bias)
    jsons = _jsons(config, num_classes, pooling, preprocessor)
    if class_names:
        labels = fields.labels_json(num_classes, class_names)["id2label"]
        jsons["label_names"] = list(labels.values())
    table = timm_names.pooled(TABLE) if pooling == "mean_norm" else TABLE
    tensors = translate.to_tensors(table, leaves, config, "")
    writing.write(path, tensors, {reading.CONFIG: jsons}, [])


def _jsons(
    config: Mapping[str, Any],
    num_classes: int,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
) -> dict[str, Any]:
    size, width = config["image_size"], config["width"]
    sizes = {name: models.SIZES[name]["width"] for name in ARCHITECTURES}
    near = next((name for name, found in sizes.items() if found == width), "B")
    statistics = {}
    if preprocessor is not None:
        mean, std = preprocessor["image_mean"], preprocessor["image_std"]
        statistics = {MEAN: list(mean), STD: list(std)}
    return {
        "architecture": ARCHITECTURES[near],
        "num_classes": num_classes,
        "num_features": width,
        "global_pool": GLOBAL_POOL[pooling],
        "model_args": dict(
            img_size=size,
            patch_size=config["patch_size"],
            in_chans=config["channels"],
            embed_dim=width,
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=mlp_ratio(width, config["mlp_dim"]),
            qkv_bias=config["qkv_bias"],
            act_layer=ACT_LAYER[config["gelu"]],
            global_pool=GLOBAL_POOL[pooling],
            fc_norm=pooling == "mean_norm",
        ),
        "pretrained_cfg": dict(
            input_size=[config["channels"], size, size],
            fixed_input_size=True,
            interpolation="bilinear",
            crop_pct=1.0,
            num_classes=num_classes,
            first_conv="patch_embed.proj",
            classifier="head",
            **statistics,
        ),
    }


def mlp_ratio(width: int, mlp_dim: int) -> float:
    """Returns the ratio of which timm makes int(width * ratio) = mlp_dim."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)
