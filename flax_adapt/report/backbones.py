"""The models that the report compares: the initial weights, and those that were adapted."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt import data, defaults, weights
from flax_adapt.base import config as configs
from flax_adapt.base import hub
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import held_out, measure
from flax_adapt.report.workdir import Run

# Side by side on a page.
MOST = 4


class Backbone(NamedTuple):
    """Weights: their label, folder, arguments of loading, and the stage ("": none)."""

    label: str
    folder: Path
    fit: dict[str, Any]
    stage: str


def is_alone() -> bool:
    """Returns whether this process may compute: the others of a run have ended, or will."""
    return jax.process_count() == 1


def list_backbones(run: Run, task: str) -> list[Backbone]:
    """Returns the weights that have all parts of a task, the initial ones first.

    Stages that train on labels come last, and are there only where no other stage is. Of
    many the first one and the last ones are kept.
    """
    return run.share(f"backbones of {task}", lambda: _list_backbones(run, task))


def _list_backbones(run: Run, task: str) -> list[Backbone]:
    config = run.experiment
    tuned = [s.name for s in config.stages if held_out.sees_labels(s)]
    named = [name for name in run.names if name not in tuned]
    named = named or [name for name in run.names if name in tuned][-1:]
    found = _initial(config)
    found += [Backbone(name, run.export(name), {}, name) for name in named]
    fitting = [one for one in found if _has(one, task)]
    return fitting[:1] + fitting[1:][-(MOST - 1) :]


def _initial(config: Any) -> list[Backbone]:
    if not config.init:
        return []
    try:
        folder = hub.weights_path(config.init)
        ways = measure.ways_of_init(config)
    except UserError:  # they were moved, or are on another machine
        return []
    return [Backbone("initial weights", folder, dict(fit), "") for _, fit in ways[:1]]


def _has(one: Backbone, task: str) -> bool:
    """Returns whether weights are there with the part that a task needs."""
    options = weights.options_in(one.fit)
    return one.folder.exists() and weights.does_task(one.folder, task, **options)


def open_section(run: Run, section: Any) -> Any:
    """Returns the examples of a data section, opened once; None where the data is gone."""
    return run.share(f"data {configs.to_text(section)}", lambda: _open(section))


def _open(section: Any) -> Any:
    try:
        return data.open_examples(_complete(section), "")
    except UserError:  # the folder was moved, or is on another machine
        return None


def _complete(section: Any) -> Any:
    """Returns a data section with the fields that a run of an earlier version lacks."""
    whole = {
        "image": defaults.image_data("", ""),
        "text": defaults.text_data("", "", ""),
    }[section.modality]
    old, new = configs.plain(section), configs.plain(whole)
    return configs.build(configs.fill_added(old, new, "data."))
