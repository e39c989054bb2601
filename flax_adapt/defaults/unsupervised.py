"""The config `unsup_finetune`: unsupervised fine-tuning with replay and mixing.

S2, Li et al. 2021; see docs/methods/unsupervised.md. The paper's loss, ratios and operators
are not known: the methods and their values are ours, those of the contrastive objective
after MoCo-v3 (Chen et al. 2021, official code).
"""

from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import modality, sections, shared
from flax_adapt.objectives import mixing


class Method(NamedTuple):
    """A method: whether it replays source examples, mixes examples, freezes the encoder."""

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


# The arguments of the config unsup_finetune; its docstring explains them.
UNSUPERVISED_ARGUMENTS = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    dataset="",
    drift_split="",
    label_split="train",
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
    seeds=1,
    steps=1_000,
    batch_size=64,
    lr=1.5e-4,
)


class Unsupervised:
    """The experiment of unsup_finetune, from UNSUPERVISED_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    def __init__(self, args: Any):
        _check_needed(args)
        self.args, self.start = (
            args,
            modality.open_transformer(args, objective=args.objective),
        )
        self.make = self.start.make
        self.form = choose("form", args.form, modality.FORMS)
        choose("operator", args.operator, dict.fromkeys(("mixup", "cutmix")))
        choose("pairing", args.pairing, {"": None, **mixing.PAIRINGS})
        choose("reading", args.reading, {"": None, **mixing.READINGS})
        self.start.choose_objective(self.start.make.objectives)
        self.contrasts = args.objective == "contrast"

    def stages(self) -> list[dict[str, Any]]:
        """Returns a stage for every method, each from `init` and with the same seeds."""
        names = self.args.method.split("+")
        return [
            self._make_stage(name, choose("method", name, METHODS)) for name in names
        ]

    def _make_stage(self, name: str, method: Method) -> dict[str, Any]:
        args, make = self.args, self.make
        target, model = make.unlabelled_data(args.dataset, args.split), make.model
        if self.contrasts:
            heads = sections.projector(**{"hidden": args.hidden, **self.form.heads})
            target = make.add_views(target)
            model = {**model, "fresh": self.form.fresh, "projector": heads}
        return shared.pretrain_stage(
            name,
            target,
            seeds=tuple(range(args.seeds)),
            objective=self._make_objective(method),
            num_steps=args.steps,
            batch_size=args.batch_size,
            replay=self._make_replay(method),
            optim=self.start.optim(freezes=method.freezes),
            model=model,
        )

    def _make_objective(self, method: Method) -> dict[str, Any]:
        if not self.contrasts:
            return self.make.masked_objective(self._make_mixing(method, "instance"))
        return sections.contrast(
            form=self.args.form,
            queue_size=self.args.queue_size,
            mixing=self._make_mixing(method, "imix"),
            **self.form.objective,
        )

    def _make_mixing(self, method: Method, reading: str) -> dict[str, Any]:
        """Returns the section `mixing`; by default replay mixes target with source examples.

        reading: the default of the argument `reading`.
        """
        args = self.args
        pairing = "target_source" if method.replays else "target_target"
        return dict(
            operator=args.operator if method.mixes else "none",
            alpha=args.alpha,
            pairing=args.pairing or pairing,
            reading=args.reading or reading,
        )

    def _make_replay(self, method: Method) -> dict[str, Any] | None:
        args = self.args
        if not method.replays:
            return None
        source = self.make.unlabelled_data(args.source, args.source_split)
        return sections.replay(source, args.rho, sampling=args.sampling)

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages; without a source no drift is measured."""
        args = self.args
        split = "drift_split" if args.drift_split else "source_split"
        source = self.start.measured_source(split)
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=self.start.known,
            model=self.start.model,
            evaluate=self.start.evaluate(args.dataset, args.label_split, source=source),
            stages=tuple(self.stages()),
        )


def _check_needed(args: Any) -> None:
    """Raises UserError where a data set or the weights are missing.

    Methods that replay nothing need no source.
    """
    names = args.method.split("+")
    replaying = [name for name in names if choose("method", name, METHODS).replays]
    if not (args.dataset and args.init):
        source = "source=SOURCE (what the weights were pre-trained on)"
        parts = ("dataset=TARGET", *([source] if replaying else []))
        raise UserError(
            f"the config needs {', '.join(parts)} and init=PATH of the weights"
        )
    if replaying and not args.source:
        others = [name for name, method in METHODS.items() if not method.replays]
        raise UserError(
            f"method={'+'.join(replaying)} replays examples of what the weights were "
            f"pre-trained on: the config needs source=SOURCE; {', '.join(others)} need none"
        )
