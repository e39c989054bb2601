"""Where CLS looks: its attention to the patches in the last block, before and after."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import weights
from flax_adapt.base.types import Array
from flax_adapt.data.images import image
from flax_adapt.report import backbones, pictures
from flax_adapt.report.backbones import Backbone
from flax_adapt.report.workdir import Run

# Rows of the picture; each model runs once on all of them.
IMAGES = 4
# Colours from no attention to the largest of an image: dark blue, orange, light yellow.
_RAMP = np.array([[18, 22, 66], [232, 104, 44], [255, 246, 176]], np.float32)
_COLOUR = 0.75  # the share of the colour over the grey image


def attentions(run: Run) -> dict[str, Any] | None:
    """Returns rows of an image and the attention maps of each model."""
    config = backbones.open_config(run)
    section = config.evaluate.test
    if section.modality != "image" or not backbones.is_alone():
        return None
    found = [one for one in backbones.list_backbones(run, "encoder") if _is_plain(one)]
    examples = backbones.open_section(section) if found else None
    if examples is None:
        return None
    rows = pictures.spread_rows(len(examples), IMAGES)
    pixels_BYXC = pictures.fetch(examples, rows)
    maps = [compute_maps(one, pixels_BYXC, section) for one in found]
    columns = ["image", *(one.label for one in found)]
    return {
        "text": "Attention of CLS to the patches in the last block, the mean over heads; "
        "bright where it is largest.",
        "columns": columns,
        "rows": [
            [
                pictures.to_cell(pixels_BYXC[i], f"image {examples.names[row]}"),
                *(
                    pictures.to_cell(
                        overlay(pixels_BYXC[i], each[i]),
                        f"attention of {one.label} on {examples.names[row]}",
                    )
                    for one, each in zip(found, maps, strict=True)
                ),
            ]
            for i, row in enumerate(rows)
        ],
    }


def _is_plain(one: Backbone) -> bool:
    """Returns whether weights are of a ViT whose attention is the usual one."""
    options = weights.options_in(one.fit)
    config = weights.model_config(one.folder, **options)
    return config["kind"] == "vit" and config["adaptor"] is None


def compute_maps(one: Backbone, pixels_BYXC: np.ndarray, section: Any) -> np.ndarray:
    """Returns float32 [B, rows, columns]: attention of CLS to each patch, the mean over heads."""
    model, params, _ = weights.from_pretrained(one.folder, "encoder", **one.fit)
    ready_BYXC = image.preprocess(jnp.asarray(pixels_BYXC), None, section, None)
    found_BL = np.asarray(cls_attention(model, params, ready_BYXC), np.float32)
    side = round(found_BL.shape[1] ** 0.5)
    return found_BL.reshape(len(found_BL), side, side)


@functools.partial(jax.jit, static_argnames="model")
def cls_attention(model: Any, params: Any, image_BYXC: Array) -> Array:
    """Returns attention_BL, float32: of CLS to the patches in the last block.

    The mean over heads of softmax(q k / sqrt K); registers and CLS itself are left out.
    """

    def is_projection(module: Any, method: str) -> bool:
        return method == "__call__" and module.name in ("query", "key")

    _, kept = model.apply(
        {"params": params},
        image_BYXC,
        None,
        method="encode",
        capture_intermediates=is_projection,
        mutable=["intermediates"],
    )
    blocks = kept["intermediates"]["encoder"]
    last = max(name for name in blocks if name.startswith("block_"))
    heads, prefix = model.config.heads, model.config.num_prefix
    q_BLHK, k_BLHK = (
        x_BLD.reshape(*x_BLD.shape[:2], heads, -1).astype(jnp.float32)
        for x_BLD in (
            blocks[last]["attention"][name]["__call__"][0] for name in ("query", "key")
        )
    )
    logits_BHL = jnp.einsum("BHK,BLHK->BHL", q_BLHK[:, 0], k_BLHK)
    shares_BHL = jax.nn.softmax(logits_BHL * q_BLHK.shape[-1] ** -0.5)
    return jnp.mean(shares_BHL, axis=1)[:, prefix:]


def overlay(pixels_YXC: np.ndarray, map_YX: np.ndarray) -> np.ndarray:
    """Returns uint8 [S, S, 3]: a grey image with the map as colour; its maximum is bright."""
    from PIL import Image

    size = (pixels_YXC.shape[1], pixels_YXC.shape[0])
    share = np.asarray(map_YX / max(float(map_YX.max()), 1e-12), np.float32)
    smooth = Image.fromarray(share).resize(size, Image.Resampling.BILINEAR)
    place = np.clip(np.asarray(smooth), 0, 1) * (len(_RAMP) - 1)
    low = np.clip(place.astype(int), 0, len(_RAMP) - 2)
    part = (place - low)[..., None]
    colour = (1 - part) * _RAMP[low] + part * _RAMP[low + 1]
    grey = pixels_YXC.astype(np.float32).mean(axis=-1, keepdims=True)
    return np.rint((1 - _COLOUR) * grey + _COLOUR * colour).astype(np.uint8)
