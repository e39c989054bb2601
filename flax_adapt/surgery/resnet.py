"""Another width of the last block of a ResNet (Bordes et al. 2023, METHODS S3).

As the paper has it: of the last block conv3 ends in D features, and the shortcut projects
to them. The paper trains all of it from scratch; to take the other weights from a
checkpoint is ours.
"""

from collections.abc import Sequence

from flax_adapt import models
from flax_adapt.base.checks import Row
from flax_adapt.models import batch_stats
from flax_adapt.surgery.last_block import Resized, Trained

# The layers of a resized last block that are new or of another shape.
NEW = ("conv3", "norm3", "shortcut")
# The leaf that has a row for each feature.
READER = "head/kernel"


# Rules of a `model.resize` of a ResNet.
ROWS: Sequence[Row] = (
    Row(
        lambda it: it.section["init"] == "random",
        "model.resize.init={0.section[init]!r} must be 'random' for a resnet: there is no "
        "other start of its last block",
    ),
)


def resize(trained: Trained) -> Resized:
    """Returns the leaves of a model with another last block, as `last_block.resize` does.

    "random": leaves that are new or of another shape start as fresh ones, with their
    running statistics; so does the kernel of a head where the width differs.
    """
    leaves, config_model = trained.leaves, trained.config_model
    depths = config_model["depths"]
    block = f"encoder/stage_{len(depths)}/block_{depths[-1] - 1:02d}"
    new = [f"{block}/{name}" for name in NEW]
    statistics = [f"{batch_stats.NAME}/{name}" for name in new[1:]]
    same_width = trained.section["width"] == models.output_width(config_model)
    readers = [READER] if READER in leaves and not same_width else []
    return Resized(dict(leaves), {}, (*new, *statistics, *readers))
