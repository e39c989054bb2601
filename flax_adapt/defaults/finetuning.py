"""The config `baseline_finetune`: every baseline from the same initial weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt import weights
from flax_adapt.base.errors import UserError, choose, reword_errors
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

# The arguments of the config baseline_finetune; its docstring explains them.
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
    """The changes that a method makes to a stage of full fine-tuning.

    penalties: sections of penalties. fields: stage -> further fields. replays: examples of
    the previous task are replayed. needs_previous: the method needs a previous task.
    compares_classes: both tasks must have the same classes. grows_head: with other classes
    the head grows by them; other methods then have a new head.
    """

    penalties: tuple[dict[str, Any], ...] = ()
    fields: Callable[[dict[str, Any]], dict[str, Any]] = lambda stage: {}
    replays: bool = False
    needs_previous: bool = False
    compares_classes: bool = False
    grows_head: bool = False


def _optim_fields(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda stage: {"optim": {**stage["optim"], **changes}}


def _lora_fields(stage: dict[str, Any]) -> dict[str, Any]:
    return {"model": {**stage["model"], "lora": baselines.lora()}}


# Every leaf of the encoder except adaptors.
_BACKBONE = r"encoder/(?!(.*/)?adaptor/).*"


def _adaptor_fields(stage: dict[str, Any]) -> dict[str, Any]:
    optim = {**stage["optim"], "freeze": (_BACKBONE,)}
    return {"model": {**stage["model"], "adaptor": sections.adaptor()}, "optim": optim}


# EWC penalises changes of the weights of the previous task; LwF, ER and DER compare with its
# predictions or labels.
METHODS = {
    "full": Sections(),
    # A head on frozen features; `Baselines._make_probe` makes its stage.
    "linear_probe": Sections(),
    # A first stage trains the head (Kumar et al. 2022), see `Baselines._make_method`.
    "lp_ft": Sections(),
    "lora": Sections(fields=_lora_fields),
    "adaptors": Sections(fields=_adaptor_fields),
    # The penalty replaces weight decay, as in Li et al. 2018.
    "l2_sp": Sections((baselines.l2_sp(),), _optim_fields(weight_decay=0.0)),
    "recadam": Sections(fields=_optim_fields(recadam=baselines.recadam())),
    "mars": Sections(fields=_optim_fields(**baselines.mars())),
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
    """The experiment of baseline_finetune, from BASELINE_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

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
        init_options = shared.describe_init(
            args.init, args.init_format, {name: args[name] for name in shared.UNKNOWN}
        )
        with reword_errors(shared.ARGUMENTS):
            kind = weights.model_config(args.init, **init_options)["kind"]
        if kind == "resnet":
            raise UserError(f"init={args.init} holds a resnet; this config takes none")
        self.is_image = kind == "vit"
        self.data = self._open_data(args.dataset)
        self.before = self._open_data(args.previous) if args.previous else None

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

    def _open_data(self, source: str) -> Any:
        """Returns S1Data or TextData of a data source, by the modality of the weights."""
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
        """Returns the stage of the previous task, if there is one, and those of all methods."""
        stages = [] if self.before is None else [self._make_previous(self.before)]
        for name in self.names:
            stages += self._make_method(name)
        return stages

    def _make_previous(self, before: Any) -> dict[str, Any]:
        fisher = baselines.fisher() if "ewc" in self.names else None
        stage = before.finetune_stage(PREVIOUS, "pretrained")
        stage = supervised.apply_settings(stage, self.args)
        return {**stage, "seeds": (0,), "fisher": fisher}

    def _make_method(self, name: str) -> list[dict[str, Any]]:
        stage = self._make_full(f"finetune_{name}")
        if name == "linear_probe":
            return [self._make_probe(stage)]
        if name == "lp_ft":
            # A head has the labels of the seed that starts from it.
            one = {"seeds": (0,)} if self.args.labels == "fixed" else {}
            head = {**stage, "name": f"{stage['name']}_head", **one}
            start = dict(
                init_from=f"stage:{head['name']}", model=self._keep_head(stage)
            )
            lrs = tuple(x * stage["optim"]["lr"] for x in baselines.LP_FT_LRS)
            sweep = (
                stage["sweep"] if self.args.lrs else supervised.make_sweep(lrs, stage)
            )
            return [self._make_probe(head), {**stage, **start, "sweep": sweep}]
        method = METHODS[name]
        changed = {**stage, "penalties": method.penalties, **method.fields(stage)}
        if method.grows_head and self.args.new_head:
            changed = self._grow_head(changed)
        return [self._add_replay(changed) if method.replays else changed]

    def _make_probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the stage with a new head on frozen features, standardised by batch norm."""
        model = stage["model"]
        make = choose("probe", self.args.probe, PROBES)
        changes = make(self, stage)
        # A trained pooler is a part of the frozen features. So is a new, random one with an
        # exact probe, which trains nothing but the head.
        stays = "pooler" not in model["fresh"] or self.args.probe == "exact"
        if model["pooling"] == "pooler" and stays:
            changes["optim"]["freeze"] += ("pooler/.*",)
        fresh = tuple(dict.fromkeys((*model["fresh"], "head")))
        options = dict(dropout=0.0, fresh=fresh, head_norm=True)
        model = {**model, **options, **changes.pop("model", {})}
        return {**stage, **changes, "model": model}

    def exact_probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the changes of a stage for a probe solved in one step; it needs no rate."""
        return dict(num_steps=1, optim=baselines.exact_probe_optim(), sweep=None)

    def lars_probe(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the changes of a stage for a probe trained by LARS, as published.

        The learning rate is chosen among `probe_lrs`.
        """
        args, size = self.args, stage["batch_size"]
        steps = max(1, args.probe_epochs * shared.count_examples(stage["data"]) // size)
        lrs = tuple(
            lr * size / 256
            for lr in supervised.parse_numbers("probe_lrs", args.probe_lrs)
        )
        # By the loss: a linear head on frozen features hardly overfits in it.
        by_loss = {**stage, "eval": dict(metric="loss", mode="min")}
        return dict(
            num_steps=steps,
            optim=baselines.probe_optim(steps, lrs[0]),
            sweep=supervised.make_sweep(lrs, by_loss),
            model=dict(head_init=baselines.HEAD_INIT),
        )

    def _make_full(self, name: str) -> dict[str, Any]:
        """Returns full fine-tuning, from the initial weights or from the previous task."""
        start = "pretrained" if self.before is None else OF
        stage = supervised.apply_settings(
            self.data.finetune_stage(name, start), self.args
        )
        stage = supervised.add_sweep(stage, self.args.lrs)
        if self.before is not None and not self.args.new_head:
            stage["model"] = self._keep_head(stage)
        return stage

    def _keep_head(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the section `model` of a stage that keeps the head of its weights."""
        return {**stage["model"], "fresh": ()}

    def _add_replay(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the stage with replay: half of each batch is of the previous task."""
        assert self.before is not None
        size = self.args.buffer_size
        replay = sections.replay(self.before.labelled, 1.0, buffer_size=size)
        return {**stage, "replay": replay, "batch_size": 2 * stage["batch_size"]}

    def _grow_head(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the stage with one head: classes of the previous task, then the new ones."""
        assert self.before is not None
        classes = shared.class_names(self.before.labelled, stage["data"])
        train, test = (
            {**section, "classes": classes}
            for section in (stage["data"], stage["eval"]["data"])
        )
        model = {**self._keep_head(stage), "grow_head": True}
        evaluation = {**stage["eval"], "data": test}
        return {**stage, "data": train, "eval": evaluation, "model": model}

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        return self.data.experiment(self.stages())


# How the head of linear_probe and of lp_ft is trained.
PROBES: dict[str, Callable[[Baselines, dict[str, Any]], dict[str, Any]]] = {
    "exact": Baselines.exact_probe,
    "lars": Baselines.lars_probe,
}
