"""The model config of timm's ViT and Facebook's MAE, from names and shapes of their tensors.

Tensors do not show the number of heads, GELU and LayerNorm's eps. The number of heads is
assumed to be that of the published model of the same width, depth and mlp_dim. `known` can set
all of them; the report lists the assumed ones.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.pooling import CLS_DIST
from flax_adapt.models.visual.traits import PLAIN
from flax_adapt.weights import fields
from flax_adapt.weights.files import reading
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.names import timm as timm_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.names import Names

LAYER_NORM_EPS, GELU = 1e-6, "erf"
# Fields that `known` may have.
KNOWN = ("heads", "decoder_heads", "gelu", "layer_norm_eps", reading.WEIGHTS)
DROPPED = {
    "mae": ("head", "head_dist"),
    "encoder": ("decoder", "head", "head_dist"),
    "classify": ("decoder",),
}


def _heads_of(sizes: Iterable[Mapping[str, int]]) -> dict[tuple[int, ...], int]:
    """Returns {(width, depth, mlp_dim): heads}."""
    return {(s["width"], s["depth"], s["mlp_dim"]): s["heads"] for s in sizes}


# Field of `known` -> numbers of heads of published models. The last encoders: DeiT III's
# medium (timm's deit3_medium_patch16_224), g/14 and G/14 of Zhai et al. 2022, and DINOv2's
# g/14. The decoder is that of all of Facebook's models.
HEADS = {
    "heads": _heads_of(models.SIZES.values())
    | {(512, 12, 2048): 8, (1408, 40, 6144): 16, (1664, 48, 8192): 16}
    | {(1536, 40, 4096): 24},
    "decoder_heads": _heads_of([models.PAPER_DECODER]),
}
Tensors = Mapping[str, LazyTensor]
shape_of = functools.partial(translate.shape_of, "plain ViT")
# Tensors of the first block that show LayerScale, and the kind of MLP.
LAYER_SCALE, FACEBOOK_SWIGLU = "blocks.0.ls1.gamma", "blocks.0.mlp.w12.weight"
MLP = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
CLIP = "norm_pre.weight"
REGISTERS = {"reg_token", "storage_tokens"}
# Tensors that show DINOv3, which has registers, in timm's spelling and in Facebook's.
DINOV3 = ("blocks.0.gamma_1", "storage_tokens")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def model_config(
    where: Path, table: Names, tensors: Tensors, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns our model config of the tensors in a file or folder.

    Raises UserError for a model that ours cannot compute, or whose heads are not known.
    """
    fields.check_known(where, known, KNOWN)
    if CLIP in tensors:
        raise UserError(
            f"{where}: a norm before the blocks ({CLIP}), as timm's CLIP has: give the folder "
            "of transformers' CLIPVisionModel, such as openai/clip-vit-base-patch16"
        )
    translate.check_names(where, fit_table(table, tensors), tensors)
    width, channels, patch_size, columns = shape_of(
        where, tensors, "patch_embed.proj.weight", 4
    )
    if patch_size != columns:
        raise UserError(f"{where}: patches of {patch_size} x {columns}: only squares")
    grid = _grid(where, tensors)
    sizes = dict(width=width, **_block_sizes(where, tensors, "blocks"))
    config = {
        "kind": "vit",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "channels": channels,
        **sizes,
        "heads": _heads(where, sizes, known, "heads"),
        "layer_norm_eps": known.get("layer_norm_eps", LAYER_NORM_EPS),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "gelu": known.get("gelu", GELU),
        "pooler": False,
        "last_block": None,
        "adaptor": None,
        "traits": _traits(where, table, tensors),
        "decoder": _decoder(where, tensors, known),
    }
    fields.check_sizes(str(where), config)
    return config


@contextlib.contextmanager
def open_source(
    path: Path,
    table: Names,
    known: Mapping[str, Any],
    task: str,
    pooling: str,
    own: str,
    stated: Collection[str],
) -> Iterator[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`).

    own: the pooling of the source. With another pooling its `fc_norm`, which normalises the
    pooled features, is a part of the head. stated: fields besides those of `known` whose values
    are not assumed.
    """
    with reading.open_tensors(path, known) as tensors:
        config = model_config(path, table, tensors, known)
        fields.check_task(path, config, task)
        table = fit_table(table, tensors)
        table = timm_names.with_pooled_norm(table) if pooling == own else table
        second = () if pooling == CLS_DIST else ("head_dist",)
        dropped = (*DROPPED[task], *second)
        leaves, found = translate.to_leaves(table, tensors, dropped, task)
        stated = {*known, *stated} | ({"pooling"} if pooling != own else set())
        found["assumed"] = fields.assumed_values(config, own, stated, task)
        yield config, leaves, found


def _decoder(
    where: Path, tensors: Tensors, known: Mapping[str, Any]
) -> dict[str, int] | None:
    if "decoder_embed.weight" not in tensors:
        return None
    width = shape_of(where, tensors, "decoder_embed.weight", 2)[0]
    sizes = dict(width=width, **_block_sizes(where, tensors, "decoder_blocks"))
    return {**sizes, "heads": _heads(where, sizes, known, "decoder_heads")}


def _block_sizes(where: Path, tensors: Tensors, stack: str) -> dict[str, int]:
    if has_swiglu(tensors) and stack == "blocks":
        name = f"{stack}.0.mlp.{'w3' if FACEBOOK_SWIGLU in tensors else 'fc2'}.weight"
        _, mlp_dim = shape_of(where, tensors, name, 2)
    else:
        mlp_dim, _ = shape_of(where, tensors, f"{stack}.0.mlp.fc1.weight", 2)
    pattern = re.compile(rf"{stack}\.(\d{{1,4}})\.")
    numbers = {int(found[1]) for name in tensors if (found := pattern.match(name))}
    return dict(depth=len(numbers), mlp_dim=mlp_dim)


def _grid(where: Path, tensors: Tensors) -> int:
    """Returns the number of patches along a side.

    pos_embed may have rows for CLS and for a distillation token, too.
    """
    if "cls_token" not in tensors:
        raise UserError(f"{where}: has no cls_token; our models need one")
    rows = shape_of(where, tensors, "pos_embed", 3)[1]
    grid = math.isqrt(rows)
    tokens = 1 + has_distillation(tensors)
    if rows - grid**2 not in (0, tokens):
        raise UserError(
            f"{where}: pos_embed has {rows} rows, neither a square nor {tokens} + a square"
        )
    return grid


def fit_table(table: Names, tensors: Tensors) -> Names:
    """Returns the table of names for the kind of MLP that the tensors have."""
    return timm_names.with_swiglu(table) if has_swiglu(tensors) else table


def has_distillation(tensors: Collection[str]) -> bool:
    """Whether there is the distillation token of DeiT."""
    return "dist_token" in tensors


def has_swiglu(tensors: Tensors) -> bool:
    """Whether the MLPs are SwiGLU, with both factors in one tensor: timm's, or Facebook's."""
    shapes = [tensors[name].shape for name in MLP if name in tensors]
    packed = len(shapes) == 2 and shapes[0][0] == 2 * shapes[1][-1]
    return packed or FACEBOOK_SWIGLU in tensors


def _traits(where: Path, table: Names, tensors: Tensors) -> dict[str, Any] | None:
    """Returns the traits that the tensors show; None for a plain ViT."""
    (name,) = table.tensors["encoder/register_token"]
    registers = shape_of(where, tensors, name, 3)[1] if name in tensors else 0
    facebook = table.source == timm_names.DINOV2.source and not registers
    plain = dataclasses.asdict(PLAIN)
    found = plain | dict(
        registers=registers,
        distilled=has_distillation(tensors),
        cls_position=shape_of(where, tensors, "pos_embed", 3)[1]
        != _grid(where, tensors) ** 2,
        layer_scale=LAYER_SCALE in tensors,
        swiglu=has_swiglu(tensors),
    )
    resize = "offset" if facebook else "antialias"
    return None if found == plain else found | {"position_resize": resize}


def _heads(
    where: Path, sizes: Mapping[str, int], known: Mapping[str, Any], field: str
) -> int:
    key = sizes["width"], sizes["depth"], sizes["mlp_dim"]
    if field not in known and key not in HEADS[field]:
        raise UserError(
            f"{where}: weights do not tell the number of heads, and a model of {sizes} is "
            f"none of the published; give known={{{field!r}: NUMBER}} "
            f"(flax-adapt convert --known={field}=NUMBER writes a folder that tells it)"
        )
    return known[field] if field in known else HEADS[field][key]


def is_vit(path: Path) -> bool:
    """Whether a path is a file of tensors with timm's names."""
    if path.suffix not in SUFFIXES or path.is_dir():
        return False
    names = set(reading.tensor_names(path))
    return "blocks.0.attn.qkv.weight" in names and not is_dinov3(names)


def is_dinov3(names: Collection[str], own: Collection[str] = DINOV3) -> bool:
    """Whether names of tensors are those of DINOv3, which has no table of positions.

    own: of DINOV3, the one that shows timm's spelling or Facebook's.
    """
    has_own = any(name in names for name in own)
    return has_own and "pos_embed" not in names and not REGISTERS.isdisjoint(names)


def has_fc_norm(path: Path, known: Mapping[str, Any]) -> bool:
    """Whether a folder or file has a norm after the pooling."""
    return f"{timm_names.FC_NORM}.weight" in reading.tensor_names(path, known)


def has_decoder(path: Path) -> bool:
    """Whether a file of tensors has Facebook's decoder, or parts of one."""
    names = reading.tensor_names(path)
    own = "mask_token" in names and LAYER_SCALE not in names
    return own or any(name.startswith("decoder_") for name in names)


def is_dinov2(path: Path) -> bool:
    """Whether a file of tensors has the mask token and LayerScale of Facebook's DINOv2."""
    return {"mask_token", LAYER_SCALE} <= set(reading.tensor_names(path))


def mlp_ratio(width: int, mlp_dim: int) -> float:
    """Returns a ratio with int(width * ratio) = mlp_dim, as timm computes it."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)
