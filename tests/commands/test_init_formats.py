"""`init` in any format, with what its file does not tell: run, eval, features, fill."""

import json
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny, tiny_files, torch_files

from flax_adapt import defaults, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import measure, recipe
from flax_adapt.stage import weights as stage_weights
from flax_adapt.weights import convert

FACEBOOK = {**tiny_files.MODEL, "layer_norm_eps": 1e-6, "decoder": None}
# Of the same tensors; tiny_files.shrink takes models with this eps.
KNOWN = dict(heads=2, layer_norm_eps=1e-12)
TOLD = ",heads=2,layer_norm_eps=1e-12"
pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images, and a ViT as a .pth with Facebook's names."""
    root = tmp_path_factory.mktemp("files")
    tiny_files.image_folder(root / "images")
    model, file = tiny.build("encoder", FACEBOOK), root / "a.safetensors"
    params = tiny.params_of(model)
    weights.save_pretrained(file, model, params, format="facebook_mae")
    torch_files.write(root / "a.pth", load_file(file), "zip")
    return root


@pytest.fixture
def log_of_commands(caplog, monkeypatch):
    """What a command says beside its result."""
    # `main` adds a handler of its own, and stops propagation, where there is none.
    monkeypatch.setattr(logging.getLogger("flax_adapt"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("flax_adapt"), "propagate", False)
    caplog.set_level(logging.INFO, "flax_adapt")
    return caplog


def load(files, name, init, more=""):
    arguments = f"dataset=folder:{files / 'images'},init={files / init}{more}"
    return configs.load(f"{name}:{arguments}")


def test_a_run_takes_what_a_file_does_not_tell(files, tmp_path, log_of_commands):
    config = load(files, "vit_finetune", "a.pth", f",init_format=facebook_mae{TOLD}")
    assert config.init_format == "facebook_mae"
    assert config.init_known.to_dict() == dict(
        KNOWN, decoder_heads=0, gelu="", weights=""
    )
    with pytest.raises(TypeError):
        config.init_known.heads = "2"
    tiny_files.shrink(config)
    config.evaluate.knn_k = 5
    config.stages[0].seeds = (0, 1)
    recipe.run(config, tmp_path, force=False)
    # Said once, and kept for each seed.
    assert log_of_commands.text.count("tensors used") == 1
    assert log_of_commands.text.count("assumed gelu=erf") == 1
    for seed in (0, 1):
        file = tmp_path / f"stages/finetune/seed_{seed}/import_report.json"
        assert "blocks.0.attn.qkv.weight" in json.loads(file.read_text())["renamed"]
    rows = measure.evaluate(config, tmp_path)
    names = ["pretrained", "finetune/seed_0", "finetune/seed_1"]
    assert [row["stage"] for row in rows] == names


def test_a_teacher_takes_it_too(files, tmp_path, open_files):
    config = load(files, "vit_finetune", "a.pth", TOLD)
    with config.unlocked():
        config.stages[0].objective = ConfigDict(defaults.distill())
    config.stages[0].teacher = "pretrained"
    (run,) = recipe.stage_runs(config, tmp_path)[:1]
    assert stage_weights.load_teacher(run, open_files)["teacher"]["encoder"]
    config.init_known.heads = 0
    with pytest.raises(UserError, match=r"give init=PATH and init_known.heads=NUM"):
        stage_weights.load_teacher(run, open_files)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "give heads=NUMBER"),
        (",heads=-2", "heads=-2 must be a positive whole number"),
        (",heads=2,init_format=tf", "init_format='tf' is unknown"),
        (",heads=2,init_format=timm,gelu=relu", "gelu='relu' is unknown"),
        (",heads=x", "argument heads='x' must be of type int"),
    ],
)
def test_a_config_says_what_to_give(files, more, told):
    with pytest.raises(UserError, match=told) as error:
        load(files, "vit_finetune", "a.pth", more)
    assert "\n" not in str(error.value)
    assert "known=" not in str(error.value).replace("--known=", "")


def test_what_is_told_of_no_weights_is_a_mistake(files):
    with pytest.raises(UserError, match=r"'heads': 2.* describe init=PATH"):
        configs.load(f"vit_finetune:dataset=folder:{files / 'images'},heads=2")
    tiny_files.mae_folder(files / "mae")
    with pytest.raises(UserError, match=r"here, only weights$"):
        load(files, "vit_finetune", "mae", ",heads=2")


def test_channels_that_cannot_be_made_are_found_before_anything_runs(files):
    model = tiny.build("encoder", {**FACEBOOK, "channels": 1})
    path = files / "grey"
    weights.save_pretrained(path, model, tiny.params_of(model), format="orbax")
    with pytest.raises(
        UserError, match="channels 1 -> 3: only to 1, and from 3 to more"
    ):
        load(files, "vit_finetune", "grey", ",channels=3")
    assert load(files, "vit_finetune", "grey").model.channels == 1


def test_a_converted_folder_of_orbax_is_an_init(files, tmp_path):
    nothing = dict(source_format=None, task=None, changes={}, fresh=())
    how = dict(nothing, target_format="orbax", num_classes=0, seed=0)
    convert.convert(files / "a.pth", tmp_path / "b", known=KNOWN, **how)
    config = load(tmp_path, "vit_finetune", "b").model
    assert config == load(files, "vit_finetune", "a.pth", TOLD).model


def features(main, files, out, *flags):
    """The embeddings that the command writes."""
    given = [f"--init={files}/a.pth", f"--data=folder:{files}/images", f"--out={out}"]
    code, _, error = main("features", *given, *flags)
    assert code == 0, error
    with np.load(out) as found:
        return found["embeddings"]


def test_features_take_what_a_file_does_not_tell(main, files, tmp_path):
    out, pixels = tmp_path / "x.npz", ("--mean=0.5,0.4,0.3", "--std=0.1,0.2,0.3")
    given = [f"--init={files}/a.pth", f"--data=folder:{files}/images", f"--out={out}"]
    code, _, error = main("features", *given)
    assert (code, error.count("\n")) == (2, 1)
    assert "give --init_known=heads=NUMBER" in error
    code, _, error = main("features", *given, "--init_known=heads=2", "--mean=a")
    assert (code, error.count("\n")) == (2, 1)
    assert "--mean=a must be NUMBER,..., one a channel" in error
    known = "--init_known=heads=2,layer_norm_eps=1e-6"
    found = features(main, files, out, known, "--init_format=facebook_mae", *pixels)
    folder = tmp_path / "folder"
    model, params, _ = weights.from_pretrained(
        files / "a.pth", "encoder", known=dict(heads=2)
    )
    both = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    weights.save_pretrained(folder, model, params, **both)
    (tmp_path / "a.pth").symlink_to(folder)
    (tmp_path / "images").symlink_to(files / "images")
    np.testing.assert_array_equal(found, features(main, tmp_path, out))


def warnings_in(log):
    return [record for record in log.records if record.levelno >= logging.WARNING]


def test_pixels_that_nothing_tells_are_said_and_how_to_give_them(
    main, files, tmp_path, log_of_commands
):
    known = "--init_known=heads=2"
    features(main, files, tmp_path / "x.npz", known)
    (record,) = warnings_in(log_of_commands)
    assert record.getMessage() == (
        f"{files}/a.pth does not tell the mean and std of its pixels: taken are mean "
        f"{defaults.vision.IMAGENET_MEAN} and std {defaults.vision.IMAGENET_STD}; others "
        "are given by --mean and --std"
    )
    log_of_commands.clear()
    pixels = ("--mean=0.485,0.456,0.406", "--std=0.229,0.224,0.225")
    features(main, files, tmp_path / "y.npz", known, *pixels)
    assert not warnings_in(log_of_commands)


def test_fill_takes_the_format(main, tmp_path):
    init = tiny_files.bert_folder(tmp_path / "bert")
    (init / "7/state").mkdir(parents=True)
    given = [f"--init={init}", "--text=the [MASK] sat", "--top=1"]
    code, _, error = main("fill", *given)
    assert (code, error.count("\n")) == (2, 1)
    assert "give --init_format" in error
    assert main("fill", *given, "--init_format=huggingface")[0] == 0


def test_stages_that_resize_init_in_two_ways_are_both_measured(files, tmp_path):
    """The patch embedding by their sum in one, by their average in the other."""
    config = load(files, "vit_finetune", "a.pth", TOLD)
    tiny_files.shrink(config)
    grey = dict(mean=(0.5,), std=(0.25,), channels=1)
    config.model.channels = 1
    stages = []
    for how in ("sum", "average"):
        one = config.stages[0].to_dict()
        one["name"] = how
        one["model"] = {**one["model"], "reshape": (f"channels:{how}",)}
        stages.append(ConfigDict(one))
    config = ConfigDict({**config, "stages": tuple(stages)}).lock()
    for section in tiny_files.data_sections(config):
        section.update(grey)
    config.evaluate.knn_k = 5
    model = tiny.build("classify", {**FACEBOOK, "channels": 1}, num_classes=2)
    export = tmp_path / "stages/sum/export"
    weights.save_pretrained(export, model, tiny.params_of(model))
    (tmp_path / "stages/sum/result.json").write_text("{}")
    rows = measure.evaluate(config, tmp_path)
    names = ["pretrained, channels:average", "pretrained, channels:sum", "sum"]
    assert [row["stage"] for row in rows] == names
    config.stages[0].model.reshape = ("channels:average",)
    rows = measure.evaluate(config, tmp_path)
    assert [row["stage"] for row in rows] == ["pretrained", "sum"]
