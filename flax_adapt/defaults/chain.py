"""The config `chain`: the four methods one after another; every step can be left out.

The steps are continual masked pre-training over domains (S4), unsupervised fine-tuning with
replay (S2), another width of the last block (S3), self-distillation in rounds (S1) and GLAD
(S4). The order and the sizes are ours.
"""

from typing import Any

from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.defaults import continual, glad, modality, sections, shared, supervised
from flax_adapt.defaults import text as texts

# The arguments of the config `chain`; its docstring explains them.
CHAIN_ARGUMENTS = dict(
    {**shared.ARGUMENTS_OF_WEIGHTS, **shared.ARGUMENTS_OF_DATA},
    dataset="",
    domains="",
    rho=1.0,
    width=0,
    rounds=1,
    regularizer="masked",
    weight=1.0,
    adaptor="vector",
    compare=True,
    pretrain_steps=1_000,
    pretrain_batch_size=64,
    pretrain_lr=1.5e-4,
    **supervised.SUPERVISED_ARGUMENTS,
)


class Chain:
    """The experiment of the config `chain`, from CHAIN_ARGUMENTS.

    Raises UserError for arguments that are missing or do not fit together.
    """

    def __init__(self, args: Any):
        if not (args.dataset and args.init):
            raise UserError(
                "the config needs dataset=TARGET with labels and init=PATH of weights"
            )
        self.args = args
        # Every step without labels trains by masked modelling.
        masked = dict(steps=args.pretrain_steps, lr=args.pretrain_lr)
        sized = ConfigDict({**args, **masked}).lock()
        self.start = modality.open_transformer(sized, objective="mlm")
        self.start.check_head(
            self.start.masked_task, "masked modelling of every step starts from"
        )
        glad.check_names(args.adaptor, [args.regularizer] * bool(args.regularizer))
        if args.rounds < 0 or args.width < 0:
            raise UserError(
                f"rounds={args.rounds} and width={args.width} must be at least 0 (0: "
                "that step is left out)"
            )
        kind = "image" if self.start.is_image else "text"
        self.pooling = supervised.pooling_of(kind, args.pooling)
        # The weights after the steps so far, as a reference, and their last block.
        self.current = "pretrained"
        self.resize: dict[str, Any] | None = None

    def stages(self) -> list[dict[str, Any]]:
        """Returns the stages of all steps; with `compare` fine-tuning follows each step.

        Raises UserError where every step is left out.
        """
        found = self._make_comparison("start")
        steps = {
            "domains": self._make_domains,
            "unsupervised": self._make_unsupervised,
            "resized": self._make_resized,
            "rounds": self._make_rounds,
        }
        for name, make in steps.items():
            stages = make()
            if stages:
                self.current = f"stage:{stages[-1]['name']}"
                found += [*stages, *self._make_comparison(name)]
        if len(found) == bool(self.args.compare) and not self.args.regularizer:
            raise UserError(
                "every step is left out: give one of domains=, source=, width=, rounds=, "
                "regularizer="
            )
        return [*found, *self._make_glad()]

    def _make_domains(self) -> list[dict[str, Any]]:
        """Returns step 1 (S4): a stage for each domain, from the weights of the one before."""
        found: list[dict[str, Any]] = []
        before = self.current
        for t, domain in enumerate(filter(None, self.args.domains.split("+")), start=1):
            name = f"task_{t}_{continual.name_of(domain)}"
            found.append(self._make_masked(name, domain, init_from=before))
            before = f"stage:{name}"
        return found

    def _make_unsupervised(self) -> list[dict[str, Any]]:
        """Returns step 2 (S2): masked modelling of the target, with replay of the source."""
        args = self.args
        if not args.source:
            return []
        source = self.start.make.unlabelled_data(args.source, args.source_split)
        replay = sections.replay(source, args.rho)
        return [self._make_masked("unsupervised", args.dataset, replay=replay)]

    def _make_resized(self) -> list[dict[str, Any]]:
        """Returns step 3 (S3): masked modelling with another width of the last block.

        A wider block keeps the first features as they were; a narrower one has their
        principal components.
        """
        if not self.args.width:
            return []
        is_wider = self.args.width >= self.start.model["width"]
        start = "preserve" if is_wider else "pca"
        self.resize = sections.resize(self.args.width, init=start)
        return [self._make_masked("resized", self.args.dataset)]

    def _make_rounds(self) -> list[dict[str, Any]]:
        """Returns step 4 (S1): a teacher and rounds, all from the same current weights."""
        if not self.args.rounds:
            return []
        found = [self._make_masked("further", self.args.dataset)]
        for number in range(1, self.args.rounds + 1):
            masked = self.start.make.masked_objective(sections.NO_MIXING)
            state = texts.STATES.get(self.pooling, self.pooling)
            objective = {**sections.distill(masked), "state": state}
            found.append(
                self._make_masked(
                    f"distill_{number}",
                    self.args.dataset,
                    objective=objective,
                    teacher=f"stage:{found[-1]['name']}",
                )
            )
        return found

    def _make_masked(self, name: str, data: str, **changes: Any) -> dict[str, Any]:
        """Returns a stage of masked modelling from the current weights, with `changes`."""
        args, make = self.args, self.start.make
        fields = dict(
            objective=make.masked_objective(sections.NO_MIXING),
            num_steps=args.pretrain_steps,
            batch_size=args.pretrain_batch_size,
            optim=self.start.optim(freezes=False),
            model={**make.model, "resize": self.resize},
            init_from=self.current,
        )
        unlabelled = make.unlabelled_data(data, args.split)
        return shared.pretrain_stage(name, unlabelled, **{**fields, **changes})

    def _make_finetuning(self, name: str) -> dict[str, Any]:
        """Returns fine-tuning from the current weights; all rows share its settings."""
        args, make = self.args, self.start.make
        few = shared.few(args.per_class, args.labels)
        train = make.labelled_data(args.dataset, args.split, subset=few)
        test = make.labelled_data(args.dataset, args.test_split)
        stage = supervised.make_stage(name, train, test, args)
        model = {**stage["model"], "resize": self.resize}
        stage |= dict(model=model, init_from=self.current)
        return supervised.add_sweep(stage, args.lrs)

    def _make_comparison(self, step: str) -> list[dict[str, Any]]:
        return [self._make_finetuning(f"finetune_{step}")] if self.args.compare else []

    def _make_glad(self) -> list[dict[str, Any]]:
        """Returns step 5 (S4): GLAD, or without a regularizer usual fine-tuning."""
        args = self.args
        if not args.regularizer:
            return [] if args.compare else [self._make_finetuning("finetune")]
        masked = self.start.make.masked_objective(sections.NO_MIXING)
        stage = self._make_finetuning("glad")
        adaptor = sections.adaptor_of(args.adaptor)
        objective = sections.glad(
            masked, regularizer=args.regularizer, weight=args.weight
        )
        model = {**stage["model"], "adaptor": adaptor}
        return [{**stage, "objective": objective, "model": model}]

    def experiment(self) -> dict[str, Any]:
        """Returns the whole config, with all stages."""
        args, start = self.args, self.start
        state = texts.STATES.get(self.pooling, self.pooling)
        return shared.experiment(
            init=args.init,
            init_format=args.init_format,
            init_known=start.known,
            model=start.model,
            **start.evaluate_all([args.dataset], args.split, pooling=state),
            stages=tuple(self.stages()),
        )
