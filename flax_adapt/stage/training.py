"""Builds the initial state, loss and step of a stage, and writes its export."""

import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from flax_adapt import data, weights
from flax_adapt.base import checks, rules
from flax_adapt.base.checks import Check, Context, builds
from flax_adapt.base.errors import reword_errors
from flax_adapt.base.types import Array, Carry, LossFn, Params
from flax_adapt.models import batch_stats
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import frozen as stage_frozen
from flax_adapt.stage import lengths, programs
from flax_adapt.stage import solve as stage_solve
from flax_adapt.stage import stage as stages
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.frozen import StageStart
from flax_adapt.stage.stage import Stage
from flax_adapt.surgery import lora
from flax_adapt.train import state as states
from flax_adapt.train import step as steps
from flax_adapt.train.state import TrainState

log = logging.getLogger(__name__)
_ADAPTORS = 0x7FFFFFFC  # no step has this number, so adaptors have a key of their own


# Names in error messages of `models.build` -> the fields of the config.
_FIELDS = {r"^(pooling|num_classes)=": r"model.\1=", "^dtype=": "precision="}


@reword_errors(_FIELDS)
def _build(at: Context) -> None:
    """Builds model and loss as a run of the stage will; nothing is compiled."""
    stage = Stage(at.config, at.section, at.section.seeds[0], Path())
    classes = 1 if at.section.objective.name == "regress" else 2
    model = stages.build_model(stage, at.section.model.num_classes or classes)
    recipe = programs.recipe_of_loss(stage, model, at.section.data)
    programs.make_training_loss(recipe)


# The last of all rules: fields that only the constructors of model and loss check.
CHECKS = (Check(checks.stage, (builds(_build),)),)


class TrainingStart(NamedTuple):
    """A stage at step 0: its state, training step and import report (None from scratch)."""

    state: TrainState
    step: steps.TrainStep
    report: weights.Report | None


def begin_training(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> TrainingStart:
    """Returns the state at step 0, the training step and the import report.

    They are the same ones whenever the stage is started again. Raises UserError where
    weights or data do not fit the config.
    """
    config = stage.config
    for note in lengths.list_notes(config) if stage.is_first else ():
        log.warning("%s: %s", stage.label, note)
    with contextlib.ExitStack() as files:
        params, statistics, report = stage_weights.warm_start(
            stage, model, examples, mesh, files
        )
        fresh: Collection[str] = () if report is None else report.fresh
        start = StageStart(stage, model, params, fresh, examples, mesh)
        frozen = stage_frozen.build_frozen(start, files)
        program = build_program(stage, model, params, statistics, fresh)
        state = states.create(
            program.params,
            program.tx,
            mesh,
            seed=stage.seed,
            frozen=frozen,
            carry=program.carry,
        )
    if config.optim.solve is not None:
        step = stage_solve.make_step(stage, model, params, examples, mesh)
        return TrainingStart(state, step, report)
    return TrainingStart(state, program.make_step(mesh), report)


class Program(NamedTuple):
    """How a stage trains: its parameters with LoRA, loss, optimizer and `Carry`.

    recipe: all that its compiled step depends on. rate: the learning rate by step, where it
    is an argument of this step.
    """

    params: Params
    loss_fn: LossFn
    tx: optax.GradientTransformation
    accum_steps: int
    carry: Carry
    recipe: programs.Recipe
    rate: Callable[[Array], Array] | None

    def make_step(self, mesh: Mesh) -> steps.CompiledStep:
        """Returns the training step; programs with the same recipe compile it once."""
        return steps.CompiledStep(programs.share_update(self.recipe, mesh), self.rate)


def build_program(
    stage: Stage,
    model: nn.Module,
    params: Params,
    statistics: Params,
    fresh: Collection[str],
) -> Program:
    """Returns how a stage trains.

    params: initial parameters without LoRA, arrays or their shapes. statistics: initial
    running statistics, arrays. fresh: names of the leaves of `params` that are new.
    """
    params, section, fresh = _with_adaptors(stage, params, fresh)
    recipe = programs.recipe_of_training(
        stage, model, section, params, statistics, fresh
    )
    carry = programs.make_carry(stage.config, statistics)
    rate = programs.find_rate(stage.config)
    return Program(params, *programs.share_training(recipe), carry, recipe, rate)


def export(
    stage: Stage,
    model: nn.Module,
    state: TrainState,
    examples: data.Examples,
    mesh: Mesh,
) -> None:
    """Writes the export, with LoRA merged into the kernels, and its Fisher information."""
    params = merge_lora(stage, state.evaluated)
    stored = batch_stats.join(params, state.statistics)
    stage_weights.export(stage, model, stored, examples)
    stage_fisher.write(stage, model, params, examples, mesh)


def merge_lora(stage: Stage, params: Params) -> Params:
    """Returns trained parameters with LoRA merged into the kernels, where it is on."""
    section = stage.config.model.lora
    return params if section is None else _merge(params, FrozenConfigDict(section))


_merge = jax.jit(lora.merge, static_argnums=1)


def _with_adaptors(
    stage: Stage, params: Params, fresh: Collection[str]
) -> tuple[Params, Any, Collection[str]]:
    """Returns (parameters, `optim` section, names of new leaves), with LoRA if it is on."""
    config, section = stage.config.optim, stage.config.model.lora
    if section is None:
        return params, config, fresh
    key = jax.random.fold_in(jax.random.key(stage.seed), _ADAPTORS)
    adapted = lora.add(params, section, key)
    freeze = (*config.freeze, lora.freeze_pattern(fresh))
    new = set(rules.names(adapted)) - set(rules.names(params))
    return adapted, ConfigDict({**config, "freeze": freeze}), {*fresh, *new}
