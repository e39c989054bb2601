"""Reconstructions by masked autoencoders: the same images and masks for all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base.types import Array, Params
from flax_adapt.data.images import image
from flax_adapt.objectives import reconstruct
from flax_adapt.report import backbones, encoders, pictures
from flax_adapt.report.backbones import Backbone
from flax_adapt.report.workdir import Run

# Rows of the picture; each model runs once on all of them.
IMAGES = 4
_GREY = 128


def reconstructions(run: Run) -> dict[str, Any] | None:
    """Returns rows of original, masked image, and what each model predicts for it."""
    if not backbones.is_alone():
        return None
    found = backbones.list_backbones(run, "mae")
    trained = [one for one in found if one.stage]
    if not trained:
        return None
    sections = {section.name: section for section in run.experiment.stages}
    section = sections[trained[-1].stage].data
    examples = backbones.open_section(run, section)
    if examples is None:
        return None
    rows = pictures.spread_rows(len(examples), IMAGES)
    pixels_BYXC = pictures.fetch(examples, rows)
    ratio = _settings(trained[-1], sections)["hidden_ratio"]
    drawn = []
    for one in found:
        normalized = _settings(one, sections)["normalize_patches"]
        drawn.append(predict(one, pixels_BYXC, section, ratio, normalized))
    whole = [pixels_BYXC, drawn[0][1], *(each for each, _ in drawn)]
    columns = ["original", "masked", *(one.label for one in found)]
    named = [examples.names[row] for row in rows]
    return {
        "text": f"{ratio:.0%} of the patches are hidden and predicted; the others are "
        "those of the image. All models see the same patches. One that predicts normalised "
        "patches gets the mean and variance of the original ones back.",
        "columns": columns,
        "rows": [
            [
                pictures.to_cell(images[i], f"{column} of {named[i]}")
                for column, images in zip(columns, whole, strict=True)
            ]
            for i in range(len(rows))
        ],
    }


def _settings(one: Backbone, sections: Any) -> dict[str, Any]:
    """Returns hidden_ratio and normalize_patches that a model was trained with."""
    if not one.stage:
        usual = {"normalize_patches": True, "hidden_ratio": 0.75}
        return {**usual, **weights.reconstruction(one.folder)}
    objective = sections[one.stage].objective
    masked = objective.masked if "masked" in objective else objective
    names = ("hidden_ratio", "normalize_patches")
    return {name: masked[name] for name in names}


def predict(
    one: Backbone, pixels_BYXC: np.ndarray, section: Any, ratio: float, normalized: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (reconstructed, masked), uint8 [B, S, S, C]; the visible patches stay."""
    model, params, _ = weights.from_pretrained(one.folder, "mae", **one.fit)
    form = encoders.describe_pixels(section)
    # Drawn by NumPy: a generator of random numbers is slow to compile.
    shape = (len(pixels_BYXC), model.config.num_patches)
    noise_BL = np.random.default_rng(0).random(shape, np.float32)
    filled, masked = _fill(
        *(model, params, pixels_BYXC, noise_BL, ratio, form, normalized)
    )
    return np.asarray(filled), np.asarray(masked)


# One program for all models of a shape: whether patches are normalised is no constant.
@functools.partial(jax.jit, static_argnames=("model", "ratio", "form"))
def _fill(
    model: Any,
    params: Params,
    pixels_BYXC: Array,
    noise_BL: Array,
    ratio: float,
    form: str,
    normalized: Array,
) -> tuple[Array, Array]:
    """Returns `predict`; the mask follows noise_BL, and is that of all models of a size."""
    size, section = model.config.patch_size, configs.from_text(form)
    image_BYXC = image.preprocess(pixels_BYXC, None, section, None)
    prediction_BLP, hidden_BL = model.apply(
        {"params": params}, image_BYXC, noise_BL, None, ratio
    )
    restored_BLP = reconstruct.restore_pixels(prediction_BLP, image_BYXC, size, True)
    restored_BLP = jnp.where(normalized, restored_BLP, prediction_BLP)
    mean_C, std_C = image.channel_values(section)
    found_BYXC = models.unpatchify(restored_BLP, size)
    found_BYXC = found_BYXC * std_C[None, None, None] + mean_C[None, None, None]
    hidden_BLP = jnp.broadcast_to(hidden_BL[..., None], restored_BLP.shape)
    hidden_BYXC = models.unpatchify(hidden_BLP, size)
    grey = jnp.uint8(_GREY)
    return (
        jnp.where(hidden_BYXC, _to_bytes(found_BYXC), pixels_BYXC),
        jnp.where(hidden_BYXC, grey, pixels_BYXC),
    )


def _to_bytes(image_BYXC: Array) -> Array:
    """Returns uint8 pixels of an image in [0, 1]; what lies outside is cut off."""
    return jnp.clip(jnp.rint(255 * image_BYXC), 0, 255).astype(jnp.uint8)
