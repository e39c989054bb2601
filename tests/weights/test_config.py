"""What stands beside the tensors: config.json, names of classes, the tokenizer."""

import json

import pytest
from support.hf_folders import (
    build,
    build_text,
    change_config,
    random_params,
    save_text,
)

from flax_adapt import weights
from flax_adapt.base.errors import UserError


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(position_embedding_type="relative_key"), "position_embedding_type"),
        (dict(hidden_act="relu"), "hidden_act='relu'"),
        (dict(hidden_act=["gelu"]), "hidden_act"),
        (dict(is_decoder=True), "is_decoder=True"),
        (dict(add_cross_attention=True), "add_cross_attention=True"),
        (dict(embedding_size=4), "embedding_size=4"),
        (dict(pruned_heads={"0": [1]}), "pruned_heads"),
        (dict(vocab_size="11"), "vocab_size"),
        (dict(num_hidden_layers=0), "num_hidden_layers"),
        (dict(layer_norm_eps=None), "layer_norm_eps"),
        (dict(pad_token_id=11), "pad_token_id=11"),
        (dict(pad_token_id=None), "pad_token_id=None"),
        (dict(model_type="albert"), "model_type='albert'"),
        (dict(model_type=["bert"]), "model_type"),
        (dict(pooling="max"), "pooling='max'"),
    ],
)
def test_a_config_we_cannot_build_names_the_field(tmp_path, fields, text):
    save_text(tmp_path / "a", "bert", "mlm")
    change_config(tmp_path / "a", **fields)
    with pytest.raises(UserError, match=text) as error:
        weights.from_pretrained(tmp_path / "a", "mlm")
    assert "\n" not in str(error.value)


def test_fields_that_are_left_out_have_the_values_of_transformers(tmp_path):
    save_text(tmp_path / "a", "roberta", "mlm")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(dict(model_type="roberta")))
    config = weights.model_config(tmp_path / "a")
    assert config == dict(
        kind="roberta",
        vocab_size=50265,
        max_positions=512,
        token_types=2,
        width=768,
        depth=12,
        heads=12,
        mlp_dim=3072,
        layer_norm_eps=1e-12,
        gelu="erf",
        pad_token_id=1,
        pooler=False,
        last_block=None,
        adaptor=None,
        traits=None,
    )


def test_a_task_of_another_modality_is_an_error(tmp_path):
    save_text(tmp_path / "a", "bert", "mlm")
    with pytest.raises(UserError, match="task='mae' is unknown"):
        weights.load(tmp_path / "a", "mae", pooling=None)


@pytest.mark.parametrize("make", [build, build_text])
def test_names_of_classes_survive_the_folder(tmp_path, make):
    model = make("classify")
    params = random_params(model)
    size = model.num_classes
    names = ("cat", "dog", "elk", "fox", "gnu")[:size]

    def save_as(**options):
        weights.save_pretrained(tmp_path / "a", model, params, **options)

    save_as()
    assert weights.class_names(tmp_path / "a") is None
    save_as(class_names=names)
    assert weights.class_names(tmp_path / "a") == names
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written["label2id"] == {name: number for number, name in enumerate(names)}
    save_as(class_names=names[:-1])
    assert weights.class_names(tmp_path / "a") == (*names[:-1], f"LABEL_{size - 1}")
    with pytest.raises(UserError, match="class_names"):
        save_as(class_names=(*names, "one more"))
    repeated = ("crane",) * size  # a bird and a machine: ImageNet has both
    save_as(class_names=repeated)
    assert weights.class_names(tmp_path / "a") == repeated


def test_names_of_classes_need_a_head_and_numbers(tmp_path):
    model = build_text("mlm")
    with pytest.raises(UserError, match="class_names need a head"):
        weights.save_pretrained(
            tmp_path / "a", model, random_params(model), class_names=("cat",)
        )
    save_text(tmp_path / "a", "bert", "mlm")
    assert weights.class_names(tmp_path / "a") is None
    for labels in ({"1": "cat"}, ["cat"], {"a": "cat"}):
        change_config(tmp_path / "a", id2label=labels)
        with pytest.raises(UserError, match="id2label"):
            weights.class_names(tmp_path / "a")


def test_the_tokenizer_goes_with_the_model(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    model = build_text("mlm")
    params = random_params(model)
    with pytest.raises(UserError, match="holds no tokenizer"):
        weights.save_pretrained(tmp_path / "a", model, params, tokenizer=source)
    (source / "vocab.txt").write_text("[PAD]\n[MASK]\n")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    for _ in range(2):  # the second export replaces the first
        weights.save_pretrained(tmp_path / "a", model, params, tokenizer=source)
        assert {file.name for file in (tmp_path / "a").iterdir()} == {
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "tokenizer_config.json",
        }
    assert (tmp_path / "a" / "vocab.txt").read_text() == "[PAD]\n[MASK]\n"
    # A model is replaced together with its own tokenizer.
    weights.save_pretrained(tmp_path / "a", model, params, tokenizer=tmp_path / "a")
    assert (tmp_path / "a" / "vocab.txt").exists()
