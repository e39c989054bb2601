"""The ways in which families of text encoders differ from BERT and RoBERTa."""

import dataclasses
import math
from typing import Any

from flax_adapt.base import checks
from flax_adapt.base.checks import Row, one_of
from flax_adapt.base.errors import UserError

# Family, transformers' model_type -> the kind of model, whose positions it has.
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "bert",
    "electra": "bert",
    "modernbert": "bert",
}
# Activation of the pooler -> the classifiers whose own it is.
POOLERS = {
    "tanh": "BERT and RoBERTa",
    "relu": "DistilBERT: pre_classifier",
    "gelu": "ELECTRA and ModernBERT",
}
# What a pooler reads.
POOLED = {"cls": "the state of CLS", "mean": "the mean of the states of all tokens"}
MAX_SIZE = 1 << 14


@dataclasses.dataclass(frozen=True)
class TextTraits:
    """The fields `model.traits` of text; raises UserError for values that no model has.

    family   a key of FAMILIES: whose names and config.json the weights are written with
    pooler   activation after the pooler's dense layer, a key of POOLERS
    pooler_norm  a LayerNorm follows on it
    pooled   what the pooler reads, a key of POOLED
    embed_dim  width of the tables of embeddings and of their LayerNorm; a linear layer
             follows to that of the blocks (ELECTRA). 0: they are as wide as the blocks
    exact_head  the GELU of the masked-language-model head is exact, whatever `gelu` is
    pre_norm  blocks normalise what they read, not what they return, and a norm follows on
             the last one (ModernBERT); with the fields below, of such models alone
    biases   layers and norms have biases
    gated    MLPs are gelu(x W_g) * x W_u (GeGLU, Shazeer 2020)
    global_every  every so-many-th block from the first on attends to the whole document
    local_window  the others see half of so many tokens to either side
    global_theta, local_theta  base of the rotary positions (Su et al. 2021) of either kind
             of block
    """

    family: str
    pooler: str
    pooler_norm: bool
    pooled: str
    embed_dim: int
    exact_head: bool
    pre_norm: bool
    biases: bool
    gated: bool
    global_every: int
    local_window: int
    global_theta: float
    local_theta: float

    def __post_init__(self):
        checks.run(_ROWS, self)


def _only_with_pre_norm(name: str, low: int) -> Row:
    """Returns the rule of a number of at least `low` with pre_norm, and of 0 without."""

    def holds(it: TextTraits) -> bool:
        value: float = getattr(it, name)
        return low <= value < math.inf if it.pre_norm else value == 0

    return Row(
        holds,
        f"model.traits.{name}={{0.{name}}} must be at least {low} with pre_norm=True, and "
        "0 without",
    )


_ROWS = (
    one_of("model.traits.family", lambda it: it.family, FAMILIES),
    one_of("model.traits.pooler", lambda it: it.pooler, POOLERS),
    one_of("model.traits.pooled", lambda it: it.pooled, POOLED),
    Row(
        lambda it: 0 <= it.embed_dim <= MAX_SIZE,
        f"model.traits.embed_dim={{0.embed_dim}} must lie in 0 to {MAX_SIZE}",
    ),
    *(
        _only_with_pre_norm(name, low)
        for name, low in (
            *(("global_every", 1), ("local_window", 2)),
            *(("global_theta", 1), ("local_theta", 1)),
        )
    ),
    Row(
        lambda it: it.pre_norm or (it.biases and not it.gated and not it.pooler_norm),
        "model.traits: biases, gated and pooler_norm are of models with pre_norm=True",
    ),
    Row(
        lambda it: not (it.pre_norm and it.embed_dim),
        "model.traits.embed_dim={0.embed_dim} must be 0 with pre_norm=True",
    ),
)

# The traits of a model whose field `traits` is None.
PLAIN = TextTraits(
    family="bert",
    pooler="tanh",
    pooler_norm=False,
    pooled="cls",
    embed_dim=0,
    exact_head=False,
    pre_norm=False,
    biases=True,
    gated=False,
    global_every=0,
    local_window=0,
    global_theta=0.0,
    local_theta=0.0,
)


def of_family(family: str, **changes: Any) -> dict[str, Any]:
    """Returns the traits of a family as a mapping: those of BERT but for `changes`."""
    return {**dataclasses.asdict(PLAIN), "family": family, **changes}


def check_kind(traits: TextTraits | None, kind: str) -> None:
    """Raises UserError for a family of another kind of model."""
    if traits is not None and FAMILIES[traits.family] != kind:
        raise UserError(
            f"model.kind={kind!r} must be {FAMILIES[traits.family]!r} for "
            f"model.traits.family={traits.family!r}"
        )
