"""A section `model.lora`, and parameters with adaptors that do something."""

import jax
import numpy as np
from ml_collections import ConfigDict


def section(**changes):
    fields = dict(rank=2, alpha=3.0, targets=("query", "value"))
    return ConfigDict({**fields, **changes})


def noisy(params, seed=5):
    """As after some training: b is no longer zero."""
    rng = np.random.default_rng(seed)
    parts = jax.tree.map(
        lambda leaf: leaf + rng.standard_normal(leaf.shape, np.float32), params["lora"]
    )
    return {**params, "lora": parts}


def logits(model, params, batch):
    return model.apply({"params": params}, batch[model.modality], None)
