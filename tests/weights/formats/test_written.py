"""Formats as we write them: nothing is lost, and what would be is refused."""

import json

import pytest
from support.format_files import FILES, GOLDENS, tensors_of
from support.hf_folders import CONFIG, assert_same, build, build_text, random_params

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.formats import big_vision, facebook, timm, torch_vit
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.names import bert as bert_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.vit import VIT

# Every leaf of every task that a format has a place for.
TABLES = {
    "huggingface": (VIT, ("mae", "encoder", "classify"), dict(pooler=True)),
    "timm": (timm.TABLE, ("encoder", "classify"), {}),
    "facebook_mae": (facebook.TABLE, ("mae", "encoder", "classify"), {}),
    "big_vision": (big_vision.TABLE, ("encoder", "classify"), dict(pooler=True)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_bijection_on_every_leaf(name):
    table, tasks, changes = TABLES[name]
    leaves = {}
    for task in tasks:
        leaves |= strict.flatten(random_params(build(task, depth=11, **changes)))
    names = {leaf: table.name_of(table.whole_of(leaf)) for leaf in leaves}
    back = {leaf: table.parts_of(table.leaf_of(name)) for leaf, name in names.items()}
    assert all(leaf in parts for leaf, parts in back.items())
    assert {part for parts in back.values() for part in parts} == set(leaves)
    wholes = {table.whole_of(leaf) for leaf in leaves}
    assert len(set(names.values())) == len(wholes)
    assert {table.leaf_of(name) for name in names.values()} == wholes
    config = CONFIG | dict(depth=11)
    tensors = dict(translate.to_tensors(table, leaves, config, "")())
    assert set(tensors) == set(names.values())
    again = {}
    for tensor_name, tensor in tensors.items():
        leaf = table.leaf_of(tensor_name)
        again |= translate.split(table, leaf, tensor)
    assert_same(again, leaves)


@pytest.mark.parametrize("task", ["mlm", "encoder", "classify"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_table_of_text_is_a_bijection_on_every_leaf(kind, task):
    table = bert_names.names(kind, task)
    model = build_text(task, kind=kind, depth=11, pooler=task == "encoder")
    leaves = set(strict.flatten(random_params(model)))
    names = {leaf: table.name_of(leaf) for leaf in leaves}
    assert {table.leaf_of(name) for name in names.values()} == leaves
    assert len(set(names.values())) == len(leaves)
    assert not any(map(table.spare_of, names.values()))
    assert not any(map(table.why_ignored, names.values()))


FIXED = dict(layer_norm_eps=1e-6)
WRITTEN = [
    ("timm", "a", "encoder", dict(gelu="tanh")),
    ("timm", "a", "classify", dict(qkv_bias=False)),
    ("facebook_mae", "a.safetensors", "mae", {}),
    ("facebook_mae", "a.safetensors", "encoder", dict(decoder=None)),
    ("facebook_mae", "a.safetensors", "classify", dict(decoder=None)),
    ("big_vision", "a.npz", "encoder", dict(gelu="tanh", pooler=True, decoder=None)),
    ("big_vision", "a.npz", "classify", dict(gelu="tanh", decoder=None)),
]


@pytest.mark.parametrize(("name", "file", "task", "changes"), WRITTEN)
def test_what_was_saved_is_loaded_bit_by_bit(tmp_path, name, file, task, changes):
    model = build(task, **FIXED | dict(depth=2, mlp_dim=13) | changes)
    params = random_params(model)
    weights.save_pretrained(tmp_path / file, model, params, format=name)
    known = dict(heads=2) if name == "facebook_mae" else {}
    known |= dict(decoder_heads=2) if task == "mae" else {}
    again, loaded, report = weights.from_pretrained(
        tmp_path / file, task, format=name, known=known
    )
    assert again == model
    assert_same(loaded, params)
    assert not report.ignored
    other = tmp_path / "b" / file
    weights.save_pretrained(other, again, loaded, format=name)
    parts = ["model.safetensors", "config.json"] if other.is_dir() else [""]
    for part in parts:
        assert (other / part).read_bytes() == (tmp_path / file / part).read_bytes()
    weights.save_pretrained(other, again, loaded, format=name)  # replaces it
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([file, "b"])


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("timm_token", "a"),
        ("timm_avg", "a"),
        ("facebook_full.pth", "a.safetensors"),
        ("big_vision.npz", "a.npz"),
    ],
)
def test_theirs_ours_theirs_is_bit_identical(tmp_path, file, written):
    name, known = FILES[file]
    task = "mae" if "full" in file else "classify"
    path = GOLDENS / file
    config, params, _ = weights.load(path, task, pooling=None, known=known)
    pooling = formats.find(path, None).pooling(path, {})
    target = tmp_path / written
    beside = dict(preprocessor=None, tokenizer=None, class_names=None)
    weights.save(target, config, params, task, pooling=pooling, format=name, **beside)
    before, after = tensors_of(path), tensors_of(target)
    assert set(after) == set(before)
    assert_same(after, before)


def test_timm_s_folder_keeps_statistics_class_names_and_pooling(tmp_path):
    model = models.Classifier(
        *vars_of(build("classify", **FIXED)), "mean", 3, None, False
    )
    params, names = random_params(model), ("ant", "bee", "cat")
    beside = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), class_names=names)
    weights.save_pretrained(tmp_path / "a", model, params, format="timm", **beside)
    assert weights.class_names(tmp_path / "a") == names
    assert weights.pixel_statistics(tmp_path / "a") == (
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
    )
    again, _, _ = weights.from_pretrained(tmp_path / "a", "classify")
    assert again.pooling == "mean"
    theirs = json.loads((tmp_path / "a" / "config.json").read_text())
    # Without it timm would move the last norm behind the pooling.
    assert theirs["model_args"]["fc_norm"] is False


def vars_of(model):
    return model.config, model.dtype, model.dropout, model.drop_path


@pytest.mark.parametrize("width", [16, 49, 384, 1408])
def test_timm_makes_the_mlp_as_wide_as_ours(width):
    for mlp_dim in range(1, 5 * width):
        assert int(width * torch_vit.mlp_ratio(width, mlp_dim)) == mlp_dim


@pytest.mark.parametrize(
    ("name", "file", "task", "changes", "text"),
    [
        ("timm", "a", "encoder", {}, "cannot hold layer_norm_eps=1e-12 but 1e-06"),
        ("timm", "a", "mae", FIXED, "no decoder"),
        ("timm", "a", "encoder", FIXED | dict(pooler=True), "pooler/bias: timm"),
        ("big_vision", "a.npz", "encoder", FIXED, "cannot hold gelu='erf' but 'tanh'"),
        ("big_vision", "a", "encoder", FIXED | dict(gelu="tanh"), r"end it in \.npz"),
        ("facebook_mae", "a.pth", "mae", FIXED, r"end it in \.safetensors"),
        ("onnx", "a", "mae", FIXED, "format='onnx' is unknown"),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(
    tmp_path, name, file, task, changes, text
):
    model = build(task, **changes)
    with pytest.raises(UserError, match=text):
        weights.save_pretrained(
            tmp_path / file, model, random_params(model), format=name
        )
    assert not list(tmp_path.iterdir())
