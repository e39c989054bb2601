"""What is handed over: the best by held-out labels, and the probe where that is no better."""

import numpy as np
import pytest
from support import tiny

from flax_adapt.evals import outputs
from flax_adapt.experiment import handover
from flax_adapt.experiment.measuring.folds import number_folds
from flax_adapt.stage.predictions import Predictions
from flax_adapt.weights.files import writing


def arm(right, of=100, loss=1.0, first=0):
    """Predictions of which `right` are right, from `first` on."""
    labels = np.zeros(of, np.int32)
    rows = np.arange(of) - first
    guesses = ((rows < 0) | (rows >= right)).astype(np.int32)
    names = np.array([f"{i:03}" for i in range(of)])
    return Predictions(names, labels, guesses, np.full(of, loss, np.float32))


def test_the_best_candidate_is_handed_over():
    arms = dict(probe_start=arm(50), lp_ft=arm(60), full=arm(80))
    name, why = handover.best_arm(arms, "accuracy")
    assert name == "full"
    assert "+0.3000 to probe_start" in why


def test_a_gain_within_a_standard_error_hands_over_the_probe():
    arms = dict(probe_start=arm(50), full=arm(51, first=5))
    name, why = handover.best_arm(arms, "accuracy")
    assert name == "probe_start"
    assert "full is the best" in why


def test_of_equals_the_lower_loss_counts():
    arms = dict(probe_start=arm(50), a=arm(80, loss=2.0), b=arm(80, loss=1.0))
    assert handover.best_arm(arms, "accuracy")[0] == "b"


def test_every_label_is_held_out_once_and_a_class_is_never_without_one():
    labels = np.array([0] * 7 + [1] * 2 + [2])
    numbers = number_folds(labels, 5)
    assert numbers[-1] == -1
    assert (numbers[:-1] >= 0).all()
    for fold in range(5):
        assert {*labels[numbers != fold]} == {0, 1, 2}


def test_few_labels_take_turns_and_many_are_held_out_once():
    few = tiny.digits(subset={**tiny.FEW, "draw": "fixed"})
    folds = handover.make_folds(tiny.configs.build(few))
    outs = [name for fold in folds for name in fold.out]
    assert len(folds) == handover.FOLDS
    assert sorted(outs) == sorted({*outs})
    assert all(not {*fold.out} & {*fold.kept} for fold in folds)
    (whole,) = handover.make_folds(tiny.configs.build(tiny.digits()))
    assert len(whole.out) >= handover.FEW


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_of_scaled_logits_is_the_scale(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in shares])
    found = outputs.fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.1)


def test_a_damaged_temperature_is_one_line(tmp_path):
    (tmp_path / writing.CALIBRATION).write_text('{"temperature": -1}')
    with pytest.raises(outputs.UserError, match="its temperature must be a number"):
        outputs.read_temperature(tmp_path)
