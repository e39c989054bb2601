"""Names of Hugging Face's BERT, RoBERTa and ELECTRA tensors.

The encoders differ in the prefix, the heads in all names. The classifiers of RoBERTa and
ELECTRA have a layer before the head, `classifier.dense`. For the task "classify" it is our
pooler, for every other task a part of the head. `linear` and `shortcut`, of a resized last
block, are names of ours.
"""

from collections.abc import Mapping

from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.names import Names, Spare, Spellings

LAYERS = {
    "attention/query": ("attention.self.query",),
    "attention/key": ("attention.self.key",),
    "attention/value": ("attention.self.value",),
    "attention/out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "mlp/up": ("intermediate.dense",),
    "mlp/down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
    "shortcut": ("shortcut",),
}
BERT_HEADS = {
    "pooler": ("bert.pooler.dense",),
    "head": ("classifier",),
    "mlm/transform": ("cls.predictions.transform.dense",),
    "mlm/norm": ("cls.predictions.transform.LayerNorm",),
}
ROBERTA_HEADS = {
    "pooler": ("roberta.pooler.dense",),
    "head": ("classifier.out_proj",),
    "head/dense": ("classifier.dense",),
    "mlm/transform": ("lm_head.dense",),
    "mlm/norm": ("lm_head.layer_norm",),
}
ELECTRA_HEADS = {
    "head": ("classifier.out_proj",),
    "head/dense": ("classifier.dense",),
    "mlm/transform": ("generator_predictions.dense",),
    "mlm/norm": ("generator_predictions.LayerNorm",),
}
CLASSIFIER_HEADS = {
    "pooler": ("classifier.dense",),
    "head": ("classifier.out_proj",),
    "mlm/transform": ("lm_head.dense",),
    "mlm/norm": ("lm_head.layer_norm",),
}
TIED = Spare("encoder/embed/token", "mlm", "tied to the token embedding", True)
BUFFER = "a buffer of ids"
POOLER_LEAVES = {"weight": "pooler/kernel", "bias": "pooler/bias"}
# Without `classifier.dense` the encoder's pooler gives the initial values of that layer.
CLASSIFIER_SPARE = {
    f"roberta.pooler.dense.{name}": Spare(
        leaf, "pooler", "the classifier has its own", False
    )
    for name, leaf in POOLER_LEAVES.items()
}


def _names(
    kind: str, mlm_bias: str, heads: Mapping[str, Spellings], spare: Mapping[str, Spare]
) -> Names:
    """Returns the table; kind: the prefix. mlm_bias: has the prefix of the tied decoder."""
    decoder = f"{mlm_bias.removesuffix('bias')}decoder"
    return Names(
        source=f"Hugging Face's {kind}",
        style=layouts.TORCH,
        prefix=f"{kind}.",
        tensors={
            "encoder/embed/token": (f"{kind}.embeddings.word_embeddings.weight",),
            "encoder/embed/position": (
                f"{kind}.embeddings.position_embeddings.weight",
            ),
            "encoder/embed/token_type": (
                f"{kind}.embeddings.token_type_embeddings.weight",
            ),
            "mlm/bias": (mlm_bias,),
        },
        modules={
            "encoder/embed/norm": (f"{kind}.embeddings.LayerNorm",),
            "encoder/embed/project": (f"{kind}.embeddings_project",),
            "encoder/linear": (f"{kind}.linear",),
            **heads,
        },
        stacks={"encoder/block_{n}": (f"{kind}.encoder.layer.{{n}}",)},
        layers=LAYERS,
        fused={},
        spare={
            f"{decoder}.weight": TIED,
            f"{decoder}.bias": Spare("mlm/bias", "mlm", "a copy of the bias", True),
            **spare,
        },
        buffers={
            rf"{kind}\.embeddings\.(position_ids|token_type_ids)": BUFFER,
            r"cls\.seq_relationship\.(weight|bias)": "next-sentence head dropped",
            r"discriminator_predictions\..*": "the head that finds replaced tokens dropped",
        },
        refused={},
    )


BERT = _names("bert", "cls.predictions.bias", BERT_HEADS, {})
ROBERTA = _names("roberta", "lm_head.bias", ROBERTA_HEADS, {})
ROBERTA_CLASSIFIER = _names(
    "roberta", "lm_head.bias", CLASSIFIER_HEADS, CLASSIFIER_SPARE
)
_ELECTRA_TIED = {"generator_lm_head.weight": TIED}
ELECTRA = _names("electra", "generator_lm_head.bias", ELECTRA_HEADS, _ELECTRA_TIED)
ELECTRA_CLASSIFIER = _names(
    "electra",
    "generator_lm_head.bias",
    {"pooler" if k == "head/dense" else k: v for k, v in ELECTRA_HEADS.items()},
    _ELECTRA_TIED,
)


def names(kind: str, task: str) -> Names:
    """Returns the table of "bert", "roberta" or "electra" for a task."""
    if kind == "bert":
        return BERT
    if kind == "electra":
        return ELECTRA_CLASSIFIER if task == "classify" else ELECTRA
    return ROBERTA_CLASSIFIER if task == "classify" else ROBERTA
