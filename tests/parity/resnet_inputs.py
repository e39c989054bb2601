"""What the goldens of ResNets were computed from: sizes and inputs, numpy alone."""

from pathlib import Path

import numpy as np
from inputs import random

FOLDER = Path(__file__).parent / "goldens" / "weights"
NAME = "timm_resnet"
BATCH, SIZE, NUM_CLASSES = 4, 64, 3
# As timm's resnet50 takes them; the stem has 64 channels always.
ARGUMENTS = dict(layers=(1, 1, 1, 2), channels=(2, 4, 4, 6), num_classes=NUM_CLASSES)


def images():
    """float32 [B, Y, X, C]."""
    shape = (BATCH, SIZE, SIZE, 3)
    return random("resnet").standard_normal(shape).astype(np.float32)


def labels():
    """int32 [B]."""
    return random("resnet labels").randint(0, NUM_CLASSES, BATCH).astype(np.int32)


def tensor(name, shape):
    """A number far from what it starts as, so that no 0 or 1 hides a thing."""
    values = random("resnet tensor", name, tuple(shape)).standard_normal(shape)
    if name.endswith("running_var"):
        return 0.5 + np.abs(values)
    if len(shape) == 1:
        return (name.endswith("weight") + 0.2 * values).astype(np.float32)
    return (values * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def fill(model):
    """Gives a torch model such parameters and running statistics; returns it."""
    import torch

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(np.array(tensor(name, value.shape))))
    return model
