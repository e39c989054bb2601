"""The config `adapt`: own data without labels, and with few, in separate sources.

The recipes are those of the other configs: further masked pre-training and self-distillation
(Lee et al. 2023), contrast (MoCo-v3, Chen et al. 2021), replay of the source (Li et al.
2021). Their numbers of steps follow the size of the data, see `sizes_of`. What is handed
over is chosen among the stages that CANDIDATES names (`experiment.handover`).
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import weights
from flax_adapt.base.errors import UserError, choose, reword_errors
from flax_adapt.data import source as sources
from flax_adapt.defaults import (
    augment,
    baselines,
    modality,
    sections,
    shared,
    text,
)
from flax_adapt.defaults.adapting import data, sizes
from flax_adapt.defaults.adapting.sizes import Sizes
from flax_adapt.defaults.texts.optim import text_optim

# The arguments of the config adapt; its docstring explains them.
ADAPT_ARGUMENTS: dict[str, Any] = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    unlabelled="",
    labelled="",
    test="",
    method="auto",
    sizes="auto",
    rounds=1,
    hidden=4096,
    finetune_steps=0,
    finetune_batch_size=0,
    finetune_lr=0.0,
    new_part_steps=0,
    steps=0,
    batch_size=0,
    lr=0.0,
    seeds=1,
    augment="",
    precision="auto",
)
# Splits are named as in SOURCE@SPLIT; all labels are used.
for _name in ("split", "test_split", "source_split", "per_class", "labels"):
    del ADAPT_ARGUMENTS[_name]

METHODS = ("none", "further", "self_distill", "contrast", "replay")
# Rates that are tried, as factors of the recipe's (ours).
LRS = (0.3, 1.0, 5.0)
# Candidates of a backbone, from the one that changes least: how a head gets on it.
CANDIDATES = ("probe", "lp_ft", "full")


class Adapting:
    """The experiment of adapt, from ADAPT_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    @sources.keep_open()
    def __init__(self, args: Any):
        if not args.init or not (args.unlabelled or args.labelled):
            raise UserError(
                "the config needs init=MODEL, weights of a ViT or text encoder, and "
                "unlabelled=SOURCE or labelled=SOURCE, as in folder:PATH or csv:FILE"
            )
        choose("method", args.method, dict.fromkeys(("auto", *METHODS)))
        self.args, self.method = args, args.method
        data.check_schemes(args)
        first = args.unlabelled or args.labelled
        known = dict(dataset=first.partition("@")[0], split="train", per_class=0)
        known |= dict(seq_len=args.seq_len)
        objective = "contrast" if args.method == "contrast" else "mlm"
        with reword_errors({rf"^{re.escape(args.init)}: ": f"init={args.init}: "}):
            start = modality.open_start(
                ConfigDict({**args, **known}), objective=objective
            )
        if not start.is_transformer:
            raise UserError(
                f"init={args.init} holds a ResNet; adapt takes a ViT or text encoder: "
                "`flax-adapt run --config=unsup_finetune:objective=contrast,...` adapts a ResNet"
            )
        self.start = start._replace(
            objective="contrast" if objective == "contrast" else start.masked_task
        )
        if (
            start.is_image and self.start.objective == "mae"
        ):  # a missing decoder's sizes
            same = dict.fromkeys(weights.reshape.FIELDS)
            whole = weights.reshape.resized_config(start.model, same, "mae", None)
            self.start = self.start._replace(model=whole)
        self.make = start.make
        self._check_method()
        found = data.open_sections(args, self.make)
        self.unlabelled, self.labelled, self.test, self.source = found
        self.sizes: Sizes = sizes.sizes_of(self)

    def _check_method(self) -> None:
        args = self.args
        if self.method == "auto":
            adapts = "replay" if args.source else "self_distill"
            self.method = adapts if args.unlabelled else "none"
        if self.method != "none" and not args.unlabelled:
            raise UserError(
                f"method={self.method} trains without labels: give unlabelled=SOURCE, or "
                "method=none to choose among ways of fine-tuning alone"
            )
        if self.method == "replay" and not args.source:
            raise UserError(
                "method=replay trains on data that the weights were pre-trained on, too: "
                "give source=SOURCE, or another method"
            )
        if args.watch and self.method == "none":
            raise UserError(
                f"watch={args.watch} keeps the best state of training without labels, and "
                "there is none: give unlabelled=SOURCE and a method other than none, or leave "
                "watch out; what is fine-tuned is chosen by held-out labels without it"
            )
        if "target/" in args.watch and not args.labelled:
            raise UserError(
                f"watch={args.watch} reads labels: give labelled=SOURCE, or watch "
                "held_out/loss or pool/rankme"
            )

    def stages(self) -> list[dict[str, Any]]:
        """Returns training without labels, then the candidates from either backbone."""
        found = self._adapt()
        if self.labelled is None and not found:
            raise UserError(
                f"method={self.method} trains nothing without labels: give labelled=SOURCE, "
                "or another method"
            )
        if self.labelled is None:
            return found
        found += self._candidates("start", "pretrained")
        if self.method != "none":
            found += self._candidates("adapted", f"stage:{found_name(found)}")
        return found

    def _adapt(self) -> list[dict[str, Any]]:
        """Returns the stages that train without labels; the last one is the result."""
        if self.method == "none":
            return []
        new, start = self._new_part()
        name = "adapt" if self.method != "self_distill" else "further"
        first = self._unlabelled_stage(name, init_from=start)
        if self.method != "self_distill":
            return [*new, first]
        stages, teacher = [*new, first], name
        for number in range(1, self.args.rounds + 1):
            section = self._unlabelled_stage(f"distill_{number}", init_from=start)
            objective = sections.distill(section["objective"])
            objective["state"] = "cls" if self.start.is_image else "mean"
            fields = dict(objective=objective, teacher=f"stage:{teacher}")
            stages.append({**section, **fields})
            teacher = f"distill_{number}"
        return stages

    def _unlabelled_stage(self, name: str, **changes: Any) -> dict[str, Any]:
        assert self.unlabelled is not None
        sizes, target, model = self.sizes, self.unlabelled, self.make.model
        contrasts = self.start.objective == "contrast"
        if contrasts:
            heads = sections.projector(**{"hidden": self.args.hidden})
            target = self.make.add_views(target)
            form = modality.FORMS["moco_v3"]
            model = {**model, "fresh": form.fresh, "projector": heads}
            objective = sections.contrast(**form.objective)
        else:
            objective = self.make.masked_objective(sections.NO_MIXING)
        replays = self.method == "replay"
        fields = dict(
            objective=objective,
            num_steps=sizes.steps,
            batch_size=sizes.batch_size,
            optim=self._optim(sizes.steps),
            model=model,
            replay=sections.replay(self.source, 1.0) if replays else None,
        )
        return shared.pretrain_stage(name, target, **{**fields, **changes})

    def _optim(self, steps: int) -> dict[str, Any]:
        lr = self.sizes.lr
        if self.start.objective == "contrast":
            known = dict(steps=steps, lr=lr, batch_size=self.sizes.batch_size)
            args = ConfigDict({**self.args, **known})
            return self.start._replace(args=args).optim(freezes=False)
        if self.start.is_image:
            return shared.pretrain_optim(lr=lr)
        return text_optim(steps, lr=lr)

    def _new_part(self) -> tuple[list[dict[str, Any]], str]:
        """Returns the stage that trains a missing decoder or head, or none, and the start."""
        part = {"mae": "decoder", "mlm": "mlm"}.get(self.start.objective, "")
        args, options = self.args, self.start.init_options
        if not part or part in weights.parts(
            args.init, self.start.objective, **options
        ):
            return [], "pretrained"
        name, steps = f"{part}_warmup", self.sizes.new_part_steps
        frozen = (
            (r".*/position", r"encoder/.*") if part == "decoder" else ("encoder/.*",)
        )
        stage = self._unlabelled_stage(name, num_steps=steps)
        optim = {**self._optim(steps), "lr": 5e-4 if part == "decoder" else 1e-3}
        optim |= dict(freeze=frozen, warmup_steps=steps // 20)
        model = {**stage["model"], "fresh": (part,)}
        fields = dict(optim=optim, model=model, replay=None)
        return [{**stage, **fields}], f"stage:{name}"

    def _candidates(self, backbone: str, init_from: str) -> list[dict[str, Any]]:
        """Returns a linear probe, LP-FT from it, and full fine-tuning of a backbone."""
        full = self._finetune(f"full_{backbone}", init_from)
        lr, head = full["optim"]["lr"], f"probe_{backbone}"
        model = {**full["model"], "dropout": 0.0, "head_norm": True}
        optim = baselines.exact_probe_optim()
        probe = {**full, "name": head, "num_steps": 1, "optim": optim, "model": model}
        stays = {**full["model"], "fresh": ()}
        name, start = f"lp_ft_{backbone}", f"stage:{head}"
        lp_ft = {**full, "name": name, "init_from": start, "model": stays}
        return [
            probe,
            _add_rates(lp_ft, tuple(x * lr for x in baselines.LP_FT_LRS)),
            _add_rates(full, tuple(x * lr for x in LRS)),
        ]

    def _finetune(self, name: str, init_from: str) -> dict[str, Any]:
        assert self.labelled is not None
        assert self.test is not None
        sizes, args = self.sizes, self.args
        fields = dict(
            init_from=init_from,
            seeds=tuple(range(args.seeds)),
            num_steps=sizes.finetune_steps,
            batch_size=sizes.finetune_batch_size,
        )
        if self.start.is_image:
            labelled = {**self.labelled, "augment": augment.section_of(args.augment)}
            stage = shared.finetune_stage(name, labelled, self.test, **fields)
            warmup = sizes.finetune_steps // 20
        else:
            augment.check_texts(args.augment)
            make, warmup = text.text_finetune_stage, sizes.finetune_steps * 6 // 100
            stage = make(name, self.labelled, self.test, "mean", **fields)
        optim = {**stage["optim"], "lr": sizes.finetune_lr, "warmup_steps": warmup}
        evaluation = {**stage["eval"], "every_steps": 0}
        return {**stage, "optim": optim, "eval": evaluation}

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        train = self.labelled or self.unlabelled
        assert train is not None  # one of them is asked for
        stages = self.stages()
        whole = shared.experiment(
            init=self.args.init,
            init_format=self.args.init_format,
            init_known=self.start.known,
            model=self.start.model,
            evaluate=self._evaluate(stages, train, self.test or train),
            stages=tuple(stages),
        )
        return {**whole, "precision": self.args.precision}

    def _evaluate(
        self,
        stages: list[dict[str, Any]],
        train: dict[str, Any],
        test: dict[str, Any],
    ) -> dict[str, Any]:
        """Returns the evaluation; with a source, what adapting did to it, see `forgetting`."""
        if self.source is None:
            return shared.evaluate(train, test)
        source = data.measured_source(self.args, self.make, self.source)
        if test["modality"] == "text":  # that of the data without labels may be packed
            train, test = ({**one, "layout": "padded"} for one in (train, test))
        adapted = () if self.method == "none" else (found_name(stages),)
        fields = dict(source=source, stages=adapted)
        return shared.evaluate(train, self.make.add_views(test), **fields)


def found_name(stages: list[dict[str, Any]]) -> str:
    """Returns the name of the last stage that trains without labels."""
    labelled = ("classify", "regress")
    return [s["name"] for s in stages if s["objective"]["name"] not in labelled][-1]


def _add_rates(stage: dict[str, Any], lrs: tuple[float, ...]) -> dict[str, Any]:
    """Returns the stage with a choice among learning rates by held-out labels."""
    how: Mapping[str, Any] = {name: stage["eval"][name] for name in ("metric", "mode")}
    optim = {**stage["optim"], "lr": lrs[0]}
    return {**stage, "optim": optim, "sweep": sections.sweep(lrs, **how)}
