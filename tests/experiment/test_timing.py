"""A stage that is timed: its programs are compiled once, and its runs share them."""

import re

import jax
import pytest
from support import tiny

from flax_adapt import defaults
from flax_adapt.experiment import timing
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


def test_timing_measures_memory_without_compiling_and_a_run_shares_its_programs(
    compiled, tmp_path
):
    optim = defaults.finetune_optim(lr=2e-3, warmup_steps=2)
    config = tiny.experiment(
        tiny.finetune("full", init_from="scratch", optim=optim, num_steps=9)
    )
    (section,), folder = config.stages, tmp_path / "timing"
    with Preemption() as preemption:
        cost = timing.time_stage(config, section, folder, preemption)
        assert sorted(compiled) == ["evaluate", "update"]
        assert cost.bytes > 4 * 3 * 1_000  # parameters and two moments
        assert min(cost.step, cost.fixed, cost.compile) > 0
        loop.train_and_evaluate(Stage(config, section, 0, tmp_path), preemption)
    assert len(compiled) == 2
