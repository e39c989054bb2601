"""What does fine-tuning leave behind for the next task? GLAD beside the usual ways.

Run     python benchmarks/glad.py --data=DATA --workdir=DIR [--plot=FILE.png]
        DATA holds TFDS sets in array_record: pacs_photo, pacs_sketch, neu_det, and
        cifar10_jpeg. Stopped, the same command goes on. --plot needs matplotlib.
        Shorter: --seeds=2 --lrs= (one rate, --lr), or fewer --steps.
Prints  for each way to fine-tune on pacs_photo from few labels (GLAD with its three
        regularizers; full, LP-FT, LoRA, L2-SP; and, after CIFAR-10 was learnt with
        labels, full and EWC) the rate that it chose, its test accuracy, and the accuracy
        of full fine-tuning on pacs_sketch and neu_det from the weights that it left (its
        run of seed 0; adaptors and heads dropped); mean and standard deviation over the
        seeds. Then verdicts: on pacs_photo against full fine-tuning, on the next tasks
        against the start itself, which is "pretrained". Every way has the same augmentation,
        warm-up, batch, steps and rates to choose from (`defaults.supervised`).
Source  Yoon et al. 2023 for the question; model, data and settings are ours.
"""

from pathlib import Path

import jax
import tables
from absl import app, flags
from ml_collections import ConfigDict

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.experiment import recipe, sweep

HERE = Path(__file__).parent
TASK, NEXT = "pacs_photo", ("pacs_sketch", "neu_det")
LEARNT, LEARNT_STEPS = "cifar10_jpeg", 300
REGULARIZERS = ("preserve", "masked", "none")
BASELINES = ("full", "lp_ft", "lora", "l2_sp")
AFTER_LEARNT = ("full", "ewc")

_DATA = flags.DEFINE_string("data", None, "folder of the TFDS sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "weights")
_STEPS = flags.DEFINE_integer("steps", 100, "optimizer steps of a run")
_LR = flags.DEFINE_float("lr", 1e-3, "learning rate of the next tasks")
_LRS = flags.DEFINE_string(
    "lrs", "3e-4+1e-3+3e-3", "rates that every way chooses from; '': lr"
)
_AUGMENT = flags.DEFINE_string("augment", "flip", "none, flip or crop")
_SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each kind")
_PER_CLASS = flags.DEFINE_integer("per_class", 20, "labels of every class")
_PLOT = flags.DEFINE_string("plot", "", "the .png to write; '': none")


def load(name, **arguments):
    common = dict(
        dataset=f"tfds:{TASK}",
        init=_INIT.value,
        data_dir=_DATA.value,
        seeds=_SEEDS.value,
        steps=_STEPS.value,
        lr=_LR.value,
        lrs=_LRS.value,
        augment=_AUGMENT.value,
        per_class=_PER_CLASS.value,
    )
    text = ",".join(f"{key}={value}" for key, value in {**common, **arguments}.items())
    return configs.load(f"{name}:{text}")


def of_glad():
    """GLAD with each regularizer, and what follows; and the start, for comparison."""
    config = load(
        "glad_finetune",
        regularizer="+".join(REGULARIZERS),
        then="+".join(f"tfds:{name}" for name in NEXT),
        then_steps=_STEPS.value,
        then_lr=_LR.value,
    )
    stages = list(config.stages)
    follow = [stage for stage in stages if stage.name.startswith("glad_none_then")]
    more = [changed(stage, "pretrained", "pretrained") for stage in follow]
    return with_stages(config, [*stages, *more]), follow


def changed(stage, method, init_from):
    """The same fine-tuning on a next task, from another start."""
    number = stage.name.rpartition("_")[2]
    fields = {**stage, "name": f"{method}_then_{number}", "init_from": init_from}
    return ConfigDict(fields)


def with_stages(config, stages):
    return ConfigDict({**config, "stages": tuple(stages)}).lock()


def of_baselines(methods, follow, **arguments):
    config = load("baseline_finetune", method="+".join(methods), **arguments)
    more = [
        changed(stage, f"finetune_{method}", f"stage:finetune_{method}{_seed()}")
        for method in methods
        for stage in follow
    ]
    with config.unlocked():
        for stage in config.stages:
            if stage.name == "finetune_previous":  # all of CIFAR-10's labels
                stage.data.subset.per_class, stage.num_steps = 0, LEARNT_STEPS
    return with_stages(config, [*config.stages, *more])


def _seed():
    return "" if _SEEDS.value == 1 else "/seed_0"


def table(prefix, rows, workdir):
    """{way: {TASK or one of NEXT: (`mean (std)`, mean, std, folder), "lr": (chosen, ...)}}."""
    found = {}
    for row in rows:
        name, _, number = row["stage"].partition("_then_")
        if name.endswith(("_head", "_previous")):
            continue
        column = NEXT[int(number) - 1] if number else TASK
        label = f"{prefix}{name.removeprefix('finetune_')}"
        cell = f"{row['mean']:.3f} ({row['std']:.3f})"
        folder = workdir / "stages" / row["stage"]
        found.setdefault(label, {})[column] = (cell, row["mean"], row["std"], folder)
        record = folder / sweep.RECORD
        if record.exists():
            found[label]["lr"] = (f"{logs.read_json(record)['lr']:g}",)
    return found


def judge(found):
    """A row for each way: its verdicts against full fine-tuning, and against the start."""
    against = {TASK: "full", **dict.fromkeys(NEXT, "pretrained")}
    return [
        {
            "way": name,
            **{
                f"{column} against {other}": tables.compare_stages(
                    found[other][column][-1], cells[column][-1]
                )
                if column in cells and name != other
                else ""
                for column, other in against.items()
            },
        }
        for name, cells in found.items()
    ]


def plot(found, path):
    """A bar for each way, on the task itself and on what followed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 1 + len(NEXT), figsize=(12, 4), sharey=True)
    names = list(found)
    for axis, column in zip(axes, (TASK, *NEXT), strict=True):
        cells = [found[name].get(column, ("", 0.0, 0.0)) for name in names]
        means, spreads = ([cell[i] for cell in cells] for i in (1, 2))
        axis.barh(names, means, xerr=spreads)
        axis.set_title(column if column == TASK else f"then {column}", fontsize=10)
        axis.set_xlabel("test accuracy")
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(_):
    jax.config.update("jax_default_matmul_precision", "highest")
    glad, follow = of_glad()
    learnt = dict(previous=f"tfds:{LEARNT}", new_head=True)
    experiments = {
        "glad": ("", glad),
        "baselines": ("", of_baselines(BASELINES, follow)),
        "learnt": (f"after {LEARNT}: ", of_baselines(AFTER_LEARNT, follow, **learnt)),
    }
    found = {}
    for folder, (prefix, config) in experiments.items():
        workdir = Path(_WORKDIR.value, folder)
        found |= table(prefix, recipe.run(config, workdir, force=False), workdir)
    found = {"pretrained": found.pop("pretrained"), **found}
    columns = (*(["lr"] if _LRS.value else []), TASK, *NEXT)
    rows = [{"way": name, **{c: cells.get(c, ("",))[0] for c in columns}}
            for name, cells in found.items()]  # fmt: skip
    print(f"\n{_STEPS.value} steps, {_PER_CLASS.value} labels a class\n")
    for shown in (rows, judge(found)):
        print(f"{logs.format_table(shown, tuple(shown[0]))}\n", flush=True)
    if _PLOT.value:
        plot(found, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
