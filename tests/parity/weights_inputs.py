"""What the files of goldens/weights were made of: sizes and inputs, numpy alone."""

from pathlib import Path

import numpy as np
from inputs import random, tensor

FOLDER = Path(__file__).parent / "goldens" / "weights"
BATCH, NUM_CLASSES, HIDDEN_RATIO = 2, 3, 0.75
SIZES = dict(
    image_size=8, patch_size=4, channels=3, width=16, depth=2, heads=2, mlp_dim=32
)
DECODER = dict(width=8, depth=1, heads=2, mlp_dim=16)
KNOWN = dict(heads=SIZES["heads"], decoder_heads=DECODER["heads"])
# Facebook's released classifiers pool with fc_norm; `--cls_token` gives the other kind.
TIMM_ARGUMENTS = dict(
    img_size=8,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mlp_ratio=2.0,
    num_classes=NUM_CLASSES,
)


def images():
    """float32 [B, Y, X, C]."""
    size = SIZES["image_size"], SIZES["image_size"], SIZES["channels"]
    return random("weights").standard_normal((BATCH, *size)).astype(np.float32)


def noise():
    """float32 [B, L]."""
    length = (SIZES["image_size"] // SIZES["patch_size"]) ** 2
    return random("weights noise").uniform(size=(BATCH, length)).astype(np.float32)


def fill(model, seed):
    """Gives a torch model parameters far from zero; returns it, without dropout."""
    import torch

    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(torch.from_numpy(tensor(name, value.shape, seed)))
    return model.eval()
