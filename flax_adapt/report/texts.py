"""Texts: masks that are filled before and after, and the tokens whose embedding moved most."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import weights
from flax_adapt.base.types import Array, Text
from flax_adapt.report import backbones, pictures
from flax_adapt.report.backbones import Backbone
from flax_adapt.report.workdir import Run

# Texts with one mask each, guesses for each mask, tokens around a mask that are shown.
TEXTS, GUESSES, AROUND = 8, 3, 12
MOVED = 24


def filled_masks(run: Run) -> dict[str, Any] | None:
    """Returns texts with one masked token, and the likeliest tokens by each model."""
    if not backbones.is_alone():
        return None
    found = backbones.list_backbones(run, "mlm")
    trained = [one for one in found if one.stage]
    if not trained:
        return None
    section = next(s for s in run.experiment.stages if s.name == trained[-1].stage)
    held_out = section.data if section.eval is None else section.eval.data
    examples = backbones.open_section(run, held_out)
    if examples is None:
        return None
    rows = np.asarray(pictures.spread_rows(len(examples), TEXTS), np.int64)
    text = examples.batch(rows, np.arange(len(rows)))["text"]
    tokenizer = examples.tokenizer
    places_B = choose_places(text.words_BL)
    truth_B = text.tokens_BL[np.arange(len(rows)), places_B]
    hidden = hide(text, places_B, tokenizer.mask_id)
    guesses = [guess(one, hidden, places_B) for one in found]
    shown = [
        {
            **_quote(tokenizer, text.tokens_BL[i], int(places_B[i])),
            "truth": tokenizer.token(int(truth_B[i])),
            "guesses": [
                _describe(tokenizer, shares_BV[i], int(truth_B[i]))
                for shares_BV in guesses
            ],
        }
        for i in range(len(rows))
    ]
    return {"columns": [one.label for one in found], "rows": shown}


def choose_places(words_BL: np.ndarray) -> np.ndarray:
    """Returns int [B]: in each row the token of a word that is nearest to the middle.

    The words of special tokens are -1. A row without a word has place 0.
    """
    found = []
    for words_L in np.asarray(words_BL):
        places = np.flatnonzero(words_L >= 0)
        found.append(int(places[len(places) // 2]) if len(places) else 0)
    return np.asarray(found, np.int64)


def hide(text: Text, places_B: np.ndarray, mask_id: int) -> Text:
    """Returns the texts with the mask token at these places, one a row."""
    tokens_BL = np.array(text.tokens_BL)
    tokens_BL[np.arange(len(places_B)), places_B] = mask_id
    return text._replace(tokens_BL=cast(Array, tokens_BL))


def guess(one: Backbone, text: Text, places_B: np.ndarray) -> np.ndarray:
    """Returns float32 [B, V], the probabilities of all tokens at these places."""
    model, params, _ = weights.from_pretrained(one.folder, "mlm", **one.fit)
    ready = Text(*(jnp.asarray(values) for values in text))
    places_BM = jnp.asarray(places_B, jnp.int32)[:, None]
    return np.asarray(_guess(model, params, ready, places_BM))


@functools.partial(jax.jit, static_argnames="model")
def _guess(model: Any, params: Any, text: Text, places_BM: Any) -> Any:
    logits_BMV = model.apply({"params": params}, text, places_BM, None)
    return jax.nn.softmax(logits_BMV[:, 0].astype(jnp.float32))


def _describe(tokenizer: Any, shares_V: np.ndarray, truth: int) -> dict[str, Any]:
    best = np.argsort(-shares_V, kind="stable")[:GUESSES]
    return {
        "tokens": [
            {
                "token": tokenizer.token(int(token)),
                "share": f"{100 * shares_V[token]:.0f} %",
                "right": int(token) == truth,
            }
            for token in best
        ],
        "truth": f"{100 * shares_V[truth]:.0f} %",
    }


def _quote(tokenizer: Any, tokens_L: np.ndarray, place: int) -> dict[str, str]:
    """Returns the words before and after a mask."""
    first, last = max(0, place - AROUND), place + 1 + AROUND
    return {
        "before": tokenizer.decode(tokens_L[first:place]),
        "after": tokenizer.decode(tokens_L[place + 1 : last]),
    }


def moved_tokens(run: Run) -> dict[str, Any] | None:
    """Returns the tokens whose embedding moved most from the first to the last model."""
    section = run.experiment.stages[0].data
    if section.modality != "text":
        return None
    found = backbones.list_backbones(run, "encoder")
    if len(found) < 2 or not backbones.is_alone():
        return None
    first, last = (_read_table(one) for one in (found[0], found[-1]))
    if first.shape != last.shape:
        return None
    examples = backbones.open_section(run, section)
    if examples is None:
        return None
    moved_V = measure_moves(first, last)
    order = np.argsort(-moved_V, kind="stable")[:MOVED]
    return {
        **dict(before=found[0].label, after=found[-1].label),
        "tokens": [
            {"token": examples.tokenizer.token(int(v)), "moved": f"{moved_V[v]:.3f}"}
            for v in order
            if moved_V[v] > 0
        ],
    }


def measure_moves(first_VD: np.ndarray, last_VD: np.ndarray) -> np.ndarray:
    """Returns float64 [V]: the distance of each embedding, as a share of its first length."""
    first_VD, last_VD = (x.astype(np.float64) for x in (first_VD, last_VD))
    lengths_V = np.linalg.norm(first_VD, axis=1)
    distance_V = np.linalg.norm(last_VD - first_VD, axis=1)
    moved_V: np.ndarray = distance_V / np.maximum(lengths_V, 1e-12)
    return np.where(lengths_V > 1e-6, moved_V, 0.0)


def _read_table(one: Backbone) -> np.ndarray:
    """Returns the embeddings of tokens, [V, D]."""
    options = weights.options_in(one.fit)
    opened = weights.open_params(
        one.folder, "encoder", reshape=one.fit.get("reshape", ()), sizes={}, **options
    )
    with opened as params:
        return np.asarray(params["encoder"]["embed"]["token"])
