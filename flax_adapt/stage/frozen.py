"""The trees that a loss reads without a gradient: teacher, initial weights, Fisher, logits.

They are built from the config and from earlier stages alone, so that a resumed run builds
the same ones. Whether old classifiers fit this stage depends on their files: it is checked
here, not by the rows of `stage.check`.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt import data, objectives, weights
from flax_adapt.base import caches
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Batch, Params
from flax_adapt.data import base, fingerprint
from flax_adapt.objectives import penalties, teacher
from flax_adapt.objectives.parameter_penalties import EWC, START
from flax_adapt.objectives.prediction_penalties import DER, LWF
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import programs
from flax_adapt.stage import stage as stages
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding

log = logging.getLogger(__name__)
_LABEL_I = "LABEL_"  # a class without a name


class StageStart(NamedTuple):
    """A stage before its first step.

    params: its initial parameters, without LoRA. fresh: the names of those leaves of
    `params` that are new in the stage. examples: its training examples.
    """

    stage: Stage
    model: nn.Module
    params: Params
    fresh: Collection[str]
    examples: data.Examples
    mesh: Mesh


def build_frozen(start: StageStart, files: contextlib.ExitStack) -> dict[str, Any]:
    """Returns {part: tree}, the loss's argument `frozen` without the arrays of its `Carry`.

    files: closes the files of a teacher, whose parameters are read when they are placed.
    Raises UserError where a teacher or an old model does not fit the stage.
    """
    frozen = _replace_teacher(start, stage_weights.load_teacher(start.stage, files))
    if objectives.keeps_start(start.stage.config.objective):
        frozen[START] = start.params
    for section in start.stage.config.penalties:
        if section.name in PENALTIES:
            frozen |= PENALTIES[section.name](start, section)
    return frozen


def _replace_teacher(start: StageStart, frozen: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of a teacher's states where there can be one, else `frozen`.

    The teacher stays where it also runs on other examples: those of an evaluation.
    """
    config = start.stage.config
    if "teacher" not in frozen:
        return frozen
    count = len(start.examples)
    if config.num_steps * config.batch_size <= count:  # no example comes twice
        return frozen
    how = teacher.plan_table(start.model, config.objective, config.data, count)
    if how is None:
        return frozen
    table = _read_or_compute(start, frozen["teacher"], how)
    also = (config.eval, config.fisher, config.watch)
    runs_elsewhere = any(section is not None for section in also)
    return {teacher.TABLE: table, **(frozen if runs_elsewhere else {})}


def _read_or_compute(
    start: StageStart, params: Params, how: teacher.TablePlan
) -> dict[str, np.ndarray]:
    """Returns the table of a teacher's states, which the workdir keeps for other stages."""
    stage, config = start.stage, start.stage.config
    facts = (
        *(start.examples.fingerprint().items(), how.layers, how.select is None),
        *(stage.dtype, config.batch_size, dict(start.mesh.shape)),
        base.drop_free(configs.plain(config.data)),
        dataclasses.asdict(start.model.config),
    )
    name = fingerprint.of_params(params, facts)
    path = stage.workdir / teacher.TABLE / f"{name}.npz"
    table = caches.read_arrays(path)
    if table is not None:
        log.info("%s: states of the teacher are read from %s", stage.label, path)
        return table
    began = time.perf_counter()
    share = sharding.share_of_process(start.mesh)
    batches = data.eval_batches(start.examples, config.batch_size, *share)
    prepare = stage_fisher.inputs_of(start.model, config.data)
    count = len(start.examples)
    table = how.compute(start.model, params, prepare, batches, count, start.mesh)
    seconds = time.perf_counter() - began
    log.info("%s: states of the teacher took %.1f s", stage.label, seconds)
    if jax.process_index() == 0:
        caches.write_arrays(path, table, config.objective.teacher_cache_bytes)
    return table


def _start(start: StageStart, section: Any) -> dict[str, Any]:
    del section
    return {START: start.params}


def _ewc(start: StageStart, section: Any) -> dict[str, Any]:
    stage, of = start.stage, penalties.references_of(start.stage.config)[EWC]
    return {EWC: stage_fisher.load_anchor(stage, of, start.params, start.fresh)}


def _old_classifier(
    start: StageStart, section: Any, text: str
) -> tuple[nn.Module, Params, int]:
    """Returns (model, parameters, number of classes) of an earlier stage's classifier.

    text: the reference to it in the field `of`. Raises UserError for another architecture,
    and where its classes are not the first of the stage's, in the same order.
    """
    stage = start.stage
    folder = stages.locate_weights(stage, f"penalties: `of` of {section.name!r}", text)
    known = stages.known_options_of(stage, text)
    loaded_config = weights.model_config(folder, **known)
    stages.check_architecture(stage, loaded_config, folder, "classify")
    fit: dict[str, Any] = {**weights.reshape.sizes_of(stage.experiment.model), **known}
    fit["reshape"] = stage.config.model.reshape
    model, params, _ = weights.from_pretrained(folder, "classify", **fit)
    where = f"stage {stage.label}: penalties: {section.name!r} of {text!r}"
    if model.config.last_block != start.model.config.last_block:
        raise UserError(f"{where} has another last block than this stage")
    if model.pooling != start.model.pooling:
        raise UserError(
            f"{where} pools by {model.pooling!r}, this stage by {start.model.pooling!r}"
        )
    _check_classes(where, weights.class_names(folder), start.examples.class_names)
    return model, params, model.num_classes


def _check_classes(
    where: str, old: tuple[str, ...] | None, new: tuple[str, ...]
) -> None:
    """Raises UserError unless the old classes are the first of the new ones.

    where: the beginning of the message. An old class without a name fits any new one.
    """
    for number, (one, other) in enumerate(zip(old or (), new, strict=False)):
        if one != other and not one.startswith(_LABEL_I):
            raise UserError(
                f"{where}: its class {number} is {one!r}, that of this stage {other!r}; "
                "predictions can only be compared of the same classes, in one order"
            )


def _lwf(start: StageStart, section: Any) -> dict[str, Any]:
    _, params, count = _old_classifier(start, section, section.of)
    if count > start.model.num_classes:
        raise UserError(
            f"stage {start.stage.label}: penalties: 'lwf' of {section.of!r} has {count} "
            f"classes, this stage {start.model.num_classes}: they must be the first of "
            "its own; set model.num_classes"
        )
    return {LWF: params}


def _der(start: StageStart, section: Any) -> dict[str, Any]:
    """Returns the logits of all replayed rows, of the model that was trained on their source."""
    examples, wanted = start.examples, start.model.num_classes
    assert isinstance(examples, data.ReplayExamples)
    first, count = len(examples.target), len(examples.source)
    logits_nN = np.zeros((count, wanted), np.float32)
    for number, text in enumerate(section.of):
        model, params, classes = _old_classifier(start, section, text)
        if classes != wanted:
            raise UserError(
                f"stage {start.stage.label}: penalties: 'der' of {text!r} has {classes} "
                f"classes, this stage {wanted}; give all of them the same "
                "model.num_classes"
            )
        rows = np.flatnonzero(examples.origins == number)
        logits_nN[rows] = _logits(start, model, params, first + rows)
    return {DER: {"logits": logits_nN, "first": np.int32(first)}}


def _logits(
    start: StageStart, model: nn.Module, params: Params, rows: np.ndarray
) -> np.ndarray:
    """Returns logits [m, N] of the m examples `rows`, not augmented, on every process."""
    config, examples, mesh = start.stage.config, start.examples, start.mesh
    params = sharding.put(params, mesh)
    run = _share_predictor(model, programs.describe_inputs(config.data), mesh)
    share = sharding.share_of_process(mesh)
    batches = data.eval_batches(examples, config.batch_size, *share, rows)
    logits = [np.asarray(run(params, sharding.put_batch(b, mesh))) for b in batches]
    return np.concatenate(logits or [np.zeros((0, model.num_classes))])[: len(rows)]


@functools.lru_cache(programs.KEPT)
def _share_predictor(
    model: nn.Module, inputs: str, mesh: Mesh
) -> Callable[[Params, Batch], Array]:
    """Returns (params, batch) -> logits [B, N], not augmented, compiled once.

    inputs: `programs.describe_inputs` of the batches.
    """
    prepare = stage_fisher.inputs_of(model, configs.from_text(inputs))

    def predict(params: Params, batch: Batch) -> Array:
        with sharding.placing(mesh):
            return model.apply({"params": params}, prepare(batch), None)

    return jax.jit(predict, out_shardings=NamedSharding(mesh, PartitionSpec()))


PENALTIES: dict[str, Callable[[StageStart, Any], dict[str, Any]]] = {
    "weight_distance": _start,
    "l2_sp": _start,
    "ewc": _ewc,
    "lwf": _lwf,
    "der": _der,
}
