"""Reads the goldens, in our names and layouts."""

import json
from pathlib import Path

import inputs
import jax
import numpy as np
import text_inputs

from flax_adapt import models
from flax_adapt.base.types import Text
from flax_adapt.weights import strict
from flax_adapt.weights.formats import hf_bert, hf_vit, huggingface
from flax_adapt.weights.names import translate

FOLDER = Path(__file__).parent / "goldens"
VIT = hf_vit.names("vit", "encoder")
OPTIONS = dict(dtype="float32", dropout=0.0, drop_path=0.0)


def read(file):
    """{name: array} of a file."""
    with np.load(FOLDER / f"{file}.npz") as arrays:
        return dict(arrays)


def build(name, task, *, pooler=False):
    """Our model `name` of images, as Hugging Face's config describes it."""
    theirs = {"model_type": "vit_mae", **inputs.hugging_face_config(name)}
    found = ["vit.pooler.dense.weight"] if pooler else []
    config = hf_vit.model_config(name, "vit", theirs, found)
    return models.build(
        config, task, pooling="cls", num_classes=inputs.NUM_CLASSES, **OPTIONS
    )


def build_text(name, task, num_classes=text_inputs.NUM_CLASSES):
    """Our model `name` of text, as Hugging Face's config describes it."""
    config = text_config(name)
    return models.build(
        config, task, pooling="pooler", num_classes=num_classes, **OPTIONS
    )


def text_config(name):
    """Our model config of the model `name` of text."""
    family = text_inputs.kind(name)
    theirs = {"model_type": family, **text_inputs.hugging_face_config(name)}
    kind, _ = huggingface.FAMILIES[family]
    return hf_bert.model_config(name, kind, theirs, [])


def text_names(name, task):
    """The table of names of the model `name` of text."""
    return hf_bert.names(text_config(name), task)


def text_of(arrays):
    """`Text` of the arrays of `text_inputs.batch`: one document a row."""
    real, tokens = arrays["real"], arrays["tokens"]
    positions = real * np.arange(tokens.shape[1], dtype=np.int32)[None]
    words = np.where(real == 1, positions, -1)
    return Text(tokens, arrays["token_types"], real, positions, words)


def ours(tensors, table):
    """{leaf: array} of {name: tensor}, by a table of names."""
    leaves = {}
    for name, tensor in tensors.items():
        spare = table.spare_of(name)  # the first name of a tied table is that of either
        leaf = spare.leaf if spare else table.leaf_of(name)
        assert leaf is not None, name
        leaves |= translate.split(table, leaf, tensor)
    return leaves


def under(golden, prefix, table=VIT):
    """{leaf: array} of the arrays that were stored under a prefix."""
    head = f"{prefix}/"
    tensors = {k[len(head) :]: v for k, v in golden.items() if k.startswith(head)}
    return ours(tensors, table)


def params(golden, seed, table=VIT):
    """The parameters that the golden was computed with."""
    shapes = json.loads(str(golden["shapes"]))
    tensors = {name: inputs.tensor(name, s, seed) for name, s in shapes.items()}
    return jax.tree.map(np.asarray, strict.unflatten(ours(tensors, table)))


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
