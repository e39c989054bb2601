"""Expand or narrow the representation: another width of the last block (S3).

Bordes et al. 2023 (arXiv 2304.05369) resize the last block of a ResNet before training;
for transformers, and for resizing trained weights, all is ours. Fields of `model.resize`:

    kind      "resized", or a control: "linear", "extra" (`models.LastBlock`)
    width     D, the number of new features; of "extra" that of the model
    relu      a ReLU on the final states, so that they can be sparse
    mlp_dim   of "extra", 0 for the others: see `matched.mlp_dim`
    init      initial values of new parameters, one of INITS
    noise     of "preserve": standard deviation of new features, relative to the old ones
    tokens    of "pca": tokens whose features are analysed, one of TOKENS
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_adapt.base.checks import Row, one_of
from flax_adapt.base.types import Array, Key, Layout
from flax_adapt.surgery.block_names import BlockNames, is_pre_norm, places

Leaves = Mapping[str, Any]

# Name -> the tokens of a `Layout` whose features "pca" analyses, bool [B, L].
TOKENS: dict[str, Callable[[Layout], Array]] = {
    "all": lambda layout: layout.segments_BL > 0,
    "first": lambda layout: layout.first_BL,
    "pooled": lambda layout: layout.pooled_BL,
}
# Kernels of the layers that read the final states; they have a row for each feature.
READERS = r"(decoder/embed|mlm/transform|pooler|head)/kernel"


class TrainedBlock(NamedTuple):
    """Trained weights with an ordinary last block, and the last block to make of it.

    leaves: {name: array} of the model `config_model`. init: the same of new parameters of the
    resized model. section: a checked `model.resize`. key: draws the new features.
    components_dD: for init "pca" `moments.principal_components` [d, D], else None.
    """

    leaves: Leaves
    init: Leaves
    config_model: Mapping[str, Any]
    section: Any
    key: Key
    components_dD: np.ndarray | None

    @property
    def where(self) -> BlockNames:
        """The leaves of a transformer that resizing changes."""
        return places(self.config_model)

    def having(self, *names: str) -> list[str]:
        """Returns those of the leaves that the model has: some lack biases."""
        return [name for name in names if name in self.leaves]

    @property
    def scales(self) -> list[str]:
        """The LayerScale after the last MLP, if the model has one."""
        return self.having(self.where.down.replace("mlp/down", "layer_scale2/scale"))

    @property
    def readers(self) -> list[str]:
        """The leaves with a row for each feature; a head behind a pooler has none."""
        found = [leaf for leaf in self.leaves if re.fullmatch(READERS, leaf)]
        hidden = "head/kernel" if "pooler/kernel" in found else ""
        return [leaf for leaf in found if leaf != hidden]


class ResizedWeights(NamedTuple):
    """Weights of the resized model.

    leaves: {name: array}, unchanged or resized. rules: {leaf: how it was resized}. fresh:
    names of leaves that keep their new initial values.
    """

    leaves: dict[str, Any]
    rules: dict[str, str]
    fresh: tuple[str, ...]


def features_of(states: Sequence[Array], sums: Any, section: Any) -> Array:
    """Returns x_BLd, the features that "pca" analyses.

    For kind "linear" these are the final states, else the input of the last block's norm.
    sums: the collection `models.SUMS`.
    """
    if section["kind"] == "linear":
        return states[-1]
    blocks = sums["encoder"]
    (x_BLd,) = blocks[max(blocks)]["sum"]
    return x_BLd


def resize(trained: TrainedBlock) -> ResizedWeights:
    """Returns the weights of the model with the requested last block, by the section's init.

    "preserve" keeps the first d features exactly: W_2 = [W_2 | N], W_s = [I | N], and the
    norm takes the mean and variance of the first d features alone (`LastBlock.norm_width`).
    Layers that read the features get rows of zeros, so that the model's outputs stay the
    same. (A ReLU after the norm still changes them.)
    "pca" projects on the principal components P: W_2 = W_2 P, W_s = P, readers P' K. The norm
    is new, since that of D features differs from that of d. Only the directions are kept:
    readers start without the old norm's scale and bias, and without the mean.
    "random": leaves that are new or of another shape get new initial values.
    """
    return INITS[trained.section["init"]].make(trained)


def _draw_noise(key: Key, rows: int, columns: int, scale: float) -> np.ndarray:
    """Returns float32 [rows, columns]: maps features of unit scale to features of `scale`."""
    drawn = jax.random.normal(key, (rows, columns), np.float32)
    return np.asarray(drawn) * np.float32(scale / math.sqrt(rows))


def _widen(array: Any, more: np.ndarray) -> np.ndarray:
    """Returns the array, float32, with more columns (of a vector: entries) at the end."""
    return np.concatenate([np.asarray(array, np.float32), more], axis=-1)


def _preserve(trained: TrainedBlock) -> ResizedWeights:
    make = {"resized": _expand_block, "linear": _expand_linear, "extra": _add_block}
    leaves, rules = make[trained.section["kind"]](trained)
    new = trained.section["width"] - trained.where.width
    for name in trained.readers if new else ():
        kernel = np.asarray(leaves[name], np.float32)
        leaves[name] = np.pad(kernel, ((0, new), (0, 0)))
        rules[name] = f"{new} rows of zeros added"
    return ResizedWeights(leaves, rules, ())


def _expand_block(trained: TrainedBlock) -> tuple[dict[str, Any], dict[str, str]]:
    leaves, (width, down, shortcut, norm, *_) = trained.leaves, trained.where
    new, scale = trained.section["width"] - width, trained.section["noise"]
    down_key, shortcut_key = jax.random.split(trained.key)
    kernel = leaves[f"{down}/kernel"]
    changed = {
        f"{down}/kernel": _widen(
            kernel, _draw_noise(down_key, len(kernel), new, scale)
        ),
        shortcut: _widen(np.eye(width), _draw_noise(shortcut_key, width, new, scale)),
    }
    zeros, ones = np.zeros(new, np.float32), np.ones(new, np.float32)
    for name in trained.having(f"{down}/bias", f"{norm}/bias"):
        changed[name] = _widen(leaves[name], zeros)
    for name in (f"{norm}/scale", *trained.scales):
        changed[name] = _widen(leaves[name], ones)
    rule = f"expanded from {width} features, which stay as they were"
    return {**leaves, **changed}, dict.fromkeys(changed, rule)


def _expand_linear(trained: TrainedBlock) -> tuple[dict[str, Any], dict[str, str]]:
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


def _add_block(trained: TrainedBlock) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (leaves, rules) with one more block, which at first adds zero to its input."""
    block = trained.where.extra
    ends = rf"{block}/(attention/out|mlp/down)/(kernel|bias)"
    changed = {
        name: np.zeros(leaf.shape, np.float32) if re.fullmatch(ends, name) else leaf
        for name, leaf in trained.init.items()
        if name.startswith(f"{block}/")
    }
    rule = "a new block, which adds nothing at first"
    return {**trained.leaves, **changed}, dict.fromkeys(changed, rule)


def _narrow(trained: TrainedBlock) -> ResizedWeights:
    P_dD = trained.components_dD
    assert P_dD is not None  # `stage_resize` computes them for "pca"
    leaves, (width, down, shortcut, norm, linear, _) = trained.leaves, trained.where
    if trained.section["kind"] == "linear":
        changed = {f"{linear}/kernel": P_dD, f"{linear}/bias": np.zeros(P_dD.shape[1])}
        fresh: tuple[str, ...] = ()
    else:
        into_dD = P_dD  # with the LayerScale, if any, which becomes one
        for scale in trained.scales:
            into_dD = np.asarray(leaves[scale])[:, None] * P_dD
        ends = trained.having(f"{down}/kernel", f"{down}/bias")
        changed = {name: leaves[name] @ into_dD for name in ends}
        ones = dict.fromkeys(trained.scales, np.ones(P_dD.shape[1]))
        changed |= {shortcut: P_dD, **ones}
        fresh = tuple(trained.having(f"{norm}/scale", f"{norm}/bias"))
    changed |= {name: P_dD.T @ np.asarray(leaves[name]) for name in trained.readers}
    changed = {name: array.astype(np.float32) for name, array in changed.items()}
    rule = f"{P_dD.shape[1]} principal components of {width} features"
    return ResizedWeights({**leaves, **changed}, dict.fromkeys(changed, rule), fresh)


def _start_anew(trained: TrainedBlock) -> ResizedWeights:
    where = trained.where
    new = {
        "resized": (where.down, where.shortcut, where.norm, *trained.scales),
        "linear": (where.linear,),
        "extra": (where.extra,),
    }[trained.section["kind"]]
    same_width = trained.section["width"] == where.width
    return ResizedWeights(
        dict(trained.leaves), {}, (*new, *([] if same_width else trained.readers))
    )


class Init(NamedTuple):
    """A way to initialise new leaves.

    fits: whether (width, old width) are possible; what: the possible widths, for errors.
    make: does it.
    """

    fits: Callable[[int, int], bool]
    what: str
    make: Callable[[TrainedBlock], ResizedWeights]


INITS = {
    "preserve": Init(
        lambda new, old: new >= old, "at least the model's width", _preserve
    ),
    "pca": Init(lambda new, old: new <= old, "at most the model's width", _narrow),
    "random": Init(lambda new, old: True, "any width", _start_anew),
}

# Rules of a section `model.resize`, for all kinds of models.
OF_ANY = (
    one_of("model.resize.init", lambda it: it.section["init"], INITS),
    one_of("model.resize.tokens", lambda it: it.section["tokens"], TOKENS),
)
# Further rules for transformers.
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
            or is_pre_norm(it.model)
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
