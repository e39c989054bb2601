"""What a stage starts from: a new decoder, weights of other images, and its report."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny_files

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import measure, recipe
from flax_adapt.stage import weights as stage_weights

MODEL = tiny_files.MODEL
SIZE = 2 * MODEL["image_size"]


pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The values of {images}, {mae} and {encoder}: the same encoder alone."""
    root = tmp_path_factory.mktemp("files")
    tiny_files.image_folder(root / "images")
    tiny_files.mae_folder(root / "mae")
    model, params, _ = weights.from_pretrained(root / "mae", "encoder")
    pixels = tiny_files.PIXELS
    weights.save_pretrained(root / "encoder", model, params, **pixels)
    paths = {name: root / name for name in ("mae", "encoder")}
    return dict(images=f"folder:{root / 'images'}", **paths)


def load(name, files, init, more=""):
    dataset = f"dataset={files['images']},init={files[init]}"
    return configs.load(f"{name}:{dataset}{more}")


def only(config, *names):
    """The config, tiny, with these stages alone."""
    shrunk = tiny_files.shrink(config)
    stages = tuple(one for one in shrunk.stages if one.name in names)
    return ConfigDict({**shrunk, "stages": stages}).lock()


@pytest.mark.parametrize("name", ["vit_further_pretrain", "vit_self_distill"])
def test_masked_pretraining_of_an_encoder_alone_is_refused(name, files):
    with pytest.raises(UserError, match=r"encoder without a decoder.*_warmup=STEPS"):
        load(name, files, "encoder")
    assert load("vit_finetune", files, "encoder").stages


def test_every_masked_stage_starts_from_the_warmed_decoder(files):
    more = ",decoder_warmup=7,rounds=2"
    config = load("vit_self_distill", files, "encoder", more)
    starts = {one.name: one.init_from for one in config.stages}
    assert list(starts)[:2] == ["finetune_start", "decoder_warmup"]
    assert starts["finetune_start"] == starts["decoder_warmup"] == "pretrained"
    for name in ("further", "distill_1", "distill_2"):
        assert starts[name] == "stage:decoder_warmup"
    warmup = config.stages[1]
    assert warmup.num_steps == 7
    assert warmup.model.fresh == ("decoder",)
    assert config.model.decoder.to_dict() == dict(
        width=512, depth=8, heads=16, mlp_dim=2048
    )


def test_the_warmup_of_a_new_decoder_leaves_the_encoder_as_it_was(files, tmp_path):
    config = load("vit_further_pretrain", files, "encoder", ",decoder_warmup=2")
    recipe.run(only(config, "decoder_warmup"), tmp_path, force=False)
    folder = tmp_path / "stages/decoder_warmup"
    report = json.loads((folder / "import_report.json").read_text())
    assert report["fresh"]
    assert all(leaf.startswith("decoder/") for leaf in report["fresh"])
    after = load_file(folder / "export/model.safetensors")
    before = load_file(files["encoder"] / "model.safetensors")
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[f"vit.{name}"])
    assert np.any(after["decoder.decoder_embed.bias"])  # zeros when it was new


def test_a_stage_says_that_its_weights_lack_a_decoder(files, tmp_path):
    config = only(load("vit_further_pretrain", files, "mae"), "further")
    config.init = str(files["encoder"])
    with pytest.raises(UserError, match=r"stage further: .*fresh=\('decoder',\)") as e:
        recipe.run(config, tmp_path, force=False)
    assert "\n" not in str(e.value)


def larger(files, name, more=""):
    """A config for images twice as large as those of the weights."""
    config = load(name, files, "mae", f",image_size={SIZE}{more}")
    assert config.model.image_size == SIZE
    tiny_files.shrink(config)
    config.model.image_size = SIZE
    for section in tiny_files.data_sections(config):
        section.image_size = SIZE
    return config


def test_a_config_for_larger_images_reshapes_the_weights_everywhere(files, tmp_path):
    config = larger(files, "vit_self_distill", ",compare=False,rounds=1")
    rows = recipe.run(config, tmp_path, force=False)
    assert all(np.isfinite(row["mean"]) for row in rows)
    text = (tmp_path / "stages/further/import_report.json").read_text()
    rule = "position 2x2 -> 4x4, bicubic"
    assert json.loads(text)["reshaped"] == {
        "encoder/position": rule,
        "decoder/position": rule,
    }
    export = tmp_path / "stages/further/export"
    assert weights.model_config(export)["image_size"] == SIZE
    # The original weights are measured on the larger images, too.
    config.evaluate.knn_k = 5
    labels = [row["stage"] for row in measure.evaluate(config, tmp_path)]
    assert labels[0] == "pretrained"
    assert len(labels) == 1 + len(rows)


def test_a_teacher_is_reshaped_as_the_student_is(files, tmp_path, open_files):
    config = larger(files, "vit_self_distill", ",compare=False,rounds=1")
    (run,) = (s for s in recipe.stage_runs(config, tmp_path) if s.label == "distill_1")
    run.config.teacher = "pretrained"
    position = stage_weights.load_teacher(run, open_files)["teacher"]["encoder"][
        "position"
    ]
    assert position.shape == (1, 17, MODEL["width"])


def test_other_sizes_without_a_rule_are_refused_with_the_way_to_ask(files, tmp_path):
    config = larger(files, "vit_finetune")
    config.stages[0].model.reshape = ()
    with pytest.raises(UserError, match=r"image_size: 8 -> 16; .*reshape .*'position'"):
        recipe.run(config, tmp_path, force=False)


def test_a_wrong_rule_is_found_before_anything_runs(files, tmp_path):
    config = larger(files, "vit_finetune")
    config.stages[0].model.reshape = ("size",)
    with pytest.raises(UserError, match="stage finetune: reshape='size' is unknown"):
        recipe.run(config, tmp_path / "a", force=False)
    assert not (tmp_path / "a").exists()


def test_another_patch_needs_a_new_last_layer_of_the_decoder(files):
    with pytest.raises(UserError, match="need a new last layer"):
        load("vit_further_pretrain", files, "mae", ",patch_size=2")
    more = ",patch_size=2,channels=1,channels_by=average,decoder_warmup=3"
    config = load("vit_further_pretrain", files, "mae", more)
    warmup = config.stages[0].model
    assert warmup.fresh == ("decoder/predict",)
    assert warmup.reshape == ("position", "patch", "channels:average")
    assert config.model.decoder.to_dict() == MODEL["decoder"]
    assert config.stages[0].data.mean == (0.5,)


def test_a_warmup_from_scratch_makes_no_sense():
    with pytest.raises(UserError, match="decoder_warmup=3 needs init=PATH"):
        configs.load("vit_further_pretrain:dataset=folder:a,decoder_warmup=3")
