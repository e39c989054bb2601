"""Weights that hold NaN or an infinity are refused by name, whoever reads them."""

import numpy as np
import pytest
import safetensors.numpy
from support import tiny_files, torch_files
from support.format_files import GOLDENS, tensors_of
from support.hf_folders import EPS, SIZES, build, random_params, rewrite, save
from support.hf_folders import tensors_of as tensors_of_folder

from flax_adapt import weights
from flax_adapt.base.errors import UserError

KNOWN = dict(heads=2)


def break_safetensors(path, value):
    tensors = safetensors.numpy.load_file(path)
    tensors["blocks.0.norm1.bias"].flat[1] = value
    safetensors.numpy.save_file(tensors, path)
    return "blocks.0.norm1.bias"


def in_huggingface(tmp_path, value):
    save(tmp_path / "a", "encoder", decoder=None)
    tensors = tensors_of_folder(tmp_path / "a")
    tensors["encoder.layer.0.layernorm_before.bias"].flat[1] = value
    rewrite(tmp_path / "a", tensors)
    return tmp_path / "a", {}, "encoder.layer.0.layernorm_before.bias"


def in_timm(tmp_path, value):
    save(tmp_path / "a", "encoder", "timm", **SIZES)
    name = break_safetensors(tmp_path / "a/model.safetensors", value)
    return tmp_path / "a", {}, name


def in_facebook(tmp_path, value):
    path = tmp_path / "a.safetensors"
    save(path, "mae", "facebook_mae", **EPS)
    return path, KNOWN | dict(decoder_heads=2), break_safetensors(path, value)


def in_torch(tmp_path, value):
    tensors = tensors_of(GOLDENS / "deit.pth")
    tensors["norm.weight"] = tensors["norm.weight"].copy()
    tensors["norm.weight"][0] = value
    torch_files.write_sets(tmp_path / "a.pth", {"model": tensors})
    return tmp_path / "a.pth", KNOWN, "norm.weight"


def in_big_vision(tmp_path, value):
    with np.load(GOLDENS / "big_vision.npz") as found:
        arrays = dict(found)
    arrays["cls"].flat[0] = value
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz", {}, "cls"


def in_orbax(tmp_path, value):
    model = build("encoder", **SIZES)
    params = random_params(model)
    params["encoder"]["norm"]["bias"][0] = value
    weights.save_pretrained(tmp_path / "a", model, params, format="orbax")
    return tmp_path / "a", {}, "encoder/norm/bias"


SOURCES = (in_huggingface, in_timm, in_facebook, in_torch, in_big_vision, in_orbax)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_number_that_is_none_is_one_line_with_its_tensor(tmp_path, source, value):
    path, known, name = source(tmp_path, value)
    with pytest.raises(UserError, match=r"1 of its \d+ numbers are NaN") as error:
        weights.load(path, "encoder", pooling=None, known=known)
    assert f"{name}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_no_command_reads_or_hands_on_such_weights(tmp_path, main):
    path, _, name = in_huggingface(tmp_path, np.nan)
    images = tiny_files.image_folder(tmp_path / "images", train=1, test=1)
    out = f"--out={tmp_path / 'a.npz'}"
    commands = (
        ("convert", f"--from={path}", f"--to={tmp_path / 'b'}"),
        ("features", f"--init={path}", f"--data=folder:{images}", out),
    )
    for command in commands:
        code, _, error = main(*command)
        assert (code, error.count("\n")) == (2, 1)
        assert f"{name}: 1 of its 8 numbers are NaN or infinite" in error
    assert {p.name for p in tmp_path.iterdir()} == {"a", "images"}


@pytest.mark.usefixtures("nans_allowed")
def test_embeddings_that_overflow_are_not_written(tmp_path, main):
    save(tmp_path / "a", "encoder", decoder=None)
    tensors = tensors_of_folder(tmp_path / "a")
    tensors = {name: np.full_like(array, 1e30) for name, array in tensors.items()}
    rewrite(tmp_path / "a", tensors)
    images = tiny_files.image_folder(tmp_path / "images", train=1, test=1)
    flags = (f"--data=folder:{images}", f"--out={tmp_path / 'a.npz'}")
    code, _, error = main("features", f"--init={tmp_path / 'a'}", *flags)
    # Before it, at most the line that says which attention is computed.
    assert (code, error.count("flax-adapt: "), "Traceback" in error) == (2, 1, False)
    assert "embeddings are NaN or infinite" in error.splitlines()[-1]
    assert not (tmp_path / "a.npz").exists()


def test_a_part_that_is_not_read_may_hold_anything(tmp_path):
    """What a task drops, or what is to be new."""
    save(tmp_path / "a", "classify", decoder=None)
    tensors = tensors_of_folder(tmp_path / "a")
    tensors["classifier.bias"][0] = np.nan
    rewrite(tmp_path / "a", tensors)
    weights.load(tmp_path / "a", "encoder", pooling=None)
    with weights.open_weights(tmp_path / "a", "classify", pooling=None) as (
        _,
        params,
        _,
    ):
        shapes = weights.shapes(build("classify", decoder=None))
        _, report = weights.adopt(shapes, params, ("head",))
    assert report.ignored["head/bias"] == "named fresh"
