"""Names of ResNets: those of torchvision, which timm has too, and those of Hugging Face.

torchvision 0.29 `models/resnet.py`, timm 1.0 `models/resnet.py`, transformers 5
`ResNetModel`, `ResNetForImageClassification`. Running statistics are leaves of their own, see
`models.batch_stats`.
"""

from typing import NamedTuple

from flax_adapt.models import batch_stats
from flax_adapt.models.resnet_config import MAX_STAGES
from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.names import Names, Spellings

STATISTICS = {"mean": "running_mean", "var": "running_var"}
COUNTER = {r"(.*\.)?num_batches_tracked": "a counter of batches"}
BLOCK = r"layer\d+\.\d+\."
REFUSED = {
    r"conv1\.\d+\..*": "a stem of several convolutions (ResNet-C, -D, -S, -T)",
    r"maxpool\..*": "a convolution in the place of the max pool",
    rf"(.*\.)?filt|{BLOCK}aa\..*": "anti-aliasing",
    rf"{BLOCK}(se|attn|eca)\w*\..*": "attention over channels (SE, ECA)",
    rf"{BLOCK}conv2\.(conv|attn|fc|bn|radix).*": "selective or split convolutions",
    rf"{BLOCK}downsample\.[2-9]\d*\..*": "a pool in the shortcut (ResNet-D)",
    r"(attnpool|avgpool)\..*": "attention pooling",
}


class Spelling(NamedTuple):
    """Names of a library for the parts of a ResNet.

    stem, shortcut: (convolution, norm). stages: with {n} for the number of the block. layers:
    (convolution, norm) of the layers of a block.
    """

    stem: tuple[str, str]
    stages: tuple[str, ...]
    layers: tuple[tuple[str, str], ...]
    shortcut: tuple[str, str]


def _names(
    source: str, prefix: str, head: str, spelling: Spelling, refused: dict[str, str]
) -> Names:
    stem, around = spelling.stem, spelling.shortcut
    layers = {"shortcut/conv": around[0], "shortcut/norm": around[1]}
    for number, (conv, norm) in enumerate(spelling.layers, start=1):
        layers |= {f"conv{number}": conv, f"norm{number}": norm}
    stacks = {
        f"encoder/stage_{number}/block_{{n}}": (name,)
        for number, name in enumerate(spelling.stages, start=1)
    }
    norms = {"encoder/stem/norm": stem[1]} | {
        f"{ours}/{layer}": f"{theirs}.{name}"
        for ours, (theirs,) in stacks.items()
        for layer, name in layers.items()
        if "norm" in layer
    }
    return Names(
        source=source,
        style=layouts.CONVOLUTIONS,
        prefix=prefix,
        tensors=_statistics(norms),
        modules={
            "encoder/stem/conv": (stem[0],),
            "encoder/stem/norm": (stem[1],),
            "head": (head,),
        },
        stacks=stacks,
        layers={ours: (theirs,) for ours, theirs in layers.items()},
        fused={},
        spare={},
        buffers=COUNTER,
        refused=refused,
    )


def _statistics(norms: dict[str, str]) -> dict[str, Spellings]:
    """Returns {leaf: names} of the running statistics of every norm."""
    return {
        f"{batch_stats.NAME}/{ours}/{leaf}": (f"{theirs}.{name}",)
        for ours, theirs in norms.items()
        for leaf, name in STATISTICS.items()
    }


TORCHVISION = _names(
    "torchvision's ResNet",
    "",
    "fc",
    Spelling(
        stem=("conv1", "bn1"),
        stages=tuple(f"layer{n}.{{n}}" for n in range(1, MAX_STAGES + 1)),
        layers=tuple((f"conv{n}", f"bn{n}") for n in (1, 2, 3)),
        shortcut=("downsample.0", "downsample.1"),
    ),
    REFUSED,
)
HUGGING_FACE = _names(
    "Hugging Face's ResNet",
    "resnet.",
    "classifier.1",
    Spelling(
        stem=(
            "resnet.embedder.embedder.convolution",
            "resnet.embedder.embedder.normalization",
        ),
        stages=tuple(
            f"resnet.encoder.stages.{n}.layers.{{n}}" for n in range(MAX_STAGES)
        ),
        layers=tuple(
            (f"layer.{n}.convolution", f"layer.{n}.normalization") for n in range(3)
        ),
        shortcut=("shortcut.convolution", "shortcut.normalization"),
    ),
    {},
)
