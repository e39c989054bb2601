"""Reads and writes config.json of Hugging Face's text encoders, see `hf_families`."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.weights import extras, fields
from flax_adapt.weights.formats import hf_families
from flax_adapt.weights.formats.hf_families import FAMILIES
from flax_adapt.weights.names.names import Names

# The pooling of BertForSequenceClassification; another `pooling` in config.json is ours.
POOLING = "pooler"
ARCHITECTURES = {
    "mlm": "ForMaskedLM",
    "encoder": "Model",
    "classify": "ForSequenceClassification",
}


def names(config: Mapping[str, Any], task: str) -> Names:
    """Returns the table of names of a model config for a task."""
    family = hf_families.family_of(models.complete(config))
    return FAMILIES[family].names(task)


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
    family = FAMILIES[theirs["model_type"]]
    theirs = {**family.defaults, **theirs}
    fields.check_numbers(where, theirs, family.defaults, family.fields.values())
    supported = dict(family.supported)
    if "embedding_size" not in family.defaults:
        supported["embedding_size"] = theirs[family.fields["width"]]
    fields.check_supported(where, theirs, supported)
    padding = theirs["pad_token_id"]
    if type(padding) is not int or not 0 <= padding < theirs["vocab_size"]:
        raise UserError(
            f"{where}: pad_token_id={fields.show(padding)} must be one of the ids"
        )
    table = family.names("encoder")
    return {
        "kind": kind,
        **{ours: theirs[name] for ours, name in family.fields.items()},
        **family.constants,
        "gelu": fields.gelu(where, theirs[family.gelu], family.gelu),
        "pad_token_id": padding,
        "pooler": "pooler/kernel" in map(table.leaf_of, found),
        **extras.read(where, theirs),
        "traits": None
        if family.traits is None
        else {**family.traits, **family.read_traits(where, theirs)},
    }


def stated(theirs: Mapping[str, Any]) -> set[str]:
    """Returns the fields of our model config that a config.json states."""
    family = FAMILIES[theirs["model_type"]]
    named = {**family.fields, "gelu": family.gelu}
    return {
        *family.constants,
        *(ours for ours, name in named.items() if name in theirs),
    }


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the name of the transformers class for a model of a task."""
    return FAMILIES[hf_families.family_of(config)].stem + ARCHITECTURES[task]


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    """Returns the config.json of a model, without the fields that all families share.

    The rates of dropout are those that BERT and RoBERTa were trained with. Raises
    UserError for a model config that the family's class cannot have.
    """
    model_type = hf_families.family_of(config)
    family = FAMILIES[model_type]
    for name, value in family.constants.items():
        if config[name] != value:
            raise UserError(
                f"Hugging Face's {family.stem} cannot hold {name}={config[name]!r} but "
                f"{value!r}; choose another format"
            )
    theirs = {
        "model_type": model_type,
        **{name: config[ours] for ours, name in family.fields.items()},
        family.gelu: fields.HIDDEN_ACT[config["gelu"]],
        **family.written,
        **family.write_traits(config),
        "initializer_range": 0.02,
        "pad_token_id": config["pad_token_id"],
        "tie_word_embeddings": True,
    }
    if task == "classify" and num_classes == 1:
        theirs["problem_type"] = "regression"
    return theirs
