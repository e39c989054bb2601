"""Tiny models of contrast, their parameters and batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults
from flax_adapt.base import keys
from flax_adapt.objectives import contrast

SIZE, QUEUE, TAU = 8, 24, 0.2
WEIGHT_B = np.float32([1, 1, 0, 1, 1, 1, 0, 1])
HEADS = {
    "moco_v3": dict(layers=2, hidden=12, width=6, predictor_layers=2, batch_norm=True),
    "moco_v2": dict(layers=2, hidden=12, width=6, predictor_layers=0, batch_norm=False),
}
# (view of the query, view of the key)
DIRECTIONS = {"moco_v3": [(0, 1), (1, 0)], "moco_v2": [(0, 1)]}
ARCHITECTURES = {"image": tiny.MODEL, "text": tiny.TEXT_MODEL}


def section(form="moco_v3", reading="", operator="mixup", **changes):
    """The objective; a reading turns mixing on."""
    mixes = dict(operator=operator, alpha=1.0, pairing="any", reading=reading)
    fields = dict(
        form=form,
        queue_size=QUEUE if form == "moco_v2" else 0,
        temperature=TAU,
        mixing=mixes if reading else defaults.NO_MIXING,
    )
    return ConfigDict(defaults.contrast(**{**fields, **changes}))


def model_of(form="moco_v3", modality="image", **changes):
    """No blocks: embeddings, heads and losses are what is looked at."""
    arch = ARCHITECTURES[modality] | dict(depth=changes.pop("depth", 0))
    options = dict(projector=HEADS[form], pooling="mean") | changes
    return tiny.build("contrast", arch, **options)


@functools.cache
def parameters(form="moco_v3", modality="image"):
    """Of the model; and what is carried: a key encoder that differs, a queue."""
    one, other = (tiny.params_of(model_of(form, modality), seed) for seed in (0, 1))
    carry = contrast.make_carry(section(form), 10)
    return one, carry.init(other, jax.random.key(5))


def batch_of(modality="image"):
    """Two views, or one text; some rows do not count, each domain has some that do."""
    if modality == "text":
        batch = tiny.text_batch_of(SIZE, packed=False)
    else:
        views = tuple(tiny.batch_of(SIZE, seed)["image"] for seed in range(2))
        batch = tiny.batch_of(SIZE) | {"views": views}
    domain_B = np.arange(SIZE, dtype=np.int32) % 2
    return batch | {"weight": WEIGHT_B, "domain": domain_B}


def keys_of():
    return keys.example_keys(jax.random.key(0), jnp.arange(SIZE))
