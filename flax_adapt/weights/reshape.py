"""Resizes weights for another image size, patch size or number of channels.

    loaded, reshaped = reshape.fit(loaded, old_config, new_config, ("position", "channels:sum"))

Only leaves that a rule names are resized, and `reshaped` says how. The RULES:

position  resizes the position tables of encoder and decoder bicubically, as the model's
    own code does (`traits.position_resize`); rows of CLS and the like are unchanged. MAE's
    fixed sin-cos tables are resized, too, as its official fine-tuning code does: computed
    anew for a larger grid they would hold places that the encoder has never seen. To
    compute them anew, name them in `fresh`.
patch  resizes the patch embedding, by FlexiViT's pseudo-inverse.
channels:sum, channels:average  change the patch embedding. To one channel: the sum of the
    old channels, so that a grey image gives the same tokens as the same image repeated in
    all channels; or their average. From three to more: the old channels stay, each further
    one is their sum or average. An image that is 0 there (its mean) gives the same tokens
    as before.

The decoder's last layer has an output for every pixel of a patch. It cannot be resized: with
another patch size or number of channels it must be fresh.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flax_adapt import models
from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Row
from flax_adapt.base.errors import UserError, choose, unknown
from flax_adapt.models.visual import traits
from flax_adapt.weights import interpolate
from flax_adapt.weights.interpolate import HOW

POSITIONS, KERNEL = (
    ("encoder/position", "decoder/position"),
    "encoder/patch_embed/kernel",
)
PREDICT = "decoder/predict"
# Rule -> the fields of the model config that may then differ from the source's. "patch" has
# image_size, too: half the patch size and half the image size have the same grid.
RULES: dict[str, tuple[str, ...]] = {
    "position": ("image_size",),
    "patch": ("image_size", "patch_size"),
    "channels:sum": ("channels",),
    "channels:average": ("channels",),
}
# Kind of model -> fields that may always differ, since no tensor depends on them.
FREE = {"resnet": ("image_size", "batch_norm_momentum")}
FIELDS = ("image_size", "patch_size", "channels")
CHANNELS: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "average": np.mean}


def _no_rule(rules: Sequence[str]) -> list[str]:
    return [rule for rule in rules if rule not in RULES]


# Checks of a tuple of names of RULES, such as a stage's `model.reshape`.
ROWS = (
    Row(
        lambda rules: not isinstance(rules, str),
        "reshape={0!r} must be several names: reshape=({0!r},)",
    ),
    Row(
        lambda rules: not _no_rule(rules),
        lambda rules: unknown("reshape", _no_rule(rules)[0], RULES),
    ),
    Row(
        lambda rules: len({rule.partition(":")[0] for rule in rules}) == len(rules),
        lambda rules: f"reshape={tuple(rules)} has two rules for the same",
    ),
)
CHECKS = (Check(lambda at: [at.section.model.reshape], ROWS),)


def may_differ(rules: Sequence[str]) -> set[str]:
    """Returns the fields of the model config that may differ from the source's.

    rules: names of RULES; raises UserError for others.
    """
    checks.run(ROWS, rules)
    return {field for rule in rules for field in RULES[rule]}


def fixed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the complete model config without the fields that no tensor depends on.

    Rotary positions hold for images of any size, and vary in training alone.
    """
    config = models.complete(config)
    free, own = {*FREE.get(config["kind"], ())}, config.get("traits")
    if config["kind"] == "vit" and own is not None:
        config["traits"] = traits.without_augments(own)
        free |= {"image_size"} if own["rotary_theta"] else set()
    return {name: value for name, value in config.items() if name not in free}


def sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the FIELDS that a model config has."""
    return {name: config[name] for name in FIELDS if name in config}


def resized_config(
    config: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    task: str,
    decoder: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Returns the model config `config`, changed by those of `sizes` that are not None.

    task "mae" also needs a decoder: it is `decoder`, or that of `config`, or the paper's.
    Raises UserError for a size that the kind of model does not have.
    """
    changes: dict[str, Any] = {k: size for k, size in sizes.items() if size is not None}
    if unknown := sorted(set(changes) - set(config)):
        raise UserError(f"{', '.join(unknown)}: a {config['kind']} model has none")
    if task == "mae":
        own = decoder or config["decoder"] or models.PAPER_DECODER
        changes["decoder"] = dict(own)
    return {**models.complete(config), **changes}


def fit(
    leaves: Mapping[str, Any],
    old_config: Mapping[str, Any],
    new_config: Mapping[str, Any],
    rules: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns ({name: array} for the config `new_config`, {leaf: how it was resized}).

    leaves: {name: array} of the model `old_config`. rules: names of RULES. A leaf without a
    rule, or of another shape than that of `old_config`, is unchanged; `strict.adopt` will
    report it. Raises UserError for unknown rules, and for rules on a model without patches.
    """
    checks.run(ROWS, rules)
    if not rules:
        return dict(leaves), {}
    if "patch_size" not in old_config or "patch_size" not in new_config:
        raise UserError(
            f"reshape={tuple(rules)} is for models of patches of images only"
        )
    fitted, reshaped = dict(leaves), {}
    grids = [
        config["image_size"] // config["patch_size"]
        for config in (old_config, new_config)
    ]
    if "position" in rules and grids[0] != grids[1]:
        for name, how in zip(POSITIONS, _resizes(old_config), strict=True):
            if _is_grid(leaves.get(name), grids[0]):
                fitted[name] = resize_positions(leaves[name], grids[1], how)
                reshaped[name] = f"position {_change(*grids)}, {HOW[how].text}"
    kernel = leaves.get(KERNEL)
    if (
        kernel is not None
        and len(kernel) == old_config["patch_size"] ** 2 * old_config["channels"]
    ):
        fitted[KERNEL], texts = _fit_kernel(kernel, old_config, new_config, rules)
        reshaped |= {KERNEL: ", ".join(texts)} if texts else {}
    return fitted, reshaped


def _resizes(config: Mapping[str, Any]) -> tuple[str, str]:
    """Returns how the positions of the encoder, and of the decoder, are resized."""
    own = config.get("traits")
    return "bicubic" if own is None else own["position_resize"], "bicubic"


def _is_grid(table: Any, side: int) -> bool:
    if table is None or table.ndim != 3:
        return False
    return table.shape[1] - side**2 in (0, 1, 2)


def _fit_kernel(
    kernel_PD: np.ndarray,
    old_config: Mapping[str, Any],
    new_config: Mapping[str, Any],
    rules: Sequence[str],
) -> tuple[np.ndarray, list[str]]:
    texts = []
    old, new = old_config["patch_size"], new_config["patch_size"]
    if "patch" in rules and old != new:
        kernel_PD = resize_patches(kernel_PD, old, new, old_config["channels"])
        texts.append(f"patch {_change(old, new)}, pseudo-inverse of bilinear")
    sizes = old_config["channels"], new_config["channels"]
    for how in (rule.partition(":")[2] for rule in rules if "channels:" in rule):
        if sizes[0] != sizes[1]:
            kernel_PD = change_channels(kernel_PD, *sizes, how)
            texts.append(f"channels {sizes[0]} -> {sizes[1]}, {how}")
    return kernel_PD, texts


def _change(old: int, new: int) -> str:
    return f"{old}x{old} -> {new}x{new}"


def hint_at_rules(wrong: Iterable[str]) -> str:
    """Returns the end of an error on wrong shapes: the rules that would help, or ""."""
    leaves = set(wrong)
    rules = ["'position'"] if leaves & set(POSITIONS) else []
    rules += ["'patch'", "'channels:sum'"] if KERNEL in leaves else []
    hint = f"; {' and '.join(rules)} in `reshape` resize the weights" if rules else ""
    if any(leaf.startswith(PREDICT) for leaf in leaves):
        hint += f"; {PREDICT} cannot be resized, only be fresh"
    return hint


def resize_positions(
    position_1LD: np.ndarray, grid: int, how: str = "bicubic"
) -> np.ndarray:
    """Returns the table for `grid` x `grid` patches, float32 [1, 1 + grid * grid, D].

    The rows of CLS and of a distillation token are unchanged, and absent where the old
    table has none. The others are
    resized as torch.nn.functional.interpolate does with mode="bicubic",
    align_corners=False and the options of HOW. Raises UserError unless the old patches are
    a square grid.
    """
    _, length, width = position_1LD.shape
    side = math.isqrt(length)
    first = length - side**2
    if first not in (0, 1, 2):
        raise UserError(f"{length - 1} positions are no square grid")
    table = np.asarray(position_1LD[0, first:], np.float64).reshape(side, side, width)
    weight = choose("position_resize", how, HOW).matrix(side, grid)
    table = np.einsum("yi,xj,ijd->yxd", weight, weight, table, optimize=True)
    patches = table.reshape(1, grid**2, width).astype(np.float32)
    return np.concatenate([position_1LD[:, :first], patches], axis=1)


def resize_patches(
    kernel_PD: np.ndarray, old: int, new: int, channels: int
) -> np.ndarray:
    """Returns the kernel [new * new * channels, D] for patches of another size; float32.

    FlexiViT (Beyer et al. 2023, section 3.4): with B the bilinear resize of a patch, the
    kernel (B^T)^+ w. A larger patch B x gives exactly the token of x; a smaller one gives the
    nearest token on average over white noise.
    """
    # The pseudo-inverse of a Kronecker product is that of its factors: rows, columns.
    factor = np.linalg.pinv(interpolate.bilinear(old, new).T)
    pixels = np.asarray(kernel_PD, np.float64).reshape(old, old, channels, -1)
    pixels = np.einsum("yi,xj,ijcd->yxcd", factor, factor, pixels, optimize=True)
    return pixels.reshape(new * new * channels, -1).astype(np.float32)


def check_channels(old: int, new: int) -> None:
    """Raises UserError for a change of channels that has no rule."""
    if new not in (1, old) and not (old == 3 and new > 3):
        raise UserError(
            f"channels {old} -> {new}: only to 1, and from 3 to more, can a patch "
            "embedding be changed; else name 'encoder/patch_embed' in `fresh`"
        )


def change_channels(kernel_PD: np.ndarray, old: int, new: int, how: str) -> np.ndarray:
    """Returns the kernel [pixels * new, D] for `new` channels; how: "sum" or "average".

    See the rules above. Raises UserError for numbers of channels without a rule.
    """
    reduce = choose("how", how, CHANNELS)
    check_channels(old, new)
    if old == new:
        return kernel_PD
    pixels = kernel_PD.reshape(-1, old, kernel_PD.shape[-1])
    one = reduce(pixels.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
    parts = [one] if new == 1 else [pixels, *[one] * (new - old)]
    return np.concatenate(parts, axis=1).reshape(-1, kernel_PD.shape[-1])
