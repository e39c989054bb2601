"""Memory of a host that loads and exports a large ViT, sharded over processes of one machine.

    python benchmarks/host_memory.py [--size=huge] [--processes=2] [--devices=4]

Writes a Hugging Face folder of random weights, then starts processes that load it as the
initial weights of a stage, fully sharded ("fsdp"), and export it again. Prints the largest
resident memory (ru_maxrss) of each process after both, next to the file's size. On fake CPU
devices it contains the shards, which an accelerator would hold in memory of its own.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
# Name -> what differs from the published ViT-H.
SIZES = {"tiny": dict(width=64, depth=2, heads=2, mlp_dim=128), "huge": {}}
PATCH, PIXELS = 14, 224
GIGABYTE = 1e9


def write_weights(folder, size):
    """Writes random weights, tensor by tensor, by the writer of exports."""
    import jax
    import numpy as np

    from flax_adapt import models, weights
    from flax_adapt.weights import loading
    from flax_adapt.weights.names.translate import LazyLeaf

    config = models.vit_config("H", image_size=PIXELS, patch_size=PATCH, channels=3)
    config |= SIZES[size]
    model = loading.plain_model(config, "encoder", "cls", 0)

    def leaf(shape):
        draw = np.random.default_rng(0)
        return LazyLeaf(shape.shape, lambda: draw.random(shape.shape, np.float32) - 0.5)

    params = jax.tree.map(leaf, weights.shapes(model))
    nothing = dict(preprocessor=None, tokenizer=None, class_names=None)
    weights.save(folder, config, params, "encoder", pooling="cls", **nothing)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE


def work(options):
    """Loads and exports in this process, one of several."""
    import jax

    jax.distributed.initialize(options.coordinator, options.processes, options.number)
    from flax_adapt.base import config as configs
    from flax_adapt.experiment import recipe
    from flax_adapt.stage import stage as stages
    from flax_adapt.stage import weights as stage_weights
    from flax_adapt.train import sharding

    print(f"process {options.number}: {peak():.2f} GB before", flush=True)
    init = options.folder / "weights"
    config = configs.load(f"vit_finetune:dataset=builtin:digits,init={init}")
    stage = recipe.stage_runs(config, options.folder)[0]
    mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1))
    model = stages.build_model(stage, 10)
    examples = SimpleNamespace(class_names=[str(number) for number in range(10)])
    with contextlib.ExitStack() as files:
        params, _, _ = stage_weights.warm_start(stage, model, examples, mesh, files)
        params = sharding.put(params, mesh)
    jax.block_until_ready(params)
    print(f"process {options.number}: {peak():.2f} GB after loading", flush=True)
    stage_weights.export(stage, model, params, examples)
    print(f"process {options.number}: {peak():.2f} GB after the export", flush=True)


def start(options, number):
    flags = [f"--size={options.size}", f"--processes={options.processes}"]
    flags += [f"--number={number}", f"--coordinator={options.coordinator}"]
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    return subprocess.Popen(
        [sys.executable, __file__, *flags, f"--folder={options.folder}"],
        env={**os.environ, **settings},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="huge")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--number", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="for the files; default: a new one")
    parser.add_argument("--coordinator", default="127.0.0.1:12355")
    options = parser.parse_args()
    if options.number is not None:
        work(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or Path(folder)
        write_weights(options.folder / "weights", options.size)
        file = options.folder / "weights" / "model.safetensors"
        size = file.stat().st_size / GIGABYTE
        print(
            f"file: {size:.2f} GB; 0.7 of it + 1 GB: {0.7 * size + 1:.2f}", flush=True
        )
        started = [start(options, number) for number in range(options.processes)]
        return max(abs(one.wait()) for one in started)


if __name__ == "__main__":
    sys.exit(main())
