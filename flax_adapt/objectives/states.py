"""States of two models that are compared: which tokens, how they are encoded, how far apart."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from flax_adapt import models
from flax_adapt.base.checks import Context, Row, one_of
from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import Array, Layout, Params
from flax_adapt.models import residual
from flax_adapt.models.residual import Select


def _cls(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    """Selects the first token of every document (packed rows hold several), or image."""
    return x_BLD, layout.first_BL


def _tokens(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    return x_BLD, layout.segments_BL > 0


def _mean(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    """Selects, in the place of each document's first token, its state pooled by "mean"."""
    segments_BL = layout.segments_BL
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None]
    counts_BLM = (same_BLM & layout.pooled_BL[:, None]).astype(x_BLD.dtype)
    count_BL1 = jnp.sum(counts_BLM, axis=-1, keepdims=True)
    return counts_BLM @ x_BLD / jnp.maximum(count_BL1, 1), layout.first_BL


# Which states are compared: (states, layout) -> (states [B, L, D], bool [B, L], true where
# a state is compared).
STATES: dict[str, Callable[[Array, Layout], tuple[Array, Array]]] = {
    "cls": _cls,
    "tokens": _tokens,
    "mean": _mean,
}
REDUCE = {"sum": jnp.sum, "mean": jnp.mean}


def state_distance(
    student: Sequence[Array],
    teacher: Sequence[Array],
    layout: Layout,
    weight_B: Array,
    state: str,
    reduce: str,
    error: Callable[[Array], Array] = jnp.square,
) -> Mean:
    """Returns the mean distance of the states of student and teacher.

    student, teacher: states [B, L, D] of each compared layer. state: a key of STATES,
    selects tokens. reduce: a key of REDUCE, reduces over features. The mean is over the
    selected tokens, weighted by weight_B, and over the layers (ours; the reference has
    one). error: of a difference. h = (1, 2), h' = (3, 5), "sum", squares: 4 + 9 = 13.
    """
    select, over_features = STATES[state], REDUCE[reduce]
    total = Mean(jnp.float32(0), jnp.float32(0))
    for x_BLD, y_BLD in zip(student, teacher, strict=True):
        (x_BLD, counts_BL), (y_BLD, _) = select(x_BLD, layout), select(y_BLD, layout)
        error_BL = over_features(error(x_BLD - y_BLD), axis=-1)
        weight_BL = jnp.where(counts_BL, weight_B[:, None], 0)
        total = total.merge(Mean.of(error_BL, weight_BL))
    return total


def holds_one_document(config_data: Any) -> bool:
    """Returns whether a row of a data section is one text, or an image."""
    return config_data.modality == "image" or config_data.layout == "padded"


def select_compared(state: str, model: nn.Module, one_document: bool) -> Select | None:
    """Returns the tokens whose states are compared, the first of each row; None: all.

    one_document: whether a row of text holds one document, as an image is one.
    """
    is_first = state == "cls" and (model.modality == "image" or one_document)
    return residual.first_token if is_first else None


def encode_selected(
    model: nn.Module,
    params: Params,
    inputs: Any,
    layers: Sequence[int],
    select: Select | None,
) -> list[Array]:
    """Returns the states [B, U, D], float32, of the selected tokens after some layers.

    The last block computes no other tokens, see `residual`. There is no dropout.
    """
    hidden = model.apply(
        {"params": params}, inputs, None, None, select, method="encode"
    )
    counts = [residual.take(select, hidden[layer]) for layer in layers]
    return [x_BLD.astype(jnp.float32) for x_BLD in counts]


def layout_of(model: nn.Module, inputs: Any, select: Select | None) -> Layout:
    """Returns the `Layout` of the selected tokens."""
    return Layout(*(residual.take(select, leaf) for leaf in model.layout(inputs)))


class StateComparison(NamedTuple):
    """An objective that compares states, and how many the model's `encode` returns."""

    objective: Any
    num_states: int

    @property
    def outside(self) -> list[int]:
        """The entries of `objective.layers` that are no index of a state."""
        states = range(-self.num_states, self.num_states)
        return [layer for layer in self.objective.layers if layer not in states]


def state_comparisons(at: Context, name: str) -> list[StateComparison]:
    """Returns the subject of rows about the objective `name`, [] if the stage has another."""
    if at.section.objective.name != name:
        return []
    config = ConfigDict(models.of_stage(at.config.model, at.section.model))
    return [StateComparison(at.section.objective, models.num_blocks(config) + 1)]


def weight_row(field: str) -> Row:
    """Returns the rule that `objective.FIELD`, the weight of a loss term, is in [0, inf)."""
    return Row(
        lambda subject: 0 <= subject.objective[field] < math.inf,
        lambda subject: (
            f"objective.{field}={subject.objective[field]} must be at least 0, and finite"
        ),
    )


# Rules of the fields `objective.state` and `objective.layers`, see `state_distance`.
STATE_ROWS = (
    one_of("objective.state", lambda subject: subject.objective.state, STATES),
    Row(
        lambda subject: subject.objective.layers and not subject.outside,
        lambda subject: (
            f"objective.layers={tuple(subject.objective.layers)} must name states 0 to "
            f"{subject.num_states - 1} (or negative, -1 = the last)"
        ),
    ),
)
