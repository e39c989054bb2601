"""What adapting did to the features of the source: the verdict of `adapt --source`.

The adapted backbone and the model that is handed over are compared with the initial weights
on examples of the source, by the frozen features that `eval` measures: one half of the
source classifies the other. "hurt" there is forgetting. A source without classes has no
verdict; then the similarity (CKA) of the features to the initial ones is reported.
"""

from pathlib import Path
from typing import Any

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.data import subset
from flax_adapt.experiment import measure
from flax_adapt.experiment.measuring import verdicts
from flax_adapt.stage import draws

# Passes over the test set: its features and those of two views, which drift compares.
_PASSES, _MODELS = 3, 3


def judge(config: Any, workdir: Path, stage: str) -> list[str]:
    """Returns a line for each measured stage on the source; [] for a config without source.

    stage: the one that is handed over, measured beside `evaluate.stages`. Writes eval.json
    and eval_verdicts.json, once.
    """
    section = config.evaluate
    if section.source is None:
        return []
    names = tuple(dict.fromkeys((*section.stages, stage)))
    if not (workdir / "eval.json").exists():
        few = min(section.knn_k, len(subset.open_chosen(section.train)))
        changed = draws.change_fields(section, stages=names, knn_k=few, shots=())
        try:
            measure.evaluate(draws.change_fields(config, evaluate=changed), workdir)
        except UserError as error:  # what was trained is handed over all the same
            return [f"no verdict on the source: {error}"]
    on_source = [
        entry for entry in verdicts.read(workdir) if entry["domain"] == verdicts.SOURCE
    ]
    if on_source:
        return verdicts.list_lines(on_source)
    return [
        f"{row['stage']} on the source {section.source.source}: features alike the initial "
        f"ones by {row['cka_source']:.3f} (CKA; 1: unchanged); it has no classes, so that "
        "there is no verdict on forgetting"
        for row in logs.read_json(workdir / "eval.json")
        if row["stage"].partition("/")[0] in names
    ]


def count_passes(config: Any) -> int:
    """Returns how many examples `judge` embeds, of all models; 0 without a source."""
    section = config.evaluate
    if section.source is None:
        return 0
    sets = (section.train, section.source, *[section.test] * _PASSES)
    return _MODELS * sum(len(subset.open_chosen(one)) for one in sets)
