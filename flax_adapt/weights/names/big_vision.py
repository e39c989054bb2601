"""Names of big_vision's and vision_transformer's ViT.

We write the names of the published AugReg files (`vision_transformer`), and also read those of
big_vision's `models/vit.py`, whose modules flax numbers by kind. The tanh layer `pre_logits`
before the head of models for ImageNet-21k is our pooler. Our classifiers of images have none:
for them it is a part of the head that does not fit.
"""

import dataclasses

from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.names import Names

POSITION = "Transformer/posembed_input/pos_embedding"
ATTENTION = ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")


def _attention(layer: str) -> tuple[str, ...]:
    return tuple(f"{module}/{layer}" for module in ATTENTION)


BIG_VISION = Names(
    source="big_vision",
    style=layouts.FLAX,
    prefix="",
    tensors={"encoder/cls_token": ("cls",), "encoder/position": (POSITION,)},
    modules={
        "encoder/patch_embed": ("embedding",),
        "encoder/norm": ("Transformer/encoder_norm",),
        "pooler": ("pre_logits",),
        "head": ("head",),
    },
    stacks={"encoder/block_{n}": ("Transformer/encoderblock_{n}",)},
    layers={
        "norm1": ("LayerNorm_0",),
        "norm2": ("LayerNorm_2", "LayerNorm_1"),
        **{f"attention/{layer}": _attention(layer) for layer in ("query", "key")},
        **{f"attention/{layer}": _attention(layer) for layer in ("value", "out")},
        "mlp/up": ("MlpBlock_3/Dense_0", "MlpBlock_0/Dense_0"),
        "mlp/down": ("MlpBlock_3/Dense_1", "MlpBlock_0/Dense_1"),
    },
    fused={},
    spare={},
    buffers={r"(opt|optimizer|chrono)/.*": "the state of the optimizer"},
    refused={
        r"MAPHead_\d+/.*": "a head with attention pooling (pool_type='map')",
        r"(conv_root|gn_root|block\d+)/.*": "a ResNet before the blocks (hybrid)",
    },
)
CLASSIFIER = dataclasses.replace(
    BIG_VISION,
    modules={
        "head/pre_logits" if leaf == "pooler" else leaf: names
        for leaf, names in BIG_VISION.modules.items()
    },
)


def names(task: str) -> Names:
    """Returns the table for a task."""
    return CLASSIFIER if task == "classify" else BIG_VISION
