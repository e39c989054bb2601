"""Masked language modelling (Devlin et al. 2019, section 3.1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import keys, memory
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss, Mean, Perplexity, Sum
from flax_adapt.base.types import Array, Batch, Key, LossFn, Params, Text
from flax_adapt.models import masking
from flax_adapt.models import text as text_models
from flax_adapt.objectives import in_chunks

_MASK = 0x3A7


def token_errors(logits_BMV: Array, targets_BM: Array) -> tuple[Array, Array]:
    """Returns (cross-entropy_BM in nats, bool [B, M]: no logit is above the target's).

    targets_BM: int32, tokens. Logits (0, 0) and target 0: log 2, true.
    """
    target_BM1 = jnp.take_along_axis(logits_BMV, targets_BM[..., None], axis=-1)
    target_BM = target_BM1[..., 0]
    error_BM = jax.nn.logsumexp(logits_BMV, axis=-1) - target_BM
    # Not argmax: over a vocabulary it takes longer than the logits' gradient on a CPU.
    return error_BM, target_BM >= jnp.max(logits_BMV, axis=-1)


def _check(config: Any, vocab_size: int) -> None:
    if not 0 < config.mask_rate < 1:
        raise UserError(f"objective.mask_rate={config.mask_rate} must lie in (0, 1)")
    shares = (config.mask_share, config.random_share)
    if min(shares) < 0 or sum(shares) > 1:
        raise UserError(
            f"objective.mask_share={shares[0]} and random_share={shares[1]} must be "
            "shares of 1"
        )
    if not 0 <= config.mask_token_id < vocab_size:
        raise UserError(
            f"objective.mask_token_id={config.mask_token_id} is no token of the model, "
            f"which has {vocab_size}"
        )


class HiddenLogits(NamedTuple):
    """Logits of the tokens at the places at_BM of each row.

    weight_BM: 0 where no token is hidden. overflow: how many hidden tokens have no logits.
    With the method "inputs_of_logits" of the model, in the place of logits are their inputs.
    """

    logits_BMV: Any
    at_BM: Array
    weight_BM: Array
    overflow: Sum


def _make_predict(
    config: Any, model: nn.Module, train: bool
) -> Callable[..., HiddenLogits]:
    """Returns (params, batch, key_B) -> HiddenLogits.

    The mask is drawn with the keys, unless the batch has a `masking.Hidden` under "hidden".
    """
    vocab_size = model.config.vocab_size
    _check(config, vocab_size)
    names = ("mask_rate", "mask_token_id", "mask_share", "random_share", "whole_word")
    how = {name: config[name] for name in names} | {"vocab_size": vocab_size}

    def predict(
        params: Params, batch: Batch, key_B: Key, method: str = "__call__"
    ) -> HiddenLogits:
        text: Text = batch["text"]
        hidden = batch.get("hidden") or hide(text, key_B)
        count = masking.max_hidden(text.tokens_BL.shape[1], config.max_masked_fraction)
        at_BM, chosen_BM = masking.places(hidden.hidden_BL, count)
        logits_BMV = model.apply(
            {"params": params},
            text._replace(tokens_BL=hidden.tokens_BL),
            at_BM,
            key_B if train else None,
            method=method,
        )
        weight_BM = jnp.where(chosen_BM, batch["weight"][:, None], 0)
        weight_BL = jnp.where(hidden.hidden_BL, batch["weight"][:, None], 0)
        overflow = Sum(jnp.sum(weight_BL) - jnp.sum(weight_BM))
        return HiddenLogits(logits_BMV, at_BM, weight_BM, overflow)

    def hide(text: Text, key_B: Key) -> masking.Hidden:
        return masking.hide_tokens(text, keys.fold(key_B, _MASK), **how)

    return predict


def divergence(logits_BMV: Array, teacher_BMV: Array) -> Array:
    """Returns KL(teacher, student) of every token, [B, M], in nats.

    Student (0, 0), teacher (log 3, 0): 3/4 log(3/2) + 1/4 log(1/2).
    """
    log_q_BMV, log_p_BMV = map(jax.nn.log_softmax, (logits_BMV, teacher_BMV))
    return jnp.sum(jnp.exp(log_p_BMV) * (log_p_BMV - log_q_BMV), axis=-1)


def make_distance(
    config: Any, model: nn.Module, train: bool
) -> Callable[[Params, Params, Batch, Key], Mean]:
    """Returns (params, teacher's params, batch, key_B) -> mean KL(teacher, student).

    Both predict the same hidden tokens; ours, for an ablation of S1. The teacher has no
    dropout.
    """
    student, teacher = (_make_predict(config, model, drops) for drops in (train, False))

    def distance(params: Params, other: Params, batch: Batch, key_B: Key) -> Mean:
        ours = student(params, batch, key_B)
        theirs = jax.lax.stop_gradient(teacher(other, batch, key_B))
        error_BM = divergence(ours.logits_BMV, theirs.logits_BMV)
        return Mean.of(error_BM, ours.weight_BM)

    return distance


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the masked language modelling loss, a mean over the hidden tokens of the batch.

    `config`: mask_rate, mask_token_id, mask_share, random_share, whole_word,
    max_masked_fraction. At most the share `max_masked_fraction` of a row is projected onto
    the vocabulary. Hidden tokens beyond that have no loss, and the metric "overflow" counts
    them. Raises UserError for fields that are out of range.
    """
    predict = _make_predict(config, model, train)

    def loss_fn(params, frozen, batch, key_B):
        del frozen
        chunks = memory.current().logit_chunks
        method = "__call__" if chunks == 1 else "inputs_of_logits"
        hidden = predict(params, batch, key_B, method)
        at_BM, weight_BM = hidden.at_BM, hidden.weight_BM
        targets_BM = jnp.take_along_axis(batch["text"].tokens_BL, at_BM, axis=1)
        if chunks == 1:
            measured = token_errors(hidden.logits_BMV, targets_BM)
        else:
            inputs = hidden.logits_BMV
            measured = token_errors_in_chunks(inputs, targets_BM, chunks)
        return _loss_and_metrics(*measured, weight_BM, hidden.overflow)

    return loss_fn


def token_errors_in_chunks(
    inputs: tuple[Array, Array, Array], targets_BM: Array, chunks: int
) -> tuple[Array, Array]:
    """Returns `token_errors` of logits that are computed for a part of the vocabulary a time.

    inputs: (x_BMD, token_VD, bias_V), see `MaskedLM.inputs_of_logits`.
    """
    x_BMD, token_VD, bias_V = inputs
    x_RD = x_BMD.reshape(-1, x_BMD.shape[-1])
    lowest = float(jnp.finfo(jnp.float32).min)
    dealt = (
        in_chunks.deal(token_VD, chunks, 0),
        in_chunks.deal(bias_V, chunks, lowest),
    )

    def logits_of(chunk: tuple[Array, Array]) -> Array:
        return text_models.token_logits(x_RD, chunk[0]) + chunk[1][None]

    reduced = in_chunks.reduce_logits(logits_of, dealt, targets_BM.reshape(-1))
    shape, own_R = targets_BM.shape, reduced.chosen_R
    correct_R = own_R >= reduced.largest_R
    return (reduced.total_R - own_R).reshape(shape), correct_R.reshape(shape)


def _loss_and_metrics(error_BM, correct_BM, weight_BM, overflow):
    loss = Mean.of(error_BM, weight_BM)
    return loss.value(), {
        "loss": Loss.of(loss),
        "mlm": loss,
        "mlm_accuracy": Mean.of(correct_BM.astype(jnp.float32), weight_BM),
        "perplexity": Perplexity(loss.total, loss.count),
        "masked_tokens": Sum(loss.count),
        "overflow": overflow,
    }
