"""Adaptors of GLAD attention (Yoon et al. 2023, figure; S4; no official code).

    S = Q K';  S~ = psi1(S);  P = softmax(S~ / sqrt K + mask);  O = P V;  O~ = psi2(O)

The adapted path, with adaptors, solves the task. The unadapted path is the model without
this module, with the same weights. The paper leaves psi1 and psi2 open; the kinds below
are ours. All initial parameters but W_down are zero, so that both paths initially give
the same outputs: bit for bit on a CPU; elsewhere up to rounding, where
`attention.attend` has two implementations.

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
    """The kind and size of the adaptors; raises UserError for sizes of another kind.

    kind     a key of KINDS
    keywise  whether each channel of the keys has a scale, too; False for "mixing"
    hidden   the hidden width of the bottleneck; 0 for other kinds
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
    """The adaptors of one attention layer; `dtype` is that of their matmuls.

    Scales and sums are formed in float32 and rounded once: bfloat16 has no number between
    1 and 1.0078, so that x * (1 + a) of a rounded x would be x itself for a small a.
    """

    config: AdaptorConfig
    dtype: Any

    def zeros(self, name: str, *shape: int) -> Array:
        """Returns a float32 parameter whose initial value is zero."""
        return self.param(name, nn.initializers.zeros, shape, jnp.float32)

    def matmul(self, x: Array, kernel: Array) -> Array:
        """Returns x @ kernel in float32."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)

    @nn.compact
    def __call__(
        self, q_BLHK: Array, attend: Callable[[Array, "MixLogits | None"], Array]
    ) -> Array:
        """Returns x_BLHK, the adapted output of attention, in `dtype`.

        `attend(q_BLHK, mix)` returns the values x_BLHK averaged by attention, in float32.
        Where `mix` is not None, the logits go through it first.
        """
        kind = KINDS[self.config.kind]
        q_BLHK, mix = kind.logits(self, q_BLHK)
        x_BLHK = attend(q_BLHK, mix)
        x_BLD = x_BLHK.reshape(*x_BLHK.shape[:2], -1)
        return kind.values(self, x_BLD).astype(self.dtype).reshape(x_BLHK.shape)


# mix(logits_BHLM, times_keys) -> logits_BHLM; times_keys(q_BLHK) returns the logits of
# other queries with the same keys. All logits are float32.
MixLogits = Callable[[Array, Callable[[Array], Array]], Array]


def _scale(adaptor: Adaptor, q_BLHK: Array) -> tuple[Array, MixLogits | None]:
    """Scales the queries, in which the logits are linear, rather than the logits.

    In float32 nothing is lost by that. In other dtypes the queries times the scale get
    logits of their own, which the returned function adds.
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
    """Adds a bottleneck MLP. W_down is drawn: were it zero like W_up, neither would train."""
    width, hidden = x_BLD.shape[-1], adaptor.config.hidden
    initial = nn.initializers.normal(0.02)
    down_DF = adaptor.param("squeeze", initial, (width, hidden), jnp.float32)
    x_BLF = adaptor.matmul(x_BLD, down_DF)
    x_BLF = x_BLF + adaptor.zeros("squeeze_shift", hidden)[None, None]
    x_BLF = nn.gelu(x_BLF, approximate=False)
    more_BLD = adaptor.matmul(x_BLF, adaptor.zeros("widen", hidden, width))
    return x_BLD + more_BLD + adaptor.zeros("widen_shift", width)[None, None]


class Kind(NamedTuple):
    """The functions of a kind: `logits` is psi1, `values` is psi2.

    logits: changes the queries, and the logits by the MixLogits that it returns, if any.
    values: changes x_BLD, the output of attention.
    """

    logits: Callable[[Adaptor, Array], tuple[Array, MixLogits | None]]
    values: Callable[[Adaptor, Array], Array]


KINDS = {
    "vector": Kind(_scale, _scale_channels),
    "mixing": Kind(_mix_heads, _mix_channels),
    "bottleneck": Kind(_scale, _squeeze),
}
