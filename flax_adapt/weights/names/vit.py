"""Names of Hugging Face's ViT and ViTMAE tensors.

We write the names of the hub's checkpoints, which transformers 4 and 5 both load
(`vit.encoder.layer.0.attention.attention.query.weight`). We also read transformers 5's own:
`vit.layers.0.attention.q_proj.weight` in a state dict, and for the decoder
`decoder.decoder_encoder.layer.0...`, which 5.23 writes to files. `vit.linear` and
`shortcut`, of a resized last block, are names of ours.
"""

from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.names import Names

VIT = Names(
    source="Hugging Face's ViT and ViTMAE",
    style=layouts.TORCH,
    prefix="vit.",
    tensors={
        "encoder/cls_token": ("vit.embeddings.cls_token",),
        "encoder/position": ("vit.embeddings.position_embeddings",),
        "decoder/mask_token": ("decoder.mask_token",),
        "decoder/position": ("decoder.decoder_pos_embed",),
    },
    modules={
        "encoder/patch_embed": ("vit.embeddings.patch_embeddings.projection",),
        "encoder/norm": ("vit.layernorm",),
        "encoder/linear": ("vit.linear",),
        "decoder/embed": ("decoder.decoder_embed",),
        "decoder/norm": ("decoder.decoder_norm",),
        "decoder/predict": ("decoder.decoder_pred",),
        "pooler": ("vit.pooler.dense",),
        "head": ("classifier",),
    },
    stacks={
        "encoder/block_{n}": ("vit.encoder.layer.{n}", "vit.layers.{n}"),
        "decoder/block_{n}": (
            "decoder.decoder_layers.{n}",
            "decoder.decoder_encoder.layer.{n}",
        ),
    },
    layers={
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "attention/query": ("attention.attention.query", "attention.q_proj"),
        "attention/key": ("attention.attention.key", "attention.k_proj"),
        "attention/value": ("attention.attention.value", "attention.v_proj"),
        "attention/out": ("attention.output.dense", "attention.o_proj"),
        "mlp/up": ("intermediate.dense", "mlp.fc1"),
        "mlp/down": ("output.dense", "mlp.fc2"),
        "shortcut": ("shortcut",),
    },
    fused={},
    spare={},
    buffers={},
    refused={},
)
