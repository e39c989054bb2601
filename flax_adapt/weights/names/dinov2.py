"""Names of Hugging Face's DINOv2, with and without registers.

We write the names of the hub's checkpoints (`encoder.layer.0.attention.attention.query`), and
read also those that transformers 5 has in memory (`attention.q_proj`). Decoder, `linear` and
`shortcut` are names of ours, as in `vit`.
"""

import functools
import re

from flax_adapt.weights.names import layouts, vit
from flax_adapt.weights.names.names import Names, Spellings

# Why the token that hid patches in pre-training has no leaf.
MASK_TOKEN = "the mask token of pre-training: no state of a whole image depends on it"
GATED = {"mlp/gated": ("mlp/gate", "mlp/up")}
LAYERS = {
    **{name: vit.VIT.layers[name] for name in ("attention/query", "attention/key")},
    **{name: vit.VIT.layers[name] for name in ("attention/value", "attention/out")},
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "layer_scale1": ("layer_scale1.lambda1",),
    "layer_scale2": ("layer_scale2.lambda1",),
    "shortcut": ("shortcut",),
}
# Whether the MLP is SwiGLU -> its layers.
MLP: dict[bool, dict[str, Spellings]] = {
    False: {"mlp/up": ("mlp.fc1",), "mlp/down": ("mlp.fc2",)},
    True: {
        "mlp/gated": ("mlp.weights_in",),
        "mlp/gate": ("mlp.gate_proj",),
        "mlp/up": ("mlp.up_proj",),
        "mlp/down": ("mlp.weights_out", "mlp.down_proj"),
    },
}


def prefix_of(registers: int) -> str:
    """Returns the prefix of the encoder's tensors in a model with a head."""
    return "dinov2_with_registers." if registers else "dinov2."


@functools.cache
def names(registers: int, swiglu: bool) -> Names:
    """Returns the table of a model with that number of registers, and that kind of MLP."""
    prefix = prefix_of(registers)
    embeddings = f"{prefix}embeddings."
    tensors: dict[str, Spellings] = {
        "encoder/cls_token": (f"{embeddings}cls_token",),
        "encoder/position": (f"{embeddings}position_embeddings",),
        "encoder/register_token": (f"{embeddings}register_tokens",),
    }
    decoder = {k: v for k, v in vit.VIT.tensors.items() if k.startswith("decoder/")}
    modules: dict[str, Spellings] = {
        "encoder/patch_embed": (f"{embeddings}patch_embeddings.projection",),
        "encoder/norm": (f"{prefix}layernorm",),
        "encoder/linear": (f"{prefix}linear",),
        "head": ("classifier",),
    }
    of_decoder = {k: v for k, v in vit.VIT.modules.items() if k.startswith("decoder/")}
    return Names(
        source="Hugging Face's DINOv2",
        style=layouts.TORCH,
        prefix=prefix,
        tensors={**tensors, **decoder},
        modules={**modules, **of_decoder},
        stacks={
            "encoder/block_{n}": (f"{prefix}encoder.layer.{{n}}",),
            "decoder/block_{n}": ("decoder.decoder_layers.{n}",),
        },
        layers={**LAYERS, **MLP[swiglu]},
        fused=GATED if swiglu else {},
        spare={},
        buffers={re.escape(f"{embeddings}mask_token"): MASK_TOKEN},
        refused={},
    )
