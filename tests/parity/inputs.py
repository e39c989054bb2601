"""What the goldens were computed from: numpy alone, so that nothing of it is stored.

RandomState's streams are frozen by NumPy's promise; every array has its own seed.
"""

import zlib

import numpy as np

# A: Hugging Face's defaults. B: nothing as the defaults; its eps is large enough to be
# seen in the outputs.
SHAPES = {
    "A": dict(image_size=16, patch_size=4, num_channels=3, layer_norm_eps=1e-12),
    "B": dict(image_size=16, patch_size=8, num_channels=1, layer_norm_eps=1e-3),
}
ACTIVATIONS = {
    "A": dict(hidden_act="gelu", qkv_bias=True),
    "B": dict(hidden_act="gelu_new", qkv_bias=False),
}
ENCODER = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)
DECODER = dict(
    decoder_hidden_size=16,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=32,
)
MASK_RATIO = {"A": 0.75, "B": 0.5}
BATCH, NUM_CLASSES = 4, 5

# Goldens (e): teacher, then student from the same start. (f): fine-tuning.
PRETRAIN = dict(num_steps=20, lr=1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01)
FINETUNE = dict(
    num_steps=8,
    warmup_steps=2,
    lr=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
)
STUDENT, TEACHER, CLASSIFIER = 1, 2, 3  # seeds of parameters


def hugging_face_config(name):
    """Fields of ViTConfig and ViTMAEConfig of the model `name`."""
    return {**SHAPES[name], **ACTIVATIONS[name], **ENCODER, **DECODER}


def random(*seed):
    """A generator of its own for every purpose."""
    return np.random.RandomState(zlib.crc32(repr(seed).encode()))


def tensor(name, shape, seed):
    """A parameter far from zero, also of biases and tokens: no 0 hides a thing."""
    values = random("tensor", name, tuple(shape), seed).standard_normal(shape)
    if "norm" in name.lower() and name.endswith("weight"):
        return (1 + 0.2 * values).astype(np.float32)
    if name.endswith("bias"):
        return (0.2 * values).astype(np.float32)
    if name.endswith("weight"):
        return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return (0.5 * values).astype(np.float32)


def images(name, step=0):
    """float32 [B, Y, X, C]."""
    size, channels = SHAPES[name]["image_size"], SHAPES[name]["num_channels"]
    values = random("images", name, step).standard_normal((BATCH, size, size, channels))
    return values.astype(np.float32)


def noise(name, step=0):
    """float32 [B, L]."""
    length = (SHAPES[name]["image_size"] // SHAPES[name]["patch_size"]) ** 2
    return random("noise", name, step).uniform(size=(BATCH, length)).astype(np.float32)


def labels(step=0):
    """int32 [B]."""
    return random("labels", step).randint(0, NUM_CLASSES, BATCH).astype(np.int32)
