"""Features of several models on the data sets of an evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt import data
from flax_adapt.base.types import Params
from flax_adapt.data import subset
from flax_adapt.evals.embed import Embedder
from flax_adapt.evals.features import Features
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring.kept import Kept
from flax_adapt.experiment.measuring.sets import Sets
from flax_adapt.stage.stage import Stage
from flax_adapt.train import precision, sharding


class MeasuredModel(NamedTuple):
    """Features of one model on `Sets`, and its encoder's parameters.

    views: features of the two views of `test`; () where drift is not measured. learnt: names
    of test examples that no accuracy is of, see `Model.list_learnt`.
    """

    train: Features | None
    test: Features
    views: tuple[Features, ...]
    source: Features | None
    params: Params
    learnt: frozenset[str] = frozenset()


class Model(NamedTuple):
    """Weights to be measured: their label, their folder, and the arguments of loading them.

    change: of the loaded parameters; None: they are measured as they are. stage: the run
    that has made them; None: no run of this config.
    """

    label: str
    folder: Path
    fit: dict[str, Any]
    change: Callable[[Params], Params] | None = None
    stage: Stage | None = None

    @property
    def run(self) -> tuple[str, int]:
        """The name of the stage and the seed of its run; else the label and 0."""
        if self.stage is None or self.label != self.stage.label:
            return self.label, 0
        section = self.stage.config
        return section.name, self.stage.run_seed

    def list_learnt(self, tested: Any) -> frozenset[str]:
        """Returns the names of examples of a test section that say nothing of this model."""
        if self.stage is None:
            return frozenset()
        one = self.stage
        learnt = held_out.list_learnt(one.experiment, one.config.name, one.run_seed)
        opened = [
            subset.open_chosen(section)
            for _, section in learnt
            if held_out.is_left_out(section, tested)
        ]
        return frozenset(name for source in opened for name in source.names)


def extract(
    config: Any,
    section: Any,
    pooling: str,
    models: list[Model],
    sets: Sets,
    workdir: Path | None,
) -> list[MeasuredModel]:
    """Returns the features of all models, from one pass over each data set at most.

    workdir: keeps features, see `kept`.
    """
    is_text = section.test.modality == "text"
    embedders = [
        Embedder(
            model.folder,
            fit=model.fit,
            pooling=pooling,
            batch_size=section.batch_size,
            precision=precision.dtype_of(config.precision),
            dropout=section.view_dropout if is_text else 0.0,
            mesh=sharding.all_devices(),
        )
        for model in models
    ]
    for model, embedder in zip(models, embedders, strict=True):
        if model.change is not None:
            changed = model.change(embedder.params)
            embedder.params = sharding.put(changed, embedder.mesh)
    known = Kept(workdir, embedders)

    def of(examples: data.Examples | None, *view: int) -> list[Any]:
        if examples is None:
            return [None] * len(models)
        return known.extract(examples, *view)

    views: list[Any] = [(), ()]
    if sets.source is not None:
        views = [of(sets.test.examples, number, config.seed) for number in (0, 1)]
    pairs = list(zip(*views, strict=True)) or [()] * len(models)
    encoders = [one.params["encoder"] for one in embedders]
    train = None if sets.train is None else sets.train.examples
    tested = of(sets.test.examples)
    learnt = [one.list_learnt(section.test) for one in models]
    columns = (of(train), tested, pairs, of(sets.source), encoders, learnt)
    return [MeasuredModel(*row) for row in zip(*columns, strict=True)]
