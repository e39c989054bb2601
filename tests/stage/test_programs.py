"""Runs with the same program share one: what is compiled again, and what is not."""

import collections
import contextlib
import json

import jax
import pytest
from safetensors.numpy import load_file
from support import tiny

from flax_adapt import defaults, models
from flax_adapt.experiment import recipe
from flax_adapt.stage import draws, loop, programs
from flax_adapt.stage import stage as stages
from flax_adapt.stage.stage import Stage

COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = "/jax/core/compile/jaxpr_trace_duration"


def classifier(name, **changes):
    return tiny.finetune(name, init_from="scratch", **changes)


def forget():
    shared = (programs.share_training, programs.share_update)
    for share in (*shared, programs.share_eval_step):
        share.cache_clear()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three seeds, and of stages that differ in their rate, length and new leaves."""
    folder = tmp_path_factory.mktemp("seeds")
    forget()
    rate = dict(optim=defaults.finetune_optim(lr=3e-3, warmup_steps=1), num_steps=3)
    stages = (
        classifier("few", seeds=(0, 1, 2)),
        classifier("again"),
        classifier("other_rate", **rate),
        tiny.finetune("new_head", init_from="stage:few/seed_0", **rate),
    )
    with counting(folder):
        recipe.run(tiny.experiment(*stages), folder, force=False)
    return folder


@contextlib.contextmanager
def counting(folder):
    """Writes counts.json: {label of a run: {event: how often it happened}}."""
    counts, labels = collections.defaultdict(collections.Counter), []
    train = loop.train_and_evaluate

    def labelled(stage, preemption):
        labels.append(stage.label)
        return train(stage, preemption)

    def count(event, seconds, **more):
        del seconds
        is_step = more.get("fun_name") in ("update", "evaluate")
        if event == COMPILED or (event == TRACED and is_step):
            counts[labels[-1]][event] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_and_evaluate", labelled)
        jax.monitoring.register_event_duration_secs_listener(count)
        yield
        jax.monitoring.unregister_event_duration_listener(count)
    (folder / "counts.json").write_text(json.dumps(counts))


def test_seeds_rates_lengths_and_new_heads_share_one_program(workdir):
    """Of the other stages only the rate by step is compiled, which is tiny."""
    counts = json.loads((workdir / "counts.json").read_text())
    steps = {label: found[TRACED] for label, found in counts.items() if TRACED in found}
    assert [*steps] == ["few/seed_0"]  # no step was traced in the other five
    assert {*counts} <= {"few/seed_0", "other_rate", "new_head"}
    assert counts["few/seed_0"][COMPILED] >= 2
    assert counts["few/seed_0"][TRACED] == 2  # a training and an evaluation step


def test_a_seed_after_others_trains_as_it_does_alone(workdir, tmp_path):
    forget()
    alone = tiny.experiment(classifier("alone", seeds=(1,)))
    recipe.run(alone, tmp_path, force=False)
    one, other = (
        load_file(folder / "export/model.safetensors")
        for folder in (workdir / "stages/few/seed_1", tmp_path / "stages/alone")
    )
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] == other[name]).all(), name


def recipe_of(section):
    config = tiny.experiment(tiny.pretrain(), section)
    stage = Stage(config, config.stages[1], config.stages[1].seeds[0], None)
    stage = stage._replace(config=draws.of_seed(config, *stage[1:3]))
    model = stages.build_model(stage, 3)
    params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    how = (stage, model, stage.config.optim, params, {}, ("head/bias",))
    return programs.recipe_of_training(*how)


SAME = {
    "name": dict(name="other"),
    "seeds": dict(seeds=(3, 4)),
    "batch size": dict(batch_size=8),
    "initial weights": dict(init_from="scratch"),
    "labels": dict(data=tiny.digits(subset={**tiny.FEW, "seed": 5})),
    "evaluation": dict(eval=None),
    "rate": dict(optim=defaults.finetune_optim(lr=2e-3, warmup_steps=0)),
    "steps": dict(num_steps=5),
    "new leaves": dict(model={**tiny.finetune()["model"], "fresh": ()}),
}
AVERAGE = dict(momentum=0.9, schedule="constant", warmup=True)
OPTIM = dict(lr=1e-3, warmup_steps=1)
OTHER = {
    "a rate that is a constant": dict(
        optim=defaults.finetune_optim(layer_decay=0.75, warmup_steps=0)
    ),
    "frozen": dict(optim=defaults.finetune_optim(**OPTIM, freeze=("encoder/.*",))),
    "pixels": dict(data={**tiny.digits(subset=tiny.FEW), "mean": (0.4,)}),
    "augment": dict(
        data=tiny.digits(subset=tiny.FEW, augment={**defaults.NO_AUGMENT, "flip": True})
    ),
    "dropout": dict(model=defaults.stage_model(dropout=0.3, fresh=("head",))),
    "average": dict(ema=AVERAGE),
    "objective": dict(objective={**defaults.classify(), "label_smoothing": 0.2}),
    "memory": dict(memory=dict(remat="blocks", scan=False, logit_chunks=1)),
}


def finetune(**changes):
    data = changes.pop("data", None)
    section = tiny.finetune(**changes)
    return section if data is None else {**section, "data": data}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_data_and_weights_of_another_run_are_no_other_program(changes):
    assert recipe_of(finetune(**changes)) == recipe_of(finetune())


def constant(**fields):
    return dict(optim=defaults.finetune_optim(**{**OPTIM, **fields}))


# Two stages of which the programs have another number of steps, or rate, as a constant.
CONSTANTS = {
    "average": (dict(ema=AVERAGE), dict(ema=AVERAGE, num_steps=5)),
    "RecAdam": (
        constant(recadam=defaults.recadam()),
        {**constant(recadam=defaults.recadam()), "num_steps": 5},
    ),
    "layer decay without warm-up": (
        constant(warmup_steps=0, layer_decay=0.75),
        constant(warmup_steps=0, layer_decay=0.75, lr=2e-3),
    ),
}


@pytest.mark.parametrize(("one", "other"), CONSTANTS.values(), ids=CONSTANTS)
def test_constants_of_a_program_are_told_apart(one, other):
    assert recipe_of(finetune(**one)) != recipe_of(finetune(**other))


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_every_setting_of_a_step_is_another_program(changes):
    assert recipe_of(finetune(**changes)) != recipe_of(finetune())
