"""Reads what a run has written into its workdir."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import provenance
from flax_adapt.stage import draws, predictions
from flax_adapt.stage.predictions import Predictions

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir with results: its plain config, the rows of results.json, and its metrics.

    rows: of `experiment.recipe.run`. metrics: the lines of metrics.jsonl. starts: those of
    commands.jsonl. What several sections of a page need is opened and computed once.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @functools.cached_property
    def experiment(self) -> Any:
        """The config as an experiment has it."""
        return configs.build(self.config)

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        return {}

    def share(self, name: str, make: Callable[[], T]) -> T:
        """Returns what `make` returned when it was called first with this name."""
        if name not in self._shared:
            self._shared[name] = make()
        found: T = self._shared[name]
        return found

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The plain sections of the stages by name."""
        return {section["name"]: section for section in self.config["stages"]}

    @property
    def names(self) -> list[str]:
        """The names of the stages that have results, in order."""
        return [row["stage"] for row in self.rows]

    def seed_folders(self, name: str) -> dict[int, Path]:
        """Returns {seed: folder} of the runs of a stage that has results."""
        row = next(row for row in self.rows if row["stage"] == name)
        section = configs.build({"name": name, "seeds": self.sections[name]["seeds"]})
        stages = self.folder / "stages"
        return {seed: stages / draws.label(section, seed) for seed in row["seeds"]}

    def export(self, name: str) -> Path:
        """Returns the exported folder of a stage's first seed.

        A workdir may have been moved, so that it is not the path in results.json.
        """
        return next(iter(self.seed_folders(name).values())) / "export"

    def predictions(self, name: str) -> dict[int, Predictions]:
        """Returns the predictions of a stage by seed; {} unless all seeds have them."""
        return self.share(f"predictions of {name}", lambda: self._read(name))

    def _read(self, name: str) -> dict[int, Predictions]:
        folders = self.seed_folders(name).items()
        found = {seed: predictions.read(folder) for seed, folder in folders}
        whole = {seed: one for seed, one in found.items() if one is not None}
        return whole if len(whole) == len(found) else {}


def read(folder: Path) -> Run:
    """Returns a workdir; raises UserError for one without config or results."""
    paths = [folder / name for name in ("config.json", "results.json")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder} holds no {' and no '.join(missing)}: give the --workdir of a run "
            "that has finished a stage"
        )
    config, rows = (logs.read_json(path) for path in paths)
    if not isinstance(config, dict) or "stages" not in config:
        raise UserError(f"{paths[0]} is damaged, it has no stages")
    if not isinstance(rows, list) or not all({"stage"} <= {*row} for row in rows):
        raise UserError(f"{paths[1]} is damaged: the same `run` writes it again")
    names = {section["name"] for section in config["stages"]}
    known = [row for row in rows if row["stage"] in names]
    starts = provenance.read_starts(folder)
    return Run(folder, config, known, logs.read_metrics(folder), starts)


def read_optional(path: Path) -> Any:
    """Returns the content of a JSON file, None where there is none."""
    return logs.read_json(path) if path.is_file() else None
