"""A sequence of domains, and the transfer of what was learned after each (METHODS S4)."""

from pathlib import PurePath
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.defaults import baselines, modality, sections, shared, vision
from flax_adapt.defaults.glad import check_names, check_start

# The arguments of continual_pretrain, which explains them.
CONTINUAL_ARGUMENTS = dict(
    domains="",
    also="",
    init="",
    init_format="",
    **shared.UNKNOWN,
    data_dir="",
    split="train",
    label_split="train",
    test_split="test",
    per_class=0,
    objective="mae",
    rho=0.0,
    joint=True,
    steps=1_000,
    batch_size=64,
    lr=1.5e-4,
    finetune=True,
    finetune_steps=500,
    finetune_batch_size=32,
    finetune_lr=1e-4,
    seeds=3,
    adaptor="vector",
    regularizer="preserve",
    weight=1.0,
    pooling="cls",
    min_crop_area=0.08,
    seq_len=128,
    text_field="text",
    label_field="label",
)
START, JOINT = "pretrained", "joint"
# How a supervised sequence learns: a new head for each task; one that grows; GLAD.
SUPERVISED = ("classify", "grow", "glad")


def short(source: str) -> str:
    """A name for stages: tfds:pacs_photo -> pacs_photo, folder:a/b -> b."""
    return PurePath(source.partition(":")[2].replace(":", "_")).stem or source


class Continual:
    """What continual_pretrain makes of CONTINUAL_ARGUMENTS."""

    def __init__(self, args: Any):
        if not (args.domains and args.init):
            raise UserError(
                "the config needs domains=A+B+..., learned in that order, and init=PATH "
                "of weights"
            )
        self.args, self.start = (
            args,
            modality.transformer(args, objective=args.objective),
        )
        self.start.choose_objective((self.start.masked_task, *SUPERVISED))
        self.learned = [vision.dataset(one) if self.start.is_image else one
                        for one in args.domains.split("+")]  # fmt: skip
        self.domains = [*self.learned, *filter(None, args.also.split("+"))]
        self.names = [short(one) for one in self.domains]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"domains and also need different names, not {self.names}")
        self.supervised = args.objective in SUPERVISED
        self._check()

    def _check(self) -> None:
        """The arguments that not every objective can have."""
        args, masked = self.args, self.start.masked_task
        check_names(args.adaptor, (args.regularizer,))
        if args.objective == "glad":
            check_start((args.regularizer,), self.start)
        if args.rho and args.objective in ("classify", "glad"):
            raise UserError(
                f"rho={args.rho} replays earlier domains, but objective={args.objective} "
                f"drops the head of their classes: use objective=grow or {masked}, or rho=0"
            )

    def tasks(self) -> list[str]:
        """The stages of the sequence, in order."""
        pairs = zip(self.names, self.learned, strict=False)
        return [f"task_{t}_{name}" for t, (name, _) in enumerate(pairs, start=1)]

    def rows(self) -> list[str]:
        return [START, *self.tasks()]

    def others(self) -> list[str]:
        return [JOINT] if self.args.joint and not self.supervised else []

    def stages(self) -> list[dict[str, Any]]:
        """The sequence, each from the one before; then joint; then every cell."""
        found, before = [], START
        for t, name in enumerate(self.tasks()):
            found.append(self._learn(name, t, before))
            before = f"stage:{name}"
        found += [self._joint() for _ in self.others()]
        if self.args.finetune:
            for model in (*self.rows(), *self.others()):
                found += [self._cell(model, d) for d in range(len(self.domains))]
        return found

    def _learn(self, name: str, t: int, init_from: str) -> dict[str, Any]:
        if self.supervised:
            return self._supervised(name, t, init_from)
        replay = self._replay(*(self._unlabelled(d) for d in range(t)))
        return self._masked(name, self._unlabelled(t), replay, init_from)

    def _replay(self, *earlier: dict[str, Any]) -> dict[str, Any] | None:
        rho = self.args.rho
        return sections.replay(earlier, rho) if rho and earlier else None

    def _unlabelled(self, d: int) -> dict[str, Any]:
        return self.start.make.unlabelled(self.domains[d], self.args.split)

    def _labelled(self, d: int, split: str, **changes: Any) -> dict[str, Any]:
        return self.start.make.labelled(self.domains[d], split, **changes)

    def _masked(
        self, name: str, section: dict[str, Any], replay: Any, init_from: str
    ) -> dict[str, Any]:
        args = self.args
        return shared.pretrain_stage(
            name,
            section,
            objective=self.start.make.masked(sections.NO_MIXING),
            num_steps=args.steps,
            batch_size=args.batch_size,
            replay=replay,
            optim=self.start.optim(freezes=False),
            model=self.start.make.model,
            init_from=init_from,
        )

    def _joint(self) -> dict[str, Any]:
        """All domains at once, every example as often, for as many steps in all."""
        first, *others = (self._unlabelled(d) for d in range(len(self.learned)))
        if not others:
            raise UserError(
                "joint=True trains on all domains at once: give several, or joint=False"
            )
        count = sum(map(shared.size, others))
        replay = sections.replay(
            tuple(others), 1.0, buffer_size=count, sampling="uniform"
        )
        stage = self._masked(JOINT, first, replay, START)
        steps = self.args.steps * len(self.learned)
        optim = {**stage["optim"], "warmup_steps": steps // 10}
        return {**stage, "num_steps": steps, "optim": optim}

    def _finetune(self, name: str, section: dict[str, Any], **changes: Any) -> dict:
        args = self.args
        fields = dict(
            seeds=tuple(range(args.seeds)),
            num_steps=args.finetune_steps,
            batch_size=args.finetune_batch_size,
            optim=shared.finetune_optim(
                lr=args.finetune_lr, warmup_steps=args.finetune_steps // 10
            ),
        )
        return shared.finetune_stage(name, section, {}, **{**fields, **changes})

    def _supervised(self, name: str, t: int, init_from: str) -> dict[str, Any]:
        """A task with labels: the optimizer of fine-tuning, one run, all labels."""
        args, kind = self.args, self.args.objective
        options: dict[str, Any] = dict(fresh=("head",), pooling=args.pooling)
        if kind == "glad":
            hidden = 64 if args.adaptor == "bottleneck" else 0
            options["adaptor"] = sections.adaptor(kind=args.adaptor, hidden=hidden)
        if kind == "grow" and t:
            options |= dict(grow_head=True, fresh=())
        tasks = [self._labelled(d, args.split) for d in range(t + 1)]
        classes = shared.class_names(*tasks) if kind == "grow" else ()
        *earlier, section = ({**task, "classes": classes} for task in tasks)
        replay = self._replay(*earlier)
        return self._finetune(
            name,
            section,
            seeds=(0,),
            num_steps=args.steps,
            batch_size=args.batch_size,
            optim=shared.finetune_optim(lr=args.lr, warmup_steps=args.steps // 10),
            objective=self._glad() if kind == "glad" else sections.classify(),
            replay=replay,
            penalties=(baselines.er(),) if replay else (),
            model={**self.start.make.model, **options},
            eval=None,
            init_from=init_from,
        )

    def _glad(self) -> dict[str, Any]:
        args = self.args
        masked = self.start.make.masked(sections.NO_MIXING)
        fields = dict(regularizer=args.regularizer, weight=args.weight)
        return sections.glad(masked, **fields)

    def _few(self) -> dict[str, Any]:
        return {**shared.ALL, "per_class": self.args.per_class}

    def _cell(self, model: str, d: int) -> dict[str, Any]:
        args = self.args
        test = self._labelled(d, args.test_split)
        options = dict(fresh=("head",), pooling=args.pooling)
        return self._finetune(
            _cell_name(model, self.names[d]),
            self._labelled(d, args.label_split, subset=self._few()),
            model={**self.start.make.model, **options, "dropout": 0.1},
            eval=dict(
                every_steps=0, batch_size=64, data=test, metric="accuracy", mode="max"
            ),
            init_from=model if model == START else f"stage:{model}",
        )

    def _transfer(self) -> dict[str, Any]:
        models: list[str] = [*self.rows(), *self.others()]
        cells: tuple[tuple[str, ...], ...] = ()
        if self.args.finetune:
            cells = tuple(
                tuple(_cell_name(model, name) for name in self.names)
                for model in models
            )
        return dict(
            domains=tuple(self.names),
            sources=tuple(
                self._labelled(d, "")["source"] for d in range(len(self.names))
            ),
            rows=tuple(self.rows()),
            others=tuple(self.others()),
            finetuned=cells,
        )

    def experiment(self) -> dict[str, Any]:
        args, start = self.args, self.start
        measured = (*self.tasks(), *self.others())
        changes = dict(
            pooling=args.pooling,
            compare=True,
            stages=measured,
            models_at_once=1 + len(measured),
        )
        first, *more = (
            start.evaluate(one, args.label_split, **changes) for one in self.domains
        )
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=start.known,
            model=start.model,
            evaluate=first,
            more_evaluations=tuple(more),
            transfer=self._transfer(),
            stages=tuple(self.stages()),
        )


def _cell_name(model: str, domain: str) -> str:
    return f"finetune_{model}_on_{domain}"
