"""Does another width of the last block transfer better, and is it the width that does it?

Run     python benchmarks/resize_last_block.py --data=DATA --workdir=DIR [--relu]
        DATA holds TFDS sets in array_record: cifar10_jpeg, neu_det, dtd10. Stopped, the
        same command goes on. Writes --plot too (needs matplotlib, as in the extra
        `benchmarks`).
Prints  for self-supervised continuation (MAE) and for supervised training on CIFAR-10, of
        each width, beside the model as it is and random features of the frozen one: the
        linear probe on the source's test set, on steel and on textures, the gap to a
        probe with a hidden layer, the share of zeros, and the probe of h != 0; mean and
        standard deviation over the seeds. Then verdicts of the probes against the initial
        model, over draws of labels (--draws).
Source  Bordes et al. 2023 for the question; model, data and settings are ours.
"""

import statistics
from pathlib import Path

import jax
import tables
from absl import app, flags

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import verdicts

HERE = Path(__file__).parent
WIDTH = 192  # of the model
WIDTHS = (WIDTH // 4, WIDTH // 2, WIDTH, 4 * WIDTH, 16 * WIDTH)
SETS = ("cifar10_jpeg", "neu_det", "dtd10")
OBJECTIVES = {"mae": "self-supervised (MAE)", "classify": "supervised"}
OF_EACH = ("probe", "mlp_gap", "zeros", "binarised")

_DATA = flags.DEFINE_string("data", None, "folder of the TFDS sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "weights")
_STEPS = flags.DEFINE_integer("steps", 200, "optimizer steps of a run")
_SEEDS = flags.DEFINE_integer("seeds", 3, "runs of a width")
_DRAWS = flags.DEFINE_integer("draws", 3, "draws of labels of a probe")
_RELU = flags.DEFINE_bool("relu", False, "a ReLU before the pooling")
_PLOT = flags.DEFINE_string("plot", "", "the .png to write; '': none")


def experiment(objective):
    """All widths and the controls from the same weights, as one config."""
    arguments = dict(
        dataset=f"tfds:{SETS[0]}",
        init=_INIT.value,
        data_dir=_DATA.value,
        probe_on="+".join(f"tfds:{name}" for name in SETS[1:]),
        per_class=80,
        width="+".join(map(str, WIDTHS)),
        variant="same+resized+random",
        relu=_RELU.value,
        objective=objective,
        hidden=512,
        seeds=_SEEDS.value,
        steps=_STEPS.value,
        batch_size=64,
        lr=5e-4,
    )
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    config = configs.load(f"resize_last_block:{text}")
    config.evaluate.test.split = "test[:2000]"
    config.evaluate.batch_size = 200
    config.evaluate.wide.mlp_max_iterations = 50
    with config.unlocked():
        for section in (config.evaluate, *config.more_evaluations):
            section.test.views, section.draws, section.shots = (), _DRAWS.value, ()
        for section in config.more_evaluations:
            section.wide = None
    return config


def summarise(rows):
    """One row a stage: `mean (std)` over seeds of the probe of each set, and the rest of
    the first one.
    """
    names = list(dict.fromkeys(row["stage"].split("/")[0] for row in rows))
    table = []
    for name in names:
        cells = {"stage": name}
        for data in SETS:
            same = [
                row
                for row in rows
                if row["stage"].split("/")[0] == name and row["data"] == f"tfds:{data}"
            ]
            columns = OF_EACH if data == SETS[0] else OF_EACH[:1]
            cells |= {f"{data} {column}": _spread(same, column) for column in columns}
        table.append(cells)
    return table


def judge(rows, entries):
    """One row a stage: the verdicts of its runs on the probe of each set."""
    names = list(dict.fromkeys(row["stage"].split("/")[0] for row in rows))
    return [
        {
            "stage": name,
            **{
                f"{data} probe": ", ".join(
                    tables.describe_joined(one["metrics"]["probe"])
                    for one in entries
                    if (one["stage"], one["data"]) == (name, f"tfds:{data}")
                    and one["domain"] == verdicts.TARGET
                )
                for data in SETS
            },
        }
        for name in names[1:]
    ]


def _spread(rows, column):
    return tables.spread([row[column] for row in rows])


def plot(measured, path):
    """The probe on each set by width; a line for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(measured), len(SETS), figsize=(11, 3 * len(measured)), squeeze=False
    )
    for row, (objective, rows) in zip(axes, measured.items(), strict=True):
        for axis, data in zip(row, SETS, strict=True):
            _lines(axis, [one for one in rows if one["data"] == f"tfds:{data}"])
            axis.set_title(f"{OBJECTIVES[objective]}: {data}", fontsize=9)
            axis.set_xscale("log", base=2)
            axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axis.set_xlabel("features D")
            axis.set_ylabel("linear probe, accuracy")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _lines(axis, rows):
    for variant in ("resized", "random"):
        means, spreads = [], []
        for width in WIDTHS:
            values = [
                row["probe"]
                for row in rows
                if row["stage"].split("/")[0] == f"{variant}_{width}"
            ]
            means.append(statistics.fmean(values))
            spreads.append(statistics.stdev(values) if len(values) > 1 else 0.0)
        axis.errorbar(WIDTHS, means, spreads, marker="o", capsize=2, label=variant)
    for name, style in (("pretrained", ":"), ("same", "--")):
        same = [row["probe"] for row in rows if row["stage"].split("/")[0] == name]
        axis.axhline(statistics.fmean(same), linestyle=style, color="grey", label=name)


def main(_):
    jax.config.update("jax_default_matmul_precision", "highest")
    measured = {}
    for objective, title in OBJECTIVES.items():
        config = experiment(objective)
        relu = "relu" if _RELU.value else "plain"
        workdir = Path(_WORKDIR.value, relu, objective)
        recipe.run(config, workdir, force=False)
        measured[objective] = measure.evaluate(config, workdir)
        found = summarise(measured[objective])
        said = judge(measured[objective], verdicts.read(workdir))
        print(f"\n{title}, {_STEPS.value} steps, relu={_RELU.value}")
        for table in (found, said):
            print(f"\n{logs.format_table(table, tuple(table[0]))}", flush=True)
    if _PLOT.value:
        plot(measured, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
