"""GLAD fine-tuning (Yoon et al. 2023, abstract and figure; S4; no official code).

    L = CE(head(f_adapted(x)), y) + lam * R(f(x))

The forward pass with adaptors learns the task. The pass without adaptors preserves general
features. Both use the same backbone. The paper does not specify R and its weight: ours.
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
from flax_adapt.models import residual
from flax_adapt.objectives import classify, mlm, reconstruct, states
from flax_adapt.surgery import adaptors

_MASKED = 0x61A  # folded into the PRNG keys of the masked objective
# The masked objectives, and their tasks, which are trained together with the classifier.
MASKED = {
    "reconstruct": (reconstruct.make_loss, "mae"),
    "mlm": (mlm.make_loss, "mlm"),
}


class RegularizerParts(NamedTuple):
    """The parts of R, the regularizer of the pass without adaptors.

    plain: the encoder without adaptors. second_model: the model of the masked objective, None
    where it is not trained. config: section `objective`. one_document: see
    `states.select_compared`.
    """

    plain: nn.Module
    second_model: nn.Module | None
    config: Any
    train: bool
    one_document: bool


def _no_regularizer(parts: RegularizerParts) -> LossFn | None:
    return None


def _preserve_regularizer(parts: RegularizerParts) -> LossFn:
    """Returns the squared distance of states to those of the initial model.

    The parameters of that model are `frozen["start"]`. "features" compares the states
    after the layers of `config.layers`, "attention" what the attention of every block adds
    to the residual stream. The distance is a mean over features.
    """
    config, states_of = parts.config, PRESERVED[parts.config.preserve]
    select = states.select_compared(config.state, parts.plain, parts.one_document)

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        del key_B  # no dropout: the initial model is at distance 0
        inputs = batch[parts.plain.modality]
        ours, theirs = (
            states_of(parts.plain, part, inputs, config.layers, select)
            for part in (params, jax.lax.stop_gradient(frozen["start"]))
        )
        layout = states.layout_of(parts.plain, inputs, select)
        how = (layout, batch["weight"], config.state, "mean")
        distance = states.state_distance(ours, theirs, *how)
        return distance.value(), {"loss": Loss.of(distance), "preserve": distance}

    return loss_fn


def _attentions(plain, params, inputs, layers, select) -> list[Array]:
    del layers  # of every block
    arguments, collections = (inputs, None, None, select), [models.ATTENTIONS]
    _, found = plain.apply(
        {"params": params}, *arguments, method="encode", mutable=collections
    )
    blocks = found[models.ATTENTIONS]["encoder"].values()
    added = [block["attention"]["added"][0].astype(jnp.float32) for block in blocks]
    return [residual.take(select, x_BLD) for x_BLD in added]


# Which states of the pass without adaptors stay near those of the initial model.
PRESERVED: dict[str, Callable[..., list[Array]]] = {
    "features": states.encode_selected,
    "attention": _attentions,
}


def _masked_regularizer(parts: RegularizerParts) -> LossFn:
    """Returns the masked-modelling loss, which also trains its decoder or head.

    It has no dropout: the rates of `second_model` are those of the classifier, and MAE has none.
    Raises UserError where `second_model` is None.
    """
    config = parts.config
    make, task = MASKED[config.masked.name]
    if parts.second_model is None:
        raise UserError(
            f"objective.regularizer='masked' trains a second task, {task!r}: give its model, "
            "objectives.build(..., second_model=models.build(config, task, ...))"
        )
    second_model = parts.second_model.clone(dropout=0.0, drop_path=0.0)
    masked_loss = make(config.masked, second_model, parts.train)

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        return masked_loss(params, frozen, batch, keys.fold(key_B, _MASKED))

    return loss_fn


REGULARIZERS: dict[str, Callable[[RegularizerParts], LossFn | None]] = {
    "preserve": _preserve_regularizer,
    "masked": _masked_regularizer,
    "none": _no_regularizer,
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
    states.weight_row("weight"),
    *states.STATE_ROWS,
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
    Check(lambda at: states.state_comparisons(at, "glad"), ROWS),
)


def second_task(config: Any) -> str | None:
    """Returns the masked task that is trained together with the classifier, or None."""
    if config.regularizer != "masked":
        return None
    return choose("objective.masked.name", config.masked.name, MASKED)[1]


def _stop(params: Params) -> Params:
    """Returns `params` without a gradient to the backbone, but to head and adaptors."""

    def stop(name: str, leaf: Array) -> Array:
        trains = adaptors.is_adaptor(name) or not name.startswith("encoder/")
        return leaf if trains else jax.lax.stop_gradient(leaf)

    return rules.map_named(stop, params)


def make_loss(
    config: Any,
    model: nn.Module,
    train: bool,
    second_model: nn.Module | None = None,
    one_document: bool = False,
) -> LossFn:
    """Returns the GLAD loss, cross-entropy with adaptors plus `weight` (lam) times R.

    `config`: regularizer, weight, preserve, state, layers, masked, stop_backbone, and the
    fields of `classify`. model: a classifier with adaptors. second_model: with regularizer
    "masked" the model of that task, without adaptors. Raises UserError for a model without
    adaptors and for fields that are out of range. Evaluation has no R.

    R costs with "preserve" a second pass of the whole input, and one of the initial model
    without a gradient; the last block of both computes CLS alone where that is compared
    and rows hold `one_document` each. Where there is no dropout, XLA computes the embedding
    and the first block's queries, keys and values once. With "masked" it costs a pass of
    the visible input and one of its decoder or head, nothing shared. With "none" it costs
    nothing.
    """
    if model.config.adaptor is None:
        raise UserError(
            "objective 'glad' needs model.adaptor: what the task's path has and the "
            "other has not"
        )
    num_states = models.num_blocks(model.config) + 1
    checks.run(ROWS, states.StateComparison(config, num_states))
    solve = classify.make_loss(config, model, train)
    if not train:
        return solve
    plain = models.without_adaptor(model)
    parts = RegularizerParts(plain, second_model, config, train, one_document)
    regularize = REGULARIZERS[config.regularizer](parts)

    def loss_fn(params: Params, frozen: Params, batch: Batch, key_B: Key):
        solving, solved = params, batch
        if config.stop_backbone:  # logits in the batch have a gradient to the backbone
            solving, solved = _stop(params), classify.without_logits(batch)
        metrics = solve(solving, frozen, solved, key_B)[1]
        loss = metrics["loss"]
        metrics = {**metrics, "ce": loss.terms[0]}
        if regularize is not None:
            more = regularize(params, frozen, batch, key_B)[1]
            loss = _add_loss(loss, config.weight, more.pop("loss"))
            metrics |= more
        return loss.value(), {**metrics, "loss": loss}

    return loss_fn


def _add_loss(loss: Loss, weight: float, other: Loss) -> Loss:
    return functools.reduce(
        lambda whole, term: whole.plus(weight, term), other.terms, loss
    )
