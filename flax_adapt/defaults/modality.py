"""Sections of images and of texts, for configs that take either of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax_adapt import data, models, weights
from flax_adapt.base.errors import UserError, choose, reword_errors
from flax_adapt.defaults import (
    augment,
    image_section,
    sections,
    shared,
    source,
    text,
    vision,
)


class Form(NamedTuple):
    """A form of contrastive learning.

    objective, heads: its own values of the sections `contrast` and `projector`. fresh: the
    parts of the model that are new.
    """

    objective: dict[str, Any]
    heads: dict[str, Any]
    fresh: tuple[str, ...]


FORMS = {
    "moco_v3": Form({}, {}, ("projector", "predictor")),
    # He et al. 2020, Chen et al. 2020, official code: m 0.999, a head of two layers.
    "moco_v2": Form(
        dict(momentum=0.999, momentum_schedule="constant"),
        dict(layers=2, width=128, predictor_layers=0, batch_norm=False),
        ("projector",),
    ),
}


# MoCo-v3 on a ResNet (Chen et al. 2021, official code): temperature 1.0, a projector of 2
# layers, LARS at 0.3 for 256 images, no decay and no trust ratio for 1-D parameters.
OF_RESNET = Form(dict(temperature=1.0), dict(layers=2), FORMS["moco_v3"].fresh)
LARS_LR = 0.3
# The learning rate of AdamW: that of MoCo-v3 on a ViT, and of MAE in Lee et al. 2023.
ADAMW_LR = 1.5e-4


def lars_optim(lr: float, batch_size: int) -> dict[str, Any]:
    """Returns the fields of `optim` of MoCo-v3 on a ResNet; lr 0: the published rate."""
    return dict(
        lr=lr or LARS_LR * batch_size / 256,
        lars=dict(momentum=0.9, trust=1e-3),
        weight_decay=1e-6,
        decay="pretrain",
    )


# Masked objective -> the head that it needs, and the config that trains such a head.
HEADS = {
    "mae": ("decoder", "vit_further_pretrain:decoder_warmup=STEPS"),
    "mlm": ("mlm", "bert_further_pretrain:mlm_warmup=STEPS"),
}


class Images:
    """Makes sections of images, with the size and channels of the model section `model`."""

    objectives = ("contrast", "mae")

    def __init__(self, args: Any, model: dict[str, Any], objective: str):
        del objective
        size, channels = model["image_size"], model["channels"]
        mean, std = vision.pixel_statistics(
            args.init, channels, args.init_format or None
        )
        self.fits = dict(image_size=size, channels=channels, mean=mean, std=std)
        first = vision.dataset(args.dataset) if args.get("dataset") else ""
        self.fits |= image_section.read_images_as(args, first, args.split)
        self.views = augment.views_of(model, args.min_crop_area)
        self.model = sections.stage_model()
        self.data_dir = args.data_dir

    def labelled_data(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        """Returns the data section of a split; images are the same with and without labels."""
        fields = {"data_dir": self.data_dir, **self.fits, **changes}
        return image_section.image_data(vision.dataset(source), split, **fields)

    unpacked_data = unlabelled_data = labelled_data

    def add_views(self, section: dict[str, Any]) -> dict[str, Any]:
        """Returns a data section with two views, which contrast and alignment compare."""
        return {**section, "views": self.views}

    def masked_objective(self, section: dict[str, Any]) -> dict[str, Any]:
        """Returns the objective of masked modelling with this section `mixing`."""
        return {**sections.reconstruct(), "mixing": section}


class Texts:
    """Makes sections of texts, for the tokenizer of the initial weights."""

    objectives = ("contrast", "mlm")

    def __init__(self, args: Any, model: dict[str, Any], objective: str):
        del model
        self.args, self.model = args, text.text_model()
        self.layout = "packed" if objective == "mlm" else "padded"

    def labelled_data(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        """Returns the data section of a split, with labels."""
        args = self.args
        fields = dict(
            data_dir=args.data_dir,
            seq_len=args.seq_len,
            text_fields=(args.text_field,),
            label_field=args.label_field,
        )
        return text.text_data(source, split, args.init, **{**fields, **changes})

    def unpacked_data(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        """Returns the data section of a split without labels, one text a row."""
        return self.labelled_data(source, split, label_field="", **changes)

    def unlabelled_data(self, source: str, split: str) -> dict[str, Any]:
        """Returns the data section of a split without labels; for "mlm" with packed rows."""
        return self.unpacked_data(source, split, layout=self.layout)

    def add_views(self, section: dict[str, Any]) -> dict[str, Any]:
        """Returns the data section unchanged: the two views of a text differ by dropout."""
        return section

    def masked_objective(self, section: dict[str, Any]) -> dict[str, Any]:
        """Returns the objective "mlm"; raises UserError for a section that mixes examples."""
        if section["operator"] != "none":
            raise UserError(
                f"method={self.args.method} mixes examples, which objective=mlm cannot: "
                "use objective=contrast, or method=naive or replay"
            )
        return text.mlm(data.open_tokenizer(self.args.init).mask_id)


class Start(NamedTuple):
    """The initial weights of a config, and the sections that fit them.

    args: the config's arguments. objective: that of training without labels. model: the
    model section. known: facts about the weights from the arguments, see UNKNOWN.
    init_options: `format` and `known` of `weights.load`. make: makes data sections and
    objectives.
    """

    args: Any
    objective: str
    model: dict[str, Any]
    known: dict[str, Any]
    init_options: dict[str, Any]
    make: Images | Texts

    @property
    def is_image(self) -> bool:
        return isinstance(self.make, Images)

    @property
    def is_transformer(self) -> bool:
        return self.model["kind"] != "resnet"

    @property
    def masked_task(self) -> str:
        """The objective of masked modelling: "mae" or "mlm"."""
        return self.make.objectives[-1]

    @property
    def contrast_form(self) -> Form:
        """The form of MoCo-v3 published for a ViT, or for a ResNet."""
        return FORMS["moco_v3"] if self.is_transformer else OF_RESNET

    def choose_objective(self, choices: tuple[str, ...]) -> None:
        """Raises UserError unless `objective` is in `choices` and the weights have its head."""
        choose("objective", self.objective, dict.fromkeys(choices))
        if self.objective in HEADS:
            can = "use objective=contrast, or " if "contrast" in choices else ""
            what = f"objective={self.objective} starts from"
            self.check_head(self.objective, what, can)

    def check_head(self, objective: str, what: str, can: str = "") -> None:
        """Raises UserError where the weights lack the head of `objective`.

        what: says in the error which argument needs the head. can: an alternative.
        """
        init, (part, how) = self.args.init, HEADS[objective]
        if not init:
            return  # everything is new
        if part not in weights.parts(init, objective, **self.init_options):
            raise UserError(
                f"init={init} has no {part}, which {what}; {can}first train one with {how}"
            )

    def optim(self, *, freezes: bool) -> dict[str, Any]:
        """Returns `optim`: AdamW, 10 % of warm-up, then a cosine to 0.

        Weight decay is that of MoCo-v3 for contrast, else that of MAE in Lee et al. 2023.
        MoCo-v3 decays every parameter of a ViT; on a ResNet it has LARS (`lars_optim`).
        freezes: whether the encoder is frozen. Otherwise only the positions of a ViT are,
        and with contrast its patch embedding (MoCo-v3, 4.2).
        """
        args, contrasts = self.args, self.objective == "contrast"
        of_vit = (r".*/position", *[r"encoder/patch_embed/.*"] * contrasts)
        freeze = of_vit if self.model["kind"] == "vit" else ()
        kind = self.model["kind"]
        is_lars = contrasts and kind == "resnet"
        changes = lars_optim(args.lr, args.batch_size) if is_lars else {}
        optim = shared.pretrain_optim(
            lr=args.lr or ADAMW_LR,
            schedule="cosine",
            warmup_steps=args.steps // 10,
            b2=0.999 if contrasts else 0.95,
            weight_decay=0.1 if contrasts else 0.01,
            decay="all" if contrasts and kind == "vit" else "pretrain",
            freeze=(r"encoder/.*",) if freezes else freeze,
        )
        return {**optim, **changes}

    def evaluate(self, dataset: str, split: str, **changes: Any) -> dict[str, Any]:
        """Returns a section `evaluate`: kNN and linear probe on a data set.

        They have `args.per_class` labels of every class of `split`, drawn as `args.labels`
        says, and are tested on `args.test_split`.
        """
        args, labelled = self.args, self.make.labelled_data
        few = shared.few(args.per_class, args.labels)
        test = self.make.add_views(labelled(dataset, args.test_split))
        train = labelled(dataset, split, subset=few)
        return shared.evaluate(train, test, **changes)

    def evaluate_all(
        self, datasets: Sequence[str], split: str, **changes: Any
    ) -> dict[str, Any]:
        """Returns `evaluate` and `more_evaluations` of a config, a section for each data set.

        Forgetting of the source is measured in the first of them.
        """
        first, *more = (self.evaluate(one, split, **changes) for one in datasets)
        first["source"] = self.measured_source()
        return dict(evaluate=first, more_evaluations=tuple(more))

    def measured_source(self, split: str = "source_split") -> dict[str, Any] | None:
        """Returns `source.measured_source` of the config's arguments."""
        return source.measured_source(self.args, self.make.labelled_data, split)


def open_start(args: Any, *, objective: str) -> Start:
    """Returns the `Start` of a config.

    args: its arguments, with init, init_format, the names of UNKNOWN, and those that `Images`
    or `Texts` use. objective: that of training without labels, if there is any. Raises
    UserError for an `init` that cannot be read.
    """
    known = {name: args[name] for name in shared.UNKNOWN}
    init_options = shared.describe_init(args.init, args.init_format, known)
    with reword_errors(shared.ARGUMENTS):
        model = weights.model_config(args.init, **init_options)
    is_image = models.TASKS[model["kind"]]["encoder"].modality == "image"
    make = (Images if is_image else Texts)(args, model, objective)
    return Start(args, objective, model, known, init_options, make)


def open_transformer(args: Any, *, objective: str) -> Start:
    """Returns `open_start(args, ...)`; raises UserError for weights of a ResNet."""
    found = open_start(args, objective=objective)
    if not found.is_transformer:
        raise UserError(f"init={args.init} holds a resnet; this config takes none")
    return found


def start_from_scratch(args: Any, model: dict[str, Any], *, objective: str) -> Start:
    """Returns the `Start` of an image model without initial weights."""
    known, init_options = shared.UNKNOWN, shared.describe_init("", "", {})
    make = Images(args, model, objective)
    return Start(args, objective, model, known, init_options, make)
