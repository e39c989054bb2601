"""The config `resize_last_block`: models with other widths of the last block, compared.

S3, Bordes et al. 2023; see docs/methods/last_block.md.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import baselines, modality, sections, shared, supervised
from flax_adapt.surgery import last_block, matched

# The arguments of the config resize_last_block; its docstring explains them.
RESIZING_ARGUMENTS = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    dataset="",
    scratch="",
    image_size=224,
    label_split="train",
    probe_on="",
    width="",
    start="auto",
    noise=1.0,
    tokens="all",
    relu=False,
    objective="contrast",
    projector=True,
    hidden=4096,
    variant="resized",
    pooling="cls",
    seeds=1,
    steps=1_000,
    batch_size=64,
    lr=0.0,
    augment="",
)
SUPERVISED = "classify"
SGD_LR = 0.1  # for 256 images


class Variant(NamedTuple):
    """How a variant resizes the last block.

    kind: of the section `resize`; "": no resizing. mlp_dim: (model config, width) -> width
    of the MLP of an extra block. start: initial values of new parameters; "": those of the
    argument `start`. freezes: whether the encoder is frozen.
    """

    kind: str
    mlp_dim: Callable[[dict[str, Any], int], int]
    start: str
    freezes: bool


def _vit(size: str, image_size: int) -> dict[str, Any]:
    sizes = dict(image_size=image_size, patch_size=16, channels=3)
    return models.mae_config(size, **sizes)


def _start(args: Any) -> modality.Start:
    if args.init:
        return modality.open_start(args, objective=args.objective)
    model = choose("scratch", args.scratch, SCRATCH)(args.image_size)
    return modality.start_from_scratch(args, model, objective=args.objective)


def _none(model: dict[str, Any], width: int) -> int:
    return 0


VARIANTS = {
    "resized": Variant("resized", _none, "", False),
    # Controls: random features of the frozen encoder; a linear layer that stays after
    # training; an extra block with as many parameters as the resized one adds.
    "random": Variant("linear", _none, "random", True),
    "linear": Variant("linear", _none, "", False),
    "extra": Variant("extra", matched.mlp_dim, "", False),
    # The model's own last block, with the same training.
    "same": Variant("", _none, "", False),
}


# The variants of a ResNet; the controls exist for transformers only.
OF_RESNETS = {name: VARIANTS[name] for name in ("resized", "same")}
# Models that can be trained from scratch: image size -> model section.
SCRATCH: dict[str, Callable[[int], dict[str, Any]]] = {
    "resnet50": lambda size: models.resnet_config("50", image_size=size, channels=3),
    **{size: functools.partial(_vit, size) for size in models.SIZES},
}


class Resizing:
    """The experiment of resize_last_block, from RESIZING_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    def __init__(self, args: Any):
        if not args.dataset or bool(args.init) == bool(args.scratch):
            raise UserError(
                "the config needs dataset=DATA to train on, and init=PATH of weights or "
                f"scratch=MODEL, one of {sorted(SCRATCH)}"
            )
        self.args, self.start = args, _start(args)
        choose("start", args.start, {"auto": None, **last_block.INITS})
        unlabelled: tuple[str, ...] = self.start.make.objectives
        if not self.start.is_transformer:
            unlabelled = ("contrast",)
        self.start.choose_objective((*unlabelled, SUPERVISED))
        self.labels = args.objective == SUPERVISED
        # A ResNet from scratch with labels is trained as usual, see `_make_optim`.
        self.is_published = bool(args.scratch and self.labels)
        self.is_published &= not self.start.is_transformer
        if args.augment and not self.labels:
            raise UserError(
                f"augment={args.augment} is of objective={SUPERVISED}; contrast has views of "
                "its own, and masked modelling sees images as they are"
            )
        self.variants = VARIANTS if self.start.is_transformer else OF_RESNETS
        self.widths = _parse_widths(args.width)

    def stages(self) -> list[dict[str, Any]]:
        """Returns a stage for every variant and width, each from `init`, with the same seeds."""
        found = []
        for name in self.args.variant.split("+"):
            variant = choose("variant", name, self.variants)
            widths = self.widths if variant.kind else (0,)
            found += [self._make_stage(name, variant, width) for width in widths]
        return found

    def _make_stage(self, name: str, variant: Variant, width: int) -> dict[str, Any]:
        args = self.args
        resize = self._make_resize(variant, width) if variant.kind else None
        model = {**self.start.make.model, "resize": resize, "pooling": self._pooling}
        contrasts, labels = args.objective == "contrast", self.labels
        heads = self._make_projector()
        fresh = ("projector",) * (args.projector and (contrasts or labels))
        fresh += ("predictor",) * contrasts + ("head",) * labels
        return shared.pretrain_stage(
            f"{name}_{width}" if width else name,
            self._make_data(),
            seeds=tuple(range(args.seeds)),
            objective=self._make_objective(),
            # A frozen encoder does not change: one step is enough to export it.
            num_steps=1 if variant.freezes else args.steps,
            batch_size=args.batch_size,
            optim=self._make_optim(variant),
            init_from="pretrained" if args.init else "scratch",
            model={**model, "fresh": fresh, "projector": heads},
        )

    def _make_data(self) -> dict[str, Any]:
        """Returns the data section: labelled and augmented, with two views, or plain."""
        args, make = self.args, self.start.make
        if self.labels:
            name = args.augment or ("crop" if self.is_published else "")
            return supervised.add_augment(
                make.labelled_data(args.dataset, args.split), name
            )
        section = make.unlabelled_data(args.dataset, args.split)
        return make.add_views(section) if args.objective == "contrast" else section

    @property
    def _pooling(self) -> str:
        return self.args.pooling if self.start.is_transformer else "mean"

    def _make_resize(self, variant: Variant, width: int) -> dict[str, Any]:
        args, model = self.args, self.start.model
        old = models.output_width(model)
        start = variant.start or args.start
        if start == "auto" and args.init and self.start.is_transformer:
            start = "preserve" if width >= old else "pca"
        elif start == "auto":
            start = "random"  # from scratch, or a ResNet: no other start exists
        is_extra = variant.kind == "extra"
        if is_extra and not self.start.is_image:
            start = "random"  # a post-norm block cannot start as the identity
        return sections.resize(
            old if is_extra else width,
            kind=variant.kind,
            relu=args.relu or not self.start.is_transformer,
            mlp_dim=variant.mlp_dim(model, width),
            init=start,
            noise=args.noise,
            tokens=args.tokens,
        )

    def _make_projector(self) -> dict[str, Any] | None:
        """Returns the section `projector`, or None.

        For contrast the heads of MoCo-v3, without a projector the predictor alone; for labels
        a projector of two layers.
        """
        args = self.args
        if args.objective == "contrast":
            heads = self.start.contrast_form.heads if args.projector else {"layers": 0}
            return sections.projector(**{"hidden": args.hidden, **heads})
        if args.objective == SUPERVISED and args.projector:
            return sections.projector(
                layers=2, hidden=args.hidden, predictor_layers=0, batch_norm=False
            )
        return None

    def _make_objective(self) -> dict[str, Any]:
        if self.args.objective == "contrast":
            return sections.contrast(**self.start.contrast_form.objective)
        if self.args.objective == SUPERVISED:
            return sections.classify()
        return self.start.make.masked_objective(sections.NO_MIXING)

    def _make_optim(self, variant: Variant) -> dict[str, Any]:
        """Returns `Start.optim`; for a ResNet from scratch with labels SGD with momentum.

        Source: Goyal et al. 2017, the usual ResNet-50 on ImageNet: 0.1 for 256 images,
        decay 1e-4. A cosine in the place of steps, and a tenth of warm-up, are ours.
        """
        args = self.args
        optim = self.start.optim(freezes=variant.freezes)
        if self.is_published:
            optim |= dict(
                lr=args.lr or SGD_LR * args.batch_size / 256,
                sgd=baselines.sgd(),
                weight_decay=1e-4,
                decay="all",
            )
        return {**optim, "warmup_steps": 0} if variant.freezes else optim

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        args = self.args
        sets = [args.dataset, *filter(None, args.probe_on.split("+"))]
        stages = tuple(self.stages())
        changes = dict(
            wide=shared.wide(),
            pooling=self._pooling,
            # One pass over the data for the initial weights and all trained models.
            models_at_once=1 + len(stages) * args.seeds,
        )
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=self.start.known,
            model=self.start.model,
            **self.start.evaluate_all(sets, args.label_split, **changes),
            stages=stages,
        )


def _parse_widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in text.split("+"))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise UserError(
            f"width={text!r} must be a number of features, or several: 96+768"
        )
    return widths
