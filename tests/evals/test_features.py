"""Features come once and in order; kNN and the probe give what a hand computes."""

import numpy as np
import pytest

from flax_adapt.base.errors import UserError
from flax_adapt.evals import features, knn, probe
from flax_adapt.train import linear


def batch(indices, weights=None):
    indices = np.asarray(indices, np.int32)
    weight = np.ones(len(indices)) if weights is None else np.asarray(weights)
    return {
        "image": indices[:, None].astype(np.float32),
        "label": indices % 3,
        "index": indices,
        "weight": weight.astype(np.float32),
    }


def double(batch):
    return batch["image"] * 2


def test_features_are_in_source_order_without_padding():
    batches = [batch([4, 2]), batch([0, 3]), batch([1, 0], weights=[1, 0])]
    found = features.extract(double, batches)
    np.testing.assert_array_equal(found.indices, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(found.embeddings, [[0], [2], [4], [6], [8]])
    assert found.embeddings.dtype == np.float32


def test_an_example_that_comes_twice_is_an_error():
    with pytest.raises(ValueError, match=r"more than once: indices \[2\]"):
        features.extract(double, [batch([1, 2]), batch([2, 3])])


@pytest.mark.parametrize("batches", [[], [batch([1], weights=[0])]])
def test_no_example_at_all_is_a_user_error(batches):
    with pytest.raises(UserError, match="no example"):
        features.extract(double, batches)


# Similarities to the query (1, 0): label 0 has 1, label 1 twice 0.8, label 2 has -1.
TRAIN = np.array([[3.0, 0.0], [0.8, 0.6], [8.0, -6.0], [-1.0, 0.0]])
LABELS = np.array([0, 1, 1, 2])
QUERY = np.array([[1.0, 0.0]])


# Label 0 has exp(1/t), label 1 has 2 exp(0.8/t): equal at t = 0.2 / log 2 = 0.2885.
@pytest.mark.parametrize(
    ("k", "temperature", "winner"),
    [(3, 0.28, 0), (3, 0.30, 1), (1, 0.30, 0), (4, 9.0, 1)],
)
def test_knn_votes_as_by_hand(k, temperature, winner):
    for label in range(3):
        found = knn.accuracy(
            TRAIN, LABELS, QUERY, np.array([label]), k=k, temperature=temperature
        )
        assert found == float(label == winner)


def test_knn_survives_a_temperature_that_overflows_exp():
    # exp(1 / 0.001) is infinite in float32.
    for label in range(3):
        labels = (LABELS + label) % 3
        wanted = labels[:1]
        assert knn.accuracy(TRAIN, labels, QUERY, wanted, k=4, temperature=0.001) == 1


def test_knn_does_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 4)), rng.normal(size=(11, 4))
    labels, wanted = rng.integers(0, 3, 30), rng.integers(0, 3, 11)
    whole = knn.accuracy(train, labels, test, wanted, k=5, temperature=0.07)
    monkeypatch.setattr(knn, "_CHUNK", 4)
    assert knn.accuracy(train, labels, test, wanted, k=5, temperature=0.07) == whole
    assert 0 < whole < 1


@pytest.mark.parametrize("k", [0, 5])
def test_knn_needs_k_training_examples(k):
    with pytest.raises(UserError, match=f"k={k} needs 1 <= k <= 4"):
        knn.accuracy(TRAIN, LABELS, QUERY, np.array([0]), k=k, temperature=0.07)


def knn_accuracy(*sets):
    return knn.accuracy(*sets, k=1, temperature=0.07)


def probe_accuracy(*sets):
    return probe.linear_probe(*sets, l2=1e-3, folds=5, seed=0).accuracy


BAD_INPUT = {
    "have no label": (TRAIN, np.array([0, 1, -1, 2]), QUERY, np.array([0])),
    "there are none": (TRAIN, LABELS, QUERY[:0], np.array([], int)),
    "not finite": (TRAIN * np.nan, LABELS, QUERY, np.array([0])),
}


@pytest.mark.parametrize("measure", [knn_accuracy, probe_accuracy])
@pytest.mark.parametrize("text", BAD_INPUT)
def test_data_that_cannot_be_measured_is_a_user_error(measure, text):
    with pytest.raises(UserError, match=text):
        measure(*BAD_INPUT[text])


def test_probe_separates_what_is_separable():
    rng = np.random.default_rng(0)
    labels, wanted = np.arange(30) % 3, np.arange(12) % 3
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    train = corners[labels] + rng.normal(scale=0.1, size=(30, 2))
    test = corners[wanted] + rng.normal(scale=0.1, size=(12, 2))
    assert probe_accuracy(train, labels, test, wanted) == 1
    assert probe_accuracy(train, labels, test, (wanted + 1) % 3) == 0


def test_probe_does_not_depend_on_the_scale_of_a_feature():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    labels, wanted = (x[:, 0] + x[:, 1] > 0 for x in (train, test))
    scale = np.array([1.0, 0.05, 20.0])
    plain = probe_accuracy(train, labels.astype(int), test, wanted.astype(int))
    scaled = probe_accuracy(
        train * scale, labels.astype(int), test * scale, wanted.astype(int)
    )
    assert scaled == plain > 0.9


def test_standardising_uses_the_training_set_alone():
    train, test = np.array([[0.0], [2.0]]), np.array([[5.0], [7.0]])
    train, test = probe.standardise(train, test)
    np.testing.assert_allclose(train, [[-1], [1]], rtol=1e-6)
    np.testing.assert_allclose(test, [[4], [6]], rtol=1e-6)


@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_probe_l2_means_the_same_for_any_number_of_examples(l2):
    # The same rows ten times over are the same problem.
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 6)), rng.normal(size=(300, 6))
    labels, wanted = rng.integers(0, 3, 30), rng.integers(0, 3, 300)
    once, tenfold = (
        probe.linear_probe(
            np.tile(train, (times, 1)),
            np.tile(labels, times),
            *(test, wanted),
            **dict(l2=l2, folds=5, seed=0),
        )
        for times in (1, 10)
    )
    assert once == tenfold


def test_probe_needs_two_classes():
    with pytest.raises(UserError, match="two classes"):
        probe_accuracy(TRAIN, np.zeros(4, int), QUERY, np.array([0]))


@pytest.mark.parametrize(("l2", "folds"), [(-1.0, 5), (np.inf, 5), (0.0, 1)])
def test_a_probe_without_a_sound_penalty_is_refused(l2, folds):
    text = rf"probe_l2={l2} must be above 0, or 0.*; probe_folds={folds} at least 2"
    with pytest.raises(UserError, match=text):
        probe.linear_probe(
            TRAIN, LABELS, QUERY, np.array([0]), l2=l2, folds=folds, seed=0
        )


def test_a_probe_chooses_its_penalty_by_training_labels_alone():
    rng = np.random.default_rng(0)
    labels, wanted = np.arange(60) % 3 * 2, np.arange(30) % 3 * 2  # none are 1 or 3
    train, test = (rng.normal(size=(len(y), 8)) + y[:, None] for y in (labels, wanted))
    sets = dict(l2=0.0, folds=5, seed=0)
    one = probe.linear_probe(train, labels, test, wanted, **sets)
    assert one == probe.linear_probe(train, labels, test, wanted, **sets)
    assert one.accuracy > 0.6
    expected, _ = linear.choose_penalty(train, labels // 2, 3)
    assert one.l2 == expected
    other = probe.linear_probe(train, labels, -test, wanted[::-1], **sets)
    assert other.l2 == one.l2
    same = probe.linear_probe(train, labels, test, wanted, **{**sets, "l2": one.l2})
    assert same == one
