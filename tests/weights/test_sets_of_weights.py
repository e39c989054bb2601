"""Files that hold several sets of weights: one is taken, the others are named."""

import numpy as np
import pytest
from support import torch_files
from support.format_files import GOLDENS, tensors_of

from flax_adapt import weights
from flax_adapt.base.errors import UserError

HEADS = dict(heads=2)


@pytest.fixture
def sets():
    """Two sets of a ViT's weights that differ by 1."""
    tensors = tensors_of(GOLDENS / "deit.pth")
    return tensors, {name: array + 1 for name, array in tensors.items()}


def bias_of(path, **known):
    """Returns a leaf that tells the sets apart, and the report."""
    _, loaded, report = weights.load(path, "encoder", pooling=None, known=HEADS | known)
    return loaded["encoder"]["norm"]["bias"], report


@pytest.mark.parametrize("form", torch_files.FORMS)
def test_the_usual_set_is_taken_and_the_other_is_named(tmp_path, sets, form):
    places = dict(zip(("state_dict", "state_dict_ema"), sets, strict=True))
    torch_files.write_sets(tmp_path / "a.pth", places, form, epoch=1)
    bias, report = bias_of(tmp_path / "a.pth")
    np.testing.assert_array_equal(bias, sets[0]["norm.bias"])
    assert "known weights=state_dict_ema" in report.ignored["state_dict_ema"]
    assert report.assumed["weights"] == "state_dict"
    assert "state_dict_ema" in report.summary()
    assert "state_dict_ema" in report.overview()


@pytest.mark.parametrize("place", ["model_ema", "ema", "teacher", "a.target_network"])
def test_known_chooses_the_set(tmp_path, sets, place):
    torch_files.write_sets(tmp_path / "a.pth", {"model": sets[0], place: sets[1]})
    bias, report = bias_of(tmp_path / "a.pth", weights=place)
    np.testing.assert_array_equal(bias, sets[1]["norm.bias"])
    assert list(report.ignored)[-1] == "model"
    assert "weights" not in report.assumed


def test_a_set_that_is_alone_is_taken_wherever_it_lies(tmp_path, sets):
    for place in ("state_dict_ema", "run.student.state_dict"):
        torch_files.write_sets(tmp_path / "a.pth", {place: sets[0]}, epoch=1)
        bias, report = bias_of(tmp_path / "a.pth")
        np.testing.assert_array_equal(bias, sets[0]["norm.bias"])
        assert "weights" not in report.assumed


def test_a_few_tensors_beside_a_set_are_no_other_set(tmp_path, sets):
    scale = {"scale": np.ones(1), "growth": np.ones(1)}
    torch_files.write_sets(tmp_path / "a.pth", {"ema": sets[0], "scaler": scale})
    _, report = bias_of(tmp_path / "a.pth")
    assert "scaler" not in report.ignored


def test_of_several_sets_without_a_usual_one_none_is_guessed(tmp_path, sets, main):
    places = dict(zip(("student", "teacher"), sets, strict=True))
    torch_files.write_sets(tmp_path / "a.pth", places)
    with pytest.raises(UserError, match=r"student, teacher; .*known=\{'weights': NAME"):
        bias_of(tmp_path / "a.pth")
    paths = f"--from={tmp_path / 'a.pth'}", f"--to={tmp_path / 'b'}"
    code, _, error = main("convert", *paths, "--known=heads=2")
    assert (code, error.count("\n")) == (2, 1)
    assert "--known=weights=NAME" in error
    code, out, _ = main("convert", *paths, "--known=heads=2,weights=teacher")
    assert code == 0
    assert "student" in out
    bias = weights.load(tmp_path / "b", "encoder", pooling=None)[1]["encoder"]["norm"]
    np.testing.assert_array_equal(bias["bias"], sets[1]["norm.bias"])


def test_a_set_that_is_not_there_is_one_line_with_those_that_are(tmp_path, sets):
    torch_files.write_sets(tmp_path / "a.pth", {"model": sets[0], "ema": sets[1]})
    with pytest.raises(UserError, match=r"weights=mean: the file holds model, ema"):
        bias_of(tmp_path / "a.pth", weights="mean")
    with pytest.raises(UserError, match="holds one set of weights"):
        bias_of(GOLDENS / "timm_token", weights="ema")
    with pytest.raises(UserError, match="known='weights' cannot be given"):
        weights.model_config(GOLDENS / "big_vision.npz", known=dict(weights="ema"))


def test_the_pooling_is_that_of_the_chosen_set(tmp_path, sets):
    """A norm after the pooling in one set says nothing of the other."""
    other = dict(sets[1])
    for name in ("weight", "bias"):
        other[f"fc_norm.{name}"] = other.pop(f"norm.{name}")
    torch_files.write_sets(tmp_path / "a.pth", {"model": sets[0], "ema": other})
    for place, pooling in {"model": "cls", "ema": "mean_norm"}.items():
        known = HEADS | dict(weights=place)
        model, _, _ = weights.from_pretrained(
            tmp_path / "a.pth", "classify", known=known
        )
        assert model.pooling == pooling
