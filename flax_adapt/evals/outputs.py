"""The outputs of a classifier or a regression for a data set, and its temperature."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flax_adapt import data as sources
from flax_adapt import models
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.data.images import image
from flax_adapt.evals.features import Features, extract
from flax_adapt.stage import programs
from flax_adapt.train import sharding
from flax_adapt.weights.files.writing import CALIBRATION


def compute_outputs(
    model: Any,
    params: Any,
    examples: sources.Examples,
    section: ConfigDict,
    batch_size: int,
    show: Callable[[Iterable[Any], int], Iterable[Any]] = lambda batches, _: batches,
) -> Features:
    """Returns the logits (or numbers) of every example, computed on all devices.

    With several processes each reads its part of every batch, and has all results.

    show: wraps the batches, whose number it is given, for a progress bar.
    """
    if isinstance(examples, sources.TextExamples):
        models.check_fits(model.config, **examples.row_sizes)
    mesh = sharding.all_devices()
    placed = sharding.put(models.batch_stats.variables(params), mesh)
    compiled = _share_apply(model, programs.describe_inputs(section), mesh)

    def encode(batch: Any) -> Any:
        return compiled(placed, sharding.put_batch(batch[model.modality], mesh))

    size = sharding.whole_batch_size(batch_size, mesh)
    batches = sources.eval_batches(examples, size, *sharding.share_of_process(mesh))
    return extract(encode, show(batches, -(-len(examples) // size)))


# One compiled function for all weights of a model, and for data prepared in the same way.
@functools.lru_cache(programs.KEPT)
def _share_apply(model: Any, inputs: str, mesh: Mesh) -> Callable[..., Any]:
    """Returns (variables, inputs) -> outputs; inputs: `programs.describe_inputs`."""
    section, is_image = configs.from_text(inputs), model.modality == "image"

    def apply(variables: Any, rows: Any) -> Any:
        with sharding.placing(mesh):
            ready = image.preprocess(rows, None, section, None) if is_image else rows
            return model.apply(variables, ready, None)

    return jax.jit(apply, out_shardings=sharding.whole_on_every_device(mesh))


def mean_loss(logits_nC: np.ndarray, labels_n: np.ndarray, temperature: float) -> float:
    """Returns the mean cross-entropy of logits divided by a temperature."""
    scaled = logits_nC.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(scaled).sum(axis=-1))
    return float(np.mean(log_sums - scaled[np.arange(len(labels_n)), labels_n]))


def fit_temperature(logits_nC: np.ndarray, labels_n: np.ndarray) -> float:
    """Returns the temperature with the least loss (Guo et al. 2017), within [0.05, 20].

    The loss has one minimum in 1 / temperature. A golden section of the logarithm finds it.
    """
    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        losses = [mean_loss(logits_nC, labels_n, np.exp(x)) for x in (left, right)]
        if losses[0] < losses[1]:
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def read_temperature(folder: Path) -> float:
    """Returns the temperature of an exported classifier; 1 where it has none.

    Raises UserError for a damaged calibration.json.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return 1.0
    found = logs.read_json(path)
    value = found.get("temperature") if isinstance(found, dict) else None
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(
            f"{path} is damaged, its temperature must be a number above 0: delete the file, "
            "and the probabilities are not calibrated"
        )
    return float(value)
