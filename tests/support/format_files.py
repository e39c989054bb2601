"""Stored files of other libraries, what they give, and changed copies of them."""

import json
import shutil

import jax
import numpy as np
import weights_inputs as inputs

from flax_adapt.weights.files import npz as npz_file
from flax_adapt.weights.files import reading

GOLDENS = inputs.FOLDER
# Name -> (format, what is found, what must be told).
FILES = {
    "timm_token": ("timm", {}),
    "timm_avg": ("timm", {}),
    "deit.pth": ("timm", dict(heads=2)),
    "facebook_full.pth": ("facebook_mae", inputs.KNOWN),
    "facebook_encoder.pth": ("timm", dict(heads=2)),
    "facebook_cls.pth": ("timm", dict(heads=2)),
    "big_vision.npz": ("big_vision", {}),
}
CLASSIFIERS = [name for name in FILES if "full" not in name and "encoder" not in name]
ONE = np.zeros((1, 1, 16), np.float32)


def outputs(name):
    with np.load(GOLDENS / f"{name.partition('.')[0]}.outputs.npz") as arrays:
        return dict(arrays)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def apply(model, params, *arguments, **options):
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, *arguments, **options)


def tensors_of(path):
    opened = npz_file.open_tensors if path.suffix == ".npz" else reading.open_tensors
    with opened(path) as tensors:
        return {name: tensors[name].read() for name in sorted(tensors)}


def timm_folder(tmp_path, **model_args):
    folder = tmp_path / "a"
    shutil.copytree(GOLDENS / "timm_token", folder)
    file = folder / "config.json"
    theirs = json.loads(file.read_text())
    theirs["model_args"] |= model_args
    file.write_text(json.dumps(theirs))
    return folder
