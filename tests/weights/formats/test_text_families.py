"""Families of text encoders: written and read as they are, or refused by name."""

import json

import pytest
from support.hf_folders import (
    assert_same,
    build_text,
    change_config,
    random_params,
    save_text,
)

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.models.textual.traits import FAMILIES
from flax_adapt.weights import strict
from flax_adapt.weights.formats import hf_bert, hf_families

TASKS = ("mlm", "encoder", "classify")
OWN = sorted(set(FAMILIES) - {"bert", "roberta"})


def changes_of(family, **changes):
    """Fields of a tiny model of a family."""
    own = hf_families.FAMILIES[family]
    traits = dict(own.traits) | (dict(embed_dim=4) if family == "electra" else {})
    return dict(kind=FAMILIES[family], traits=traits) | own.constants | changes


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("task", TASKS)
def test_a_family_is_saved_and_loaded_bit_by_bit(tmp_path, family, task):
    changes = changes_of(family, gelu="tanh")
    kind = changes.pop("kind")
    params = save_text(tmp_path / "a", kind, task, **changes)
    model, loaded, report = weights.from_pretrained(tmp_path / "a", task)
    assert_same(loaded, params)
    assert not report.ignored
    assert not report.assumed
    assert models.config_of(model)["traits"] == changes["traits"]
    weights.save_pretrained(tmp_path / "b", model, loaded)
    for file in ("model.safetensors", "config.json"):
        first, second = (tmp_path / name / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    stem = hf_families.FAMILIES[family].stem
    assert written["model_type"] == family
    assert written["architectures"] == [stem + hf_bert.ARCHITECTURES[task]]


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("task", TASKS)
def test_a_table_of_a_family_is_a_bijection_on_every_leaf(family, task):
    model = build_text(task, depth=11, **changes_of(family))
    table = hf_bert.names(models.config_of(model), task)
    leaves = set(strict.flatten(random_params(model)))
    names = {leaf: table.name_of(table.whole_of(leaf)) for leaf in leaves}
    back = {
        part for name in names.values() for part in table.parts_of(table.leaf_of(name))
    }
    assert back == leaves
    assert not any(map(table.spare_of, names.values()))
    assert not any(map(table.why_ignored, names.values()))


def test_a_classifier_of_distilbert_is_an_encoder_without_its_pre_classifier(tmp_path):
    changes = changes_of("distilbert")
    params = save_text(tmp_path / "a", changes.pop("kind"), "classify", **changes)
    model, loaded, report = weights.from_pretrained(tmp_path / "a", "encoder")
    assert not model.config.pooler
    assert_same(loaded, {"encoder": params["encoder"]})
    assert {name.split(".")[0] for name in report.ignored} == {
        "pre_classifier",
        "classifier",
    }


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("distilbert", dict(sinusoidal_pos_embds=True), "sinusoidal_pos_embds=True is"),
        ("distilbert", dict(activation="relu"), "activation='relu' is unknown"),
        ("distilbert", dict(n_heads=0), "n_heads=0 must be a positive whole number"),
        ("distilbert", dict(dim=7), "width=7 is not a multiple|encoder/embed"),
        (
            "xlm-roberta",
            dict(position_embedding_type="relative_key"),
            "is not supported",
        ),
        ("electra", dict(embedding_size="8"), "embedding_size='8' must be a positive"),
        ("modernbert", dict(mlp_bias=True), "mlp_bias=True, .*: our models have all"),
        ("modernbert", dict(decoder_bias=False), "decoder_bias=False is not supported"),
        ("modernbert", dict(classifier_pooling="max"), "classifier_pooling='max'"),
        (
            "modernbert",
            dict(layer_types=["full_attention"] * 2),
            "layer_types=.* every",
        ),
        (
            "modernbert",
            dict(rope_parameters={"full_attention": {"rope_type": "yarn"}}),
            "only rope_type 'default'",
        ),
        (
            "modernbert",
            dict(rope_parameters=None, local_rope_theta="1e4"),
            "rope_theta='1e4' must be a number",
        ),
    ],
)
def test_what_a_family_of_ours_has_not_is_one_line(tmp_path, family, changes, text):
    own = changes_of(family)
    save_text(tmp_path / "a", own.pop("kind"), "mlm", **own)
    change_config(tmp_path / "a", **changes)
    with pytest.raises(UserError, match=text):
        weights.from_pretrained(tmp_path / "a", "mlm")


def test_an_eps_that_distilbert_cannot_have_is_not_written(tmp_path):
    own = changes_of("distilbert", layer_norm_eps=1e-5)
    with pytest.raises(UserError, match="DistilBert cannot hold layer_norm_eps=1e-05"):
        save_text(tmp_path / "a", own.pop("kind"), "mlm", **own)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(family="albert"), "family='albert' is unknown"),
        (dict(family="camembert"), "kind='bert' must be 'roberta'"),
        (dict(pooler="sigmoid"), "pooler='sigmoid' is unknown"),
    ],
)
def test_traits_of_text_that_no_model_has_are_refused(changes, text):
    with pytest.raises(UserError, match=text):
        build_text("encoder", traits=changes_of("distilbert")["traits"] | changes)


def test_a_modernbert_of_transformers_4_is_read(tmp_path):
    """Its config.json has a number of blocks and two thetas for what is now lists."""
    own = changes_of("modernbert", depth=4)
    own["traits"] |= dict(global_every=2, local_theta=77.0)
    save_text(tmp_path / "a", own.pop("kind"), "mlm", **own)
    expected = weights.model_config(tmp_path / "a")
    assert expected["traits"] == own["traits"]
    file = tmp_path / "a" / "config.json"
    theirs = json.loads(file.read_text())
    assert theirs["layer_types"] == ["full_attention", "sliding_attention"] * 2
    del theirs["layer_types"], theirs["rope_parameters"]
    file.write_text(json.dumps(theirs))
    assert weights.model_config(tmp_path / "a") == expected
