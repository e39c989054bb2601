"""The families of text encoders of Hugging Face: what the config.json of each has."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax_adapt.models.textual import traits
from flax_adapt.weights import fields
from flax_adapt.weights.formats import hf_traits
from flax_adapt.weights.names import bert, distilbert, modernbert
from flax_adapt.weights.names.names import Names

_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_ABSOLUTE = {"position_embedding_type": "absolute"}
# Fields of config.json with the only value that our models support.
SUPPORTED = dict(
    position_embedding_type="absolute",
    is_decoder=False,
    add_cross_attention=False,
    pruned_heads={},
)
FIELDS = dict(
    vocab_size="vocab_size",
    max_positions="max_position_embeddings",
    token_types="type_vocab_size",
    **fields.NAMES,
)
# Defaults of transformers' config classes: old files leave some fields out.
DEFAULTS: dict[str, Any] = dict(
    **fields.DEFAULTS,
    max_position_embeddings=512,
    type_vocab_size=2,
)


class TextFamily(NamedTuple):
    """One model_type of config.json.

    stem: of the names of its classes. names: task -> table of names. fields: field of our
    model config -> its name in config.json. gelu: the same of the field `gelu`. defaults:
    those of transformers, by their names. constants: fields of our model config that
    config.json lacks, with their only value. supported: fields of config.json with the
    only value that our models support. written: further fields that are written. traits:
    of our model config, or None. read_traits: (where, config.json with the defaults) ->
    further traits. write_traits: model config -> further fields of config.json.
    """

    stem: str
    names: Callable[[str], Names]
    fields: Mapping[str, str]
    gelu: str
    defaults: Mapping[str, Any]
    constants: Mapping[str, Any]
    supported: Mapping[str, Any]
    written: Mapping[str, Any]
    traits: Mapping[str, Any] | None
    read_traits: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    write_traits: Callable[[Mapping[str, Any]], dict[str, Any]]


def _no_fields(*arguments: Any) -> dict[str, Any]:
    """Returns {}: the family has no such fields."""
    del arguments
    return {}


BERT = TextFamily(
    stem="Bert",
    names=lambda task: bert.names("bert", task),
    fields=FIELDS,
    gelu="hidden_act",
    defaults=DEFAULTS | dict(vocab_size=30_522, pad_token_id=0),
    constants={},
    supported=SUPPORTED,
    written=_DROPOUT | _ABSOLUTE,
    traits=None,
    read_traits=_no_fields,
    write_traits=_no_fields,
)
ROBERTA = BERT._replace(
    stem="Roberta",
    names=lambda task: bert.names("roberta", task),
    defaults=DEFAULTS | dict(vocab_size=50_265, pad_token_id=1),
)
# Of the same code as RoBERTa, with other defaults.
_LIKE_ROBERTA = ROBERTA._replace(
    defaults=DEFAULTS | dict(vocab_size=30_522, pad_token_id=1)
)
DISTILBERT = TextFamily(
    stem="DistilBert",
    names=distilbert.names,
    fields=dict(
        vocab_size="vocab_size",
        max_positions="max_position_embeddings",
        width="dim",
        depth="n_layers",
        heads="n_heads",
        mlp_dim="hidden_dim",
    ),
    gelu="activation",
    defaults=dict(
        vocab_size=30_522,
        max_position_embeddings=512,
        dim=768,
        n_layers=6,
        n_heads=12,
        hidden_dim=3072,
        activation="gelu",
        pad_token_id=0,
    ),
    constants=dict(layer_norm_eps=1e-12, token_types=0),
    supported=dict(sinusoidal_pos_embds=False, pruned_heads={}),
    written=dict(dropout=0.1, attention_dropout=0.1, sinusoidal_pos_embds=False),
    traits=traits.of_family("distilbert", pooler="relu"),
    read_traits=_no_fields,
    write_traits=_no_fields,
)
ELECTRA = BERT._replace(
    stem="Electra",
    names=lambda task: bert.names("electra", task),
    defaults=DEFAULTS
    | dict(hidden_size=256, num_attention_heads=4, intermediate_size=1024)
    | dict(vocab_size=30_522, pad_token_id=0, embedding_size=128),
    written=_DROPOUT | _ABSOLUTE | dict(summary_activation="gelu"),
    traits=traits.of_family("electra", pooler="gelu", exact_head=True),
    read_traits=hf_traits.read_embed_dim,
    write_traits=hf_traits.write_embed_dim,
)
MODERNBERT = TextFamily(
    stem="ModernBert",
    names=modernbert.names,
    fields=dict(
        vocab_size="vocab_size",
        max_positions="max_position_embeddings",
        **{k: v for k, v in fields.NAMES.items() if k != "layer_norm_eps"},
        layer_norm_eps="norm_eps",
    ),
    gelu="hidden_activation",
    defaults=hf_traits.DEFAULTS,
    constants=dict(token_types=0),
    supported=hf_traits.SUPPORTED,
    written=hf_traits.WRITTEN,
    traits=hf_traits.TRAITS,
    read_traits=hf_traits.read_traits,
    write_traits=hf_traits.write_traits,
)
FAMILIES: dict[str, TextFamily] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": _LIKE_ROBERTA._replace(
        stem="XLMRoberta", traits=traits.of_family("xlm-roberta")
    ),
    "camembert": _LIKE_ROBERTA._replace(
        stem="Camembert", traits=traits.of_family("camembert")
    ),
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
}


def family_of(config: Mapping[str, Any]) -> str:
    """Returns the model_type of a complete model config of text."""
    own = config["traits"]
    return config["kind"] if own is None else own["family"]
