"""The encoder of BERT (Devlin et al. 2019) and of RoBERTa (Liu et al. 2019).

As Hugging Face's BertModel and RobertaModel: learned positions, post-norm blocks. The two
differ in the first row used of the position table, and in a GELU of the head. A token
attends to tokens of its own document alone. Padding counts as a document of its own, so
that it influences no real token.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base import checks, placement
from flax_adapt.base.checks import Row
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array, Key, Text
from flax_adapt.models import architecture, blocks, layers, residual
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.models.architecture import LastBlock
from flax_adapt.models.layers import NORMAL, Dtype, Mix
from flax_adapt.models.residual import Select
from flax_adapt.models.visual import traits
from flax_adapt.models.visual.traits import Traits

# Row of position 0 in the position table. RoBERTa counts positions from the padding id on
# (fairseq): no real token uses the rows 0 to pad_token_id.
POSITION_OFFSETS = {
    "bert": lambda pad_token_id: 0,
    "roberta": lambda pad_token_id: pad_token_id + 1,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The architecture of a text encoder; every field has one meaning and no default.

    kind: a key of POSITION_OFFSETS. max_positions: rows of the position table. width is
    D, mlp_dim is F. pooler: whether a tanh layer follows on the CLS state (Hugging Face
    BertModel). last_block: None is an ordinary one. adaptor: of GLAD attention, or None.
    Raises UserError for values that do not fit together.
    """

    kind: str
    vocab_size: int
    max_positions: int
    token_types: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    layer_norm_eps: float
    gelu: str
    pad_token_id: int
    pooler: bool
    last_block: LastBlock | None
    adaptor: AdaptorConfig | None

    def __post_init__(self):
        choose("model.kind", self.kind, POSITION_OFFSETS)
        architecture.check_block(self)
        architecture.check_last_block(self.last_block, self.width)
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(
                f"model.pad_token_id={self.pad_token_id} must be one of the "
                f"model.vocab_size={self.vocab_size} ids"
            )
        if self.max_length < 1:
            raise UserError(
                f"model.max_positions={self.max_positions} must be more than "
                f"{self.position_offset}, the rows that no {self.kind} token uses"
            )
        if self.token_types < 1:
            raise UserError(f"model.token_types={self.token_types} must be at least 1")

    @property
    def own(self) -> Traits:
        """The traits of the plain block: BERT's families have none of their own."""
        return traits.PLAIN

    @property
    def qkv_bias(self) -> bool:
        """True: BERT's query, key and value layers all have biases."""
        return True

    @property
    def position_offset(self) -> int:
        """The row of position 0 in the position table."""
        return POSITION_OFFSETS[self.kind](self.pad_token_id)

    @property
    def head_gelu(self) -> str:
        """The GELU of the masked-language-model head; RobertaLMHead's is always exact."""
        return "erf" if self.kind == "roberta" else self.gelu

    @property
    def max_length(self) -> int:
        """The largest number of tokens that a row may have."""
        return self.max_positions - self.position_offset


def check_fits(
    config: BertConfig, *, length: int, vocab_size: int, token_types: int
) -> None:
    """Raises UserError unless rows of `length` tokens fit the model's tables."""
    checks.run(_FIT_ROWS, _RowSizes(config, length, vocab_size, token_types))


class _RowSizes(NamedTuple):
    """Sizes of rows of text and of their tokenizer, and the config of the model."""

    model: BertConfig
    length: int
    vocab_size: int
    token_types: int


_FIT_ROWS = (
    Row(
        lambda it: it.length <= it.model.max_length,
        "rows of {0.length} tokens (data.seq_len) are longer than the "
        "{0.model.max_length} positions of the model",
    ),
    Row(
        lambda it: it.vocab_size <= it.model.vocab_size,
        "the tokenizer has {0.vocab_size} tokens but the model {0.model.vocab_size}: "
        "it is not the model's own, or was added to",
    ),
    Row(
        lambda it: it.token_types <= it.model.token_types,
        "the tokenizer tells {0.token_types} texts of a row apart by type but the "
        "model has {0.model.token_types}",
    ),
)


class Embeddings(nn.Module):
    """Sum of the embeddings of token, position and token type, in float32; then LayerNorm."""

    config: BertConfig
    dtype: Dtype

    def setup(self) -> None:
        config = self.config
        rows = dict(
            token=config.vocab_size,
            position=config.max_positions,
            token_type=config.token_types,
        )
        self.token, self.position, self.token_type = (
            self.param(name, NORMAL, (count, config.width), jnp.float32)
            for name, count in rows.items()
        )
        self.norm = layers.LayerNorm(config.layer_norm_eps, self.dtype)

    def __call__(self, text: Text) -> Array:
        """Returns x_BLD in `dtype`.

        An id outside of its table becomes NaN, which shows; a clipped id would not.
        """
        token_VD = placement.gather("encoder/embed/token", self.token)
        x_BLD = jnp.take(token_VD, text.tokens_BL, axis=0)
        x_BLD = placement.place("embeddings", x_BLD)
        row_BL = text.positions_BL + self.config.position_offset
        x_BLD = x_BLD + jnp.take(self.position, row_BL, axis=0)
        x_BLD = x_BLD + jnp.take(self.token_type, text.token_types_BL, axis=0)
        return self.norm(placement.place("embeddings", x_BLD))


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
        sees_BLM: Array,
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
        added_BLD = drop(0, attention(x_BLD, sees_BLM, select))
        x_BLD = norm(name="norm1")(residual.take(select, x_BLD) + added_BLD)
        x_BLD = placement.place("states", x_BLD)
        around_BLD = layers.shortcut(x_BLD, self.resized, self.dtype)
        norm2 = norm(norm_width=norm_width, name="norm2")
        x_BLD = around_BLD + drop(1, mlp(x_BLD))
        self.sow(layers.SUMS, "sum", x_BLD)
        return placement.place("states", norm2(x_BLD))


class Encoder(nn.Module):
    """Text encoder; returns token states: one array [B, L, D] more than there are blocks.

    These are the embeddings after their LayerNorm, then the state after every block:
    Hugging Face's `hidden_states`. Layers that `config.last_block` adds are applied to
    the last one.
    """

    config: BertConfig
    dropout: float
    drop_path: float
    dtype: Dtype

    def setup(self) -> None:
        self.embed = Embeddings(self.config, self.dtype)
        self.blocks = [
            Block(
                plan.config,
                self.dropout,
                plan.drop_path,
                self.dtype,
                plan.resized,
                name=f"block_{number:02d}",
            )
            for number, plan in enumerate(
                architecture.block_plans(self.config, self.drop_path)
            )
        ]
        last_block = self.config.last_block
        self.linear = layers.make_linear(last_block, NORMAL, self.dtype)

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
        segments_BL = check_text(text, self.config).segments_BL
        sees_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
        sees_BLM = placement.place("inputs", sees_BLM)
        key_0 = layers.fold_or_none(key_B, 0)
        x_BLD = self.embed(text) if mix is None else mix(self.embed(text))
        x_BLD = residual.dropout(x_BLD, self.dropout, key_0)
        x_BLD = placement.place("embeddings", x_BLD)
        after = blocks.run(self.blocks, x_BLD, key_B, sees_BLM, select=select)
        states = [x_BLD, *after] if after else [residual.take(select, x_BLD)]
        states[-1] = layers.finish(states[-1], self.linear, self.config.last_block)
        return tuple(states)


def check_text(text: Text, config: BertConfig) -> Text:
    """Returns the text unchanged; raises UserError if its shapes do not fit the model."""
    shapes = {name: leaf.shape for name, leaf in text._asdict().items()}
    if len(set(shapes.values())) > 1 or text.tokens_BL.ndim != 2:
        raise UserError(
            f"the parts of a text batch have shapes {shapes} but all must be (examples, "
            "data.seq_len)"
        )
    length = text.tokens_BL.shape[1]
    if length > config.max_length:
        raise UserError(
            f"texts are {length} tokens long but the model takes {config.max_length}; "
            f"set data.seq_len to {config.max_length} or less"
        )
    return text
