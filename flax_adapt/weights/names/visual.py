"""Names of Hugging Face's DeiT, CLIP's images and DINOv3, of ours, and of timm's DINOv3.

We write the names of the hub's checkpoints, and read also those that transformers 5 writes
or has in memory. Parts that a library does not have (decoder, `linear`, `shortcut`) have names
of ours.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_adapt.weights.names import layouts, vit
from flax_adapt.weights.names.dinov2 import LAYERS as DINOV2_LAYERS
from flax_adapt.weights.names.dinov2 import MASK_TOKEN
from flax_adapt.weights.names.names import Names, Spellings, Style
from flax_adapt.weights.names.timm import FUSED, MODULES, STACKS, TENSORS

_BLOCK = "encoder/block_{n}"


def _with_prefix(prefix: str, source: str) -> Names:
    """Returns the names of ViT with another prefix, and those of tokens that it lacks."""

    def change(rows: dict[str, Spellings]) -> dict[str, Spellings]:
        return {
            leaf: tuple(re.sub(r"^vit\.", prefix, name) for name in names)
            for leaf, names in rows.items()
        }

    base = vit.VIT
    more = {
        "encoder/distillation_token": (f"{prefix}embeddings.distillation_token",),
        "encoder/register_token": (f"{prefix}embeddings.register_tokens",),
    }
    norm = {"encoder/pre_norm": (f"{prefix}embeddings.norm",)}
    return dataclasses.replace(
        base,
        source=source,
        prefix=prefix,
        tensors=change({**base.tensors}) | more,
        modules=change({**base.modules}) | norm | {"head_dist": ("classifier_dist",)},
        stacks=change({**base.stacks}),
        layers={
            **base.layers,
            "layer_scale1": ("layer_scale1.lambda1",),
            "layer_scale2": ("layer_scale2.lambda1",),
            "mlp/gate": ("intermediate.gate",),
        },
    )


# Any vision transformer of ours: a folder that transformers cannot build.
GENERAL = _with_prefix("vit.", "flax_adapt's ViT")
# Models with one head, and those with the two heads of DeiT.
DEIT = _with_prefix("deit.", "Hugging Face's DeiT")
DEIT = dataclasses.replace(
    DEIT,
    modules={
        **DEIT.modules,
        "head": ("classifier", "cls_classifier"),
        "head_dist": ("distillation_classifier",),
    },
)
DEIT_TWO_HEADS = dataclasses.replace(
    DEIT, modules={**DEIT.modules, "head": ("cls_classifier",)}
)


# Leaves of CLIP without the axis of the batch.
_FLAT = {"encoder/cls_token": (1, 1), "encoder/position": (1,)}


def _from_clip(leaf: str, tensor: np.ndarray) -> np.ndarray:
    axes = _FLAT.get(leaf)
    if axes is not None and tensor.ndim == 3 - len(axes):
        return tensor.reshape(*axes, *tensor.shape)
    return layouts.TORCH.to_ours(leaf, tensor)


def _to_clip(leaf: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    axes = _FLAT.get(leaf)
    if axes is not None:
        return array.reshape(array.shape[len(axes) :])
    return layouts.TORCH.to_theirs(leaf, array, config)


_CLIP_STYLE: Style = layouts.TORCH._replace(to_ours=_from_clip, to_theirs=_to_clip)


def _both(name: str) -> Spellings:
    """Returns the name in files of the hub, and the one that transformers 5 writes."""
    return f"vision_model.{name}", name


_TEXT = "of CLIP's texts: our models take images"
CLIP = Names(
    source="Hugging Face's CLIP",
    style=_CLIP_STYLE,
    prefix="",
    tensors={
        "encoder/cls_token": _both("embeddings.class_embedding"),
        "encoder/position": _both("embeddings.position_embedding.weight"),
    },
    modules={
        "encoder/patch_embed": _both("embeddings.patch_embedding"),
        "encoder/pre_norm": _both("pre_layrnorm"),
        "encoder/norm": _both("post_layernorm"),
    },
    stacks={_BLOCK: _both("encoder.layers.{n}")},
    layers={
        "norm1": ("layer_norm1",),
        "norm2": ("layer_norm2",),
        "attention/query": ("self_attn.q_proj",),
        "attention/key": ("self_attn.k_proj",),
        "attention/value": ("self_attn.v_proj",),
        "attention/out": ("self_attn.out_proj",),
        "mlp/up": ("mlp.fc1",),
        "mlp/down": ("mlp.fc2",),
    },
    fused={},
    spare={},
    buffers={
        r"(vision_model\.)?embeddings\.position_ids": "counts positions",
        r"text_model\..*|text_projection\.weight|logit_scale": _TEXT,
        r"visual_projection\.weight": "projects images to CLIP's texts: no part of a state",
    },
    refused={},
)
_MEMORY = {f"attention/{one}": f"attention.{one[0]}_proj" for one in ("query", "key")}
DINOV3 = Names(
    source="Hugging Face's DINOv3",
    style=layouts.TORCH,
    prefix="",
    tensors={
        "encoder/cls_token": ("embeddings.cls_token",),
        "encoder/register_token": ("embeddings.register_tokens",),
    },
    modules={
        "encoder/patch_embed": ("embeddings.patch_embeddings",),
        "encoder/norm": ("norm",),
    },
    stacks={_BLOCK: ("layer.{n}", "model.layer.{n}")},
    layers={
        **{leaf: (name,) for leaf, name in _MEMORY.items()},
        "attention/value": ("attention.v_proj",),
        "attention/out": ("attention.o_proj",),
        **{k: v for k, v in DINOV2_LAYERS.items() if "norm" in k or "scale" in k},
        "mlp/gate": ("mlp.gate_proj",),
        "mlp/up": ("mlp.up_proj",),
        "mlp/down": ("mlp.down_proj",),
    },
    fused={},
    spare={},
    buffers={r"embeddings\.mask_token": MASK_TOKEN},
    refused={},
)

_DINOV3_TENSORS = {k: v for k, v in TENSORS.items() if k != "encoder/position"}
_DINOV3_LAYERS = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attention/qkv": ("attn.qkv",),
    "attention/out": ("attn.proj",),
}
_PLAIN_MLP = {"mlp/up": ("mlp.fc1",), "mlp/down": ("mlp.fc2",)}
TIMM_DINOV3 = Names(
    source="timm's DINOv3",
    style=layouts.TORCH,
    prefix="",
    tensors={
        **_DINOV3_TENSORS,
        f"{_BLOCK}/attention/query/bias": ("blocks.{n}.attn.q_bias",),
        f"{_BLOCK}/attention/value/bias": ("blocks.{n}.attn.v_bias",),
    },
    modules=MODULES,
    stacks=STACKS,
    layers={
        **_DINOV3_LAYERS,
        **_PLAIN_MLP,
        "layer_scale1": ("gamma_1",),
        "layer_scale2": ("gamma_2",),
    },
    fused=FUSED,
    spare={},
    buffers={},
    refused={},
)
FACEBOOK_DINOV3 = dataclasses.replace(
    TIMM_DINOV3,
    source="Facebook's DINOv3",
    tensors={**_DINOV3_TENSORS, "encoder/register_token": ("storage_tokens",)},
    layers={
        **_DINOV3_LAYERS,
        **_PLAIN_MLP,
        "layer_scale1": ("ls1.gamma",),
        "layer_scale2": ("ls2.gamma",),
    },
    buffers={
        "mask_token": MASK_TOKEN,
        r"rope_embed\.periods": "follows from rotary_theta",
        r"blocks\.\d+\.attn\.qkv\.bias_mask": "says that keys have no bias",
        r"local_cls_norm\..*": "of small crops in pre-training",
    },
)
# The layers of a gated MLP.
GATED = {
    TIMM_DINOV3.source: {
        "mlp/gate": ("mlp.fc1_g",),
        "mlp/up": ("mlp.fc1_x",),
        "mlp/down": ("mlp.fc2",),
    },
    FACEBOOK_DINOV3.source: {
        "mlp/gate": ("mlp.w1",),
        "mlp/up": ("mlp.w2",),
        "mlp/down": ("mlp.w3",),
    },
}


def with_gate(table: Names) -> Names:
    """Returns TIMM_DINOV3 or FACEBOOK_DINOV3 for models whose MLPs are gated."""
    return dataclasses.replace(table, layers={**table.layers, **GATED[table.source]})
