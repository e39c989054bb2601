"""Optimizers that hold on to the weights they start from: RecAdam and MARS.

Both keep the start in their state, so that it is laid out like the parameters and goes
into every checkpoint. Leaves that are new in a stage have no start worth holding on to.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Params

# Of what MARS bounds the distance: the kernels of layers (official code: of Dense and
# Conv). What is added, scales or is looked up has no row sum, and is left free.
BOUNDED = (
    (r".*/kernel", True),
    (r".*/(bias|scale|cls_token|mask_token|position|token|token_type)", False),
    (r"lora/.*", False),
    (r"(.*/)?adaptor/[^/]+", False),
)


def _copies(params: Params) -> Params:
    """Buffers of their own: those of the parameters are donated to the first step."""
    return jax.tree.map(jnp.copy, params)


class RecAdamState(NamedTuple):
    """step int32 []: steps done; mu, nu: Adam's moments; start: theta0."""

    step: Array
    mu: Params
    nu: Params
    start: Params


def check_recadam(config: Any, lr: float) -> None:
    """Raises UserError for a section `optim.recadam` that cannot be."""
    gamma, k = config.gamma, config.k
    if not (0 <= gamma < math.inf and 0 < k < math.inf and config.t0 >= 0):
        raise UserError(
            f"optim.recadam: gamma={gamma} must be at least 0, k={k} above 0 and "
            f"t0={config.t0} at least 0"
        )
    if lr * gamma >= 1:
        raise UserError(
            f"optim.lr={lr} x recadam.gamma={gamma} = {lr * gamma:g} must be below 1: a "
            f"step would leap over the start; lower lr to less than {1 / gamma:g}, or gamma"
        )


def recadam(
    config: Any,
    schedule: optax.Schedule,
    decays: Callable[[Params], Any],
    fresh: Collection[str],
) -> optax.GradientTransformation:
    """Recall Adam (Chen et al. 2020), in the order of the official code.

    `config`: optim section; recadam has gamma, k, t0. At step t = 1, 2, ... with lr of
    the schedule, lr_t = lr * sqrt(1 - b2^t) / (1 - b1^t), l = sigmoid(k (t - t0)):

        theta <- theta - lr_t * l * m / (sqrt v + eps)
        theta <- theta - lr * (1 - l) * gamma * (theta - theta0)
        theta <- theta - lr * weight_decay * theta

    Leaves named in `fresh` get plain Adam: l = 1, always. decays: params -> tree of
    bools, which leaves the last line is for.
    """

    def init(params: Params) -> RecAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return RecAdamState(jnp.int32(0), mu, nu, _copies(params))

    def update(
        grads: Params, state: RecAdamState, params: Params | None = None
    ) -> tuple[Params, RecAdamState]:
        assert params is not None
        mu = _blend(state.mu, grads, config.b1)
        nu = _blend(state.nu, jax.tree.map(jnp.square, grads), config.b2)
        change = _recall(config, schedule(state.step), state.step + 1)
        is_fresh = rules.map_named(lambda name, _: name in fresh, params)
        trees = (params, mu, nu, state.start, is_fresh, decays(params))
        updates = jax.tree.map(change, *trees)
        return updates, RecAdamState(state.step + 1, mu, nu, state.start)

    return optax.GradientTransformation(init, update)


def _recall(config: Any, lr: Any, step: Array) -> Callable[..., Array]:
    """The three lines of `recadam` at step t, of one leaf: what is added to it."""
    recall, lr = config.recadam, jnp.asarray(lr, jnp.float32)
    t = step.astype(jnp.float32)
    lr_t = lr * jnp.sqrt(1 - config.b2**t) / (1 - config.b1**t)
    learn = jax.nn.sigmoid(recall.k * (t - recall.t0))

    def change(
        w: Array, m: Array, v: Array, w0: Array, is_fresh: bool, decays: bool
    ) -> Array:
        adam = lr_t * m / (jnp.sqrt(v) + config.eps)
        new = w - (adam if is_fresh else learn * adam)
        if not is_fresh:
            new = new - lr * (1 - learn) * recall.gamma * (new - w0)
        if decays:
            new = new - lr * config.weight_decay * new
        return new - w

    return change


def _blend(old: Params, new: Params, keep: float) -> Params:
    return jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, old, new)


class Start(NamedTuple):
    """The parameters at step 0."""

    start: Params


def check_radius(radius: float) -> None:
    """Raises UserError for an `optim.mars_radius` that is no radius; 0: off."""
    if not 0 <= radius < math.inf:
        raise UserError(f"optim.mars_radius={radius} must be above 0, or 0: no bound")


def project(w: Array, start: Array, radius: float) -> Array:
    """Returns w, drawn towards `start` until no output unit is further than `radius`.

    The distance of a unit is the sum of |w - start| over all that enters it, the rows of
    the papers' matrices: our kernels are [in, out] or [Y, X, in, out]. Each unit is
    scaled by itself: start + d / max(1, |d|_1 / radius). d = ((3, 1), (1, -1)), radius 2:
    units (3, 1) and (1, -1) at 4 and 2, so ((1.5, 1), (0.5, -1)).
    """
    moved = w - start
    inputs = tuple(range(w.ndim - 1))
    distance = jnp.sum(jnp.abs(moved), axis=inputs, keepdims=True)
    return start + moved / jnp.maximum(1.0, distance / radius)


def mars(radius: float, fresh: Collection[str]) -> optax.GradientTransformation:
    """Keeps every kernel within `radius` of its start (Gouk et al. 2021, official code).

    To be the last of a chain: it projects what the update would make of the parameters.
    The distance is the maximum absolute row sum, MARS. BOUNDED says of which leaves,
    less those named in `fresh`.
    """

    def init(params: Params) -> Start:
        return Start(_copies(params))

    def update(
        updates: Params, state: Start, params: Params | None = None
    ) -> tuple[Params, Start]:
        def held(u: Array, w: Array, w0: Array) -> Array:
            return project(w + u, w0, radius) - w

        return jax.tree.map(held, updates, params, state.start), state

    def is_bounded(params: Params) -> Any:
        bounded = rules.assign("anchors.BOUNDED", BOUNDED, params)
        return rules.map_named(lambda name, is_it: is_it and name not in fresh, bounded)

    return optax.masked(optax.GradientTransformation(init, update), is_bounded)
