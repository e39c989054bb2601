"""What one stage is made of: folders, references, model, weights, export.

A stage that runs once lives in `stages/NAME`, one with several seeds in
`stages/NAME/seed_S` each; `stage:NAME` and `stage:NAME/seed_S` refer to their exports.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from flax_adapt import check, data, logs, models, objectives, weights
from flax_adapt import config as configs
from flax_adapt.errors import UserError
from flax_adapt.types import Params

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """One run of one stage of an experiment: its config, with one of its seeds."""

    experiment: Any  # the whole config
    config: Any  # the stage's part of it
    run_seed: int
    workdir: Path

    @property
    def label(self) -> str:
        """NAME, or NAME/seed_S where the stage has several seeds."""
        return check.label(self.config, self.run_seed)

    @property
    def folder(self) -> Path:
        return self.workdir / "stages" / self.label

    @property
    def seed(self) -> int:
        """Seeds masks, dropout, the order of the data and new leaves."""
        return self.experiment.seed + self.run_seed

    @property
    def task(self) -> str:
        return objectives.task_of(self.config.objective)


def resolve(stage: Stage, field: str) -> Path:
    """The folder or file that `init_from` or `teacher` refers to (see `check`)."""
    text = stage.config[field]
    if text.startswith("stage:"):
        folder = stage.workdir / "stages" / text.removeprefix("stage:") / "export"
    else:
        folder = Path(stage.experiment.init if text == "pretrained" else text)
    if not folder.exists():
        raise UserError(
            f"stage {stage.label}: {field}={text!r}: there is no {folder}; give "
            "'pretrained' (the config's `init`), 'stage:NAME' or a folder or file of "
            "weights"
        )
    return folder


def open_examples(stage: Stage, config_data: Any) -> data.Examples:
    """Opens a data section; undecodable files are named in the stage's log."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    return data.open_examples(config_data, str(stage.folder / "bad_files.log"))


def num_classes(stage: Stage, examples: data.Examples) -> int:
    """`model.num_classes`, or where it is 0 the number of class names of the data."""
    wanted, named = stage.config.model.num_classes, len(examples.class_names)
    if stage.task != "classify":
        return 0
    _check_labels(stage, examples)
    if stage.config.objective.name == "regress":
        return 1
    if np.min(examples.labels) < 0:
        raise UserError(
            f"stage {stage.label}: {stage.config.data.source} has examples without a "
            "label; classification needs one for each"
        )
    if wanted and wanted < named:
        raise UserError(
            f"stage {stage.label}: model.num_classes={wanted} but the data has {named}"
        )
    return wanted or named


def _check_labels(stage: Stage, examples: data.Examples) -> None:
    """Numbers are for 'regress', class names for 'classify'."""
    numbers = np.issubdtype(examples.labels.dtype, np.floating)
    if numbers != (stage.config.objective.name == "regress"):
        raise UserError(
            f"stage {stage.label}: objective {stage.config.objective.name!r} and the "
            f"labels of {stage.config.data.source} do not fit: 'regress' needs text data "
            "with data.label_kind='number', 'classify' class names"
        )


def check_text(
    stage: Stage, model: nn.Module, section: Any, examples: data.Examples
) -> None:
    """Rows and vocabulary must fit the model, and a label needs a row of its own."""
    if not isinstance(examples, data.TextExamples):
        return
    tokenizer, objective = examples.tokenizer, stage.config.objective
    masked = objective.get("masked", objective)
    rules = (
        (
            stage.task != "classify" or section.layout == "padded",
            f"data.layout={section.layout!r} puts several texts in a row; classification "
            "needs 'padded'",
        ),
        (
            masked.get("mask_token_id", tokenizer.mask_id) == tokenizer.mask_id,
            "objective.mask_token_id is not the mask token of the tokenizer, which is "
            f"{tokenizer.mask_id}",
        ),
    )
    try:
        models.check_fits(model.config, **examples.row_sizes)
        for holds, problem in rules:
            if not holds:
                raise UserError(problem)
    except UserError as error:
        where = f"stage {stage.label}: {section.tokenizer}"
        raise UserError(f"{where}: {error}") from None


def check_same_classes(stage: Stage, train: data.Examples, test: data.Examples) -> None:
    """Labels mean the same in both, or it is an error."""
    if stage.task == "classify" and train.class_names != test.class_names:
        where = stage.config.eval.data.source
        raise UserError(
            f"stage {stage.label}: the training data has the classes "
            f"{train.class_names} but eval.data {where} has {test.class_names}"
        )
    if stage.config.objective.name == "classify" and np.min(test.labels) < 0:
        raise UserError(f"stage {stage.label}: eval.data has examples without a label")


def check_same_data(stage: Stage, examples: data.Examples) -> None:
    """A stage goes on with the data it began with: an epoch is an order of its rows."""
    file = stage.folder / "data.json"
    now = {"rows": len(examples), "class_names": list(examples.class_names)}
    if file.exists() and any(stage.folder.glob("checkpoints/*")):
        changes = configs.difference(logs.read_json(file), now)
        if changes:
            raise UserError(
                f"stage {stage.label}: {stage.config.data.source} is not what the stage "
                f"began with ({'; '.join(changes)}); put it back, or delete "
                f"{stage.folder}"
            )
    if jax.process_index() == 0:
        logs.write_json(file, now)


def warn_of_overflow(stage: Stage, values: dict[str, float]) -> bool:
    """Says that masked tokens were left out; returns true if there were any."""
    lost = int(values.get("overflow", 0))
    if lost:
        log.warning(
            "%s: %d masked tokens, beside %d, were more than "
            "objective.max_masked_fraction of their row and not learnt from",
            *(stage.label, lost, values["masked_tokens"]),
        )
    return lost > 0


def check_architecture(
    stage: Stage, found: dict[str, Any], path: Path, task: str
) -> None:
    """Weights only mean something in the model they were made for.

    `model.reshape` names what may differ. A file without a decoder, or a decoder that
    shall be new, is left to `weights.adopt`.
    """
    options = stage.config.model
    skipped = {"pooler", *weights.reshape.may_differ(options.reshape)}
    if task != "mae" or found["decoder"] is None or "decoder" in options.fresh:
        skipped.add("decoder")
    both = (found, configs.plain(stage.experiment.model))
    changes = configs.difference(
        *({name: a[name] for name in a if name not in skipped} for a in both)
    )
    if changes:
        raise UserError(
            f"stage {stage.label}: `model` is not what {path} holds: {'; '.join(changes)}"
            f"{_how_to_reshape(changes)}"
        )


def _how_to_reshape(changes: list[str]) -> str:
    fields = {change.partition(":")[0] for change in changes}
    if not fields <= set(weights.reshape.FIELDS):
        return ""
    rules = [rule for rule, may in weights.reshape.RULES.items() if fields & {*may}]
    return f"; to resize the weights, name in the stage's model.reshape one of {rules}"


def build_model(stage: Stage, classes: int, task: str) -> nn.Module:
    options = stage.config.model
    return models.build(
        stage.experiment.model,
        task,
        dtype=stage.experiment.precision,
        dropout=options.dropout,
        drop_path=options.drop_path,
        pooling=options.pooling,
        num_classes=classes,
    )


def warm_start(stage: Stage, model: nn.Module) -> tuple[Params, weights.Report | None]:
    """The parameters a stage begins with: of `init_from`, new leaves from the seed."""
    params = models.init_params(model, jax.random.key(stage.seed))
    if stage.config.init_from == "scratch":
        return params, None
    path = resolve(stage, "init_from")
    options, wanted = stage.config.model, stage.experiment.model
    try:
        found, loaded, report = weights.load(path, stage.task, pooling=options.pooling)
        check_architecture(stage, found, path, stage.task)
        loaded, reshaped = weights.fit(found, loaded, wanted, options.reshape)
        params, adopted = weights.adopt(params, loaded, options.fresh)
    except UserError as error:
        raise UserError(f"stage {stage.label}: {path}: {error}") from None
    return params, report.merge(reshaped).merge(adopted)


def frozen(stage: Stage) -> dict[str, Params]:
    """{"teacher": params} of the encoder that `teacher` refers to, or nothing."""
    if stage.config.teacher == "none":
        return {}
    path, wanted = resolve(stage, "teacher"), stage.experiment.model
    check_architecture(stage, weights.model_config(path), path, "encoder")
    sizes = {name: wanted[name] for name in weights.reshape.FIELDS if name in wanted}
    rules = stage.config.model.reshape
    _, params, _ = weights.from_pretrained(path, "encoder", reshape=rules, **sizes)
    return {"teacher": params}


def export(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples
) -> Path:
    """Writes the Hugging Face folder of the stage (process 0 writes, all take part)."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    folder, section = stage.folder / "export", stage.config.data
    if jax.process_index() == 0:
        classes = stage.task == "classify" and examples.class_names
        beside: dict[str, Any] = {"class_names": classes or None}
        if section.modality == "text":
            beside |= {"tokenizer": section.tokenizer}
        else:
            beside |= {"mean": section.mean, "std": section.std}
        weights.save_pretrained(folder, model, jax.device_get(params), **beside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"export {stage.label}")
    return folder
