"""Reads and writes timm's ViTs: folders as on its hub; reads also single files of tensors.

A folder has config.json with `architecture`, `global_pool`, `model_args`. For a file alone the
model config follows from the tensors (see `torch_vit`).
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.models.visual.pooling import CLS_DIST
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.weights import fields, writable
from flax_adapt.weights.files import files, reading, writing
from flax_adapt.weights.formats import torch_vit
from flax_adapt.weights.names import timm as timm_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content

TABLE = timm_names.TIMM
# Fields that a file does not hold, with the values that are assumed; a folder has the GELU.
FIXED = dict(layer_norm_eps=torch_vit.LAYER_NORM_EPS, last_block=None, adaptor=None)
# "silu" is that of SwiGLU, which has no GELU.
ACT_LAYER = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
GELU: dict[Any, str] = {v: k for k, v in ACT_LAYER.items()} | {
    None: "erf",
    "silu": "erf",
}
# DINOv2's giant: the only one of timm whose MLPs are SwiGLU in one layer.
SWIGLU = "vit_giant_patch14_dinov2"
# Our pooling -> timm's; "mean_norm" also has `fc_norm`.
GLOBAL_POOL = {"cls": "token", "mean": "avg", "mean_norm": "avg", CLS_DIST: "token"}
# DeiT's class for models with a distillation token, which has two heads.
DISTILLED = "deit_base_distilled_patch16_224"
# Arguments of timm with the only supported value; the tensors do not show others.
SUPPORTED: dict[str, Any] = dict(
    norm_layer=None, pool_include_prefix=False, block_fn=None, attn_layer=None
)
# Our size -> an architecture of timm; all of these have the same class.
ARCHITECTURES = {
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
}
# Architectures that the module `torchvision` reads, or refuses by name.
RESNET = re.compile(r"(?!vit_).*resne[xs]?t")
MEAN, STD = "mean", "std"
SOURCE = "timm"
DINOV3 = "dinov3"  # in the names of architectures that the module `dinov3` reads
# Contents besides config and parameters that a folder can hold.
PLACES = ("preprocessor", "class_names")


def detect(path: Path) -> bool:
    """Whether a path is a folder of timm with a ViT, or a file with timm's names."""
    if path.is_dir():
        theirs = fields.text(read_architecture(path) or "")
        return bool(theirs) and not has_resnet(path) and DINOV3 not in theirs
    others = torch_vit.has_decoder, torch_vit.is_dinov2
    return torch_vit.is_vit(path) and not any(other(path) for other in others)


def has_resnet(folder: Path) -> bool:
    """Whether a folder is one of timm with a kind of ResNet."""
    return bool(RESNET.match(fields.text(read_architecture(folder))))


def read_architecture(folder: Path) -> Any:
    """Returns `architecture` of config.json; None: this is no folder of timm."""
    file = folder / reading.CONFIG
    if not files.is_file(file):
        return None
    return reading.read_json(file).get("architecture")


def config_json(path: Path) -> dict[str, Any]:
    """Returns config.json with dicts `model_args` and `pretrained_cfg`, empty for a file."""
    if not path.is_dir():
        return {"model_args": {}, "pretrained_cfg": {}}
    theirs = reading.read_json(path / reading.CONFIG)
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(theirs.setdefault(name, {}), dict):
            raise UserError(f"{path}/{reading.CONFIG}: {name} must be an object")
    return theirs


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a folder or file."""
    with reading.open_tensors(path, known) as tensors:
        return torch_vit.model_config(
            path, TABLE, tensors, _fields_of_config(path) | dict(known)
        )


def image_side(path: Path) -> int | None:
    """Returns the side of the images in config.json, or None if it has none.

    Raises UserError for images that are not square. Tensors do not show this: 16 x 64 pixels
    have as many patches as 32 x 32.
    """
    theirs, where = config_json(path), f"{path}/{reading.CONFIG}"
    size = theirs["pretrained_cfg"].get("input_size")
    args = theirs["model_args"]
    if size is not None and (not isinstance(size, list) or len(size) != 3):
        raise UserError(
            f"{where}: input_size={fields.show(size)} must be three numbers"
        )
    sides = {
        "patch_size": args.get("patch_size"),
        "img_size": args.get("img_size"),
        "input_size": None if size is None else size[1:],
    }
    found = {
        name: fields.square(f"{where}: {name}", side)
        for name, side in sides.items()
        if side is not None
    }
    return found.get("img_size", found.get("input_size"))


def _has_swiglu(path: Path) -> bool:
    with reading.open_tensors(path, {}) as tensors:
        return torch_vit.has_swiglu(tensors)


def _fields_of_config(path: Path) -> dict[str, Any]:
    """Returns the fields of the model config that only config.json has."""
    theirs, where = config_json(path), f"{path}/{reading.CONFIG}"
    image_side(path)
    args = theirs["model_args"]
    fields.check_supported(where, args, SUPPORTED)
    act = args.get("act_layer")
    if act is None and "quickgelu" in fields.text(theirs.get("architecture")):
        act = ACT_LAYER["quick"]
    if act not in tuple(GELU) or (act == "silu" and not _has_swiglu(path)):
        raise UserError(
            f"{where}: act_layer={fields.show(act)} is not one of {tuple(GELU)}"
        )
    known: dict[str, Any] = {"gelu": GELU[act]} if act else {}
    return known | ({"heads": args["num_heads"]} if "num_heads" in args else {})


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the pooling of a classifier, see `_pooling`."""
    return _pooling(path, known)[0]


def _pooling(path: Path, known: Mapping[str, Any]) -> tuple[str, bool]:
    """Returns (pooling of a classifier, whether config.json has it).

    For a file alone it is the mean if there is a norm after the pooling, else assumed CLS.
    """
    theirs, has_norm = config_json(path), torch_vit.has_fc_norm(path, known)
    found = theirs["model_args"].get("global_pool", theirs.get("global_pool"))
    default = "avg" if has_norm else "token"
    two_heads = torch_vit.has_distillation(reading.tensor_names(path, known))
    token = CLS_DIST if two_heads else "cls"
    ours = {"token": token, "": token, "avg": "mean_norm" if has_norm else "mean"}
    text = fields.text(default if found is None else found)
    where = f"{path}/{reading.CONFIG}: global_pool"
    return choose(where, text, ours), found is not None


def class_names(path: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes, or None if the folder has no list of them."""
    found = config_json(path).get("label_names")
    if found is None or isinstance(found, dict):
        return None
    if not isinstance(found, list) or {*map(type, found)} != {str}:
        raise UserError(f"{path}/{reading.CONFIG}: label_names must be a list of names")
    return tuple(found)


def pixel_statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1], or None if the folder has none."""
    theirs = config_json(path)["pretrained_cfg"]
    if MEAN not in theirs or STD not in theirs:
        return None
    renamed = {"image_mean": theirs[MEAN], "image_std": theirs[STD]}
    return fields.pixel_statistics(f"{path}/{reading.CONFIG}", renamed)


def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> AbstractContextManager[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    own, is_stated = _pooling(path, known)
    stated = ("pooling",) if is_stated else ()
    known = _fields_of_config(path) | dict(known)
    return torch_vit.open_source(path, TABLE, known, task, pooling, own, stated)


def write(path: Path, content: Content) -> None:
    """Writes a folder for `timm.create_model("local-dir:PATH", pretrained=True)`."""
    writable.check_config(path, SOURCE, content, FIXED, kind="vit")
    writable.check_no_decoder(path, SOURCE, content)
    writable.check_no_extras(path, SOURCE, content, PLACES)
    writable.check_class_names(path, content)
    _check_traits(path, content.config)
    traits = content.config["traits"] or make_fields()
    poolings = [
        name for name in GLOBAL_POOL if (name == CLS_DIST) == traits["distilled"]
    ]
    writable.check_pooling(path, SOURCE, content, poolings)
    jsons = make_json(content, content.config)
    if content.class_names:
        labels = fields.labels_json(content.num_classes, content.class_names)
        jsons["label_names"] = list(labels["id2label"].values())
    table = timm_names.with_swiglu(TABLE) if traits["swiglu"] else TABLE
    if content.pooling == "mean_norm":
        table = timm_names.with_pooled_norm(table)
    tensors = translate.to_tensors(table, content.leaves, content.config, "")
    writing.write(path, tensors, {reading.CONFIG: jsons}, [])


def _check_traits(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError for traits that timm's ViT has not, or not together."""
    traits = config["traits"] or make_fields()
    names = ("layer_scale", "swiglu", "position_resize", "registers", "distilled")
    allowed = make_fields(**{k: traits[k] for k in (*names, "cls_position")})
    wrong = {name: v for name, v in traits.items() if v != allowed[name]}
    if traits["registers"] and traits["cls_position"]:
        wrong["cls_position"] = "True of a model with registers"
    if traits["distilled"] and (traits["registers"] or not traits["cls_position"]):
        wrong["distilled"] = (
            "True of a model with registers, or without positions of CLS"
        )
    if wrong:
        texts = ", ".join(f"traits.{name}={value}" for name, value in wrong.items())
        raise UserError(f"{path}: {SOURCE} cannot hold {texts}; choose another format")


def _traits_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of timm that make the traits of a model."""
    traits = config["traits"] or make_fields()
    args: dict[str, Any] = {}
    if traits["layer_scale"]:
        args["init_values"] = 1e-5
    if traits["registers"]:
        args["reg_tokens"] = traits["registers"]
    if not traits["cls_position"]:
        args["no_embed_class"] = True
    if traits["swiglu"]:
        ratio = torch_vit.mlp_ratio(config["width"], 2 * config["mlp_dim"])
        args |= {"mlp_ratio": ratio, "act_layer": "silu"}
        args.setdefault("init_values", None)
    return args


def make_json(content: Content, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json of a model with that model config."""
    pooling = content.pooling
    size, width = config["image_size"], config["width"]
    near = next((k for k in ARCHITECTURES if models.SIZES[k]["width"] == width), "B")
    args = _traits_args(config)
    architecture = SWIGLU if args.get("act_layer") == "silu" else ARCHITECTURES[near]
    if config["traits"] and config["traits"]["distilled"]:
        architecture = DISTILLED
    statistics = {}
    if content.preprocessor is not None:
        mean, std = (content.preprocessor[f"image_{name}"] for name in (MEAN, STD))
        statistics = {MEAN: list(mean), STD: list(std)}
    return {
        "architecture": architecture,
        "num_classes": content.num_classes,
        "num_features": width,
        "global_pool": GLOBAL_POOL.get(pooling, "token"),
        "model_args": dict(
            img_size=size,
            patch_size=config["patch_size"],
            in_chans=config["channels"],
            embed_dim=width,
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=torch_vit.mlp_ratio(width, config["mlp_dim"]),
            qkv_bias=config["qkv_bias"],
            act_layer=ACT_LAYER[config["gelu"]],
            global_pool=GLOBAL_POOL.get(pooling, "token"),
            fc_norm=pooling == "mean_norm",
        )
        | args,
        "pretrained_cfg": dict(
            input_size=[config["channels"], size, size],
            fixed_input_size=True,
            interpolation="bilinear",
            crop_pct=1.0,
            num_classes=content.num_classes,
            first_conv="patch_embed.proj",
            classifier="head",
            **statistics,
        ),
    }
