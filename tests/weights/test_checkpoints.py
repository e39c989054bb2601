"""Checkpoints of our own runs as a source of weights."""

import shutil

import jax
import jax.numpy as jnp
import optax
import pytest
from support import tiny
from support.hf_folders import assert_same

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.train import checkpoint, sharding, state
from flax_adapt.weights.formats import table as formats


def save_run(folder, stage, task, config):
    """Writes what a stage leaves: its checkpoints (steps 1 and 2) and its export."""
    model = tiny.build(task)
    params, tx = tiny.params_of(model), optax.adam(1e-3)
    beside = dict(mean=stage.data.mean, std=stage.data.std)
    weights.save_pretrained(folder / "export", model, params, **beside)
    saved = state.create(params, tx, sharding.one_device(), seed=0)
    checkpoints = checkpoint.Checkpoints(
        folder / "checkpoints", config.checkpoint, "loss", "min"
    )
    for step in (1, 2):
        scaled = jax.tree.map(lambda leaf, step=step: leaf * step / 2, saved.params)
        now = saved.replace(step=jnp.int32(step), params=scaled)
        checkpoints.save(now, {}, {}, None)
    checkpoints.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny.experiment(tiny.pretrain(), tiny.finetune())
    for stage, task in zip(config.stages, ("mae", "classify"), strict=True):
        save_run(folder / "stages" / stage.name, stage, task, config)
    logs.write_json(folder / "config.json", configs.plain(config))
    return folder


@pytest.mark.parametrize(
    ("stage", "task"), [("pretrain", "mae"), ("finetune", "classify")]
)
def test_our_checkpoints_are_the_same_as_their_export(workdir, stage, task):
    folder = workdir / "stages" / stage
    model, params, _ = weights.from_pretrained(folder / "export", task)
    for path in (folder / "checkpoints", folder / "checkpoints" / "2"):
        assert formats.detect(path) == "orbax"
        again, loaded, report = weights.from_pretrained(path, task)
        assert again == model
        assert weights.model_config(path) == weights.model_config(folder / "export")
        assert_same(loaded, params)
        assert not report.ignored
    _, first, _ = weights.load(folder / "checkpoints" / "1", task, pooling=None)
    assert_same(first, jax.tree.map(lambda leaf: leaf / 2, params))
    assert all(isinstance(leaf, jnp.ndarray) for leaf in jax.tree.leaves(loaded))
    _, encoder, report = weights.from_pretrained(path, "encoder")
    assert_same(encoder, {"encoder": params["encoder"]})
    dropped = {"pretrain": "decoder", "finetune": "head"}[stage]
    assert set(report.ignored.values()) == {f"{dropped} dropped for task encoder"}
    assert weights.pixel_statistics(path) == weights.pixel_statistics(folder / "export")


def test_a_checkpoint_out_of_its_workdir_is_one_line(workdir, tmp_path):
    checkpoints = workdir / "stages" / "pretrain" / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"whose config\.json is needed"):
        weights.model_config(tmp_path / "checkpoints")
    other = tmp_path / "run" / "stages" / "pretrain" / "checkpoints"
    shutil.copytree(checkpoints, other)
    shutil.rmtree(other / "2" / "state")
    (other / "2" / "state").mkdir()
    (tmp_path / "run" / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(UserError, match="not a readable checkpoint") as error:
        weights.model_config(other)
    assert "\n" not in str(error.value)
