"""Counts the multiply-adds of matrix products and convolutions of a compiled program."""

import functools
import json
import math
import re
from collections.abc import Iterable

import numpy as np

from flax_adapt.plan.hlo import Computation, Instruction, Module


def flops_of(module: Module, one: Instruction, computation: Computation) -> float:
    """Returns 2 times the multiply-adds of an instruction, or of what it fuses."""
    if one.op == "fusion":
        (name,) = one.calls("calls")
        inner = module.computations[name]
        return sum(
            flops_of(module, part, inner) for part in inner.instructions.values()
        )
    if one.op == "dot":
        return _dot(one, computation, one.numbers("lhs_contracting_dims"))
    if one.op == "convolution":
        return _convolution(one, computation)
    if one.op == "custom-call":
        return _library_call(one, computation)
    return 0.0


def _dot(
    one: Instruction, computation: Computation, contracted: Iterable[int]
) -> float:
    left = computation.operand(one, 0)
    return 2.0 * one.shapes[0].size * math.prod(left.dims[axis] for axis in contracted)


def _convolution(one: Instruction, computation: Computation) -> float:
    """Counts products with elements of the input alone, as XLA does: not with padding."""
    left, right = (computation.operand(one, number) for number in (0, 1))
    sides = re.split("_|->", one.attribute("dim_labels"))
    spatial = sorted(label for label in sides[0] if label.isdigit())
    window = _window(one, len(spatial))
    pairs = 1
    for axis, label in enumerate(spatial):
        sizes = (left.dims[sides[0].index(label)], right.dims[sides[1].index(label)])
        size_out = one.shapes[0].dims[sides[2].index(label)]
        pairs *= _pairs(*sizes, size_out, *window[axis])
    groups = (one.numbers("feature_group_count") or (1,))[0]
    groups *= (one.numbers("batch_group_count") or (1,))[0]
    batch, features = left.dims[sides[0].index("b")], left.dims[sides[0].index("f")]
    return 2.0 * batch * features * right.dims[sides[1].index("o")] * pairs / groups


def _window(one: Instruction, rank: int) -> list[tuple[int, int, int, int]]:
    """Returns (stride, pad before, dilation of the input, of the kernel) of every axis."""
    text = one.attribute("window")

    def of(name: str, default: str) -> list[int]:
        found = re.search(rf"\b{name}=([\d_x\-]+)", text)
        values = found[1].split("x") if found else [default] * rank
        return [int(value.split("_")[0]) for value in values]

    names = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    return list(zip(*(of(*item) for item in names.items()), strict=True))


@functools.cache
def _pairs(
    size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, spread: int
) -> int:
    """Returns the pairs (place of the result, of the kernel) that meet an input element."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread - pad
    inside = (at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)
    return int(inside.sum())


def _library_call(one: Instruction, computation: Computation) -> float:
    """Counts matrix products and convolutions that a library or a kernel computes."""
    target = one.attribute("custom_call_target").strip('"')
    if target == "tpu_custom_call":
        return _kernel(one, computation)
    if re.match(r"__cublas\$(gemm|lt\$matmul)", target):
        return _dot(one, computation, _contracted(one))
    if target.startswith("__cudnn$fmha"):
        # Two products of [B, L, H, K] and [B, M, H, K]; backward five, one of them again.
        query, other = (computation.operand(one, number) for number in (0, 1))
        return 2.0 * (5 if "Backward" in target else 2) * query.size * other.dims[1]
    if target == "__cudnn$convForward":
        return _convolution(one, computation)
    if target.startswith("__cudnn$convBackward"):
        labels = re.split("_|->", one.attribute("dim_labels"))
        inputs = [computation.operand(one, number) for number in (0, 1)]
        is_filter = target.endswith("Filter")
        kernel = one.shapes[0] if is_filter else inputs[1]
        grad = inputs[1] if is_filter else inputs[0]
        features = grad.dims[labels[2].index("f")]
        return 2.0 * kernel.size * grad.size / features
    return 0.0


# Name of a kernel of `models.attention.splash` -> its products of [B, H, L, K] and
# [B, H, M, K]. The backward one computes the logits again.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}


def _kernel(one: Instruction, computation: Computation) -> float:
    """Counts the products of a Pallas kernel, of which XLA knows nothing but the shapes."""
    count = next((n for name, n in _SPLASH.items() if one.name.startswith(name)), 0)
    floats = [s for s in computation.shapes_of(one) if s.dtype in ("bf16", "f32")]
    return 2.0 * count * floats[0].size * floats[1].dims[-2] if count else 0.0


def _contracted(one: Instruction) -> list[int]:
    found = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', one.attributes)
    return [int(axis) for axis in json.loads(found[1])] if found else []
