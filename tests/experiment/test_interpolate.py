"""Between two sets of weights: what may be mixed, and which mixture is the best."""

import numpy as np
import pytest

from flax_adapt.base.errors import UserError
from flax_adapt.experiment import interpolate, pairs
from flax_adapt.experiment.interpolate import Point
from flax_adapt.experiment.pairs import Pair
from flax_adapt.stage.predictions import Predictions


def arm(accuracy, count=200, second_half=None):
    """Predictions that are right on this share of the even and of the odd examples."""
    names = np.array([f"{i:04}" for i in range(count)])
    labels = np.zeros(count, np.int32)
    guesses = np.ones(count, np.int32)
    for half, share in enumerate((accuracy, second_half or accuracy)):
        rows = np.arange(half, count, 2)
        guesses[rows[: round(share * len(rows))]] = 0
    order = np.random.default_rng(0).permutation(count)
    nothing = np.zeros(count, np.float32)
    columns = (names, labels, guesses, nothing)
    return {0: Predictions(*(column[order] for column in columns))}


def point(a, knn, source, **others):
    target = {"knn": arm(knn, **others), "probe": arm(0.5)}
    return Point(a, target, [("the source x", {"knn": arm(source), "probe": arm(0.9)})])


def test_the_best_on_the_target_wins_among_those_that_keep_the_source():
    points = [point(0.0, 0.5, 0.8), point(0.5, 0.7, 0.79), point(1.0, 0.9, 0.6)]
    assert interpolate.choose(points, 0.05) == 1
    assert interpolate.choose(points, 0.0) == 0
    assert interpolate.choose(points, 0.3) == 2
    # The smallest of equal ones; and the other half of the test examples has no say.
    same = [point(0.0, 0.5, 0.8), point(0.5, 0.5, 0.8, second_half=0.9)]
    assert interpolate.choose(same, 0.0) == 0
    chosen = interpolate.describe_choice(same, 1, 0.0)["on_the_other_half"]
    assert (chosen["start"]["knn"], chosen["best"]["knn"]) == (0.5, 0.9)


def test_no_example_is_in_both_halves_whatever_draws_leave_out():
    """Right are every other example of all; one draw lacks the first of them."""
    (one,) = arm(1.0).values()
    is_even = one.names.astype(int) % 2 == 0
    one = one._replace(guesses=np.where(is_even, one.labels, 1 - one.labels))
    later = Predictions(*(column[one.names > "0000"] for column in one))
    found = Point(0.0, {"knn": {0: one, 1: later}}, [])
    chosen = interpolate.describe_choice([found, found], 0, 0.0)
    assert chosen["on_the_other_half"]["best"] == {"knn": 0.0}
    assert chosen["rule"].endswith("not measured, without a source that has classes")
    others = found._replace(others=[("tfds:x", found.target)])
    rule = interpolate.describe_choice([others, others], 0, 0.1)["rule"]
    assert "at most 0.1 on tfds:x; what is forgotten is not measured" in rule
    others = found._replace(others=[("the source y", found.target)])
    rule = interpolate.describe_choice([others, others], 0, 0.1)["rule"]
    assert rule.endswith("with a loss of at most 0.1 on the source y")


def test_a_mixture_has_both_ends_exactly_and_leaves_new_parts_alone():
    rng = np.random.default_rng(0)
    one, other, head = (rng.standard_normal((3, 2), np.float32) for _ in range(3))
    adapted = {"encoder": {"x": other}, "head": {"x": head}}
    pair = Pair(None, "classify", None, adapted, {"encoder/x": one})
    for a, expected in ((0.0, one), (1.0, other)):
        mixed = pair.mix(adapted, a)
        np.testing.assert_array_equal(mixed["encoder"]["x"], expected)
        assert mixed["head"]["x"] is head
    quarter = pair.mix(adapted, 0.25)["encoder"]["x"]
    np.testing.assert_allclose(quarter, one + 0.25 * (other - one), rtol=1e-5)


def test_weights_of_other_shapes_are_refused_in_one_line():
    start = {"encoder/a": (2, 3), "encoder/b": (4,), "head/bias": (3,)}
    pairs.check_shapes("s", start, {**start, "head/bias": (5,)})
    grown = {**start, "encoder/a": (2, 5), "encoder/new": (1,)}
    text = r"--stage=s: .*encoder/a is \(2, 3\) in the start and \(2, 5\) after it \(2 param"
    with pytest.raises(UserError, match=text) as error:
        pairs.check_shapes("s", start, grown)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("points", "keep"), [(1, 0.0), (3, -0.1), (3, 2.0)])
def test_numbers_out_of_range_are_refused(tmp_path, points, keep):
    with pytest.raises(UserError, match="must be at least 2"):
        interpolate.run(None, tmp_path, "s", points, keep, False)
