"""Contrastive learning: the query of one view is matched with the key of the other view.

MoCo-v3 (Chen et al. 2021, algorithm 1, official code) and MoCo-v2 (He et al. 2020,
algorithm 1; its head by Chen et al. 2020). Two views of a text differ by dropout, as in
SimCSE (Gao et al. 2021, section 3). Mixing: S2.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import checks, keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss
from flax_adapt.base.types import (
    CARRY_INPUT,
    Array,
    Batch,
    Carry,
    Key,
    LossFn,
    Metrics,
    Params,
)
from flax_adapt.models import batch_stats
from flax_adapt.models.batch_stats import Variables
from flax_adapt.objectives import contrast_rules, ema, mixing
from flax_adapt.objectives.contrast_rules import Heads
from flax_adapt.objectives.info_nce import FORMS, Keys, Soft, measure, normalize

# Constants that are folded into PRNG keys. The number of the view is added, for queries
# also twice the number of the term of the loss.
_QUERY, _KEY, _MIX = 0x5A0, 0x5B0, 0x5C0

# The parts of a model that have a moving average; only queries pass the predictor.
AVERAGED = ("encoder", "projector")

# The inputs of a model: (images,), (text,), or (text, function that mixes embeddings_BLD).
View = tuple[Any, ...]
Views = Sequence[View]

# Reading -> (views of the keys, [(views of the queries, their labels), ...]), one pair for
# each term of the loss. Labels None: the positive is the key of the same example. "none":
# nothing is mixed in this module.
READINGS: dict[str, Callable[[Views, Any, Any], tuple[Views, Any]]] = {
    "none": lambda plain, mixed, soft: (plain, [(plain, None)]),
    "imix": lambda plain, mixed, soft: (plain, [(mixed, soft)]),
    "unmix": lambda plain, mixed, soft: (plain, [(plain, None), (mixed, soft)]),
    "instance": lambda plain, mixed, soft: (mixed, [(mixed, None)]),
}


def _mix_images(
    views: Views, partner_B: Array, key_B: Key, config: Any
) -> tuple[Views, Array]:
    """Returns both views, mixed with the same lambda and the same box, and lam_B."""
    mixed = [mixing.mix_images(view[0], partner_B, key_B, config) for view in views]
    return [(image_BYXC,) for image_BYXC, _ in mixed], mixed[0][1]


def _mix_texts(
    views: Views, partner_B: Array, key_B: Key, config: Any
) -> tuple[Views, Array]:
    """Returns both views, the same text whose embeddings the encoder will mix, and lam_B."""
    text = views[0][0]
    drawn = mixing.mix_tokens(text.segments_BL, partner_B, key_B, config)

    def mix(x_BLD: Array) -> Array:
        own_BL1 = drawn.own_BL[..., None].astype(x_BLD.dtype)
        return own_BL1 * x_BLD + (1 - own_BL1) * x_BLD[partner_B]

    return [(text._replace(segments_BL=drawn.segments_BL), mix)] * 2, drawn.lam_B


# Modality -> (function of a batch that returns its two views, function that mixes them).
MODALITIES: dict[str, tuple[Callable[[Batch], Views], Callable[..., Any]]] = {
    "image": (lambda batch: [(image,) for image in batch["views"]], _mix_images),
    "text": (lambda batch: [(batch["text"],)] * 2, _mix_texts),
}


def _inputs(
    batch: Batch, key_B: Key, config_mixing: Any, modality: str, reading: str
) -> tuple[Views, Any]:
    """Returns (views of the keys, terms of the loss), see READINGS; `reading` is a key of it.

    Every example has one partner, which is drawn once for both views.
    """
    two_views, mix = MODALITIES[modality]
    views, key_B = two_views(batch), keys.fold(key_B, _MIX)
    if reading == "none":
        return READINGS[reading](views, None, None)
    partner_B = mixing.partners(batch, key_B, config_mixing)
    mixed, lam_B = mix(views, partner_B, key_B, config_mixing)
    return READINGS[reading](views, mixed, Soft(partner_B, lam_B))


def _check(config: Any) -> None:
    checks.run(contrast_rules.ROWS, config)
    if config.mixing.operator != "none":
        checks.run(mixing.ROWS, config.mixing)


def _choose_reading(config_mixing: Any, modality: str, train: bool) -> str:
    """Returns a key of READINGS.

    It is "none" for images of the reading "instance": `objectives.on_pixels` has mixed
    them before their views were augmented.
    """
    if not train or config_mixing.operator == "none":
        return "none"
    elsewhere = modality == "image" and config_mixing.reading == "instance"
    return "none" if elsewhere else config_mixing.reading


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the contrastive loss, a mean over the queries of weight above 0.

    `config`: form, temperature, momentum, momentum_schedule, queue_size, mixing. The batch
    has two images under "views", or one "text", which is both views; with replay also
    "domain". `frozen` holds the arrays of `make_carry`; they get no gradient. Batch norm
    in the key encoder always normalises by the batch and keeps no running statistics.

    The metric "loss": "unmix" adds the loss of mixed queries to that of plain ones.
    "contrast" and "contrast_accuracy" measure the plain queries, or the mixed ones where
    there are no plain ones. Raises UserError for fields that are out of range, and for a
    projector that does not fit the form.
    """
    _check(config)
    checks.run(contrast_rules.HEADS, Heads(config.form, model.projector_config))
    form, reading = (
        FORMS[config.form],
        _choose_reading(config.mixing, model.modality, train),
    )
    names = _carried_names(config)

    def loss_fn(params, frozen, batch, key_B):
        weight_B = batch["weight"]
        key_views, terms = _inputs(batch, key_B, config.mixing, model.modality, reading)
        encode = functools.partial(_encode, model, weight_B, key_B if train else None)
        carried = jax.lax.stop_gradient({name: frozen[name] for name in names})

        def keys_of(view: int) -> Keys:
            variables, purpose = {"params": carried["key_encoder"]}, _KEY + view
            key_BD, _ = encode(variables, key_views[view], purpose, "project")
            return Keys(key_BD, weight_B, carried.get("queue"))

        found = {view: keys_of(view) for _, view in form.directions}
        variables, measured = batch_stats.join_variables(model, params, frozen), []
        for number, (views, soft) in enumerate(terms):
            pairs = []
            for one, other in form.directions:
                purpose = _QUERY + 2 * number + one
                # The running statistics are updated by one query after the other.
                query_BD, variables = encode(variables, views[one], purpose, "__call__")
                pairs.append((query_BD, found[other]))
            measured.append(measure(pairs, soft, config.form, config.temperature))
        metrics, carry_input = (
            _metrics(measured),
            batch_stats.hand_over(variables, train),
        )
        if form.queue and train:
            (queued,) = found.values()
            carry_input["queue"] = dict(key_BD=queued.key_BD, weight_B=weight_B)
        if carry_input:
            metrics[CARRY_INPUT] = carry_input
        return metrics["loss"].value(), metrics

    return loss_fn


def _encode(
    model: nn.Module,
    weight_B: Array,
    key_B: Key | None,
    variables: Variables,
    view: View,
    purpose: int,
    method: str,
) -> tuple[Array, Variables]:
    """Returns x_BD of length 1, and the variables after the pass, see `batch_stats.apply`.

    `purpose` is folded into the keys of dropout.
    """
    (inputs, *mix), train = view, key_B is not None
    key_B = None if key_B is None else keys.fold(key_B, purpose)
    arguments = (inputs, key_B, weight_B, *mix)
    x_BD, variables = batch_stats.apply(
        model, variables, *arguments, train=train, method=method
    )
    return normalize(x_BD), variables


def _metrics(measured: Any) -> Metrics:
    (contrast, accuracy), *more = measured
    loss = Loss.of(contrast)
    for mean, _ in more:
        loss = loss.plus(1.0, mean)
    return {"loss": loss, "contrast": contrast, "contrast_accuracy": accuracy}


def _carried_names(config: Any) -> tuple[str, ...]:
    return ("key_encoder", "queue") if FORMS[config.form].queue else ("key_encoder",)


def make_carry(config: Any, num_steps: int) -> Carry:
    """Returns the `Carry` of the key encoder and the queue, for `num_steps` optimizer steps.

    key_encoder: a moving average of the encoder and the projector. It is updated after the
    optimizer step; the official code of MoCo-v3 updates it before the next forward pass,
    by the same parameters with the same m.
    queue: only with the form "moco_v2", float32 [queue_size, width]; the keys of a step
    replace the oldest. It starts as random keys (He et al. 2020, official code).

    Raises UserError for fields that are out of range; the steps raise it where queue_size
    is not a multiple of the batch size.
    """
    _check(config)
    has_queue = FORMS[config.form].queue
    share = ema.SCHEDULES[config.momentum_schedule]

    def init(params: Params, key: Key) -> dict[str, Any]:
        carried = {"key_encoder": _select_averaged(params)}
        if not has_queue:
            return carried
        if "projector" not in params:
            raise UserError(contrast_rules.NO_PROJECTOR)
        shape = (config.queue_size, _width(params["projector"]))
        return carried | {
            "queue": normalize(jax.random.normal(key, shape, jnp.float32))
        }

    def update(
        carried: dict[str, Any],
        params: Params,
        carry_input: dict[str, Any],
        step: Array,
    ) -> dict[str, Any]:
        rate = share(config.momentum, step.astype(jnp.float32) / num_steps)
        average = ema.move_towards(
            carried["key_encoder"], _select_averaged(params), rate
        )
        if not has_queue:
            return {"key_encoder": average}
        queue_KD = _enqueue(carried["queue"], **carry_input["queue"], number=step - 1)
        return {"key_encoder": average, "queue": queue_KD}

    return Carry(_carried_names(config), init, update)


def _select_averaged(params: Params) -> Params:
    """Returns the parts of a model that have a moving average; there may be no projector."""
    return {part: params[part] for part in AVERAGED if part in params}


def _width(projector: Params) -> int:
    """Returns the output width of the projector's last layer."""
    last = sum(name.startswith("layer_") for name in projector) - 1
    return projector[f"layer_{last}"]["kernel"].shape[1]


def _enqueue(queue_KD: Array, key_BD: Array, weight_B: Array, number: Array) -> Array:
    """Returns the queue, its oldest keys replaced by those of step `number` (0 first).

    A key of weight 0 does not replace the old one. Raises UserError unless K is a multiple
    of B.
    """
    (size, _), (count, _) = queue_KD.shape, key_BD.shape
    if size % count:
        raise UserError(
            f"objective.queue_size={size} must be a multiple of the {count} examples of "
            "a batch"
        )
    start = number % (size // count) * count
    old_BD = jax.lax.dynamic_slice_in_dim(queue_KD, start, count)
    new_BD = jnp.where(weight_B[:, None] > 0, key_BD, old_BD)
    return jax.lax.dynamic_update_slice_in_dim(queue_KD, new_BD, start, 0)
