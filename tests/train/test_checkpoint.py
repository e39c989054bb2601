"""A damaged checkpoint is set aside for the newest good one, whatever file it is in."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from flax_adapt.base.errors import UserError
from flax_adapt.train import checkpoint, sharding
from flax_adapt.train import state as states


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """The middle third of its bytes, turned over."""
    whole = np.frombuffer(path.read_bytes(), np.uint8).copy()
    whole[len(whole) // 3 : 2 * len(whole) // 3 + 1] ^= 255
    path.write_bytes(whole.tobytes())


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "flipped": flip,
}


@pytest.fixture(scope="module")
def state():
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    norm = {"scale": np.arange(400, dtype=np.float32), "bias": np.ones(4, np.float32)}
    return states.create(
        {"encoder": {"norm": norm}}, optax.adam(1e-3), mesh, seed=0, frozen={}
    )


def opened(folder):
    section = dict(every_steps=2, keep_last=3, keep_best=0)
    section = tiny.experiment(tiny.pretrain(), checkpoint=section).checkpoint
    return checkpoint.Checkpoints(folder, section, "loss", "min")


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    saves = opened(folder)
    for step in (1, 2, 3):
        saves.save(state.replace(step=jnp.int32(step)), {"p": step}, {"a": step}, None)
    saves.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_a_checkpoint_and_never_the_numbers(
    state, copied, damage, caplog
):
    """Every file in turn: it was not needed, or the step before is taken, and it is said."""
    good, taken = copied.parent / "good", set()
    copied.rename(good)
    for file in files_of(good / "3"):
        if "ocdbt.process_0" in file.parts or file.suffix == ".txt":
            continue  # what a process wrote before all was put together: not read
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(good, copied)
        DAMAGES[damage](copied / file.relative_to(good))
        caplog.clear()
        saves = opened(copied)
        found, data, progress = saves.restore(state)
        step = int(found.step)
        assert (data, progress) == ({"p": step}, {"a": step})
        jax.tree.map(np.testing.assert_array_equal, found.params, state.params)
        said = [r for r in caplog.records if r.name.startswith("flax_adapt")]
        assert len(said) == (step == 2)
        assert saves.latest_step() == step
        saves.close()
        taken.add(step)
    assert taken == {2, 3}


def test_the_damaged_step_can_be_written_again(state, copied, caplog):
    shutil.rmtree(copied / "3")
    (copied / "3").mkdir()
    caplog.set_level(logging.WARNING, "flax_adapt")
    saves = opened(copied)
    assert int(saves.restore(state)[0].step) == 2
    assert "the checkpoint of step 3" in caplog.text
    assert "going on from step 2" in caplog.text
    assert (copied.parent / "damaged_checkpoints/3").is_dir()
    saves.save(state.replace(step=jnp.int32(3)), {"p": 3}, {"a": 3}, None)
    saves.close()
    assert int(opened(copied).restore(state)[0].step) == 3


def test_what_fails_once_as_networks_do_is_not_set_aside(
    state, copied, caplog, monkeypatch
):
    saves, asked = opened(copied), []
    read = saves._manager.restore

    def fail_at_first(step, **how):
        asked.append(step)
        if len(asked) == 1:
            raise ConnectionError("reset by peer")
        return read(step, **how)

    monkeypatch.setattr(saves._manager, "restore", fail_at_first)
    assert int(saves.restore(state)[0].step) == 3
    assert asked == [3, 2, 3]
    assert not (copied.parent / "damaged_checkpoints").exists()
    assert "damaged" not in caplog.text


def test_where_all_are_damaged_one_line_says_so_and_nothing_is_moved(state, copied):
    for step in "123":
        (copied / step / "progress/metadata").write_text("{")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read") as caught:
        opened(copied).restore(state)
    assert "step 3: " in str(caught.value)
    assert "step 1: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2", "3"]


def test_a_state_of_another_shape_is_told_in_one_line(state, copied):
    """As after --force with another model."""
    wide = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), state.params)
    with pytest.raises(UserError, match="can be read for this config") as caught:
        opened(copied).restore(state.replace(params=wide))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_that_names_the_last_good_step(
    state, copied, monkeypatch
):
    saves = opened(copied)

    def fail(*arguments, **options):
        raise ValueError(
            'RESOURCE_EXHAUSTED: "x": [OS error 28: No space left on device]'
        )

    monkeypatch.setattr(saves._manager, "save", fail)
    with pytest.raises(UserError, match=r"\(No space left on device\); last good") as e:
        saves.save(state.replace(step=jnp.int32(4)), {}, {}, None)
    assert "step 3; make room" in str(e.value)
    monkeypatch.undo()
    saves.close()
