"""Few-shot accuracy: its draws, and the class means by hand."""

import numpy as np
import pytest

from flax_adapt.base.errors import UserError
from flax_adapt.evals import few_shot

LABELS = np.array([0, 0, 0, 2, 2, 2, 2, 5, 5, 5])


def test_every_class_has_so_many_and_fewer_shots_are_among_more():
    for seed in range(5):
        three, one = (few_shot.draw(LABELS, shots, seed) for shots in (3, 1))
        assert np.unique(LABELS[three], return_counts=True)[1].tolist() == [3, 3, 3]
        assert len(one) == 3
        assert set(one) <= set(three)
    draws = {few_shot.draw(LABELS, 1, seed).tobytes() for seed in range(20)}
    assert len(draws) > 5
    assert few_shot.draw(LABELS, 4, 0) is None


def test_the_nearest_mean_of_centred_unit_features_wins_as_by_hand():
    """The mean is (1, 1): rows are (1, 0), (2, 0) -> (1, 0) and (0, 1), (-3, -1) -> ..."""
    train = np.array([[2.0, 1.0], [3.0, 1.0], [1.0, 2.0], [-2.0, 0.0]])
    labels = np.array([1, 1, 4, 4])
    # Class means of unit rows: (1, 0), and the direction of (0, 1) + (-3, -1) / sqrt(10).
    second = np.array([0.0, 1.0]) + np.array([-3.0, -1.0]) / np.sqrt(10)
    second /= np.linalg.norm(second)
    queries = np.array([[5.0, 1.0], [1.0, 5.0], [3.0, 2.0], [0.0, 0.5]])
    away = queries - 1
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    expected = np.where(away[:, 0] >= away @ second, 1, 4)
    found = few_shot.predict(train, labels, queries)
    assert found.tolist() == expected.tolist() == [1, 4, 1, 4]


def test_one_class_is_a_user_error():
    with pytest.raises(UserError, match="two classes"):
        few_shot.predict(np.ones((2, 3)), np.zeros(2, int), np.ones((1, 3)))
