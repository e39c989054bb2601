"""The Fisher information of a stage's export: it is written next to it, for later stages."""

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data, objectives, weights
from flax_adapt.base import config as configs
from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Batch, Params
from flax_adapt.data.images import image
from flax_adapt.objectives import exported, penalties
from flax_adapt.objectives.parameter_penalties import EWC
from flax_adapt.stage import programs
from flax_adapt.stage import stage as stages
from flax_adapt.stage.stage import Stage
from flax_adapt.train import fisher, sharding
from flax_adapt.train.gather import gather_on_first, wait_for_files
from flax_adapt.weights import strict

log = logging.getLogger(__name__)


# Objectives of masked models, whose likelihood needs no labels.
MASKED = ("reconstruct", "mlm")


def _with_fisher(at: Context) -> list[Any]:
    return [at.section] if at.section.fisher is not None else []


_ROWS = (
    Row(
        lambda it: it.objective.name in MASKED or exported.exports_classifier(it),
        "fisher is of a masked model, or of the predictions of a classifier that is kept: "
        "objective {0.objective.name!r} must be 'reconstruct' or 'mlm', or 'classify' with "
        "model.projector and model.adaptor None",
    ),
    Row(
        lambda it: it.objective.name not in MASKED or it.fisher.labels == "empirical",
        "fisher.labels={0.fisher.labels!r} draws classes, which objective "
        "{0.objective.name!r} has not: set it to 'empirical'",
    ),
)
CHECKS = (Check(_with_fisher, _ROWS),)


def inputs_of(model: nn.Module, config_data: Any) -> Callable[[Batch], Any]:
    """Returns batch -> inputs of the model: images normalised but not augmented, or text."""

    def prepare(batch: Batch) -> Any:
        inputs = batch[model.modality]
        if model.modality == "image":
            return image.preprocess(inputs, None, config_data, None)
        return inputs

    return prepare


def write(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples, mesh: Mesh
) -> None:
    """Writes the Fisher information of the exported `params`, if the stage has `fisher`.

    It is estimated on the stage's own examples: replayed ones have been counted in earlier
    stages. All processes must call it; process 0 writes.
    """
    section = stage.config.fisher
    if section is None:
        return
    found = fisher.estimate(
        _likelihood(stage, model),
        params,
        data.eval_batches(
            examples,
            sharding.whole_batch_size(section.batch_size, mesh),
            *sharding.share_of_process(mesh),
            _rows(stage, examples),
        ),
        seed=stage.seed,
        mesh=mesh,
    )
    found = gather_on_first(found)
    if jax.process_index() == 0:
        found = fisher.add_decayed(found, _load_penalty(stage), section.decay)
        fisher.save(_file(stage.folder / "export"), found)
    wait_for_files(f"fisher {stage.label}")


def _likelihood(stage: Stage, model: nn.Module) -> fisher.Likelihood:
    """Returns the likelihood of a classifier's labels, or of a masked model's hidden input."""
    config = stage.config
    inputs = programs.describe_inputs(config.data)
    if stage.task == "classify":
        return _share_classes(model, inputs, config.fisher.labels)
    return _share_masked(model, inputs, configs.to_text(config.objective))


# The same function for the same arguments, so that it is compiled once (see `programs`).
@functools.lru_cache(programs.KEPT)
def _share_classes(model: nn.Module, inputs: str, labels: str) -> fisher.Likelihood:
    prepare = inputs_of(model, configs.from_text(inputs))
    return fisher.of_classes(model, prepare, labels)


@functools.lru_cache(programs.KEPT)
def _share_masked(model: nn.Module, inputs: str, objective: str) -> fisher.Likelihood:
    config_data, config = configs.from_text(inputs), configs.from_text(objective)
    loss_fn = objectives.build(config, model, train=False)
    return fisher.of_loss(
        objectives.on_pixels(loss_fn, config, config_data, train=False)
    )


def _rows(stage: Stage, examples: data.Examples) -> np.ndarray:
    """Returns sorted rows: `fisher.num_examples` of the stage's own, drawn by its seed."""
    own = examples.target if isinstance(examples, data.ReplayExamples) else examples
    rows = np.random.default_rng(stage.seed).permutation(len(own))
    return np.sort(rows[: stage.config.fisher.num_examples or len(own)])


def _load_penalty(stage: Stage) -> dict[str, np.ndarray]:
    """Returns {name: F} that the stage's own penalty "ewc" refers to, {} without one.

    If it refers to several stages, it is that of the last.
    """
    of = penalties.references_of(stage.config).get(EWC, ())
    return _load(stage, of[-1]) if of else {}


def _export(stage: Stage, text: str) -> Path:
    return stages.locate_weights(stage, "penalties: `of` of 'ewc'", text)


def _load(stage: Stage, text: str) -> dict[str, np.ndarray]:
    path = _file(_export(stage, text))
    if not path.exists():
        raise UserError(
            f"stage {stage.label}: penalties: 'ewc' of {text!r}: there is no {path}; that "
            "stage was run without a section `fisher`"
        )
    return fisher.load(path)


def _file(export: Path) -> Path:
    return export.parent / fisher.FILE


def load_anchor(
    stage: Stage, of: Sequence[str], params: Params, fresh: Collection[str]
) -> dict[str, Params]:
    """Returns {"fisher": F, "center": theta*}, trees: the penalties of earlier stages as one.

    of: references to these stages, such as "stage:NAME". The trees have the leaves that one
    of their models has in the same shape as `params`, without those that are new in this
    stage (`fresh`). The log names the leaves without penalty. Raises UserError for a stage
    without Fisher information, and for another architecture.
    """
    ours = strict.flatten(params)
    parts = [_load_anchor_of(stage, text, ours, fresh) for text in of]
    trees = fisher.join_penalties(parts)
    free = [name for name in ours if name not in trees["fisher"]]
    if free and stage.is_first:
        log.info("%s: 'ewc' leaves free: %s", stage.label, ", ".join(free))
    return {part: strict.unflatten(leaves) for part, leaves in trees.items()}


# Prefixes of names that only one task has, by which the task of a Fisher file is recognised.
_TASKS = {"head/": "classify", "decoder/": "mae", "mlm/": "mlm"}


def _load_anchor_of(
    stage: Stage, text: str, ours: dict[str, Any], fresh: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Returns {"fisher": {name: F}, "center": {name: theta*}} of one earlier stage.

    text: a reference to that stage. ours: the leaves of this stage's model by name.
    """
    export, importance = _export(stage, text), _load(stage, text)
    tasks = (
        task
        for part, task in _TASKS.items()
        if any(name.startswith(part) for name in importance)
    )
    task = next(tasks, "classify")
    center = strict.flatten(weights.load(export, task, pooling=None)[1])
    wrong = {*importance} ^ {*center} or {*center} - {
        *fisher.shared_names(center, importance)
    }
    if wrong:
        raise UserError(
            f"{_file(export)} is not of the model beside it: {', '.join(sorted(wrong)[:3])}"
        )
    names = [name for name in fisher.shared_names(ours, center) if name not in fresh]
    if not any(name.startswith("encoder/") for name in names):
        raise UserError(
            f"stage {stage.label}: its model shares no parameter with {export}; 'ewc' "
            "needs the same architecture"
        )
    trees = {"fisher": importance, "center": center}
    return {
        part: {name: leaves[name] for name in names} for part, leaves in trees.items()
    }
