"""Does a sequence of domains, learned without labels, make a better or a worse start?

Run     python benchmarks/continual.py --data=DATA --workdir=DIR [--plot=FILE.png]
        DATA holds TFDS sets in array_record: pacs_photo, pacs_art_painting, pacs_cartoon,
        pacs_sketch. Stopped, the same command goes on. --plot needs matplotlib.
        --objective=classify | grow | glad: the same with labels; --method: what it does
        against forgetting. Shorter: --seeds=1, or --nofinetune: probe and kNN alone.
Prints  the transfer matrices: after each domain, for joint training and for the initial
        model, the accuracy on every domain, seen or not, fine-tuned (mean of the seeds),
        by a linear probe and by kNN, from few labels; averages, forgetting, backward and
        forward transfer; CKA and distance of the weights to the start.
Source  Yoon et al. 2023 for the question; model, data and settings are ours.
"""

from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.experiment import measure, recipe, transfer

HERE = Path(__file__).parent
DOMAINS = ("pacs_photo", "pacs_art_painting", "pacs_cartoon", "pacs_sketch")

_DATA = flags.DEFINE_string("data", None, "folder of the TFDS sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "weights")
_OBJECTIVE = flags.DEFINE_enum(
    "objective", "mae", ("mae", "classify", "grow", "glad"), "how a domain is learned"
)
_STEPS = flags.DEFINE_integer("steps", 150, "optimizer steps on a domain")
_METHOD = flags.DEFINE_string("method", "none", "of continual_pretrain")
_FINETUNE = flags.DEFINE_boolean("finetune", True, "fine-tune every cell")
_SEEDS = flags.DEFINE_integer("seeds", 3, "fine-tuning runs of a cell")
_PLOT = flags.DEFINE_string("plot", "", "the .png to write; '': none")


def experiment():
    arguments = dict(
        domains="+".join(f"tfds:{name}" for name in DOMAINS),
        init=_INIT.value,
        data_dir=_DATA.value,
        objective=_OBJECTIVE.value,
        method=_METHOD.value,
        finetune=_FINETUNE.value,
        steps=_STEPS.value,
        batch_size=64,
        lr=5e-4,
        per_class=20,
        finetune_steps=60,
        finetune_lr=1e-3,
        seeds=_SEEDS.value,
    )
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return configs.load(f"continual_pretrain:{text}")


def plot(whole, path):
    """A heat map for each matrix, and its rows' means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(whole), figsize=(4.2 * len(whole), 4))
    for axis, (name, found) in zip(axes, whole.items(), strict=True):
        matrix = np.array(found["matrix"])
        axis.imshow(matrix, cmap="viridis", aspect="auto")
        axis.set_xticks(range(matrix.shape[1]), found["columns"], rotation=30)
        axis.set_yticks(range(len(matrix)), found["rows"], fontsize=7)
        for (row, column), value in np.ndenumerate(matrix):
            dark = value < (matrix.min() + matrix.max()) / 2
            color = "white" if dark else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", color=color)
        average = found["figures"]["average_learnt"]
        axis.set_title(f"{name}\naverage of learnt domains {average:.3f}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(_):
    jax.config.update("jax_default_matmul_precision", "highest")
    config = experiment()
    name = f"{_OBJECTIVE.value}_{_METHOD.value}".removesuffix("_none")
    workdir = Path(_WORKDIR.value, name)
    rows = recipe.run(config, workdir, force=False)
    measured = measure.evaluate(config, workdir)
    whole = transfer.report(config, workdir, measured)
    print(f"\n{name}, {_STEPS.value} steps on a domain\n")
    print(recipe.table(rows))
    print(f"\n{transfer.format_text(whole)}\n")
    moved = [{k: row[k] for k in ("stage", "data", "cka_start", "weight_distance")}
             for row in measured]  # fmt: skip
    print(logs.format_table(moved, tuple(moved[0])))
    if _PLOT.value:
        plot(whole, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
