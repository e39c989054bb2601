"""config.json and index files of strangers: one line, or the model."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from support.hf_folders import QUERY, change_config, save_text
from support.hostile import FORMS, INDEX, SHARD, VALUES, fuzz, outcome, write

from flax_adapt import weights
from flax_adapt.weights.files import reading
from flax_adapt.weights.formats import hf_families, hf_vit

FIELDS = [
    *hf_vit.DEFAULTS,
    "model_type",
    "pooling",
    "id2label",
    "architectures",
]


def load(folder):
    return FORMS["safetensors"].load(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{form: a folder}, of the forms that have such files."""
    base = tmp_path_factory.mktemp("whole")
    for form in ("safetensors", "shards", "timm", "orbax"):
        write(base / form, form)
    return base


@pytest.fixture
def copy_of(whole, tmp_path):
    """A function form -> a fresh copy of its folder."""

    def copy(form):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return shutil.copytree(whole / form, tmp_path / "a")

    return copy


JSON = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def is_one_line_or_model(path, task):
    """A model that took tensors; `outcome` asserts that an error is one line."""
    found = outcome(weights.from_pretrained, path, task)
    return found is None or bool(found[2].used)


@pytest.mark.parametrize("field", FIELDS)
def test_a_vit_config_with_any_value_is_one_line_or_a_model(copy_of, field):
    folder = copy_of("safetensors")
    for value in VALUES:
        change_config(folder, **{field: value})
        outcome(weights.class_names, folder)
        assert is_one_line_or_model(folder, "mae")


@fuzz(50)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_fields_of_anything_are_one_line_or_a_model(copy_of, fields):
    folder = copy_of("safetensors")
    change_config(folder, **fields)
    outcome(weights.class_names, folder)
    assert is_one_line_or_model(folder, "mae")


BERT_FIELDS = [
    *hf_families.DEFAULTS,
    *hf_families.SUPPORTED,
    *("vocab_size", "pad_token_id", "model_type", "pooling", "id2label"),
]


@pytest.mark.parametrize("field", BERT_FIELDS)
def test_a_bert_config_with_any_value_is_one_line_or_a_model(tmp_path, field):
    folder = tmp_path / "a"
    save_text(folder, "bert", "mlm")
    for value in VALUES:
        change_config(folder, **{field: value})
        outcome(weights.class_names, folder)
        assert is_one_line_or_model(folder, "mlm")
    assert is_one_line_or_model(folder, "classify")


NAMES = st.sampled_from(
    [
        *("../model.safetensors", "/etc/passwd", "..", ".", "", "a\nb.safetensors"),
        *("~/x.safetensors", "..\\x.safetensors", "C:x.safetensors", "\0.safetensors"),
        *("a/b.safetensors", "\ud800.safetensors", "x" * 5000 + ".safetensors"),
        *("file:///x.safetensors", "pipe.safetensors", "loop.safetensors"),
        *("config.json", "folder.safetensors", SHARD.format(n=1), SHARD.format(n=2)),
        *(5, None, [], {"a": 1}, True, 1e999),
    ]
)


@pytest.fixture
def shards(copy_of):
    folder = copy_of("shards")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "folder.safetensors").mkdir()
    safetensors.numpy.save_file(
        {QUERY: np.zeros((8, 8), np.float32)}, folder.parent / "model.safetensors"
    )
    return folder


@fuzz(150)
@given(data=st.data())
def test_an_index_that_is_wrong_anywhere_is_one_line(shards, whole, data):
    names_of = json.loads((whole / "shards" / INDEX).read_text())["weight_map"]
    names = st.sampled_from(sorted(names_of)) | st.sampled_from(["b\nc", "x" * 400, ""])
    changes = data.draw(st.dictionaries(names, NAMES, min_size=1, max_size=3))
    (shards / INDEX).write_text(json.dumps({"weight_map": names_of | changes}))
    found = load(shards)
    assert (found is not None) == (names_of | changes == names_of)


@fuzz(50)
@given(value=JSON)
def test_an_index_of_anything_is_one_line(shards, value):
    (shards / INDEX).write_text(json.dumps(value))
    assert load(shards) is None
    (shards / INDEX).write_text(json.dumps({"weight_map": value}))
    assert load(shards) is None


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        *("[" * 100_000, '{"a":' * 100_000, '{"a":' * 300 + "1" + "}" * 300, ""),
        *("[]", "1", "NaN", '"a"', "1" * 10_000, "{}\0", '{"a": 1e99999}'),
        '{"a": \ud800}',
    ],
)  # fmt: skip
def test_json_that_is_none_is_one_line(copy_of, file, content):
    folder = copy_of("safetensors")
    (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    is_object = content.removeprefix("\ufeff") in ('{"a": 1e99999}', "{}")
    assert (outcome(reading.read_json, folder / file) is not None) == is_object
    outcome(weights.class_names, folder)
    assert outcome(weights.pixel_statistics, folder) is None or file == "config.json"
    assert load(folder) is None or file != "config.json"


PLACES = {
    "timm": [
        *(("architecture",), ("global_pool",), ("label_names",), ("model_args",)),
        *(("pretrained_cfg",), ("pretrained_cfg", "mean"), ("pretrained_cfg", "std")),
        *(("model_args", name) for name in ("num_heads", "act_layer", "global_pool")),
        ("model_args", "norm_layer"),
    ],
    "orbax": [
        *(("model",), ("stages",), ("stages", 0), ("stages", 0, "name")),
        *(("stages", 0, "model"), ("stages", 0, "model", "pooling")),
        *(("stages", 0, "data"), ("stages", 0, "data", "modality")),
        *(("stages", 0, "data", name) for name in ("mean", "std")),
        *(("model", name) for name in ("kind", "width", "heads", "decoder", "gelu")),
    ],
}


@pytest.mark.parametrize(
    ("form", "place"), [(form, place) for form in PLACES for place in PLACES[form]]
)
def test_other_configs_with_any_value_are_one_line_or_a_model(copy_of, form, place):
    folder, how = copy_of(form), FORMS[form]
    config = json.loads((folder / "config.json").read_text())
    *parents, last = place
    inner = config
    for parent in parents:
        inner = inner[parent]
    # Orbax takes its time.
    for value in VALUES if form == "timm" else VALUES[::4]:
        inner[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        outcome(weights.class_names, folder / how.path)
        outcome(weights.pixel_statistics, folder / how.path)
        assert is_one_line_or_model(folder / how.path, how.task)
