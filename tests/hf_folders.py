"""Tiny models in Hugging Face folders, and ways to break them."""

import json

import jax
import numpy as np
import safetensors.numpy

from flax_adapt import models

CONFIG = dict(
    image_size=8,
    patch_size=4,
    channels=3,
    width=8,
    depth=11,  # two digits: block_10 is layer 10
    heads=2,
    mlp_dim=12,
    layer_norm_eps=1e-12,
    qkv_bias=True,
    gelu="erf",
    pooler=False,
    decoder=dict(width=4, depth=1, heads=2, mlp_dim=6),
)
QUERY = "vit.encoder.layer.0.attention.attention.query.weight"


def build(task, **changes):
    return models.build(
        CONFIG | dict(depth=1) | changes,
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=5,
    )


def random_params(model):
    """Random values in the shapes of the model's parameters; nothing is compiled."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: models.init_params(model, jax.random.key(0))),
    )


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)
