"""Augmentation of images: sections `augment`, also by the names that configs take."""

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

NO_COLOURS = dict(saturation=0.0, hue=0.0, grey_probability=0.0)  # of RGB alone
# In pixels of a 224 x 224 image.
MOCO_V3_SIGMA = (0.1, 2.0)
# Chen et al. 2021 (MoCo-v3): BYOL's two, crops as its released code cuts them for ViTs.
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


def views(**changes: Any) -> tuple[dict[str, Any], ...]:
    """MOCO_V3_VIEWS with these fields changed in both, as small images need it."""
    return tuple(sections.change(view, changes) for view in MOCO_V3_VIEWS)


# The names that the argument `augment` of a config takes, for supervised training.
AUGMENTS: dict[str, dict[str, Any]] = {
    "none": NO_AUGMENT,
    # S1's fine-tuning (Lee et al. 2023, released code).
    "flip": {**NO_AUGMENT, "flip": True},
    # ResNets on ImageNet (torch's reference recipe): 8 % of the area or more, and flips.
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


def of_images(name: str, default: str = "flip") -> dict[str, Any]:
    """Returns the section of an argument `augment`; "": `default`."""
    return choose("augment", name or default, AUGMENTS)


def check_texts(name: str) -> None:
    """Raises UserError unless an argument `augment` leaves texts as they are."""
    if name not in ("", "none"):
        raise UserError(
            f"augment={name!r} is of images; texts are not augmented: leave it out, or "
            "give augment=none"
        )
