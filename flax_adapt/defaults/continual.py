"""The config `continual_pretrain`: a sequence of domains and its transfer matrix.

S4, Yoon et al. 2023; see docs/methods/continual.md.
"""

from pathlib import PurePath
from typing import Any

from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.defaults import (
    forgetting,
    modality,
    sections,
    shared,
    supervised,
    text,
    vision,
)
from flax_adapt.defaults.glad import check_names, check_start

# The arguments of the config continual_pretrain; its docstring explains them.
CONTINUAL_ARGUMENTS = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    domains="",
    also="",
    label_split="train",
    objective="mae",
    method="none",
    rho=0.0,
    buffer_size=0,
    penalty=0.0,
    joint=True,
    steps=1_000,
    batch_size=64,
    lr=1.5e-4,
    augment="",
    dropout=0.1,
    finetune=True,
    finetune_steps=500,
    finetune_batch_size=32,
    finetune_lr=1e-4,
    seeds=3,
    adaptor="vector",
    regularizer="preserve",
    weight=1.0,
    pooling="cls",
)
START, JOINT = "pretrained", "joint"
# Supervised objectives: a new head for each task; one head that grows; GLAD.
SUPERVISED = ("classify", "grow", "glad")


def name_of(source: str) -> str:
    """Returns a name for stages: tfds:pacs_photo -> pacs_photo, folder:a/b -> b."""
    return PurePath(source.partition(":")[2].replace(":", "_")).stem or source


class Continual:
    """The experiment of continual_pretrain, from CONTINUAL_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    def __init__(self, args: Any):
        if not (args.domains and args.init):
            raise UserError(
                "the config needs domains=A+B+..., learned in that order, and init=PATH "
                "of weights"
            )
        self.args, self.start = (
            args,
            modality.open_transformer(args, objective=args.objective),
        )
        self.start.choose_objective((self.start.masked_task, *SUPERVISED))
        self.learned = [vision.dataset(one) if self.start.is_image else one
                        for one in args.domains.split("+")]  # fmt: skip
        self.domains = [*self.learned, *filter(None, args.also.split("+"))]
        self.names = [name_of(one) for one in self.domains]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"domains and also need different names, not {self.names}")
        self.supervised = args.objective in SUPERVISED
        kind = "image" if self.start.is_image else "text"
        self.pooling = supervised.pooling_of(kind, args.pooling)
        self._check()

    def _check(self) -> None:
        """Raises UserError for arguments that do not fit the objective."""
        args = self.args
        check_names(args.adaptor, (args.regularizer,))
        if args.objective == "glad":
            check_start((args.regularizer,), self.start)
        learns = args.objective if self.supervised else forgetting.MASKED
        forgetting.check(args, learns)
        if args.joint and len(self.learned) == 1:
            raise UserError(
                "joint=True trains on all domains at once: give several, or joint=False"
            )

    def tasks(self) -> list[str]:
        """Returns the names of the stages of the sequence, in order."""
        pairs = zip(self.names, self.learned, strict=False)
        return [f"task_{t}_{name}" for t, (name, _) in enumerate(pairs, start=1)]

    def rows(self) -> list[str]:
        """Returns the rows of the transfer matrix: the initial weights, then every task."""
        return [START, *self.tasks()]

    def others(self) -> list[str]:
        """Returns further measured models, which are not in the sequence."""
        return [JOINT] if self.args.joint else []

    def stages(self) -> list[dict[str, Any]]:
        """Returns the stages: the sequence, joint training, and all fine-tuning.

        Each stage of the sequence starts from the weights of the one before.
        """
        found, before = [], START
        for t, name in enumerate(self.tasks()):
            learn = self._make_supervised if self.supervised else self._make_masked
            stage = {**learn(name, t), "init_from": before}
            found.append({**stage, **self._method_fields(t)})
            before = f"stage:{name}"
        found += [self._make_joint() for _ in self.others()]
        if self.args.finetune:
            for model in (*self.rows(), *self.others()):
                found += [self._make_cell(model, d) for d in range(len(self.domains))]
        return found

    def _method_fields(self, t: int) -> dict[str, Any]:
        """Returns the fields that the method against forgetting changes in stage t."""
        args, last = self.args, len(self.learned) - 1
        section = self._training_data if self.supervised else self._unlabelled_data
        tasks = forgetting.Tasks(
            of=tuple(f"stage:{name}" for name in self.tasks()[:t]),
            data=tuple(
                {**section(d), **self._head_classes(t)}
                if self.supervised
                else section(d)
                for d in range(t)
            ),
            is_masked=not self.supervised,
            is_last=t == last,
            ratio=args.rho,
            buffer_size=args.buffer_size,
            weight=args.penalty,
        )
        return forgetting.method_of(args).fields(tasks)

    def _unlabelled_data(self, d: int) -> dict[str, Any]:
        return self.start.make.unlabelled_data(self.domains[d], self.args.split)

    def _labelled_data(self, d: int, split: str, **changes: Any) -> dict[str, Any]:
        return self.start.make.labelled_data(self.domains[d], split, **changes)

    def _training_data(self, d: int) -> dict[str, Any]:
        """Returns the labelled training data of domain d, of a supervised sequence."""
        return self._labelled_data(d, self.args.split)

    def _head_classes(self, t: int) -> dict[str, Any]:
        """Returns the field `classes` for domain t; {} without a head that grows.

        A head that grows has the classes of all domains so far, or from the first domain
        on those of all domains where the method needs it (`Method.all_classes`).
        """
        if self.args.objective != "grow":
            return {}
        whole = forgetting.method_of(self.args).all_classes
        count = len(self.learned) if whole else t + 1
        return dict(classes=shared.class_names(*map(self._training_data, range(count))))

    def _make_masked(self, name: str, t: int) -> dict[str, Any]:
        args = self.args
        return shared.pretrain_stage(
            name,
            self._unlabelled_data(t),
            objective=self.start.make.masked_objective(sections.NO_MIXING),
            num_steps=args.steps,
            batch_size=args.batch_size,
            optim=self.start.optim(freezes=False),
            model=self.start.make.model,
        )

    def _make_supervised(self, name: str, t: int) -> dict[str, Any]:
        """Returns the stage that learns domain t with labels, as a single run."""
        args, kind = self.args, self.args.objective
        sizes = dict(steps=args.steps, batch_size=args.batch_size, lr=args.lr, seeds=1)
        section = {**self._training_data(t), **self._head_classes(t)}
        stage = supervised.make_stage(name, section, {}, ConfigDict({**args, **sizes}))
        model = stage["model"]
        changes: dict[str, Any] = dict(eval=None)
        if kind == "glad":
            adaptor = sections.adaptor_of(args.adaptor)
            changes |= dict(
                objective=self._glad_objective(), model={**model, "adaptor": adaptor}
            )
        if kind == "grow" and t:
            changes |= dict(model={**model, "grow_head": True, "fresh": ()})
        return {**stage, **changes}

    def _make_joint(self) -> dict[str, Any]:
        """Returns the stage that trains on all domains at once, every example equally often.

        It takes as many steps as the whole sequence, and is its upper bound. With labels it
        has one head for the classes of all domains.
        """
        count = len(self.learned)
        if self.supervised:
            stage = self._make_supervised(JOINT, 0)
            found = [self._training_data(d) for d in range(count)]
            classes = shared.class_names(*found)
            first, *others = ({**one, "classes": classes} for one in found)
        else:
            stage = self._make_masked(JOINT, 0)
            first, *others = map(self._unlabelled_data, range(count))
        replay = sections.replay(tuple(others), 0.0, sampling="joint")
        data = {**stage["data"], "classes": first["classes"]}
        longer = supervised.change_sizes(stage, steps=self.args.steps * count)
        return {**longer, "data": data, "replay": replay}

    def _glad_objective(self) -> dict[str, Any]:
        args = self.args
        masked = self.start.make.masked_objective(sections.NO_MIXING)
        fields = dict(regularizer=args.regularizer, weight=args.weight)
        return sections.glad(masked, **fields)

    def _few_labels(self) -> dict[str, Any]:
        return shared.few(self.args.per_class, self.args.labels)

    def _make_cell(self, model: str, d: int) -> dict[str, Any]:
        """Returns the stage that fine-tunes a model on domain d; all models alike."""
        args = self.args
        sizes = dict(
            steps=args.finetune_steps,
            batch_size=args.finetune_batch_size,
            lr=args.finetune_lr,
        )
        test = self._labelled_data(d, args.test_split)
        train = self._labelled_data(d, args.label_split, subset=self._few_labels())
        name = _name_cell(model, self.names[d])
        stage = supervised.make_stage(name, train, test, ConfigDict({**args, **sizes}))
        # Accuracy as for probe and kNN, also for texts (text_finetune reports macro-F1).
        evaluation = {**stage["eval"], "metric": "accuracy", "every_steps": 0}
        start = model if model == START else f"stage:{model}"
        return {**stage, "eval": evaluation, "init_from": start}

    def _transfer_section(self) -> dict[str, Any]:
        models: list[str] = [*self.rows(), *self.others()]
        cells: tuple[tuple[str, ...], ...] = ()
        if self.args.finetune:
            cells = tuple(
                tuple(_name_cell(model, name) for name in self.names)
                for model in models
            )
        return dict(
            domains=tuple(self.names),
            sources=tuple(
                self._labelled_data(d, "")["source"] for d in range(len(self.names))
            ),
            rows=tuple(self.rows()),
            others=tuple(self.others()),
            finetuned=cells,
        )

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        args, start = self.args, self.start
        measured = (*self.tasks(), *self.others())
        changes = dict(
            pooling=text.STATES[self.pooling],
            compare=True,
            stages=measured,
            models_at_once=1 + len(measured),
        )
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=start.known,
            model=start.model,
            **start.evaluate_all(self.domains, args.label_split, **changes),
            transfer=self._transfer_section(),
            stages=tuple(self.stages()),
        )


def _name_cell(model: str, domain: str) -> str:
    return f"finetune_{model}_on_{domain}"
