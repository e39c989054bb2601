"""What `flax-adapt adapt` leaves at the top of a workdir: export, model card, report."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt import data, weights
from flax_adapt.base import logs
from flax_adapt.evals import outputs
from flax_adapt.experiment import card, handover
from flax_adapt.experiment.measuring import leaks
from flax_adapt.stage.stage import Stage
from flax_adapt.train.preemption import Preemption
from flax_adapt.weights.files.writing import CALIBRATION, CARD

EXPORT, REPORT = "export", "report.md"


def deliver(
    config: Any,
    workdir: Path,
    record: dict[str, Any],
    rows: list[dict[str, Any]],
    preemption: Preemption,
) -> Path:
    """Returns the folder `export`: a copy of the chosen stage's, with its temperature.

    record: of `handover.choose`, and `source`, the lines of `forgetting.judge`. rows: of
    results.json. Writes report.md, too. Of an interrupted copy nothing is used.
    """
    row = next(row for row in rows if row["stage"] == record["stage"])
    target, part = workdir / EXPORT, workdir / f".{EXPORT}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(card.exported_folder(row, workdir), part)
    if record["held_out"]:
        calibration = calibrate(config, workdir, record, preemption)
        logs.write_json(part / CALIBRATION, calibration)
        record = {**record, "calibration": calibration}
    (part / CARD).write_text(card.write_card(config, row, workdir, record), "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    (workdir / REPORT).write_text(describe(record, rows), "utf-8")
    return target


def calibrate(
    config: Any, workdir: Path, record: dict[str, Any], preemption: Preemption
) -> dict[str, Any]:
    """Returns the temperature of the chosen stage, by the models that lacked the labels.

    They are those of the folds, whose held-out examples are new to them.
    """
    section = next(one for one in config.stages if one.name == record["stage"])
    folds = handover.make_folds(section.data)
    found = []
    for fold in folds:
        inputs = (config, section, fold, len(folds), workdir, preemption)
        found.append(_compute_logits(handover.loop_of_fold(*inputs)))
    logits_nC, labels_n = (np.concatenate(part) for part in zip(*found, strict=True))
    temperature = outputs.fit_temperature(logits_nC, labels_n)
    losses = [outputs.mean_loss(logits_nC, labels_n, t) for t in (1.0, temperature)]
    return {
        **dict(temperature=temperature, examples=len(labels_n)),
        **dict(loss_before=losses[0], loss_after=losses[1]),
    }


def _compute_logits(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Returns (logits, labels) of what a fold holds out."""
    section, dtype = stage.config.eval.data, stage.dtype
    model, params, _ = weights.from_pretrained(
        stage.folder / "export", "classify", dtype=dtype
    )
    examples = data.open_examples(section, "")
    size = stage.config.eval.batch_size
    found = outputs.compute_outputs(model, params, examples, section, size)
    return found.embeddings, found.labels


def describe(record: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the report: every candidate with what was held out, and its test result."""
    table = []
    for row in rows:
        held = record["held_out"].get(row["stage"])
        chosen = "handed over" if row["stage"] == record["stage"] else ""
        values = {} if held is None else {"held_out": held[record["metric"]]}
        tested = {} if held is None else {"test": row["mean"]}
        table.append({"stage": row["stage"], **values, **tested, "": chosen})
    said = "\n".join(f"    {line}" for line in logs.format_table(
        table, ("stage", "held_out", "test", "")).splitlines())  # fmt: skip
    ways = {0: "", 1: "Held out once"}.get(
        record.get("folds", 0), "Cross-validation in parts"
    )
    how = f"{ways}: {record['examples']} labelled examples.\n\n" if ways else ""
    source = "".join(f"\n* {line}\n" for line in record["source"])
    forgot = f"\n## The source\n{source}" if source else ""
    mine = next(row for row in rows if row["stage"] == record["stage"])
    notes = "".join(f"{note}.\n\n" for note in leaks.list_notes(mine))
    head = f"# Handed over: {record['stage']}\n\n{record['why']}.\n\n{notes}{how}"
    return f"{head}{said}\n{forgot}"
