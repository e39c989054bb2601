"""Whether stages of two workdirs can be compared: tested alike, on the same examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_adapt.evals import verdict
from flax_adapt.report.workdir import Run, read_optional
from flax_adapt.stage.predictions import Predictions

UNTESTED = "the stage was not tested"
# Facts of eval_data.json in which test data may differ -> words. Names of files are relative,
# so that other data may have the same ones.
_FACTS = {
    "rows": "number of examples",
    "names": "names",
    "sizes": "sizes of files",
    "contents": "contents",
    "class_names": "classes",
    "labels": "labels",
}


def find_reason(first: Run, second: Run, row: Mapping[str, Any]) -> str:
    """Returns why a stage of two runs has no verdict; "" where it has one.

    row: of results.json of the second run. Facts that one of the workdirs lacks, which an
    earlier version has left, are not compared.
    """
    name, metric = row["stage"], row["metric"]
    known = {one["stage"]: one["metric"] for one in first.rows}
    if name not in known:
        return "the first workdir has no such stage"
    if second.sections[name].get("eval") is None:
        return UNTESTED
    if known[name] != metric:
        return f"its metric is {metric}, and {known[name]} in the first workdir"
    if metric not in verdict.MEASURES:
        return f"{metric} has no interval"
    before, after = (run.predictions(name) for run in (first, second))
    if not (before and after):
        return "a workdir kept no predictions of all its seeds"
    seeds = verdict.common_seeds(before, after)
    if not seeds:
        return "no seed is common"
    pairs = (_compare_tests(first, second, name, seed) for seed in seeds)
    labelled = (_compare_predictions(before[seed], after[seed]) for seed in seeds)
    few = () if verdict.can_compare(before, after) else (verdict.TOO_FEW,)
    return next(filter(None, (*pairs, *labelled, *few)), "")


def _compare_tests(first: Run, second: Run, name: str, seed: int) -> str:
    """Returns in what the test data of a stage's runs with this seed differ."""
    one, other = (_read_facts(run, name, seed) for run in (first, second))
    unlike = [
        words
        for fact, words in _FACTS.items()
        if fact in one and fact in other and one[fact] != other[fact]
    ]
    return f"the test data differ ({', '.join(unlike)})" if unlike else ""


def _read_facts(run: Run, name: str, seed: int) -> dict[str, Any]:
    found = read_optional(run.seed_folders(name)[seed] / "eval_data.json")
    return found if isinstance(found, dict) else {}


def _compare_predictions(before: Predictions, after: Predictions) -> str:
    """Returns why the predictions of two runs are of other tests, which they say themselves."""
    shared, i, j = np.intersect1d(before.names, after.names, return_indices=True)
    if not len(shared):
        return "the test data differ (names)"
    alike = np.array_equal(before.labels[i], after.labels[j])
    return "" if alike else "the test data differ (labels)"
