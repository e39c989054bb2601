"""The compiled programs of a process: all runs with the same program share one.

The seeds of a stage, and stages that differ in their data, initial weights or learning rate
alone, compute the same program. A program is built from a `Recipe` alone, which holds every
setting that it depends on and can be compared. Two equal recipes therefore get the same
function, which JAX traces and compiles once. Three fine-tuning seeds trace and compile one
step instead of three; the numbers are the same. The learning rate of a step is an argument,
which a small program of its own computes (`find_rate`), where this changes no bit
(`optim.takes_rate`).

The functions hold no parameters. The last `KEPT` of each kind are kept.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import objectives
from flax_adapt.base import config as configs
from flax_adapt.base import memory, rules, types
from flax_adapt.base.types import Array, Carry, LossFn, Params
from flax_adapt.objectives import ema, penalties, states
from flax_adapt.stage import stage as stages
from flax_adapt.stage.stage import Stage
from flax_adapt.surgery import lora
from flax_adapt.train import optim, schedules
from flax_adapt.train import step as steps
from flax_adapt.weights import strict

KEPT = 8
# The fields of a data section that a loss reads, by modality: those of pixels.
_READ_FROM_DATA = {
    "image": ("modality", "augment", "views", "mean", "std", "channels"),
    "text": ("modality",),
}

# (name, shape, dtype) of every leaf of a tree.
Leaves = tuple[tuple[str, tuple[int, ...], str], ...]


def describe_inputs(config_data: Any) -> str:
    """Returns the settings of a data section that a program of its batches depends on.

    They are a text of `config.to_text`.
    """
    fields = _READ_FROM_DATA[config_data.modality]
    return configs.to_text({name: config_data[name] for name in fields})


class Recipe(NamedTuple):
    """Every setting that a training or evaluation program of a stage depends on.

    section: the settings of the config, as JSON. model, second_model: of the objective's
    tasks. fresh: names of the leaves that are new in the stage, if a penalty or the optimizer
    treats them in another way. params, statistics: leaves of the parameters (with LoRA) and
    of the running statistics.
    """

    section: str
    model: nn.Module
    second_model: nn.Module | None = None
    fresh: tuple[str, ...] = ()
    params: Leaves = ()
    statistics: Leaves = ()

    @property
    def settings(self) -> Any:
        """The settings of the config, as sections."""
        return configs.from_text(self.section)


def recipe_of_loss(
    stage: Stage, model: nn.Module, config_data: Any, *, fresh: Collection[str] = ()
) -> Recipe:
    """Returns the recipe of `make_training_loss`, for batches of a data section.

    fresh: names of leaves that are new in this stage, for penalties.
    """
    config = stage.config
    fields = {
        **_settings_of_loss(stage, config_data),
        "penalties": [_without_reference(penalty) for penalty in config.penalties],
        "memory": memory.settle(
            config.memory, stage.experiment.model, jax.devices()[0].platform
        ),
    }
    second_model = stages.build_second_model(stage)
    named = tuple(sorted(fresh)) if treats_fresh(config) else ()
    return Recipe(configs.to_text(fields), model, second_model, named)


def recipe_of_training(
    stage: Stage,
    model: nn.Module,
    config_optim: Any,
    params: Params,
    statistics: Params,
    fresh: Collection[str],
) -> Recipe:
    """Returns the recipe of a stage's training step.

    config_optim: the stage's `optim` with what LoRA freezes. params, statistics: initial
    parameters with LoRA and running statistics, arrays or their shapes.
    """
    config = stage.config
    recipe = recipe_of_loss(stage, model, config.data, fresh=fresh)
    rated = optim.takes_rate(config_optim, config.num_steps)
    fields = {
        **configs.from_text(recipe.section),
        "rated": rated,
        "optim": {**config_optim, **(_ANY_RATE if rated else {})},
        "ema": config.ema,
        "num_steps": 0 if serves_any_length(config) else config.num_steps,
    }
    return recipe._replace(
        section=configs.to_text(fields),
        params=_list_leaves(params),
        statistics=_list_leaves(statistics),
    )


# Fields of `optim` in a recipe: the learning rate is an argument of its program.
_ANY_RATE = dict(lr=0.0, warmup_steps=0, schedule="constant")


def serves_any_length(section: Any) -> bool:
    """Returns whether the program of a stage is the same for any number of steps."""
    averages = section.ema is not None or section.objective.name in objectives.CARRIES
    recalls = section.optim.recadam is not None
    rated = optim.takes_rate(section.optim, section.num_steps)
    return rated and not (averages or recalls)


def treats_fresh(section: Any) -> bool:
    """Returns whether new leaves are trained in another way than others."""
    anchored = section.optim.recadam is not None or section.optim.mars_radius > 0
    return bool(section.penalties) or anchored


def recipe_of_evaluation(stage: Stage, model: nn.Module, config_data: Any) -> Recipe:
    """Returns the recipe of an evaluation step on batches of a data section."""
    return Recipe(configs.to_text(_settings_of_loss(stage, config_data)), model)


def _settings_of_loss(stage: Stage, config_data: Any) -> dict[str, Any]:
    return {
        "objective": stage.config.objective,
        "data": configs.from_text(describe_inputs(config_data)),
        "one_document": states.holds_one_document(config_data),
        "lora": stage.config.model.lora,
    }


def _without_reference(penalty: Any) -> dict[str, Any]:
    """Returns the section without `of`: what it refers to is an argument of the loss."""
    return {name: penalty[name] for name in penalty if name != "of"}


def _list_leaves(tree: Params) -> Leaves:
    return tuple(
        (name, tuple(leaf.shape), str(np.dtype(leaf.dtype)))
        for name, leaf in rules.name_leaves(tree).items()
    )


def _shapes_of(leaves: Leaves) -> dict[str, Any]:
    return strict.unflatten(
        {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in leaves}
    )


def make_training_loss(recipe: Recipe) -> LossFn:
    """Returns the loss of the trained parameters, for batches of the data pipeline.

    It augments and normalises images, adds penalties and merges LoRA into the kernels.
    """
    settings = recipe.settings
    loss_fn = objectives.build(
        settings.objective,
        recipe.model,
        second_model=recipe.second_model,
        one_document=settings.one_document,
    )
    loss_fn = penalties.add(loss_fn, settings.penalties, recipe.model, recipe.fresh)
    loss_fn = _on_batches(loss_fn, settings, train=True)
    return memory.bind(loss_fn, settings.memory)


def make_evaluation_loss(recipe: Recipe) -> LossFn:
    """Returns the loss of evaluation: without augmentation, dropout and penalties."""
    settings = recipe.settings
    loss_fn = objectives.build(
        settings.objective,
        recipe.model,
        train=False,
        one_document=settings.one_document,
    )
    return _on_batches(loss_fn, settings, train=False)


def _on_batches(loss_fn: LossFn, settings: Any, *, train: bool) -> LossFn:
    loss_fn = objectives.on_pixels(
        loss_fn, settings.objective, settings.data, train=train
    )
    return lora.merge_in_loss(loss_fn, settings.lora)


def make_carry(config: Any, statistics: Params) -> Carry:
    """Returns the `Carry` of a stage.

    config: objective, ema, num_steps. statistics: initial running statistics; a carry of
    their shapes can update a state, but not begin one.
    """
    arguments = (config.objective, config.num_steps, statistics)
    carries = [objectives.build_carry(*arguments)]
    if config.ema is not None:
        carries.append(ema.make_carry(config.ema, config.num_steps))
    return types.join_carries(carries)


class Training(NamedTuple):
    """The loss and the optimizer of a training step, and the number of its parts."""

    loss_fn: LossFn
    tx: optax.GradientTransformation
    accum_steps: int


@functools.lru_cache(KEPT)
def share_training(recipe: Recipe) -> Training:
    """Returns loss and optimizer; for equal recipes the same functions."""
    section = recipe.settings.optim
    leaves = _shapes_of(recipe.params)
    settings = (section, recipe.settings.num_steps, leaves, recipe.fresh)
    build = optim.build_rated if recipe.settings.rated else optim.build
    tx = build(*settings)
    loss_fn = optim.stop_frozen(make_training_loss(recipe), section.freeze)
    if section.grad_reduce == "compute":
        loss_fn = steps.reduce_in_compute(loss_fn, recipe.model.dtype)
    return Training(loss_fn, tx, section.accum_steps)


@functools.lru_cache(KEPT)
def share_update(recipe: Recipe, mesh: Mesh) -> Any:
    """Returns `step.jit_update`; for equal recipes the same one, which compiles once."""
    training = share_training(recipe)
    carry = make_carry(recipe.settings, _shapes_of(recipe.statistics))
    return steps.jit_update(
        training.loss_fn, training.tx, mesh, training.accum_steps, carry
    )


def find_rate(section: Any) -> Callable[[Array], Array] | None:
    """Returns the jitted learning rate of a stage by step, float32 [].

    None for a stage whose program has it as a constant.
    """
    if not optim.takes_rate(section.optim, section.num_steps):
        return None
    optim_fields = {name: section.optim[name] for name in _ANY_RATE}
    return _share_rate(configs.to_text(optim_fields), section.num_steps)


@functools.lru_cache(8 * KEPT)
def _share_rate(optim_fields: str, num_steps: int) -> Callable[[Array], Array]:
    rate = schedules.schedule(configs.from_text(optim_fields), num_steps)
    return jax.jit(lambda step: jnp.asarray(rate(step), jnp.float32))


@functools.lru_cache(KEPT)
def share_eval_step(recipe: Recipe, mesh: Mesh) -> steps.EvalStep:
    """Returns the evaluation step; for equal recipes the same one, which compiles once."""
    return steps.make_eval_step(make_evaluation_loss(recipe), mesh)
