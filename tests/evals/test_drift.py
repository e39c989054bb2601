"""Every measure of drift gives what a hand computes, and keeps its invariances."""

import re

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from flax_adapt.base.errors import UserError
from flax_adapt.evals import drift

exactly = pytest.approx  # a relative tolerance of 1e-6


def draw(rows, width, seed=0):
    normal = np.random.default_rng(seed).normal(size=(rows, width))
    return normal.astype(np.float32)


def rotation(width):
    return np.linalg.qr(draw(width, width, seed=9))[0]


# East of length 3, north, north of length 2: unit features (1, 0), (0, 1), (0, 1).
THREE = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]], np.float32)


def test_alignment_is_the_mean_squared_distance_of_unit_features():
    # Unit: (1, 0), (0, 1), (0, 1) against (1, 0), (1, 0), (0, -1): squares 0, 2, 4.
    second = np.array([[5.0, 0.0], [7.0, 0.0], [0.0, -0.1]])
    assert drift.alignment(THREE, second) == exactly((0 + 2 + 4) / 3)
    # 3-4-5: (0.6, 0.8) against (1, 0) is 0.4^2 + 0.8^2 = 0.8.
    first, second = np.array([[3.0, 4.0]] * 2), np.array([[1.0, 0.0]] * 2)
    assert drift.alignment(first, second) == exactly(0.8)


def test_uniformity_is_the_log_of_the_mean_over_pairs():
    # Squared distances of the three pairs: 2, 2, 0.
    by_hand = np.log((np.exp(-4) + np.exp(-4) + 1) / 3)
    assert drift.uniformity(THREE) == exactly(by_hand)


def test_uniformity_ends_at_opposite_and_at_equal_rows():
    # Opposite points: squared distance 4, exp(-2 * 4).
    assert drift.uniformity(np.array([[2.0, 0.0], [-3.0, 0.0]])) == exactly(-8)
    # Rounding must not take it above 0.
    for row in draw(20, 7):
        assert drift.uniformity(np.stack([row, row])) == exactly(0, abs=1e-14)
        assert drift.uniformity(np.stack([row, row])) <= 0


def test_compactness_is_the_mean_cosine_distance_over_pairs():
    # Cosines of the three pairs: 0, 0, 1.
    assert drift.compactness(THREE) == exactly((1 + 1 + 0) / 3)
    assert drift.compactness(np.array([[2.0, 0.0], [-3.0, 0.0]])) == exactly(2)
    assert drift.compactness(np.full((5, 3), 0.1)) == exactly(0, abs=1e-14)


# With 1 row, 37 = 5 * 7 + 2 rows, a whole number of blocks, and one block for all.
@pytest.mark.parametrize("chunk", [1, 7, 37, 64])
def test_pairs_are_counted_once_whatever_the_block(monkeypatch, chunk):
    monkeypatch.setattr(drift, "_CHUNK", chunk)
    features = draw(37, 5)
    squares = pdist(features / np.linalg.norm(features, axis=1, keepdims=True)) ** 2
    wanted = np.log(np.mean(np.exp(-2 * squares)))
    assert drift.uniformity(features) == exactly(wanted)


def test_compactness_equals_the_mean_over_all_pairs():
    features = draw(37, 5)
    wanted = np.mean(pdist(features, "cosine"))
    assert drift.compactness(features) == exactly(wanted)


def test_a_row_of_zeros_is_at_one_from_the_sphere():
    features = np.array([[-2.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    # Squared distances of the pairs: 1, 2, 1.
    by_hand = np.log((np.exp(-2) + np.exp(-2) + np.exp(-4)) / 3)
    assert drift.uniformity(features) == exactly(by_hand)
    assert drift.compactness(features) == exactly((1 + 1 + 2) / 2 / 3)
    # Squared distances of the rows from (1, 0): 4, 1, 2.
    assert drift.alignment(features, np.array([[1.0, 0.0]] * 3)) == exactly(7 / 3)


def test_spread_ratio_is_that_of_the_unbiased_variances():
    # Column variances: (9 + 0 + 0 - 3) / 2 = 3 and (0 + 1 + 4 - 3) / 2 = 1 of THREE;
    # (1 + 1) / 1 = 2 and 0 of the source.
    source = np.array([[1.0, 8.0], [-1.0, 8.0]])
    assert drift.spread_ratio(THREE, source) == exactly((3 + 1) / (2 + 0))
    assert drift.spread_ratio(THREE, THREE + 10) == exactly(1)
    assert drift.spread_ratio(3 * THREE, THREE) == exactly(9)
    assert drift.spread_ratio(THREE[[1, 1]], source) == 0


def test_rankme_by_hand():
    # Singular values 3 and 1: shares 3/4 and 1/4.
    features = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert drift.rankme(features) == exactly(np.exp(entropy))


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_rankme_of_equal_orthogonal_directions_is_their_number(directions):
    # Three rows in each of k directions of eight, turned: k equal singular values.
    features = np.tile(np.eye(8)[:directions], (3, 1)) @ rotation(8)
    assert drift.rankme(features) == exactly(directions, rel=1e-4)


def test_rankme_adds_its_published_epsilon_and_does_not_centre():
    # One direction in two dimensions: shares 1 + 1e-7 and 1e-7. Centred, it has none.
    p, q = 1 + 1e-7, 1e-7
    wanted = np.exp(-(p * np.log(p) + q * np.log(q)))
    found = drift.rankme(np.array([[2.0, 0.0]] * 3))
    assert found - 1 == exactly(wanted - 1)


def test_cka_by_hand():
    # Centred: x = (-1, 0, 1); y = (0, -1, 1) + (0, 0) beside a constant column.
    # x'y = 1, x'x = 2, y'y = 2: 1^2 / (2 * 2).
    first = np.array([[1.0], [2.0], [3.0]])
    second = np.array([[5.0, 7.0], [4.0, 7.0], [6.0, 7.0]])
    assert drift.cka(first, second) == exactly(0.25)
    # Y centred: columns (-1, 0, 1) and (1, -2, 1): Y'x = (2, 0), |Y'Y| = |diag(2, 6)|.
    second = np.array([[-1.0, 1.0], [0.0, -2.0], [1.0, 1.0]])
    assert drift.cka(first, second) == exactly(2**2 / (2 * np.sqrt(4 + 36)))


def test_cka_sees_through_rotation_scale_and_shift_only():
    features = draw(60, 4)
    assert drift.cka(features, features) == exactly(1)
    assert drift.cka(features, 3 * features @ rotation(4) + 5) == exactly(1)
    assert drift.cka(features, features * [1, 1, 1, 9]) < 0.9
    assert drift.cka(features, draw(60, 4, seed=1)) < 0.2


def test_cka_is_symmetric_and_that_of_the_centred_kernels():
    first, second = draw(20, 4), draw(20, 7, seed=1)
    centre = np.eye(20) - 1 / 20
    a, b = (centre @ x @ x.T @ centre for x in (first, second))
    wanted = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    assert drift.cka(first, second) == exactly(wanted)
    assert drift.cka(second, first) == exactly(wanted)


# Two clumps of two: k-means finds them from any start.
CLUMPS = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.1, 9.0]])


def test_nmi_is_one_for_any_names_of_the_clusters_and_zero_across_them():
    assert drift.nmi(CLUMPS, np.array([0, 0, 1, 1]), seed=0) == exactly(1)
    assert drift.nmi(CLUMPS, np.array([7, 7, 3, 3]), seed=0) == exactly(1)
    assert drift.nmi(CLUMPS, np.array([0, 1, 0, 1]), seed=0) == exactly(0, abs=1e-9)


def test_nmi_finds_as_many_clusters_as_classes_from_any_seed():
    # Six clumps on a grid; from seed 4, the first of the ten starts joins two of them.
    labels = np.arange(24) % 6
    centres = np.stack([labels // 3, labels % 3], axis=1)
    features = centres + 0.25 * draw(24, 2)
    found = [drift.nmi(features, labels, seed=seed) for seed in range(5)]
    assert found == exactly([1] * 5)


def test_nmi_depends_on_the_seed_alone():
    features, labels = draw(40, 3), np.arange(40) % 5
    once, twice = (
        [drift.nmi(features, labels, seed=s) for s in range(3)] for _ in "12"
    )
    assert once == twice
    assert len(set(once)) > 1


def test_nmi_divides_by_the_arithmetic_mean_of_the_entropies():
    # Clusters of 3 and 1, classes of 2 and 2; the joint shares are 2/4, 1/4, 1/4.
    features = np.array([[0.0], [0.1], [0.2], [9.0]])
    joint = [(0.5, 0.75, 0.5), (0.25, 0.75, 0.5), (0.25, 0.25, 0.5)]
    shared = sum(p * np.log(p / (c * of_class)) for p, c, of_class in joint)
    clusters = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    wanted = shared / ((clusters + np.log(2)) / 2)
    assert drift.nmi(features, np.array([0, 0, 1, 1]), seed=0) == exactly(wanted)


def given(**changes):
    sets = drift.Features(
        target=draw(12, 4),
        views=(draw(9, 4, seed=1), draw(9, 4, seed=2)),
        labels=np.arange(12) % 3,
        source=draw(15, 4, seed=3),
        initial_target=draw(12, 6, seed=4),
        initial_source=draw(15, 6, seed=5),
    )
    return sets._replace(**changes)


def test_the_report_hands_each_measure_its_features():
    sets = given()
    assert drift.report(sets, seed=3) == {
        "alignment": drift.alignment(*sets.views),
        "uniformity": drift.uniformity(sets.target),
        "compactness": drift.compactness(sets.target),
        "spread_ratio": drift.spread_ratio(sets.target, sets.source),
        "rankme": drift.rankme(sets.target),
        "cka_target": drift.cka(sets.target, sets.initial_target),
        "cka_source": drift.cka(sets.source, sets.initial_source),
        "nmi": drift.nmi(sets.target, sets.labels, seed=3),
    }


def test_the_report_is_of_python_floats_and_has_nmi_only_with_labels():
    labelled, plain = (drift.report(given(**x), seed=0) for x in ({}, {"labels": None}))
    assert {type(value) for value in labelled.values()} == {float}
    assert labelled.keys() - plain.keys() == {"nmi"}
    assert plain.items() <= labelled.items()


NAN = np.full((12, 4), np.nan)
BAD_SETS = {
    "the target features: some features are not finite": {"target": NAN},
    "the second views: some features are not finite": {"views": (draw(12, 4), NAN)},
    "the initial model's source features: features of shape (1, 6) must be": {
        "initial_source": draw(1, 6)
    },
    "the first views have 9 rows but the second views 8": {
        "views": (draw(9, 4), draw(8, 4))
    },
    "views of widths 4 and 5": {"views": (draw(9, 4), draw(9, 5))},
    "the first features of CKA have 12 rows but": {"initial_target": draw(11, 6)},
    "the second features of CKA: all rows are the same": {
        "initial_source": np.full((15, 6), 0.1)
    },
    "the source features: all rows are the same": {"source": np.full((15, 4), 0.1)},
    "RankMe: all features are 0": {"target": np.zeros((12, 4))},
    "NMI: the features have 12 rows but the labels 11": {"labels": np.arange(11)},
    "NMI: some have no label": {"labels": np.full(12, -1)},
    "NMI needs classes; the labels are numbers (float32)": {
        "labels": np.arange(12, dtype=np.float32)
    },
    "NMI needs examples of two classes": {"labels": np.zeros(12, int)},
}


@pytest.mark.parametrize("text", BAD_SETS)
def test_features_that_cannot_be_measured_are_a_user_error_of_one_line(text):
    with pytest.raises(UserError, match=re.escape(text)) as error:
        drift.report(given(**BAD_SETS[text]), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("measure", [drift.uniformity, drift.compactness, drift.rankme])
@pytest.mark.parametrize("features", [draw(1, 4), draw(4, 4)[0], NAN])
def test_every_measure_checks_at_its_own_door(measure, features):
    with pytest.raises(UserError):
        measure(features)
