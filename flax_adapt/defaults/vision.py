"""Sections of configs for images: data, models, and the stages of self-distillation (S1)."""

import functools
import statistics
from collections.abc import Mapping
from typing import Any

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError, choose, reword_errors
from flax_adapt.defaults import augment, shared
from flax_adapt.defaults.image_section import (
    IMAGE_FILES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_data,
    read_images_as,
)
from flax_adapt.defaults.shared import UNKNOWN
from flax_adapt.defaults.source import SOURCE_ARGUMENTS, measured_source

# Short names for `dataset=`: the paper's vision sets that TFDS carries.
# All have the splits "train" and "test".
DATASETS = {
    "cub": "tfds:caltech_birds2011",
    "dtd": "tfds:dtd",
    "dogs": "tfds:stanford_dogs",
    "flowers": "tfds:oxford_flowers102",
}


def dataset(name: str) -> str:
    """Returns the data source of a short name such as "dtd", or a data source unchanged.

    Raises UserError for an unknown short name.
    """
    if name in DATASETS:
        return DATASETS[name]
    if ":" not in name:
        raise UserError(
            f"dataset={name!r} is unknown; choose one of {sorted(DATASETS)} or a source: "
            "tfds:NAME, folder:PATH, builtin:NAME"
        )
    return name


def architecture(
    init: str, size: str, init_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the model section of the weights `init`; without `init` of a MAE of `size`.

    size: Ti, S, B, L, H, or "" for any. init_options: arguments of `weights.model_config`, from
    `weights.source_options`. Raises UserError for weights of another size or no ViT.
    """
    if not init:
        return models.mae_config(size or "B", image_size=224, patch_size=16, channels=3)
    with reword_errors(shared.ARGUMENTS):
        found = weights.model_config(init, **init_options)
    if found["kind"] != "vit":
        raise UserError(f"init={init} holds a {found['kind']}; this config takes a ViT")
    if size:
        wanted = choose("model", size, models.SIZES)
        if any(found[field] != value for field, value in wanted.items()):
            have = {field: found[field] for field in wanted}
            raise UserError(f"model={size} is {wanted} but {init} holds {have}")
    return found


def small_mae(
    *, width: int, depth: int, heads: int, decoder: Mapping[str, int], **pixels: int
) -> dict[str, Any]:
    """Returns the model section of a MAE that trains in minutes on CPU cores (ours).

    Its MLPs are four times as wide as the hidden states; its other values are those of size
    B. decoder: width, depth, heads. pixels: image_size, patch_size, channels.
    """

    def sizes(width: int, depth: int, heads: int) -> dict[str, int]:
        return dict(width=width, depth=depth, heads=heads, mlp_dim=4 * width)

    published = models.mae_config("B", **pixels)
    return {**published, **sizes(width, depth, heads), "decoder": sizes(**decoder)}


def pixel_statistics(
    init: str, channels: int, format: str | None
) -> tuple[tuple, tuple]:
    """Returns (mean, std) of pixels, one number a channel: those of the folder of `init`.

    A grey image for weights of several channels has the average of theirs. If `init` does
    not say: those of ImageNet for 3 channels, else 0.5. format: see `weights`.
    """
    known = weights.pixel_statistics(init, format=format) if init else None
    if known is not None and len(known[0]) == channels:
        return tuple(known[0]), tuple(known[1])
    if known is not None and channels == 1:
        mean, std = map(statistics.fmean, known)
        return (mean,), (std,)
    if known is not None and len(known[0]) < channels:
        # Known channels keep their numbers; new ones have the mean of these.
        new = channels - len(known[0])
        means, stds = ((*values, *[statistics.fmean(values)] * new) for values in known)
        return means, stds
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.5,) * channels, (0.5,) * channels


# Arguments of all configs of S1 on images; the docstring of vit_self_distill explains them.
S1_ARGUMENTS = dict(
    dataset="dtd",
    data_dir="",
    model="",
    init="",
    init_format="",
    **UNKNOWN,
    image_size=0,
    patch_size=0,
    channels=0,
    channels_by="sum",
    per_class=0,
    labels="each_seed",
    train_split="train",
    test_split="test",
    augment="",
    **SOURCE_ARGUMENTS,
    **IMAGE_FILES,
)
# Arguments of those of them that pre-train.
S1_PRETRAIN_ARGUMENTS = dict(**S1_ARGUMENTS, decoder_warmup=0)
WARMUP = "decoder_warmup"


class S1Data:
    """Makes the stages of the configs of S1 on images, from S1_ARGUMENTS."""

    def __init__(self, args: Any):
        source, train = dataset(args.dataset), args.train_split
        self.args, self.init = args, args.init
        self.known = {name: args[name] for name in UNKNOWN}
        self.init_options = shared.describe_init(
            args.init, args.init_format, self.known
        )
        choose("channels_by", args.channels_by, weights.reshape.CHANNELS)
        self.found = architecture(args.init, args.model, self.init_options)
        sizes = {name: args[name] or None for name in weights.reshape.FIELDS}
        task = "mae" if WARMUP in args else "classify"
        self.model = weights.reshape.resized_config(self.found, sizes, task, None)
        channels = self.model["channels"]
        if args.init:
            weights.reshape.check_channels(self.found["channels"], channels)
        mean, std = pixel_statistics(args.init, channels, self.init_options["format"])
        fits = dict(
            data_dir=args.data_dir,
            **read_images_as(args, source, train),
            image_size=self.model["image_size"],
            channels=channels,
            mean=mean,
            std=std,
        )
        self.fits = {**fits}
        few = shared.few(args.per_class, args.labels)
        augmented = augment.section_of(args.augment)
        self.images = image_data(source, train, **fits)
        self.labelled = image_data(source, train, subset=few, augment=augmented, **fits)
        if args.test_split == "rest":
            fits["subset"] = {**few, "part": "rest"}
            self.test_images = image_data(source, train, **fits)
        else:
            self.test_images = image_data(source, args.test_split, **fits)

    @functools.cached_property
    def has_decoder(self) -> bool:
        """Whether `init` holds a decoder; its config.json may describe an absent one."""
        parts = (
            weights.parts(self.init, "mae", **self.init_options) if self.init else set()
        )
        return "decoder" in parts

    def _is_changed(self, *names: str) -> bool:
        return any(self.found[name] != self.model[name] for name in names)

    def _add_reshape(self, stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Returns the stage with rules to resize the weights to the requested sizes."""
        rules = {
            "position": self._is_changed("image_size", "patch_size"),
            "patch": self._is_changed("patch_size"),
            f"channels:{self.args.channels_by}": self._is_changed("channels"),
        }
        named = tuple(rule for rule, holds in rules.items() if holds and self.init)
        return {**stage, "model": {**stage["model"], "reshape": named, **changes}}

    @property
    def original(self) -> str:
        """The reference to the initial weights, without a new decoder."""
        return "pretrained" if self.init else "scratch"

    @property
    def start(self) -> str:
        """The weights that all masked pre-training starts from: those with a decoder."""
        if self.args.decoder_warmup:
            return f"stage:{WARMUP}"
        missing = {
            f"{self.init} is an encoder without a decoder": not self.has_decoder,
            "the decoder predicts pixels: patch_size and channels other than those of "
            f"{self.init} need a new last layer": self._is_changed(
                "patch_size", "channels"
            ),
        }
        for problem, holds in missing.items():
            if holds and self.init:
                raise UserError(
                    f"{problem}: to train it first, with the encoder frozen, give "
                    f"{WARMUP}=STEPS, or give an init with its decoder"
                )
        return self.original

    def warmup_stages(self) -> list[dict[str, Any]]:
        """Returns the stage that trains a new decoder with the encoder frozen, or [].

        Its rate is ours, not searched: higher, since all trained parameters are new. If
        `init` has a decoder for other pixels, only the last layer of it is new.
        """
        steps = self.args.decoder_warmup
        if not steps:
            return []
        if not self.init:
            raise UserError(
                f"{WARMUP}={steps} needs init=PATH, whose encoder is frozen"
            )
        keeps = self.has_decoder and self._is_changed("patch_size", "channels")
        optim = shared.pretrain_optim(
            lr=5e-4, warmup_steps=steps // 20, freeze=(r".*/position", r"encoder/.*")
        )
        fields = dict(num_steps=steps, optim=optim, init_from="pretrained")
        stage = shared.pretrain_stage(WARMUP, self.images, **fields)
        new = weights.reshape.PREDICT if keeps else "decoder"
        return [self._add_reshape(stage, fresh=(new,))]

    def pretrain_stage(self, name: str, **changes: Any) -> dict[str, Any]:
        """Returns further pre-training (Lee et al. 2023) from `start`."""
        fields = {"init_from": self.start, **changes}
        return self._add_reshape(shared.pretrain_stage(name, self.images, **fields))

    def distill_stages(
        self, first_teacher: str, rounds: int, **changes: Any
    ) -> list[dict[str, Any]]:
        """Returns the rounds of self-distillation (Lee et al. 2023), each from `start`."""
        fields = {"init_from": self.start, **changes}
        stages = shared.distill_stages(self.images, first_teacher, rounds, **fields)
        return [self._add_reshape(stage) for stage in stages]

    def finetune_stage(self, name: str, init_from: str, **changes: Any) -> dict:
        """Returns fine-tuning (Lee et al. 2023) from the weights `init_from`."""
        images = (self.labelled, self.test_images)
        fields = {"init_from": init_from, **changes}
        return self._add_reshape(shared.finetune_stage(name, *images, **fields))

    def experiment(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the whole config with these stages."""
        return shared.experiment(
            init=self.init,
            init_format=self.args.init_format,
            init_known=self.known,
            model=self.model,
            evaluate=self._evaluate(),
            stages=tuple(stages),
        )

    def _evaluate(self) -> dict[str, Any]:
        """Returns the section `evaluate`; with a source, it has two views of the test images."""

        def make(name: str, split: str) -> dict[str, Any]:
            return image_data(dataset(name), split, **self.fits)

        source, test = measured_source(self.args, make), self.test_images
        if source is not None:
            test = {**test, "views": augment.views_of(self.model)}
        return shared.evaluate(self.labelled, test, source=source)
