"""Models of text: an encoder of BERT's families, alone or with a head.

Match Hugging Face's BertModel, BertForMaskedLM, BertForSequenceClassification and their
namesakes of other families. Heads are initialised as in those: normal 0.02, zeros, ones.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.errors import choose
from flax_adapt.base.types import Array, Key, Layout, Text
from flax_adapt.models import architecture, bert, heads, layers, residual
from flax_adapt.models.architecture import GELU
from flax_adapt.models.layers import NORMAL, Dtype, Mix
from flax_adapt.models.residual import Select
from flax_adapt.models.textual.config import BertConfig


def mean_of_tokens(x_BLD: Array, segments_BL: Array) -> Array:
    """Returns x_BD: the mean over real tokens, CLS and SEP too (sentence-transformers)."""
    real_BL1 = (segments_BL > 0)[..., None]
    total_BD = jnp.sum(x_BLD, axis=1, where=real_BL1)
    count_B1 = jnp.sum(real_BL1, axis=1, dtype=x_BLD.dtype)
    return total_BD / jnp.maximum(count_B1, 1)


# Made for rows of one document. In packed rows "cls" is that of the first document, and
# "mean" is over the tokens of all documents.
POOLING = {
    "cls": lambda x_BLD, segments_BL: x_BLD[:, 0],
    "mean": mean_of_tokens,
}


class TextModel(nn.Module):
    """Base class of all models of text; `setup` of a subclass creates `self.encoder`."""

    config: BertConfig
    dtype: Dtype
    dropout: float
    drop_path: float
    modality: ClassVar[str] = "text"

    @property
    def keeps_statistics(self) -> bool:
        """Whether the model has running statistics (`batch_stats`) and takes `weight_B`."""
        return False

    def make_encoder(self) -> bert.Encoder:
        """Returns the encoder, which a subclass stores as `self.encoder`."""
        return bert.Encoder(self.config, self.dropout, self.drop_path, self.dtype)

    def encode(
        self,
        text: Text,
        key_B: Key | None,
        mix: Mix | None = None,
        select: Select | None = None,
    ) -> tuple[Array, ...]:
        """Returns the token states of `bert.Encoder`."""
        return self.encoder(text, key_B, mix, select)

    def embed(
        self,
        text: Text,
        pooling: str,
        key_B: Key | None = None,
        mix: Mix | None = None,
    ) -> Array:
        """Returns x_BD, float32: the last states, pooled; arguments as of `encode`."""
        pool = choose("pooling", pooling, POOLING)
        select = residual.select_pooled(pooling)
        x_BLD = self.encode(text, key_B, mix, select)[-1].astype(jnp.float32)
        return pool(x_BLD, text.segments_BL)

    def layout(self, text: Text) -> Layout:
        """Returns the `Layout` of the token states."""
        real_BL = text.segments_BL > 0
        return Layout(text.segments_BL, real_BL & (text.positions_BL == 0), real_BL)


# Activations of the pooler, see `traits.POOLERS`.
POOLERS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": GELU["erf"],
}


class Pooler(nn.Module):
    """Dense layer and activation before a classifier's head; float32, as a head.

    With `pooler_norm` of the traits a LayerNorm follows.
    """

    config: BertConfig

    @nn.compact
    def __call__(self, x_BD: Array) -> Array:
        config, shape = self.config, (x_BD.shape[-1], self.config.width)
        kernel_DD = self.param("kernel", NORMAL, shape, jnp.float32)
        x_BD = layers.matmul("pooler/kernel", x_BD, kernel_DD)
        if config.biases:
            zeros = nn.initializers.zeros
            x_BD = x_BD + self.param("bias", zeros, shape[1:], jnp.float32)[None]
        x_BD = POOLERS[config.own.pooler](x_BD)
        if not config.own.pooler_norm:
            return x_BD
        norm = (config.layer_norm_eps, jnp.float32, 0, config.biases)
        return layers.LayerNorm(*norm, name="norm")(x_BD[:, None])[:, 0]


class Bert(TextModel):
    """The encoder alone; with `config.pooler` also Hugging Face's tanh layer on CLS."""

    def setup(self) -> None:
        self.encoder = self.make_encoder()
        if self.config.pooler:
            self.pooler = Pooler(self.config)

    def __call__(self, text: Text, key_B: Key | None) -> tuple[Array, Array | None]:
        """Returns the last states x_BLD and the pooler's x_BD (None without one)."""
        x_BLD = self.encode(text, key_B)[-1]
        pooled_BD = None
        if self.config.pooler:
            pooled_BD = self.pooler(x_BLD[:, 0].astype(jnp.float32))
        return x_BLD, pooled_BD


_TOKEN = "encoder/embed/token"  # the name of the table, see `placement`


@jax.custom_vjp
def tied_logits(x_RD: Array, token_VD: Array) -> Array:
    """Returns logits_RV, float32: the products of rows and token embeddings.

    They are computed in the dtype of the rows; the gradient of the embeddings is float32,
    see `layers.matmul`.
    """
    over_width = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(
        *(x_RD, _cast_and_gather(token_VD, x_RD.dtype), over_width),
        preferred_element_type=jnp.float32,
    )


def _cast_and_gather(token_VD: Array, dtype: Dtype) -> Array:
    return placement.as_used(_TOKEN, token_VD.astype(dtype))


def _tied_forward(x_RD: Array, token_VD: Array) -> tuple[Array, Any]:
    return tied_logits(x_RD, token_VD), (x_RD, token_VD)


def _tied_backward(kept: Any, slope_RV: Array) -> tuple[Array, Array]:
    x_RD, token_VD = kept
    slope_RV = slope_RV.astype(x_RD.dtype)
    over_rows = (((0,), (0,)), ((), ()))
    of_token_VD = jax.lax.dot_general(
        slope_RV, x_RD, over_rows, preferred_element_type=token_VD.dtype
    )
    of_x_RD = slope_RV @ _cast_and_gather(token_VD, x_RD.dtype)
    return of_x_RD, placement.as_stored(_TOKEN, of_token_VD)


tied_logits.defvjp(_tied_forward, _tied_backward)


def token_logits(x_RD: Array, token_VD: Array) -> Array:
    """Returns `tied_logits`; in float32 the gradient needs no rule of its own."""
    if x_RD.dtype != jnp.float32:
        return tied_logits(x_RD, token_VD)
    return jnp.einsum("RD,VD->RV", x_RD, placement.gather(_TOKEN, token_VD))


class MaskedLMHead(nn.Module):
    """Dense layer, GELU, LayerNorm, then logits by the token embeddings and a bias."""

    config: BertConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_BMD: Array, token_VD: Array, logits: bool = True
    ) -> Array | tuple[Array, Array]:
        """Returns logits_BMV, float32; without `logits` their inputs (x_BMD, bias_V)."""
        config = self.config
        transform = layers.Dense(
            config.embed_dim, config.biases, NORMAL, self.dtype, name="transform"
        )
        x_BMD = GELU[config.head_gelu](transform(x_BMD))
        norm = (config.layer_norm_eps, self.dtype, 0, config.biases)
        x_BMD = layers.LayerNorm(*norm, name="norm")(x_BMD)
        zeros, shape = nn.initializers.zeros, (config.vocab_size,)
        bias_V = self.param("bias", zeros, shape, jnp.float32)
        if not logits:
            return x_BMD, bias_V
        x_RD = x_BMD.reshape(-1, config.embed_dim)  # two axes: see `layers.Dense`
        logits_RV = token_logits(x_RD, token_VD)
        logits_BMV = (logits_RV + bias_V[None]).reshape(*x_BMD.shape[:2], -1)
        return placement.place("logits", logits_BMV)


class MaskedLM(TextModel):
    """Encoder and masked-language-model head; the decoder is the token embedding."""

    def setup(self) -> None:
        self.encoder = self.make_encoder()
        self.mlm = MaskedLMHead(self.config, self.dtype)

    def __call__(self, text: Text, at_BM: Array, key_B: Key | None) -> Array:
        """Returns logits_BMV (float32) of the tokens at the places `at_BM`, int32.

        Only their states go through the head, which at a vocabulary of 30 000 costs as
        much as three blocks of the base model, and through the query and the MLP of the
        last block (see `residual`).
        """
        return self.mlm(self._states(text, at_BM, key_B), self.encoder.embed.token)

    def inputs_of_logits(
        self, text: Text, at_BM: Array, key_B: Key | None
    ) -> tuple[Array, Array, Array]:
        """Returns (x_BMD, token_VD, bias_V); logits are x token' + bias (`token_logits`)."""
        x_BMD, token_VD = self._states(text, at_BM, key_B), self.encoder.embed.token
        x_BMD, bias_V = self.mlm(x_BMD, token_VD, logits=False)
        return x_BMD, token_VD, bias_V

    def _states(self, text: Text, at_BM: Array, key_B: Key | None) -> Array:
        select = residual.at_places(at_BM)
        x_BMD = self.encode(text, key_B, select=select)[-1]
        return placement.place("states", x_BMD)


class TextClassifier(heads.LinearClassifier, TextModel):
    """Encoder, pooling, dropout, one linear head; see `heads.LinearClassifier`.

    pooling "pooler" applies the pooler to CLS before the dropout, as Hugging Face's
    classifiers do. RoBERTa's has a further dropout before that layer, which ours omits:
    the dropout of the last block has just been applied. One class is regression.
    """

    def setup(self) -> None:
        self.encoder = self.make_encoder()
        if self.pooling == "pooler":
            self.pooler = Pooler(self.config)
        self.make_head()

    def __call__(
        self,
        text: Text,
        key_B: Key | None,
        mix: Mix | None = None,
        weight_B: Array | None = None,
    ) -> Array:
        """Returns logits_BN, float32; `mix` as for `bert.Encoder`, `weight_B` as for
        `heads.normalize`.
        """
        select = residual.select_pooled(self._pooled())
        x_BLD = self.encode(text, key_B, mix, select)[-1].astype(jnp.float32)
        key_B = layers.fold_or_none(key_B, 1 + architecture.num_blocks(self.config))
        x_BD = self.read(self._pool(x_BLD, text.segments_BL), key_B, weight_B)
        return self.head(residual.dropout(x_BD, self.dropout, key_B))

    def _pool(self, x_BLD: Array, segments_BL: Array) -> Array:
        if self.pooling == "pooler":
            return self.pooler(POOLING[self._pooled()](x_BLD, segments_BL))
        return POOLING[self.pooling](x_BLD, segments_BL)

    def _pooled(self) -> str:
        """Returns which states are read, a key of POOLING."""
        is_pooler = self.pooling == "pooler"
        return self.config.own.pooled if is_pooler else self.pooling
