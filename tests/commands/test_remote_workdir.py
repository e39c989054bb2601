"""A run in a bucket: stopped, and continued by another machine, it is the run in a folder."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy
from support import storages, tiny
from support.depth import long_except

from flax_adapt import __main__
from flax_adapt.base import config as configs
from flax_adapt.base.remote import addresses, copies
from flax_adapt.stage import loop

STAGES = ("pretrain", "finetune")
TIMES = {"seconds", "examples_per_second"}


@pytest.fixture(scope="module")
def experiment():
    stages = tiny.pretrain(num_steps=4), tiny.finetune(num_steps=2)
    return tiny.experiment(*stages, model={**tiny.MODEL, "depth": 1})


@pytest.fixture
def main(monkeypatch, experiment):
    """Runs a command on the experiment; its exit code."""
    monkeypatch.setattr(configs, "load", lambda name: experiment)
    return lambda command, workdir, *more: __main__.main(
        [command, "--config=tiny", f"--workdir={workdir}", *more]
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, experiment):
    """The run in a folder, which nothing stops."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "load", lambda name: experiment)
        line = ["run", "--config=tiny", f"--workdir={folder}", "--noreport"]
        assert __main__.main(line) == 0
    return folder


def stop_at(monkeypatch, label, step):
    """SIGTERM while a stage takes this step, as before a preemption."""
    advance = loop.Run.advance

    def stopping(run, now):
        if (run.stage.label, now) == (label, step):
            os.kill(os.getpid(), signal.SIGTERM)
        advance(run, now)

    monkeypatch.setattr(loop.Run, "advance", stopping)


def timeless(value):
    """JSON values without times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES | {"export"}}
    return [*map(timeless, value)] if isinstance(value, list) else value


def facts_of(files):
    """What two runs have in common, from {name: bytes}."""
    lines = files["metrics.jsonl"].decode().splitlines()
    jsons = (
        "config.json",
        "results.json",
        *(f"stages/{s}/result.json" for s in STAGES),
    )
    tensors = {
        stage: safetensors.numpy.load(files[f"stages/{stage}/export/model.safetensors"])
        for stage in STAGES
    }
    return {
        "metrics": [timeless(json.loads(line)) for line in lines],
        **{name: timeless(json.loads(files[name])) for name in jsons},
    }, tensors


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in copies.list_files(folder)}


def assert_same(address, folder):
    (ours, tensors), (theirs, others) = map(
        facts_of, (storages.get(address), files_of(folder))
    )
    assert ours == theirs
    for stage in STAGES:
        for name, values in others[stage].items():
            np.testing.assert_array_equal(tensors[stage][name], values)


def change_machine():
    """Another host has no copies, and has asked for nothing yet."""
    storages.delete_copies()


@pytest.mark.parametrize("kind", long_except(["file", "gs"], storages.KINDS))
def test_a_run_in_a_bucket_that_was_stopped_is_the_run_in_a_folder(
    kind, main, straight, monkeypatch, tmp_path, capsys
):
    address = f"{storages.start(kind, monkeypatch, tmp_path)}/run"
    with monkeypatch.context() as patch:
        stop_at(patch, "pretrain", 3)
        assert main("run", address, "--noreport") == 0
    assert "stage pretrain stopped at step 3" in capsys.readouterr().out
    there = storages.get(address)
    assert any(name.startswith("stages/pretrain/checkpoints/3/") for name in there)
    assert "stages/pretrain/result.json" not in there
    change_machine()
    assert main("run", address, "--noreport") == 0
    out = capsys.readouterr().out
    assert f"results: {address}/results.json" in out
    assert f"model:   {address}/stages/finetune/export" in out
    assert_same(address, straight)
    change_machine()
    assert main("run", address) == 0
    assert f"{address}: all stages were done before" in capsys.readouterr().out
    there = storages.get(address)
    assert "report.html" in there
    assert not any("lock.json" in name for name in there)


def test_eval_of_a_bucket_is_that_of_a_folder(
    main, straight, monkeypatch, tmp_path, capsys
):
    address = f"{storages.start('file', monkeypatch, tmp_path)}/run"
    storages.put(straight, address)
    assert main("eval", address) == 0
    assert f"results: {address}/eval.json" in capsys.readouterr().out
    shutil.copytree(straight, tmp_path / "run")
    assert main("eval", tmp_path / "run") == 0
    found = (tmp_path / "run" / "eval.json").read_bytes()
    assert storages.get(address)["eval.json"] == found


def test_a_run_in_a_bucket_keeps_its_config(
    main, straight, monkeypatch, tmp_path, capsys
):
    address = f"{storages.start('file', monkeypatch, tmp_path)}/run"
    shutil.copytree(straight, addresses.parse(address).path)
    assert main("run", address, "--config.seed=3") == 2
    fetched, error = capsys.readouterr().err.splitlines()
    assert fetched.startswith(f"{address}: fetching ")
    assert error.startswith(
        f"flax-adapt: {address} was made with another config (seed: 0"
    )


def test_exports_of_a_bucket_are_weights_for_other_commands(
    straight, monkeypatch, tmp_path, capsys
):
    address = f"{storages.start('file', monkeypatch, tmp_path)}/run"
    storages.put(straight, address)
    assert __main__.main(["report", f"--workdir={address}"]) == 0
    assert f"report:  {address}/report.html" in capsys.readouterr().out
    more = ["--data=builtin:digits", "--batch_size=64"]
    for command, stage, ending in (
        ("features", "pretrain", "npz"),
        ("predict", "finetune", "csv"),
    ):
        found = []
        for place in (address, straight):
            out = tmp_path / f"{len(found)}.{ending}"
            line = [
                command,
                f"--init={place}/stages/{stage}/export",
                *more,
                f"--out={out}",
            ]
            assert __main__.main(line) == 0
            found.append(out)
        if ending == "csv":
            assert found[0].read_text() == found[1].read_text()
        else:
            one, other = map(np.load, found)
            np.testing.assert_array_equal(one["embeddings"], other["embeddings"])
