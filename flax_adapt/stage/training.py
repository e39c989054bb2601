"""Builds the initial state, loss and step of a stage, and writes its export."""

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flax_adapt import data, objectives, weights
from flax_adapt.base import checks, memory, rules, types
from flax_adapt.base.checks import Check, Context, builds
from flax_adapt.base.errors import reword_errors
from flax_adapt.base.types import Carry, LossFn, Params
from flax_adapt.models import batch_stats
from flax_adapt.objectives import ema, penalties
from flax_adapt.objectives import states as state_tools
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import frozen as stage_frozen
from flax_adapt.stage import lengths
from flax_adapt.stage import solve as stage_solve
from flax_adapt.stage import stage as stages
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.frozen import StageStart
from flax_adapt.stage.stage import Stage
from flax_adapt.surgery import lora
from flax_adapt.train import optim
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
    make_loss(stage, model, at.section.data, train=True)


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
    return TrainingStart(state, steps.make_train_step(*program.of_step(mesh)), report)


class Program(NamedTuple):
    """How a stage trains: its parameters with LoRA, loss, optimizer and `Carry`."""

    params: Params
    loss_fn: LossFn
    tx: optax.GradientTransformation
    accum_steps: int
    carry: Carry

    def of_step(self, mesh: Mesh) -> tuple[Any, ...]:
        """Returns the arguments of `step.make_train_step`."""
        return self.loss_fn, self.tx, mesh, self.accum_steps, self.carry


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
    config = stage.config
    params, section, fresh = _with_adaptors(stage, params, fresh)
    tx = optim.build(section, config.num_steps, params, fresh)
    loss_fn = make_loss(stage, model, config.data, train=True, fresh=fresh)
    loss_fn = optim.stop_frozen(loss_fn, section.freeze)
    if section.grad_reduce == "compute":
        loss_fn = steps.reduce_in_compute(loss_fn, model.dtype)
    carry = _carry(config, statistics)
    return Program(params, loss_fn, tx, section.accum_steps, carry)


def make_loss(
    stage: Stage,
    model: nn.Module,
    config_data: Any,
    *,
    train: bool,
    fresh: Collection[str] = (),
) -> LossFn:
    """Returns the loss of the trained parameters, for batches of the data pipeline.

    It augments and normalises images, adds penalties and merges LoRA into the kernels.
    config_data: the data section of the batches. fresh: names of leaves that are new in
    this stage, for penalties. Evaluation (`train=False`) has no penalties.
    """
    config = stage.config
    second_model = stages.build_second_model(stage) if train else None
    loss_fn = objectives.build(
        config.objective,
        model,
        train=train,
        second_model=second_model,
        one_document=state_tools.holds_one_document(config_data),
    )
    if train:
        loss_fn = penalties.add(loss_fn, config.penalties, model, fresh)
    loss_fn = objectives.on_pixels(loss_fn, config.objective, config_data, train=train)
    loss_fn = lora.merge_in_loss(loss_fn, config.model.lora)
    return memory.bind(loss_fn, config.memory) if train else loss_fn


def export(
    stage: Stage,
    model: nn.Module,
    state: TrainState,
    examples: data.Examples,
    mesh: Mesh,
) -> None:
    """Writes the export, with LoRA merged into the kernels, and its Fisher information."""
    merge = jax.jit(lambda params: lora.merge(params, stage.config.model.lora))
    params = merge(state.evaluated)
    stored = batch_stats.join(params, state.statistics)
    stage_weights.export(stage, model, stored, examples)
    stage_fisher.write(stage, model, params, examples, mesh)


def _carry(config: Any, statistics: Params) -> Carry:
    arguments = (config.objective, config.num_steps, statistics)
    carries = [objectives.build_carry(*arguments)]
    if config.ema is not None:
        carries.append(ema.make_carry(config.ema, config.num_steps))
    return types.join_carries(carries)


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
