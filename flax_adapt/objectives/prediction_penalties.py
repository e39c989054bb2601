"""Penalties on predictions: with noise (R3F), old ones (LwF), of replayed rows (ER, DER).

All functions that build one take the section of the penalty, the model, and the names of the
leaves that are new in the stage.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import keys, rules
from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import Array, Batch, Key, Params
from flax_adapt.objectives import classify
from flax_adapt.objectives.parameter_penalties import Penalty
from flax_adapt.surgery import adaptors

LWF, DER = "lwf", "der"
# Constants that are folded into PRNG keys: of the noise, and of dropout with noise.
_NOISE, _DROP = 0x7F3, 0x7F4

# How R3F draws noise, to be multiplied by eps.
NOISES: dict[str, Callable[[Key, tuple[int, ...]], Array]] = {
    "normal": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "uniform": lambda key, shape: jax.random.uniform(
        key, shape, jnp.float32, minval=-1, maxval=1
    ),
}


def symmetric_kl(logits_BN: Array, others_BN: Array) -> Array:
    """Returns KL(p, q) + KL(q, p), [B], in nats. Logits (0, 0), (log 3, 0): log(3) / 4."""
    log_p_BN, log_q_BN = map(jax.nn.log_softmax, (logits_BN, others_BN))
    difference_BN = jnp.exp(log_p_BN) - jnp.exp(log_q_BN)
    return jnp.sum(difference_BN * (log_p_BN - log_q_BN), axis=-1)


def r3f(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty symKL(p(x), p(x with noise on its embeddings)).

    Aghajanyan et al. 2020. `config`: noise (a key of NOISES), eps. Each pass has dropout of
    its own, as in the released code. Ours: the noise is added to the input of the first
    block, where the code adds it to token embeddings alone; and both passes have a
    gradient. In bfloat16 a noise of 1e-5 added to numbers of size 1 is rounded away.
    """
    del fresh
    draw = NOISES[config.noise]

    def penalty(params, frozen, batch, key_B):
        del frozen

        def mix(x_BLD: Array) -> Array:
            noise_BLD = keys.draw(draw, keys.fold(key_B, _NOISE), x_BLD.shape[1:])
            return x_BLD + (config.eps * noise_BLD).astype(x_BLD.dtype)

        inputs, dropped_B = batch[model.modality], keys.fold(key_B, _DROP)
        clean_BN = classify.logits_of(model, params, batch, key_B)
        noised_BN = model.apply({"params": params}, inputs, dropped_B, mix)
        return Mean.of(symmetric_kl(clean_BN, noised_BN), batch["weight"])

    return penalty


def distillation(old_BN: Array, new_BN: Array, temperature: float) -> Array:
    """Returns T^2 KL(softmax(old / T), softmax(new / T)), [B] (Hinton et al. 2015).

    Old (T log 3, 0), new (0, 0), T = 2: 4 (3/4 log(3/2) + 1/4 log(1/2)).
    """
    log_p_BN, log_q_BN = (
        jax.nn.log_softmax(logits_BN / temperature) for logits_BN in (old_BN, new_BN)
    )
    kl_B = jnp.sum(jnp.exp(log_p_BN) * (log_p_BN - log_q_BN), axis=-1)
    return temperature**2 * kl_B


def lwf(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty of learning without forgetting (Li and Hoiem 2017).

    It is the distance to the old classifier's predictions of the new examples.
    `frozen["lwf"]`: the parameters of that classifier, which has no dropout. Its classes
    are the first of the new model's; only they are compared. `config`: temperature. Ours:
    where there are new classes, the objective's softmax is over the old ones, too.
    """
    del fresh

    def penalty(params, frozen, batch, key_B):
        old = jax.lax.stop_gradient(frozen[LWF])
        count = old["head"]["bias"].shape[0]
        inputs = batch[model.modality]
        old_BN = _old_model(model, old, count).apply({"params": old}, inputs, None)
        new_BN = classify.logits_of(model, params, batch, key_B)[:, :count]
        error_B = distillation(old_BN, new_BN, config.temperature)
        return Mean.of(error_B, batch["weight"])

    return penalty


def _old_model(model: nn.Module, old: Params, count: int) -> nn.Module:
    """Returns the model without a projector, and without adaptors if `old` has none."""
    config = model.config
    if not adaptors.leaves_of(rules.names(old)):
        config = dataclasses.replace(config, adaptor=None)
    return model.clone(config=config, num_classes=count, projector_config=None)


def _of_source(batch: Batch) -> Array:
    """Returns weight_B of the rows that are replayed, 0 for the others."""
    return jnp.where(batch["domain"] == 1, batch["weight"], 0)


def er(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty of experience replay (Buzzega et al. 2020).

    It is the cross-entropy of the replayed rows, those of earlier tasks. The objective
    itself then leaves them out.
    """
    del config, fresh

    def penalty(params, frozen, batch, key_B):
        del frozen
        logits_BN = classify.logits_of(model, params, batch, key_B)
        targets_BN = classify.smooth(batch["label"], model.num_classes, 0.0)
        error_B = classify.cross_entropy(logits_BN, targets_BN)
        return Mean.of(error_B, _of_source(batch))

    return penalty


def der(config: Any, model: nn.Module, fresh: Collection[str]) -> Penalty:
    """Returns the penalty of dark experience replay (Buzzega et al. 2020).

    It is the mean squared distance to stored logits; together with `er` it is DER++. Ours:
    the same rows have both terms, and the logits are those at the end of the row's task.
    `frozen["der"]`: "logits" float32 [n, N] of the rows that are replayed, and "first", the
    index of the first of them. The objective itself then leaves these rows out.
    """
    del config, fresh

    def penalty(params, frozen, batch, key_B):
        stored_nN, first = frozen[DER]["logits"], frozen[DER]["first"]
        row_B = jnp.clip(batch["index"] - first, 0, len(stored_nN) - 1)
        logits_BN = classify.logits_of(model, params, batch, key_B)
        stored_BN = jax.lax.stop_gradient(jnp.take(stored_nN, row_B, axis=0))
        error_BN = jnp.square(logits_BN - stored_BN)
        return Mean.of(jnp.mean(error_BN, axis=-1), _of_source(batch))

    return penalty
