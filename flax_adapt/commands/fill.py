"""Prints the likeliest tokens for the mask tokens of a text."""

from flax_adapt.base import errors, logs
from flax_adapt.base.hub import weights_path
from flax_adapt.commands.values import INIT_FLAGS
from flax_adapt.evals import fill as fill_mask


def fill(init: str, text: str, top: int, init_format: str) -> None:
    """Prints the likeliest tokens for every mask token of a text."""
    with errors.reword_errors(INIT_FLAGS):
        masks = fill_mask.fill(weights_path(init), text, top, init_format or None)
    for number, guesses in enumerate(masks, start=1):
        rows = [{"token": token, "probability": p} for token, p in guesses]
        print(f"mask {number}")
        print(logs.format_table(rows, ("token", "probability")))
