"""A stage that does not fit into the devices: one line with a setting that fits."""

import re

import jax
import pytest
from support import tiny
from support.mistakes import CONTRAST, MIXING

from flax_adapt.base import config
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import device_memory, recipe, timing
from flax_adapt.experiment.device_memory import DoesNotFitError
from flax_adapt.plan import fitting, plans
from flax_adapt.plan.fitting import Need
from flax_adapt.stage import loop
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding
from flax_adapt.train import step as steps

FULL = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."
)
GIB = 2**30


def experiment(*stages, **changes):
    stages = stages or (tiny.pretrain(batch_size=32),)
    return tiny.experiment(*stages, mesh=dict(data=1, fsdp=8, tensor=1), **changes)


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Devices that are full in the fourth step of the program of an experiment."""
    calls, call = [], steps.CompiledStep.__call__

    def fill(made):
        stage = Stage(made, made.stages[0], 0, tmp_path)
        need = fitting.measure(stage, sharding.make_mesh(made.mesh))
        limit = 0.95 * need.bytes

        def step(self, state, batch):
            calls.append(1)
            found = plans.count_bytes(self.lower(state, batch).compile())
            if sum(found.values()) > limit and len(calls) > 3:
                raise FULL
            return call(self, state, batch)

        monkeypatch.setattr(steps.CompiledStep, "__call__", step)
        monkeypatch.setattr(device_memory, "read_limit", lambda: limit)

    return fill


@pytest.fixture
def run(main, monkeypatch, tmp_path):
    def run(made, *flags):
        fields = config.plain(made)
        monkeypatch.setattr(config, "load", lambda name: config.build(fields))
        where = f"--workdir={tmp_path / 'run'}"
        code, _, err = main("run", "--config=tiny", where, *flags)
        return code, err.strip().split("\n")

    return run


@pytest.mark.usefixtures("compile_fast")
def test_the_line_names_a_setting_with_which_the_same_command_goes_on(
    run, device, tmp_path
):
    made = experiment()
    device(made)
    code, lines = run(made)
    assert code == 2
    (line,) = [line for line in lines if line.startswith("flax-adapt: ")]
    assert (
        "stage pretrain: batch_size=32 does not fit into the memory of 8 x cpu" in line
    )
    assert "fits (needs 0.1" in line
    assert "; the results stay, but for rounding): add it" in line
    assert "Traceback" not in "".join(lines)
    saved = tmp_path / "run/stages/pretrain/checkpoints"
    assert "2" in [path.name for path in saved.iterdir()]
    flags = [word for word in line.split() if word.startswith("--config.")]
    assert flags
    code, lines = run(made, *flags)
    assert code == 0, lines
    assert any("resuming from step 2" in one for one in lines)
    assert (tmp_path / "run/stages/pretrain/result.json").exists()


def fake_measure(stage, mesh, num_classes=0):
    """A GiB of parameters, one for each example, which recomputed blocks make a half."""
    section = stage.config
    activations = section.batch_size / section.optim.accum_steps / 8
    activations *= {"auto": 1, "blocks": 0.5, "full": 0.4}[section.memory.remat]
    return Need(int((1 + activations) * GIB), True)


def advise(monkeypatch, tmp_path, made, limit, name="", measure=fake_measure):
    """The error of a run of the first stage, by another name, on devices of `limit` GiB."""

    @device_memory.explain
    def train(stage):
        raise FULL

    monkeypatch.setattr(fitting, "measure", measure)
    monkeypatch.setattr(device_memory, "read_limit", lambda: int(limit * GIB))
    section = made.stages[0].copy_and_resolve_references()
    with section.unlocked():
        section.name = name or section.name
    with pytest.raises(DoesNotFitError) as error:
        train(Stage(made, section, 0, tmp_path))
    return str(error.value)


@pytest.mark.parametrize(
    ("limit", "flags"),
    [
        (
            3.0,
            "--config.stages.0.memory.remat=blocks --config.stages.0.memory.scan=True",
        ),
        (2.7, "--config.stages.0.memory.remat=full --config.stages.0.memory.scan=True"),
        (0, "--config.stages.0.memory.remat=blocks --config.stages.0.memory.scan=True"),
        (1.5, "--config.stages.0.memory.remat=blocks .*0.optim.accum_steps=4"),
    ],
)
def test_what_changes_least_is_advised(monkeypatch, tmp_path, limit, flags):
    found = advise(monkeypatch, tmp_path, experiment(), limit)
    need = rf"needs [\d.]+ GiB (of {limit:.2f}|instead of 5.00) GiB"
    assert re.search(rf"8 x cpu; {flags} fits \({need}; the results stay", found), found


@pytest.mark.parametrize("stage", [CONTRAST, MIXING])
def test_examples_that_meet_in_a_batch_are_not_parted(monkeypatch, tmp_path, stage):
    made = experiment({**stage, "batch_size": 32})
    found = advise(monkeypatch, tmp_path, made, 1.9)
    assert "accum_steps" not in found
    assert (
        ".batch_size=16 fits (needs 1.80 GiB of 1.90 GiB; a smaller batch changes"
        in (found)
    )
    assert found.endswith("give it with another --workdir")


def test_where_nothing_fits_or_the_search_fails_the_line_names_the_search(
    monkeypatch, tmp_path
):
    def fail(*_):
        raise ValueError("no\ncompiler")

    found = advise(monkeypatch, tmp_path, experiment(), 0.5)
    assert "; nothing that was tried fits; `flax-adapt plan --search` tries" in found
    found = advise(monkeypatch, tmp_path, experiment(), 0.5, measure=fail)
    assert (
        "the search for what fits failed (no compiler); `flax-adapt plan --s" in found
    )


@pytest.mark.parametrize("name", ["again/lr_0.1", "pretrain/held_out/again"])
def test_a_run_of_a_sweep_is_advised_by_the_number_of_its_stage(
    monkeypatch, tmp_path, name
):
    made = experiment(tiny.pretrain(batch_size=32), tiny.pretrain("again"))
    found = advise(monkeypatch, tmp_path, made, 3.0, name)
    assert f"stage {name}: batch_size=32" in found
    assert "; --config.stages.1.memory.remat=blocks" in found


def test_other_errors_of_a_device_and_full_disks_stay(tmp_path):
    made = experiment()
    stage = Stage(made, made.stages[0], 0, tmp_path)
    for text in (
        "INTERNAL: broken",
        'RESOURCE_EXHAUSTED: "x": [No space left on device]',
    ):

        @device_memory.explain
        def train(stage, text=text):
            raise jax.errors.JaxRuntimeError(text)

        with pytest.raises(jax.errors.JaxRuntimeError):
            train(stage)


def test_a_timed_stage_is_advised_too(monkeypatch, tmp_path):
    def fail(*_):
        raise FULL

    monkeypatch.setattr(loop, "Run", fail)
    monkeypatch.setattr(fitting, "measure", fake_measure)
    made = experiment()
    with pytest.raises(DoesNotFitError, match=r"stages\.0\.memory\.remat=blocks"):
        timing.time_stage(made, made.stages[0], tmp_path, None)


def test_another_command_is_told_how_run_takes_the_setting():
    error = DoesNotFitError("stage a is large", "--config.x=1", "needs 1 GiB")
    said = str(error.reword("flax-adapt run --config=adapt:init=a", "then adapt"))
    assert said == (
        "stage a is large; `flax-adapt run --config=adapt:init=a --config.x=1` fits (needs "
        "1 GiB): then adapt"
    )
    nothing = DoesNotFitError("stage a is large", "", "nothing fits")
    assert nothing.reword("flax-adapt run", "then adapt") is nothing


def test_parts_of_a_batch_may_change_in_a_workdir_unless_they_mix(tmp_path):
    for stage, allowed in ((tiny.pretrain(), True), (MIXING, False)):
        workdir = tmp_path / str(allowed)
        (workdir / "stages/pretrain/checkpoints/1").mkdir(parents=True)
        made = tiny.experiment(stage)
        recipe._claim(made, workdir, force=False)
        made.stages[0].optim.accum_steps = 2
        if allowed:
            recipe._claim(made, workdir, force=False)
            # A command without such settings goes on with them.
            kept = device_memory.keep_savings(tiny.experiment(stage), workdir)
            assert config.plain(kept) == config.plain(made)
        else:
            with pytest.raises(UserError, match=r"stages.0.optim.accum_steps: 1 -> 2"):
                recipe._claim(made, workdir, force=False)
