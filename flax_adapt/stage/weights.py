"""Loads the initial weights of a stage and its teacher, and exports its final weights."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data, models, objectives, weights
from flax_adapt.base import config as configs
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError, reword_errors
from flax_adapt.base.types import Key, Params
from flax_adapt.models import batch_stats
from flax_adapt.stage import resize as stage_resize
from flax_adapt.stage import stage as stages
from flax_adapt.stage.stage import Stage
from flax_adapt.surgery import adaptors, heads
from flax_adapt.train.gather import gather_on_first, wait_for_files
from flax_adapt.weights import strict
from flax_adapt.weights.names.translate import LazyLeaf

log = logging.getLogger(__name__)


def init_params(stage: Stage, model: nn.Module) -> dict[str, Any]:
    """Returns randomly initialised parameters of the model, drawn by the stage's seed.

    They include those of a second task that is trained on the same encoder (GLAD).
    """
    return _init_both(_kinds_of(stage, model), jax.random.key(stage.seed))


def _kinds_of(stage: Stage, model: nn.Module) -> tuple[Any, ...]:
    """Returns what initial parameters depend on besides a key; hashable."""
    return model, stages.build_second_model(stage), stage.config.model.head_init


def _init_both(kinds: tuple[Any, ...], key: Key) -> dict[str, Any]:
    model, second_model, std = kinds
    params = dict(models.init_params(model, key))
    if std:
        head = params["head"]
        kernel = head["kernel"] * (std / heads.INIT_STD)
        params["head"] = {**head, "kernel": kernel}
    # Both have the encoder; the model's has the adaptors.
    both = {} if second_model is None else models.init_params(second_model, key)
    return {**both, **params}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(kinds: tuple[Any, ...], names: tuple[str, ...], key: Key) -> dict[str, Any]:
    """Returns {name: leaf} of those leaves of `_init_both`.

    Nothing else is drawn: XLA removes what is not returned. A new head alone has a small
    program, where that of all parameters takes seconds to compile.
    """
    leaves = strict.flatten(_init_both(kinds, key))
    return {name: leaves[name] for name in names}


@reword_errors(stages.FIELDS)
def warm_start(
    stage: Stage,
    model: nn.Module,
    examples: data.Examples,
    mesh: Mesh,
    files: contextlib.ExitStack,
) -> tuple[Params, Params, weights.Report | None]:
    """Returns the initial (parameters, running statistics, report) of a stage.

    They are loaded from `init_from`; new leaves are drawn by the seed. A loaded parameter is
    read whenever NumPy takes it as an array, as `sharding.put` does, one after the other;
    until `files` is closed. examples: the training examples; the init "pca" of a resized
    last block is computed from their features. Statistics are {} for a model without batch
    norm, the report is None where `init_from` is "scratch". Raises UserError for weights
    that do not fit the config.
    """
    if stage.config.init_from == "scratch":
        return *batch_stats.split(init_params(stage, model)), None
    path = stages.resolve_field(stage, "init_from")
    init_options = stages.known_options_of(stage, stage.config.init_from)
    pooling, where = stage.config.model.pooling, f"stage {stage.label}: {path}"
    try:
        opened = weights.open_weights(
            path, stage.start_task, pooling=pooling, **init_options
        )
        loaded_config, loaded, report = files.enter_context(opened)
        stages.check_architecture(stage, loaded_config, path, stage.start_task)
        if stage.start_task == "mae" and "decoder" in loaded:
            _log_reconstruction(
                stage, path, init_options["format"] if init_options else None
            )
        stored, fitted = _fit_to_stage(
            stage, model, loaded_config, loaded, examples, mesh
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    stored = jax.tree.map(functools.partial(_prefix_errors, where), stored)
    params, statistics = batch_stats.split(stored)
    return params, jax.tree.map(np.asarray, statistics), report.merge(fitted)


def _fit_to_stage(
    stage: Stage,
    model: nn.Module,
    loaded_config: dict[str, Any],
    loaded: dict[str, Any],
    examples: data.Examples,
    mesh: Mesh,
) -> tuple[dict[str, Any], weights.Report]:
    """Returns (the tree of the stage's model, report): loaded leaves, resized, and new ones."""
    options, report = stage.config.model, weights.Report()
    fresh = options.fresh
    if stage.start_task != stage.task:
        loaded, report = _drop_pooler(loaded)
    new_config = stage.architecture
    loaded, reshaped = weights.fit(loaded_config, loaded, new_config, options.reshape)
    report = report.merge(reshaped)
    init = jax.eval_shape(lambda: init_params(stage, model))
    replaces_block = stages.replaces_last_block(stage, loaded_config)
    if replaces_block or options.grow_head:  # computes with the old and the new values
        init = init_params(stage, model)
        loaded = jax.tree.map(np.asarray, loaded)
    if replaces_block:
        loaded, resized, new = _resize(stage, loaded, init, examples, mesh)
        report, fresh = report.merge(resized), (*fresh, *new)
    if options.grow_head:
        path = stages.resolve_field(stage, "init_from")
        loaded, grown = _grow(path, loaded, init, examples)
        report = report.merge(grown)
    adapted = adaptors.leaves_of(rules.names(init))
    fresh = (*fresh, *(adapted if loaded_config.get("adaptor") is None else ()))
    fresh = (*fresh, *([batch_stats.NAME] if options.head_norm else []))
    stored, adopted = weights.adopt(init, loaded, fresh)
    leaves = strict.flatten(stored)
    shapes = [name for name in adopted.fresh if not hasattr(leaves[name], "__array__")]
    kinds, key = _kinds_of(stage, model), jax.random.key(stage.seed)
    drawn = _draw(kinds, tuple(shapes), key) if shapes else {}
    return strict.unflatten({**leaves, **drawn}), report.merge(adopted)


def _prefix_errors(where: str, leaf: Any) -> Any:
    """Returns the leaf; errors of reading one of `weights.open_weights` begin with `where`."""
    if not isinstance(leaf, LazyLeaf):
        return leaf

    def read() -> np.ndarray:
        try:
            return np.asarray(leaf)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    return dataclasses.replace(leaf, read=read)


def _reconstruction(stage: Stage) -> dict[str, Any]:
    """Returns the fields of the masked objective that the decoder is trained with."""
    objective = stage.config.objective
    masked = objective if objective.name == "reconstruct" else objective.masked
    return {name: masked[name] for name in weights.fields.OF_RECONSTRUCTION}


def _log_reconstruction(stage: Stage, path: Path, format: str | None) -> None:
    """Warns if the decoder at `path` was trained with other fields of its objective."""
    ours, theirs = _reconstruction(stage), weights.reconstruction(path, format=format)
    changes = configs.difference(theirs, {name: ours[name] for name in theirs})
    if changes and stage.is_first:
        log.warning(
            "%s: the decoder of %s was trained with another objective than this stage's "
            "(%s): the first steps adapt it; set objective.%s to go on as before",
            *(stage.label, path, "; ".join(changes), changes[0].partition(":")[0]),
        )


def _resize(
    stage: Stage, loaded: Params, init: Params, examples: data.Examples, mesh: Mesh
) -> tuple[dict[str, Any], weights.Report, tuple[str, ...]]:
    section, old = stage.config.model.resize, configs.plain(stage.experiment.model)
    if stage.config.model.lora is not None and section.init != "random":
        raise UserError(
            "model.lora would freeze the new last block: resize it in a stage before, or "
            "set model.resize.init='random'"
        )
    components_dD = stage_resize.principal_components(
        old,
        loaded,
        section,
        examples,
        batch_size=stage.config.batch_size,
        precision=stage.dtype,
        mesh=mesh,
    )
    return stage_resize.resize(old, loaded, init, section, components_dD, stage.seed)


def _grow(
    path: Path, loaded: Params, init: Params, examples: data.Examples
) -> tuple[dict[str, Any], weights.Report]:
    """Returns parameters whose head has the classes of the stage's data, and a report."""
    names = weights.class_names(path)
    if "head" not in loaded or names is None:
        raise UserError("model.grow_head needs weights with a head and class names")
    flat = (strict.flatten(loaded), strict.flatten(init))
    leaves, done = heads.grow(*flat, names, examples.class_names)
    return strict.unflatten(leaves), weights.Report(reshaped=done)


def _drop_pooler(
    loaded: dict[str, Any],
) -> tuple[dict[str, Any], weights.Report]:
    """Returns parameters without the pooler, as a projector is applied to the encoder."""
    kept = {name: leaves for name, leaves in loaded.items() if name != "pooler"}
    unused = {*loaded} - {*kept}
    rule = "pooler dropped: there is a projector"
    return kept, weights.Report(ignored=dict.fromkeys(unused, rule))


@reword_errors(stages.FIELDS)
def load_teacher(stage: Stage, files: contextlib.ExitStack) -> dict[str, Params]:
    """Returns {"teacher": params} of the model that `teacher` refers to, {} for "none".

    A parameter is read whenever NumPy takes it as an array, until `files` is closed. Raises
    UserError for weights that do not fit the stage's model.
    """
    if stage.config.teacher == "none":
        return {}
    path = stages.resolve_field(stage, "teacher")
    init_options = stages.known_options_of(stage, stage.config.teacher)
    task = objectives.teacher_task(stage.config.objective)
    loaded_config = weights.model_config(path, **init_options)
    stages.check_architecture(stage, loaded_config, path, task, is_teacher=True)
    sizes = weights.reshape.sizes_of(stage.experiment.model)
    fit = dict(reshape=stage.config.model.reshape, sizes=sizes)
    opened = weights.open_params(path, task, **fit, **init_options)
    return {"teacher": files.enter_context(opened)}


def _select_exported(
    stage: Stage, model: nn.Module, params: Params
) -> tuple[nn.Module, Params]:
    """Returns the model of `exported_task` and its parameters.

    Projector, adaptors and `head_norm` are used in training only. The first two are left
    out, the norm is folded into the head. params: with running statistics, see
    `models.batch_stats`.
    """
    if stage.config.model.head_norm:
        model, params = model.clone(head_norm=False), heads.fold(params)
    if stage.exported_task == stage.task:
        return model, params
    config = models.encoder_config(stage.architecture)
    alone = stages.build_for_task(stage, config, stage.exported_task, 0)
    names = weights.shapes(alone)
    return alone, adaptors.drop({name: params[name] for name in names})


def describe_export(stage: Stage, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Returns what `weights.save_pretrained` writes beside a stage's weights.

    class_names: of the classes of a classifier; others have none.
    """
    section = stage.config.data
    classes = class_names if stage.exported_task == "classify" else None
    extras: dict[str, Any] = {"class_names": classes or None}
    if section.modality == "text":
        extras |= {"tokenizer": section.tokenizer}
    else:
        extras |= {"mean": section.mean, "std": section.std}
        usual = weights.USUAL_READING
        extras["reading"] = {k: section[k] for k in usual if section[k] != usual[k]}
    if stage.exported_task == "mae":
        extras["reconstruction"] = _reconstruction(stage)
    return extras


def export(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples
) -> Path:
    """Writes the Hugging Face folder `export` of the stage and returns its path.

    All processes must call it; process 0 writes. params: with running statistics, see
    `models.batch_stats`.
    """
    params = gather_on_first(params)
    folder = stage.folder / "export"
    if jax.process_index() == 0:
        model, params = _select_exported(stage, model, params)
        extras = describe_export(stage, examples.class_names)
        weights.save_pretrained(folder, model, params, **extras)
    wait_for_files(f"export {stage.label}")
    return folder
