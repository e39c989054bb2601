"""The architecture of text encoders: BERT, RoBERTa and the families that differ by traits."""

import dataclasses
from typing import NamedTuple

from flax_adapt.base import checks
from flax_adapt.base.checks import Row
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Text
from flax_adapt.models import architecture
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.models.architecture import LastBlock
from flax_adapt.models.textual import traits
from flax_adapt.models.textual.traits import TextTraits

# Row of position 0 in the position table. RoBERTa counts positions from the padding id on
# (fairseq): no real token uses the rows 0 to pad_token_id.
POSITION_OFFSETS = {
    "bert": lambda pad_token_id: 0,
    "roberta": lambda pad_token_id: pad_token_id + 1,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The architecture of a text encoder; every field has one meaning and no default.

    kind: a key of POSITION_OFFSETS. max_positions: rows of the position table; with
    rotary positions there is no table, but as many positions.
    token_types: rows of the table of token types; 0: there is none, as in DistilBERT.
    width is D, mlp_dim is F. pooler: whether a tanh layer follows on the CLS state
    (Hugging Face BertModel). last_block: None is an ordinary one. adaptor: of GLAD
    attention, or None. traits: how the family differs from BERT or RoBERTa; None: not.
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
    traits: TextTraits | None

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
        traits.check_kind(self.traits, self.kind)
        if self.token_types < (self.traits is None):
            raise UserError(f"model.token_types={self.token_types} must be at least 1")

    @property
    def own(self) -> TextTraits:
        """The traits; of a model without any those of BERT."""
        return self.traits or traits.PLAIN

    @property
    def gate(self) -> str | None:
        """The GELU of the MLP's gate; None: there is no gate."""
        return self.gelu if self.own.gated else None

    @property
    def biases(self) -> bool:
        """Whether layers and norms have biases."""
        return self.own.biases

    @property
    def embed_dim(self) -> int:
        """The width of the tables of embeddings."""
        return self.own.embed_dim or self.width

    @property
    def key_bias(self) -> bool:
        """Whether keys have a bias: where queries and values have one."""
        return self.qkv_bias

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value layers have biases: as all layers do."""
        return self.own.biases

    @property
    def position_offset(self) -> int:
        """The row of position 0 in the position table."""
        return POSITION_OFFSETS[self.kind](self.pad_token_id)

    @property
    def head_gelu(self) -> str:
        """The GELU of the masked-language-model head; RobertaLMHead's is always exact."""
        exact = self.kind == "roberta" or self.own.exact_head
        return "erf" if exact else self.gelu

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
        # A model without token types reads pairs by SEP alone.
        lambda it: it.token_types <= (it.model.token_types or it.token_types),
        "the tokenizer tells {0.token_types} texts of a row apart by type but the "
        "model has {0.model.token_types}",
    ),
)


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
