"""Names of timm's ViT, and of Facebook's MAE, whose encoder is timm's.

timm 1.0 `vit_*`, `deit*` and `*.mae` (`models/vision_transformer.py`); Facebook's
`models_mae.py` (encoder and decoder) and `models_vit.py` (fine-tuned).
"""

import dataclasses

from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.dinov2 import GATED, MASK_TOKEN
from flax_adapt.weights.names.names import Names, Spellings

FUSED = {"attention/qkv": ("attention/query", "attention/key", "attention/value")}
LAYERS = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attention/qkv": ("attn.qkv",),
    "attention/out": ("attn.proj",),
    "mlp/up": ("mlp.fc1",),
    "mlp/down": ("mlp.fc2",),
    "layer_scale1": ("ls1.gamma",),
    "layer_scale2": ("ls2.gamma",),
}
# timm's norm after the pooling: our final norm in `with_pooled_norm`, else a part of the head.
FC_NORM = "fc_norm"
BLOCK = r"blocks\.\d+\."
REFUSED = {
    BLOCK + r"gamma_[12]": "LayerScale of BEiT",
    BLOCK + r"attn\.(q_norm|k_norm)\..*": "qk-norm",
    BLOCK + r"attn\.[qv]_bias": "biases of query and value alone (BEiT, EVA)",
    BLOCK + r"(attn\.norm|mlp\.norm)\..*": "a norm inside of attention or MLP",
    BLOCK + r"mlp\.(fc1_g|fc1_x|w12|w1|w2|w3)\..*": "SwiGLU in layers of its own",
    BLOCK + r"attn\..*(rel_pos|relative_position).*": "relative positions",
    r"attn_pool\..*": "a head with attention pooling (global_pool='map')",
    r"patch_embed\.(backbone|norm)\..*": "a stem that is more than one convolution",
}
TENSORS: dict[str, Spellings] = {
    "encoder/cls_token": ("cls_token",),
    "encoder/distillation_token": ("dist_token",),
    "encoder/position": ("pos_embed",),
    "encoder/register_token": ("reg_token",),
}
MODULES = {
    "encoder/patch_embed": ("patch_embed.proj",),
    "encoder/norm": ("norm",),
    "head": ("head",),
    "head_dist": ("head_dist",),
    "head/fc_norm": (FC_NORM,),
    # A tanh layer, in old files of models for ImageNet-21k.
    "head/pre_logits": ("pre_logits.fc",),
}
STACKS = {"encoder/block_{n}": ("blocks.{n}",)}

TIMM = Names(
    source="timm's ViT",
    style=layouts.TORCH,
    prefix="",
    tensors=TENSORS,
    modules=MODULES,
    stacks=STACKS,
    layers=LAYERS,
    fused=FUSED,
    spare={},
    buffers={},
    refused=REFUSED,
)
FACEBOOK = Names(
    source="Facebook's MAE",
    style=layouts.TORCH,
    prefix="",
    tensors={
        **TENSORS,
        "decoder/mask_token": ("mask_token",),
        "decoder/position": ("decoder_pos_embed",),
    },
    modules={
        **MODULES,
        "decoder/embed": ("decoder_embed",),
        "decoder/norm": ("decoder_norm",),
        "decoder/predict": ("decoder_pred",),
    },
    stacks={**STACKS, "decoder/block_{n}": ("decoder_blocks.{n}",)},
    layers=LAYERS,
    fused=FUSED,
    spare={},
    buffers={},
    refused=REFUSED,
)


# Facebook's DINOv2 (`dinov2/models/vision_transformer.py`) has timm's names but for these.
DINOV2 = dataclasses.replace(
    TIMM,
    source="Facebook's DINOv2",
    tensors={**TENSORS, "encoder/register_token": ("register_tokens",)},
    buffers={"mask_token": MASK_TOKEN},
)
# The fused layer of a SwiGLU, its output, in timm's spelling and in Facebook's.
SWIGLU = {
    "timm": {"mlp/gated": ("mlp.fc1",), "mlp/down": ("mlp.fc2",)},
    "facebook": {"mlp/gated": ("mlp.w12",), "mlp/down": ("mlp.w3",)},
}


def with_swiglu(table: Names) -> Names:
    """Returns TIMM or DINOV2 for models whose MLPs are SwiGLU."""
    spelling = SWIGLU["facebook" if table.source == DINOV2.source else "timm"]
    layers = {**{k: v for k, v in table.layers.items() if k != "mlp/up"}, **spelling}
    refused = {k: v for k, v in table.refused.items() if "w12" not in k}
    fused = {**table.fused, **GATED}
    return dataclasses.replace(table, layers=layers, fused=fused, refused=refused)


def with_pooled_norm(table: Names) -> Names:
    """Returns a table for classifiers with a norm after the pooling.

    These have no other norm after the last block. Where `fc_norm` is absent, `norm` is read
    in its place: initial weights for fine-tuning such a classifier.
    """
    modules = dict(table.modules) | {"encoder/norm": (FC_NORM, "norm")}
    del modules["head/fc_norm"]
    return dataclasses.replace(table, modules=modules)
