"""Unsupervised fine-tuning with replay and mixing (METHODS S2), of images and of texts.

The paper's loss, ratios and operators are not known: the grid and its values are ours,
those of the contrastive objective after MoCo-v3 (Chen et al. 2021, official code).
"""

from typing import Any, NamedTuple

from flax_adapt import data, mixing, weights
from flax_adapt.defaults import shared, text, vision
from flax_adapt.defaults.shared import ALL
from flax_adapt.errors import UserError, choose, reworded


class Method(NamedTuple):
    """What one of METHODS does with the target."""

    replays: bool
    mixes: bool
    freezes: bool  # the encoder: a control, whose heads alone train


METHODS = {
    "frozen": Method(replays=False, mixes=False, freezes=True),
    "naive": Method(replays=False, mixes=False, freezes=False),
    "replay": Method(replays=True, mixes=False, freezes=False),
    "mixing": Method(replays=False, mixes=True, freezes=False),
    "both": Method(replays=True, mixes=True, freezes=False),
}


class Form(NamedTuple):
    """One of the forms of contrast: its own values of `contrast`, of `projector`."""

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
# The head that masked modelling starts from, and how to get one.
HEADS = {
    "mae": ("decoder", "vit_further_pretrain:decoder_warmup=STEPS"),
    "mlm": ("mlm", "bert_further_pretrain:mlm_warmup=STEPS"),
}

# The arguments of unsup_finetune, which explains them.
UNSUPERVISED_ARGUMENTS = dict(
    dataset="",
    source="",
    init="",
    init_format="",
    **shared.UNKNOWN,
    data_dir="",
    split="train",
    source_split="train",
    drift_split="",
    label_split="train",
    test_split="test",
    per_class=10,
    method="both",
    objective="contrast",
    rho=1.0,
    sampling="stratified",
    operator="mixup",
    alpha=1.0,
    pairing="",
    reading="",
    form="moco_v3",
    queue_size=0,
    hidden=4096,
    min_crop_area=0.08,
    seeds=1,
    steps=1_000,
    batch_size=64,
    lr=1.5e-4,
    seq_len=128,
    text_field="text",
    label_field="label",
)


class Images:
    """Sections of images, as the weights take them."""

    objectives = ("contrast", "mae")

    def __init__(self, args: Any, model: dict[str, Any]):
        size, channels = model["image_size"], model["channels"]
        mean, std = vision.pixel_statistics(
            args.init, channels, args.init_format or None
        )
        self.fits = dict(image_size=size, channels=channels, mean=mean, std=std)
        # Only RGB has colours; the published sigmas are of images of 224 pixels.
        changes: dict[str, Any] = {} if channels == 3 else dict(vision.NO_COLOURS)
        changes["blur_sigma"] = tuple(s * size / 224 for s in vision.MOCO_V3_SIGMA)
        self.views = vision.views(min_crop_area=args.min_crop_area, **changes)
        self.model = shared.stage_model()
        self.data_dir = args.data_dir

    def labelled(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        fields = {"data_dir": self.data_dir, **self.fits, **changes}
        return vision.image_data(vision.dataset(source), split, **fields)

    plain = unlabelled = labelled

    def twice(self, section: dict[str, Any]) -> dict[str, Any]:
        """With the two views that contrast and alignment compare."""
        return {**section, "views": self.views}

    def masked(self, section: dict[str, Any]) -> dict[str, Any]:
        """The objective with this section `mixing`."""
        return {**shared.reconstruct(), "mixing": section}


class Texts:
    """Sections of texts, as the weights take them; two views differ by dropout."""

    objectives = ("contrast", "mlm")

    def __init__(self, args: Any, model: dict[str, Any]):
        del model
        self.args, self.model = args, text.text_model()

    def labelled(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        args = self.args
        fields = dict(
            data_dir=args.data_dir,
            seq_len=args.seq_len,
            text_fields=(args.text_field,),
            label_field=args.label_field,
        )
        return text.text_data(source, split, args.init, **{**fields, **changes})

    def plain(self, source: str, split: str, **changes: Any) -> dict[str, Any]:
        return self.labelled(source, split, label_field="", **changes)

    def unlabelled(self, source: str, split: str) -> dict[str, Any]:
        layout = "packed" if self.args.objective == "mlm" else "padded"
        return self.plain(source, split, layout=layout)

    def twice(self, section: dict[str, Any]) -> dict[str, Any]:
        return section

    def masked(self, section: dict[str, Any]) -> dict[str, Any]:
        if section["operator"] != "none":
            raise UserError(
                f"method={self.args.method} mixes examples, which objective=mlm cannot: "
                "use objective=contrast, or method=naive or replay"
            )
        return text.mlm(data.open_tokenizer(self.args.init).mask_id)


class Unsupervised:
    """What unsup_finetune makes of UNSUPERVISED_ARGUMENTS."""

    def __init__(self, args: Any):
        if not (args.dataset and args.source and args.init):
            raise UserError(
                "the config needs dataset=TARGET, source=SOURCE (what the weights were "
                "pre-trained on) and init=PATH of the weights"
            )
        self.args = args
        self.known = {name: args[name] for name in shared.UNKNOWN}
        self.told = shared.told(args.init, args.init_format, self.known)
        with reworded(shared.ARGUMENTS):
            self.model = weights.model_config(args.init, **self.told)
        self.form = choose("form", args.form, FORMS)
        if self.model["kind"] == "resnet":
            raise UserError(f"init={args.init} holds a resnet; this config takes none")
        self.is_image = self.model["kind"] == "vit"
        self.make = (Images if self.is_image else Texts)(args, self.model)
        choose("operator", args.operator, dict.fromkeys(("mixup", "cutmix")))
        choose("pairing", args.pairing, {"": None, **mixing.PAIRINGS})
        choose("reading", args.reading, {"": None, **mixing.READINGS})
        choose("objective", args.objective, dict.fromkeys(self.make.objectives))
        self.contrasts = args.objective == "contrast"
        if not self.contrasts:
            self._check_head(*HEADS[args.objective])

    def _check_head(self, part: str, how: str) -> None:
        if part not in weights.parts(self.args.init, self.args.objective, **self.told):
            raise UserError(
                f"init={self.args.init} has no {part}, which objective="
                f"{self.args.objective} starts from; use objective=contrast, or first "
                f"train one with {how}"
            )

    def stages(self) -> list[dict[str, Any]]:
        """A stage for every method, each from `init`, with the same seeds."""
        names = self.args.method.split("+")
        return [self._stage(name, choose("method", name, METHODS)) for name in names]

    def _stage(self, name: str, method: Method) -> dict[str, Any]:
        args, make = self.args, self.make
        target, model = make.unlabelled(args.dataset, args.split), make.model
        if self.contrasts:
            heads = shared.projector(**{"hidden": args.hidden, **self.form.heads})
            target = make.twice(target)
            model = {**model, "fresh": self.form.fresh, "projector": heads}
        return shared.pretrain_stage(
            name,
            target,
            seeds=tuple(range(args.seeds)),
            objective=self._objective(method),
            num_steps=args.steps,
            batch_size=args.batch_size,
            replay=self._replay(method),
            optim=self._optim(method),
            model=model,
        )

    def _objective(self, method: Method) -> dict[str, Any]:
        if not self.contrasts:
            return self.make.masked(self._mixing(method, "instance"))
        return shared.contrast(
            form=self.args.form,
            queue_size=self.args.queue_size,
            mixing=self._mixing(method, "imix"),
            **self.form.objective,
        )

    def _mixing(self, method: Method, reading: str) -> dict[str, Any]:
        """With sources in the batch a target is mixed with one, else with a target."""
        args = self.args
        pairing = "target_source" if method.replays else "target_target"
        return dict(
            operator=args.operator if method.mixes else "none",
            alpha=args.alpha,
            pairing=args.pairing or pairing,
            reading=args.reading or reading,
        )

    def _replay(self, method: Method) -> dict[str, Any] | None:
        args = self.args
        if not method.replays:
            return None
        source = self.make.unlabelled(args.source, args.source_split)
        return shared.replay(source, args.rho, sampling=args.sampling)

    def _optim(self, method: Method) -> dict[str, Any]:
        """AdamW to 0 after 10 % of warm-up; weight decay of MoCo-v3, and of S1's MAE."""
        return shared.pretrain_optim(
            lr=self.args.lr,
            schedule="cosine",
            warmup_steps=self.args.steps // 10,
            b2=0.999 if self.contrasts else 0.95,
            weight_decay=0.1 if self.contrasts else 0.01,
            freeze=(r"encoder/.*",) if method.freezes else self._freeze(),
        )

    def _freeze(self) -> tuple[str, ...]:
        """Positions of images; in contrast the patch embedding, too (MoCo-v3, 4.2)."""
        if not self.is_image:
            return ()
        return (r".*/position", *[r"encoder/patch_embed/.*"] * self.contrasts)

    def experiment(self) -> dict[str, Any]:
        return shared.experiment(
            init=self.args.init,
            init_format=self.args.init_format,
            init_known=self.known,
            model=self.model,
            evaluate=self._evaluate(),
            stages=tuple(self.stages()),
        )

    def _evaluate(self) -> dict[str, Any]:
        """kNN and probe from `per_class` labels; drift against the source."""
        args, labelled = self.args, self.make.labelled
        few = {**ALL, "per_class": args.per_class}
        test = self.make.twice(labelled(args.dataset, args.test_split))
        source = self.make.plain(args.source, args.drift_split or args.source_split)
        train = labelled(args.dataset, args.label_split, subset=few)
        return shared.evaluate(train, test, source=source)
