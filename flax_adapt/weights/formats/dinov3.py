"""DINOv3 in folders and files of timm (class Eva), and in Facebook's `dinov3_*_pretrain.pth`.

timm's folder has config.json. Files show neither heads nor image size: a head has 64 features
in the published models, 128 in that of width 4096, and rotary positions hold for images of
any size. Facebook's file says with `bias_mask` that keys have no bias; that part of a fused
bias is ignored, and written as zeros. We write safetensors.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.traits import make_fields, without_augments
from flax_adapt.weights import fields, writable
from flax_adapt.weights.files import reading, writing
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.formats import timm, torch_vit
from flax_adapt.weights.names import translate
from flax_adapt.weights.names import visual as visual_names
from flax_adapt.weights.names.names import Names
from flax_adapt.weights.writable import Content

THETA, IMAGE_SIZE, HEAD_DIM = 100.0, 224, 64
WIDEST = {
    4096: 128
}  # width -> features of a head, of the model with 7 billion parameters
LAYER_NORM_EPS = 1e-5
FIXED = dict(
    layer_norm_eps=LAYER_NORM_EPS, gelu=torch_vit.GELU, last_block=None, adaptor=None
)
KNOWN = ("heads", "gelu", "layer_norm_eps", reading.WEIGHTS)
DROPPED = {"mae": ("head",), "encoder": ("decoder", "head"), "classify": ("decoder",)}
Tensors = Mapping[str, LazyTensor]
Known = Mapping[str, Any]
BLOCK = "blocks.0"
TIMM_OWN, FACEBOOK_OWN = torch_vit.DINOV3
PERIODS, MASK = "rope_embed.periods", f"{BLOCK}.attn.qkv.bias_mask"
MASKED = np.array([1, 0, 1], np.float32)  # queries, keys, values
GATES = {f"{BLOCK}.mlp.{name}.weight" for name in ("fc1_g", "w1")}
KEY_BIAS = re.compile(r".*/attention/key/bias")


def table_of(table: Names, tensors: Tensors) -> Names:
    """Returns the table of names for the kind of MLP that the tensors have."""
    return visual_names.with_gate(table) if GATES & set(tensors) else table


def names_of(path: Path) -> set[str]:
    """Returns the names of the tensors in a file; {} for what is no file of tensors."""
    if path.suffix not in torch_vit.SUFFIXES:
        return set()
    return set(reading.tensor_names(path))


def model_config(
    where: Path, table: Names, tensors: Tensors, known: Known, image_size: int
) -> dict[str, Any]:
    """Returns our model config of the tensors in a file or folder."""
    fields.check_known(where, known, KNOWN)
    width, channels, patch_size, columns = torch_vit.shape_of(
        where, tensors, "patch_embed.proj.weight", 4
    )
    if patch_size != columns:
        raise UserError(f"{where}: patches of {patch_size} x {columns}: only squares")
    table = table_of(table, tensors)
    (down,) = table.layers["mlp/down"]
    found = (re.match(r"blocks\.(\d{1,4})\.", name) for name in tensors)
    depth = len({one[1] for one in found if one})
    (registers,) = table.tensors["encoder/register_token"]
    biases = {f"{BLOCK}.attn.qkv.bias", f"{BLOCK}.attn.q_bias"}
    config = {
        "kind": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": depth,
        "mlp_dim": torch_vit.shape_of(where, tensors, f"{BLOCK}.{down}.weight", 2)[1],
        "heads": known.get("heads", width // WIDEST.get(width, HEAD_DIM)),
        "layer_norm_eps": known.get("layer_norm_eps", LAYER_NORM_EPS),
        "qkv_bias": bool(biases & set(tensors)),
        "gelu": known.get("gelu", torch_vit.GELU),
        "pooler": False,
        "last_block": None,
        "adaptor": None,
        "traits": make_fields(
            registers=torch_vit.shape_of(where, tensors, registers, 3)[1]
            if registers in tensors
            else 0,
            cls_position=False,
            key_bias=_has_key_bias(where, tensors),
            layer_scale=True,
            swiglu=bool(GATES & set(tensors)),
            rotary_theta=THETA,
        ),
        "decoder": None,
    }
    fields.check_sizes(str(where), config)
    _check_periods(where, config, tensors)
    return config


def _has_key_bias(where: Path, tensors: Tensors) -> bool:
    """Returns whether a fused bias holds one of keys; raises UserError for a mask of others."""
    if MASK not in tensors:
        return f"{BLOCK}.attn.qkv.bias" in tensors
    mask = np.asarray(tensors[MASK].get(), np.float32).reshape(3, -1)
    if not np.array_equal(mask, np.repeat(MASKED[:, None], mask.shape[1], axis=1)):
        raise UserError(f"{where}: {MASK} masks other biases than those of keys")
    return False


def _check_periods(where: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Raises UserError for rotary periods in a file that are not those of THETA."""
    if PERIODS not in tensors:
        return
    features = max(config["width"] // config["heads"], 1)
    expected = THETA ** np.arange(0, 1, 4 / features, dtype=np.float32)
    found = np.asarray(tensors[PERIODS].get(), np.float32)
    # A file of bfloat16 has them rounded.
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-2):
        raise UserError(
            f"{where}: {PERIODS} {found.shape} are not the periods of heads with {features} "
            f"features and a theta of {THETA}; give known={{'heads': NUMBER}} if the number "
            "of heads is another"
        )


class Dinov3:
    """A format, one of TIMM and FACEBOOK; `weights.formats.table.Format` says what it does."""

    def __init__(self, table: Names, own: str, pooling: str):
        self.TABLE, self.own, self.default_pooling = table, own, pooling

    def detect(self, path: Path) -> bool:
        """Whether a path is a folder of timm with a DINOv3, or a file with its tensors."""
        if not path.is_dir():
            return torch_vit.is_dinov3(names_of(path), (self.own,))
        named = timm.DINOV3 in fields.text(timm.read_architecture(path))
        return named and self.own in reading.tensor_names(path)

    def _known(self, path: Path, known: Known) -> tuple[dict[str, Any], int]:
        """Returns (`known` with the fields of config.json, the image size)."""
        theirs = timm.config_json(path)["model_args"]
        heads = {"heads": theirs["num_heads"]} if "num_heads" in theirs else {}
        return heads | dict(known), timm.image_side(path) or IMAGE_SIZE

    def model_config(self, path: Path, known: Known) -> dict[str, Any]:
        """Returns our model config of a folder or file."""
        with reading.open_tensors(path, known) as tensors:
            both = self._known(path, known)
            return model_config(path, self.TABLE, tensors, *both)

    def pooling(self, path: Path, known: Known) -> str:
        """Returns the pooling of a classifier: timm's `global_pool`, or CLS."""
        del known
        theirs = timm.config_json(path)
        found = theirs["model_args"].get("global_pool", theirs.get("global_pool"))
        return {"token": "cls", "avg": "mean"}.get(found, self.default_pooling)

    def class_names(self, path: Path) -> tuple[str, ...] | None:
        """Returns the names of the classes, or None."""
        return timm.class_names(path)

    def pixel_statistics(self, path: Path) -> tuple[list[float], list[float]] | None:
        """Returns (mean, std) of pixels in [0, 1], or None."""
        return timm.pixel_statistics(path)

    @contextlib.contextmanager
    def open_source(
        self, path: Path, task: str, pooling: str, known: Known
    ) -> Iterator[translate.Opened]:
        """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
        full, size = self._known(path, known)
        with reading.open_tensors(path, known) as tensors:
            config = model_config(path, self.TABLE, tensors, full, size)
            fields.check_task(path, config, task)
            table = table_of(self.TABLE, tensors)
            leaves, found = translate.to_leaves(table, tensors, DROPPED[task], task)
            if not config["traits"]["key_bias"]:
                leaves = {k: v for k, v in leaves.items() if not KEY_BIAS.fullmatch(k)}
            found["assumed"] = fields.assumed_values(config, pooling, {*full}, task)
            if timm.image_side(path) is None:
                found["assumed"] |= {"image_size": size}
            yield config, leaves, found

    def write(self, path: Path, content: Content) -> None:
        """Writes a folder for `timm.create_model`, or a file for Facebook's code."""
        source = self.TABLE.source
        writable.check_config(path, source, content, FIXED, kind="vit")
        writable.check_no_decoder(path, source, content)
        _check_traits(path, source, content.config)
        swiglu = content.config["traits"]["swiglu"]
        table = visual_names.with_gate(self.TABLE) if swiglu else self.TABLE
        if self is TIMM:
            _write_timm(path, table, content)
        else:
            _write_facebook(path, table, content)


def _check_traits(path: Path, source: str, config: Mapping[str, Any]) -> None:
    traits = config["traits"] or make_fields()
    own = make_fields(
        registers=traits["registers"],
        swiglu=traits["swiglu"],
        cls_position=False,
        key_bias=False,
        layer_scale=True,
        rotary_theta=THETA,
    )
    found = without_augments(traits)
    wrong = {name: found[name] for name in found if found[name] != own[name]}
    if wrong:
        texts = ", ".join(f"traits.{name}={value}" for name, value in wrong.items())
        raise UserError(f"{path}: {source} cannot hold {texts}; choose another format")


def _write_facebook(path: Path, table: Names, content: Content) -> None:
    config, source = content.config, table.source
    writable.check_no_extras(path, source, content)
    writable.check_file(path, source, ".safetensors")
    if content.task != "encoder":
        raise UserError(
            f"{path}: {source} is an encoder alone; save the task 'encoder'"
        )
    width, leaves = config["width"], dict(content.leaves)
    # The model with 7 billion parameters has no biases of queries and values either.
    biased = range(config["depth"] if config["qkv_bias"] else 0)
    for block in biased:
        name = f"encoder/block_{block:02d}/attention/key/bias"
        leaves[name] = np.zeros(width, np.float32)
    tensors = translate.to_tensors(table, leaves, config, "")
    mask = np.repeat(MASKED, width)
    masks = [(f"blocks.{block}.attn.qkv.bias_mask", mask) for block in biased]
    features = width // config["heads"]
    periods = THETA ** np.arange(0, 1, 4 / features, dtype=np.float32)
    token = np.zeros((1, width), np.float32)

    def both() -> Iterator[tuple[str, np.ndarray]]:
        yield from tensors()
        yield from [*masks, ("mask_token", token), (PERIODS, periods)]

    writing.write_file(path, both, writing.save_safetensors)


def _write_timm(path: Path, table: Names, content: Content) -> None:
    source = table.source
    writable.check_no_extras(path, source, content, timm.PLACES)
    writable.check_class_names(path, content)
    writable.check_pooling(path, source, content, ("cls", "mean"))
    tensors = translate.to_tensors(table, content.leaves, content.config, "")
    writing.write(path, tensors, {reading.CONFIG: _json(content)}, [])


def _json(content: Content) -> dict[str, Any]:
    """Returns config.json: timm's for a ViT, with the arguments of its DINOv3."""
    plain = dict(content.config, traits=None)
    theirs = timm.make_json(content, plain)
    config, traits = content.config, content.config["traits"]
    args = theirs["model_args"]
    del args["fc_norm"], args["act_layer"]
    args |= dict(num_reg_tokens=traits["registers"], swiglu_mlp=traits["swiglu"])
    if traits["swiglu"]:
        args["swiglu_align_to"] = 1  # mlp_dim as it is
    plus = "_plus" if traits["swiglu"] else ""
    biased = "_qkvb" if config["qkv_bias"] else ""
    theirs["architecture"] = f"vit_small{plus}_patch16_dinov3{biased}"
    return theirs


TIMM = Dinov3(visual_names.TIMM_DINOV3, TIMM_OWN, "mean")
FACEBOOK = Dinov3(visual_names.FACEBOOK_DINOV3, FACEBOOK_OWN, "cls")
