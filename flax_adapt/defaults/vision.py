"""Sections of configs for images: data, the model of a folder, what S1 makes of both."""

from typing import Any

from flax_adapt import models, weights
from flax_adapt.defaults import shared
from flax_adapt.defaults.shared import ALL
from flax_adapt.errors import UserError, choose

# Short names for `dataset=`: the paper's vision sets that TFDS carries.
# All have the splits "train" and "test".
DATASETS = {
    "cub": "tfds:caltech_birds2011",
    "dtd": "tfds:dtd",
    "dogs": "tfds:stanford_dogs",
    "flowers": "tfds:oxford_flowers102",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NO_AUGMENT = dict(flip=False, min_crop_area=1.0)


def dataset(name: str) -> str:
    """Returns the data source of a short name; a source stays as it is."""
    if name in DATASETS:
        return DATASETS[name]
    if ":" not in name:
        raise UserError(
            f"dataset={name!r} is unknown; choose one of {sorted(DATASETS)} or a source: "
            "tfds:NAME, folder:PATH, builtin:NAME"
        )
    return name


def architecture(init: str, size: str) -> dict[str, Any]:
    """The model section: of the folder `init`, or a MAE of `size` if there is none.

    `size` (Ti, S, B, L, H; "" for any) must be the folder's if both are given.
    """
    if not init:
        return models.mae_config(size or "B", image_size=224, patch_size=16, channels=3)
    found = weights.model_config(init)
    if found["kind"] != "vit":
        raise UserError(f"init={init} holds a {found['kind']}; this config takes a ViT")
    if size:
        wanted = choose("model", size, models.SIZES)
        if any(found[field] != value for field, value in wanted.items()):
            have = {field: found[field] for field in wanted}
            raise UserError(f"model={size} is {wanted} but {init} holds {have}")
    return found


def pixel_statistics(init: str, channels: int) -> tuple[tuple, tuple]:
    """(mean, std) that a model was trained with: its folder's, or ImageNet's."""
    known = weights.pixel_statistics(init) if init else None
    if known is not None:
        return tuple(known[0]), tuple(known[1])
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.5,) * channels, (0.5,) * channels


def image_data(source: str, split: str, **changes: Any) -> dict[str, Any]:
    """A data section: 224 x 224, ImageNet mean and std, no augmentation, all examples."""
    section = dict(
        modality="image",
        source=source,
        data_dir="",
        split=split,
        image_size=224,
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        subset=ALL,
        augment=NO_AUGMENT,
        num_threads=16,
        prefetch_batches=4,
        max_bad_fraction=0.01,
    )
    return shared.change(section, changes)


# The arguments that all configs of S1 take; vit_self_distill explains them.
S1_ARGUMENTS = dict(
    dataset="dtd", data_dir="", model="", init="", per_class=0, test_split="test"
)


class S1Data:
    """What the configs of S1 make of S1_ARGUMENTS."""

    def __init__(self, args: Any):
        source, train = dataset(args.dataset), "train"
        self.init, self.model = args.init, architecture(args.init, args.model)
        channels = self.model["channels"]
        mean, std = pixel_statistics(args.init, channels)
        fits = dict(
            data_dir=args.data_dir,
            image_size=self.model["image_size"],
            channels=channels,
            mean=mean,
            std=std,
        )
        few = {**ALL, "per_class": args.per_class}
        flips = {**NO_AUGMENT, "flip": True}
        self.images = image_data(source, train, **fits)
        self.labelled = image_data(source, train, subset=few, augment=flips, **fits)
        if args.test_split == "rest":
            rest = {**few, "part": "rest"}
            self.test_images = image_data(source, train, subset=rest, **fits)
        else:
            self.test_images = image_data(source, args.test_split, **fits)

    def finetune_stage(self, name: str, init_from: str, **changes: Any) -> dict:
        images = (self.labelled, self.test_images)
        return shared.finetune_stage(name, *images, init_from=init_from, **changes)

    def experiment(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        return shared.experiment(
            init=self.init,
            model=self.model,
            evaluate=shared.evaluate(self.labelled, self.test_images),
            stages=tuple(stages),
        )
