"""Expand or narrow the representation: another width of the last block (METHODS S3).

Bordes et al. 2023 (arXiv 2304.05369) resize the last block of a ResNet before training;
for transformers, and for a start from trained weights, all is ours.

A section `model.resize` of a stage:

    kind      "resized", or a control: "linear", "extra" (`models.LastBlock`)
    width     D, of the new features; of "extra" that of the model
    relu      a ReLU on the final states, so that they can be sparse
    mlp_dim   of "extra", 0 for the others: see `matched.mlp_dim`
    init      how the new leaves start, one of INITS
    noise     of "preserve": the deviation of new features, in that of old ones
    tokens    of "pca": whose features are looked at, one of TOKENS
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_adapt.base.checks import Row, one_of
from flax_adapt.base.types import Array, Key, Layout

Leaves = Mapping[str, Any]

# Which tokens of a `Layout` the components of "pca" are of, bool [B, L].
TOKENS: dict[str, Callable[[Layout], Array]] = {
    "all": lambda layout: layout.segments_BL > 0,
    "first": lambda layout: layout.first_BL,
    "pooled": lambda layout: layout.pooled_BL,
}
# What reads the final states: their kernels have a row for each feature.
READERS = r"(decoder/embed|mlm/transform|pooler|head)/kernel"


class Trained(NamedTuple):
    """Trained weights with an ordinary last block, and what that block shall become.

    leaves: of the model `config_model`. init: fresh ones of the new model. section:
    `model.resize`, of which the rows of its kind hold. key: draws the features that are
    new. components_dD: of the init "pca", `moments.principal_components`; None for others.
    """

    leaves: Leaves
    init: Leaves
    config_model: Mapping[str, Any]
    section: Any
    key: Key
    components_dD: np.ndarray | None

    @property
    def where(self) -> "Places":
        """The leaves of a transformer that its last block changes."""
        return places(self.config_model)

    @property
    def readers(self) -> list[str]:
        """The leaves that have a row for each feature; a pooler hides those from a head."""
        found = [leaf for leaf in self.leaves if re.fullmatch(READERS, leaf)]
        hidden = "head/kernel" if "pooler/kernel" in found else ""
        return [leaf for leaf in found if leaf != hidden]


class Resized(NamedTuple):
    """Weights of the new model.

    leaves: those that were kept or changed. rules: leaf -> how it was changed. fresh: names
    of leaves that start as new ones.
    """

    leaves: dict[str, Any]
    rules: dict[str, str]
    fresh: tuple[str, ...]


class Places(NamedTuple):
    """The leaves that a last block changes, and how wide the features were."""

    width: int
    down: str
    shortcut: str
    norm: str
    linear: str
    extra: str


def places(config_model: Mapping[str, Any]) -> Places:
    """`config_model`: of the model as it was."""
    block = f"encoder/block_{config_model['depth'] - 1:02d}"
    # Post-norm blocks end in their norm; there is none after the last.
    is_vit = config_model["kind"] == "vit"
    return Places(
        config_model["width"],
        f"{block}/mlp/down",
        f"{block}/shortcut/kernel",
        "encoder/norm" if is_vit else f"{block}/norm2",
        "encoder/linear",
        f"encoder/block_{config_model['depth']:02d}",
    )


def features_of(states: Sequence[Array], sums: Any, section: Any) -> Array:
    """Returns x_BLd, what "pca" looks at: of "linear" the final states, else what the
    last block hands to its norm. sums: the collection `models.SUMS`.
    """
    if section["kind"] == "linear":
        return states[-1]
    blocks = sums["encoder"]
    (x_BLd,) = blocks[max(blocks)]["sum"]
    return x_BLd


def resize(trained: Trained) -> Resized:
    """Returns the leaves of a model with another last block.

    "preserve" leaves the first d features what they were, to the digit: W_2 = [W_2 | N],
    W_s = [I | N], and the norm goes by the mean and variance of the first d alone
    (`LastBlock.norm_width`); what reads the features gets rows of zeros, so that the
    whole model computes what it did. (A ReLU, which follows, is not undone.)
    "pca" keeps what the principal components P keep: W_2 = W_2 P, W_s = P, readers P' K;
    the norm is new: that of D features is another one than that of d. Only directions are
    kept: readers start without the old norm's scale and bias, and without the mean.
    "random": leaves that are new or of another shape start as fresh ones.
    """
    return INITS[trained.section["init"]].make(trained)


def _draw_noise(key: Key, rows: int, columns: int, scale: float) -> np.ndarray:
    """float32 [rows, columns]: features of unit scale in, features of `scale` out."""
    drawn = jax.random.normal(key, (rows, columns), np.float32)
    return np.asarray(drawn) * np.float32(scale / math.sqrt(rows))


def _widen(array: Any, more: np.ndarray) -> np.ndarray:
    """More columns (of a vector: entries) after those there are."""
    return np.concatenate([np.asarray(array, np.float32), more], axis=-1)


def _preserve(trained: Trained) -> Resized:
    make = {"resized": _expand_block, "linear": _expand_linear, "extra": _add_block}
    leaves, rules = make[trained.section["kind"]](trained)
    new = trained.section["width"] - trained.where.width
    for name in trained.readers if new else ():
        kernel = np.asarray(leaves[name], np.float32)
        leaves[name] = np.pad(kernel, ((0, new), (0, 0)))
        rules[name] = f"{new} rows of zeros added"
    return Resized(leaves, rules, ())


def _expand_block(trained: Trained) -> tuple[dict[str, Any], dict[str, str]]:
    leaves, (width, down, shortcut, norm, *_) = trained.leaves, trained.where
    new, scale = trained.section["width"] - width, trained.section["noise"]
    down_key, shortcut_key = jax.random.split(trained.key)
    kernel = leaves[f"{down}/kernel"]
    changed = {
        f"{down}/kernel": _widen(
            kernel, _draw_noise(down_key, len(kernel), new, scale)
        ),
        f"{down}/bias": _widen(leaves[f"{down}/bias"], np.zeros(new, np.float32)),
        shortcut: _widen(np.eye(width), _draw_noise(shortcut_key, width, new, scale)),
        f"{norm}/scale": _widen(leaves[f"{norm}/scale"], np.ones(new, np.float32)),
        f"{norm}/bias": _widen(leaves[f"{norm}/bias"], np.zeros(new, np.float32)),
    }
    rule = f"expanded from {width} features, which stay as they were"
    return {**leaves, **changed}, dict.fromkeys(changed, rule)


def _expand_linear(trained: Trained) -> tuple[dict[str, Any], dict[str, str]]:
    width, linear = trained.where.width, trained.where.linear
    new, scale = trained.section["width"] - width, trained.section["noise"]
    changed = {
        f"{linear}/kernel": _widen(
            np.eye(width), _draw_noise(trained.key, width, new, scale)
        ),
        f"{linear}/bias": np.zeros(width + new, np.float32),
    }
    rule = f"starts as the {width} features there were, and random ones"
    return {**trained.leaves, **changed}, dict.fromkeys(changed, rule)


def _add_block(trained: Trained) -> tuple[dict[str, Any], dict[str, str]]:
    """What the new block adds to the residual stream is zero at first."""
    block = trained.where.extra
    ends = rf"{block}/(attention/out|mlp/down)/(kernel|bias)"
    changed = {
        name: np.zeros(leaf.shape, np.float32) if re.fullmatch(ends, name) else leaf
        for name, leaf in trained.init.items()
        if name.startswith(f"{block}/")
    }
    rule = "a new block, which adds nothing at first"
    return {**trained.leaves, **changed}, dict.fromkeys(changed, rule)


def _narrow(trained: Trained) -> Resized:
    P_dD = trained.components_dD
    assert P_dD is not None  # `stage_resize` computes them for "pca"
    leaves, (width, down, shortcut, norm, linear, _) = trained.leaves, trained.where
    if trained.section["kind"] == "linear":
        changed = {
            f"{linear}/kernel": P_dD,
            f"{linear}/bias": np.zeros(P_dD.shape[1]),
        }
        fresh: tuple[str, ...] = ()
    else:
        changed = {
            f"{down}/{k}": leaves[f"{down}/{k}"] @ P_dD for k in ("kernel", "bias")
        }
        changed[shortcut] = P_dD
        fresh = (f"{norm}/scale", f"{norm}/bias")
    changed |= {name: P_dD.T @ np.asarray(leaves[name]) for name in trained.readers}
    changed = {name: array.astype(np.float32) for name, array in changed.items()}
    rule = f"{P_dD.shape[1]} principal components of {width} features"
    return Resized({**leaves, **changed}, dict.fromkeys(changed, rule), fresh)


def _start_anew(trained: Trained) -> Resized:
    where = trained.where
    new = {
        "resized": (where.down, where.shortcut, where.norm),
        "linear": (where.linear,),
        "extra": (where.extra,),
    }[trained.section["kind"]]
    same_width = trained.section["width"] == where.width
    return Resized(
        dict(trained.leaves), {}, (*new, *([] if same_width else trained.readers))
    )


class Init(NamedTuple):
    """How new leaves start; `fits(width, old width)`, and `what` says when it does."""

    fits: Callable[[int, int], bool]
    what: str
    make: Callable[[Trained], Resized]


INITS = {
    "preserve": Init(
        lambda new, old: new >= old, "at least the model's width", _preserve
    ),
    "pca": Init(lambda new, old: new <= old, "at most the model's width", _narrow),
    "random": Init(lambda new, old: True, "any width", _start_anew),
}

# Rules of a `model.resize` of any kind of model.
OF_ANY = (
    one_of("model.resize.init", lambda it: it.section["init"], INITS),
    one_of("model.resize.tokens", lambda it: it.section["tokens"], TOKENS),
)
# ... and of a transformer.
ROWS: Sequence[Row] = (
    Row(
        lambda it: 0 <= it.section["noise"] < math.inf,
        "model.resize.noise={0.section[noise]} must be at least 0",
    ),
    Row(
        lambda it: INITS[it.section["init"]].fits(
            it.section["width"], it.model["width"]
        ),
        lambda it: (
            f"model.resize.init={it.section['init']!r} makes features of "
            f"{INITS[it.section['init']].what}={it.model['width']}, not of "
            f"width={it.section['width']}"
        ),
    ),
    Row(
        lambda it: (it.section["kind"], it.section["init"]) != ("extra", "pca"),
        "model.resize.init='pca' must be 'preserve' or 'random': an extra block is as wide "
        "as the model",
    ),
    Row(
        lambda it: (
            (it.section["kind"], it.section["init"]) != ("extra", "preserve")
            or it.model["kind"] == "vit"
        ),
        "model.resize.init='preserve' must be 'random': after a post-norm block another one "
        "cannot leave the features as they are",
    ),
    Row(
        lambda it: it.init_from != "scratch" or it.section["init"] == "random",
        "model.resize.init={0.section[init]!r} must be 'random': there are no weights to "
        "start from (init_from='scratch')",
    ),
)
