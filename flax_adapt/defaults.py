"""Sections that the shipped configs share: complete, every value explicit.

The values of S1 (Lee et al. 2023) are those of its released code, METHODS table; what the
code leaves open is said to be ours.
"""

from typing import Any

from flax_adapt import models, weights
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

ALL = dict(per_class=0, fraction=1.0, seed=0, part="chosen")
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
    return _change(section, changes)


def pretrain_optim(**changes: Any) -> dict[str, Any]:
    """S1's optimizer of teacher and student."""
    section = dict(
        lr=1.5e-4,
        schedule="linear",
        warmup_steps=0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.01,
        decay="pretrain",
        clip_norm=0.0,
        layer_decay=1.0,
        freeze=(r".*/position",),
        accum_steps=1,
    )
    return _change(section, changes)


def finetune_optim(**changes: Any) -> dict[str, Any]:
    """S1's optimizer of fine-tuning."""
    section = dict(
        lr=1e-4,
        schedule="linear",
        warmup_steps=500,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.01,
        decay="finetune",
        clip_norm=1.0,
        layer_decay=1.0,
        freeze=(),
        accum_steps=1,
    )
    return _change(section, changes)


def reconstruct() -> dict[str, Any]:
    return dict(name="reconstruct", hidden_ratio=0.75, normalize_patches=True)


def distill() -> dict[str, Any]:
    """S1: squared distance of the final CLS states, summed over features, weight 1."""
    return dict(
        name="distill",
        masked=reconstruct(),
        state="cls",
        layers=(-1,),
        reduce="sum",
        weight=1.0,
    )


def classify() -> dict[str, Any]:
    return dict(name="classify", label_smoothing=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)


def pretrain_stage(name: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """S1's further pre-training: 20 000 steps of 64 images from the pretrained model."""
    section = dict(
        name=name,
        seeds=(0,),
        objective=reconstruct(),
        num_steps=20_000,
        batch_size=64,
        data=data,
        optim=pretrain_optim(),
        model=dict(dropout=0.0, drop_path=0.0, pooling="cls", num_classes=0, fresh=()),
        eval=None,
        init_from="pretrained",
        teacher="none",
    )
    return _change(section, changes)


def distill_stages(
    data: dict[str, Any], first_teacher: str, rounds: int, **changes: Any
) -> list[dict[str, Any]]:
    """S1's rounds: each restarts from the ORIGINAL weights, taught by the one before."""
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    stages, teacher = [], first_teacher
    for number in range(1, rounds + 1):
        fields = {"objective": distill(), **changes, "teacher": f"stage:{teacher}"}
        stages.append(pretrain_stage(f"distill_{number}", data, **fields))
        teacher = f"distill_{number}"
    return stages


def finetune_stage(
    name: str, data: dict[str, Any], test_data: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """S1's fine-tuning: 10 000 steps of 32 images, new linear head on CLS, 5 seeds.

    Test accuracy is taken after the last step (and every 1 000 steps, ours).
    """
    section = dict(
        name=name,
        seeds=(0, 1, 2, 3, 4),
        objective=classify(),
        num_steps=10_000,
        batch_size=32,
        data=data,
        optim=finetune_optim(),
        model=dict(
            dropout=0.1, drop_path=0.0, pooling="cls", num_classes=0, fresh=("head",)
        ),
        eval=dict(
            every_steps=1_000,
            batch_size=64,
            data=test_data,
            metric="accuracy",
            mode="max",
        ),
        init_from="pretrained",
        teacher="none",
    )
    return _change(section, changes)


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
        return finetune_stage(name, *images, init_from=init_from, **changes)

    def experiment(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        return experiment(
            init=self.init,
            model=self.model,
            evaluate=evaluate(self.labelled, self.test_images),
            stages=tuple(stages),
        )


def evaluate(train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """What `flax-adapt eval` measures; the kNN values are DINO's, the rest is ours."""
    return dict(
        train=train,
        test=test,
        batch_size=64,
        pooling="cls",
        knn_k=20,
        knn_temperature=0.07,
        probe_l2=1e-3,
        probe_max_iterations=1_000,
    )


def experiment(**sections: Any) -> dict[str, Any]:
    """The top level of a config; `init`, `model`, `evaluate` and `stages` must be given."""
    section = dict(
        seed=0,
        precision="float32",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=1_000, keep_last=2, keep_best=1),
        log_every_steps=50,
    )
    return {**section, **sections}


def _change(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(changes) - set(section))
    if unknown:
        raise TypeError(f"no such fields: {unknown}")
    return {**section, **changes}
