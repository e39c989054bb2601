"""Names on the Hub: fetched once from a real server on loopback, cached, one line of error."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from pyarrow import parquet
from support import hub_server, machine, tiny, tiny_files, tiny_text

from flax_adapt import data, weights
from flax_adapt.base import hub
from flax_adapt.base.errors import UserError
from flax_adapt.base.logs import read_json
from flax_adapt.data import arrow
from flax_adapt.experiment import recipe
from flax_adapt.weights import extras
from flax_adapt.weights.formats import huggingface

NAME = "org/tiny-mae"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A Hub, asked for through HF_ENDPOINT, with an empty cache."""
    with hub_server.serve() as (server, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        forget()
        yield server
    forget()


def forget():
    """What one process asked for is not asked for again: here every test is a new one."""
    hub.fetch_weights.cache_clear()
    arrow._fetch.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_files.mae_folder(tmp_path_factory.mktemp("models") / "mae")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def with_model(served, model):
    extra = {"pytorch_model.bin": b"not this one", "onnx/model.onnx": b"nor this"}
    served.repositories["model", NAME] = {**model, **extra}
    return served


@pytest.mark.parametrize("name", [NAME, f"hf://{NAME}@v1", f"{NAME}@main"])
def test_a_name_is_fetched_once_and_its_revision_is_recorded(with_model, name):
    config, params, report = weights.load(name, "mae", pooling=None)
    assert config["kind"] == "vit"
    assert {"encoder", "decoder"} <= {*params}
    assert report.to_json()["origin"] == {"name": NAME, "revision": hub_server.COMMIT}
    asked = [path for method, path in with_model.asked if method == "GET"]
    assert not any("pytorch_model" in path or "onnx" in path for path in asked)
    count = len(with_model.asked)
    weights.pixel_statistics(name)
    assert len(with_model.asked) == count


def test_a_run_records_the_revision_of_its_initial_weights(with_model, tmp_path):
    images = {**tiny.digits(), "channels": 3, **tiny_files.PIXELS}
    stage = tiny.pretrain(init_from="pretrained", num_steps=1, data=images)
    config = tiny.experiment(stage, init=NAME, model=tiny_files.MODEL)
    recipe.run(config, tmp_path / "run", force=False)
    report = read_json(tmp_path / "run/stages/pretrain/import_report.json")
    assert report["origin"] == {"name": NAME, "revision": hub_server.COMMIT}


def test_safetensors_come_before_all_other_weights():
    several = [
        "a.npz",
        "pytorch_model.bin",
        "x.safetensors",
        "config.json",
        "README.md",
    ]
    assert hub.choose_weights(several) == ["pytorch_model.bin", "config.json"]
    assert hub.choose_weights([*several, "model.safetensors"])[0] == "model.safetensors"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert hub.choose_weights([*several, *shards])[:2] == shards
    with pytest.raises(UserError, match="it has no weights"):
        hub.choose_weights(["config.json", "model.onnx"])


def test_a_folder_of_that_name_wins(with_model, tmp_path, monkeypatch):
    tiny_files.mae_folder(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    _, _, report = weights.load(NAME, "mae", pooling=None)
    assert report.origin == {}
    assert with_model.asked == []


def test_without_network_the_cache_is_used_and_what_is_not_there_is_one_line(
    with_model, monkeypatch
):
    online = weights.load(NAME, "mae", pooling=None)
    forget()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    offline = weights.load(NAME, "mae", pooling=None)
    assert offline[0] == online[0]
    assert offline[2].origin == online[2].origin
    with pytest.raises(
        UserError, match="cannot be reached, and it is not in the cache"
    ) as no:
        weights.load("org/other", "mae", pooling=None)
    assert "\n" not in str(no.value)


NO_MODELS = {
    "org/onnx": {"config.json": b"{}", "model.onnx": b"?"},
    "org/llama": {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"?"},
    "org/odd": {
        "config.json": b'{"model_type": "vit", "hidden_size": "x"}',
        "model.safetensors": safetensors.numpy.save({"x": np.zeros(1, np.float32)}),
    },
}
PAGE = "https://huggingface.co/org/gated"


@pytest.fixture
def features(main, tmp_path, caplog):
    """Runs the command on a name: what it says is one line, nothing is logged beside it."""

    def run(name):
        flags = (f"--data=folder:{tmp_path}", f"--out={tmp_path / 'x.npz'}")
        code, _, error = main("features", f"--init={name}", *flags)
        assert code == 2
        assert error.count("\n") == 1, error
        assert not caplog.records
        return error.removeprefix("flax-adapt: ")

    return run


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/gated", f"org/gated is gated: accept its terms on {PAGE}"),
        ("org/missing", "org/missing: there is no such folder, and no such model on"),
        (f"{NAME}@v9", f"{NAME}@v9: the Hub has no such revision"),
        ("org/onnx", "org/onnx: it has no weights that are read here, only ['config"),
        ("hf://org/llama", "hf://org/llama: model_type='llama' of its config.json is"),
        ("org/odd", "org/odd/config.json: hidden_size='x' must be a positive whole"),
    ],
)
def test_a_refusal_is_one_line_that_names_what_was_typed(
    with_model, features, name, told
):
    for other, files in NO_MODELS.items():
        with_model.repositories["model", other] = files
    assert features(name).startswith(told)
    fetched = [path for _, path in with_model.asked if path.endswith("safetensors")]
    assert bool(fetched) == (name == "org/odd")  # config.json comes first


def test_the_architectures_that_are_fetched_are_those_that_are_read():
    assert {*hub.MODEL_TYPES} == {*huggingface.FAMILIES}
    assert hub.RESIZED == extras.SUFFIX
    hub.check_architecture("", {"model_type": f"vit{extras.SUFFIX}"})
    hub.check_architecture("", {"architecture": "vit_tiny_patch16_224"})


def refuse_offline(features, monkeypatch, missing=""):
    """Without network, what is not whole is not read."""
    forget()
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        told = features(NAME)
    assert re.match(rf"{NAME}: .*only a part of it was downloaded.*{missing}", told)
    forget()


def test_half_a_download_is_refused_and_completed_when_asked_again(
    with_model, features, monkeypatch, tmp_path
):
    """Also where the weights are whole, and a small file beside them is not."""
    with_model.cut.add("preprocessor_config.json")
    # A process of its own: there the library sets up its log when it is first used.
    flags = (
        f"--init={NAME}",
        f"--data=folder:{tmp_path}",
        f"--out={tmp_path / 'x.npz'}",
    )
    command = [sys.executable, "-m", "flax_adapt", "features", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    told = (
        rf"flax-adapt: {NAME}: the download broke off \(.*\): run the same command .*\n"
    )
    assert done.returncode == 2
    assert re.fullmatch(told, done.stderr)
    refuse_offline(features, monkeypatch, r"\['preprocessor_config.json'\] are missing")
    with_model.cut.clear()
    assert weights.pixel_statistics(NAME) == ([0.5] * 3, [0.25] * 3)
    assert not [*hub.Path(os.environ["HF_HUB_CACHE"]).rglob("unfinished")]


def test_a_full_disk_is_named_and_the_download_goes_on_when_there_is_room(
    with_model, features, monkeypatch, model
):
    with machine.no_room(len(model["model.safetensors"]) // 2):
        told = features(NAME)
    assert told.startswith(f"{NAME}: the download stopped (File too large): make room")
    refuse_offline(features, monkeypatch)
    assert weights.load(NAME, "mae", pooling=None)[0]["kind"] == "vit"


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_data_set_of_the_hub_is_read_from_its_parquet_files(served, tmp_path, kind):
    labels = ["ant", "bee", "bee"]
    if kind == "images":
        images = tiny_files.image_folder(tmp_path / "images", train=3, test=0)
        files = sorted(images.rglob("*.png"))[:3]
        columns = {"image": [file.read_bytes() for file in files], "label": labels}
        section = ConfigDict({**tiny.digits(), "source": "hf:org/set"})
    else:
        columns = {"text": ["the cat", "a dog", "cold rain"], "label": labels}
        tokenizer = tiny_text.bert_folder(tmp_path / "bert")
        section = tiny_text.section("hf:org/set", tokenizer)
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    body = (tmp_path / "x.parquet").read_bytes()
    served.repositories["dataset", "org/set"] = {
        "data/train-0.parquet": body,
        "x.py": b"?",
    }
    examples = data.open_examples(section, "")
    assert examples.class_names == ("ant", "bee")
    np.testing.assert_array_equal(examples.labels, [0, 1, 1])
    forget()
    served.repositories["dataset", "org/set"] = {"x.py": b"?"}
    with pytest.raises(UserError, match="has no parquet files"):
        data.open_examples(section, "")


def test_what_is_no_name_is_a_path():
    assert hub.parse_name("org/name@refs/convert/parquet") == (
        "org/name",
        "refs/convert/parquet",
    )
    for text in ("/a/b", "./a/b", "a", "a/b/c", "~/a", "", "a b/c"):
        assert hub.parse_name(text) is None
    assert json.dumps(hub.describe_origin(hub.Path("/a/b"))) == "{}"
