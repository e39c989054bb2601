"""The last block (`models.LastBlock`) in a config.json: ours, nobody else knows one."""

from collections.abc import Mapping
from typing import Any

from flax_adapt.errors import UserError
from flax_adapt.weights import fields

FIELD, NOTE_FIELD = "last_block", "flax_adapt_note"
# Makes a model_type that transformers has not: it would leave tensors out with a warning.
SUFFIX = "_resized"
NOTE = (
    "The last block of this model is not an ordinary one (last_block; kind 'resized': "
    "hidden states of width last_block.width): transformers cannot build it; "
    "flax_adapt.from_pretrained does"
)
KINDS: dict[str, type] = dict(
    kind=str, width=int, relu=bool, norm_width=int, mlp_dim=int
)
MAX_SIZE = 1 << 17


def check(where: str, value: Any) -> dict[str, Any] | None:
    """Returns a stranger's last block, or says which field cannot be built."""
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(KINDS):
        raise UserError(
            f"{where}: {FIELD}={fields.show(value)} must be an object of {', '.join(KINDS)}"
        )
    for name, kind in KINDS.items():
        found: Any = value[name]
        wrong = type(found) is not kind
        if wrong or (kind is int and not 0 <= found <= MAX_SIZE):
            raise UserError(
                f"{where}: {FIELD}.{name}={fields.show(found)} must be a {kind.__name__}"
                + (f" in [0, {MAX_SIZE}]" if kind is int else "")
            )
    return dict(value)


def read(where: str, theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the last block of a config.json."""
    return check(where, theirs.get(FIELD))


def to_json(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Returns the fields of config.json that a model config with a last block changes."""
    if config[FIELD] is None:
        return {}
    return {
        "model_type": model_type + SUFFIX,
        FIELD: dict(config[FIELD]),
        NOTE_FIELD: NOTE,
    }
