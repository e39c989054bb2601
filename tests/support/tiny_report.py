"""A workdir as `run` leaves it, without any training: results and predictions are made up."""

import json

import numpy as np
from support import tiny

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.experiment import recipe, verdicts
from flax_adapt.stage import predictions

SEEDS = (0, 1, 2)
CLASSES = ("cat", "<script>alert(1)</script>", "a & b $x$")
EXAMPLES = 60


def experiment(**changes):
    """Two arms: fine-tuned from `pretrain`, and from `further`, which goes on from it."""
    stages = (
        tiny.pretrain(),
        tiny.finetune("base", seeds=SEEDS),
        tiny.pretrain("further", init_from="stage:pretrain"),
        tiny.finetune("arm", init_from="stage:further", seeds=SEEDS),
    )
    return tiny.experiment(*stages, **changes)


def guesses(stage, seed, share, examples=EXAMPLES):
    """Predictions of which a share is right; those that are wrong differ by seed."""
    rng = np.random.default_rng([seed, len(stage)])
    labels = np.arange(examples, dtype=np.int32) % len(CLASSES)
    wrong = rng.random(examples) > share
    found = np.where(wrong, (labels + 1) % len(CLASSES), labels).astype(np.int32)
    losses = np.where(wrong, 2.0, 0.2) + 0.1 * rng.random(examples)
    names = np.array([f"image_{i:03}.png" for i in range(examples)])
    return predictions.Predictions(names, labels, found, losses.astype(np.float32))


def result(stage, seed, metric, value):
    mode = "max" if metric == "accuracy" else "min"
    evaluated = {metric: value, "loss": 0.5} if metric == "accuracy" else {}
    return dict(
        **dict(stage=stage, seed=seed, metric=metric, value=value, mode=mode),
        **dict(seconds=1.5, train={"loss": 0.5}, eval=evaluated),
        **dict(eval_data="builtin:digits train" if evaluated else ""),
    )


def write(workdir, shares=None, config=None):
    """Writes the workdir; shares: of the test examples that each arm has right."""
    shares = shares or {"base": 0.6, "arm": 0.95}
    config = config or experiment()
    logs.write_json(workdir / "config.json", configs.plain(config))
    results, lines = [], []
    for stage in recipe.stage_runs(config, workdir):
        name, seed, folder = stage.config.name, stage.run_seed, stage.folder
        data = dict(rows=EXAMPLES, class_names=CLASSES, names="ab12", contents="cd34")
        logs.write_json(folder / "data.json", data)
        metric, value = "loss", 0.5
        if name in shares:
            found = guesses(name, seed, shares[name])
            predictions.write(folder, found)
            logs.write_json(folder / "eval_data.json", data)
            metric, value = "accuracy", float(np.mean(found.labels == found.guesses))
        results.append(result(name, seed, metric, value))
        for step in (1, 2, 3):
            line = dict(stage=stage.label, step=step, loss=1.0 / step, lr=0.1 * step)
            lines.append(json.dumps(line | dict(examples_per_second=100.0)))
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rows = recipe.summarize(config, results, workdir)
    rows = verdicts.add(config, rows, results, workdir)
    logs.write_json(workdir / "results.json", rows)
    return config
