"""Parts of a model config that other libraries do not have, or have otherwise: PARTS."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.traits import Traits
from flax_adapt.weights import fields

FIELD, NOTE_FIELD = "last_block", "flax_adapt_note"
# Gives a model_type that transformers rejects; else it would ignore tensors with a warning.
SUFFIX = "_resized"
NOTE = (
    "The last block of this model is not an ordinary one (last_block; kind 'resized': "
    "hidden states of width last_block.width): transformers cannot build it; "
    "flax_adapt.from_pretrained does"
)
# Part -> its fields and their types.
PARTS: dict[str, dict[str, Any]] = {
    FIELD: dict(kind=str, width=int, relu=bool, norm_width=int, mlp_dim=int),
    "adaptor": dict(kind=str, keywise=bool, hidden=int),
}
# The same of `traits`, by the kind of model.
_OF_TEXT: dict[str, type] = dict(
    family=str,
    pooler=str,
    pooler_norm=bool,
    pooled=str,
    embed_dim=int,
    exact_head=bool,
    pre_norm=bool,
    biases=bool,
    gated=bool,
    global_every=int,
    local_window=int,
    global_theta=float,
    local_theta=float,
)
TRAITS: dict[str, dict[str, Any]] = {
    "vit": {field.name: field.type for field in dataclasses.fields(Traits)},
    "bert": _OF_TEXT,
    "roberta": _OF_TEXT,
}
MAX_SIZE = 1 << 17


def check(where: str, config: Mapping[str, Any]) -> None:
    """Raises UserError for fields of a file's model config that cannot be built."""
    for part, kinds in PARTS.items():
        _check_part(where, part, config.get(part), kinds)
    if (kind := config.get("kind")) in TRAITS:
        _check_part(where, "traits", config.get("traits"), TRAITS[kind])


def _check_part(where: str, part: str, value: Any, kinds: Mapping[str, Any]) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise UserError(
            f"{where}: {part}={fields.show(value)} must be an object of {', '.join(kinds)}"
        )
    for name, kind in kinds.items():
        found: Any = value[name]
        wrong = type(found) is not kind
        if wrong or (kind is int and not 0 <= found <= MAX_SIZE):
            raise UserError(
                f"{where}: {part}.{name}={fields.show(found)} must be a {kind.__name__}"
                + (f" in [0, {MAX_SIZE}]" if kind is int else "")
            )


def read(where: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields last_block and adaptor of our model config, from a config.json.

    theirs: content of the config.json. Raises UserError for wrong values.
    """
    found = {FIELD: theirs.get(FIELD), "adaptor": None}
    check(where, found)
    return found


def to_json(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Returns the fields that config.json has for a resized last block; else {}."""
    if config[FIELD] is None:
        return {}
    return {
        "model_type": model_type + SUFFIX,
        FIELD: dict(config[FIELD]),
        NOTE_FIELD: NOTE,
    }
