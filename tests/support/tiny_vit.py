"""Tiny models of images, and images for them."""

import jax

from flax_adapt import models

TINY = dict(
    kind="vit",
    image_size=16,
    patch_size=4,
    channels=3,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    layer_norm_eps=1e-6,
    qkv_bias=True,
    gelu="erf",
    pooler=False,
    last_block=None,
    adaptor=None,
    traits=None,
    decoder=dict(width=8, depth=1, heads=2, mlp_dim=16),
)


OPTIONS = dict(
    dtype="float32", dropout=0.0, drop_path=0.0, pooling="cls", num_classes=3
)


def build(task, **changes):
    config = {**TINY, **{k: v for k, v in changes.items() if k in TINY}}
    options = {k: v for k, v in changes.items() if k not in TINY}
    return models.build(config, task, **{**OPTIONS, **options})


def images(batch=4, size=16, channels=3):
    return jax.random.normal(jax.random.key(1), (batch, size, size, channels))


def shapes(model):
    return jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
