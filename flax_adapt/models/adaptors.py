"""Adaptors of GLAD attention (Yoon et al. 2023, figure; METHODS S4; no official code).

    S = Q K';  S~ = psi1(S);  P = softmax(S~ / sqrt K + mask);  O = P V;  O~ = psi2(O)

The path with adaptors solves the task; the one without is the model without this module,
on the same weights. What psi1 and psi2 are is open in the paper: ours, one kind each.
At the start all but W_down is zero, and the adapted path is the other one: to the bit on
a CPU; elsewhere but for rounding where `attention.attend` has two ways.

    vector      psi1: every head's logits times 1 + a_h, with `keywise` every channel of
                the keys times 1 + a_h + u_hk; psi2: O * (1 + c) + b for each channel
    mixing      psi1: (I + A) S across heads; psi2: O + O C
    bottleneck  psi1: as vector; psi2: O + GELU(O W_down + b_down) W_up + b_up
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array


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
    """The adaptors of one attention; `dtype` is what the matmuls are computed in.

    Scales and sums are formed in float32 and rounded once: bfloat16 has no number between
    1 and 1.0078, and x * (1 + a) of an x that is rounded already is x for a small a.
    """

    config: AdaptorConfig
    dtype: Any

    def zeros(self, name: str, *shape: int) -> Array:
        """Returns a float32 parameter that starts at zero."""
        return self.param(name, nn.initializers.zeros, shape, jnp.float32)

    def matmul(self, x: Array, kernel: Array) -> Array:
        """Returns x @ kernel in float32."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)

    @nn.compact
    def __call__(
        self, q_BLHK: Array, attend: Callable[[Array, "MixLogits | None"], Array]
    ) -> Array:
        """Returns x_BLHK, adapted. `attend(q_BLHK, mix) -> x_BLHK` mixes the values (and
        returns float32), the logits having gone through `mix` where it is not None.
        """
        kind = KINDS[self.config.kind]
        q_BLHK, mix = kind.logits(self, q_BLHK)
        x_BLHK = attend(q_BLHK, mix)
        x_BLD = x_BLHK.reshape(*x_BLHK.shape[:2], -1)
        return kind.values(self, x_BLD).astype(self.dtype).reshape(x_BLHK.shape)


# (logits_BHLM, q_BLHK -> the logits of these queries) -> logits_BHLM, all float32
MixLogits = Callable[[Array, Callable[[Array], Array]], Array]


def _scale(adaptor: Adaptor, q_BLHK: Array) -> tuple[Array, MixLogits | None]:
    """On the queries: the logits are linear in them, and need not be formed for it.

    In float32 nothing is lost. Otherwise what the scale adds has logits of its own.
    """
    heads, head_dim = q_BLHK.shape[2:]
    scale_HK = adaptor.zeros("logit_scale", heads, 1)
    if adaptor.config.keywise:
        scale_HK = scale_HK + adaptor.zeros("key_scale", heads, head_dim)
    if adaptor.dtype == jnp.float32:
        return q_BLHK * (1 + scale_HK)[None, None], None
    more_BLHK = q_BLHK.astype(jnp.float32) * scale_HK[None, None]

    def mix(logits_BHLM: Array, times_keys: Callable[[Array], Array]) -> Array:
        return logits_BHLM + times_keys(more_BLHK.astype(adaptor.dtype))

    return q_BLHK, mix


def _mix_heads(adaptor: Adaptor, q_BLHK: Array) -> tuple[Array, MixLogits]:
    heads = q_BLHK.shape[2]
    mix_GH = adaptor.zeros("head_mixing", heads, heads)

    def mix(logits_BHLM: Array, _: Callable[[Array], Array]) -> Array:
        return logits_BHLM + jnp.einsum("GH,BHLM->BGLM", mix_GH, logits_BHLM)

    return q_BLHK, mix


def _scale_channels(adaptor: Adaptor, x_BLD: Array) -> Array:
    scale_D = adaptor.zeros("value_scale", x_BLD.shape[-1])
    shift_D = adaptor.zeros("value_shift", x_BLD.shape[-1])
    return x_BLD * (1 + scale_D)[None, None] + shift_D[None, None]


def _mix_channels(adaptor: Adaptor, x_BLD: Array) -> Array:
    mix_CD = adaptor.zeros("channel_mixing", x_BLD.shape[-1], x_BLD.shape[-1])
    return x_BLD + adaptor.matmul(x_BLD, mix_CD)


def _squeeze(adaptor: Adaptor, x_BLD: Array) -> Array:
    """W_down is drawn, as all of a bottleneck's start cannot be zero: nothing would move."""
    width, hidden = x_BLD.shape[-1], adaptor.config.hidden
    initial = nn.initializers.normal(0.02)
    down_DF = adaptor.param("squeeze", initial, (width, hidden), jnp.float32)
    x_BLF = adaptor.matmul(x_BLD, down_DF)
    x_BLF = x_BLF + adaptor.zeros("squeeze_shift", hidden)[None, None]
    x_BLF = nn.gelu(x_BLF, approximate=False)
    more_BLD = adaptor.matmul(x_BLF, adaptor.zeros("widen", hidden, width))
    return x_BLD + more_BLD + adaptor.zeros("widen_shift", width)[None, None]


class Kind(NamedTuple):
    """psi1, on queries (and, as a MixLogits, on logits); psi2, on the mixed values."""

    logits: Callable[[Adaptor, Array], tuple[Array, MixLogits | None]]
    values: Callable[[Adaptor, Array], Array]


KINDS = {
    "vector": Kind(_scale, _scale_channels),
    "mixing": Kind(_mix_heads, _mix_channels),
    "bottleneck": Kind(_scale, _squeeze),
}
