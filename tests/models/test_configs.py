"""Model configs: what is built from them, and what a wrong one is told."""

import jax
import pytest
from support import tiny_bert, tiny_vit

from flax_adapt import models
from flax_adapt.base.errors import UserError


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def vit(size, patch_size, image_size=224):
    config = models.vit_config(
        size, image_size=image_size, patch_size=patch_size, channels=3
    )
    return models.build(
        config,
        "classify",
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=1000,
    )


# Counts of timm's vit_*_patch*_224 with 1000 classes.
@pytest.mark.parametrize(
    ("size", "patch_size", "parameters"),
    [
        ("Ti", 16, 5_717_416),
        ("S", 16, 22_050_664),
        ("B", 16, 86_567_656),
        ("L", 16, 304_326_632),
        ("H", 14, 632_045_800),
    ],
)
def test_published_sizes_have_their_number_of_parameters(size, patch_size, parameters):
    assert count(tiny_bert.shapes(vit(size, patch_size))) == parameters


def test_the_papers_mae_has_its_number_of_parameters():
    # facebook/vit-mae-base, both position embeddings included.
    config = models.mae_config("B", image_size=224, patch_size=16, channels=3)
    model = models.build(
        config,
        "mae",
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )
    assert count(tiny_bert.shapes(model)) == 111_907_840


# Counts of transformers' BertForMaskedLM and RobertaForMaskedLM.
@pytest.mark.parametrize(
    ("kind", "size", "parameters"),
    [
        ("bert", "B", 109_514_298),
        ("bert", "L", 335_174_458),
        ("roberta", "B", 124_697_433),
        ("roberta", "L", 355_412_057),
    ],
)
def test_published_text_models_have_their_number_of_parameters(kind, size, parameters):
    model = models.build(models.bert_config(kind, size), "mlm", **tiny_bert.OPTIONS)
    assert count(tiny_bert.shapes(model)) == parameters
    assert model.config.max_length == 512


@pytest.mark.parametrize(
    ("task", "changes"),
    [("mae", {}), ("encoder", dict(decoder=None)), ("classify", dict(decoder=None))],
)
def test_a_model_tells_the_config_and_the_task_it_was_built_from(task, changes):
    model = tiny_vit.build(task, **changes)
    assert models.config_of(model) == tiny_vit.TINY | changes
    assert models.task_of(model) == task


@pytest.mark.parametrize("kind", [tiny_vit, tiny_bert])
def test_fields_that_nothing_reads_or_that_are_missing_are_named(kind):
    def built_from(config):
        return models.build(config, "encoder", **kind.OPTIONS)

    with pytest.raises(UserError, match=r"unknown \['depht', 'pixels'\]"):
        built_from({**kind.TINY, "depht": 2, "pixels": 8})
    for field in ("gelu", "depth"):
        rest = {name: value for name, value in kind.TINY.items() if name != field}
        with pytest.raises(UserError, match=rf"missing \['{field}'\]"):
            built_from(rest)
    with pytest.raises(
        UserError, match=r"model\.kind is missing; .*'bert', 'resnet', 'roberta'"
    ):
        built_from({})
    with pytest.raises(UserError, match=r"unknown \['decoder'\]"):
        built_from({**tiny_bert.TINY, "decoder": None})


@pytest.mark.parametrize(
    ("task", "changes", "text"),
    [
        ("mae", dict(image_size=15), "patch_size"),
        ("mae", dict(decoder=None), "decoder"),
        ("encoder", dict(heads=3), "heads"),
        ("encoder", dict(gelu="relu"), "gelu"),
        ("classify", dict(num_classes=0), "num_classes"),
        ("classify", dict(pooling="max"), "pooling"),
        ("encoder", dict(dtype="float16"), "dtype"),
        ("detect", {}, "task"),
        ("mlm", {}, "vit model"),
        ("encoder", dict(kind="convnext"), "kind"),
    ],
)
def test_a_wrong_config_names_the_field(task, changes, text):
    with pytest.raises(UserError, match=text):
        tiny_vit.build(task, **changes)


@pytest.mark.parametrize(
    ("task", "changes", "text"),
    [
        ("mae", {}, r"task of a bert model.*'encoder', 'mlm'"),
        ("mlm", dict(kind="gpt"), r"model\.kind='gpt'.*roberta"),
        ("mlm", dict(gelu="relu"), "gelu"),
        ("mlm", dict(heads=3), "heads"),
        ("mlm", dict(pad_token_id=31), r"pad_token_id=31.*31 ids"),
        ("mlm", dict(token_types=0), "token_types"),
        ("mlm", dict(max_positions=0), "max_positions"),
        ("mlm", dict(kind="roberta", max_positions=1), "max_positions=1 .*more than 1"),
        ("classify", dict(num_classes=0), "num_classes"),
        ("classify", dict(pooling="max"), r"pooling.*'cls', 'mean', 'pooler'"),
        ("encoder", dict(dtype="float16"), "dtype"),
    ],
)
def test_a_wrong_text_config_names_the_field(task, changes, text):
    with pytest.raises(UserError, match=text) as error:
        tiny_bert.build(task, **changes)
    assert "\n" not in str(error.value)
