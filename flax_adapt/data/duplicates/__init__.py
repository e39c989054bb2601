"""Near-copies of the examples of one set in another, such as test images in a pool.

    tested, pool = duplicates.describe(test, section), duplicates.describe(other, section)
    for copy in duplicates.find(tested, pool): ...

A set is described in one pass that keeps some bytes an example (a hash of an image, a
signature of a text); what looks alike is read again and compared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.data.base import Source
from flax_adapt.data.duplicates import images, texts
from flax_adapt.data.source import may_share

# So many examples of the other set that look the most alike are read and compared.
MOST = 8


class Described(NamedTuple):
    """A set of examples with a code for each of them.

    source: the selected examples. section: their data section. codes: unsigned [n, K].
    """

    source: Source
    section: Any
    codes: np.ndarray


class Copy(NamedTuple):
    """An example and the most similar one of another set; similarity in [0, 1]."""

    name: str
    other: str
    similarity: float


class _Kind(NamedTuple):
    """How examples of a modality are compared.

    encode: (source, section) -> codes. candidates: (codes, other codes, most) -> rows of the
    other set for each row. read: (item, section) -> what `similarity` compares, or None.
    least: the similarity of a near-copy.
    """

    encode: Callable[[Source, Any], np.ndarray]
    candidates: Callable[[np.ndarray, np.ndarray, int], list[list[int]]]
    read: Callable[[Any, Any], Any]
    similarity: Callable[[Any, Any], float]
    least: float


_KINDS = {
    "image": _Kind(
        images.hash_all,
        images.list_candidates,
        images.read_pixels,
        images.correlate,
        images.LEAST,
    ),
    "text": _Kind(
        texts.sign_all,
        texts.list_candidates,
        lambda item, section: texts.hash_shingles(texts.join(item)),
        texts.jaccard,
        texts.LEAST,
    ),
}


def describe(source: Source, section: Any) -> Described:
    """Returns the set with its codes; every example is read once."""
    return Described(source, section, _KINDS[section.modality].encode(source, section))


def find(ours: Described, others: Described) -> list[Copy]:
    """Returns a near-copy in `others` for each example of `ours` that has one.

    An example that both sets share is no copy of itself. Raises ValueError for sets of two
    modalities.
    """
    if ours.section.modality != others.section.modality:
        raise ValueError("images are no copies of texts")
    kind, found = _KINDS[ours.section.modality], []
    is_shared = may_share(ours.section, others.section)
    known = [one.source.identities() for one in (ours, others)] if is_shared else []
    most = MOST + is_shared
    for row, rows in enumerate(kind.candidates(ours.codes, others.codes, most)):
        if not rows:
            continue
        name = ours.source.names[row]
        mine = kind.read(ours.source.read(row)[0], ours.section)
        best = Copy(name, "", 0.0)
        for other in rows:
            label = others.source.names[other]
            theirs = kind.read(others.source.read(other)[0], others.section)
            is_same = is_shared and known[0][row] == known[1][other]
            if mine is None or theirs is None or is_same:
                continue
            best = max(
                best,
                Copy(name, label, kind.similarity(mine, theirs)),
                key=lambda copy: copy.similarity,
            )
        if best.similarity >= kind.least:
            found.append(best)
    return found
