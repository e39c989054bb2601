"""Drift: how adaptation changed features, and how similar they are to the initial ones.

Every measure takes features float [n, D], at least two rows, and computes in float64. It
raises UserError for features that cannot be measured. *Unit* features are the rows
divided by their norms; a row of zeros, which has no direction, stays zeros.
"""

from typing import NamedTuple

import numpy as np

from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params
from flax_adapt.evals import labelled

# Number of rows compared at once with all later ones; only memory depends on it: 256 x
# 50 000 distances take 100 MB.
_CHUNK = 256


class Features(NamedTuple):
    """The arguments of `report`: features float [n, D], rows of a pair in the same order.

    target, initial_target  the target examples, by the model and by the initial model
    source, initial_source  the same of source examples
    views                   two views of target examples, by the model; the number of
                            examples may differ from that of `target`
    labels                  int [n] of the target examples; None: they have no classes
    """

    target: np.ndarray
    views: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray | None
    source: np.ndarray
    initial_target: np.ndarray
    initial_source: np.ndarray


def report(features: Features, *, seed: int) -> dict[str, float]:
    """Returns {name: value} of every measure; "nmi" only where there are labels.

    seed: that of the k-means of `nmi`. Raises UserError as the measures do; for a row
    that is not finite, before the first of them is computed.
    """
    _check_all(features)
    measured = {
        "alignment": alignment(*features.views),
        "uniformity": uniformity(features.target),
        "compactness": compactness(features.target),
        "spread_ratio": spread_ratio(features.target, features.source),
        "rankme": rankme(features.target),
        "cka_target": cka(features.target, features.initial_target),
        "cka_source": cka(features.source, features.initial_source),
    }
    if features.labels is not None:
        measured["nmi"] = nmi(features.target, features.labels, seed=seed)
    return measured


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mean squared distance of two views of an example: mean_i |x_i - y_i|^2.

    x, y: unit features of the two views, rows in the same order. Without unit, in [0, 4];
    0: both views have the same features. Wang and Isola 2020 (arXiv 2005.10242), section
    4.1 with alpha = 2. Raises UserError for features of different shapes.
    """
    first, second = _pair(first, second, ("the first views", "the second views"))
    if first.shape != second.shape:
        raise UserError(
            f"views of widths {first.shape[1]} and {second.shape[1]} have no distance: "
            "take both from one model"
        )
    return float(
        np.mean(np.sum((_scale_to_unit(first) - _scale_to_unit(second)) ** 2, axis=1))
    )


def uniformity(features: np.ndarray) -> float:
    """Returns how unevenly unit features cover the sphere: log mean_{i<j} exp(-2 |x_i - x_j|^2).

    In nats, in [-8, 0]. 0: all rows point one way; the lower, the more even. Two opposite
    rows have -8; many rows spread evenly in many dimensions come near -4. Wang and Isola
    2020 (arXiv 2005.10242), section 4.1 with t = 2, over all pairs of two examples.
    """
    unit = _scale_to_unit(_rows(features, "uniformity"))
    squares = np.sum(unit**2, axis=1)
    total = 0.0
    for start in range(0, len(unit), _CHUNK):
        # Column 0 of the block is its row 0: pairs i < j are right of the diagonal.
        block = unit[start : start + _CHUNK] @ unit[start:].T
        block *= -2
        block += squares[start : start + _CHUNK, None]
        block += squares[start:]
        np.maximum(block, 0, out=block)  # rounding makes equal rows less than 0 apart
        block *= -2
        np.exp(block, out=block)
        corner = block[:, : len(block)]
        total += (
            block[:, len(block) :].sum() + corner[np.triu_indices_from(corner, 1)].sum()
        )
    return float(np.log(total / (len(unit) * (len(unit) - 1) / 2)))


def compactness(features: np.ndarray) -> float:
    """Returns the mean cosine distance of two examples: mean_{i<j} (1 - x_i . x_j).

    x: unit features. Without unit, in [0, n / (n - 1)]. 0: all rows point one way, the
    most compact; 1: no similarity on average. Ours, for the compact target space of Li et
    al. 2021 (arXiv 2110.09510). A row of zeros is at 1/2 of every other.
    """
    # 1 - x.y is half the squared distance, and the mean of that over pairs is the trace
    # of the unbiased covariance: no pair is formed, and nothing cancels.
    return _spread(_scale_to_unit(_rows(features, "compactness")))


def spread_ratio(target: np.ndarray, source: np.ndarray) -> float:
    """Returns the total variance of target by that of source: tr cov(target) / tr cov(source).

    Covariances of the features as they are, not unit, each divided by its n - 1. Without
    unit, in [0, inf); below 1: the target is the more compact. Ours, for the compact
    target space of Li et al. 2021 (arXiv 2110.09510).
    """
    target = _rows(target, "the target features")
    source = _rows(source, "the source features")
    _varies(source, "the source features")
    return _spread(target) / _spread(source)


def rankme(features: np.ndarray) -> float:
    """Returns the effective number of dimensions: exp(-sum_k p_k log p_k).

    p_k = s_k / sum(s) + 1e-7, with s the singular values of the features. These are NOT
    centred, as published: a mean far from 0 counts as one large dimension. The value is
    in [1, min(n, D)] up to the 1e-7; only values of the same n can be compared. Garrido
    et al. 2023 (arXiv 2210.02885).
    """
    features = _rows(features, "RankMe")
    if not np.any(features):
        raise UserError("RankMe: all features are 0; check the weights")
    singular = np.linalg.svd(features, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    return float(np.exp(-np.sum(shares * np.log(shares))))


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Returns linear centred kernel alignment: |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms.

    X [n, D] and Y [n, E]: features of the same examples by two models, centred by column;
    D and E may differ. Without unit, in [0, 1]; 1: equal up to rotation, one scale and a
    shift. With few rows in relation to columns it is near 1 even for unlike features: n
    should be well above D and E. Kornblith et al. 2019 (arXiv 1905.00414), table 1.
    """
    names = ("the first features of CKA", "the second features of CKA")
    first, second = _pair(first, second, names)
    for features, name in zip((first, second), names, strict=True):
        _varies(features, name)
    first, second = _centre(first), _centre(second)
    shared = np.linalg.norm(second.T @ first) ** 2
    own = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    return float(shared / own)


def weight_distance(params: Params, initial: Params) -> float:
    """Returns |w - w0| / |w0| over all parameters that both have in the same shape (ours).

    Euclidean norms; without unit, at least 0. Raises UserError where they share none.
    """
    ours, theirs = (rules.name_leaves(tree) for tree in (params, initial))
    shared = [
        (np.asarray(leaf, np.float64), np.asarray(theirs[name], np.float64))
        for name, leaf in ours.items()
        if name in theirs and np.shape(leaf) == np.shape(theirs[name])
    ]
    whole = sum(np.sum(old**2) for _, old in shared)
    if whole == 0:
        raise UserError("the models share no parameters to measure a distance of")
    moved = sum(np.sum((new - old) ** 2) for new, old in shared)
    return float(np.sqrt(moved / whole))


def nmi(features: np.ndarray, labels: np.ndarray, *, seed: int) -> float:
    """Returns how well clusters match classes: I(c; l) / mean(H(c), H(l)), arithmetic mean.

    c: k-means of the features as they are, k = number of classes among `labels` (int
    [n]), the best of 10 starts drawn from `seed`. Without unit, in [0, 1]; 1: the
    clusters are the classes. Ours: the choice of k-means and of its settings. Raises
    UserError for fewer than two classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    features = _rows(features, "NMI")
    _same_rows(features, labels, ("NMI: the features", "the labels"))
    labelled.check(features, labels, "NMI")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"NMI needs classes; the labels are numbers ({labels.dtype})")
    num_classes = len(np.unique(labels))
    if num_classes < 2:
        raise UserError("NMI needs examples of two classes or more")
    kmeans = KMeans(n_clusters=num_classes, n_init=10, random_state=seed)
    clusters = kmeans.fit_predict(features)
    return float(
        normalized_mutual_info_score(labels, clusters, average_method="arithmetic")
    )


def _check_all(features: Features) -> None:
    """Raises UserError that names the faulty set of features.

    A single measure does not know which of the sets it computes on.
    """
    sets = {
        "the target features": features.target,
        "the first views": features.views[0],
        "the second views": features.views[1],
        "the source features": features.source,
        "the initial model's target features": features.initial_target,
        "the initial model's source features": features.initial_source,
    }
    for who, rows in sets.items():
        _check(rows, who)


def _check(features: np.ndarray, who: str) -> None:
    shape = np.shape(features)
    if len(shape) != 2 or shape[0] < 2:
        raise UserError(
            f"{who}: features of shape {shape} must be [n, D] of at least two rows; "
            "check the split and the subset"
        )
    if not np.all(np.isfinite(features)):
        raise UserError(f"{who}: some features are not finite; check the weights")


def _rows(features: np.ndarray, who: str) -> np.ndarray:
    _check(features, who)
    return np.asarray(features, np.float64)


def _pair(
    first: np.ndarray, second: np.ndarray, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    first, second = _rows(first, names[0]), _rows(second, names[1])
    _same_rows(first, second, names)
    return first, second


def _same_rows(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> None:
    if len(first) != len(second):
        raise UserError(
            f"{names[0]} have {len(first)} rows but {names[1]} {len(second)}: "
            "take both from the same examples"
        )


def _varies(features: np.ndarray, who: str) -> None:
    if np.all(features == features[0]):
        raise UserError(f"{who}: all rows are the same; check the weights and the data")


def _scale_to_unit(features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norm > 0, norm, 1)


def _centre(features: np.ndarray) -> np.ndarray:
    return features - features.mean(axis=0)


def _spread(features: np.ndarray) -> float:
    """Returns the trace of the unbiased covariance."""
    return float(np.sum(_centre(features) ** 2) / (len(features) - 1))
