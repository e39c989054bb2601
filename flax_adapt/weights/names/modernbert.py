"""Names of Hugging Face's ModernBERT tensors.

`head.dense` and `head.norm` are the head of masked language modelling, and for the task
"classify" our pooler: a classifier starts from that head, as transformers' does. `linear`
and `shortcut`, of a resized last block, are names of ours.
"""

from flax_adapt.weights.names import bert, layouts
from flax_adapt.weights.names.names import Names

FUSED = {
    "attention/qkv": ("attention/query", "attention/key", "attention/value"),
    "mlp/gated": ("mlp/gate", "mlp/up"),
}
LAYERS = {
    "norm1": ("attn_norm",),
    "attention/qkv": ("attn.Wqkv",),
    "attention/out": ("attn.Wo",),
    "norm2": ("mlp_norm",),
    "mlp/gated": ("mlp.Wi",),
    "mlp/down": ("mlp.Wo",),
    "shortcut": ("shortcut",),
}


def _names(dense: str, norm: str) -> Names:
    """Returns the table; dense, norm: our layers that those of `head` are."""
    return Names(
        source="Hugging Face's modernbert",
        style=layouts.TORCH,
        prefix="model.",
        tensors={
            "encoder/embed/token": ("model.embeddings.tok_embeddings.weight",),
            "mlm/bias": ("decoder.bias",),
        },
        modules={
            "encoder/embed/norm": ("model.embeddings.norm",),
            "encoder/norm": ("model.final_norm",),
            "encoder/linear": ("model.linear",),
            dense: ("head.dense",),
            norm: ("head.norm",),
            "head": ("classifier",),
        },
        stacks={"encoder/block_{n}": ("model.layers.{n}",)},
        layers=LAYERS,
        fused=FUSED,
        spare={"decoder.weight": bert.TIED},
        buffers={r"model\.rotary_emb\..*": "a buffer of frequencies"},
        refused={},
    )


MODERNBERT = _names("mlm/transform", "mlm/norm")
CLASSIFIER = _names("pooler", "pooler/norm")


def names(task: str) -> Names:
    """Returns the table for a task."""
    return CLASSIFIER if task == "classify" else MODERNBERT
