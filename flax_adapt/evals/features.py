"""Embeddings of a whole data set on the host, every example exactly once."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Batch
from flax_adapt.train import gather


class Features(NamedTuple):
    """Embeddings, rows in the order of the source; `labels` are -1 where there are none."""

    embeddings: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int32 [n], or float32 where labels are numbers
    indices: np.ndarray  # int32 [n], strictly increasing


Encode = Callable[[Batch], ArrayLike]


def extract(encode: Encode, batches: Iterable[Batch]) -> Features:
    """Returns the features by one encoder, see `extract_all`."""
    return extract_all([encode], batches)[0]


def extract_all(encoders: Sequence[Encode], batches: Iterable[Batch]) -> list[Features]:
    """Returns the features by every encoder (batch -> [B, D]); the data is read once.

    With several processes a batch has the rows that this one reads; [B, D] and the features
    are those of all. Rows of weight 0 are dropped. Encoding a batch overlaps with fetching
    the results of the one before it. Raises UserError if there is no example, ValueError if
    one comes twice.
    """
    rows: list[list[Features]] = [[] for _ in encoders]
    waiting: tuple[list[ArrayLike], Batch] | None = None
    for batch in batches:
        ahead = ([encode(batch) for encode in encoders], batch)
        _collect(rows, waiting)
        waiting = ahead
    _collect(rows, waiting)
    return [_in_order(found) for found in rows]


def _collect(
    rows: list[list[Features]], waiting: tuple[list[ArrayLike], Batch] | None
) -> None:
    if waiting is None:
        return
    for found, embeddings in zip(rows, waiting[0], strict=True):
        found.append(_fetch(embeddings, waiting[1]))


def _fetch(embeddings: ArrayLike, batch: Batch) -> Features:
    """Returns the rows of a batch that are examples; `batch` holds those of this process."""
    rows = gather.join_rows(
        {name: batch[name] for name in ("weight", "label", "index")}
    )
    counts = np.asarray(rows["weight"]) > 0
    return Features(
        np.asarray(embeddings, np.float32)[counts],
        np.asarray(rows["label"])[counts],
        np.asarray(rows["index"], np.int32)[counts],
    )


def _in_order(rows: list[Features]) -> Features:
    if not sum(len(row.indices) for row in rows):
        raise UserError(
            "there is no example to encode: check the data's split and subset"
        )
    joined = [np.concatenate(column) for column in zip(*rows, strict=True)]
    order = np.argsort(joined[2], kind="stable")
    features = Features(*(column[order] for column in joined))
    repeated = features.indices[1:][np.diff(features.indices) == 0]
    if len(repeated):
        raise ValueError(
            f"examples came more than once: indices {repeated[:5].tolist()}"
        )
    return features
