"""The words and dimension letters used by the whole library.

A tensor's name ends in its shape; a `bool` mask is named by what *true* means (`hidden_BL`).

    B  examples in a batch          L  tokens or patches of an example (CLS included where said)
    D  width of the residual stream M  key positions in attention
    H  attention heads              K  head_dim
    F  hidden width of the MLP      N  classes
    P  pixels of a patch = patch_size * patch_size * channels, ordered (row, column, channel)
    V  visible patches, or vocabulary   Y, X, C  image rows, columns, channels
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
# Typed PRNG keys (`jax.random.key`). `key_B` holds one key for every example of a batch.
Key: TypeAlias = jax.Array
# A nested dictionary of float32 arrays, as flax.linen's `init` returns under "params".
Params: TypeAlias = Mapping[str, Any]


class Text(NamedTuple):
    """Rows of tokens, each of one document or of several; int32 [B, L] all.

    tokens       ids of the checkpoint's vocabulary
    token_types  0: first text, 1: second text of a pair
    segments     0: padding; 1, 2, ...: the row's documents, which do not see each other
    positions    0, 1, ... from the start of each document
    words        0, 1, ... in the row, shared by the pieces of a word; -1: special token
                 or padding
    """

    tokens_BL: Array
    token_types_BL: Array
    segments_BL: Array
    positions_BL: Array
    words_BL: Array


class Layout(NamedTuple):
    """The meaning of the tokens of a state; arrays [B, L].

    segments  int32; 0: padding; 1, 2, ...: the documents of the row (an image is one)
    first     bool; the first token of a document: CLS
    pooled    bool; the tokens that pooling by "mean" averages: patches; all tokens of a text
    """

    segments_BL: Array
    first_BL: Array
    pooled_BL: Array


# image [B, Y, X, C] or text (`Text`); label int32 [B] (-1: none) or float32 [B];
# weight float32 [B] (0: does not count); position int32 [B] (row in the GLOBAL batch);
# index int32 [B] (row in the source); with replay domain int32 [B] (0: target, 1:
# source); for contrast of images views, two images.
Batch: TypeAlias = Mapping[str, Any]
# Metrics by name; "loss", a metrics.Loss, is always one of them.
Metrics: TypeAlias = dict[str, Any]
# loss_fn(params, frozen, batch, key_B) -> (scalar loss, metrics)
LossFn: TypeAlias = Callable[[Params, Params, Batch, Key], tuple[Array, Metrics]]
# Name under which a loss may add to its metrics the input of `Carry.update`: a dict by
# names of the carry.
CARRY_INPUT = "carry_input"
# Name of a carried average of all parameters, which is evaluated and exported instead of them.
AVERAGE = "ema"


class Carry(NamedTuple):
    """State that changes with every step but is not trained: an EMA, a queue, statistics.

    It lives in `TrainState.extra` under `names`. The loss reads it from its argument
    `frozen`. `create_state` and `make_train_step` must get the same Carry.

    init(params, key) -> dict of arrays, at step 0
    update(carried, new_params, carry_input, step) -> the dict after optimizer step `step`
        (1, 2, ...); `carry_input` is the value of the loss under CARRY_INPUT, {} if none. Jitted.
    whole_batches: true if a batch must not be run in parts (`optim.accum_steps`)
    """

    names: tuple[str, ...]
    init: Callable[[Params, Key], dict[str, Any]]
    update: Callable[[dict[str, Any], Params, dict[str, Any], Array], dict[str, Any]]
    whole_batches: bool = True


NOTHING_CARRIED = Carry(
    (), lambda params, key: {}, lambda carried, params, carry_input, step: {}, False
)


def join_carries(carries: Sequence[Carry]) -> Carry:
    """Returns one Carry of several: each reads and updates the values of its own names.

    Raises ValueError if two have the same name.
    """
    names = tuple(name for carry in carries for name in carry.names)
    if len({*names}) < len(names):
        raise ValueError(f"two of what is carried have one name: {names}")

    def own(carry: Carry, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: parts[name] for name in carry.names if name in parts}

    def init(params: Params, key: Key) -> dict[str, Any]:
        made = [carry.init(params, key) for carry in carries]
        return {name: part for parts in made for name, part in parts.items()}

    def update(
        carried: dict[str, Any],
        params: Params,
        carry_input: dict[str, Any],
        step: Array,
    ) -> dict[str, Any]:
        made = [
            carry.update(own(carry, carried), params, own(carry, carry_input), step)
            for carry in carries
        ]
        return {name: part for parts in made for name, part in parts.items()}

    whole_batches = any(carry.whole_batches for carry in carries)
    return Carry(names, init, update, whole_batches)
