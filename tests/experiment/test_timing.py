"""The time of a stage, of its programs, and how a budget in time is shared."""

import re
import types
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import budget, timing
from flax_adapt.objectives import teacher
from flax_adapt.stage import loop, programs
from flax_adapt.stage.stage import Stage
from flax_adapt.train.preemption import Preemption

pytestmark = pytest.mark.usefixtures("compile_fast")
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """Names of the step programs that were compiled, in order."""
    names = []

    def note(event, seconds, **more):
        name = re.search(r"\b(jit_)?(update|evaluate)\b", more.get("fun_name", ""))
        if event == COMPILED and name:
            names.append(name[2])

    programs.share_update.cache_clear()
    programs.share_eval_step.cache_clear()
    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def clock_of(num_steps):
    """A clock: steps of one second, 100 s until the second run, which takes 20 s."""
    steps = [10 + second for step in range(num_steps) for second in (step, step + 1)]
    return types.SimpleNamespace(perf_counter=iter([0, *steps, 100, 120]).__next__)


def test_timing_measures_memory_without_compiling_and_a_run_shares_its_programs(
    compiled, tmp_path, monkeypatch
):
    optim = defaults.finetune_optim(lr=2e-3, warmup_steps=2)
    config = tiny.experiment(
        tiny.finetune("full", init_from="scratch", optim=optim, num_steps=9)
    )
    (section,), folder = config.stages, tmp_path / "timing"
    count = timing.shorten(config, section).num_steps
    with Preemption() as preemption, monkeypatch.context() as patch:
        patch.setattr(timing, "time", clock_of(count))
        cost = timing.time_stage(config, section, folder, preemption)
        assert sorted(compiled) == ["evaluate", "update"]
        assert cost.bytes > 4 * 3 * 1_000  # parameters and two moments
        assert (cost.step, cost.fixed, cost.compile) == (1, 20 - count, 80)
        loop.train_and_evaluate(Stage(config, section, 0, tmp_path), preemption)
    assert len(compiled) == 2


def test_a_distillation_is_timed_with_the_table_of_its_teacher(tmp_path, monkeypatch):
    """Two rounds: the program of the whole table is compiled on top, once."""
    mae = tiny.build("mae")
    weights.save_pretrained(tmp_path / "init", mae, tiny.params_of(mae))
    fields = dict(data=tiny.digits(subset=tiny.FEW), batch_size=8, num_steps=20)
    rounds = [tiny.distill(name, "pretrained", **fields) for name in ("one", "two")]
    config = tiny.experiment(*rounds, init=str(tmp_path / "init"))
    with Preemption() as preemption:
        cost = timing.time_stage(
            config, config.stages[0], tmp_path / "time", preemption
        )
    assert len([*tmp_path.glob(f"time/first/{teacher.TABLE}/*.npz")]) == 1
    # 40 examples are five batches for the teacher, each a third of a step.
    assert cost.tabulates
    assert cost.fixed >= 5 * cost.step / 3
    monkeypatch.setattr(timing, "time_stage", lambda *_: cost)
    work = budget.list_work(config, tmp_path, None)
    assert [one.programs for one in work] == [1, 0]


def test_a_time_is_shared_so_that_all_runs_end_within_it():
    cost = budget.Cost(2.0, 0.5, 0)
    work = [
        budget.Work("adapt", cost, 1, 100, False),
        budget.Work("probe", budget.Cost(3.0, 0.0, 0), 2, 0, True),
        budget.Work("full", cost, 4, 50, True),
    ]
    found = budget.share(work, 120.0, 60.0, "3m")
    after = [
        work[0]._replace(steps=found["steps"]),
        work[1],
        work[2]._replace(steps=found["finetune_steps"]),
    ]
    assert 0.9 * 120 < budget.seconds_of(after) <= 120
    with pytest.raises(UserError, match=r"budget=9s is too short .* at least 1m"):
        budget.share(work, 9.0, 1.0, "9s")


def test_compilation_is_paid_for_each_program_not_for_each_run():
    """Ten runs of three programs: those of seven runs are known."""
    cost = budget.Cost(fixed=2.0, step=0.5, bytes=0, compile=9.0)
    work = budget.Work("full", cost, runs=10, steps=4, tunes=True, programs=3)
    assert budget.seconds_of([work]) == 10 * (2.0 + 4 * 0.5) + 3 * 9.0
    found = budget.share([work], 200.0, 0.0, "200s")
    assert found == {"finetune_steps": int((0.95 * 200 - 20 - 27) / 5)}
    # Rows of adapt.json of before had no compilation.
    old = budget.Work("full", budget.Cost(*[2.0, 0.5, 0]), *[10, 4, True])
    assert budget.seconds_of([old]) == 40


def test_a_rate_that_is_a_constant_is_a_program_of_its_own():
    """Layer decay without a warm-up: three rates at which two stages compile."""
    optim = defaults.finetune_optim(layer_decay=0.75, warmup_steps=0)
    sweep = defaults.sweep((1e-4, 1e-3))
    section = ConfigDict({**tiny.finetune(optim=optim), "sweep": sweep})
    assert budget.list_constant_rates(section) == (1e-4, 1e-3)
    section.optim.warmup_steps = 1
    assert budget.list_constant_rates(section) == ()
    section.optim.recadam = defaults.recadam()
    assert budget.list_constant_rates(section) == (0.0,)


def test_a_step_that_compiles_late_does_not_count_as_a_usual_one(monkeypatch):
    """The second length of texts comes at the fourth step, and compiles for seven seconds."""
    ends = np.cumsum([0, 9, 0, 1, 0, 1, 0, 7, 0, 1, 0, 1]).tolist()
    clock = types.SimpleNamespace(perf_counter=lambda: ends.pop(0))
    monkeypatch.setattr(timing, "time", clock)
    run = mock.Mock(state=types.SimpleNamespace(params=()))
    monkeypatch.setattr(timing.loop, "Run", lambda *_: run)
    stage = types.SimpleNamespace(config=types.SimpleNamespace(num_steps=6))
    assert timing.time_steps(stage, None) == 1
    assert run.finish.called


def test_programs_are_timed_without_the_cache_of_earlier_runs():
    before = jax.config.values["jax_enable_compilation_cache"]
    with timing.compile_cold():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache == before
