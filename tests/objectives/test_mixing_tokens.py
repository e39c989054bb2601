"""Mixing of texts: which token is whose, and what lambda means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from flax_adapt.base import keys
from flax_adapt.objectives import mixing

pytestmark = pytest.mark.usefixtures("strict_dtypes")

NUM = 64
KEYS = keys.example_keys(jax.random.key(0), jnp.arange(NUM))
NEIGHBOUR = np.arange(NUM, dtype=np.int32) ^ 1  # rows in pairs


def section(operator, reading="unmix"):
    return FrozenConfigDict({"operator": operator, "alpha": 1.0, "reading": reading})


def tokens_of(*lengths):
    """Padded rows of nine places."""
    return (np.arange(9) < np.array(lengths)[:, None]).astype(np.int32)


def mix_tokens(mix, lengths, partner_B, config):
    rows = len(lengths)
    mixed = mix(tokens_of(*lengths), np.int32(partner_B), KEYS[:rows], config)
    assert [part.dtype for part in mixed] == [jnp.float32, jnp.int32, jnp.float32]
    return jax.tree.map(np.asarray, mixed)


@pytest.fixture
def mix(monkeypatch):
    """Mixes with given lambdas; nothing is jitted, so that nothing remembers them."""

    def mix(lam, *arguments):
        lam_B = jnp.array(lam, jnp.float32)
        monkeypatch.setattr(mixing, "_sample_lambda", lambda key_B, alpha: lam_B)
        return mix_tokens(mixing.mix_tokens, *arguments)

    return mix


def test_mixed_up_tokens_by_hand(mix):
    own, segments, share = mix(
        [0.75, 0.25, 0.5, 0.5], (4, 2, 0, 3), (1, 0, 3, 3), section("mixup")
    )
    np.testing.assert_array_equal(own[0], [0.75, 0.75] + [1] * 7)
    np.testing.assert_array_equal(own[1], [0.25, 0.25, 0, 0] + [1] * 5)
    np.testing.assert_array_equal(own[2], [0, 0, 0] + [1] * 6)
    np.testing.assert_array_equal(own[3], np.ones(9))
    np.testing.assert_array_equal(segments, tokens_of(4, 4, 3, 3))
    np.testing.assert_array_equal(share, [3.5 / 4, 0.5 / 4, 0, 1])


@pytest.mark.parametrize(
    ("count", "lam", "inside"), [(8, 0.5, 4), (8, 0.7, 2), (5, 0.0, 4), (8, 1.0, 0)]
)
def test_a_span_has_the_length_of_one_minus_lambda_or_is_cut(count, lam, inside):
    spans = [
        np.asarray(mixing._span(key, jnp.float32(lam), jnp.float32(count), 9))
        for key in KEYS[:40]
    ]
    lengths = {int(span[:count].sum()) for span in spans}
    assert max(lengths) == inside
    assert len(lengths) > 1 or inside == 0  # cut at the ends


def test_cut_tokens_are_one_span_of_the_partner_after_the_first_token():
    lengths = [9, 6] * 32
    own, segments, lam = mix_tokens(
        jax.jit(mixing.mix_tokens, static_argnums=3),
        lengths,
        NEIGHBOUR,
        section("cutmix"),
    )
    np.testing.assert_array_equal(segments, tokens_of(*[9] * NUM))
    np.testing.assert_array_equal(own[:, 0], 1)
    np.testing.assert_array_equal(own[::2, 6:], 1)  # only the own has a token
    np.testing.assert_array_equal(own[1::2, 6:], 0)  # only the partner has
    np.testing.assert_allclose(lam, own.mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(np.isin(own, [0, 1]), True)
    pieces = (np.diff(own[:, :6], axis=1) < 0).sum(axis=1)
    assert pieces.max() == 1
    assert pieces.mean() > 0.5


@pytest.mark.parametrize("operator", ["mixup", "cutmix"])
def test_with_imix_texts_of_one_length_are_mostly_their_own(mix, operator):
    drawn = np.linspace(0, 1, NUM)
    _, _, lam = mix(drawn, [7] * NUM, NEIGHBOUR, section(operator))
    _, _, mostly = mix(drawn, [7] * NUM, NEIGHBOUR, section(operator, "imix"))
    assert lam.min() < 0.4
    assert mostly.min() >= 0.5 - 1e-6
    assert mostly.min() < 0.6


@pytest.mark.parametrize("operator", mixing.OPERATORS)
def test_a_text_without_a_partner_is_itself(mix, operator):
    partner_B = (1, 0, 3, 2) if operator == "none" else (0, 1, 2, 3)
    lengths = (4, 9, 0, 1)
    own, segments, lam = mix([0.5] * 4, lengths, partner_B, section(operator))
    np.testing.assert_array_equal(own, np.ones((4, 9)))
    np.testing.assert_array_equal(segments, tokens_of(*lengths))
    np.testing.assert_array_equal(lam, np.ones(4))
