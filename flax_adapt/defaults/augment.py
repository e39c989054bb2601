"""Augmentation of images: sections `augment`, and the names that configs have for them."""

from collections.abc import Mapping
from typing import Any

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import sections

# Every field of a section `augment` (data/augment.py explains them), all off.
NO_AUGMENT = dict(
    flip=False,
    min_crop_area=1.0,
    jitter_probability=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    grey_probability=0.0,
    blur_probability=0.0,
    blur_sigma=(0.1, 2.0),
    solarize_probability=0.0,
    randaugment_operations=0,
    randaugment_magnitude=9.0,
    erase_probability=0.0,
)

# Turns off the changes of colour, which only RGB images can have.
NO_COLOURS = dict(saturation=0.0, hue=0.0, grey_probability=0.0)
# Range of the blur's sigma, in pixels of a 224 x 224 image.
MOCO_V3_SIGMA = (0.1, 2.0)
# Chen et al. 2021 (MoCo-v3): the two augmentations of BYOL, with the area of crops that
# the released code has for ViTs.
_MOCO_V3 = dict(
    flip=True,
    min_crop_area=0.08,
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grey_probability=0.2,
    blur_sigma=MOCO_V3_SIGMA,
    randaugment_operations=0,
    randaugment_magnitude=9.0,
    erase_probability=0.0,
)
MOCO_V3_VIEWS: tuple[dict[str, Any], ...] = (
    dict(**_MOCO_V3, blur_probability=1.0, solarize_probability=0.0),
    dict(**_MOCO_V3, blur_probability=0.1, solarize_probability=0.2),
)


# The least share of the area that a view is cut from, by kind of model: official code's
# default for a ViT, and --crop-min=.2 of its commands for a ResNet.
MIN_CROP_AREA = {"vit": 0.08, "resnet": 0.2}


def views(**changes: Any) -> tuple[dict[str, Any], ...]:
    """Returns MOCO_V3_VIEWS with `changes` in both, such as a blur for small images."""
    return tuple(sections.change(view, changes) for view in MOCO_V3_VIEWS)


def views_of(model: Mapping[str, Any], min_crop_area: float = 0.0) -> tuple[Any, ...]:
    """Returns two views of the images of a model section, which contrast and alignment compare.

    min_crop_area: 0: that of MIN_CROP_AREA.
    """
    # Only RGB has colours; the published sigmas are for images of 224 x 224 pixels.
    changes: dict[str, Any] = {} if model["channels"] == 3 else dict(NO_COLOURS)
    changes["blur_sigma"] = tuple(s * model["image_size"] / 224 for s in MOCO_V3_SIGMA)
    area = min_crop_area or MIN_CROP_AREA[model["kind"]]
    return views(min_crop_area=area, **changes)


# Value of a config's argument `augment`, for supervised training -> its section.
AUGMENTS: dict[str, dict[str, Any]] = {
    "none": NO_AUGMENT,
    # Fine-tuning of Lee et al. 2023 (released code).
    "flip": {**NO_AUGMENT, "flip": True},
    # ResNets on ImageNet (torch's reference recipe): crops of 8 % of the area or more, flips.
    "crop": {**NO_AUGMENT, "flip": True, "min_crop_area": 0.08},
    # He et al. 2022, official code: rand-m9-mstd0.5-inc1, erasing with probability 0.25.
    "mae": {
        **NO_AUGMENT,
        "flip": True,
        "min_crop_area": 0.08,
        "randaugment_operations": 2,
        "erase_probability": 0.25,
    },
}


def section_of(name: str, default: str = "flip") -> dict[str, Any]:
    """Returns the section for a config's argument `augment`; "" means `default`.

    Raises UserError for an unknown name.
    """
    return choose("augment", name or default, AUGMENTS)


def check_texts(name: str) -> None:
    """Raises UserError for an argument `augment` other than "" and "none"."""
    if name not in ("", "none"):
        raise UserError(
            f"augment={name!r} is of images; texts are not augmented: leave it out, or "
            "give augment=none"
        )
