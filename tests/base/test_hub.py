"""Names on the Hub: fetched once from a real server on loopback, cached, one line of error."""

import json

import numpy as np
import pyarrow
import pytest
from ml_collections import ConfigDict
from pyarrow import parquet
from support import hub_server, tiny, tiny_files, tiny_text

from flax_adapt import data, weights
from flax_adapt.base import hub
from flax_adapt.base.errors import UserError
from flax_adapt.data import arrow

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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/gated", "is gated: accept its terms on https://huggingface.co/org/gated"),
        ("org/missing", "there is no such folder, and no such model on the Hub"),
        (f"{NAME}@v9", "the Hub has no such revision"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    with_model, main, tmp_path, name, told
):
    with pytest.raises(UserError) as caught:
        weights.load(name, "mae", pooling=None)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    flags = (f"--data=folder:{tmp_path}", f"--out={tmp_path / 'x.npz'}")
    code, _, error = main("features", f"--init={name}", *flags)
    assert code == 2
    assert told in error.splitlines()[-1]
    assert "Traceback" not in error


def test_half_a_download_is_refused_and_completed_when_asked_again(
    with_model, monkeypatch
):
    with_model.cut.add("model.safetensors")
    with pytest.raises(UserError, match=r"download|part of it|be reached"):
        weights.load(NAME, "mae", pooling=None)
    forget()
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UserError, match="only a part of it was downloaded"):
            weights.load(NAME, "mae", pooling=None)
    with_model.cut.clear()
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
