"""State, batch and program of a stage as shapes, without data, weights or devices.

`describe` makes them by the functions that a run uses; arrays of files are replaced by
the shapes that they must have to fit the stage.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import objectives, weights
from flax_adapt.base import rules
from flax_adapt.base.types import Batch, Params, Text
from flax_adapt.models import batch_stats
from flax_adapt.objectives.parameter_penalties import EWC, START
from flax_adapt.objectives.prediction_penalties import DER, LWF
from flax_adapt.stage import stage as stages
from flax_adapt.stage import training
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.training import Program
from flax_adapt.surgery import adaptors
from flax_adapt.train import sharding
from flax_adapt.train import state as states
from flax_adapt.train.state import TrainState
from flax_adapt.weights import strict

CLASSES = (
    1_000  # of a classifier where neither the config nor an argument has their number
)
REPLAYED = 10_000  # rows with stored logits ("der") where `replay.buffer_size` is 0


class Described(NamedTuple):
    """What a stage trains with, as shapes.

    state, batch: with shardings. assumed: sentences on what the config leaves to the data.
    """

    stage: Stage
    model: nn.Module
    program: Program
    state: TrainState
    batch: Batch
    assumed: tuple[str, ...]


class _Start(NamedTuple):
    """A stage before its first step: its model and the shapes of its parameters."""

    stage: Stage
    model: nn.Module
    params: Params
    fresh: Collection[str]


def describe(stage: Stage, mesh: Mesh, num_classes: int = 0) -> Described:
    """Returns what a stage trains with on a mesh, as shapes.

    num_classes: of a classifier, where `model.num_classes` and `data.classes` do not say;
    0: CLASSES. Raises UserError where config and mesh do not fit.
    """
    config = stage.config
    sharding.check_batch_size(config.batch_size, config.optim.accum_steps, mesh)
    classes, assumed = _classes(stage, num_classes)
    model = stages.build_model(stage, classes)
    stored = jax.eval_shape(lambda: stage_weights.init_params(stage, model))
    params, statistics = batch_stats.split(stored)
    start = _Start(stage, model, params, _fresh(stage, model, stored))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), statistics)
    program = training.build_program(stage, model, params, zeros, start.fresh)
    program = program._replace(params=shapes_of(program.params))
    state = states.describe(
        program.params,
        program.tx,
        mesh,
        seed=stage.seed,
        frozen=_frozen(start),
        carry=program.carry,
    )
    batch = sharding.describe_batch(describe_batch(stage), mesh)
    return Described(stage, model, program, state, batch, (*assumed, *_rows(stage)))


def describe_batch(stage: Stage) -> Batch:
    """Returns the shapes of a global batch of a stage, as `data.make_batches` gives it.

    Text is as long as `data.seq_len`, the longest that a batch can be.
    """
    config, section = stage.config, stage.config.data
    size = config.batch_size

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    batch: dict[str, Any] = {name: rows(np.int32) for name in ("index", "position")}
    is_number = config.objective.name == "regress"
    batch["label"] = rows(np.float32 if is_number else np.int32)
    batch["weight"] = rows(np.float32)
    if config.replay is not None:
        batch["domain"] = rows(np.int32)
    if section.modality == "image":
        sides = (section.image_size, section.image_size, section.channels)
        return {**batch, "image": rows(np.uint8, *sides)}
    tokens: Any = rows(np.int32, section.seq_len)
    return {**batch, "text": Text(*[tokens] * len(Text._fields))}


def _classes(stage: Stage, num_classes: int) -> tuple[int, tuple[str, ...]]:
    """Returns the number of classes of a stage, and what was assumed for it."""
    options = stage.config.model.num_classes
    if stage.task != "classify":
        return 0, ()
    if stage.config.objective.name == "regress":
        return 1, ()
    named = len(stage.config.data.get("classes", ()))
    known = options or num_classes or named
    if known:
        return known, ()
    return CLASSES, (f"{CLASSES} classes (the data has their number: --num_classes)",)


def _rows(stage: Stage) -> tuple[str, ...]:
    """Returns what is assumed of the data beside its classes."""
    section, notes = stage.config.data, []
    if section.modality == "text" and len(section.buckets):
        notes.append(f"texts as long as seq_len={section.seq_len}")
    if any(part.name == DER for part in stage.config.penalties):
        notes.append(f"{_replayed(stage)} replayed rows with stored logits")
    return tuple(notes)


def _replayed(stage: Stage) -> int:
    return stage.config.replay.buffer_size or REPLAYED


def _fresh(stage: Stage, model: nn.Module, stored: Params) -> Collection[str]:
    """Returns the names of the leaves that are new, as the import report of a run has them."""
    options = stage.config.model
    if stage.config.init_from == "scratch":
        return ()
    prefixes = (*options.fresh, *adaptors.leaves_of(rules.names(stored)))
    prefixes += (batch_stats.NAME,) if options.head_norm else ()
    prefixes += _resized(stage, model, stored)
    return weights.adopt(stored, stored, prefixes)[1].fresh


def _resized(stage: Stage, model: nn.Module, stored: Params) -> tuple[str, ...]:
    """Returns the leaves that `model.resize` draws anew: those of another shape."""
    section = stage.config.model.resize
    if section is None or section.init != "random":
        return ()
    config = {**stage.architecture, "last_block": None}
    classes = getattr(model, "num_classes", 0)
    plain = weights.shapes(stages.build_for_task(stage, config, stage.task, classes))
    old, new = rules.name_leaves(plain), rules.name_leaves(stored)
    return tuple(
        name for name in new if name not in old or new[name].shape != old[name].shape
    )


def _frozen(start: _Start) -> dict[str, Any]:
    """Returns the shapes of `frozen.build_frozen`."""
    config = start.stage.config
    found: dict[str, Any] = {}
    if config.teacher != "none":
        found["teacher"] = _teacher(start.stage)
    if objectives.keeps_start(config.objective):
        found[START] = start.params
    for section in config.penalties:
        if section.name in FROZEN:
            found |= FROZEN[section.name](start)
    return found


def _teacher(stage: Stage) -> Params:
    task = objectives.teacher_task(stage.config.objective)
    config = {**stage.architecture, "adaptor": None}
    return shapes_of(weights.shapes(stages.build_for_task(stage, config, task, 0)))


def _start(start: _Start) -> dict[str, Any]:
    return {START: start.params}


def _ewc(start: _Start) -> dict[str, Any]:
    leaves = strict.flatten(start.params)
    old = {name: leaf for name, leaf in leaves.items() if name not in start.fresh}
    tree = strict.unflatten(old)
    return {EWC: {"fisher": tree, "center": tree}}


def _lwf(start: _Start) -> dict[str, Any]:
    return {LWF: start.params}


def _der(start: _Start) -> dict[str, Any]:
    shape = (_replayed(start.stage), start.model.num_classes)
    logits_nN = jax.ShapeDtypeStruct(shape, np.float32)
    return {DER: {"logits": logits_nN, "first": jax.ShapeDtypeStruct((), np.int32)}}


# Penalty -> its trees, as `frozen.PENALTIES` builds them from files.
FROZEN: dict[str, Callable[[_Start], dict[str, Any]]] = {
    "weight_distance": _start,
    "l2_sp": _start,
    "ewc": _ewc,
    "lwf": _lwf,
    "der": _der,
}


def shapes_of(tree: Any) -> Any:
    """Returns a tree of arrays or of shapes with shardings as shapes alone."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
