"""Where CLS looks: its attention to the patches in the last block, before and after."""

from typing import Any

import numpy as np

from flax_adapt.report import encoders, pictures
from flax_adapt.report.workdir import Run

# Rows of the picture.
IMAGES = 4
# Colours from no attention to the largest of an image: dark blue, orange, light yellow.
_RAMP = np.array([[18, 22, 66], [232, 104, 44], [255, 246, 176]], np.float32)
_COLOUR = 0.75  # the share of the colour over the grey image


def attentions(run: Run) -> dict[str, Any] | None:
    """Returns rows of an image and the attention maps of each model."""
    points = encoders.encode_points(run)
    if points is None:
        return None
    every = ((one.label, one.attention_nL) for one in points.models)
    maps = [(label, found) for label, found in every if found is not None]
    if not maps:
        return None
    rows = pictures.spread_rows(len(points.target.names), IMAGES)
    drawn = []
    for row in rows:
        pixels_YXC, name = points.target.batch["image"][row], points.target.names[row]
        cells = [
            pictures.to_cell(
                overlay(pixels_YXC, to_square(attention_nL[row])),
                f"attention of {label} on {name}",
            )
            for label, attention_nL in maps
        ]
        drawn.append([pictures.to_cell(pixels_YXC, f"image {name}"), *cells])
    return {
        "text": "Attention of CLS to the patches in the last block, the mean over heads; "
        "bright where it is largest.",
        "columns": ["image", *(label for label, _ in maps)],
        "rows": drawn,
    }


def to_square(attention_L: np.ndarray) -> np.ndarray:
    """Returns float32 [rows, columns], the attention to the patches of a square image."""
    side = round(len(attention_L) ** 0.5)
    return attention_L.astype(np.float32).reshape(side, side)


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
