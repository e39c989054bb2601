"""Names of Hugging Face's DistilBERT tensors.

`pre_classifier`, the layer before the classifier's head, is our pooler for the task
"classify" and a part of the head for every other task. `linear` and `shortcut`, of a
resized last block, are names of ours.
"""

from flax_adapt.weights.names import bert, layouts
from flax_adapt.weights.names.names import Names

LAYERS = {
    "attention/query": ("attention.q_lin",),
    "attention/key": ("attention.k_lin",),
    "attention/value": ("attention.v_lin",),
    "attention/out": ("attention.out_lin",),
    "norm1": ("sa_layer_norm",),
    "mlp/up": ("ffn.lin1",),
    "mlp/down": ("ffn.lin2",),
    "norm2": ("output_layer_norm",),
    "shortcut": ("shortcut",),
}
EMBEDDINGS = "distilbert.embeddings."


def _names(pooler: str) -> Names:
    """Returns the table; pooler: our layer that `pre_classifier` is."""
    return Names(
        source="Hugging Face's distilbert",
        style=layouts.TORCH,
        prefix="distilbert.",
        tensors={
            "encoder/embed/token": (f"{EMBEDDINGS}word_embeddings.weight",),
            "encoder/embed/position": (f"{EMBEDDINGS}position_embeddings.weight",),
            "mlm/bias": ("vocab_projector.bias",),
        },
        modules={
            "encoder/embed/norm": (f"{EMBEDDINGS}LayerNorm",),
            "encoder/linear": ("distilbert.linear",),
            pooler: ("pre_classifier",),
            "head": ("classifier",),
            "mlm/transform": ("vocab_transform",),
            "mlm/norm": ("vocab_layer_norm",),
        },
        stacks={"encoder/block_{n}": ("distilbert.transformer.layer.{n}",)},
        layers=LAYERS,
        fused={},
        spare={"vocab_projector.weight": bert.TIED},
        buffers={r"distilbert\.embeddings\.position_ids": bert.BUFFER},
        refused={},
    )


DISTILBERT = _names("head/dense")
CLASSIFIER = _names("pooler")


def names(task: str) -> Names:
    """Returns the table for a task."""
    return CLASSIFIER if task == "classify" else DISTILBERT
