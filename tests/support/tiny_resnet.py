"""A tiny ResNet, its weights and batches; sections of stages that train it."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, models, weights
from flax_adapt.base import rules

MODEL = dict(
    kind="resnet",
    image_size=8,
    channels=1,
    stem_width=4,
    planes=[2, 3],
    depths=[1, 2],
    batch_norm_eps=1e-5,
    batch_norm_momentum=0.1,
    last_block=None,
)
RESIZED = dict(kind="resized", width=20, relu=True, norm_width=0, mlp_dim=0)
# What is not of the paper's last block, in a stage's section `model.resize`.
RESIZE = dict(
    kind="resized",
    width=20,
    relu=True,
    mlp_dim=0,
    init="random",
    noise=0.0,
    tokens="all",
)
HEADS = dict(layers=1, hidden=6, width=6, predictor_layers=1, batch_norm=True)
# moco_v2 has no predictor.
HEADS_V2 = {**HEADS, "predictor_layers": 0}


def build(task, **changes):
    """A model; changes of its config, and of `tiny.build`."""
    config = {**MODEL, **{k: v for k, v in changes.items() if k in MODEL}}
    options = {k: v for k, v in changes.items() if k not in MODEL}
    heads = dict(projector=HEADS) if task == "contrast" else {}
    return tiny.build(task, config, **{"pooling": "mean", **heads, **options})


def shapes(model):
    return jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))


def stored_of(model, seed=0):
    """Weights as they are stored, random everywhere; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        if name.endswith("/kernel"):
            return values * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return np.float32(name.endswith(("/scale", "/var"))) + np.float32(0.2) * values

    return rules.map_named(draw, shapes(model))


def folder(path):
    """A ResNetModel folder; returns `path`."""
    model = build("encoder")
    weights.save_pretrained(path, model, stored_of(model))
    return path


@functools.cache
def contrast_section(form="moco_v3"):
    queue = dict(queue_size=16) if form == "moco_v2" else {}
    return ConfigDict(defaults.contrast(form=form, **queue))


def views_of(seed=0, size=8):
    """A batch of two views; row 2 does not count."""
    views = tuple(tiny.batch_of(size, 10 * seed + view)["image"] for view in range(2))
    batch = tiny.batch_of(size, seed) | {"views": views}
    batch["weight"][2] = 0
    return batch


def stage_model(**changes):
    return {**defaults.finetune_stage("", {}, {})["model"], **PLAIN, **changes}


PLAIN = dict(dropout=0.0, pooling="mean", fresh=())


def classify(name="classify", **changes):
    """A stage of classification that starts from the config's `init`."""
    fields = dict(
        init_from="pretrained", model=stage_model(fresh=("head",)), num_steps=4
    )
    return tiny.finetune(name, **{**fields, **changes})
