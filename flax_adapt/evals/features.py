"""Embeddings of a whole data set on the host, every example exactly once."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flax_adapt.errors import UserError
from flax_adapt.types import Batch


class Features(NamedTuple):
    """Rows in the order of the source. `labels` are -1 where there are none."""

    embeddings: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int32 [n], or float32 where labels are numbers
    indices: np.ndarray  # int32 [n], strictly increasing


def extract(encode: Callable[[Batch], ArrayLike], batches: Iterable[Batch]) -> Features:
    """Encodes every batch (`encode` returns [B, D]) and drops rows of weight 0.

    Encoding a batch overlaps with fetching the result of the one before it.
    """
    rows: list[Features] = []
    waiting: tuple[ArrayLike, Batch] | None = None
    for batch in batches:
        ahead = (encode(batch), batch)
        if waiting is not None:
            rows.append(_fetch(*waiting))
        waiting = ahead
    if waiting is not None:
        rows.append(_fetch(*waiting))
    if not sum(len(row.indices) for row in rows):
        raise UserError(
            "there is no example to encode: check the data's split and subset"
        )
    return _in_order(rows)


def _fetch(embeddings: ArrayLike, batch: Batch) -> Features:
    counts = np.asarray(batch["weight"]) > 0
    return Features(
        np.asarray(embeddings, np.float32)[counts],
        np.asarray(batch["label"])[counts],
        np.asarray(batch["index"], np.int32)[counts],
    )


def _in_order(rows: list[Features]) -> Features:
    joined = [np.concatenate(column) for column in zip(*rows, strict=True)]
    order = np.argsort(joined[2], kind="stable")
    features = Features(*(column[order] for column in joined))
    repeated = features.indices[1:][np.diff(features.indices) == 0]
    if len(repeated):
        raise ValueError(
            f"examples came more than once: indices {repeated[:5].tolist()}"
        )
    return features
