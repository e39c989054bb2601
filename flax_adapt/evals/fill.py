"""Predictions of a masked language model for the mask tokens of a text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import data, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Text


def fill(
    path: Path, text: str, top: int, format: str | None
) -> list[list[tuple[str, float]]]:
    """Returns, for every mask token, the `top` likeliest tokens and their probabilities.

    format: of the weights, see `weights`. Raises UserError for weights without a
    masked-language head, a text without mask token, and a `top` outside of the
    vocabulary.
    """
    if not weights.does_task(path, "mlm", format=format):
        raise UserError(f"{path} has no masked-language head to fill with")
    tokenizer = data.open_tokenizer(path)
    model, params, _ = weights.from_pretrained(path, "mlm", format=format)
    row = _one_row(tokenizer, text)
    (places,) = np.nonzero(np.asarray(row.tokens_BL[0]) == tokenizer.mask_id)
    length = row.tokens_BL.shape[1]
    models.check_fits(
        model.config, length=length, vocab_size=tokenizer.vocab_size, token_types=1
    )
    _check(tokenizer, places, top)
    logits_BMV = model.apply({"params": params}, row, places[None], None)
    probabilities_MV = np.asarray(jax.nn.softmax(logits_BMV[0]))
    order_MV = np.argsort(-probabilities_MV, axis=-1)[:, :top]
    return [
        [(tokenizer.token(int(i)), float(row_V[i])) for i in order_V]
        for row_V, order_V in zip(probabilities_MV, order_MV, strict=True)
    ]


def _one_row(tokenizer: data.Tokenizer, text: str) -> Text:
    """Returns the text as a batch of one row, [1, L]."""
    (found,) = tokenizer.encode([(text,)])
    tokens_BL = jnp.asarray(found.tokens)[None]
    return Text(
        tokens_BL=tokens_BL,
        token_types_BL=jnp.asarray(found.token_types)[None],
        segments_BL=jnp.ones_like(tokens_BL),
        positions_BL=jnp.arange(tokens_BL.shape[1])[None],
        words_BL=jnp.asarray(found.words)[None],
    )


def _check(tokenizer: data.Tokenizer, places: np.ndarray, top: int) -> None:
    mask = tokenizer.token(tokenizer.mask_id)
    if not len(places):
        raise UserError(f"--text holds no mask token; write {mask} where one is to go")
    if not 1 <= top <= tokenizer.vocab_size:
        raise UserError(f"--top={top} must lie in 1 to {tokenizer.vocab_size}")
