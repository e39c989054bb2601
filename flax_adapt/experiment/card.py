"""The model card of an exported folder, README.md: what it is, from what, and how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flax_adapt.base import logs
from flax_adapt.base.version import __version__
from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import leaks
from flax_adapt.weights.files.writing import CARD, CARD_TAG

_TUNED = " or another that held-out labels chose"
_HEAD = f"---\nlibrary_name: transformers\n{CARD_TAG}{{tag}}]\n---\n"


def write_cards(config: Any, rows: list[dict[str, Any]], workdir: Path) -> None:
    """Writes README.md into the exported folders of the stages in `rows` of results.json."""
    if jax.process_index():
        return
    for row in rows:
        text = write_card(config, row, workdir, {})
        for seed in row["seeds"]:
            of_seed = workdir / "stages" / row["stage"] / f"seed_{seed}" / "export"
            for folder in (exported_folder(row, workdir), of_seed):
                if folder.is_dir():
                    (folder / CARD).write_text(text, "utf-8")


def exported_folder(row: Mapping[str, Any], workdir: Path) -> Path:
    """Returns the export of a stage, of several seeds that of the first one.

    row: has its name, `stage`, and its `seeds`. A workdir may have been moved, so that it is
    not the path in results.json.
    """
    folder = workdir / "stages" / row["stage"]
    if not (folder / "export").is_dir():
        folder = folder / f"seed_{row['seeds'][0]}"
    return folder / "export"


def write_card(
    config: Any, row: dict[str, Any], workdir: Path, record: dict[str, Any]
) -> str:
    """Returns the card of a stage. record: of `handover.choose`, or {}."""
    section = next(one for one in config.stages if one.name == row["stage"])
    parts = [
        _HEAD.format(tag=section.objective.name),
        f"# {row['stage']}\n",
        f"Trained by flax_adapt {__version__} with the objective `{section.objective.name}` "
        f"for {section.num_steps} steps of {section.batch_size} examples, learning rate "
        f"{section.optim.lr:g}{_TUNED * bool(section.sweep)}.\n",
        f"* from: `{section.init_from}`, where `pretrained` is `{config.init or 'nothing'}`",
        *_describe_data(section, row, workdir),
        f"* result: {row['metric']} {row['mean']:.4f} over {len(row['seeds'])} run(s)",
        *_describe_verdict(row),
        *(f"* {note}" for note in leaks.list_notes(row)),
        *([f"* handed over since it is {record['why']}"] if record.get("why") else []),
        *_describe_calibration(record),
        _describe_loading(section),
    ]
    return "\n".join(parts) + "\n"


def _describe_data(section: Any, row: dict[str, Any], workdir: Path) -> list[str]:
    """Returns a line for training data and one for test data, with their fingerprints."""
    folder = exported_folder(row, workdir).parent
    sets = [("trained on", section.data, "data.json")]
    if section.eval is not None:
        sets.append(("tested on", section.eval.data, "eval_data.json"))
    lines = []
    for what, one, file in sets:
        path = folder / file
        known = logs.read_json(path) if path.exists() else {}
        digests = [f"{k} {v}" for k, v in known.items() if k != "class_names"]
        said = f" ({', '.join(digests)})" if digests else ""
        lines.append(f"* {what}: `{one.source}`, split `{one.split}`{said}")
    return lines


def _describe_verdict(row: dict[str, Any]) -> list[str]:
    if "verdict" not in row:
        return []
    against = row["verdict"]["against"]
    return [f"* did it help: {verdict.sentence(row['stage'], against, row['verdict'])}"]


def _describe_calibration(record: dict[str, Any]) -> list[str]:
    found = record.get("calibration")
    if not found:
        return []
    return [
        f"* calibrated: temperature {found['temperature']:.4g}, from {found['examples']} "
        f"held-out examples (loss {found['loss_before']:.4f} -> {found['loss_after']:.4f})"
    ]


def _describe_loading(section: Any) -> str:
    """Returns how the folder is loaded here and in transformers."""
    command, kind = "features --init=FOLDER --data=SOURCE --out=features.npz", ""
    if section.objective.name in ("classify", "regress"):
        command = "predict --init=FOLDER --data=SOURCE --out=predictions.csv"
        is_image = section.data.modality == "image"
        kind = f"For{'Image' if is_image else 'Sequence'}Classification"
    lines = [
        *("", "Here:", "", f"    flax-adapt {command}", "", "In transformers:", ""),
        f"    from transformers import AutoModel{kind}",
        f"    model = AutoModel{kind}.from_pretrained(FOLDER)",
    ]
    return "\n".join(lines)
