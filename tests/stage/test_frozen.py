"""What penalties compare with must fit the stage: classes, pooling, leaves, files."""

import contextlib
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import data, defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import fisher as stage_fisher
from flax_adapt.stage import frozen as stage_frozen
from flax_adapt.stage.frozen import StageStart
from flax_adapt.train import fisher, sharding

pytestmark = pytest.mark.usefixtures("compile_fast")
MODEL = {**tiny.MODEL, "depth": 1, "decoder": None}
OF = "stage:task"


def model_of(classes=3, arch=MODEL, **options):
    return tiny.build("classify", arch, num_classes=classes, **options)


@pytest.fixture
def workdir(tmp_path):
    return tmp_path


def leave(workdir, model, class_names=None, importance=None):
    """What the stage "task" leaves: an export, and the Fisher information if it is given."""
    params = tiny.params_of(model, seed=4)
    folder = workdir / "stages/task"
    weights.save_pretrained(folder / "export", model, params, class_names=class_names)
    if importance is not None:
        fisher.save(folder / fisher.FILE, importance(params))
    return params


def given(workdir, penalty, model=None, names=(), fresh=()):
    """A stage that is about to begin."""
    model = model or model_of()
    task = tiny.finetune("task", init_from="scratch", fisher=defaults.fisher())
    section = tiny.finetune("held", init_from=OF, penalties=(penalty,))
    config = tiny.experiment(task, section, model={**MODEL, **changed(model)})
    (run,) = (s for s in recipe.stage_runs(config, workdir) if s.label == "held")
    examples = SimpleNamespace(class_names=tuple(names))
    fields = (tiny.params_of(model), fresh, examples, sharding.one_device())
    return StageStart(run, model, *fields)


def changed(model):
    return dict(width=model.config.width, heads=model.config.heads)


def squares(params):
    return jax.tree.map(np.square, params)


def frozen(*arguments, **options):
    return stage_frozen.build_frozen(
        given(*arguments, **options), contextlib.ExitStack()
    )


def test_the_old_classes_are_the_first_of_a_head_that_has_grown(workdir):
    params = leave(workdir, model_of(2), ("a", "b"))
    found = frozen(workdir, defaults.lwf(OF), names=("a", "b", "c"))["lwf"]
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("old", "names", "text"),
    [
        (dict(classes=5), None, "'lwf' of 'stage:task' has 5 classes, this stage 3"),
        ({}, ("a", "x"), "its class 1 is 'x', that of this stage 'b'"),
        (dict(pooling="mean"), None, "pools by 'mean', this stage by 'cls'"),
    ],
)
def test_a_classifier_of_other_classes_is_refused(workdir, old, names, text):
    leave(workdir, model_of(**old), names)
    with pytest.raises(UserError, match=text) as caught:
        frozen(workdir, defaults.lwf(OF), names=("a", "b", "c"))
    assert str(caught.value).startswith("stage held: penalties: 'lwf' of 'stage:task'")


def test_an_encoder_is_no_old_classifier(workdir):
    model = tiny.build("encoder", MODEL)
    weights.save_pretrained(
        workdir / "stages/task/export", model, tiny.params_of(model)
    )
    with pytest.raises(UserError, match="has no classifier"):
        frozen(workdir, defaults.lwf(OF))


def test_a_stage_that_left_nothing_is_named(workdir):
    with pytest.raises(UserError, match="`of` of 'lwf'='stage:task': there is no"):
        frozen(workdir, defaults.lwf(OF))


def test_ewc_holds_what_both_have_and_says_what_is_free(workdir, caplog):
    caplog.set_level(logging.INFO)
    params = leave(workdir, model_of(5), importance=squares)
    found = frozen(workdir, defaults.ewc(OF))["ewc"]
    assert set(found) == {"fisher", "center"}
    for part, tree in found.items():
        assert set(tree) == {"encoder"}
        expected = params["encoder"] if part == "center" else squares(params)["encoder"]
        jax.tree.map(np.testing.assert_array_equal, tree["encoder"], expected)
    assert "held: 'ewc' leaves free: head/bias, head/kernel" in caplog.messages


@pytest.mark.parametrize("fresh", [(), ("head/kernel", "head/bias")])
def test_ewc_does_not_hold_a_new_head_of_as_many_classes(workdir, fresh):
    leave(workdir, model_of(), importance=squares)
    found = frozen(workdir, defaults.ewc(OF), fresh=fresh)["ewc"]
    assert ("head" in found["fisher"]) == (not fresh)


@pytest.mark.parametrize(
    ("importance", "text"),
    [
        (None, "'ewc' of 'stage:task': there is no .*run without a section `fisher`"),
        (lambda params: {"encoder": squares(params)["encoder"]}, "is not of the model"),
        (
            lambda params: jax.tree.map(lambda leaf: np.ones((1, 2)), params),
            "is not of the model beside it: encoder/",
        ),
    ],
)
def test_a_fisher_of_another_model_is_refused(workdir, importance, text):
    leave(workdir, model_of(), importance=importance)
    with pytest.raises(UserError, match=text):
        frozen(workdir, defaults.ewc(OF))


def test_ewc_of_another_architecture_is_refused(workdir):
    leave(workdir, model_of(), importance=squares)
    other = model_of(arch={**MODEL, "width": 8, "heads": 1, "mlp_dim": 12})
    with pytest.raises(UserError, match="shares no parameter"):
        frozen(workdir, defaults.ewc(OF), other)


def replayed(*penalties, task=None):
    """A config whose second stage replays, with these penalties."""
    old = tiny.digits(subset=tiny.FEW)
    fields = dict(replay=defaults.replay(old, 1.0), init_from=OF)
    task = task or tiny.finetune("task", init_from="scratch")
    return tiny.experiment(task, tiny.finetune("held", penalties=penalties, **fields))


@pytest.mark.parametrize(
    ("penalty", "text"),
    [
        (defaults.der((OF, OF)), "`of` of 'der' names 2 stages for 1 sources"),
        (
            defaults.lwf("stage:tsk"),
            "`of` of 'lwf'='stage:tsk' is no earlier stage; ther",
        ),
        (
            defaults.ewc(OF),
            "`of` of 'ewc', 'stage:task', must be .* a section `fisher`",
        ),
        (
            defaults.l2_sp(beta=-1.0),
            "stage held: penalties: 'l2_sp' alpha=0.1 and beta",
        ),
    ],
)
def test_a_mistake_in_penalties_is_told_before_anything_runs(workdir, penalty, text):
    with pytest.raises(UserError, match=text):
        recipe.run(replayed(penalty), workdir, force=False)
    assert not list(workdir.iterdir())


def with_parts(**parts):
    """What a stage makes of the model: parts that are dropped with the head."""
    return defaults.stage_model(fresh=("head",), **parts)


PARTS = {
    "adaptor": with_parts(adaptor=defaults.adaptor()),
    "projector": with_parts(
        projector=defaults.projector(
            hidden=8, width=8, predictor_layers=0, batch_norm=False
        )
    ),
}


@pytest.mark.parametrize("penalty", [defaults.lwf(OF), defaults.der((OF,))])
@pytest.mark.parametrize(
    "task",
    [
        *(tiny.finetune("task", init_from="scratch", model=part)
          for part in PARTS.values()),
        tiny.pretrain("task"),
    ],
    ids=[*PARTS, "reconstruct"],
)  # fmt: skip
def test_a_stage_that_keeps_no_classifier_is_told_before_anything_runs(
    workdir, task, penalty
):
    text = f"`of` of '{penalty['name']}', 'stage:task', keeps no classifier: name a"
    with pytest.raises(UserError, match=text):
        recipe.run(replayed(penalty, task=task), workdir, force=False)
    assert not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            dict(objective=defaults.reconstruct()),
            "fisher.labels='model' draws classes, .* 'reconstruct' has not: .*'empirical'",
        ),
        (
            dict(objective=defaults.regress()),
            "fisher is of a masked model.* objective 'regress' must be 'reconstruct' or",
        ),
        *(
            (dict(model=part), "a classifier that is kept: .* model.adaptor None")
            for part in PARTS.values()
        ),
        (
            dict(fisher=defaults.fisher(decay=2.0)),
            r"fisher.decay=2.0 must lie in \[0, 1\]",
        ),
        (
            dict(optim=defaults.finetune_optim(mars_radius=1.0, warmup_steps=1)),
            "optim.mars_radius needs weights to stay near, but init_from='scratch'",
        ),
        (
            dict(ema=defaults.ema(momentum=2.0)),
            r"ema.momentum=2.0 must lie in \[0, 1\]",
        ),
    ],
)
def test_a_mistake_in_other_sections_is_told_before_anything_runs(
    workdir, changes, text
):
    fields = {
        "fisher": defaults.fisher(),
        "eval": None,
        "init_from": "scratch",
        **changes,
    }
    config = tiny.experiment(tiny.finetune("task", **fields))
    with pytest.raises(UserError, match=text):
        recipe.run(config, workdir, force=False)
    assert not list(workdir.iterdir())


def written(workdir, devices):
    """The file of Fisher information of 12 examples, by gradients of 4 of them at once."""
    section = defaults.fisher(batch_size=4, num_examples=12)
    task = tiny.finetune("task", init_from="scratch", fisher=section)
    (run,) = recipe.stage_runs(tiny.experiment(task, model=MODEL), workdir)
    run.folder.mkdir(parents=True)
    model, examples = model_of(10), data.open_examples(run.config.data, "")
    sizes = dict(data=devices, fsdp=1, tensor=1)
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    stage_fisher.write(run, model, tiny.params_of(model), examples, mesh)
    return fisher.load(run.folder / fisher.FILE)


def test_more_devices_than_gradients_at_once_give_the_fisher_of_one(workdir):
    one, eight = (written(workdir / f"{count}", count) for count in (1, 8))
    assert one.keys() == eight.keys()
    for name, leaf in one.items():
        limit = 1e-6 * leaf.max() + 1e-12
        np.testing.assert_allclose(eight[name], leaf, rtol=1e-4, atol=limit)


def test_sections_of_penalties_are_whole():
    section = ConfigDict(defaults.l2_sp(alpha=0.3))
    assert (section.alpha, section.beta, section.weight) == (0.3, 0.01, 1.0)
    with pytest.raises(TypeError, match="no such fields"):
        defaults.l2_sp(gamma=1.0)
