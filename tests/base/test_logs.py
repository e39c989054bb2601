"""What a run writes survives being killed, and holds nothing twice."""

import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError


def write(workdir, stage, steps, *, resumed_from=0):
    with logs.MetricWriter(workdir, stage, step=resumed_from, is_writer=True) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 2})


def steps_of(workdir, stage):
    lines = logs.read_metrics(workdir)
    return [line["step"] for line in lines if line["stage"] == stage]


def test_a_line_holds_stage_step_and_numbers(tmp_path):
    with logs.MetricWriter(tmp_path, "tune", step=0, is_writer=True) as writer:
        writer.write(3, {"loss": jnp.float32(0.5), "accuracy": np.float64(1)})
    expected = {"stage": "tune", "step": 3, "loss": 0.5, "accuracy": 1.0}
    assert logs.read_metrics(tmp_path) == [expected]


def test_resuming_drops_only_this_stages_later_lines(tmp_path):
    write(tmp_path, "first", [1, 2, 3])
    write(tmp_path, "second", [0, 1, 2, 3, 4])
    write(tmp_path, "second", [3, 4, 5], resumed_from=2)
    assert steps_of(tmp_path, "first") == [1, 2, 3]
    assert steps_of(tmp_path, "second") == [0, 1, 2, 3, 4, 5]


def test_starting_over_drops_every_line_of_the_stage(tmp_path):
    write(tmp_path, "first", [0, 1])
    write(tmp_path, "second", [0, 1])
    write(tmp_path, "second", [0, 1])
    assert steps_of(tmp_path, "first") == [0, 1]
    assert steps_of(tmp_path, "second") == [0, 1]


@pytest.mark.parametrize("torn", ['{"stage": "tune", "st', '{"stage": "tune"}', "\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write(tmp_path, "tune", [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert steps_of(tmp_path, "tune") == [1, 2]
    write(tmp_path, "tune", [3], resumed_from=2)
    assert steps_of(tmp_path, "tune") == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "a", "step": 1}\n{"stage"\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not JSON"):
        write(tmp_path, "a", [2], resumed_from=1)


KILLED = """
import os, signal, sys
from flax_adapt.base import logs
writer = logs.MetricWriter(sys.argv[1], "tune", step=0, is_writer=True)
writer.write(1, {"loss": 0.5})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_written_line_survives_being_killed(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert steps_of(tmp_path, "tune") == [1]


def test_only_the_writer_touches_the_disk(tmp_path):
    with logs.MetricWriter(tmp_path, "tune", step=0, is_writer=False) as writer:
        writer.write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert logs.read_metrics(tmp_path) == []


def test_what_json_cannot_hold_becomes_null(tmp_path):
    with logs.MetricWriter(tmp_path, "tune", step=0, is_writer=True) as writer:
        writer.write(1, {"loss": float("nan")})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None


def test_tensorboard_events_are_written(tmp_path):
    write(tmp_path, "tune", [1, 2])
    (events,) = (tmp_path / "events" / "tune").iterdir()
    assert events.read_bytes().count(b"loss") == 2
    assert "tensorflow" not in sys.modules


def test_table_is_aligned():
    rows = [
        {"stage": "tune", "mean": 0.91234, "n": 3},
        {"stage": "distil + tune", "n": 12},
    ]
    assert logs.format_table(rows, ["stage", "mean", "n"]).split("\n") == [
        "stage            mean   n",
        "-------------  ------  --",
        "tune           0.9123   3",
        "distil + tune          12",
    ]


def test_table_without_rows_is_its_head():
    assert logs.format_table([], ["a", "bc"]) == "a  bc\n-  --"


def test_json_round_trips_through_arrays(tmp_path):
    value = {
        "mean": np.float32(0.5),
        "seeds": (0, 1),
        "rows": jnp.arange(2),
        "x": np.inf,
    }
    logs.write_json(tmp_path / "deep" / "results.json", value)
    read = logs.read_json(tmp_path / "deep" / "results.json")
    assert read == {"mean": 0.5, "seeds": [0, 1], "rows": [0, 1], "x": None}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    logs.write_json(tmp_path / "a.json", {"old": 1})

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        logs.write_json(tmp_path / "a.json", {"new": 2})
    assert logs.read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        logs.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("terminal", "enabled", "shown"),
    [
        (True, True, True),
        (True, False, False),
        (False, True, False),
    ],
)
def test_bar_is_shown_only_on_a_terminal(monkeypatch, capsys, terminal, enabled, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with logs.progress(10, initial=4, description="tune", enabled=enabled) as bar:
        logs.show(bar, 6, loss=0.25, examples_per_second=120)
        bar.refresh()
    text = capsys.readouterr().err
    assert bool(text) == shown
    assert ("6/10" in text and "loss 0.25, 120 examples/s" in text) == shown
