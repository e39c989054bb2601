"""Rows for new tokens in the tables of a text model; ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Leaves with a row for each token.
TABLES = ("encoder/embed/token", "mlm/bias")


def add_tokens(
    leaves: Mapping[str, Any], pieces: Sequence[Sequence[int]], first: int
) -> dict[str, Any]:
    """Returns the leaves with rows of new tokens, float32: the mean of their pieces' rows.

    leaves: {name: array} of a text model. pieces: for each new token the ids of what it was
    split into. first: its id; the others follow. A table that has rows beyond `first`, which
    no token used, keeps their number. Logits are products with the same table, so that of a
    new token is at first the mean of those of its pieces.
    """
    grown = dict(leaves)
    for name in (name for name in TABLES if name in leaves):
        table = np.asarray(leaves[name], np.float32)
        missing = max(0, first + len(pieces) - len(table))
        table = np.concatenate(
            [table, np.zeros((missing, *table.shape[1:]), np.float32)]
        )
        for number, ids in enumerate(pieces, start=first):
            table[number] = table[list(ids)].mean(axis=0)
        grown[name] = table
    return grown
