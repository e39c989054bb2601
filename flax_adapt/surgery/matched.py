"""Size of an extra block with as many parameters as resizing adds: a control of S3; ours."""

from collections.abc import Mapping
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.surgery.block_names import is_pre_norm


def mlp_dim(config_model: Mapping[str, Any], width: int) -> int:
    """Returns the mlp_dim of an extra block with as many parameters as resizing adds.

    The number is rounded down. config_model: before resizing. width: of the resized last
    block. Raises UserError where a block without an MLP already has more parameters.
    """
    config_model = models.complete(config_model)
    d, hidden = config_model["width"], config_model["mlp_dim"]
    is_vit, own = config_model["kind"] == "vit", config_model["traits"] or {}
    traits = make_fields(**(own if is_vit else {}))
    own = {"biases": True, "gated": False, **own}
    bias, scale = own["biases"], traits["layer_scale"]
    # W_2, its bias, the norm, the scale if any, W_s
    more = (hidden + bias + (1 + bias) + scale) * (width - d) + d * width
    biases = 3 + traits["key_bias"] if config_model.get("qkv_bias", True) else 1
    biases *= bias
    # Two norms and two scales are added.
    attention = 4 * d * d + biases * d + (2 * (1 + bias) + 2 * scale) * d
    into = 2 if traits["swiglu"] or own["gated"] else 1  # kernels [d, mlp_dim]
    mlp_dim = (more - attention - bias * d) // (into * (d + bias) + d)
    if mlp_dim < 1:
        kind = "pre-norm" if is_pre_norm(config_model) else "post-norm"
        raise UserError(
            f"a {kind} block of width {d} has more parameters than a last block of width "
            f"{width} adds: there is no extra block to compare with; make it wider, or "
            "leave the extra block out"
        )
    return mlp_dim
