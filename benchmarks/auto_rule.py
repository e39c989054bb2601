"""How many passes over a small set should training without labels take?

Run     python benchmarks/auto_rule.py --data=DATA --workdir=DIR [--sets=neu_det] \\
            [--sizes=100,400] [--passes=10,50,250] [--out=FILE.md]
        DATA holds folders/sign_digits, tfds/neu_det and tfds/pacs_sketch. Stopped, the same
        command goes on.
Prints  for each set, size and number of passes of further masked pre-training: kNN and a
        linear probe from 10 labels a class, five draws, and the verdict on the probe
        against the initial weights. Writes it to FILE.md (results/auto_rule.md).
Source  ours: the rule `auto` of the config adapt (`defaults.adapting.sizes`).
"""

import time
from pathlib import Path

import jax
import machines
from absl import app, flags
from ml_collections import ConfigDict

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.data import source as sources
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import verdicts

HERE = Path(__file__).parent
WHERE = {
    "sign_digits": "folder:{data}/folders/sign_digits",
    "neu_det": "tfds:neu_det",
    "pacs_sketch": "tfds:pacs_sketch",
}

_DATA = flags.DEFINE_string("data", None, "folder of the sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "weights")
_SETS = flags.DEFINE_list("sets", [*WHERE], "which of the sets")
_SIZES = flags.DEFINE_list("sizes", ["100", "400"], "images without labels")
_PASSES = flags.DEFINE_list("passes", ["10", "50", "250"], "passes over them")
_OUT = flags.DEFINE_string("out", str(HERE / "results/auto_rule.md"), "the page")


def experiment(name):
    """A stage for each size and number of passes; all else is as `adapt` has it."""
    where, folder = WHERE[name].format(data=_DATA.value), f"{_DATA.value}/tfds"
    fields = f"init={_INIT.value},unlabelled={where}@train,method=further"
    config = ConfigDict(configs.load(f"adapt:{fields},data_dir={folder}"))
    (whole,) = config.stages
    total = len(sources.open_source(whole.data))
    config.stages = tuple(
        make_stage(whole, int(count), int(passes), total)
        for count in _SIZES.value
        for passes in _PASSES.value
    )
    few = ConfigDict({**whole.data, "subset": defaults.few(10, "each_seed")})
    test = ConfigDict({**whole.data, "split": "test"})
    config.evaluate = defaults.evaluate(few, test, shots=())
    return configs.build(config)


def make_stage(whole, count, passes, total):
    """Further pre-training on the same `count` of `total` images for a number of passes."""
    subset = {**defaults.ALL, "fraction": count / total}
    return {
        **whole,
        "name": f"{count}_{passes}",
        "num_steps": max(1, passes * count // whole.batch_size),
        "data": {**whole.data, "subset": subset},
    }


def list_rows(name):
    """Trains and measures one set; returns its rows."""
    config, workdir = experiment(name), Path(_WORKDIR.value, name)
    recipe.run(config, workdir, force=False)
    steps = {one.name: one.num_steps for one in config.stages}
    measured = measure.evaluate(config, workdir)
    judged = {one["stage"]: one["metrics"]["probe"] for one in verdicts.read(workdir)}
    return [describe(name, row, steps, judged) for row in measured]


def describe(name, row, steps, judged):
    """A row of the table."""
    stage = row["stage"]
    images, _, passes = stage.partition("_") if stage in steps else ("", "", "0")
    cells = dict(images=images, passes=passes, steps=steps.get(stage, 0))
    cells |= dict(knn=row["knn"], probe=row["probe"], verdict="")
    if stage in judged:
        found = judged[stage]
        interval = f"({found['low']:+.3f} to {found['high']:+.3f})"
        cells["verdict"] = f"{found['word']} {interval}"
    return {"set": name, **cells}


def main(_):
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = [row for name in _SETS.value for row in list_rows(name)]
    table = logs.format_table(rows, tuple(rows[0]))
    print(table)
    body = "\n".join(f"    {line}" for line in table.splitlines())
    page = f"""# How many passes over a small set?

    python benchmarks/auto_rule.py --data=DATA --workdir=DIR

{time.strftime("%Y-%m-%d")}, {machines.describe()}.
Further masked pre-training of the small ViT of first_light.md, as `adapt --method=further` has
it, on some images of three sets. kNN and a linear probe have 10 labels a class (five draws) and
the whole test sets; the verdict is on the probe, against the initial weights.

{body}
"""
    Path(_OUT.value).write_text(page, "utf-8")


if __name__ == "__main__":
    app.run(main)
