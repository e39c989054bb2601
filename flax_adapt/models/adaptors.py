"""Adaptors of GLAD attention (Yoon et al. 2023, figure; METHODS S4; no official code).

    S = Q K';  S~ = psi1(S);  P = softmax(S~ / sqrt K + mask);  O = P V;  O~ = psi2(O)

The path with adaptors solves the task; the one without is the model without this module,
on the same weights. What psi1 and psi2 are is open in the paper: ours, one kind each.
At the start all but W_down is zero, and the adapted path is the other one to the bit.

    vector      psi1: every head's logits times 1 + a_h, with `keywise` every channel of
                the keys times 1 + a_h + u_hk; psi2: O * (1 + c) + b for each channel
    mixing      psi1: (I + A) S across heads; psi2: O + O C
    bottleneck  psi1: as vector; psi2: O + GELU(O W_down + b_down) W_up + b_up
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.errors import UserError, choose
from flax_adapt.types import Array


@dataclasses.dataclass(frozen=True)
class AdaptorConfig:
    """kind: a key of KINDS. keywise: of the logits of all kinds but "mixing". hidden: the
    width of the bottleneck, 0 for other kinds.
    """

    kind: str
    keywise: bool
    hidden: int

    def __post_init__(self):
        choose("model.adaptor.kind", self.kind, KINDS)
        if (self.kind == "bottleneck") != (self.hidden >= 1):
            raise UserError(
                f"model.adaptor.hidden={self.hidden} must be at least 1 for kind="
                "'bottleneck', and 0 for others"
            )
        if self.kind == "mixing" and self.keywise:
            raise UserError("model.adaptor.keywise must be False for kind='mixing'")


class Adaptor(nn.Module):
    """The adaptors of one attention; parameters float32, computed in the inputs' dtype."""

    config: AdaptorConfig

    def zeros(self, name: str, *shape: int, like: Array) -> Array:
        """Returns a parameter that starts at zero, in the dtype of `like`."""
        initial = nn.initializers.zeros
        return self.param(name, initial, shape, jnp.float32).astype(like.dtype)

    @nn.compact
    def __call__(
        self, q_BLHK: Array, attend: Callable[[Array, "MixLogits | None"], Array]
    ) -> Array:
        """Returns x_BLHK, adapted. `attend(q_BLHK, mix) -> x_BLHK` mixes the values, the
        logits having gone through `mix` where it is not None.
        """
        kind = KINDS[self.config.kind]
        q_BLHK, mix = kind.logits(self, q_BLHK)
        x_BLHK = attend(q_BLHK, mix)
        x_BLD = x_BLHK.reshape(*x_BLHK.shape[:2], -1)
        return kind.values(self, x_BLD).reshape(x_BLHK.shape)


# logits_BHLM -> logits_BHLM
MixLogits = Callable[[Array], Array]


def _scale(adaptor: Adaptor, q_BLHK: Array) -> tuple[Array, None]:
    """On the queries: the logits are linear in them, and are never formed for it."""
    heads, head_dim = q_BLHK.shape[2:]
    factor_HK = 1 + adaptor.zeros("logit_scale", heads, 1, like=q_BLHK)
    if adaptor.config.keywise:
        factor_HK = factor_HK + adaptor.zeros("key_scale", heads, head_dim, like=q_BLHK)
    return q_BLHK * factor_HK[None, None], None


def _mix_heads(adaptor: Adaptor, q_BLHK: Array) -> tuple[Array, MixLogits]:
    heads = q_BLHK.shape[2]
    mix_GH = adaptor.zeros("head_mixing", heads, heads, like=q_BLHK)

    def mix(logits_BHLM: Array) -> Array:
        more = jnp.einsum(
            "GH,BHLM->BGLM", mix_GH.astype(logits_BHLM.dtype), logits_BHLM
        )
        return logits_BHLM + more

    return q_BLHK, mix


def _scale_channels(adaptor: Adaptor, x_BLD: Array) -> Array:
    width = x_BLD.shape[-1]
    scale_D = adaptor.zeros("value_scale", width, like=x_BLD)
    shift_D = adaptor.zeros("value_shift", width, like=x_BLD)
    return x_BLD * (1 + scale_D)[None, None] + shift_D[None, None]


def _mix_channels(adaptor: Adaptor, x_BLD: Array) -> Array:
    width = x_BLD.shape[-1]
    return x_BLD + x_BLD @ adaptor.zeros("channel_mixing", width, width, like=x_BLD)


def _squeeze(adaptor: Adaptor, x_BLD: Array) -> Array:
    """W_down is drawn, as all of a bottleneck's start cannot be zero: nothing would move."""
    width, hidden = x_BLD.shape[-1], adaptor.config.hidden
    initial = nn.initializers.normal(0.02)
    down_DF = adaptor.param("squeeze", initial, (width, hidden), jnp.float32)
    x_BLF = x_BLD @ down_DF.astype(x_BLD.dtype)
    x_BLF = x_BLF + adaptor.zeros("squeeze_shift", hidden, like=x_BLD)[None, None]
    x_BLF = nn.gelu(x_BLF, approximate=False)
    more_BLD = x_BLF @ adaptor.zeros("widen", hidden, width, like=x_BLD)
    return (
        x_BLD + more_BLD + adaptor.zeros("widen_shift", width, like=x_BLD)[None, None]
    )


class Kind(NamedTuple):
    """psi1, on queries (and, as a MixLogits, on logits); psi2, on the mixed values."""

    logits: Callable[[Adaptor, Array], tuple[Array, MixLogits | None]]
    values: Callable[[Adaptor, Array], Array]


KINDS = {
    "vector": Kind(_scale, _scale_channels),
    "mixing": Kind(_mix_heads, _mix_channels),
    "bottleneck": Kind(_scale, _squeeze),
}
