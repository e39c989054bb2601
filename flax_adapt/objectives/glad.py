"""GLAD fine-tuning (Yoon et al. 2023, abstract and figure; METHODS S4; no official code).

    L = CE(head(f_adapted(x)), y) + lam * R(f(x))

The path with adaptors solves the task, the one without keeps what is general; both have
the same backbone. R, and its weight, are open in the paper: ours.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import models
from flax_adapt.base import checks, keys, rules
from flax_adapt.base.checks import Check, Context, Row, one_of
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.metrics import Loss
from flax_adapt.base.types import Array, Batch, Key, LossFn, Params
from flax_adapt.objectives import classify, distill, mlm, reconstruct
from flax_adapt.surgery import adaptors

_MASKED = 0x61A  # purpose of keys
# The masked objectives, and the tasks that are trained beside the classifier for them.
MASKED = {
    "reconstruct": (reconstruct.make_loss, "mae"),
    "mlm": (mlm.make_loss, "mlm"),
}


class Unadapted(NamedTuple):
    """R of the path without adaptors.

    plain: the encoder without adaptors. beside: the model of the masked objective.
    """

    plain: nn.Module
    beside: nn.Module | None
    config: Any
    train: bool


def _nothing(given: Unadapted) -> LossFn | None:
    return None


def _preserve(given: Unadapted) -> LossFn:
    """Squared distance of states to those of the initial model, `frozen["start"]`.

    "features": states after the layers of `config.layers`; "attention": what every block
    adds after its attention. A mean over features.
    """
    config, states_of = given.config, PRESERVED[given.config.preserve]

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        del key_B  # nothing is dropped: the initial model is at distance 0
        inputs = batch[given.plain.modality]
        ours, theirs = (
            states_of(given.plain, part, inputs, config.layers)
            for part in (params, jax.lax.stop_gradient(frozen["start"]))
        )
        layout = given.plain.layout(inputs)
        how = (layout, batch["weight"], config.state, "mean")
        distance = distill.state_distance(ours, theirs, *how)
        return distance.value(), {"loss": Loss.of(distance), "preserve": distance}

    return loss_fn


def _features(plain, params, inputs, layers) -> list[Array]:
    states = plain.apply({"params": params}, inputs, None, method="encode")
    return [states[layer].astype(jnp.float32) for layer in layers]


def _attentions(plain, params, inputs, layers) -> list[Array]:
    del layers  # of every block
    collections = [models.ATTENTIONS]
    _, found = plain.apply(
        {"params": params}, inputs, None, method="encode", mutable=collections
    )
    blocks = found[models.ATTENTIONS]["encoder"]
    return [
        blocks[name]["attention"]["added"][0].astype(jnp.float32) for name in blocks
    ]


# What of the unadapted path is to stay near the initial model's.
PRESERVED: dict[str, Callable[..., list[Array]]] = {
    "features": _features,
    "attention": _attentions,
}


def _masked(given: Unadapted) -> LossFn:
    """The masked-modelling loss; its decoder trains along.

    Nothing is dropped: the dropout of `beside` is the classifier's, and MAE has none.
    """
    config = given.config
    make, task = MASKED[config.masked.name]
    if given.beside is None:
        raise UserError(
            f"objective.regularizer='masked' trains the task {task!r} beside: give its model, "
            "objectives.build(..., beside=models.build(config, task, ...))"
        )
    beside = given.beside.clone(dropout=0.0, drop_path=0.0)
    masked_loss = make(config.masked, beside, given.train)

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        return masked_loss(params, frozen, batch, keys.fold(key_B, _MASKED))

    return loss_fn


REGULARIZERS: dict[str, Callable[[Unadapted], LossFn | None]] = {
    "preserve": _preserve,
    "masked": _masked,
    "none": _nothing,
}


# Rules of the objective "glad".
ROWS = (
    one_of(
        "objective.regularizer",
        lambda subject: subject.objective.regularizer,
        REGULARIZERS,
    ),
    one_of("objective.preserve", lambda subject: subject.objective.preserve, PRESERVED),
    one_of(
        "objective.masked.name", lambda subject: subject.objective.masked.name, MASKED
    ),
    distill.weight_row("weight"),
    *distill.STATE_ROWS,
)


class _Adaptor(NamedTuple):
    """`model.adaptor` of a stage, the kind of its model, and its objective."""

    adaptor: Any
    kind: str
    objective: str


def _adaptor(at: Context) -> list[_Adaptor]:
    section = at.section
    return [
        _Adaptor(section.model.adaptor, at.config.model.kind, section.objective.name)
    ]


# GLAD needs adaptors, a classifier may have them.
_ADAPTOR = (
    Row(
        lambda it: it.objective != "glad" or it.adaptor is not None,
        "model.adaptor must be given for objective 'glad', such as dict(kind='vector', "
        "keywise=False, hidden=0)",
    ),
    Row(
        lambda it: it.adaptor is None or it.kind != "resnet",
        "model.adaptor must be None: a resnet has no attention to adapt",
    ),
    Row(
        lambda it: it.adaptor is None or it.objective in ("glad", "classify"),
        "model.adaptor must be None for objective {0.objective!r}; 'glad' and 'classify' "
        "can have adaptors",
    ),
)
CHECKS = (
    Check(_adaptor, _ADAPTOR),
    Check(lambda at: distill.compared(at, "glad"), ROWS),
)


def beside_task(config: Any) -> str | None:
    """The task whose head is trained beside the classifier, or None."""
    if config.regularizer != "masked":
        return None
    return choose("objective.masked.name", config.masked.name, MASKED)[1]


def _stop(params: Params) -> Params:
    """No gradient to the backbone: head and adaptors alone solve the task."""

    def stop(name: str, leaf: Array) -> Array:
        trains = adaptors.is_adaptor(name) or not name.startswith("encoder/")
        return leaf if trains else jax.lax.stop_gradient(leaf)

    return rules.map_named(stop, params)


def make_loss(
    config: Any, model: nn.Module, train: bool, beside: nn.Module | None = None
) -> LossFn:
    """`config`: regularizer, weight (lam), preserve, state, layers, masked,
    stop_backbone, and the fields of `classify`.

    model: a classifier with adaptors. beside: with regularizer "masked" the model of that
    task, without adaptors. What R costs: "preserve" a second pass of the whole input and
    one of the initial model without a gradient, of which XLA computes the embedding and
    the first block's queries, keys and values once where nothing is dropped; "masked" a
    pass of what is visible and one of its decoder or head, nothing shared; "none" nothing.
    """
    if model.config.adaptor is None:
        raise UserError(
            "objective 'glad' needs model.adaptor: what the task's path has and the "
            "other has not"
        )
    num_states = models.num_blocks(model.config) + 1
    checks.run(ROWS, distill.Compared(config, num_states))
    solve = classify.make_loss(config, model, train)
    if not train:
        return solve
    plain = models.without_adaptor(model)
    given = Unadapted(plain, beside, config, train)
    regularize = REGULARIZERS[config.regularizer](given)

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        solving, solved = params, batch
        if config.stop_backbone:  # logits that a batch brings have a gradient
            solving, solved = _stop(params), classify.without_logits(batch)
        metrics = solve(solving, frozen, solved, key_B)[1]
        loss = metrics["loss"]
        metrics = {**metrics, "ce": loss.terms[0]}
        if regularize is not None:
            more = regularize(params, frozen, batch, key_B)[1]
            loss = _plus(loss, config.weight, more.pop("loss"))
            metrics |= more
        return loss.value(), {**metrics, "loss": loss}

    return loss_fn


def _plus(loss: Loss, weight: float, other: Loss) -> Loss:
    return functools.reduce(
        lambda whole, term: whole.plus(weight, term), other.terms, loss
    )
