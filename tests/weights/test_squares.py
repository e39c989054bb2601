"""Images and patches that are not square are refused in one line, in every format."""

import json

import numpy as np
import pytest
import safetensors.numpy
from support.format_files import GOLDENS, tensors_of, timm_folder
from support.hf_folders import change_config, rewrite, save
from support.hf_folders import tensors_of as tensors_of_folder

from flax_adapt import weights
from flax_adapt.base.errors import UserError

LOAD = dict(pooling=None, known={})


def refused(path, text, **options):
    """Loading the encoder is a UserError of one line with that text."""
    with pytest.raises(UserError, match=text) as error:
        weights.load(path, "encoder", **LOAD | options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["image_size", "patch_size"])
@pytest.mark.parametrize("value", [[4, 16], [8, 8, 8], [8], [], [8.0, 8.0], {"h": 8}])
def test_fields_of_hugging_face_are_one_side_or_two_that_are_alike(
    tmp_path, field, value
):
    save(tmp_path / "a", "encoder", decoder=None)
    change_config(tmp_path / "a", **{field: value})
    refused(tmp_path / "a", f"{field}=.*: only squares are supported")


def test_two_sides_that_are_alike_are_one(tmp_path):
    save(tmp_path / "a", "encoder", decoder=None)
    change_config(tmp_path / "a", image_size=[8, 8], patch_size=[4, 4])
    config = weights.model_config(tmp_path / "a")
    assert (config["image_size"], config["patch_size"]) == (8, 4)


def test_patches_of_as_many_pixels_as_a_square_are_none(tmp_path):
    save(tmp_path / "a", "encoder", decoder=None)
    tensors = tensors_of_folder(tmp_path / "a")
    name = "embeddings.patch_embeddings.projection.weight"
    tensors[name] = tensors[name].reshape(8, 3, 2, 8)
    rewrite(tmp_path / "a", tensors)
    refused(tmp_path / "a", f"{name}: patches of 2 x 8: only squares")


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("deit.pth", "patch_embed.proj.weight", (16, 3, 2, 8)),
        ("big_vision.npz", "embedding/kernel", (2, 8, 3, 16)),
    ],
)
def test_patches_in_files_are_square(tmp_path, name, tensor, shape):
    tensors = tensors_of(GOLDENS / name)
    assert tensors[tensor].size == np.prod(shape)
    tensors[tensor] = tensors[tensor].reshape(shape)
    path = tmp_path / ("a.npz" if name.endswith("npz") else "a.safetensors")
    writer = np.savez if name.endswith("npz") else None
    if writer:
        writer(path, **tensors)
    else:
        safetensors.numpy.save_file(tensors, path)
    refused(path, "patches of 2 x 8: only squares", known={})


@pytest.mark.parametrize("field", ["img_size", "patch_size"])
def test_sides_in_the_arguments_of_timm_are_alike(tmp_path, field):
    """Of 16 x 64 pixels there are as many patches as of 32 x 32."""
    folder = timm_folder(tmp_path, **{field: [16, 64]})
    refused(folder, rf"{field}=\[16, 64\]: only squares are supported")


@pytest.mark.parametrize("size", [[3, 16, 64], [16, 16], 16])
def test_the_images_that_timm_s_weights_are_for_are_square(tmp_path, size):
    folder = timm_folder(tmp_path)
    theirs = json.loads((folder / "config.json").read_text())
    theirs["pretrained_cfg"]["input_size"] = size
    (folder / "config.json").write_text(json.dumps(theirs))
    refused(folder, "input_size=")


def test_the_images_of_a_resnet_of_timm_are_square(tmp_path):
    source = GOLDENS / "timm_resnet"
    folder = tmp_path / "a"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    theirs = json.loads((folder / "config.json").read_text())
    theirs["pretrained_cfg"]["input_size"] = [3, 16, 64]
    (folder / "config.json").write_text(json.dumps(theirs))
    refused(folder, r"input_size=\[16, 64\]: only squares")
