"""The training and evaluation steps: the only jit of the training path."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base import keys, placement, rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import (
    CARRY_INPUT,
    NOTHING_CARRIED,
    Array,
    Batch,
    Carry,
    LossFn,
    Metrics,
    Params,
)
from flax_adapt.train import sharding
from flax_adapt.train.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Params, Batch, Array | int], Metrics]
# Metric: the index (in the tree) of the first parameter that is not finite, or whose gradient
# is not; -1 where all are finite.
BAD_LEAF = "bad_leaf"
_EVAL = (
    0x7FFFFFFF  # no step has this number, so evaluation has other keys than training
)


def _split(batch: Any, num_parts: int) -> Any:
    """Returns leaves [B, ...] as [parts, B / parts, ...], each part spread over all devices."""

    def split(rows):
        parts = rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1)
        return placement.place("parts", parts)

    return jax.tree.map(split, batch)


def _accumulate(loss_fn, params, frozen, batch, key_B, num_parts: int, mesh: Mesh):
    """Returns (gradient, metrics) of the whole batch, computed from its parts.

    Every term of the loss is summed over all parts and divided once.
    """
    inputs = _split((batch, key_B), num_parts)

    def metrics_of(params, part):
        return loss_fn(params, frozen, *placement.place("inputs", part))[1]

    def counts_of(part):
        return metrics_of(params, part)["loss"].counts

    # Counts follow from masks and weights: XLA drops the model from this pass.
    counts = jax.tree.map(jnp.sum, jax.lax.map(counts_of, inputs))

    def share(params, part):
        metrics = metrics_of(params, part)
        return metrics["loss"].over(counts), metrics

    share_grad = jax.grad(share, has_aux=True)

    def add(total, part):
        grads, metrics = jax.tree.map(jnp.add, total, share_grad(params, part))
        return (_lay_out(grads, mesh), metrics), None

    first = jax.tree.map(lambda rows: rows[0], inputs)
    shapes = jax.eval_shape(share_grad, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)[0]


def _lay_out(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays that are named as parameters are, divided by the table of parameters."""
    return jax.lax.with_sharding_constraint(tree, sharding.tree_shardings(tree, mesh))


def _squares(tree: Params) -> jax.Array:
    """Returns the sums of squares of all leaves, [number of leaves]."""
    return jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)])


def _health(grads: Params, params: Params) -> dict[str, Mean]:
    """Returns the metrics grad_norm (global) and bad_leaf, the first leaf not finite.

    A leaf is bad if the norm of its gradient, or of the updated leaf, is not finite.
    """
    squares = _squares(grads)
    bad = ~jnp.isfinite(squares + _squares(params))
    first_bad = jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.float32)
    one = jnp.float32(1)
    return {
        "grad_norm": Mean(jnp.sqrt(jnp.sum(squares)), one),
        BAD_LEAF: Mean(first_bad, one),
    }


def _check_carried(state: TrainState, carry: Carry) -> None:
    if {*state.extra} != {"seed", *carry.names}:
        raise UserError(
            f"the state carries {sorted({*state.extra} - {'seed'})} but the step's carry "
            f"is of {sorted(carry.names)}; give the same `carry` (objectives.build_carry) "
            "to create_state and to make_train_step"
        )


# The parameters that `reduce_in_compute` casts, for `optim.grad_reduce="compute"`.
_COMPUTED = r"(encoder|decoder|mlm)/.*kernel"


def reduce_in_compute(loss_fn: LossFn, dtype: Any) -> LossFn:
    """Returns the same loss, as a function of kernels that are first cast to `dtype`.

    Their gradients then have that dtype while they are summed over the devices. For
    bfloat16 this halves the traffic and is less exact. Models otherwise sum them in
    float32, see `layers.matmul`.
    """

    def cast(name: str, leaf: Array) -> Array:
        return leaf.astype(dtype) if re.fullmatch(_COMPUTED, name) else leaf

    return lambda params, *rest: loss_fn(rules.map_named(cast, params), *rest)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    accum_steps: int = 1,
    carry: Carry = NOTHING_CARRIED,
) -> TrainStep:
    """Returns `step(state, batch) -> (state, metrics)`, which donates its argument `state`.

    The step is one jit. Params, optimizer state and gradients are laid out by the sharding
    table, the batch over ("data", "fsdp"). With `accum_steps` parts, these are run one after
    the other and give the gradient of the whole batch (mixup and cutmix pair examples of the
    same part). `metrics` has those of the loss, grad_norm and bad_leaf. `carry`: the one that
    the state was created with, else the step raises UserError. Raises UserError for
    accum_steps above 1 where `carry` needs whole batches.
    """
    return CompiledStep(jit_update(loss_fn, tx, mesh, accum_steps, carry))


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step, see `make_train_step`, which is compiled when it is first called.

    update: `jit_update`. rate: the jitted learning rate by step (0 first), for an optimizer of
    `optim.build_rated`; None for one of `optim.build`, whose rates are its constants.
    """

    update: Any
    rate: Callable[[Array], Array] | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the state after a step and its metrics; `state` is donated."""
        more = {} if self.rate is None else {"rate": self.rate(state.step)}
        without = state.replace(frozen={})
        new, metrics = self.update(without, state.frozen, batch, more)
        return new.replace(frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Returns the program before compilation; nothing is computed.

        state, batch: arrays, or shapes with shardings (`state.describe`); the devices may be
        those of a topology that is not there. With the arguments of a call, `compile` of the
        result returns the program that was called.
        """
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
        more = {} if self.rate is None else {"rate": scalar}
        return self.update.lower(state.replace(frozen={}), state.frozen, batch, more)


def jit_update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    accum_steps: int,
    carry: Carry,
) -> Any:
    """Returns the jitted (state without frozen, frozen, batch, more) -> (state, metrics).

    more: arguments of `tx.update` by keyword. Raises UserError as `make_train_step`.
    """
    if accum_steps > 1 and carry.whole_batches:
        raise UserError(
            f"optim.accum_steps={accum_steps} must be 1: the objective compares the "
            "examples of a whole batch with each other, or batch norm does"
        )
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(params, frozen, batch, key_B):
        if accum_steps > 1:
            return _accumulate(loss_fn, params, frozen, batch, key_B, accum_steps, mesh)
        (_, metrics), grads = grad_fn(params, frozen, batch, key_B)
        return grads, metrics

    def update(
        state: TrainState, frozen: Params, batch: Batch, more: dict[str, Array]
    ) -> tuple[TrainState, Metrics]:
        _check_carried(state, carry)
        inputs = state.replace(frozen=frozen).loss_inputs
        key = jax.random.fold_in(jax.random.key(state.extra["seed"]), state.step)
        key_B = keys.example_keys(key, batch["position"])
        with sharding.placing(mesh):
            key_B = placement.place("inputs", key_B)
            grads, metrics = gradients(state.params, inputs, batch, key_B)
        grads = _lay_out(grads, mesh)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **more)
        step, params = state.step + 1, optax.apply_updates(state.params, updates)
        carried = carry.update(state.extra, params, metrics.pop(CARRY_INPUT, {}), step)
        new = state.replace(
            step=step,
            params=params,
            opt_state=opt_state,
            extra={**state.extra, **carried},
        )
        new = _lay_out(new, mesh)
        return new, {**metrics, **_health(grads, new.params)}

    return jax.jit(update, donate_argnums=0)


def make_eval_step(loss_fn: LossFn, mesh: Mesh) -> EvalStep:
    """Returns `step(params, frozen, batch, seed) -> metrics`, the same on every process.

    `frozen`: arrays that the loss reads without a gradient, `state.loss_inputs`.

    Keys come from the rows in the SOURCE, so values do not depend on the batch size (except
    for contrast, which compares the rows of a batch).
    """

    def evaluate(params: Params, frozen: Params, batch: Batch, seed: Any) -> Metrics:
        key = jax.random.fold_in(jax.random.key(seed), _EVAL)
        key_B = keys.example_keys(key, batch["index"])
        with sharding.placing(mesh):
            return loss_fn(params, frozen, batch, placement.place("inputs", key_B))[1]

    return jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))
