"""Tiny text models, their parameters and rows of tokens."""

import jax
import numpy as np

from flax_adapt import models
from flax_adapt.base.types import Text

TINY = dict(
    kind="bert",
    vocab_size=31,
    max_positions=12,
    token_types=2,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    layer_norm_eps=1e-6,
    gelu="erf",
    pad_token_id=0,
    pooler=False,
    last_block=None,
    adaptor=None,
    traits=None,
)
OPTIONS = dict(
    dtype="float32", dropout=0.0, drop_path=0.0, pooling="pooler", num_classes=3
)


def build(task, **changes):
    config = {**TINY, **{k: v for k, v in changes.items() if k in TINY}}
    options = {k: v for k, v in changes.items() if k not in TINY}
    return models.build(config, task, **{**OPTIONS, **options})


def params_of(model):
    """Random everywhere (biases, scales too), so that nothing hides behind zeros."""
    leaves, tree = jax.tree.flatten(shapes(model))
    rng = np.random.default_rng(0)
    noisy = [0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, noisy)


def shapes(model):
    return jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))


def names_of(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def rows(*documents, length=12, seed=0):
    """`Text`: each row a tuple of lengths of its documents, padded with junk."""
    rng = np.random.default_rng(seed)
    tokens_BL = rng.integers(0, TINY["vocab_size"], (len(documents), length))
    segments_BL, positions_BL = np.zeros_like(tokens_BL), np.zeros_like(tokens_BL)
    for row, lengths in enumerate(documents):
        start = 0
        for number, count in enumerate(lengths, start=1):
            segments_BL[row, start : start + count] = number
            positions_BL[row, start : start + count] = np.arange(count)
            start += count
    types_BL = rng.integers(0, 2, tokens_BL.shape)
    parts = (tokens_BL, types_BL, segments_BL, positions_BL, positions_BL)
    return Text(*(part.astype(np.int32) for part in parts))


def cut(text, row, start, stop):
    """Tokens of a row, as a batch of one."""
    return Text(*(leaf[row : row + 1, start:stop] for leaf in text))
