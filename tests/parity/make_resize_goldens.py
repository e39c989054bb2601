"""Computes the goldens of resizing with torch, timm and transformers.

    pip install torch timm transformers && python tests/parity/make_resize_goldens.py

Written with torch 2.14.1, timm 1.0.31 and transformers 5.23.0. Positions, and whole
models, in float64; timm resizes patches in float32.
"""

import inputs
import make_goldens
import resize_inputs
import torch
import transformers
from timm.layers import resample_patch_embed


def position(old, new):
    """torch's own bicubic resize of the grid, without CLS."""
    table = torch.from_numpy(resize_inputs.table(old)).double()[:, 1:]
    grid = table.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False
    )
    return resized.permute(0, 2, 3, 1).reshape(1, new * new, -1)


def kernel(old, new, channels):
    """timm's FlexiViT, with the resize of its authors: bilinear, no antialias."""
    return resample_patch_embed(
        torch.from_numpy(resize_inputs.kernel(old, channels)),
        [new, new],
        interpolation="bilinear",
        antialias=False,
    )


def states(size):
    """Of a transformers model that resizes its positions itself."""
    model = make_goldens.make(transformers.ViTModel, "A", inputs.STUDENT)
    pixels = resize_inputs.images(size).transpose(0, 3, 1, 2).copy()
    pixels = torch.from_numpy(pixels).double()
    out = model(pixels, interpolate_pos_encoding=True)
    return out.last_hidden_state, model


def main():
    torch.set_num_threads(1)
    arrays = {
        f"position_{old}_{new}": position(old, new) for old, new in resize_inputs.GRIDS
    }
    for old, new in resize_inputs.PATCHES:
        for channels in (1, 3):
            arrays[f"kernel_{old}_{new}_{channels}"] = kernel(old, new, channels)
    for size in resize_inputs.SIZES:
        arrays[f"states_{size}"], model = states(size)
    make_goldens.store("resize", arrays | make_goldens.shapes(model))


if __name__ == "__main__":
    main()
