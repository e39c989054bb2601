"""Names and layouts of Hugging Face's ViT and ViTMAE tensors, in both directions.

Written are the names of the hub's checkpoints, which transformers 4 and 5 both load
(`vit.encoder.layer.0.attention.attention.query.weight`). Read are also transformers 5's
own: `vit.layers.0.attention.q_proj.weight` in a state dict, and for the decoder
`decoder.decoder_encoder.layer.0...`, which 5.23 writes to files.
"""

import re

import numpy as np

from flax_adapt.errors import UserError

# Leaf -> names; the first is written, all are read. {n} is the number of a block.
NAMES = {
    "encoder/patch_embed": ("vit.embeddings.patch_embeddings.projection",),
    "encoder/cls_token": ("vit.embeddings.cls_token",),
    "encoder/position": ("vit.embeddings.position_embeddings",),
    "encoder/norm": ("vit.layernorm",),
    "decoder/embed": ("decoder.decoder_embed",),
    "decoder/mask_token": ("decoder.mask_token",),
    "decoder/position": ("decoder.decoder_pos_embed",),
    "decoder/norm": ("decoder.decoder_norm",),
    "decoder/predict": ("decoder.decoder_pred",),
    "pooler": ("vit.pooler.dense",),
    "head": ("classifier",),
}
STACKS = {
    "encoder/block_{n}": ("vit.encoder.layer.{n}", "vit.layers.{n}"),
    "decoder/block_{n}": (
        "decoder.decoder_layers.{n}",
        "decoder.decoder_encoder.layer.{n}",
    ),
}
LAYERS = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attention/query": ("attention.attention.query", "attention.q_proj"),
    "attention/key": ("attention.attention.key", "attention.k_proj"),
    "attention/value": ("attention.attention.value", "attention.v_proj"),
    "attention/out": ("attention.output.dense", "attention.o_proj"),
    "mlp/up": ("intermediate.dense", "mlp.fc1"),
    "mlp/down": ("output.dense", "mlp.fc2"),
}
# Their "weight" is our "scale" in a norm, our "kernel" in a dense layer.
SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _modules() -> dict[str, tuple[str, ...]]:
    """NAMES with the layers of every stack."""
    table: dict[str, tuple[str, ...]] = dict(NAMES)
    for ours, stacks in STACKS.items():
        for layer, names in LAYERS.items():
            table[f"{ours}/{layer}"] = tuple(f"{s}.{n}" for s in stacks for n in names)
    return table


def _leaves() -> list[tuple[str, str]]:
    """Rows (leaf, name) with {n} for a number, the name to write first."""
    rows = []
    for ours, names in _modules().items():
        if ours.endswith(("token", "position")):
            rows += [(ours, name) for name in names]
            continue
        weight = "scale" if "norm" in ours.rsplit("/", 1)[-1] else "kernel"
        for leaf in (weight, "bias"):
            rows += [(f"{ours}/{leaf}", f"{name}.{SUFFIXES[leaf]}") for name in names]
    return rows


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)"))


_ROWS = _leaves()
_TO_LEAF = [(_pattern(name), leaf) for leaf, name in _ROWS]
# Reversed: the first row of a leaf is the one to write.
_TO_NAME = [(_pattern(leaf), name) for leaf, name in dict(reversed(_ROWS)).items()]


def leaf_of(name: str) -> str | None:
    """Returns our leaf of a tensor's name; None if the name is unknown.

    Base models (ViTModel, ViTMAEModel) write the same names without "vit.".
    """
    for candidate in (name, f"vit.{name}"):
        for pattern, leaf in _TO_LEAF:
            if found := pattern.fullmatch(candidate):
                number = found.groupdict().get("n", "")
                return leaf.replace("{n}", number.zfill(2))
    return None


def name_of(leaf: str) -> str:
    """Returns the tensor's name of one of our leaves."""
    for pattern, name in _TO_NAME:
        if found := pattern.fullmatch(leaf):
            number = found.groupdict().get("n", "0")
            return name.replace("{n}", str(int(number)))
    raise UserError(f"{leaf}: Hugging Face's ViT and ViTMAE have no such tensor")


def to_ours(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """Kernels become [in, out]; patches (row, column, channel).

    A tensor of another rank is left as it is: the strict check will name it.
    """
    if leaf == "encoder/patch_embed/kernel" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    if leaf.endswith("/kernel") and tensor.ndim == 2:
        return tensor.T
    return tensor


def to_theirs(leaf: str, array: np.ndarray, patch_size: int) -> np.ndarray:
    """Undoes `to_ours`."""
    if leaf == "encoder/patch_embed/kernel":
        image = array.reshape(patch_size, patch_size, -1, array.shape[-1])
        return image.transpose(3, 2, 0, 1)
    return array.T if leaf.endswith("/kernel") else array
