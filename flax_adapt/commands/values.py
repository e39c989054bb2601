"""Parses flags whose value is a list, and names flags in errors."""

from typing import Any

from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.weights import fields
from flax_adapt.weights.formats import table as formats

# Names of arguments in errors of `weights` -> flags of the commands that take --init.
INIT_FLAGS = formats.rewordings("--init_known=", "--init_format")


def parse_values(flag: str, text: str) -> dict[str, Any]:
    """Returns `heads=6,gelu=tanh` as a dict, every value of its type; raises UserError."""
    pairs = [item.partition("=")[::2] for item in filter(None, text.split(","))]
    kinds = {name: errors.choose(flag, name, fields.KNOWN) for name, _ in pairs}
    try:
        return {name: kinds[name](value) for name, value in pairs}
    except ValueError:
        raise UserError(f"{flag}={text} must be NAME=VALUE,...") from None
