"""Reads and writes config.json of Hugging Face's BERT and RoBERTa."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights import extras, fields
from flax_adapt.weights.names import bert as bert_names
from flax_adapt.weights.names.names import Names

# The pooling of BertForSequenceClassification; another `pooling` in config.json is ours.
POOLING = "pooler"

# Defaults of transformers' BertConfig and RobertaConfig: old files leave some out.
DEFAULTS: dict[str, Any] = dict(
    **fields.DEFAULTS,
    max_position_embeddings=512,
    type_vocab_size=2,
)
KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": dict(vocab_size=30_522, pad_token_id=0),
    "roberta": dict(vocab_size=50_265, pad_token_id=1),
}
FIELDS = dict(
    vocab_size="vocab_size",
    max_positions="max_position_embeddings",
    token_types="type_vocab_size",
    **fields.NAMES,
)
# Fields of config.json with the only value that our models support.
SUPPORTED = dict(
    position_embedding_type="absolute",
    is_decoder=False,
    add_cross_attention=False,
    pruned_heads={},
)
CLASSES = {"bert": "Bert", "roberta": "Roberta"}
ARCHITECTURES = {
    "mlm": "ForMaskedLM",
    "encoder": "Model",
    "classify": "ForSequenceClassification",
}


def names(config: Mapping[str, Any], task: str) -> Names:
    """Returns the table of names of a model config for a task."""
    return bert_names.names(config["kind"], task)


def constants(config: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns {}: the classes have no tensors but those of our models."""
    del config, prefix
    return {}


def ignored(task: str, pooling: str) -> tuple[str, ...]:
    """Returns the parts of the parameters that a task does not have; they are ignored."""
    if task == "classify":
        return ("mlm",) if pooling == "pooler" else ("mlm", "pooler")
    return ("head", "pooler") if task == "mlm" else ("head", "mlm")


def model_config(
    where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
) -> dict[str, Any]:
    """Returns our model config of a config.json; raises UserError where we cannot build it.

    theirs: content of the config.json. found: names of the tensors, which show a pooler.
    """
    defaults = {**DEFAULTS, **KIND_DEFAULTS[kind]}
    theirs = {**defaults, **theirs}
    fields.check_numbers(where, theirs, defaults, FIELDS.values())
    width = theirs["hidden_size"]
    fields.check_supported(where, theirs, {**SUPPORTED, "embedding_size": width})
    padding = theirs["pad_token_id"]
    if type(padding) is not int or not 0 <= padding < theirs["vocab_size"]:
        raise UserError(
            f"{where}: pad_token_id={fields.show(padding)} must be one of the ids"
        )
    table = bert_names.names(kind, "encoder")
    return {
        "kind": kind,
        **{ours: theirs[name] for ours, name in FIELDS.items()},
        "gelu": fields.gelu(where, theirs["hidden_act"]),
        "pad_token_id": padding,
        "pooler": "pooler/kernel" in map(table.leaf_of, found),
        **extras.read(where, theirs),
    }


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the name of the transformers class for a model of a task."""
    return CLASSES[config["kind"]] + ARCHITECTURES[task]


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    """Returns the config.json of a model, without the fields that all families share.

    The rates of dropout are those that BERT and RoBERTa were trained with.
    """
    theirs = {
        "model_type": config["kind"],
        **{name: config[ours] for ours, name in FIELDS.items()},
        "hidden_act": fields.HIDDEN_ACT[config["gelu"]],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": config["pad_token_id"],
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    if task == "classify" and num_classes == 1:
        theirs["problem_type"] = "regression"
    return theirs
