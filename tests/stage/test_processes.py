"""Two real processes on one machine: the numbers, files and stops of one process."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny
from support.two_processes import MODEL, experiment, run_two

from flax_adapt import __main__, weights
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.train import checkpoint, fisher, preemption, sharding


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, its eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    recipe.run(experiment(), workdir, force=False)
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two processes that got SIGTERM, and what they printed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, run_two(workdir, dict(stage="pretrain", step=3))


@pytest.fixture(scope="module")
def together(stopped, tmp_path_factory):
    """Two processes that went on to the end."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(stopped[0], workdir)
    return workdir, run_two(workdir)


def assert_same_run(workdir, other, stages=("pretrain", "finetune")):
    for stage in stages:
        folders = [w / "stages" / stage for w in (workdir, other)]
        ours, theirs = (json.loads((f / "result.json").read_text()) for f in folders)
        for name in ("train", "eval"):
            assert ours[name].keys() == theirs[name].keys()
            for metric, value in ours[name].items():
                assert value == pytest.approx(theirs[name][metric], rel=1e-5), metric
        ours, theirs = (load_file(f / "export" / "model.safetensors") for f in folders)
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            if name.endswith("key.bias"):
                continue  # its gradient is rounding alone: test_step.py
            limit = 1e-5 * np.abs(leaf).max()
            np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=limit)


def assert_same_fisher(*folders):
    one, other = (fisher.load(folder / fisher.FILE) for folder in folders)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        limit = 1e-6 * leaf.max() + 1e-12
        np.testing.assert_allclose(other[name], leaf, rtol=1e-4, atol=limit)


def test_sigterm_stops_both_at_the_same_step_with_a_checkpoint(stopped):
    workdir, printed = stopped
    lines = [text.strip().splitlines()[-1] for text in printed]
    assert lines[0] == lines[1]
    assert lines[0].startswith("stage pretrain stopped at step ")
    step = int(lines[0].split(";")[0].rsplit(" ", 1)[1])
    assert 3 <= step < 8
    assert (workdir / f"stages/pretrain/checkpoints/{step}").is_dir()
    assert not (workdir / "results.json").exists()


def test_two_processes_give_the_numbers_of_one(together, alone):
    assert_same_run(together[0], alone)
    assert "accuracy" in together[1][0]  # the table
    assert "accuracy" not in together[1][1]


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one_on_text(tmp_path):
    """Buckets, packed rows, and F1, which needs the decisions of both."""
    texts = str(tmp_path / "files")
    recipe.run(experiment(texts=texts), tmp_path / "alone", force=False)
    run_two(tmp_path / "run", texts=texts)
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_what_two_processes_saved_one_continues(stopped, alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    recipe.run(experiment(), workdir, force=False)
    assert_same_run(workdir, alone)


def test_every_step_is_logged_once(together):
    text = (together[0] / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    logged = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    wanted = [("pretrain", s) for s in range(1, 9)]
    assert logged == wanted + [("finetune", s) for s in range(1, 5)]
    assert len(list(together[0].glob("events/finetune/*"))) == 1


@pytest.mark.long
def test_processes_that_share_a_model_feed_the_same_rows(alone, tmp_path):
    """Each holds half of every matrix, so both need the whole batch."""
    workdir = tmp_path / "run"
    run_two(workdir, mesh=dict(data=1, fsdp=1, tensor=2), num_stages=1)
    assert_same_run(workdir, alone, ["pretrain"])


@pytest.mark.long
def test_two_processes_replay_what_one_replays(tmp_path):
    """Each draws the same examples of the source, and feeds its part of every batch.

    And so with what a stage is given or leaves for others: logits of old rows, and Fisher
    information.
    """
    task, names = tmp_path / "task", [str(number) for number in range(10)]
    model = tiny.build("classify", {**MODEL, "decoder": None}, num_classes=10)
    weights.save_pretrained(task, model, tiny.params_of(model), class_names=names)
    changes = dict(num_stages=1, replays=True, task=str(task))
    workdirs = tmp_path / "alone", tmp_path / "run"
    recipe.run(experiment(**changes), workdirs[0], force=False)
    run_two(workdirs[1], **changes)
    assert_same_run(workdirs[1], workdirs[0], ["pretrain", "held"])
    assert_same_fisher(*(workdir / "stages/held" for workdir in workdirs))
    alone, together = (
        json.loads((workdir / "stages/pretrain/replay.json").read_text())
        for workdir in workdirs
    )
    assert alone == together
    assert len(alone["names"]) == 898


class Service:
    """JAX's preemption service on one of two processes that are always level.

    After a signal, all stop where `number` is one above the largest so far; never later.
    """

    def __init__(self):
        self.last, self.stops_at = 0, None

    def signal(self):
        self.stops_at = self.last + 1

    def poll(self, number):
        self.last = number
        return number == self.stops_at


@pytest.mark.parametrize("after", range(1, 8))
def test_a_signal_at_any_time_is_heard_at_the_next_poll(monkeypatch, after):
    """Also after the last step of a stage, when the next one starts again at step 0."""
    service, handler = Service(), preemption.Preemption()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    name = "reached_preemption_sync_point"
    monkeypatch.setattr(preemption.multihost_utils, name, service.poll)
    assert not any(handler.requested() for _ in range(after))
    service.signal()
    assert handler.requested()


def test_orbax_does_not_poll_the_preemption_service(monkeypatch, tmp_path):
    """It asks with step numbers, from a thread, and so would hide a signal."""
    asked = []
    name = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(name, lambda step: asked.append(step) or False)
    section = tiny.experiment(tiny.pretrain()).checkpoint
    saves = checkpoint.Checkpoints(tmp_path / "saves", section, "loss", "min")
    manager = saves._manager
    assert manager.should_save(1)
    assert not manager.reached_preemption(1)
    saves.close()
    assert not asked


def test_a_process_with_a_mistake_does_not_wait_for_the_others(monkeypatch, capsys):
    """An ordinary exit does, for minutes, and is then aborted with another code."""
    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", codes.append)
    __main__.main(["nope"])
    assert codes == [2]
    assert "'nope' is no command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        (dict(data=8, fsdp=1, tensor=1), (0, 1)),
        (dict(data=2, fsdp=2, tensor=2), (0, 1)),
        (dict(data=1, fsdp=1, tensor=8), (0, 1)),
    ],
)
def test_a_process_alone_feeds_the_whole_batch(sizes, share):
    assert sharding.share_of_process(sharding.make_mesh(sizes)) == share


def test_processes_that_would_share_rows_unevenly_are_refused():
    mesh = type("Mesh", (), dict(shape=dict(data=2, fsdp=1, tensor=3)))
    mesh.local_devices = jax.devices()[:2]
    with pytest.raises(UserError, match="tensor=3 must divide the 2 devices"):
        sharding.share_of_process(mesh)
