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
    shared = (programs.share_training, programs.share_train_step)
    for share in (*shared, programs.share_eval_step):
        share.cache_clear()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three seeds, and of a stage like them."""
    folder = tmp_path_factory.mktemp("seeds")
    forget()
    stages = (classifier("few", seeds=(0, 1, 2)), classifier("again"))
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


def test_three_seeds_and_a_stage_like_them_compile_once(workdir):
    counts = json.loads((workdir / "counts.json").read_text())
    assert [*counts] == ["few/seed_0"]  # nothing was compiled in the other three
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
}
OPTIM = dict(lr=1e-3, warmup_steps=1)
OTHER = {
    "rate": dict(optim=defaults.finetune_optim(**{**OPTIM, "lr": 2e-3})),
    "frozen": dict(optim=defaults.finetune_optim(**OPTIM, freeze=("encoder/.*",))),
    "steps": dict(num_steps=5),
    "pixels": dict(data={**tiny.digits(subset=tiny.FEW), "mean": (0.4,)}),
    "augment": dict(
        data=tiny.digits(subset=tiny.FEW, augment={**defaults.NO_AUGMENT, "flip": True})
    ),
    "dropout": dict(model=defaults.stage_model(dropout=0.3, fresh=("head",))),
    "average": dict(ema=dict(momentum=0.9, schedule="constant", warmup=True)),
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


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_every_setting_of_a_step_is_another_program(changes):
    assert recipe_of(finetune(**changes)) != recipe_of(finetune())
