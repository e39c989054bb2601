"""A checkpoint that does not fit: the strict report, one line, exit code 2."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny

from flax_adapt import __main__, weights
from flax_adapt.base import config

NORM = "vit.layernorm.weight"


@pytest.fixture
def init(tmp_path):
    model = tiny.build("mae")
    weights.save_pretrained(tmp_path / "hf", model, tiny.params_of(model))
    return tmp_path / "hf"


def run(monkeypatch, init, tmp_path):
    stage = tiny.pretrain(init_from="pretrained")
    experiment = tiny.experiment(stage, init=str(init))
    monkeypatch.setattr(config, "load", lambda name: experiment)
    return __main__.main(
        ["run", "--config=tiny", f"--workdir={tmp_path / 'run'}", "--noreport"]
    )


def missing(tensors):
    del tensors[NORM]


def extra(tensors):
    tensors["vit.extra"] = np.zeros(3, np.float32)


def reshaped(tensors):
    tensors[NORM] = np.zeros(7, np.float32)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (missing, "missing in the source: encoder/norm/scale"),
        (extra, "unexpected in the source: vit.extra"),
        (reshaped, "wrong shape (source -> model): encoder/norm/scale (7,) -> (16,)"),
    ],
)
def test_weights_that_do_not_fit_end_with_2(
    monkeypatch, capsys, init, tmp_path, damage, text
):
    tensors = dict(load_file(init / "model.safetensors"))
    damage(tensors)
    save_file(tensors, init / "model.safetensors", metadata={"format": "pt"})
    assert run(monkeypatch, init, tmp_path) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("flax-adapt: stage pretrain: ")
    assert text in line
    assert not list(tmp_path.glob("run/stages/*/checkpoints"))


def test_hugging_face_to_ours_and_back_is_bit_identical(init, tmp_path):
    model, params, _ = weights.from_pretrained(init, "mae")
    weights.save_pretrained(tmp_path / "again", model, params)
    before, after = (
        load_file(f / "model.safetensors") for f in (init, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    jax.tree.map(np.testing.assert_array_equal, before, after)
