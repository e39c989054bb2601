"""Parses flags whose value is a list or a budget, and names flags in errors."""

import re
from typing import Any

from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.weights import fields
from flax_adapt.weights.formats import table as formats

# Names of arguments in errors of `weights` -> flags of the commands that take --init.
INIT_FLAGS = formats.rewordings("--init_known=", "--init_format")
_BUDGET = re.compile(
    r"(?P<rule>auto|paper)|(?P<time>\d+(\.\d+)?)(?P<unit>[smh])"
    r"|steps:(?P<steps>\d+)|epochs:(?P<epochs>\d+(\.\d+)?)"
)


def parse_values(flag: str, text: str) -> dict[str, Any]:
    """Returns `heads=6,gelu=tanh` as a dict, every value of its type; raises UserError."""
    pairs = [item.partition("=")[::2] for item in filter(None, text.split(","))]
    kinds = {name: errors.choose(flag, name, fields.KNOWN) for name, _ in pairs}
    try:
        return {name: kinds[name](value) for name, value in pairs}
    except ValueError:
        raise UserError(f"{flag}={text} must be NAME=VALUE,...") from None


def parse_budget(text: str) -> dict[str, str]:
    """Returns the parts of a budget by their names; raises UserError for another text."""
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise UserError(
            f"--budget={text} must be a time such as 30m or 2h, steps:2000, epochs:50, "
            f"paper or auto{errors.suggest(text, ('auto', 'paper'))}"
        )
    parts = {name: value for name, value in found.groupdict().items() if value}
    number = next((parts[n] for n in ("time", "steps", "epochs") if n in parts), "1")
    if float(number) <= 0:
        raise UserError(f"--budget={text} must be above 0")
    return parts
