"""Exact resume of what contrast carries: the key encoder, the queue, the replayed rows."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from support.runner import assert_identical, last_seen, launch, tensors


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbs, in a folder named as its experiment."""
    root = tmp_path_factory.mktemp("straight") / "contrast"
    root.mkdir()
    workdir = root / "run"
    done = launch(workdir, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        # Step 3 is done but not saved.
        pytest.param("moco_v3", 4, marks=pytest.mark.long),
        ("moco_v2", 5),  # the queue has gone round once
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(straight, tmp_path, stage, step):
    """The whole state: parameters, optimizer, key encoder and queue."""
    stop = dict(stage=stage, step=step, signal=signal.SIGKILL)
    assert launch(straight, tmp_path / "run", stop).returncode == -signal.SIGKILL
    again = launch(straight, tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert last_seen(tmp_path / "run") == last_seen(straight)
    for each in ("moco_v3", "moco_v2"):
        ours, theirs = tensors(tmp_path / "run", each), tensors(straight, each)
        assert "key_encoder" in theirs[1]["extra"]
        assert_identical(ours, theirs)


@pytest.mark.long
def test_the_queue_goes_on_with_another_number_of_devices(straight, tmp_path):
    """It is spread over the devices: 48 keys, 6 on each of 8."""
    stop = dict(stage="moco_v2", step=5, signal=signal.SIGKILL)
    launch(straight, tmp_path / "run", stop)
    again = launch(straight, tmp_path / "run", devices=8)
    assert again.returncode == 0, again.stderr
    ours, theirs = (
        tensors(w, "moco_v2")[1]["extra"] for w in (tmp_path / "run", straight)
    )
    assert ours["queue"].shape == (48, 8)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-5),
        ours,
        theirs,
    )


def test_the_replayed_examples_are_in_the_workdir(straight):
    for stage in ("moco_v3", "moco_v2"):
        noted = json.loads((straight / f"stages/{stage}/replay.json").read_text())
        assert len(noted["names"]) == 40  # half as many as the target's 80
        assert len(set(noted["names"])) == 40


def test_a_stage_refuses_to_go_on_with_other_replayed_examples(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "stages/moco_v3/result.json").unlink()
    noted = workdir / "stages/moco_v3/replay.json"
    record = json.loads(noted.read_text())
    noted.write_text(json.dumps({**record, "names": record["names"][:-1]}))
    again = launch(straight, workdir)
    assert again.returncode == 2
    assert "is not what the stage began with (names.39: - -> " in again.stderr
    assert "Traceback" not in again.stderr


def test_the_export_is_an_encoder(straight):
    """The heads are dropped; what is kept starts any other stage."""
    exported, _ = tensors(straight, "moco_v3")
    assert not [name for name in exported if "projector" in name or "predictor" in name]
    assert [name for name in exported if "layer.1.attention" in name]
