"""The words and dimension letters used by the whole library.

A tensor's name ends in its shape; `bool` masks say what *true* means (`hidden_BL`).

    B  examples in a batch          L  tokens or patches of an example (CLS included where said)
    D  width of the residual stream M  key positions in attention
    H  attention heads              K  head_dim
    F  hidden width of the MLP      N  classes
    P  pixels of a patch = patch_size * patch_size * channels, ordered (row, column, channel)
    V  visible patches              Y, X, C  image rows, columns, channels
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from flax_adapt.metrics import Mean

Array: TypeAlias = jax.Array
# Typed PRNG keys (`jax.random.key`). `key_B` holds one key for every example of a batch.
Key: TypeAlias = jax.Array
# A nested dictionary of float32 arrays, as flax.linen's `init` returns under "params".
Params: TypeAlias = Mapping[str, Any]
# image [B, Y, X, C], label int32 [B] (-1: none), weight float32 [B] (0: does not count),
# position int32 [B] (row in the GLOBAL batch), index int32 [B] (row in the source).
Batch: TypeAlias = Mapping[str, Array]
Metrics: TypeAlias = dict[str, Mean]
# loss_fn(params, frozen, batch, key_B) -> (scalar loss, metrics)
LossFn: TypeAlias = Callable[[Params, Params, Batch, Key], tuple[Array, Metrics]]
