"""Exact resume of all that baselines take along: averages, starts, adaptors, what is frozen."""

import contextlib
import json

import jax
import numpy as np
import pytest
from support import tiny
from support.runner import assert_identical, tensors

from flax_adapt import data, defaults, weights
from flax_adapt.data.images import image
from flax_adapt.experiment import recipe
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import frozen as stage_frozen
from flax_adapt.stage import loop
from flax_adapt.train import fisher, sharding

pytestmark = pytest.mark.usefixtures("compile_fast")
STAGES = ("task", "held", "adapted")
OF = "stage:task"
PENALTIES = (
    defaults.l2_sp(),
    defaults.ewc(OF),
    defaults.r3f(eps=0.1),
    defaults.lwf(OF),
    defaults.er(),
    defaults.der((OF,)),
)


def stage(name, start, **changes):
    """Four steps that start from a head there is."""
    options = {**tiny.finetune()["model"], "fresh": (), **changes.pop("model", {})}
    optim = defaults.finetune_optim(lr=1e-3, warmup_steps=1, **changes.pop("optim", {}))
    fields = dict(num_steps=4, batch_size=16, optim=optim, model=options, eval=None)
    return tiny.finetune(name, init_from=start, **{**fields, **changes})


def experiment():
    section = defaults.fisher(num_examples=20, decay=0.5, batch_size=8)
    old = tiny.digits(subset={**defaults.ALL, "per_class": 3, "seed": 9})
    held = stage(
        "held",
        OF,
        penalties=PENALTIES,
        fisher=section,
        replay=defaults.replay(old, 1.0, buffer_size=12),
        optim=dict(recadam=defaults.recadam(gamma=100.0, t0=2.0), mars_radius=0.004),
        ema=defaults.ema(momentum=0.5),
    )
    adapted = stage(
        "adapted",
        "stage:held",
        penalties=(defaults.ewc("stage:held"),),
        model=dict(lora=defaults.lora(rank=2)),
        ema=defaults.ema(momentum=0.5),
    )
    task = stage("task", "scratch", fisher=section, num_steps=2)
    return tiny.experiment(task, held, adapted, model={**tiny.MODEL, "depth": 1})


class StoppedError(RuntimeError):
    """The run breaks off here."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    recipe.run(experiment(), workdir, force=False)
    return workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, straight):
    """A run that broke off in every stage, and was started again each time."""
    workdir, patch = tmp_path_factory.mktemp("interrupted"), pytest.MonkeyPatch()
    advance, write = loop.Run.advance, stage_fisher.write

    def stopping(stage, step):
        def spy(run, now):
            if (run.stage.label, now) == (stage, step):
                raise StoppedError
            advance(run, now)

        return spy

    def broken(stage, *arguments):
        raise StoppedError

    # Between the export and the Fisher; step 3 is done but not saved.
    for place, name, spy in (
        (stage_fisher, "write", broken),
        (loop.Run, "advance", stopping("held", 4)),
        (loop.Run, "advance", stopping("adapted", 4)),
    ):
        patch.setattr(place, name, spy)
        with pytest.raises(StoppedError):
            recipe.run(experiment(), workdir, force=False)
        patch.undo()
        assert (loop.Run.advance, stage_fisher.write) == (advance, write)
    recipe.run(experiment(), workdir, force=False)
    return workdir


@pytest.mark.parametrize("name", STAGES)
def test_the_state_and_the_export_are_the_same_bit_for_bit(straight, interrupted, name):
    """Averages, starts and adaptors are a part of the state."""
    ours, theirs = tensors(interrupted, name), tensors(straight, name)
    assert_identical(ours, theirs)
    leaves = jax.tree_util.tree_leaves_with_path(theirs[1])
    parts = {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    }
    wanted = {
        "task": (),
        "held": ("extra/ema/", "/start/"),
        "adapted": ("params/lora/",),
    }
    for part in wanted[name]:
        assert [leaf for leaf in parts if part in leaf], part


@pytest.mark.parametrize("name", ["task", "held"])
def test_the_fisher_is_the_same_and_there_once_a_stage_is_done(
    straight, interrupted, name
):
    ours, theirs = (w / f"stages/{name}" / fisher.FILE for w in (interrupted, straight))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_losses_of_every_step_are_the_same(straight, interrupted):
    def losses(workdir):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        keep = ("loss", "ewc", "l2_sp", "r3f", "lwf", "er", "der")
        return {
            (row["stage"], row["step"]): [row.get(name) for name in keep]
            for row in rows
        }

    ours, theirs = losses(interrupted), losses(straight)
    assert ours == theirs
    assert len(ours) == 10


def test_what_is_frozen_is_in_no_checkpoint(straight):
    _, state = tensors(straight, "held")
    assert not state["frozen"]
    assert set(state["extra"]) == {"seed", "ema"}


def test_penalties_that_hold_on_to_the_start_are_zero_there(straight):
    """theta* and w0 are what "held" starts from, and its head is the old one."""
    lines = (straight / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    first, *_, last = (row for row in rows if row["stage"] == "held")
    assert first["l2_sp"] == first["ewc"] == 0
    assert min(last["l2_sp"], last["ewc"]) > 0


def test_the_fisher_decays_from_task_to_task(straight):
    """held: half of what task left, and its own."""
    task, held = (
        fisher.load(straight / f"stages/{n}" / fisher.FILE) for n in STAGES[:2]
    )
    assert set(task) == set(held)
    for name, leaf in held.items():
        assert np.all(leaf >= 0.5 * task[name] * (1 - 1e-6))
    own = [np.max(leaf - 0.5 * task[name]) for name, leaf in held.items()]
    assert max(own) > 0


def test_stored_logits_are_those_of_the_model_of_the_old_task(straight):
    """DER is at distance 0 while the model is still the old one, which drops nothing."""
    run = next(
        s for s in recipe.stage_runs(experiment(), straight) if s.label == "held"
    )
    section = run.config
    examples = data.open_replay(section.data, section.replay, "", 4)
    model, params, _ = weights.from_pretrained(
        straight / "stages/task/export", "classify"
    )
    mesh = sharding.make_mesh(run.experiment.mesh)
    given = stage_frozen.StageStart(run, model, params, (), examples, mesh)
    found = stage_frozen.build_frozen(given, contextlib.ExitStack())["der"]
    first = len(examples.target)
    assert (found["first"], found["logits"].shape) == (first, (12, 10))
    rows = np.arange(first, first + 12)
    pixels = examples.batch(rows, np.arange(12))["image"]
    inputs = image.preprocess(pixels, None, section.data, None)
    expected = model.apply({"params": params}, inputs, None)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)
