"""The weights of a stage before and after training, of which there may be mixtures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_adapt import weights
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params
from flax_adapt.experiment import recipe
from flax_adapt.stage import stage as stages
from flax_adapt.stage.stage import Stage
from flax_adapt.weights.loading import PARTS


class Pair(NamedTuple):
    """The weights of a stage before and after training; names and shapes are the same.

    start: {name: array} of the leaves that both have. model: of the stage's export.
    """

    stage: Stage
    task: str
    model: Any
    adapted: Params
    start: dict[str, np.ndarray]

    def mix(self, params: Params, a: float) -> Params:
        """Returns (1 - a) start + a params; leaves that the start lacks are unchanged."""

        def of_leaf(name: str, leaf: Any) -> Any:
            if name not in self.start:
                return leaf
            return (1 - a) * self.start[name] + a * np.asarray(leaf)

        return rules.map_named(of_leaf, params)


def open_pair(config: Any, workdir: Path, name: str) -> Pair:
    """Returns the weights of a stage's run before and after it.

    name: NAME or NAME/seed_S. Raises UserError for another name, a stage that is not
    finished or began from scratch, and weights of other shapes.
    """
    runs = {one.label: one for one in recipe.measurable_runs(config, workdir)}
    if name not in runs:
        raise UserError(
            f"--stage={name} is no finished stage of {workdir}; there are: "
            f"{', '.join(runs) or 'none'}"
        )
    stage = runs[name]
    text = stage.config.init_from
    if text == "scratch":
        raise UserError(
            f"--stage={name} began from scratch: there is no start to go to"
        )
    task = stage.exported_task
    model, adapted, _ = weights.from_pretrained(stage.folder / "export", task)
    path = stages.resolve_field(stage, "init_from")
    start = _load_start(stage, path, task, adapted)
    return Pair(stage, task, model, adapted, start)


def _load_start(
    stage: Stage, path: Path, task: str, adapted: Params
) -> dict[str, np.ndarray]:
    options = stages.known_options_of(stage, stage.config.init_from)
    sizes: dict[str, Any] = dict.fromkeys(weights.reshape.FIELDS)
    own = (
        task
        if task in PARTS and weights.does_task(path, task, **options)
        else "encoder"
    )
    opened = weights.open_params(path, own, reshape=(), sizes=sizes, **options)
    with opened as params:
        leaves = {n: np.asarray(x) for n, x in rules.name_leaves(params).items()}
    ours = {n: np.shape(x) for n, x in rules.name_leaves(adapted).items()}
    check_shapes(stage.label, {n: x.shape for n, x in leaves.items()}, ours)
    return {n: x for n, x in leaves.items() if ours.get(n) == x.shape}


def check_shapes(
    label: str,
    start: Mapping[str, tuple[int, ...]],
    adapted: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises UserError where the encoders differ: {name: shape} of both models' leaves."""
    one, other = (
        {n: shape for n, shape in shapes.items() if n.startswith("encoder/")}
        for shapes in (start, adapted)
    )
    # A pooler may be new with a classifier: it is part of the head.
    both = {n for n in {**one, **other} if "/pooler/" not in n or n in one}
    unlike = sorted(n for n in both if one.get(n) != other.get(n))
    if unlike:
        name = unlike[0]
        raise UserError(
            f"--stage={label}: start and adapted weights have other shapes, so that there is "
            f"nothing between them: {name} is {one.get(name, 'missing')} in the start and "
            f"{other.get(name, 'missing')} after it ({len(unlike)} parameters in all)"
        )
