"""Checks that a stage which resumes has the examples that it began with."""

from typing import Any

import jax

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.data import fingerprint
from flax_adapt.stage.data import name_replayed
from flax_adapt.stage.stage import Stage

# Digests of names, of sizes of files or of contents (`data.fingerprint`), and of labels.
_DIGESTS = ("names", "sizes", "contents", "labels")


def check(stage: Stage, train: data.Examples, test: data.Examples | None) -> None:
    """Raises UserError if a stage that resumes has other data than when it began.

    The position in an epoch is one in an order of the rows. The number of rows, their
    fingerprint, their labels where the stage learns them, and the classes are therefore
    stored in data.json, those of the evaluation data `test` in eval_data.json, and the
    examples that were drawn for replay in replay.json.
    """
    source = stage.config.data.source
    records = [("data.json", source, _describe(stage, train))]
    if test is not None:
        section = stage.config.eval.data
        source = f"eval.data {section.source} {section.split}"
        records.append(("eval_data.json", source, _describe(stage, test)))
    if isinstance(train, data.ReplayExamples):
        source = f"replay.data {name_replayed(stage)}"
        records.append(("replay.json", source, train.record()))
    for name, source, now in records:
        _compare(stage, name, source, now)
    if jax.process_index() == 0:
        for name, _, now in records:
            logs.write_json(stage.folder / name, now)


def _describe(stage: Stage, examples: data.Examples) -> dict[str, Any]:
    described = {"rows": len(examples), "class_names": list(examples.class_names)}
    # To read the labels of a large set takes a pass over it: where they are not learnt, no.
    if stage.task in ("classify", "regress"):
        described["labels"] = fingerprint.digest([examples.labels])
    return {**described, **examples.fingerprint()}


def _compare(stage: Stage, name: str, source: str, now: dict[str, Any]) -> None:
    file = stage.folder / name
    if not (file.exists() and any(stage.folder.glob("checkpoints/*"))):
        return
    before = logs.read_json(file)
    if not isinstance(before, dict):
        raise UserError(f"{file} is damaged: put it back, or delete {stage.folder}")
    # What a file of an earlier version lacks is not compared.
    unknown = {name: now[name] for name in _DIGESTS if name in now}
    changes = configs.difference({**unknown, **before}, now)
    if changes:
        more = f"; {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UserError(
            f"stage {stage.label}: {source} is not what the stage began with "
            f"({'; '.join(changes[:3])}{more}); put it back, or delete {stage.folder}"
        )
