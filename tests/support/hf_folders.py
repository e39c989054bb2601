"""Tiny models in Hugging Face folders, and ways to break them."""

import json

import jax
import numpy as np
import safetensors.numpy

from flax_adapt import models, weights

CONFIG = dict(
    kind="vit",
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
    last_block=None,
    adaptor=None,
    traits=None,
    decoder=dict(width=4, depth=1, heads=2, mlp_dim=6),
)
TEXT = dict(
    kind="bert",
    vocab_size=11,
    max_positions=9,
    token_types=2,
    width=8,
    depth=1,
    heads=2,
    mlp_dim=12,
    layer_norm_eps=1e-12,
    gelu="erf",
    pad_token_id=1,
    pooler=False,
    last_block=None,
    adaptor=None,
    traits=None,
)
# What a file of a format must have; its width, depth and mlp_dim are of no published
# model, so the heads must be told.
EPS = dict(layer_norm_eps=1e-6)
SIZES = dict(**EPS, depth=2, decoder=None)
PIXELS = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
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


def build_text(task, *, pooling="pooler", num_classes=3, **changes):
    return models.build(
        TEXT | changes,
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling=pooling,
        num_classes=num_classes,
    )


def random_params(model):
    """Random values in the shapes of the model's parameters; nothing is compiled."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: models.init_params(model, jax.random.key(0))),
    )


def save_text(folder, kind, task, **changes):
    """Writes a text model with random values; returns its parameters."""
    model = build_text(task, kind=kind, **changes)
    params = random_params(model)
    weights.save_pretrained(folder, model, params)
    return params


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def save(path, task, format="huggingface", **changes):
    """A model with random values; returns its parameters."""
    model = build(task, **changes)
    params = random_params(model)
    config = {**CONFIG, "depth": 1, **changes}
    images = weights.preprocessor(config, **PIXELS) if format == "huggingface" else None
    weights.save(
        path,
        config,
        params,
        task,
        pooling="cls",
        preprocessor=images,
        tokenizer=None,
        class_names=None,
        format=format,
    )
    return params
