"""The data section of images, and the arguments that say how their files are read."""

from typing import Any

from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.data import examples
from flax_adapt.data.images import levels
from flax_adapt.defaults import sections
from flax_adapt.defaults.augment import NO_AUGMENT
from flax_adapt.defaults.shared import ALL, IMAGE_FILES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# As much as compiled programs may take: 28 000 squares of 224 pixels.
CACHE_BYTES = 4 * 2**30


def image_data(source: str, split: str, **changes: Any) -> dict[str, Any]:
    """Returns a data section: 224 x 224, ImageNet mean and std, no augmentation, all examples.

    views: (), or the two sections `augment` of a contrastive objective. fit, bits, window: see
    `data.images.levels`. image_field, label_field, split_field: columns of a table. cache_bytes:
    see `data.images.squares`. jpeg_draft: see `data.images.image.decode`. num_threads: see
    `data.base.count_threads`.
    """
    section = dict(
        modality="image",
        source=source,
        data_dir="",
        split=split,
        classes=(),
        image_size=224,
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        subset=ALL,
        augment=NO_AUGMENT,
        views=(),
        num_threads=0,
        prefetch_batches=4,
        max_bad_fraction=0.01,
        cache_bytes=CACHE_BYTES,
        jpeg_draft=False,
        **IMAGE_FILES,
    )
    return sections.change(section, changes)


def read_images_as(args: Any, source: str, split: str) -> dict[str, Any]:
    """Returns the fields IMAGE_FILES of a config's data, from its arguments of these names.

    A window of percentiles becomes one of levels, those of this split of the source. Raises
    UserError where the source cannot be opened for that.
    """
    fields = {name: args[name] for name in IMAGE_FILES}
    if levels.parse_percentiles(args.window) and not source:
        raise UserError(
            f"window={args.window!r}: this config has no one data set whose percentiles they "
            "could be: give window=LOW:HIGH"
        )
    if levels.parse_percentiles(args.window):
        known = dict(data_dir=args.data_dir, **fields)
        section = ConfigDict(image_data(source, split, **known))
        fields["window"] = examples.window_of_percentiles(section)
    return fields
