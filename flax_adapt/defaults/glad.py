"""The config `glad_finetune`: GLAD fine-tuning, and next tasks from its backbone.

S4, Yoon et al. 2023; see docs/methods/glad.md.
"""

from collections.abc import Sequence
from typing import Any

from flax_adapt import weights
from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import modality, sections, shared, supervised, text
from flax_adapt.models.adaptors import KINDS
from flax_adapt.objectives.glad import PRESERVED, REGULARIZERS

# The arguments of the config glad_finetune; its docstring explains them.
GLAD_ARGUMENTS = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    dataset="",
    regularizer="preserve",
    weight=1.0,
    preserve="features",
    stop_backbone=False,
    adaptor="vector",
    keywise=False,
    bottleneck=sections.BOTTLENECK,
    then="",
    then_by="finetune",
    then_warmup=500,
    then_steps=500,
    then_lr=1e-4,
    **supervised.SUPERVISED_ARGUMENTS,
)

# Batch size of a next task that is learnt by masked modelling (ours).
MASKED_BATCH = 32


def check_names(adaptor: str, regularizers: Sequence[str]) -> None:
    """Raises UserError for an unknown adaptor or regularizer."""
    choose("adaptor", adaptor, KINDS)
    for name in regularizers:
        choose("regularizer", name, REGULARIZERS)


def check_start(regularizers: Sequence[str], start: modality.Start) -> None:
    """Raises UserError where the initial weights lack the head that a regularizer trains."""
    if "masked" in regularizers:
        start.check_head(start.masked_task, "regularizer=masked goes on with")


class Glad:
    """The experiment of glad_finetune, from GLAD_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    def __init__(self, args: Any):
        if not (args.dataset and args.init):
            raise UserError(
                "the config needs dataset=DATA with labels and init=PATH of weights"
            )
        # The data sections of the next tasks depend on their objective.
        self.args = args
        self.start = modality.open_transformer(args, objective=args.then_by)
        choose("preserve", args.preserve, PRESERVED)
        choose("then_by", args.then_by, dict.fromkeys(self._next_objectives()))
        self.regularizers = args.regularizer.split("+")
        check_names(args.adaptor, self.regularizers)
        check_start(self.regularizers, self.start)
        if args.then_warmup < 1:
            raise UserError(
                f"then_warmup={args.then_warmup} must be at least 1: how long a new "
                "decoder or masked-language head is trained alone"
            )

    def _next_objectives(self) -> tuple[str, ...]:
        return ("finetune", "glad", self.start.masked_task)

    def _architecture(self) -> dict[str, Any]:
        """Returns the model section of the weights, with a decoder if then_by needs one."""
        found = self.start.model
        return weights.reshape.resized_config(found, {}, self.args.then_by, None)

    def stages(self) -> list[dict[str, Any]]:
        """Returns a stage for every regularizer, each followed by the next tasks."""
        found = []
        for regularizer in self.regularizers:
            name = f"glad_{regularizer}"
            stage = self._make_glad(name, regularizer, self.args.dataset, "pretrained")
            found.append(supervised.add_sweep(stage, self.args.lrs))
            before = f"stage:{name}" if self.args.seeds == 1 else f"stage:{name}/seed_0"
            for number, data in enumerate(filter(None, self.args.then.split("+")), 1):
                following = f"{name}_then_{number}"
                found += self._make_next(following, regularizer, data, before)
        return found

    def _make_supervised(
        self, name: str, data: str, init_from: str, **changes: Any
    ) -> dict:
        """Returns supervised training on `data`, with the settings that all stages share."""
        args, make = self.args, self.start.make
        few = shared.few(args.per_class, args.labels)
        train = make.labelled_data(data, args.split, subset=few)
        test = make.labelled_data(data, args.test_split)
        stage = supervised.make_stage(name, train, test, args)
        return {**stage, "init_from": init_from, **changes}

    def _make_glad(
        self, name: str, regularizer: str, data: str, init_from: str
    ) -> dict[str, Any]:
        args = self.args
        adaptor = sections.adaptor_of(
            args.adaptor, args.bottleneck, keywise=args.keywise
        )
        objective = sections.glad(
            self.start.make.masked_objective(sections.NO_MIXING),
            regularizer=regularizer,
            weight=args.weight,
            preserve=args.preserve,
            stop_backbone=args.stop_backbone,
        )
        stage = self._make_supervised(name, data, init_from, objective=objective)
        return {**stage, "model": {**stage["model"], "adaptor": adaptor}}

    def _make_next(
        self, name: str, regularizer: str, data: str, init_from: str
    ) -> list[dict[str, Any]]:
        """Returns the stages of a next task, from the backbone that GLAD has trained."""
        args, sizes = self.args, dict(steps=self.args.then_steps, lr=self.args.then_lr)
        if args.then_by == "finetune":
            return [
                supervised.change_sizes(
                    self._make_supervised(name, data, init_from), **sizes
                )
            ]
        if args.then_by == "glad":
            stage = self._make_glad(name, regularizer, data, init_from)
            return [supervised.change_sizes(stage, **sizes)]
        warmup = (
            []
            if regularizer == "masked"
            else [self._make_warmup(name, data, init_from)]
        )
        start = f"stage:{warmup[0]['name']}" if warmup else init_from
        return [
            *warmup,
            self._make_masked(name, data, start, args.then_steps, args.then_lr),
        ]

    def _make_masked(
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
            make.unlabelled_data(data, args.split),
            objective=make.masked_objective(sections.NO_MIXING),
            num_steps=steps,
            batch_size=args.batch_size or MASKED_BATCH,
            optim={**optim, "freeze": (*fixed, *freeze)},
            model={**make.model, "fresh": fresh},
            init_from=init_from,
        )

    def _make_warmup(self, name: str, data: str, init_from: str) -> dict[str, Any]:
        """Returns the stage that trains a new decoder or head with the encoder frozen.

        Regularizers other than "masked" need it, since they train no decoder. Its rate is
        ours, not searched: higher, since all parameters that train are new.
        """
        part, _ = modality.HEADS[self.start.masked_task]
        how = (self.args.then_warmup, 5e-4, ("encoder/.*",), (part,))
        return self._make_masked(f"{name}_warmup", data, init_from, *how)

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        args, start = self.args, self.start
        modality = "image" if start.is_image else "text"
        state = text.STATES[supervised.pooling_of(modality, args.pooling)]
        sets = [args.dataset, *filter(None, args.then.split("+"))]
        changes = dict(pooling=state, compare=True)
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=start.known,
            model=self._architecture(),
            **start.evaluate_all(sets, args.split, **changes),
            stages=tuple(self.stages()),
        )
