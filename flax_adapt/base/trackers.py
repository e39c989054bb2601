"""Shows the metrics of a run in Weights & Biases and MLflow, beside TensorBoard.

The field `log` of a config names them: "wandb", "mlflow" or "wandb+mlflow"; "" is none of
them. Every run of a stage is a run there, and a stage that goes on continues its run, whose
name the stage's folder keeps. Servers, keys and offline modes are the tracker's own settings
(`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`). Without an address MLflow writes into
`mlflow.db` of the workdir. A tracker that fails while a run trains is given up with a warning.
"""

import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flax_adapt.base import config as configs
from flax_adapt.base import errors, logs
from flax_adapt.base.checks import Check, builds
from flax_adapt.base.errors import UserError

log = logging.getLogger(__name__)
NAMES = "trackers.json"
_MLFLOW_PARAMS = 100  # the most in one request


class TrackedRun(NamedTuple):
    """A run of a stage. config: its part of the config, a plain dict. folder: the stage's."""

    workdir: Path
    label: str
    folder: Path
    config: Mapping[str, Any]


class Tracker(logs.Writer, Protocol):
    """Takes the metrics of one run. name: what continues the run, in its own terms."""

    name: str


class _Wandb:
    def __init__(self, run: TrackedRun, name: str):
        import wandb

        self.name = name or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "flax_adapt"),
            group=run.workdir.resolve().name,
            name=run.label,
            id=self.name,
            resume="allow",
            dir=run.workdir,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, run: TrackedRun, name: str):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        own = f"sqlite:///{run.workdir.resolve() / 'mlflow.db'}"
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(tracking_uri=address or own)
        self.name = name or self._start(run)

    def _start(self, run: TrackedRun) -> str:
        """Begins a run with the fields of its config; returns its id."""
        from mlflow.entities import Param

        experiment = run.workdir.resolve().name
        found = self._client.get_experiment_by_name(experiment)
        number = found and found.experiment_id
        number = number or self._client.create_experiment(experiment)
        begun: str = self._client.create_run(number, run_name=run.label).info.run_id
        fields = [
            Param(field, str(value)[:500])
            for field, value in configs.flatten(run.config).items()
        ]
        for start in range(0, len(fields), _MLFLOW_PARAMS):
            some = fields[start : start + _MLFLOW_PARAMS]
            self._client.log_batch(begun, params=some)
        return begun

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        rows = [self._metric(*item, now, step) for item in values.items()]
        self._client.log_batch(self.name, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self.name)


# Name in `log` -> the tracker's class. The extra of setup.py has the same name.
TRACKERS: dict[str, Callable[[TrackedRun, str], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def parse(names: str) -> list[str]:
    """Returns the trackers that the field `log` names.

    Raises UserError for one that is unknown or not installed.
    """
    found = names.split("+") if names else []
    for name in found:
        errors.choose("log", name, TRACKERS)
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"log={names}: {name} is not installed: pip install 'flax-adapt[{name}]'"
            )
    return found


ROWS = (builds(lambda config: parse(config.log)),)
CHECKS = (Check(lambda at: [at.config], ROWS),)


class Trackers:
    """The trackers of one run, each until it fails."""

    def __init__(self, names: str, run: TrackedRun):
        """Raises UserError for a tracker that cannot begin, such as one without a key."""
        path = run.folder / NAMES
        kept = logs.read_json(path) if path.exists() else {}
        self._open: dict[str, Tracker] = {}
        for name in parse(names):
            try:
                self._open[name] = TRACKERS[name](run, kept.get(name, ""))
            except Exception as error:
                raise UserError(f"log={names}: {name} cannot begin: {error}") from None
        if self._open:
            begun = {name: tracker.name for name, tracker in self._open.items()}
            logs.write_json(path, kept | begun)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Gives the metrics after a step to every tracker."""
        self._call(lambda tracker: tracker.write(step, values))

    def close(self) -> None:
        """Ends the runs."""
        self._call(lambda tracker: tracker.close())

    def _call(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._open[name]
                log.warning("%s failed and is left out from now on: %s", name, error)
