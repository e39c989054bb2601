"""Embeddings of images by a model on disk (a Hugging Face folder)."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flax_adapt import data, defaults, models, sharding, weights
from flax_adapt.data import image
from flax_adapt.evals import features
from flax_adapt.evals.features import Features

log = logging.getLogger(__name__)


def data_for(path: Path, source: str, split: str, data_dir: str) -> ConfigDict:
    """The data section that fits a model: its size, channels, mean and std."""
    arch = weights.model_config(path)
    channels = arch["channels"]
    mean, std = defaults.pixel_statistics(str(path), channels)
    if weights.pixel_statistics(path) is None:
        log.warning("%s has no preprocessor_config.json: mean %s", path, mean)
    section = defaults.image_data(
        source,
        split,
        data_dir=data_dir,
        image_size=arch["image_size"],
        channels=channels,
        mean=mean,
        std=std,
    )
    return ConfigDict(section).lock()


def extract(
    path: Path,
    examples: data.Examples,
    *,
    pooling: str,
    batch_size: int,
    precision: str,
    mesh: Any,
) -> Features:
    """Returns the pooled states after the final LayerNorm, [n, D], of every example."""
    model, params, _ = weights.from_pretrained(path, "encoder", dtype=precision)
    params = sharding.put(params, mesh)

    @jax.jit
    def encode(params, pixels_BYXC):
        image_BYXC = image.preprocess(pixels_BYXC, None, examples.config, False)
        states = model.apply({"params": params}, image_BYXC, None, method="encode")
        return models.pool(states[-1].astype(jnp.float32), pooling)

    def encode_batch(batch):
        placed = sharding.put_batch({"image": batch["image"]}, mesh)
        return encode(params, placed["image"])

    batches = data.eval_batches(examples, batch_size, 0, 1)
    return features.extract(encode_batch, batches)
