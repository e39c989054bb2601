"""How a masked autoencoder was trained goes with its weights, in both directions."""

import json
import logging

import pytest
from support import tiny_files
from support.hf_folders import EPS, build, change_config, random_params

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import convert

TRAINED = dict(normalize_patches=True, hidden_ratio=0.6)
THEIRS = dict(norm_pix_loss=True, mask_ratio=0.6)


def save(path, task="mae", reconstruction=TRAINED, format="huggingface"):
    model = build(task, **EPS)
    options = dict(reconstruction=reconstruction, format=format)
    weights.save_pretrained(path, model, random_params(model), **options)
    return path


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def run(source, target, **options):
    fields = dict(source_format=None, target_format="huggingface", task=None, known={})
    fields |= dict(changes={}, fresh=(), num_classes=0, seed=0) | options
    return convert.convert(source, target, **fields)


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_what_is_written_is_read(tmp_path, format):
    path = save(tmp_path / "a", format=format)
    assert weights.reconstruction(path) == TRAINED
    if format == "huggingface":
        found = config_of(path)
        assert {name: found[name] for name in THEIRS} == THEIRS


def test_a_source_that_does_not_tell_is_not_spoken_for(tmp_path):
    path = save(tmp_path / "a", reconstruction=None)
    assert not set(THEIRS) & set(config_of(path))
    assert weights.reconstruction(path) == {}
    change_config(path, mask_ratio=0.5)
    assert weights.reconstruction(path) == dict(hidden_ratio=0.5)


def test_a_conversion_keeps_it_or_names_what_it_leaves_out(tmp_path):
    path = save(tmp_path / "a")
    run(path, tmp_path / "b", target_format="orbax")
    run(tmp_path / "b", tmp_path / "c")
    assert config_of(tmp_path / "c") == config_of(path)
    file = tmp_path / "d.safetensors"
    assert run(path, file, target_format="facebook_mae").left_out == ("reconstruction",)


def test_an_encoder_and_a_new_decoder_were_not_trained_so(tmp_path):
    path = save(tmp_path / "a")
    run(path, tmp_path / "b", task="encoder")
    run(path, tmp_path / "c", fresh=("decoder",))
    for name in ("b", "c"):
        assert not set(THEIRS) & set(config_of(tmp_path / name))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(norm_pix_loss="yes"), "norm_pix_loss='yes' must be true or false"),
        (dict(norm_pix_loss=1), "norm_pix_loss=1 must be true or false"),
        (dict(mask_ratio=1.0), r"mask_ratio=1\.0 must be a number in \[0, 1\)"),
        (dict(mask_ratio=None), None),
    ],
)
def test_values_of_a_strange_kind_are_one_line(tmp_path, fields, text):
    path = save(tmp_path / "a")
    change_config(path, **fields)
    if text is None:
        assert weights.reconstruction(path) == dict(normalize_patches=True)
        return
    with pytest.raises(UserError, match=text):
        weights.reconstruction(path)


def further(tmp_path, main, **theirs):
    """Runs one step of further pre-training; returns the export and what was said."""
    images = tiny_files.image_folder(tmp_path / "images", train=8, test=1)
    init = tiny_files.mae_folder(tmp_path / "mae")
    change_config(init, **theirs)
    code, _, error = main(
        "run",
        f"--workdir={tmp_path / 'run'}",
        f"--config=vit_further_pretrain:dataset=folder:{images},init={init}",
        *("--config.stages.0.num_steps=1", "--config.stages.0.batch_size=8"),
        *(
            "--config.stages.0.optim.warmup_steps=0",
            "--config.evaluate.test.split=test",
        ),
    )
    assert code == 0, error
    return tmp_path / "run/stages/further/export"


def test_an_export_tells_what_its_stage_trained_with(
    tmp_path, main, caplog, monkeypatch
):
    """And a difference from the source's objective is said in one line."""
    monkeypatch.setattr(logging.getLogger("flax_adapt"), "handlers", [caplog.handler])
    with caplog.at_level(logging.WARNING):
        export = further(tmp_path, main, norm_pix_loss=False, mask_ratio=0.75)
    found = config_of(export)
    assert (found["norm_pix_loss"], found["mask_ratio"]) == (True, 0.75)
    assert weights.reconstruction(tmp_path / "run/stages/further/checkpoints") == dict(
        normalize_patches=True, hidden_ratio=0.75
    )
    said = {record.getMessage() for record in caplog.records}
    (line,) = [text for text in said if "decoder of" in text]
    assert "(normalize_patches: False -> True)" in line
    assert "\n" not in line
