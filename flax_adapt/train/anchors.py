"""Optimizers that hold the weights near the initial ones: RecAdam and MARS.

Both keep the initial weights in their state, so that these are laid out like the
parameters and go into every checkpoint. The initial value of a leaf that is new in a stage
is random: neither optimizer holds it there.
"""

import math
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from flax_adapt.base import rules
from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.base.types import Array, Params

# RecAdam's published t0 and k (Chen et al. 2020), for stages of SCALED_BELOW steps and more; in a
# shorter one both are scaled, so that its curve has the same shape (ours).
T0, K, SCALED_BELOW = 250.0, 0.5, 1_000

# How MARS measures the distance of a leaf (Gouk et al. 2021, official code: weights of
# Dense and Conv by their rows, scales of batch norm as a diagonal matrix, one number a
# row). FREE leaves have no bound: biases, as in that code; and tokens and positions (its
# models have none) and adaptors, which are new in a stage (ours).
ROWS, DIAGONAL, FREE = "rows", "diagonal", "free"
BOUNDED = (
    (r"(?!lora/).*/kernel", ROWS),
    (r"(?!(.*/)?adaptor/).*/scale", DIAGONAL),
    (r".*/(bias|\w+_token|position|token|token_type)", FREE),
    (r"lora/.*", FREE),
    (r"(.*/)?adaptor/[^/]+", FREE),
)


def _rates(at: Context) -> list[ConfigDict]:
    """Returns the section `optim` with its learning rate, and with each rate of a sweep."""
    optim, sweep = at.section.optim, at.section.sweep
    rates = (optim.lr, *(() if sweep is None else sweep.lrs))
    return [ConfigDict({**optim, "lr": lr}) for lr in rates]


def _leap(optim: Any) -> str:
    gamma = optim.recadam.gamma
    return (
        f"optim.lr={optim.lr} x recadam.gamma={gamma} = {optim.lr * gamma:g} must be below "
        "1: a step would leap over the initial weights; lower lr to less than "
        f"{1 / gamma:g}, or gamma"
    )


def _has_range(recadam: Any) -> bool:
    return (
        0 <= recadam.gamma < math.inf
        and 0 <= recadam.k < math.inf
        and (recadam.t0 >= 0)
    )


def _radius(field: str) -> Row:
    return Row(
        lambda optim: 0 <= optim[field] < math.inf,
        f"optim.{field}={{0.{field}}} must be above 0, or 0: no bound",
    )


# Rules of a section `optim`.
FIELD_ROWS = (
    _radius("mars_radius"),
    _radius("mars_head_radius"),
    Row(
        lambda optim: (
            optim.mars_radius or not (optim.mars_head_radius or optim.mars_norms)
        ),
        "optim.mars_head_radius and mars_norms are parts of MARS: give mars_radius, too",
    ),
    Row(
        lambda optim: optim.recadam is None or _has_range(optim.recadam),
        "optim.recadam: gamma={0.recadam.gamma}, k={0.recadam.k} and t0={0.recadam.t0} must "
        "be at least 0 (k, t0 of 0: by the length of the stage)",
    ),
    Row(
        lambda optim: optim.recadam is None or optim.lr * optim.recadam.gamma < 1, _leap
    ),
)


class _Anchor(NamedTuple):
    """A field of `optim` that holds weights near the initial ones, and its stage."""

    field: str
    section: Any


def _list_anchored(at: Context) -> list[_Anchor]:
    fields = ("recadam", "mars_radius")
    return [_Anchor(field, at.section) for field in fields if at.section.optim[field]]


# RecAdam and MARS need initial weights of leaves that train.
_ANCHORED = (
    Row(
        lambda anchor: anchor.section.init_from != "scratch",
        "optim.{0.field} needs weights to stay near, but init_from='scratch'",
    ),
    Row(
        lambda anchor: anchor.section.model.lora is None,
        "optim.{0.field} and model.lora do not fit: all that trains is new",
    ),
)
CHECKS = (Check(_rates, FIELD_ROWS), Check(_list_anchored, _ANCHORED))


def _copies(params: Params) -> Params:
    """Returns a copy in its own buffers: the first step donates those of the parameters."""
    return jax.tree.map(jnp.copy, params)


class RecAdamState(NamedTuple):
    """State of RecAdam. step int32 []: steps done; mu, nu: Adam's moments; start: theta0."""

    step: Array
    mu: Params
    nu: Params
    start: Params


def recall_schedule(recall: Any, num_steps: int) -> tuple[float, float]:
    """Returns (k, t0) of a stage: those of `recall`, section `optim.recadam`.

    Where one is 0 it is the published one, 0.5 or 250, from 1 000 steps on. In shorter
    stages both are scaled (ours): 5 and 25 at 100 steps, so that l = 1/2 is reached at a
    quarter of the stage at the latest.
    """
    share = min(1.0, num_steps / SCALED_BELOW)
    return recall.k or K / share, recall.t0 or T0 * share


def recadam(
    config: Any,
    schedule: optax.Schedule,
    decays: Callable[[Params], Any],
    fresh: Collection[str],
    num_steps: int,
) -> optax.GradientTransformation:
    """Returns Recall Adam (Chen et al. 2020), in the order of the official code.

    `config`: optim section; recadam has gamma, k, t0 (see `recall_schedule`). At step
    t = 1, 2, ... with lr of the schedule, lr_t = lr * sqrt(1 - b2^t) / (1 - b1^t),
    l = sigmoid(k (t - t0)):

        theta <- theta - lr_t * l * m / (sqrt v + eps)
        theta <- theta - lr * (1 - l) * gamma * (theta - theta0)
        theta <- theta - lr * weight_decay * theta

    The new leaves, named in `fresh`, get plain Adam: l = 1, always. decays: params -> tree
    of bools, true where the last line applies.
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
        change = _recall(config, schedule(state.step), state.step + 1, num_steps)
        is_fresh = rules.map_named(lambda name, _: name in fresh, params)
        trees = (params, mu, nu, state.start, is_fresh, decays(params))
        updates = jax.tree.map(change, *trees)
        return updates, RecAdamState(state.step + 1, mu, nu, state.start)

    return optax.GradientTransformation(init, update)


def _recall(config: Any, lr: Any, step: Array, num_steps: int) -> Callable[..., Array]:
    """Returns the update of one leaf at step t: the three lines of `recadam`."""
    recall, lr = config.recadam, jnp.asarray(lr, jnp.float32)
    k, t0 = recall_schedule(recall, num_steps)
    t = step.astype(jnp.float32)
    lr_t = lr * jnp.sqrt(1 - config.b2**t) / (1 - config.b1**t)
    learn = jax.nn.sigmoid(k * (t - t0))

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
    """State of MARS: the parameters at step 0."""

    start: Params


def project(w: Array, start: Array | float, radius: float) -> Array:
    """Returns w, moved towards `start` until no output unit is further than `radius`.

    The distance of a unit is the sum of |w - start| over all its inputs: a row of the
    papers' matrices, while our kernels are [in, out] or [Y, X, in, out]. Each unit is
    scaled by itself: start + d / max(1, |d|_1 / radius). d = ((3, 1), (1, -1)), radius 2:
    units (3, 1) and (1, -1) at 4 and 2, so ((1.5, 1), (0.5, -1)). The scales of a norm,
    [D], are a diagonal matrix: every number is a row.
    """
    moved = w - start
    inputs = tuple(range(w.ndim - 1))
    distance = jnp.sum(jnp.abs(moved), axis=inputs, keepdims=True)
    return start + moved / jnp.maximum(1.0, distance / radius)


def mars(config: Any, fresh: Collection[str]) -> optax.GradientTransformation:
    """Returns a bound on the distance to the initial weights, MARS (Gouk et al. 2021).

    As in the official code. `config`: optim section. It must be the last transformation of a
    chain, as it projects the updated parameters. The distance is the maximum absolute row
    sum (MARS).

    mars_radius bounds the distance of every kernel that is not in `fresh` (names of new
    leaves) to its initial value, with mars_norms that of every scale, too.
    mars_head_radius bounds the distance of a new kernel to ZERO, as that code bounds its
    classifier. The code bounds the scale of a batch norm divided by the moving deviation; a
    LayerNorm has no moving deviation (ours: the scale itself).
    """
    held = optax.masked(
        _project_around_start(config.mars_radius), _select_bounded(config, fresh)
    )
    if not config.mars_head_radius:
        return held
    around_zero = optax.stateless(_project_around_zero(config.mars_head_radius))
    return optax.chain(held, optax.masked(around_zero, _select_new_kernels(fresh)))


def _project_around_start(radius: float) -> optax.GradientTransformation:
    """Returns the transformation that projects every leaf around its value at step 0."""

    def init(params: Params) -> Start:
        return Start(_copies(params))

    def update(
        updates: Params, state: Start, params: Params | None = None
    ) -> tuple[Params, Start]:
        def project_update(u: Array, w: Array, w0: Array) -> Array:
            return project(w + u, w0, radius) - w

        return jax.tree.map(project_update, updates, params, state.start), state

    return optax.GradientTransformation(init, update)


def _project_around_zero(radius: float) -> Callable[[Params, Params | None], Params]:
    """Returns (updates, params) -> updates that project every leaf around zero."""

    def update(updates: Params, params: Params | None) -> Params:
        return jax.tree.map(
            lambda u, w: project(w + u, 0.0, radius) - w, updates, params
        )

    return update


def _select_bounded(config: Any, fresh: Collection[str]) -> Callable[[Params], Any]:
    """Returns params -> tree of bools: true where MARS bounds the distance to step 0."""
    kinds = {ROWS, *([DIAGONAL] if config.mars_norms else [])}

    def is_bounded(params: Params) -> Any:
        measured = rules.assign("anchors.BOUNDED", BOUNDED, params)
        return rules.map_named(
            lambda name, kind: kind in kinds and name not in fresh, measured
        )

    return is_bounded


def _select_new_kernels(fresh: Collection[str]) -> Callable[[Params], Any]:
    """Returns params -> tree of bools: true for new kernels that are not of adaptors."""

    def is_new(name: str, leaf: Array) -> bool:
        return name in fresh and bool(re.fullmatch(r"(?!lora/).*/kernel", name))

    return lambda params: rules.map_named(is_new, params)
