"""A workdir that the version before began and did not finish goes on, to its numbers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

OLD = Path(__file__).parent / "workdir_0_1"
CLOSE = 1e-5  # other processors round otherwise; here the numbers are equal to 1e-6
TIMES = {"seconds", "examples_per_second"}


def lines_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        (row["step"], name): value
        for row in rows
        if row["stage"] == "finetune/seed_1"
        for name, value in row.items()
        if name not in {"stage", *TIMES}
    }


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The workdir after today's code went on, in a process of its own (one device)."""
    workdir = tmp_path_factory.mktemp("older") / "run"
    shutil.copytree(OLD / "run", workdir)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "finetune/seed_1", "st')  # of a kill in mid-write
    command = [sys.executable, "-m", "flax_adapt", "run"]
    command += [f"--config={OLD / 'config.py'}", f"--workdir={workdir}", "--noreport"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 13" in done.stderr
    return workdir


def test_it_gets_the_numbers_of_the_version_before(resumed):
    ours, theirs = (
        lines_of(folder / "metrics.jsonl") for folder in (resumed, OLD / "expected")
    )
    # Everything of before is there with its value; there may be more now.
    assert {name: ours.get(name) for name in theirs} == pytest.approx(theirs, rel=CLOSE)
    assert {step for step, _ in ours} == {4, 8, 12, 16, 20, 24, 28, 32, 36, 40}


def test_its_result_and_model_are_those_of_the_version_before(resumed):
    folder, expected = resumed / "stages/finetune/seed_1", OLD / "expected"
    ours, theirs = (
        json.loads((each / "result.json").read_text()) for each in (folder, expected)
    )
    for part in ("train", "eval"):
        measured = {name: ours[part].get(name) for name in theirs[part]}
        assert measured == pytest.approx(theirs[part], rel=CLOSE)
    for name in theirs.keys() - {"train", "eval", *TIMES}:
        assert ours[name] == theirs[name]
    ours, theirs = (
        load_file(path / "model.safetensors") for path in (folder / "export", expected)
    )
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        if name.endswith("key.bias"):
            continue  # its gradient is rounding alone: test_step.py
        limit = CLOSE * np.abs(leaf).max()
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=limit, err_msg=name)


def test_what_was_finished_before_was_not_done_again(resumed):
    ours, theirs = (
        json.loads((folder / "results.json").read_text())
        for folder in (resumed, OLD / "expected")
    )
    for mine, old in zip(ours, theirs, strict=True):
        for name in old.keys() - {"export", *TIMES}:
            wanted = old[name]
            if name in {"values", "mean", "std", "gain"}:
                wanted = pytest.approx(wanted, rel=CLOSE)
            assert mine[name] == wanted
    assert ours[0]["seconds"] == theirs[0]["seconds"]
