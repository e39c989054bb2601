"""A stage computes its teacher's states once; other stages and later runs read them."""

import contextlib

import jax
import numpy as np
import pytest
from support import tiny

from flax_adapt import data, defaults, weights
from flax_adapt.experiment import recipe
from flax_adapt.objectives import teacher
from flax_adapt.stage import data as stage_data
from flax_adapt.stage import frozen as stage_frozen
from flax_adapt.stage import loop
from flax_adapt.stage.frozen import StageStart
from flax_adapt.train import sharding
from flax_adapt.train.preemption import Preemption

MAE = tiny.build("mae")


@pytest.fixture
def workdir(tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        folder = tmp_path / "stages" / name / "export"
        weights.save_pretrained(folder, MAE, tiny.params_of(MAE, seed))
    return tmp_path


def frozen(workdir, name="distill", of="one", **changes):
    """What the loss of a stage reads; it has 40 examples, of which 16 are a batch."""
    few = tiny.digits(subset=tiny.FEW)
    changes = dict(data=few, teacher=f"stage:{of}", num_steps=3) | changes
    stages = [tiny.pretrain(n) for n in ("one", "other")]
    config = tiny.experiment(*stages, tiny.distill(name, **changes))
    (stage,) = (s for s in recipe.stage_runs(config, workdir) if s.label == name)
    examples, mesh = stage_data.open_training(stage), sharding.one_device()
    start = StageStart(stage, MAE, tiny.params_of(MAE), (), examples, mesh)
    with contextlib.ExitStack() as files:
        return stage_frozen.build_frozen(start, files)


def test_the_states_of_a_teacher_are_computed_once_and_kept(workdir, monkeypatch):
    before = frozen(workdir)
    assert {*before} == {teacher.TABLE}  # the teacher itself is not needed any more
    assert before[teacher.TABLE]["00"].shape == (40, 1, 16)
    passes = []
    whole = data.eval_batches
    monkeypatch.setattr(data, "eval_batches", lambda *a: passes.append(1) or whole(*a))
    again = frozen(workdir, name="next_round")
    jax.tree.map(np.testing.assert_array_equal, before, again)
    assert not passes
    other = frozen(workdir, of="other")[teacher.TABLE]["00"]
    assert len(passes) == 1
    assert np.abs(other - before[teacher.TABLE]["00"]).max() > 0.01
    assert {*frozen(workdir, num_steps=2)} == {"teacher"}  # no example comes twice


@pytest.mark.long
def test_a_stage_with_a_table_trains_as_one_whose_teacher_runs_in_every_step(workdir):
    losses, few = [], tiny.digits(subset=tiny.FEW)
    for size in (2**20, 0):
        objective = {**defaults.distill(), "teacher_cache_bytes": size}
        changes = dict(data=few, teacher="stage:one", objective=objective)
        section = tiny.distill(f"with_{size}", num_steps=4, **changes)
        config = tiny.experiment(*map(tiny.pretrain, ("one", "other")), section)
        (stage,) = (
            run
            for run in recipe.stage_runs(config, workdir)
            if run.label == section["name"]
        )
        with Preemption() as preemption:
            losses.append(
                loop.train_and_evaluate(stage, preemption)["train"]["distill"]
            )
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert [path.suffix for path in (workdir / teacher.TABLE).iterdir()] == [".npz"]
