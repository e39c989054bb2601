"""Seconds of one MAE training step: ours beside transformers in torch, same CPU, one run.

Run     pip install '.[parity]' && python benchmarks/mae_step.py [--size=small] [--threads=2]
Prints  one JSON line: the median seconds of a step (forward, backward, AdamW; float32) of
        each, in turns, and their ratio. Sizes: small (6/192, 32 px, batch 64), base
        (ViT-B/16 with its decoder, batch 8).
"""

import json

import in_turns
import numpy as np
import torch
from absl import app, flags
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import flax_adapt as fa

_SIZE = flags.DEFINE_enum("size", "small", ["small", "base"], "size of the model")
_THREADS = flags.DEFINE_integer("threads", 2, "threads of torch; ours takes all cores")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed steps of each")

SMALL = dict(
    fa.models.vit_config("Ti", image_size=32, patch_size=4, channels=3),
    depth=6,
    decoder=dict(width=128, depth=1, heads=4, mlp_dim=512),
)
SIZES = {
    "small": (SMALL, 64),
    "base": (fa.models.mae_config("B", image_size=224, patch_size=16, channels=3), 8),
}


def ours(arch, images):
    """Our step on these images."""
    rows = np.arange(len(images), dtype=np.int32)
    batch = {
        "image": images,
        "position": rows,
        "weight": np.ones(len(rows), np.float32),
    }
    sections = (fa.defaults.reconstruct(), fa.defaults.pretrain_optim())
    return in_turns.our_step(arch, "mae", *sections, batch)


def theirs(arch, images):
    """The same step with transformers and torch."""
    decoder = arch["decoder"]
    config = ViTMAEConfig(
        image_size=arch["image_size"],
        patch_size=arch["patch_size"],
        hidden_size=arch["width"],
        num_hidden_layers=arch["depth"],
        num_attention_heads=arch["heads"],
        intermediate_size=arch["mlp_dim"],
        decoder_hidden_size=decoder["width"],
        decoder_num_hidden_layers=decoder["depth"],
        decoder_num_attention_heads=decoder["heads"],
        decoder_intermediate_size=decoder["mlp_dim"],
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, betas=(0.9, 0.95))
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def step():
        optimizer.zero_grad()
        model(pixel_values=pixels).loss.backward()
        optimizer.step()

    return step


def main(_):
    torch.set_num_threads(_THREADS.value)
    arch, batch_size = SIZES[_SIZE.value]
    shape = (batch_size, arch["image_size"], arch["image_size"], arch["channels"])
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    steps = {"ours": ours(arch, images), "transformers": theirs(arch, images)}
    median = in_turns.median_seconds(steps, _ROUNDS.value)
    ratio = median["transformers"] / median["ours"]
    print(json.dumps(dict(size=_SIZE.value, batch=batch_size, **median, ratio=ratio)))


if __name__ == "__main__":
    app.run(main)
