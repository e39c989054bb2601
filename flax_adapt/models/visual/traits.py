"""The ways in which families of vision transformers differ from the plain one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax_adapt.base import checks
from flax_adapt.base.checks import Row, one_of

# How a table of positions is resized for another grid: the implementation that does so.
RESIZES = {
    "bicubic": "torch's bicubic interpolation to the size of the grid: Hugging Face's ViT "
    "and Dinov2Model",
    "offset": "the same by a factor, of a grid that is 0.1 larger: Facebook's DINOv2",
    "antialias": "bicubic with antialiasing: timm, and DINOv2 with registers",
}
# More registers than this are no model that anyone has.
MAX_REGISTERS = 1024


@dataclasses.dataclass(frozen=True)
class Traits:
    """The fields `model.traits`; raises UserError for values that no model has.

    registers       number of tokens between CLS and the patches (Darcet et al. 2024)
    distilled       a distillation token follows CLS (Touvron et al. 2021, DeiT)
    cls_position    CLS and the distillation token have rows in the table of positions
    patch_bias      the patch embedding has a bias
    pre_norm        a LayerNorm before the first block (CLIP)
    key_bias        keys have a bias where queries and values have one
    layer_scale     each branch of a block ends in a learned scale (Touvron et al. 2021)
    swiglu          MLPs are silu(x W_g) * x W_u (Shazeer 2020); mlp_dim is the width of
                    that product
    position_resize  how the positions are resized for another grid, a key of RESIZES
    rotary_theta    the largest period of rotary positions, which then replace the table
                    (DINOv3: 100); 0: there is a table
    rotary_shift, rotary_jitter, rotary_rescale  how the rotary coordinates vary in training:
                    by +- shift; by a factor of at most jitter along each axis; by one of at
                    most rescale along both (DINOv3: 2). 0: not
    """

    registers: int
    distilled: bool
    cls_position: bool
    patch_bias: bool
    pre_norm: bool
    key_bias: bool
    layer_scale: bool
    swiglu: bool
    position_resize: str
    rotary_theta: float
    rotary_shift: float
    rotary_jitter: float
    rotary_rescale: float

    def __post_init__(self):
        checks.run(_ROWS, self)

    @property
    def num_prefix(self) -> int:
        """The number of tokens before the patches: CLS, distillation token, registers."""
        return 1 + self.distilled + self.registers

    @property
    def num_positioned(self) -> int:
        """The number of tokens before the patches that have a row in the table of positions."""
        return (1 + self.distilled) * self.cls_position


# Traits that change how a model is trained, but neither its tensors nor its states.
AUGMENTS = ("rotary_shift", "rotary_jitter", "rotary_rescale")


def _stretch(name: str) -> Row:
    return Row(
        lambda it: getattr(it, name) == 0 or getattr(it, name) >= 1,
        f"model.traits.{name}={{0.{name}}} is a factor: 0 (none) or at least 1",
    )


_ROWS = (
    Row(
        lambda it: 0 <= it.registers <= MAX_REGISTERS,
        f"model.traits.registers={{0.registers}} must lie in 0 to {MAX_REGISTERS}",
    ),
    one_of("model.traits.position_resize", lambda it: it.position_resize, RESIZES),
    Row(
        lambda it: it.rotary_theta == 0 or it.rotary_theta > 1,
        "model.traits.rotary_theta={0.rotary_theta} must be 0 (a table) or above 1",
    ),
    Row(
        lambda it: it.rotary_shift >= 0,
        "model.traits.rotary_shift={0.rotary_shift} must be at least 0",
    ),
    *map(_stretch, AUGMENTS[1:]),
    Row(
        lambda it: bool(it.rotary_theta) or not any(getattr(it, n) for n in AUGMENTS),
        "model.traits: rotary_shift, rotary_jitter and rotary_rescale need a rotary_theta",
    ),
)

# The traits of a model whose field `traits` is None: the ViT of Dosovitskiy et al. 2021.
PLAIN = Traits(
    registers=0,
    distilled=False,
    cls_position=True,
    patch_bias=True,
    pre_norm=False,
    key_bias=True,
    layer_scale=False,
    swiglu=False,
    position_resize="bicubic",
    rotary_theta=0.0,
    rotary_shift=0.0,
    rotary_jitter=0.0,
    rotary_rescale=0.0,
)


def make_fields(**changes: Any) -> dict[str, Any]:
    """Returns the fields `model.traits` of a plain ViT with changes."""
    return dataclasses.asdict(PLAIN) | changes


def without_augments(fields: Any) -> Any:
    """Returns the fields `model.traits`, or None, without those of AUGMENTS: they are 0."""
    return fields and {**fields, **dict.fromkeys(AUGMENTS, 0.0)}


def complete(fields: Any) -> Any:
    """Returns the fields `model.traits`, with those that configs of older versions lack.

    What is no mapping is returned as it is: None, or something that a check will refuse.
    """
    return make_fields(**fields) if isinstance(fields, Mapping) else fields
