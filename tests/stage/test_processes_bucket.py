"""Two real processes with a workdir in a bucket: the numbers of one process in a folder."""

import json

import pytest
from support import storages
from support.two_processes import experiment, run_two

from flax_adapt.base.remote import addresses, copies, store
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.long


def result_of(folder, stage):
    return json.loads((folder / "stages" / stage / "result.json").read_text())


def test_two_processes_write_and_continue_a_run_in_a_bucket(monkeypatch, tmp_path):
    address = f"{storages.start('gs', monkeypatch, tmp_path)}/run"
    recipe.run(experiment(), tmp_path / "alone", force=False)
    stopped = run_two(address, dict(stage="pretrain", step=3))
    assert "stopped at step" in str(stopped)
    storages.delete_copies()  # the processes that go on are on other hosts
    run_two(address)
    at = addresses.parse(address)
    folder = copies.update_copy(
        at, store.list_objects(at), tmp_path / "back", deletes=True
    )
    for stage in ("pretrain", "finetune"):
        ours, theirs = (result_of(f, stage) for f in (folder, tmp_path / "alone"))
        for kind in ("train", "eval"):
            assert ours[kind] == pytest.approx(theirs[kind], rel=1e-5)
    assert (folder / "stages/finetune/export/model.safetensors").exists()


def test_two_processes_refuse_a_workdir_that_one_alone_can_write(monkeypatch, tmp_path):
    address = f"{storages.start('file', monkeypatch, tmp_path)}/run"
    with pytest.raises(AssertionError, match="only one process can write checkpoints"):
        run_two(address)
