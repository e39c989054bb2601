"""Exact resume of images and of texts: SIGKILL, SIGTERM, other devices, the same bits."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from support import tiny_runs
from support.depth import long_except
from support.runner import assert_identical, last_seen, launch, tensors


@pytest.fixture(scope="module", params=long_except(["image"], tiny_runs.MODALITIES))
def straight(request, tmp_path_factory):
    """A run that nothing disturbs, in a folder named as its modality."""
    root = tmp_path_factory.mktemp("straight") / request.param
    root.mkdir()
    workdir = root / "run"
    done = launch(workdir, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


STOPS = [
    ("SIGKILL", "pretrain", 4),  # step 3 is done but not saved
    ("SIGKILL", "distill", 2),  # nothing saved yet
    ("SIGTERM", "distill", 4),
    ("SIGTERM", "finetune", 1),
]
USUAL = [("image", *STOPS[0]), ("text", *STOPS[2])]  # of each kind one


@pytest.mark.parametrize(
    ("straight", "name", "stage", "step"),
    long_except(USUAL, [(m, *stop) for m in tiny_runs.MODALITIES for stop in STOPS]),
    indirect=["straight"],
)
def test_a_stopped_run_goes_on_bit_for_bit(straight, tmp_path, name, stage, step):
    number = getattr(signal, name)
    stop = dict(stage=stage, step=step, signal=number)
    stopped = launch(straight, tmp_path / "run", stop)
    if name == "SIGKILL":
        assert stopped.returncode == -number
    else:
        assert stopped.returncode == 0, stopped.stderr
        assert f"stage {stage} stopped at step {step}" in stopped.stdout
        assert "run the same command to continue" in stopped.stdout
    again = launch(straight, tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert last_seen(tmp_path / "run") == last_seen(straight)
    for each in ("pretrain", "distill", "finetune"):
        assert_identical(tensors(tmp_path / "run", each), tensors(straight, each))


def test_a_finished_run_is_not_run_again(straight):
    before = (
        (straight / "seen.jsonl").read_text(),
        (straight / "results.json").read_text(),
    )
    again = launch(straight, straight)
    assert again.returncode == 0
    assert "all stages were done before" in again.stdout
    after = (
        (straight / "seen.jsonl").read_text(),
        (straight / "results.json").read_text(),
    )
    assert before == after


def test_a_run_goes_on_with_another_number_of_devices(straight, tmp_path):
    stop = dict(stage="pretrain", step=5, signal=signal.SIGKILL)
    launch(straight, tmp_path / "run", stop)
    again = launch(straight, tmp_path / "run", devices=8)
    assert again.returncode == 0, again.stderr
    ours, theirs = (tensors(w, "pretrain")[0] for w in (tmp_path / "run", straight))
    for name, leaf in theirs.items():
        if not name.endswith(
            "key.bias"
        ):  # its gradient is rounding alone: test_step.py
            np.testing.assert_allclose(
                ours[name], leaf, rtol=0, atol=1e-5 * abs(leaf).max()
            )
    assert last_seen(tmp_path / "run") == last_seen(straight)


def test_metrics_have_every_step_once(straight):
    lines = [
        json.loads(x) for x in (straight / "metrics.jsonl").read_text().splitlines()
    ]
    trained = [line for line in lines if "loss" in line]  # not an evaluation
    steps = [line["step"] for line in trained if line["stage"] == "pretrain"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["eval_loss"] > 0


def test_results_have_the_promised_fields(straight):
    rows = json.loads((straight / "results.json").read_text())
    assert [row["stage"] for row in rows] == ["pretrain", "distill", "finetune"]
    for row in rows:
        assert {"stage", "metric", "seeds", "mean", "std", "seconds"} <= set(row)
    assert rows[2]["metric"] in ("accuracy", "macro_f1")
    assert (Path(rows[2]["export"]) / "config.json").exists()


def test_another_config_is_refused_with_the_difference(straight):
    changed = launch(straight, straight, seed=1)
    assert changed.returncode == 2
    assert "seed: 0 -> 1" in changed.stderr
    assert changed.stderr.strip().count("\n") == 0
    assert "Traceback" not in changed.stderr


def test_a_stage_refuses_to_go_on_with_other_data(straight, tmp_path):
    """More rows, or other classes: the order of the examples, or the head, would change."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "stages/finetune/result.json").unlink()
    noted = workdir / "stages/finetune/data.json"
    before = json.loads(noted.read_text())
    noted.write_text(json.dumps({**before, "rows": before["rows"] + 1}))
    again = launch(straight, workdir)
    assert again.returncode == 2
    assert f"rows: {before['rows'] + 1} -> {before['rows']}" in again.stderr


@pytest.mark.long
def test_a_killed_stage_that_watches_keeps_and_rolls_back_the_same_bit_for_bit(
    tmp_path,
):
    """And on another number of devices the same step is kept."""
    root = tmp_path / "watch"
    root.mkdir()
    straight = root / "run"
    assert launch(straight, straight).returncode == 0
    for stage, step in (("near", 3), ("wild", 5)):
        stop = dict(stage=stage, step=step, signal=signal.SIGKILL)
        assert launch(straight, tmp_path / "again", stop).returncode == -signal.SIGKILL
    assert launch(straight, tmp_path / "again").returncode == 0
    stop = dict(stage="held", step=5, signal=signal.SIGKILL)
    launch(straight, tmp_path / "other", stop, devices=2)
    assert launch(straight, tmp_path / "other", devices=4).returncode == 0
    for each in ("near", "wild", "held"):
        ours, theirs, moved = (
            json.loads((w / f"stages/{each}/result.json").read_text())["watch"]
            for w in (tmp_path / "again", straight, tmp_path / "other")
        )
        assert ours == theirs
        assert_identical(*(tensors(w, each) for w in (tmp_path / "again", straight)))
        for name in ("rolled_back", "kept_step", "last_step"):
            assert moved[name] == theirs[name], (each, name)
    start, wild = (tensors(straight, name)[0] for name in ("pretrain", "wild"))
    assert_identical(start, wild)
