"""GLAD fine-tuning, and what its backbone is worth as the start of a next task (S4)."""

from collections.abc import Sequence
from typing import Any

from flax_adapt import weights
from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import modality, sections, shared
from flax_adapt.models.adaptors import KINDS
from flax_adapt.objectives.glad import PRESERVED, REGULARIZERS

# The arguments of glad_finetune, which explains them.
GLAD_ARGUMENTS = dict(
    dataset="",
    init="",
    init_format="",
    **shared.UNKNOWN,
    data_dir="",
    split="train",
    test_split="test",
    per_class=0,
    regularizer="preserve",
    weight=1.0,
    preserve="features",
    stop_backbone=False,
    adaptor="vector",
    keywise=False,
    bottleneck=64,
    then="",
    then_by="finetune",
    then_warmup=500,
    seeds=3,
    steps=500,
    batch_size=32,
    lr=1e-4,
    then_steps=500,
    then_lr=1e-4,
    dropout=0.1,
    pooling="cls",
    min_crop_area=0.08,
    seq_len=128,
    text_field="text",
    label_field="label",
)


def check_names(adaptor: str, regularizers: Sequence[str]) -> None:
    """Raises UserError for such arguments that are unknown."""
    choose("adaptor", adaptor, KINDS)
    for name in regularizers:
        choose("regularizer", name, REGULARIZERS)


def check_start(regularizers: Sequence[str], start: modality.Start) -> None:
    """Raises UserError where the weights lack what a regularizer goes on with."""
    if "masked" in regularizers:
        start.check_head(start.masked_task, "regularizer=masked goes on with")


class Glad:
    """What glad_finetune makes of GLAD_ARGUMENTS."""

    def __init__(self, args: Any):
        if not (args.dataset and args.init):
            raise UserError(
                "the config needs dataset=DATA with labels and init=PATH of weights"
            )
        # What `then` may be trained by says how its sections are made.
        self.args = args
        self.start = modality.transformer(args, objective=args.then_by)
        choose("preserve", args.preserve, PRESERVED)
        choose("then_by", args.then_by, dict.fromkeys(self._ways()))
        self.regularizers = args.regularizer.split("+")
        check_names(args.adaptor, self.regularizers)
        check_start(self.regularizers, self.start)
        if args.then_warmup < 1:
            raise UserError(
                f"then_warmup={args.then_warmup} must be at least 1: how long a new "
                "decoder or masked-language head is trained alone"
            )

    def _ways(self) -> tuple[str, ...]:
        return ("finetune", "glad", self.start.masked_task)

    def _architecture(self) -> dict[str, Any]:
        """The model of the weights; with a decoder, where a next task needs one."""
        found = self.start.model
        return weights.reshape.wanted_config(found, {}, self.args.then_by, None)

    def stages(self) -> list[dict[str, Any]]:
        """A stage for every regularizer, and of each what follows from its backbone."""
        found = []
        for regularizer in self.regularizers:
            name = f"glad_{regularizer}"
            found.append(self._glad(name, regularizer, self.args.dataset, "pretrained"))
            before = f"stage:{name}" if self.args.seeds == 1 else f"stage:{name}/seed_0"
            for number, data in enumerate(filter(None, self.args.then.split("+")), 1):
                stage = (f"{name}_then_{number}", regularizer, data, before)
                found += self._next(*stage)
        return found

    def _supervised(self, name: str, data: str, init_from: str, **changes: Any) -> dict:
        args, make = self.args, self.start.make
        few = {**shared.ALL, "per_class": args.per_class}
        test = make.labelled(data, args.test_split)
        fields = dict(
            seeds=tuple(range(args.seeds)),
            num_steps=args.steps,
            batch_size=args.batch_size,
            optim=shared.finetune_optim(lr=args.lr, warmup_steps=args.steps // 10),
            model=self._model(),
            eval=dict(
                every_steps=0, batch_size=64, data=test, metric="accuracy", mode="max"
            ),
            init_from=init_from,
        )
        section = make.labelled(data, args.split, subset=few)
        return shared.finetune_stage(name, section, {}, **{**fields, **changes})

    def _model(self, **changes: Any) -> dict[str, Any]:
        args = self.args
        options = dict(dropout=args.dropout, fresh=("head",), pooling=args.pooling)
        return {**self.start.make.model, **options, **changes}

    def _glad(
        self, name: str, regularizer: str, data: str, init_from: str, **changes: Any
    ) -> dict[str, Any]:
        args = self.args
        hidden = args.bottleneck if args.adaptor == "bottleneck" else 0
        adaptor = sections.adaptor(
            kind=args.adaptor, keywise=args.keywise, hidden=hidden
        )
        objective = sections.glad(
            self.start.make.masked(sections.NO_MIXING),
            regularizer=regularizer,
            weight=args.weight,
            preserve=args.preserve,
            stop_backbone=args.stop_backbone,
        )
        fields = dict(objective=objective, model=self._model(adaptor=adaptor))
        return self._supervised(name, data, init_from, **{**fields, **changes})

    def _next(
        self, name: str, regularizer: str, data: str, init_from: str
    ) -> list[dict[str, Any]]:
        """The backbone of GLAD as the pre-trained model of a next task."""
        args, steps = self.args, self.args.then_steps
        optim = shared.finetune_optim(lr=args.then_lr, warmup_steps=steps // 10)
        how = dict(num_steps=steps, optim=optim)
        if args.then_by == "finetune":
            return [self._supervised(name, data, init_from, **how)]
        if args.then_by == "glad":
            return [self._glad(name, regularizer, data, init_from, **how)]
        warmup = (
            [] if regularizer == "masked" else [self._warmup(name, data, init_from)]
        )
        start = f"stage:{warmup[0]['name']}" if warmup else init_from
        return [*warmup, self._masked(name, data, start, steps, args.then_lr)]

    def _masked(
        self,
        name: str,
        data: str,
        init_from: str,
        steps: int,
        lr: float,
        freeze: tuple[str, ...] = (),
        fresh: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        args, make = self.args, self.start.make
        optim = shared.pretrain_optim(lr=lr, warmup_steps=steps // 10)
        fixed = optim["freeze"] if self.start.is_image else ()
        return shared.pretrain_stage(
            name,
            make.unlabelled(data, args.split),
            objective=make.masked(sections.NO_MIXING),
            num_steps=steps,
            batch_size=args.batch_size,
            optim={**optim, "freeze": (*fixed, *freeze)},
            model={**make.model, "fresh": fresh},
            init_from=init_from,
        )

    def _warmup(self, name: str, data: str, init_from: str) -> dict[str, Any]:
        """A new decoder or head with the encoder frozen: GLAD trained none beside.

        Its rate is ours, not searched: higher, since all that learns is new.
        """
        part, _ = modality.HEADS[self.start.masked_task]
        how = (self.args.then_warmup, 5e-4, ("encoder/.*",), (part,))
        return self._masked(f"{name}_warmup", data, init_from, *how)

    def experiment(self) -> dict[str, Any]:
        args, start = self.args, self.start
        sets = [args.dataset, *filter(None, args.then.split("+"))]
        first, *more = (
            start.evaluate(one, args.split, pooling=args.pooling, compare=True)
            for one in sets
        )
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=start.known,
            model=self._architecture(),
            evaluate=first,
            more_evaluations=tuple(more),
            stages=tuple(self.stages()),
        )
