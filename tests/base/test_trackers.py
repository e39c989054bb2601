"""Metrics in Weights & Biases and MLflow, with their own packages and without a network."""

import json
import logging
import struct

import pytest

from flax_adapt.base import logs, trackers
from flax_adapt.base.errors import UserError

# The packages warn of what they use of other packages.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a stage; both trackers write into its workdir alone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "work" / "stages" / "tune"
    folder.mkdir(parents=True)
    config = {"num_steps": 4, "optim": {"lr": 0.1}}
    return trackers.TrackedRun(tmp_path / "work", "tune", folder, config)


def write(run, names, steps):
    """What a stage writes, by the writer that it has."""
    others = [trackers.Trackers(names, run)]
    options = dict(step=min(steps) - 1, is_writer=True, others=others)
    with logs.MetricWriter(run.workdir, run.label, **options) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / step, "accuracy": 0.5})


def test_mlflow_has_the_numbers_of_a_stage_that_was_interrupted(run):
    mlflow = pytest.importorskip("mlflow")
    write(run, "mlflow", (1, 2))
    write(run, "mlflow", (3, 4))
    client = mlflow.MlflowClient(f"sqlite:///{run.workdir / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'work'")
    (found,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [
        (s, 1 / s) for s in range(1, 5)
    ]
    assert found.data.params == {"num_steps": "4", "optim.lr": "0.1"}
    assert (found.info.run_name, found.info.status) == ("tune", "FINISHED")


def wandb_records(path):
    """The records of a .wandb file: parts of blocks of 32 KiB, as LevelDB writes logs."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts, at = parts + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_goes_on_with_the_run_of_the_stage(run):
    pytest.importorskip("wandb")
    write(run, "wandb", (1, 2))
    name = json.loads((run.folder / trackers.NAMES).read_text())["wandb"]
    write(run, "wandb", (3, 4))
    assert json.loads((run.folder / trackers.NAMES).read_text()) == {"wandb": name}
    files = run.workdir.glob(f"wandb/offline-run-*/run-{name}.wandb")
    records = [record for path in sorted(files) for record in wandb_records(path)]
    rows = [
        {
            (item.nested_key or [item.key])[0]: item.value_json
            for item in row.history.item
        }
        for row in records
        if row.WhichOneof("record_type") == "history"
    ]
    losses = {int(row["_step"]): float(row["loss"]) for row in rows}
    assert losses == {step: 1 / step for step in range(1, 5)}
    (begun, *_) = [row.run for row in records if row.WhichOneof("record_type") == "run"]
    found = (begun.run_id, begun.project, begun.run_group, begun.display_name)
    assert found == (name, "flax_adapt", "work", "tune")


def test_a_tracker_that_fails_is_left_out_and_the_rest_goes_on(
    run, caplog, monkeypatch
):
    class Failing:
        name = "x"

        def __init__(self, *arguments):
            self.calls = 0

        def write(self, step, values):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Failing)
    monkeypatch.setattr(trackers, "parse", lambda names: [names])
    with caplog.at_level(logging.WARNING, "flax_adapt"):
        write(run, "wandb", (1, 2))
    assert [record.message for record in caplog.records] == [
        "wandb failed and is left out from now on: no route to host"
    ]
    steps = [line["step"] for line in logs.read_metrics(run.workdir)]
    assert steps == [1, 2]


def test_what_cannot_begin_or_is_missing_is_one_line(run, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", refuse)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="log=mlflow: mlflow cannot begin: api_key"):
        trackers.Trackers("mlflow", run)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'flax-adapt\[wandb\]'"):
        trackers.parse("wandb")
    assert trackers.parse("") == []
