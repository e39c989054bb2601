"""Does `flax-adapt adapt` keep its budget on real sets, and does `predict` agree with it?

Run     python benchmarks/adapt_real.py --data=DATA --workdir=DIR --init_texts=BERT \\
            [--budget=10m] [--sets=sign_digits,neu_det,scicite] [--out=FILE.md]
        DATA holds folders/sign_digits, tfds/neu_det and text/scicite. The sets are written
        as a user has them: images with a csv whose columns are photo, kind and part; texts
        in pool.csv, labelled.csv and test.csv with the columns passage and intent. BERT is a
        folder of weights with its tokenizer.
Prints  for each set the seconds and the budget, the stage that is handed over with its
        result on the test set, the same of the predictions of `predict`, and the
        verdict against a linear probe of the initial features. Writes it to FILE.md
        (results/adapt.md), with the machine.
Source  ours.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import machines
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from flax_adapt import defaults, weights
from flax_adapt.base import logs
from flax_adapt.commands import values
from flax_adapt.data import source

HERE = Path(__file__).parent
IMAGES, TEXTS = ("sign_digits", "neu_det"), ("scicite",)
# Labels of a class; all other training examples are the pool without labels.
LABELS = {"sign_digits": 60, "neu_det": 20, "scicite": 200}
PHOTO, KIND, PART = "photo", "kind", "part"
PASSAGE, INTENT = "passage", "intent"
NOTES = """`seconds` are those of the whole command, its start included. `report` is the test
result of the model that is handed over, by `metric`, and `against the probe` its verdict
against a linear probe of the initial features. `accuracy` and `of predict` are of the same
test examples, by the run and by `predict`; `other guesses` counts those where they differ."""

_DATA = flags.DEFINE_string("data", None, "folder of the sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_INIT = flags.DEFINE_string("init", str(HERE / "weights/small_cifar10"), "of images")
_INIT_TEXTS = flags.DEFINE_string("init_texts", "", "weights of a BERT")
_BUDGET = flags.DEFINE_string("budget", "10m", "as of adapt, a time")
_SETS = flags.DEFINE_list("sets", [*IMAGES, *TEXTS], "which of the sets")
_OUT = flags.DEFINE_string("out", str(HERE / "results/adapt.md"), "the page to write")


def divide(labels, count):
    """The part of each training example: `count` of a class are labelled."""
    parts = np.full(len(labels), "pool", object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        parts[np.random.default_rng(0).permutation(rows)[:count]] = "labelled"
    return parts


def write_images(name, folder):
    """Image files and a csv; returns the source."""
    where = {
        "sign_digits": f"folder:{_DATA.value}/folders/sign_digits",
        "neu_det": "tfds:neu_det",
    }
    known = dict(data_dir=f"{_DATA.value}/tfds") if name == "neu_det" else {}
    rows = []
    for split in ("train", "test"):
        section = defaults.image_data(where[name], split, **known)
        found = source.open_source(ConfigDict(section))
        parts = np.full(len(found), "test", object)
        if split == "train":
            parts = divide(found.labels, LABELS[name])
        for number, part in enumerate(parts):
            item, label = found.read(number)
            file = f"photos/{split}_{number:05}.{_ending(item)}"
            _write(folder / file, item)
            kind = found.class_names[int(label)]
            rows.append({PHOTO: file, KIND: kind, PART: part})
    _write_rows(folder / f"{name}.csv", rows)
    return f"csv:{folder / name}.csv"


def _ending(item):
    return "png" if isinstance(item, bytes) and item[:4] == b"\x89PNG" else "jpg"


def _write(file, item):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(item if isinstance(item, bytes) else item.read_bytes())


def write_texts(name, folder):
    """A csv for each part, with columns of other names; returns the source."""
    for split in ("train", "test"):
        lines = Path(_DATA.value, "text", name, f"{split}.jsonl").read_text("utf-8")
        read = [json.loads(line) for line in lines.splitlines()]
        kinds = np.array([row["label"] for row in read])
        parts = np.full(len(read), "test", object)
        if split == "train":
            parts = divide(kinds, LABELS[name])
        for part in sorted(set(parts)):
            chosen = [
                {PASSAGE: row["text"], INTENT: row["label"]}
                for row, its in zip(read, parts, strict=True)
                if its == part
            ]
            _write_rows(folder / f"{part}.csv", chosen)
    return f"csv:{folder}"


def _write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(*line):
    """Runs a command of flax-adapt as a user does; returns its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "flax_adapt", *line]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - begun


def measure(name):
    """Adapts and predicts one set; returns its row."""
    root = Path(_WORKDIR.value, name)
    folder, workdir, out = root / "data", root / "run", root / "predicted.csv"
    for old in (folder, workdir):  # a budget is measured from its beginning
        shutil.rmtree(old, ignore_errors=True)
    if name in IMAGES:
        where, init = write_images(name, folder), _INIT.value
        columns = [f"--image_field={PHOTO}", f"--split_field={PART}"]
        more = [f"--label_field={KIND}"]
    else:
        where, init = write_texts(name, folder), _INIT_TEXTS.value
        columns = ["--seq_len=64"]
        more = [f"--label_field={INTENT}", f"--text_field={PASSAGE}"]
    parts = (f"--{flag}={where}@{part}" for flag, part in (
        ("unlabelled", "pool"), ("labelled", "labelled"), ("test", "test")))  # fmt: skip
    seconds = run(
        *("adapt", f"--init={init}", f"--budget={_BUDGET.value}", *parts),
        *(*columns, *more, f"--workdir={workdir}"),
    )
    if name in TEXTS:
        columns.append(f"--text_fields={PASSAGE}")
    run(
        *("predict", f"--init={workdir / 'export'}", f"--data={where}", "--split=test"),
        *(f"--out={out}", *columns),
    )
    return {"set": name, "seconds": round(seconds), **compare(workdir, out)}


def compare(workdir, out):
    """The result of the report beside that of the predictions of the same examples."""
    record = json.loads((workdir / "handed_over.json").read_text("utf-8"))
    rows = json.loads((workdir / "results.json").read_text("utf-8"))
    row = next(row for row in rows if row["stage"] == record["stage"])
    probe = next(row for row in rows if row["stage"] == "probe_start")
    with open(out, newline="", encoding="utf-8") as file:
        predicted = [one["predicted"] for one in csv.DictReader(file)]
    stored = np.load(workdir / "stages" / row["stage"] / "predictions.npz")
    names = json.loads((workdir / "export/config.json").read_text("utf-8"))["id2label"]
    guesses = [names[str(int(guess))] for guess in stored["guesses"]]
    labels = [names[str(int(label))] for label in stored["labels"]]
    right = np.mean(np.array(predicted) == np.array(labels))
    of_report = np.mean(stored["guesses"] == stored["labels"])
    judged = [v for v in row.get("verdicts", ()) if v["against"] == "probe_start"]
    return {
        "handed over": row["stage"],
        "metric": row["metric"],
        "report": row["mean"],
        "probe of init": probe["mean"],
        "against the probe": _say(judged),
        "accuracy": float(of_report),
        "of predict": float(right),
        "other guesses": int(np.sum(np.array(predicted) != np.array(guesses))),
    }


def _say(judged):
    if not judged:
        return "it is the probe"
    (one,) = judged
    return f"{one['word']} ({one['low']:+.3f} to {one['high']:+.3f})"


def describe_weights():
    """Kind and size of the weights of each modality that is measured."""
    found = {}
    for names, init in ((IMAGES, _INIT.value), (TEXTS, _INIT_TEXTS.value)):
        if set(names) & set(_SETS.value):
            model = weights.model_config(Path(init))
            size = f"{model['kind']}, {model['depth']} blocks of width {model['width']}"
            found[", ".join(names)] = size
    return "; ".join(f"{names}: {size}" for names, size in found.items())


def main(_):
    parsed = values.parse_budget(_BUDGET.value)
    unit = {"s": 1, "m": 60, "h": 3600}.get(parsed.get("unit"))
    rows = []
    for name in _SETS.value:
        row = measure(name)
        if unit is not None:
            share = row["seconds"] / (float(parsed["time"]) * unit)
            row["of the budget"] = f"{share:.0%}"
        rows.append(row)
        print(logs.format_table(rows, tuple(rows[0])), flush=True)
    table = logs.format_table(rows, tuple(rows[0]))
    body = "\n".join(f"    {line}" for line in table.splitlines())
    line = "python benchmarks/adapt_real.py --data=DATA --workdir=DIR --init_texts=BERT"
    page = f"""# One command on own data: budget, verdict, prediction

`{line} --budget={_BUDGET.value}`

{time.strftime("%Y-%m-%d")}, {machines.describe()}. Weights: {describe_weights()}.

{body}

{NOTES} Labels of a class: {LABELS}; all other training examples are the pool.
"""
    Path(_OUT.value).write_text(page, "utf-8")


if __name__ == "__main__":
    app.run(main)
