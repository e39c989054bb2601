"""Masking: the choice of the hidden patches of an image and hidden tokens of a text.

Every image hides the same number of patches, and of every text the same number of tokens
is predicted: all shapes are static. Noise and masks are arguments, so that any reference
implementation can be matched exactly.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Key, Text


class Hiding(NamedTuple):
    """The visible and hidden patches of each image.

    visible_BV  int32, the indices of the visible patches, in the order of the encoder
    hidden_BU   int32, the indices of the hidden patches
    order_BL    int32, for every patch its index in "visible first, then hidden"
    hidden_BL   bool, true where the patch is hidden
    """

    visible_BV: Array
    hidden_BU: Array
    order_BL: Array
    hidden_BL: Array


def patch_noise(key_B: Key, num_patches: int) -> Array:
    """Returns noise_BL: uniform float32 in [0, 1), every example from its own key."""
    return keys.draw(jax.random.uniform, key_B, (num_patches,))


def num_visible(num_patches: int, hidden_ratio: float) -> int:
    """Returns the number of visible patches, int(L * (1 - ratio)).

    It is computed in Python floats, to round as the reference does. Raises UserError for
    a ratio that leaves no patch visible.
    """
    count = int(num_patches * (1 - hidden_ratio))
    if not 0 < count <= num_patches:
        raise UserError(
            f"hidden_ratio={hidden_ratio} leaves {count} of {num_patches} patches "
            "visible; choose a ratio in [0, 1) that leaves at least one"
        )
    return count


def hide_patches(noise_BL: Array, num_visible: int) -> Hiding:
    """Returns the Hiding with the `num_visible` patches of lowest noise visible in each row.

    He et al. 2022, official code `random_masking`: argsort of the noise, per image.
    """
    shuffle_BL = jnp.argsort(noise_BL, axis=1)
    order_BL = jnp.argsort(shuffle_BL, axis=1)
    visible_BV, hidden_BU = jnp.split(shuffle_BL, [num_visible], axis=1)
    return Hiding(visible_BV, hidden_BU, order_BL, order_BL >= num_visible)


class Hidden(NamedTuple):
    """A text with hidden tokens, which a model is to predict.

    tokens_BL: int32, the model's input. hidden_BL: bool, true where a token is hidden.
    """

    tokens_BL: Array
    hidden_BL: Array


# Numbers folded into an example's key, one for each draw.
_WHICH, _HOW, _RANDOM = 0, 1, 2


def hide_tokens(
    text: Text,
    key_B: Key,
    *,
    mask_rate: float,
    mask_token_id: int,
    mask_share: float,
    random_share: float,
    vocab_size: int,
    whole_word: bool,
) -> Hidden:
    """Returns the text with each token hidden with probability `mask_rate`.

    Special tokens and padding are never hidden. Of the hidden tokens `mask_share` become
    the mask token, `random_share` any token of the vocabulary, the rest stay (Devlin et
    al. 2019, section 3.1: 15 %, 80/10/10). whole_word: the pieces of a word are hidden
    together or not at all; the replacement of each is still drawn independently. An
    example's draw depends on its key alone, not on L.
    """
    shape = text.tokens_BL.shape[1:]

    def uniform(purpose: int) -> Array:
        return keys.draw(jax.random.uniform, keys.fold(key_B, purpose), shape)

    noise_BL = uniform(_WHICH)
    if whole_word:
        words_BL = jnp.maximum(text.words_BL, 0)
        noise_BL = jnp.take_along_axis(noise_BL, words_BL, axis=1)
    hidden_BL = (noise_BL < mask_rate) & (text.words_BL >= 0)
    random_BL = keys.draw(
        jax.random.randint, keys.fold(key_B, _RANDOM), shape, 0, vocab_size
    )
    how_BL = uniform(_HOW)
    seen_BL = jnp.where(
        how_BL < mask_share,
        mask_token_id,
        jnp.where(how_BL < mask_share + random_share, random_BL, text.tokens_BL),
    )
    return Hidden(jnp.where(hidden_BL, seen_BL, text.tokens_BL), hidden_BL)


def max_hidden(length: int, max_masked_fraction: float) -> int:
    """Returns how many hidden tokens of a row of `length` tokens are predicted at most.

    Raises UserError unless the fraction lies in (0, 1].
    """
    if not 0 < max_masked_fraction <= 1:
        raise UserError(
            f"objective.max_masked_fraction={max_masked_fraction} must lie in (0, 1]"
        )
    return math.ceil(length * max_masked_fraction)


def places(hidden_BL: Array, count: int) -> tuple[Array, Array]:
    """Returns (at_BM, chosen_BM), M = count: the first `count` hidden places of each row.

    at_BM: int32, the places. chosen_BM: bool, false where a row has fewer hidden tokens,
    and the place is that of another token.
    """
    at_BM = jnp.argsort(~hidden_BL, axis=1, stable=True)[:, :count]
    return at_BM, jnp.take_along_axis(hidden_BL, at_BM, axis=1)
