"""Seconds of one MAE training step: ours beside transformers in torch, same CPU, one run.

Run     pip install '.[parity]' && python benchmarks/mae_step.py [--size=small] [--threads=2]
Prints  one JSON line: the median seconds of a step (forward, backward, AdamW; float32) of
        each, in turns, and their ratio. Sizes: small (6/192, 32 px, batch 64), base
        (ViT-B/16 with its decoder, batch 8).
"""

import json
import statistics
import time

import jax
import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict
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
    """Returns a function that runs one step and waits for it."""
    model = fa.models.build(
        arch,
        "mae",
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )
    params = fa.models.init_params(model, jax.random.key(0))
    mesh = fa.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    tx = fa.optim.build(ConfigDict(fa.defaults.pretrain_optim()), 1_000, params)
    loss_fn = fa.objectives.build(ConfigDict(fa.defaults.reconstruct()), model)
    train_step = fa.make_train_step(loss_fn, tx, mesh)
    rows = np.arange(len(images), dtype=np.int32)
    batch = {
        "image": images,
        "position": rows,
        "weight": np.ones(len(rows), np.float32),
    }
    placed = fa.put_batch(batch, mesh)
    state = fa.create_state(params, tx, mesh, seed=0)

    def step():
        nonlocal state
        state, metrics = train_step(state, placed)
        jax.block_until_ready((state, metrics))

    return step


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
    seconds = {name: [] for name in steps}
    for step in steps.values():  # compile, warm up
        step()
        step()
    for _round in range(_ROUNDS.value):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = median["transformers"] / median["ours"]
    print(json.dumps(dict(size=_SIZE.value, batch=batch_size, **median, ratio=ratio)))


if __name__ == "__main__":
    app.run(main)
