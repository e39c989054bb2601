"""Tiny models of all kinds with another last block."""

import jax
import numpy as np
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, models, weights
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.surgery import TrainedBlock, check_resize, last_block
from flax_adapt.weights import strict
from flax_adapt.weights.formats import hf_families

# (model config, task, pooling)
MODELS = {
    "mae": (tiny.MODEL, "mae"),
    "vit": (tiny.MODEL | dict(decoder=None, pooler=True), "encoder"),
    "classify": (tiny.MODEL | dict(decoder=None), "classify"),
    "bert": (tiny.TEXT_MODEL | dict(pooler=True), "encoder"),
    "mlm": (tiny.TEXT_MODEL, "mlm"),
    "roberta": (
        tiny.TEXT_MODEL | dict(kind="roberta", token_types=2, max_positions=17),
        "classify",
    ),
    "modernbert": (
        tiny.TEXT_MODEL
        | dict(traits=hf_families.MODERNBERT.traits, token_types=0)
        | dict(max_positions=17),
        "mlm",
    ),
    "dinov2": (
        tiny.MODEL
        | dict(decoder=None)
        | dict(traits=make_fields(layer_scale=True, swiglu=True, registers=2)),
        "classify",
    ),
}
WIDTH = tiny.MODEL["width"]
KEY = jax.random.key(7)


def build(name, config=None):
    arch, task = MODELS[name]
    pooling = "pooler" if name == "roberta" else "cls"
    return tiny.build(task, config or arch, pooling=pooling)


def resized(name, **changes):
    """(the model as it was, its parameters, the new model, its parameters, what was done)"""
    config, _ = MODELS[name]
    section = ConfigDict(defaults.resize(**changes))
    check_resize(section, config, "pretrained")
    old = build(name)
    new = build(name, models.with_resize(config, section))
    params, init = tiny.params_of(old), models.init_params(new, KEY)
    components = None
    if section.init == "pca":
        rng = np.random.default_rng(3)
        square = rng.standard_normal((WIDTH, WIDTH))
        components = np.linalg.qr(square)[0][:, : section.width]
    flat = (strict.flatten(params), strict.flatten(init))
    done = last_block.resize(TrainedBlock(*flat, config, section, KEY, components))
    made, _ = weights.adopt(init, strict.unflatten(done.leaves), done.fresh)
    return old, params, new, made, done


def inputs_of(model):
    if model.modality == "image":
        return tiny.batch_of(4)["image"]
    return tiny.text_batch_of(4, packed=False)["text"]


def run(model, params, *more, **options):
    """The model of its inputs, nothing dropped."""

    @jax.jit
    def apply(params):
        return model.apply({"params": params}, inputs_of(model), *more, None, **options)

    return apply(params)
