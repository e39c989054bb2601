"""Weights of ResNets: found, read strictly, written, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from support import torch_files
from support.format_files import GOLDENS, tensors_of
from support.hf_folders import assert_same, change_config
from support.hostile import VALUES, outcome
from support.tiny_resnet import MODEL, RESIZED, build, stored_of

from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.weights import convert, strict
from flax_adapt.weights.formats import hf_resnet
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.names import resnet as resnet_names
from flax_adapt.weights.names import translate

HF, TORCH = resnet_names.HUGGING_FACE, resnet_names.TORCHVISION
TABLES = dict(torchvision=TORCH, huggingface=HF)
SIZE, KERNEL = dict(image_size=MODEL["image_size"]), "layer1.0.conv2.weight"
ONE = np.zeros((1, 1, 1, 1), np.float32)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_bijection_on_every_leaf(name):
    """Also of blocks with two digits, of four stages, and of a last one resized."""
    table = TABLES[name]
    sizes = dict(planes=[2, 3, 2, 2], depths=[1, 2, 1, 12])
    model = build("classify", last_block=RESIZED, **sizes)
    leaves = strict.flatten(stored_of(model))
    names = {leaf: table.name_of(leaf) for leaf in leaves}
    assert {table.leaf_of(name) for name in names.values()} == set(leaves)
    assert len(set(names.values())) == len(leaves)
    for one in names.values():
        assert table.why_ignored(one) is table.why_refused(one) is None
    tensors = dict(translate.to_tensors(table, leaves, {}, "")())
    again = {
        table.leaf_of(one): table.style.to_ours(table.leaf_of(one), tensor)
        for one, tensor in tensors.items()
    }
    assert_same(again, leaves)


WRITTEN = [
    ("torchvision", "a.safetensors", "encoder", None),
    ("torchvision", "a.safetensors", "classify", None),
    ("huggingface", "a", "encoder", None),
    ("huggingface", "a", "classify", RESIZED),
    ("huggingface", "a", "encoder", RESIZED),
    ("orbax", "a", "classify", RESIZED),
]


@pytest.mark.parametrize(("name", "file", "task", "last_block"), WRITTEN)
def test_what_was_saved_is_loaded_bit_by_bit(tmp_path, name, file, task, last_block):
    model = build(task, last_block=last_block)
    stored = stored_of(model)
    weights.save_pretrained(tmp_path / file, model, stored, format=name)
    assert formats.detect(tmp_path / file) == name
    again, loaded, report = weights.from_pretrained(tmp_path / file, task, **SIZE)
    assert again == model
    assert_same(loaded, stored)
    assert not report.ignored
    assert not report.fresh
    assert len(report.used) == len(strict.flatten(stored))
    weights.save_pretrained(tmp_path / "b" / file, again, loaded, format=name)
    if name != "orbax":
        one, two = (tensors_of(folder / file) for folder in (tmp_path, tmp_path / "b"))
        assert_same(one, two)


def test_other_numbers_of_batch_norm_stay_where_a_format_has_a_place(tmp_path):
    model = build("encoder", batch_norm_eps=1e-3, batch_norm_momentum=0.01)
    stored = stored_of(model)
    for name in ("huggingface", "orbax"):
        weights.save_pretrained(tmp_path / name, model, stored, format=name)
        assert weights.from_pretrained(tmp_path / name, "encoder")[0] == model
    with pytest.raises(UserError, match=r"cannot hold batch_norm_eps=0\.001 but 1e-05"):
        weights.save_pretrained(tmp_path / "a", model, stored, format="torchvision")


def torchvision_file(path, task="classify", **tensors):
    """A stored file with other tensors; None takes one away, "__" is a dot."""
    model = build(task)
    weights.save_pretrained(path, model, stored_of(model), format="torchvision")
    found = tensors_of(path) | {k.replace("__", "."): v for k, v in tensors.items()}
    found = {name: value for name, value in found.items() if value is not None}
    safetensors.numpy.save_file(found, path)
    return path


@pytest.mark.parametrize("form", torch_files.FORMS)
def test_a_file_of_torch_s_tells_all_but_what_is_assumed(tmp_path, form):
    """With the prefix of DistributedDataParallel, as many have."""
    tensors = tensors_of(torchvision_file(tmp_path / "a.safetensors"))
    counter = {"bn1.num_batches_tracked": np.int64(7)}
    wrapped = {f"module.{name}": one for name, one in {**tensors, **counter}.items()}
    torch_files.write(tmp_path / "a.pth", wrapped, form)
    assert formats.detect(tmp_path / "a.pth") == "torchvision"
    config, loaded, report = weights.load(tmp_path / "a.pth", "encoder", pooling=None)
    assert config == {**MODEL, "image_size": 224}
    assert report.ignored == {
        "module.bn1.num_batches_tracked": "a counter of batches",
        "module.fc.weight": "head dropped for task encoder",
        "module.fc.bias": "head dropped for task encoder",
    }
    assumed = dict(image_size=224, batch_norm_eps=1e-5, batch_norm_momentum=0.1)
    assert report.assumed == assumed
    assert "assumed image_size=224, batch_norm_eps=1e-05" in report.summary()
    assert "batch_norm_momentum=0.1 " in report.overview()
    assert_same(loaded["encoder"], stored_of(build("classify"))["encoder"])
    with pytest.raises(UserError, match="known='heads' cannot be given here"):
        weights.model_config(tmp_path / "a.pth", known=dict(heads=2))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (dict(layer1__0__se__fc1__weight=ONE), r"channels \(SE, ECA\) \(layer1\.0\.se"),
        (dict(conv1__0__weight=ONE), "a stem of several convolutions"),
        (dict(layer2__0__conv3__0__filt=ONE), "anti-aliasing"),
        (dict(maxpool__1__filt=ONE), "max pool|anti-aliasing"),
        (dict(layer2__0__downsample__2__weight=ONE), r"a pool in the shortcut"),
        (dict(layer1__0__conv2__attn__fc_reduce__weight=ONE), "selective or split"),
        (dict(conv1__weight=None), r"has no conv1\.weight"),
        (
            dict(conv1__weight=np.zeros((4, 1, 3, 3), np.float32)),
            "convolution of 3 x 3",
        ),
        (
            dict(layer1__0__conv3__weight=None),
            r"two convolutions \(ResNet-18, ResNet-34\)",
        ),
        (
            dict(layer1__0__conv2__weight=np.zeros((2, 1, 3, 3), np.float32)),
            "grouped convolutions",
        ),
        (
            dict(layer1__0__conv3__weight=np.zeros((4, 2, 1, 1), np.float32)),
            "widens 2 channels to 4, not 4 times",
        ),
        (dict(bn1__running_mean=None), "no running statistics"),
    ],
)
def test_what_our_models_cannot_do_is_refused_by_name(tmp_path, tensors, text):
    path = torchvision_file(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(UserError, match=text) as error:
        weights.load(path, "encoder", pooling=None)
    assert "\n" not in str(error.value)


def test_what_is_missing_or_unknown_is_named(tmp_path):
    path = torchvision_file(
        tmp_path / "a.safetensors",
        layer2__1__bn3__running_var=None,
        layer2__1__conv1__bias=np.zeros(3, np.float32),
        extra=ONE,
    )
    with pytest.raises(UserError) as error:
        weights.from_pretrained(path, "classify", **SIZE)
    missing = "batch_stats/encoder/stage_2/block_01/norm3/var"
    assert f"missing in the source: {missing};" in str(error.value)
    unexpected = "encoder/stage_2/block_01/conv1/bias, extra"
    assert f"unexpected in the source: {unexpected}" in str(error.value)


def timm_folder(tmp_path, **changes):
    folder = tmp_path / "a"
    shutil.copytree(GOLDENS / "timm_resnet", folder)
    change_config(folder, **changes)
    return folder


def test_a_folder_of_timm_s_tells_more_than_a_file(tmp_path):
    folder = timm_folder(tmp_path, label_names=["ant", "bee", "cat"])
    assert formats.detect(folder) == "torchvision"
    assert weights.class_names(folder) == ("ant", "bee", "cat")
    assert weights.pixel_statistics(folder)[0] == [0.485, 0.456, 0.406]
    config, _, report = weights.load(folder, "classify", pooling=None)
    assert config["planes"] == [2, 4, 4, 6]
    assert set(report.assumed) == {"batch_norm_eps", "batch_norm_momentum"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(architecture="resnetblur50"), "architecture='resnetblur50' is unknown"),
        (dict(architecture="seresnext50_32x4d"), "architecture='seresnext50_32x4d'"),
        (dict(architecture="resnest50d"), "architecture='resnest50d'"),
        (dict(global_pool="max", model_args={}), "global_pool='max'"),
        (dict(model_args=dict(aa_layer="blur")), "aa_layer='blur' is not supported"),
        (dict(model_args=dict(output_stride=8)), "output_stride=8 is not supported"),
        (dict(pretrained_cfg=dict(input_size=[3, 8, 9])), "only squares"),
    ],
)
def test_what_leaves_no_trace_in_tensors_is_refused_in_a_folder(
    tmp_path, changes, text
):
    with pytest.raises(UserError, match=text):
        weights.model_config(timm_folder(tmp_path, **changes))


def test_a_folder_with_a_resized_block_says_so(tmp_path):
    model = build("classify", last_block=RESIZED)
    beside = dict(mean=(0.5,), std=(0.25,), class_names=("ant", "bee"))
    weights.save_pretrained(tmp_path / "a", model, stored_of(model), **beside)
    theirs = json.loads((tmp_path / "a/config.json").read_text())
    assert theirs["model_type"] == "resnet_resized"
    assert theirs["last_block"] == RESIZED
    assert theirs["hidden_sizes"] == [8, 12]
    assert weights.class_names(tmp_path / "a") == ("ant", "bee", "LABEL_2")
    assert weights.pixel_statistics(tmp_path / "a") == ([0.5], [0.25])
    file = tmp_path / "b.safetensors"
    with pytest.raises(UserError, match="torchvision cannot hold last_block="):
        weights.save_pretrained(file, model, stored_of(model), format="torchvision")
    assert not file.exists()


@pytest.mark.parametrize("field", [*hf_resnet.DEFAULTS, *hf_resnet.SUPPORTED])
def test_a_config_with_any_value_is_one_line_or_a_model(tmp_path, field):
    folder, model = tmp_path / "a", build("encoder")
    weights.save_pretrained(folder, model, stored_of(model))
    for value in [*VALUES, [8, -12], [8, 12, 16], [10**9, 8], [4, 6], ["8", 12]]:
        change_config(folder, **{field: value})
        found = outcome(weights.from_pretrained, folder, "encoder")
        assert found is None or found[2].used


@pytest.mark.parametrize("name", ["timm", "facebook_mae", "big_vision"])
def test_formats_of_vits_hold_no_resnet(tmp_path, name):
    model = build("encoder")
    with pytest.raises(UserError, match=r"holds models of kind vit, not resnet"):
        weights.save_pretrained(tmp_path / "a", model, stored_of(model), format=name)


def run_convert(source, target, target_format):
    return convert.convert(
        source,
        target,
        source_format=None,
        target_format=target_format,
        task=None,
        known={},
        changes={},
        fresh=(),
        num_classes=0,
        seed=0,
    )


def test_weights_go_to_hugging_face_s_folder_and_back_bit_by_bit(tmp_path):
    file = torchvision_file(tmp_path / "a.safetensors")
    assert run_convert(file, tmp_path / "b", "huggingface").task == "classify"
    back = tmp_path / "c.safetensors"
    done = run_convert(tmp_path / "b", back, "torchvision")
    assert done.left_out == ()
    assert_same(tensors_of(back), tensors_of(file))


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("vit_finetune", "", "holds a resnet; this config takes a ViT"),
        ("text_finetune", "", "holds a resnet; this config takes text models"),
        (
            "unsup_finetune",
            ",source=folder:y",
            "holds a resnet; this config takes none",
        ),
    ],
)
def test_a_config_of_another_kind_takes_no_resnet(tmp_path, name, arguments, text):
    file = torchvision_file(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=text):
        configs.load(f"{name}:dataset=folder:x,init={file}{arguments}")


def test_published_sizes_are_those_of_the_paper():
    config = models.resnet_config("152", image_size=224, channels=3)
    assert config["depths"] == (3, 8, 36, 3)
    with pytest.raises(UserError, match="depth='18' is unknown"):
        models.resnet_config("18", image_size=224, channels=3)


def test_resizing_of_images_is_nothing_that_a_resnet_needs(tmp_path):
    file = torchvision_file(tmp_path / "a.safetensors")
    assert (
        weights.from_pretrained(file, "encoder", image_size=64)[0].config.image_size
        == 64
    )
    with pytest.raises(UserError, match=r"patches of images only"):
        weights.from_pretrained(file, "encoder", reshape=("position",))
    with pytest.raises(UserError, match="patch_size: a resnet model has none"):
        weights.from_pretrained(file, "encoder", patch_size=8)
