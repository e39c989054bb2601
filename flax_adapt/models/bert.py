"""The encoder of BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and their families.

As Hugging Face's BertModel and RobertaModel: learned positions, post-norm blocks. The two
differ in the first row used of the position table, and in a GELU of the head; their
families differ by the fields of `textual.traits`. A token
attends to tokens of its own document alone. Padding counts as a document of its own, so
that it influences no real token.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.types import Array, Key, Text
from flax_adapt.models import architecture, blocks, layers, residual
from flax_adapt.models.architecture import LastBlock
from flax_adapt.models.attention import Documents
from flax_adapt.models.layers import NORMAL, Dtype, Mix
from flax_adapt.models.residual import Select
from flax_adapt.models.textual.config import BertConfig, check_text
from flax_adapt.models.textual.pre_norm import PreNormBlock, make_sight


class Embeddings(nn.Module):
    """Sum of the embeddings of token, position and token type, in float32; then LayerNorm.

    Some families lack one of the tables. ELECTRA's linear layer to the width of the blocks
    follows on the LayerNorm; its dropout, between the two, is here after both [ours].
    """

    config: BertConfig
    dtype: Dtype

    def setup(self) -> None:
        config = self.config
        self.token = self._make_table("token", config.vocab_size)
        if not config.own.pre_norm:
            self.position = self._make_table("position", config.max_positions)
        if config.token_types:
            self.token_type = self._make_table("token_type", config.token_types)
        self.norm = layers.LayerNorm(
            config.layer_norm_eps, self.dtype, use_bias=config.biases
        )
        if config.own.embed_dim:
            self.project = layers.Dense(config.width, True, NORMAL, self.dtype)

    def _make_table(self, name: str, count: int) -> Array:
        shape = (count, self.config.embed_dim)
        table: Array = self.param(name, NORMAL, shape, jnp.float32)
        return table

    def __call__(self, text: Text) -> Array:
        """Returns x_BLD in `dtype`.

        An id outside of its table becomes NaN, which shows; a clipped id would not.
        """
        token_VD = placement.gather("encoder/embed/token", self.token)
        x_BLD = jnp.take(token_VD, text.tokens_BL, axis=0)
        x_BLD = placement.place("embeddings", x_BLD)
        if not self.config.own.pre_norm:
            row_BL = text.positions_BL + self.config.position_offset
            x_BLD = x_BLD + jnp.take(self.position, row_BL, axis=0)
        if self.config.token_types:
            x_BLD = x_BLD + jnp.take(self.token_type, text.token_types_BL, axis=0)
        x_BLD = self.norm(placement.place("embeddings", x_BLD))
        return self.project(x_BLD) if self.config.own.embed_dim else x_BLD


class Block(nn.Module):
    """Post-norm transformer block; with `resized` it ends in another width D.

    A resized block returns LayerNorm_D(W_s x + MLP_D(x)) (ours). The linear map W_s is
    the residual path around the MLP. `norm2` normalises the sum of both, so that no state
    is of two widths.

    Dropout as Hugging Face's hidden dropout, then stochastic depth [ours]. There is no
    dropout of attention's probabilities [ours].
    """

    config: BertConfig
    dropout: float
    drop_path: float | Array
    dtype: Dtype
    resized: LastBlock | None

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        documents: Documents,
        key_B: Key | None,
        select: Select | None = None,
    ) -> Array:
        """Returns the state x_BLD of the selected tokens; None: of all."""
        config = self.config
        norm = functools.partial(layers.LayerNorm, config.layer_norm_eps, self.dtype)
        attention = layers.Attention(config, NORMAL, self.dtype, name="attention")
        width, norm_width = config.width, 0
        if self.resized:
            width, norm_width = self.resized.width, self.resized.norm_width
        mlp = layers.MLP(config, width, NORMAL, self.dtype, name="mlp")
        rates = (self.dropout, self.drop_path)
        drawn = residual.Drawn(x_BLD.shape[1], select)
        drop = functools.partial(residual.drop_branch, rates, key_B, drawn=drawn)
        # The normed sum is the residual stream (Vaswani et al. 2017, section 3.1).
        added_BLD = drop(0, attention(x_BLD, documents, select))
        x_BLD = norm(name="norm1")(residual.take(select, x_BLD) + added_BLD)
        x_BLD = placement.place("states", x_BLD)
        around_BLD = layers.shortcut(x_BLD, self.resized, self.dtype)
        norm2 = norm(norm_width=norm_width, name="norm2")
        x_BLD = around_BLD + drop(1, mlp(x_BLD))
        self.sow(layers.SUMS, "sum", x_BLD)
        return placement.place("states", norm2(x_BLD))


class Encoder(nn.Module):
    """Text encoder; returns token states: one array [B, L, D] more than there are blocks.

    These are the embeddings after their LayerNorm, then the state after every block, with
    `pre_norm` the last one normed: Hugging Face's `hidden_states`. Layers that
    `config.last_block` adds are applied to the last one.
    """

    config: BertConfig
    dropout: float
    drop_path: float
    dtype: Dtype

    def setup(self) -> None:
        self.embed = Embeddings(self.config, self.dtype)
        plans = architecture.block_plans(self.config, self.drop_path)
        self.blocks = [self._make_block(*numbered) for numbered in enumerate(plans)]
        config, last_block = self.config, self.config.last_block
        if config.own.pre_norm:
            norm_width = last_block.norm_width if last_block else 0
            norm = (config.layer_norm_eps, self.dtype, norm_width, config.biases)
            self.norm = layers.LayerNorm(*norm)
        self.linear = layers.make_linear(last_block, NORMAL, self.dtype)

    def _make_block(self, number: int, plan: architecture.BlockPlan) -> Any:
        """Returns a block of the encoder; number: from 0."""
        own, name = self.config.own, f"block_{number:02d}"
        common = (plan.config, self.dropout, plan.drop_path, self.dtype, plan.resized)
        if not own.pre_norm:
            return Block(*common, name=name)
        is_local = number % own.global_every != 0
        return PreNormBlock(*common, is_local, bare=number == 0, name=name)

    def __call__(
        self,
        text: Text,
        key_B: Key | None,
        mix: Mix | None = None,
        select: Select | None = None,
    ) -> tuple[Array, ...]:
        """Returns the token states; raises UserError for a text that does not fit the model.

        key_B: keys of dropout; None: nothing is dropped. mix: changes the embeddings
        x_BLD before the first block; None: no change. select: the tokens of the last
        block's state, see `residual`; None: all.
        """
        own, segments_BL = self.config.own, check_text(text, self.config).segments_BL
        sees_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
        documents = placement.place("inputs", Documents(sees_BLM, segments_BL))
        sees: Any = documents
        if own.pre_norm:
            sees = make_sight(text, documents.sees_BLM, own.local_window // 2)
        key_0 = layers.fold_or_none(key_B, 0)
        x_BLD = self.embed(text) if mix is None else mix(self.embed(text))
        x_BLD = residual.dropout(x_BLD, self.dropout, key_0)
        x_BLD = placement.place("embeddings", x_BLD)
        after = blocks.run(self.blocks, x_BLD, key_B, sees, select=select)
        states = [x_BLD, *after] if after else [residual.take(select, x_BLD)]
        if own.pre_norm:
            states[-1] = self.norm(states[-1])
        states[-1] = layers.finish(states[-1], self.linear, self.config.last_block)
        return tuple(states)
