"""The ways in which families of text encoders differ from BERT and RoBERTa."""

import dataclasses

from flax_adapt.base import checks
from flax_adapt.base.checks import one_of
from flax_adapt.base.errors import UserError

# Family, transformers' model_type -> the kind of model, whose positions it has.
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "bert",
}
# Activation of the pooler -> the classifiers whose own it is.
POOLERS = {
    "tanh": "BERT and RoBERTa",
    "relu": "DistilBERT: pre_classifier",
}


@dataclasses.dataclass(frozen=True)
class TextTraits:
    """The fields `model.traits` of text; raises UserError for values that no model has.

    family   a key of FAMILIES: whose names and config.json the weights are written with
    pooler   activation after the pooler's dense layer, a key of POOLERS
    """

    family: str
    pooler: str

    def __post_init__(self):
        checks.run(_ROWS, self)


_ROWS = (
    one_of("model.traits.family", lambda it: it.family, FAMILIES),
    one_of("model.traits.pooler", lambda it: it.pooler, POOLERS),
)

# The traits of a model whose field `traits` is None.
PLAIN = TextTraits(family="bert", pooler="tanh")


def check_kind(traits: TextTraits | None, kind: str) -> None:
    """Raises UserError for a family of another kind of model."""
    if traits is not None and FAMILIES[traits.family] != kind:
        raise UserError(
            f"model.kind={kind!r} must be {FAMILIES[traits.family]!r} for "
            f"model.traits.family={traits.family!r}"
        )
