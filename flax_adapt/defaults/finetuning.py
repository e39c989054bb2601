"""Fine-tuning by every baseline from the same weights, of images and of texts."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt import weights
from flax_adapt.base.errors import UserError, choose, reworded
from flax_adapt.defaults import (
    baselines,
    sections,
    shared,
    supervised,
    text,
    vision,
)

PREVIOUS = "finetune_previous"
OF = f"stage:{PREVIOUS}"

# The arguments of baseline_finetune, which explains them.
BASELINE_ARGUMENTS = dict(
    {k: v for k, v in vision.S1_ARGUMENTS.items() if k not in ("dataset", "augment")},
    dataset="",
    method="full",
    previous="",
    new_head=False,
    buffer_size=200,
    probe="exact",
    probe_epochs=90,
    probe_lrs="0.1+1+10+100+1000",
    seq_len=128,
    text_field="text",
    pair_field="",
    label_field="label",
    **supervised.SUPERVISED_ARGUMENTS,
)


class Sections(NamedTuple):
    """What a method adds to a stage: penalties, fields, replay of the task before.

    needs_previous: the method holds on to a task before. compares_classes: both tasks
    have the same classes. grows_head: the head grows by the classes of the new task; that
    of other methods is new.
    """

    penalties: tuple[dict[str, Any], ...] = ()
    fields: Callable[[dict[str, Any]], dict[str, Any]] = lambda stage: {}
    replays: bool = False
    needs_previous: bool = False
    compares_classes: bool = False
    grows_head: bool = False


def _optim(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda stage: {"optim": {**stage["optim"], **changes}}


def _lora(stage: dict[str, Any]) -> dict[str, Any]:
    return {"model": {**stage["model"], "lora": baselines.lora()}}


# Every leaf of the encoder except adaptors.
_BACKBONE = r"encoder/(?!(.*/)?adaptor/).*"


def _adaptors(stage: dict[str, Any]) -> dict[str, Any]:
    optim = {**stage["optim"], "freeze": (_BACKBONE,)}
    return {"model": {**stage["model"], "adaptor": sections.adaptor()}, "optim": optim}


# EWC holds weights of the task before; LwF, ER and DER its predictions or labels.
METHODS = {
    "full": Sections(),
    # A head on frozen features, by settings of its own.
    "linear_probe": Sections(),
    # Its head is fitted first, by a stage of its own (Kumar et al. 2022).
    "lp_ft": Sections(),
    "lora": Sections(fields=_lora),
    "adaptors": Sections(fields=_adaptors),
    # In the place of weight decay, as Li et al. have it.
    "l2_sp": Sections((baselines.l2_sp(),), _optim(weight_decay=0.0)),
    "recadam": Sections(fields=_optim(recadam=baselines.recadam())),
    "mars": Sections(fields=_optim(**baselines.mars())),
    "r3f": Sections((baselines.r3f(),)),
    "ema": Sections(fields=lambda stage: {"ema": baselines.ema()}),
    "ewc": Sections((baselines.ewc(OF),), needs_previous=True),
    "lwf": Sections((baselines.lwf(OF),), needs_previous=True, grows_head=True),
    "er": Sections(
        (baselines.er(),), replays=True, needs_previous=True, compares_classes=True
    ),
    # DER++: both terms.
    "der": Sections(
        (baselines.der((OF,)), baselines.er(weight=0.5)),
        replays=True,
        needs_previous=True,
        compares_classes=True,
    ),
}


class Baselines:
    """The experiment of baseline_finetune, from BASELINE_ARGUMENTS."""

    def __init__(self, args: Any):
        if not (args.dataset and args.init):
            raise UserError(
                "the config needs dataset=SOURCE and init=PATH, weights of a ViT, BERT or "
                "RoBERTa"
            )
        if args.new_head and not args.previous:
            raise UserError(
                "new_head=True is of a task after another: give previous=SOURCE too; "
                "without one the head is new anyway"
            )
        self.args, self.names = args, args.method.split("+")
        for name in self.names:
            self._check(name, choose("method", name, METHODS))
        told = shared.describe_init(
            args.init, args.init_format, {name: args[name] for name in shared.UNKNOWN}
        )
        with reworded(shared.ARGUMENTS):
            kind = weights.model_config(args.init, **told)["kind"]
        if kind == "resnet":
            raise UserError(f"init={args.init} holds a resnet; this config takes none")
        self.is_image = kind == "vit"
        self.data = self._open(args.dataset)
        self.before = self._open(args.previous) if args.previous else None

    def _check(self, name: str, method: Sections) -> None:
        if method.needs_previous and not self.args.previous:
            raise UserError(
                f"method={name} holds on to a task before: give previous=SOURCE, a data "
                "set that is learnt first"
            )
        if method.compares_classes and self.args.new_head:
            raise UserError(
                f"method={name} replays examples of the same classes, so that the head "
                "stays: leave new_head=False, or take method=lwf"
            )

    def _open(self, source: str) -> Any:
        """Returns the sections of a data set, as the configs of its modality make them."""
        own, make = (
            (vision.S1_ARGUMENTS, vision.S1Data)
            if self.is_image
            else (text.TEXT_ARGUMENTS, text.TextData)
        )
        known = {name: self.args[name] for name in own if name in self.args}
        if not self.is_image:
            known["pooling"] = supervised.pooling_of("text", self.args.pooling)
        return make(ConfigDict({**own, **known, "dataset": source}))

    def stages(self) -> list[dict[str, Any]]:
        """Returns the task before, if there is one; then the stages of every method."""
        stages = [] if self.before is None else [self._previous(self.before)]
        for name in self.names:
            stages += self._method(name)
        return stages

    def _previous(self, before: Any) -> dict[str, Any]:
        fisher = baselines.fisher() if "ewc" in self.names else None
        stage = before.finetune_stage(PREVIOUS, "pretrained")
        stage = supervised.settled(stage, self.args)
        return {**stage, "seeds": (0,), "fisher": fisher}

    def _method(self, name: str) -> list[dict[str, Any]]:
        stage = self._plain(f"finetune_{name}")
        if name == "linear_probe":
            return [self._probe(stage)]
        if name == "lp_ft":
            head = {**stage, "name": f"{stage['name']}_head", "seeds": (0,)}
            start = dict(init_from=f"stage:{head['name']}", model=self._kept(stage))
            lrs = tuple(x * stage["optim"]["lr"] for x in baselines.LP_FT_LRS)
            sweep = stage["sweep"] if self.args.lrs else supervised.sweep(lrs, stage)
            return [self._probe(head), {**stage, **start, "sweep": sweep}]
        method = METHODS[name]
        changed = {**stage, "penalties": method.penalties, **method.fields(stage)}
        if method.grows_head and self.args.new_head:
            changed = self._growing(changed)
        return [self._replaying(changed) if method.replays else changed]

    def _probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """A new head on features that are frozen, and standardised by batch norm."""
        model = stage["model"]
        make = choose("probe", self.args.probe, PROBES)
        changes = make(self, stage)
        # A pooler that was learnt is a part of the features; so is a new one, drawn at
        # random, where the head is solved for.
        stays = "pooler" not in model["fresh"] or self.args.probe == "exact"
        if model["pooling"] == "pooler" and stays:
            changes["optim"]["freeze"] += ("pooler/.*",)
        fresh = tuple(dict.fromkeys((*model["fresh"], "head")))
        options = dict(dropout=0.0, fresh=fresh, head_norm=True)
        model = {**model, **options, **changes.pop("model", {})}
        return {**stage, **changes, "model": model}

    def exact_probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Solved in one step; nothing of it is a rate to choose."""
        return dict(num_steps=1, optim=baselines.exact_probe_optim(), sweep=None)

    def lars_probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """As published: by LARS, with a rate that is chosen."""
        args, size = self.args, stage["batch_size"]
        steps = max(1, args.probe_epochs * shared.count_examples(stage["data"]) // size)
        lrs = tuple(
            lr * size / 256 for lr in supervised.numbers("probe_lrs", args.probe_lrs)
        )
        # By the loss, which a head that is fitted to frozen features does not outgrow.
        by_loss = {**stage, "eval": dict(metric="loss", mode="min")}
        return dict(
            num_steps=steps,
            optim=baselines.probe_optim(steps, lrs[0]),
            sweep=supervised.sweep(lrs, by_loss),
            model=dict(head_init=baselines.HEAD_INIT),
        )

    def _plain(self, name: str) -> dict[str, Any]:
        """Full fine-tuning, from the weights or from the task before."""
        start = "pretrained" if self.before is None else OF
        stage = supervised.settled(self.data.finetune_stage(name, start), self.args)
        stage = supervised.swept(stage, self.args.lrs)
        if self.before is not None and not self.args.new_head:
            stage["model"] = self._kept(stage)
        return stage

    def _kept(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the section `model` of a stage that keeps the head of its weights."""
        return {**stage["model"], "fresh": ()}

    def _replaying(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the stage with as many replayed examples in a batch as new ones."""
        assert self.before is not None
        size = self.args.buffer_size
        replay = sections.replay(self.before.labelled, 1.0, buffer_size=size)
        return {**stage, "replay": replay, "batch_size": 2 * stage["batch_size"]}

    def _growing(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the stage with one head: the classes of the task before, then the new."""
        assert self.before is not None
        classes = shared.class_names(self.before.labelled, stage["data"])
        train, test = (
            {**section, "classes": classes}
            for section in (stage["data"], stage["eval"]["data"])
        )
        model = {**self._kept(stage), "grow_head": True}
        evaluation = {**stage["eval"], "data": test}
        return {**stage, "data": train, "eval": evaluation, "model": model}

    def experiment(self) -> dict[str, Any]:
        return self.data.experiment(self.stages())


# How the head of linear_probe and of lp_ft is found.
PROBES: dict[str, Callable[[Baselines, dict[str, Any]], dict[str, Any]]] = {
    "exact": Baselines.exact_probe,
    "lars": Baselines.lars_probe,
}
