"""Does unsupervised fine-tuning help a small far target, and what does replay save?

Run     python benchmarks/unsup_finetune.py --data=DATA --workdir=DIR [--steps=60] [--seeds=3]
        DATA holds TFDS sets in array_record: cifar10_jpeg, pacs_sketch, neu_det. Stopped,
        the same command goes on.
Prints  for each target (300 unlabelled images) a table: the initial model and each method
        by mean and standard deviation over the seeds, of kNN and a linear probe from 10
        labels a class (five draws) with the verdicts, and of every measure of drift.
Source  the grid of METHODS is ours: Li et al. 2021 does not say its losses and ratios.
"""

from pathlib import Path

import jax
import tables
from absl import app, flags

from flax_adapt.base import config as configs
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import verdicts

HERE = Path(__file__).parent
TARGETS = {"pacs_sketch": "train[:300]", "neu_det": "train[:300]"}
METHODS = ("naive", "replay", "mixing", "both")

_DATA = flags.DEFINE_string("data", None, "folder of the TFDS sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "weights")
_OBJECTIVE = flags.DEFINE_enum("objective", "contrast", ("contrast", "mae"), "loss")
_STEPS = flags.DEFINE_integer("steps", 60, "optimizer steps of a run")
_SEEDS = flags.DEFINE_integer("seeds", 3, "runs of a method")
_LR = flags.DEFINE_float("lr", 5e-4, "learning rate")


def experiment(target):
    """All methods from the same weights, as one config."""
    arguments = dict(
        dataset=f"tfds:{target}",
        source="tfds:cifar10_jpeg",
        init=_INIT.value,
        data_dir=_DATA.value,
        split=TARGETS[target],
        drift_split="test[:500]",
        method="+".join(METHODS),
        objective=_OBJECTIVE.value,
        hidden=512,
        min_crop_area=0.2,
        seeds=_SEEDS.value,
        steps=_STEPS.value,
        batch_size=60,
        lr=_LR.value,
    )
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return tables.drop_shots(configs.load(f"unsup_finetune:{text}"))


def main(_):
    jax.config.update("jax_default_matmul_precision", "highest")
    for target in TARGETS:
        config = experiment(target)
        workdir = Path(_WORKDIR.value, _OBJECTIVE.value, target)
        recipe.run(config, workdir, force=False)
        measured = measure.evaluate(config, workdir)
        print(f"\n{target}, {_OBJECTIVE.value}, {_STEPS.value} steps")
        tables.show(measured, verdicts.read(workdir))


if __name__ == "__main__":
    app.run(main)
