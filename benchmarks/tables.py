"""Tables of measured and of fine-tuned models: a row for each method, its seeds together."""

import statistics

from flax_adapt.base import logs
from flax_adapt.evals import verdict
from flax_adapt.stage import predictions

# Domain and metric of the verdicts that a table shows, where there are any.
VERDICTS = (("target", "knn"), ("target", "probe"), ("source", "probe"))


def drop_shots(config):
    """The same config without few-shot accuracies."""
    config.evaluate.shots = ()
    return config


def show(rows, entries):
    """Prints the numbers and the verdicts, a row for each method: its runs together.

    rows: of `measure.evaluate`. entries: of `verdicts.read`. Runs are labelled NAME or
    NAME/seed_N. Numbers are `mean (std)` over the runs; the verdicts compare with the
    initial model.
    """
    names = list(dict.fromkeys(_method(row) for row in rows))
    numbers = [
        {"method": name, **summarise([row for row in rows if _method(row) == name])}
        for name in names
    ]
    words = [
        {"method": name, **judge([one for one in entries if _method(one) == name])}
        for name in names[1:]
    ]
    for table in (numbers, words):
        print(f"\n{logs.format_table(table, tuple(table[0]))}", flush=True)


def summarise(rows):
    """{column: `mean (std)`} of the runs of one method."""
    columns = [name for name in rows[0] if name not in ("stage", "data")]
    return {column: spread([row[column] for row in rows]) for column in columns}


def _method(row):
    return row["stage"].split("/")[0]


def spread(values):
    """`mean (standard deviation)`, or the one value."""
    deviation = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def judge(entries):
    """{column: the verdict on a method, and on each of its runs alone}."""
    return {
        f"{domain} {metric}": ", ".join(
            describe_joined(one["metrics"][metric])
            for one in entries
            if one["domain"] == domain
        )
        for domain, metric in VERDICTS
    }


def describe_joined(found):
    """`helped (+0.01 to +0.05); runs: 2 helped, 1 no`: all runs together, and each alone."""
    runs = {word.split()[0]: count for word, count in found.get("runs", {}).items()}
    said = ", ".join(f"{count} {word}" for word, count in runs.items())
    text = verdict.short(found).replace(" evidence either way", "")
    return f"{text}; runs: {said}" if said else text


def compare_stages(first, second):
    """`helped (+0.010 to +0.050)`: a fine-tuned stage compared with another, by accuracy.

    first, second: their folders, with runs of the same seeds, tested on the same examples.
    """
    arms = [_read_arm(folder) for folder in (first, second)]
    return verdict.short(verdict.compare(*arms, "accuracy"))


def _read_arm(folder):
    runs = {int(one.name.removeprefix("seed_")): one for one in folder.glob("seed_*")}
    runs = runs or {0: folder}
    return {seed: predictions.read(runs[seed]) for seed in sorted(runs)}
