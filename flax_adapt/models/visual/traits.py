"""The ways in which families of vision transformers differ from the plain one."""

import dataclasses

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
    cls_position    CLS has a row in the table of positions
    layer_scale     each branch of a block ends in a learned scale (Touvron et al. 2021)
    swiglu          MLPs are silu(x W_g) * x W_u (Shazeer 2020); mlp_dim is the width of
                    that product
    position_resize  how the positions are resized for another grid, a key of RESIZES
    """

    registers: int
    cls_position: bool
    layer_scale: bool
    swiglu: bool
    position_resize: str

    def __post_init__(self):
        checks.run(_ROWS, self)


_ROWS = (
    Row(
        lambda it: 0 <= it.registers <= MAX_REGISTERS,
        f"model.traits.registers={{0.registers}} must lie in 0 to {MAX_REGISTERS}",
    ),
    one_of("model.traits.position_resize", lambda it: it.position_resize, RESIZES),
)

# The traits of a model whose field `traits` is None: the ViT of Dosovitskiy et al. 2021.
PLAIN = Traits(
    registers=0,
    cls_position=True,
    layer_scale=False,
    swiglu=False,
    position_resize="bicubic",
)
