"""Weights of BERT and RoBERTa: every spelling is read, the usual one is written."""

import json

import jax
import numpy as np
import pytest
from support.hf_folders import (
    assert_same,
    build_text,
    change_config,
    random_params,
    rewrite,
    save_text,
    tensors_of,
)

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.names import bert as bert_names

CLASSES = {"bert": "Bert", "roberta": "Roberta"}
KINDS = sorted(CLASSES)
TASKS = ("mlm", "encoder", "classify")
PREDICTIONS = {"bert": "cls.predictions", "roberta": "lm_head"}
TOKEN = "embeddings.word_embeddings.weight"


def add(folder, **tensors):
    """Adds arrays under names with "__" for a dot."""
    named = {name.replace("__", "."): array for name, array in tensors.items()}
    rewrite(folder, tensors_of(folder) | named)


def rename(folder, change):
    rewrite(folder, {change(name): array for name, array in tensors_of(folder).items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("task", "changes", "written"),
    [
        ("mlm", dict(depth=11, gelu="tanh"), "ForMaskedLM"),
        ("encoder", dict(pooler=True), "Model"),
        ("encoder", {}, "Model"),
        ("classify", {}, "ForSequenceClassification"),
        ("classify", dict(num_classes=1), "ForSequenceClassification"),
        ("classify", dict(pooling="mean"), "ForSequenceClassification"),
    ],
)
def test_what_was_saved_is_loaded_bit_by_bit(tmp_path, kind, task, changes, written):
    params = save_text(tmp_path / "a", kind, task, **changes)
    again, loaded, report = weights.from_pretrained(tmp_path / "a", task)
    assert_same(loaded, params)
    assert not report.ignored
    assert getattr(again, "pooling", None) == (
        changes.get("pooling", "pooler") if task == "classify" else None
    )
    weights.save_pretrained(tmp_path / "b", again, loaded)
    for file in ("model.safetensors", "config.json"):
        first, second = (tmp_path / name / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind] + written]
    assert (config.get("problem_type") == "regression") == ("num_classes" in changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_every_leaf_has_a_name_and_the_name_leads_back(kind, task):
    table = bert_names.names(kind, task)
    leaves = strict.flatten(random_params(build_text(task, depth=11, pooler=True)))
    names = {leaf: table.name_of(leaf) for leaf in leaves}
    assert {leaf: table.leaf_of(name) for leaf, name in names.items()} == {
        leaf: leaf for leaf in leaves
    }
    assert len(set(names.values())) == len(leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_transposed_and_tables_are_not(tmp_path, kind):
    params = save_text(tmp_path / "a", kind, "mlm")
    tensors, mlm = tensors_of(tmp_path / "a"), params["mlm"]
    kernel = params["encoder"]["block_00"]["mlp"]["up"]["kernel"]
    name = f"{kind}.encoder.layer.0.intermediate.dense.weight"
    np.testing.assert_array_equal(tensors[name], kernel.T)
    token = params["encoder"]["embed"]["token"]
    np.testing.assert_array_equal(tensors[f"{kind}.{TOKEN}"], token)
    bias = tensors[f"{PREDICTIONS[kind]}.bias"]
    np.testing.assert_array_equal(bias, mlm["bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_old_files_are_read(tmp_path, kind):
    """With gamma and beta, without a prefix, with a buffer of positions."""
    params = save_text(tmp_path / "a", kind, "encoder", pooler=True)
    add(tmp_path / "a", embeddings__position_ids=np.arange(9)[None])

    def old(name):
        if "LayerNorm" not in name:
            return name
        return name.replace("weight", "gamma").replace("bias", "beta")

    rename(tmp_path / "a", old)
    assert "encoder.layer.0.output.LayerNorm.beta" in tensors_of(tmp_path / "a")
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "encoder")
    assert_same(loaded, params)
    assert dict(report.ignored) == {"embeddings.position_ids": "a buffer of ids"}
    rename(tmp_path / "a", lambda name: f"{kind}.{name}")
    assert_same(weights.from_pretrained(tmp_path / "a", "encoder")[1], params)


@pytest.mark.parametrize("kind", KINDS)
def test_without_model_type_the_prefix_tells(tmp_path, kind):
    params = save_text(tmp_path / "a", kind, "mlm")
    change_config(tmp_path / "a", model_type=None)
    model, loaded, _ = weights.from_pretrained(tmp_path / "a", "mlm")
    assert model.config.kind == kind
    assert_same(loaded, params)
    rename(tmp_path / "a", lambda name: name.removeprefix(f"{kind}."))
    with pytest.raises(UserError, match="model_type=None is not one of"):
        weights.model_config(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_other_tasks_are_ignored_by_named_rules(tmp_path, kind):
    save_text(tmp_path / "a", kind, "mlm")
    save_text(tmp_path / "b", kind, "classify")
    save_text(tmp_path / "c", kind, "encoder", pooler=True)
    pooled = {f"{kind}.{k}": v for k, v in tensors_of(tmp_path / "c").items()}
    merged = tensors_of(tmp_path / "b") | pooled | tensors_of(tmp_path / "a")
    rewrite(tmp_path / "a", merged)
    add(
        tmp_path / "a",
        cls__seq_relationship__weight=np.zeros((2, 8), np.float32),
        cls__seq_relationship__bias=np.zeros(2, np.float32),
    )
    kept = {
        ("mlm", "pooler"): {"encoder", "mlm"},
        ("encoder", "pooler"): {"encoder", "pooler"},
        ("classify", "pooler"): {"encoder", "pooler", "head"},
        ("classify", "mean"): {"encoder", "head"},
    }
    for (task, pooling), parts in kept.items():
        _, loaded, report = weights.load(tmp_path / "a", task, pooling=pooling)
        assert set(loaded) == parts
        assert len(report.renamed) + len(report.ignored) == len(merged) + 2
        rules = set(report.ignored.values())
        rules -= {
            f"{part} dropped for task {task}" for part in ("mlm", "pooler", "head")
        }
        rules -= {"the classifier has its own"}
        assert rules == {"next-sentence head dropped"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_ignored_where_it_is_tied_and_an_error_where_not(tmp_path, kind):
    params = save_text(tmp_path / "a", kind, "mlm")
    token, bias = params["encoder"]["embed"]["token"], params["mlm"]["bias"]
    decoder = PREDICTIONS[kind].replace(".", "__") + "__decoder__"
    add(tmp_path / "a", **{f"{decoder}weight": token, f"{decoder}bias": bias})
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "mlm")
    assert_same(loaded, params)
    assert set(report.ignored.values()) == {
        "tied to the token embedding",
        "a copy of the bias",
    }
    for name, array, text in (
        ("weight", token, "not tied to the token embedding"),
        ("bias", bias, "not a copy of the bias"),
    ):
        add(tmp_path / "a", **{f"{decoder}{name}": array + 1})
        with pytest.raises(UserError, match=text):
            weights.from_pretrained(tmp_path / "a", "mlm")
        _, _, report = weights.from_pretrained(tmp_path / "a", "encoder")
        assert set(report.ignored.values()) == {"mlm dropped for task encoder"}
        add(tmp_path / "a", **{f"{decoder}{name}": array})


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_copy_of_a_tied_tensor_is_used(tmp_path, kind):
    params = save_text(tmp_path / "a", kind, "mlm")
    moved = {
        f"{kind}.{TOKEN}": f"{PREDICTIONS[kind]}.decoder.weight",
        f"{PREDICTIONS[kind]}.bias": f"{PREDICTIONS[kind]}.decoder.bias",
    }
    rename(tmp_path / "a", lambda name: moved.get(name, name))
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "mlm")
    assert_same(loaded, params)
    assert not report.ignored
    encoder = weights.from_pretrained(tmp_path / "a", "encoder")[1]
    assert_same(encoder["encoder"], params["encoder"])


def test_roberta_s_classifier_has_a_layer_of_its_own(tmp_path):
    params = save_text(tmp_path / "a", "roberta", "classify")
    kernel, bias = params["pooler"]["kernel"], params["pooler"]["bias"]
    tensors = tensors_of(tmp_path / "a")
    np.testing.assert_array_equal(tensors["classifier.dense.weight"], kernel.T)
    assert "classifier.out_proj.bias" in tensors
    pooler = dict(
        roberta__pooler__dense__weight=kernel + 1, roberta__pooler__dense__bias=bias
    )
    add(tmp_path / "a", **pooler)
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "classify")
    assert_same(loaded, params)
    assert set(report.ignored.values()) == {"the classifier has its own"}
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "encoder")
    np.testing.assert_array_equal(loaded["pooler"]["kernel"], (kernel + 1).T)
    assert set(report.ignored.values()) == {"head dropped for task encoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_s_pooler_starts_a_classifier(tmp_path, kind):
    params = save_text(tmp_path / "a", kind, "encoder", pooler=True)
    model, loaded, report = weights.from_pretrained(
        tmp_path / "a",
        "classify",
        fresh=("head",),
        key=jax.random.key(0),
        num_classes=4,
    )
    assert model.pooling == "pooler"
    assert_same(loaded["pooler"], params["pooler"])
    assert report.fresh == ("head/bias", "head/kernel")


def test_new_heads_must_be_named(tmp_path):
    params = save_text(tmp_path / "a", "bert", "encoder")
    new = dict(key=jax.random.key(0))
    with pytest.raises(UserError, match="missing in the source: mlm/bias, mlm/norm"):
        weights.from_pretrained(tmp_path / "a", "mlm")
    _, loaded, report = weights.from_pretrained(
        tmp_path / "a", "mlm", fresh=("mlm",), **new
    )
    assert len(report.fresh) == 5
    assert_same(loaded["encoder"], params["encoder"])
    options = dict(num_classes=2, fresh=("head",), **new)
    with pytest.raises(UserError, match="missing in the source: pooler/"):
        weights.from_pretrained(tmp_path / "a", "classify", **options)
    options |= dict(fresh=("pooler", "head"))
    _, loaded, _ = weights.from_pretrained(tmp_path / "a", "classify", **options)
    assert loaded["pooler"]["kernel"].shape == (8, 8)
    options |= dict(fresh=("head",), pooling="cls")
    model, loaded, _ = weights.from_pretrained(tmp_path / "a", "classify", **options)
    assert set(loaded) == {"encoder", "head"}
    assert model.pooling == "cls"
