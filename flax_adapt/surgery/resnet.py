"""Another width of the last block of a ResNet (S3, Bordes et al. 2023).

As in the paper, conv3 of the last block has D output features, and the shortcut projects to
D. The paper trains the whole model from scratch; to load the other weights from a checkpoint
is ours.
"""

from collections.abc import Sequence

from flax_adapt import models
from flax_adapt.base.checks import Row
from flax_adapt.models import batch_stats
from flax_adapt.surgery.last_block import ResizedWeights, TrainedBlock

# The layers of a resized last block that are new or of another shape.
NEW = ("conv3", "norm3", "shortcut")
# The leaf that has a row for each feature.
READER = "head/kernel"


# Rules of a section `model.resize` for a ResNet.
ROWS: Sequence[Row] = (
    Row(
        lambda it: it.section["init"] == "random",
        "model.resize.init={0.section[init]!r} must be 'random' for a resnet: there is no "
        "other start of its last block",
    ),
)


def resize(trained: TrainedBlock) -> ResizedWeights:
    """Returns the weights of a ResNet with the requested last block.

    Leaves that are new or of another shape get new initial values, with their running
    statistics; so does the kernel of a head where the width differs.
    """
    leaves, config_model = trained.leaves, trained.config_model
    depths = config_model["depths"]
    block = f"encoder/stage_{len(depths)}/block_{depths[-1] - 1:02d}"
    new = [f"{block}/{name}" for name in NEW]
    statistics = [f"{batch_stats.NAME}/{name}" for name in new[1:]]
    same_width = trained.section["width"] == models.output_width(config_model)
    readers = [READER] if READER in leaves and not same_width else []
    return ResizedWeights(dict(leaves), {}, (*new, *statistics, *readers))
