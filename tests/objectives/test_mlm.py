"""Hidden tokens: which, what becomes of them, and what is made of the guesses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, objectives
from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Text
from flax_adapt.models import masking
from flax_adapt.objectives import mlm

VOCAB = tiny.TEXT_MODEL["vocab_size"]
HOW = dict(
    mask_rate=0.15,
    mask_token_id=tiny.MASK,
    mask_share=0.8,
    random_share=0.1,
    vocab_size=1000,
    whole_word=False,
)


def keys_of(count, seed=0):
    return keys.example_keys(jax.random.key(seed), jnp.arange(count))


def many(count=400, length=64):
    """Rows of one long document of words 4 ... 999."""
    text = tiny.text_of(*[(length - 4,)] * count, length=length)
    inner = text.words_BL >= 0
    rng = np.random.default_rng(1)
    text.tokens_BL[inner] = rng.integers(4, 1000, inner.sum())
    return text


def hide(text, seed=0, **changes):
    key_B = keys_of(len(text.tokens_BL), seed)
    return jax.tree.map(
        np.asarray, masking.hide_tokens(text, key_B, **{**HOW, **changes})
    )


def test_fifteen_percent_are_hidden_and_become_80_10_10():
    text = many()
    seen_BL, hidden_BL = hide(text)
    words_BL = text.words_BL >= 0
    assert np.mean(hidden_BL[words_BL]) == pytest.approx(0.15, abs=0.01)
    before, after = text.tokens_BL[hidden_BL], seen_BL[hidden_BL]
    assert np.mean(after == tiny.MASK) == pytest.approx(0.8, abs=0.02)
    kept = np.mean(after == before)
    assert kept == pytest.approx(0.1, abs=0.015)
    others = after[(after != before) & (after != tiny.MASK)]
    assert len(np.unique(others)) > 200  # any word of the vocabulary
    np.testing.assert_array_equal(seen_BL[~hidden_BL], text.tokens_BL[~hidden_BL])


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_tokens_and_padding_are_never_hidden(whole_word):
    text = tiny.text_of((5, 7), (9,), (12,))
    _, hidden_BL = hide(text, mask_rate=0.999, whole_word=whole_word)
    np.testing.assert_array_equal(hidden_BL, text.words_BL >= 0)


def test_the_pieces_of_a_word_are_hidden_together():
    text = many(count=50)
    apart = together = 0
    for whole_word in (False, True):
        _, hidden_BL = hide(text, whole_word=whole_word)
        # The second word of a document has two pieces: tokens 2 and 3.
        differ = int(np.sum(hidden_BL[:, 2] != hidden_BL[:, 3]))
        apart, together = (apart, differ) if whole_word else (differ, together)
    assert apart > 0 == together


def test_a_mask_depends_on_the_key_of_the_example_alone():
    text = many(count=8)
    key_B = keys_of(8)
    whole = masking.hide_tokens(text, key_B, **HOW)
    rows = jnp.array([6, 1])
    some = Text(*(leaf[rows] for leaf in text))
    part = masking.hide_tokens(some, key_B[rows], **HOW)
    shorter = Text(*(leaf[:, :62] for leaf in text))  # only padding is cut off
    cut = masking.hide_tokens(shorter, key_B, **HOW)
    for leaf, of_rows, of_shorter in zip(whole, part, cut, strict=True):
        np.testing.assert_array_equal(leaf[rows], of_rows)
        np.testing.assert_array_equal(leaf[:, :62], of_shorter)


def loss_of(batch, **changes):
    config = ConfigDict(defaults.mlm(tiny.MASK) | changes)
    model = tiny.build("mlm", tiny.TEXT_MODEL)
    loss_fn = objectives.build(config, model, train=False)
    params = tiny.params_of(model)
    return model, params, loss_fn(params, {}, batch, keys_of(len(batch["weight"])))


def given(batch, hidden_BL):
    """The batch with this mask: what is hidden becomes the mask token."""
    text = batch["text"]
    seen_BL = np.where(hidden_BL, tiny.MASK, text.tokens_BL)
    return batch | {"hidden": masking.Hidden(seen_BL, hidden_BL)}


def every_word(batch):
    return given(batch, batch["text"].words_BL >= 0)


def test_the_loss_is_the_mean_over_all_hidden_tokens_of_the_batch():
    batch = tiny.text_batch_of(4)
    hidden_BL = np.random.default_rng(3).random((4, 12)) < 0.4
    batch = given(batch, hidden_BL & (batch["text"].words_BL >= 0))
    model, params, (loss, metrics) = loss_of(batch, max_masked_fraction=1.0)
    hidden = batch["hidden"]
    places = np.broadcast_to(np.arange(12), (4, 12))
    seen = batch["text"]._replace(tokens_BL=hidden.tokens_BL)
    logits = model.apply({"params": params}, seen, places, None)
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    picked = np.take_along_axis(logs, batch["text"].tokens_BL[..., None], -1)[..., 0]
    expected = -picked[hidden.hidden_BL].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["masked_tokens"].value() == hidden.hidden_BL.sum()
    assert metrics["perplexity"].value() == pytest.approx(np.exp(expected), rel=1e-5)
    guessed = np.asarray(logits).argmax(-1) == batch["text"].tokens_BL
    correct = guessed[hidden.hidden_BL].mean()
    assert float(metrics["mlm_accuracy"].value()) == pytest.approx(correct)


def test_what_does_not_fit_the_projection_is_counted():
    batch = every_word(tiny.text_batch_of(4))
    words = int(batch["hidden"].hidden_BL.sum())
    _, _, (_, metrics) = loss_of(batch, max_masked_fraction=0.25)
    assert metrics["masked_tokens"].value() == 4 * 3  # 12 places a row, a quarter
    assert metrics["overflow"].value() == words - 4 * 3
    _, _, (_, metrics) = loss_of(batch, max_masked_fraction=1.0)
    assert metrics["overflow"].value() == 0
    assert metrics["masked_tokens"].value() == words


def test_only_the_places_asked_for_are_projected():
    batch = tiny.text_batch_of(4)
    config = ConfigDict(defaults.mlm(tiny.MASK))
    model = tiny.build("mlm", tiny.TEXT_MODEL)
    loss_fn = objectives.build(config, model)
    jaxpr = jax.make_jaxpr(loss_fn)(tiny.params_of(model), {}, batch, keys_of(4))
    assert f"f32[4,3,{VOCAB}]" in str(jaxpr)
    assert f"f32[4,12,{VOCAB}]" not in str(jaxpr)


def test_a_batch_without_hidden_tokens_has_loss_zero_and_no_nan():
    batch = tiny.text_batch_of(2)
    batch = given(batch, np.zeros((2, 12), bool))
    _, _, (loss, metrics) = loss_of(batch)
    assert loss == 0
    assert metrics["masked_tokens"].value() == 0


def test_token_errors_by_hand(strict_dtypes):
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
    errors, correct = mlm.token_errors(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(errors, [[np.log(2), -np.log(0.1)]], rtol=1e-6)
    np.testing.assert_array_equal(correct, [[True, False]])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(mask_rate=0.0), "objective.mask_rate=0.0"),
        (dict(mask_share=0.95), "mask_share=0.95 and random_share=0.1"),
        (dict(mask_token_id=29), "mask_token_id=29 .* has 29"),
        (dict(max_masked_fraction=0.0), "max_masked_fraction=0.0"),
    ],
)
def test_mistakes_name_the_field(changes, told):
    with pytest.raises(UserError, match=told):
        loss_of(tiny.text_batch_of(2), **changes)
