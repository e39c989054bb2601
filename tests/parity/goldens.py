"""Reads the goldens, in our names and layouts."""

import json
from pathlib import Path

import inputs
import jax
import numpy as np

from flax_adapt import models
from flax_adapt.weights import huggingface, names, strict

FOLDER = Path(__file__).parent / "goldens"


def read(file):
    """{name: array} of a file."""
    with np.load(FOLDER / f"{file}.npz") as arrays:
        return dict(arrays)


def build(name, task, *, pooler=False):
    """Our model `name`, as Hugging Face's config describes it."""
    theirs = inputs.hugging_face_config(name)
    config = {ours: theirs[field] for ours, field in huggingface.FIELDS.items()}
    decoder = {ours: theirs[f] for ours, f in huggingface.DECODER_FIELDS.items()}
    config |= dict(gelu=huggingface.GELU[theirs["hidden_act"]], pooler=pooler)
    return models.build(
        config | dict(decoder=decoder),
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=inputs.NUM_CLASSES,
    )


def ours(tensors):
    """{leaf: array} of {name: tensor}."""
    leaves = {}
    for name, tensor in tensors.items():
        leaf = names.leaf_of(name)
        assert leaf is not None, name
        leaves[leaf] = names.to_ours(leaf, tensor)
    return leaves


def under(golden, prefix):
    """{leaf: array} of the arrays that were stored under a prefix."""
    head = f"{prefix}/"
    return ours({k[len(head) :]: v for k, v in golden.items() if k.startswith(head)})


def params(golden, seed):
    """The parameters that the golden was computed with."""
    shapes = json.loads(str(golden["shapes"]))
    tensors = {name: inputs.tensor(name, s, seed) for name, s in shapes.items()}
    return jax.tree.map(np.asarray, strict.unflatten(ours(tensors)))


def distances(actual, expected, floor):
    """{leaf: |actual - expected| / max(|expected|, floor)} in the Euclidean norm.

    `floor` takes the place of norms that are zero but for rounding.
    """
    actual = strict.flatten(actual)
    assert set(expected) <= set(actual)
    return {
        leaf: float(
            np.linalg.norm(actual[leaf] - value) / max(np.linalg.norm(value), floor)
        )
        for leaf, value in expected.items()
    }
