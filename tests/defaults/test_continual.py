"""continual_pretrain and glad_finetune: stages in order, every cell, the chain."""

import jax
import numpy as np
import pytest
from support import tiny_files

from flax_adapt import data, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import check

pytestmark = pytest.mark.usefixtures("compile_fast")
TASKS = ("task_1_images", "task_2_others")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    found = tiny_files.everything(tmp_path_factory.mktemp("files"))
    third = tiny_files.image_folder(tmp_path_factory.mktemp("third") / "third")
    return {**found, "third": f"folder:{third}"}


def load(config, **arguments):
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return configs.load(f"{config}:{text}")


def continual(files, init="init", **arguments):
    fields = dict(domains=f"{files['images']}+{files['others']}", init=files[init])
    return load("continual_pretrain", **{**fields, **arguments})


def of_text(files, **arguments):
    fields = dict(domains=f"{files['texts']}", init="bert", joint=False)
    return continual(files, **{**fields, **arguments})


def starts(config):
    return {stage.name: stage.init_from for stage in config.stages}


def test_each_domain_starts_from_the_one_before_and_every_cell_from_its_row(files):
    config = continual(files, also=files["third"], seeds=2)
    check.experiment(config)
    found = starts(config)
    assert found["task_1_images"] == "pretrained"
    assert found["task_2_others"] == "stage:task_1_images"
    assert found["joint"] == "pretrained"
    for row in ("pretrained", *TASKS, "joint"):
        wanted = row if row == "pretrained" else f"stage:{row}"
        for domain in ("images", "others", "third"):
            assert found.pop(f"finetune_{row}_on_{domain}") == wanted
    assert set(found) == {*TASKS, "joint"}
    section = config.transfer
    assert section.domains == ("images", "others", "third")
    assert section.rows == ("pretrained", *TASKS)
    assert section.others == ("joint",)
    assert section.finetuned[3][2] == "finetune_joint_on_third"


def test_joint_training_has_every_example_as_often_and_as_many_steps(files):
    config = continual(files, steps=7)
    (joint,) = (stage for stage in config.stages if stage.name == "joint")
    assert joint.num_steps == 14
    assert joint.replay.buffer_size == 16  # all of the other domain
    assert joint.replay.sampling == "uniform"


def test_replay_is_of_all_earlier_domains(files):
    domains = "+".join(files[name] for name in ("images", "others", "third"))
    config = continual(files, domains=domains, rho=0.5, finetune=False)
    first, second, third, _ = config.stages
    assert first.replay is None
    assert [part.source for part in second.replay.data] == [files["images"]]
    sources = [part.source for part in third.replay.data]
    assert sources == [files["images"], files["others"]]
    assert third.replay.ratio == 0.5


@pytest.mark.parametrize("objective", ["classify", "grow", "glad"])
@pytest.mark.parametrize("make", [continual, of_text])
def test_a_supervised_sequence_has_a_head_for_each_or_one_that_grows(
    files, make, objective
):
    config = make(files, objective=objective, finetune=False)
    check.experiment(config)
    models = [stage.model for stage in config.stages]
    assert "joint" not in starts(config)
    assert [model.grow_head for model in models[1:]] == (
        [objective == "grow"] * (len(models) - 1)
    )
    assert all(("head" in model.fresh) != model.grow_head for model in models)
    assert all((model.adaptor is not None) == (objective == "glad") for model in models)


def test_the_classes_of_a_growing_head_are_those_seen_so_far(files):
    config = continual(files, objective="grow", finetune=False)
    assert [stage.data.classes for stage in config.stages] == [("ant", "bee")] * 2


def test_a_growing_head_replays_earlier_labels_as_its_own(files, tmp_path):
    """Experience replay: the same class has the same number, old or new."""
    new = tiny_files.image_folder(tmp_path / "new", classes=("asp", "bee"))
    domains = f"{files['images']}+folder:{new}"
    config = continual(files, domains=domains, objective="grow", rho=0.5)
    check.experiment(config)
    first, second = config.stages[:2]
    assert (first.replay, first.penalties) == (None, ())
    assert [penalty.name for penalty in second.penalties] == ["er"]
    examples = data.open_replay(second.data, second.replay, "", 2)
    assert examples.class_names == ("ant", "bee", "asp")
    labels = examples.labels
    assert [set(part) for part in (labels[:16], labels[16:])] == [{1, 2}, {0, 1}]
    assert len(labels) == 16 + 8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(domains="folder:a/x+folder:b/x"), "also need different names, not"),
        (dict(objective="contrast"), "objective='contrast' is unknown"),
        (dict(objective="mlm"), "objective='mlm' is unknown"),
        (
            dict(objective="classify", rho=0.5),
            "rho=0.5 .*=classify drops .*grow or mae",
        ),
        (dict(objective="glad", rho=0.5), "rho=0.5 .*=glad drops .*grow or mae"),
        (dict(objective="glad", regularizer="l2"), "regularizer='l2' is unknown"),
        (dict(objective="glad", adaptor="lora"), "adaptor='lora' is unknown.*'vector'"),
    ],
)
def test_a_wrong_argument_is_named(files, arguments, text):
    with pytest.raises(UserError, match=text) as error:
        continual(files, **arguments)
    assert "\n" not in str(error.value)


def test_one_domain_has_no_joint_training(files):
    with pytest.raises(UserError, match="give several, or joint=False"):
        continual(files, domains=files["images"])


def glad(files, **arguments):
    return load(
        "glad_finetune",
        **dict(dataset=files["images"], init=files["init"], seeds=1) | arguments,
    )


def encoder(workdir, stage):
    export = workdir / "stages" / stage / "export"
    return weights.load(export, "encoder", pooling=None)[1]["encoder"]


def test_glad_goes_on_to_the_next_task_with_its_backbone(files, tmp_path):
    """GLAD, then masked pre-training of what it left, as the released model's would."""
    both = dict(regularizer="masked+preserve", then_by="mae")
    config = glad(files, then=files["others"], **both)
    assert starts(config) == {
        "glad_masked": "pretrained",
        "glad_masked_then_1": "stage:glad_masked",
        "glad_preserve": "pretrained",
        "glad_preserve_then_1_warmup": "stage:glad_preserve",
        "glad_preserve_then_1": "stage:glad_preserve_then_1_warmup",
    }
    tiny_files.shrink(config)
    recipe.run(config, tmp_path, force=False)
    for name in ("glad_masked_then_1", "glad_preserve_then_1"):
        export = tmp_path / "stages" / name / "export"
        assert weights.parts(export, "mae") == {"encoder", "decoder"}
    solved, warm, after = (
        encoder(tmp_path, f"glad_preserve{more}")
        for more in ("", "_then_1_warmup", "_then_1")
    )
    jax.tree.map(np.testing.assert_array_equal, solved, warm)
    moved = [tree["block_00"]["mlp"]["up"]["kernel"] for tree in (warm, after)]
    assert np.any(moved[0] != moved[1])
    again = glad(files, then=files["others"], then_by="glad")
    check.experiment(again)
    assert [stage.objective.name for stage in again.stages] == ["glad", "glad"]


@pytest.mark.parametrize("regularizer", ["preserve", "none"])
@pytest.mark.parametrize(
    ("dataset", "init", "then_by", "part"),
    [("images", "vit", "mae", "decoder"), ("texts", "encoder", "mlm", "mlm")],
)
def test_without_masked_modelling_beside_its_head_is_new(
    files, dataset, init, then_by, part, regularizer
):
    """Also from weights that have none; only there is the encoder frozen."""
    given = dict(dataset=files[dataset], init=files[init], regularizer=regularizer)
    then = dict(then=files[dataset], then_by=then_by, then_warmup=7)
    config = glad(files, **given, **then)
    check.experiment(config)
    _, warmup, after = config.stages
    assert (warmup.model.fresh, warmup.num_steps) == ((part,), 7)
    assert (after.model.fresh, after.num_steps) == ((), 500)
    assert [s.optim.freeze[-1:] == ("encoder/.*",) for s in (warmup, after)] == [
        True,
        False,
    ]
    assert bool(config.model.get("decoder")) == (dataset == "images")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(regularizer="ewc"), "regularizer='ewc' is unknown"),
        (dict(preserve="logits"), "preserve='logits' is unknown"),
        (dict(then_by="lora"), "then_by='lora' is unknown"),
        (dict(then_warmup=0), "then_warmup=0 must be at least 1"),
        (dict(adaptor="lora"), "adaptor='lora' is unknown.*'vector'"),
    ],
)
def test_a_wrong_argument_of_glad_is_named(files, arguments, text):
    with pytest.raises(UserError, match=text) as error:
        glad(files, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("glad_finetune", "dataset={images}"),
        ("continual_pretrain", "domains={images}+{others},objective=glad"),
    ],
)
def test_masked_modelling_beside_needs_a_decoder_at_once(files, config, arguments):
    text = "vit has no decoder, which regularizer=masked goes on with; first train one"
    with pytest.raises(UserError, match=text):
        configs.load(
            f"{config}:{arguments},init={{vit}},regularizer=masked".format(**files)
        )


def test_glad_of_texts_is_a_config_too(files):
    config = load(
        "glad_finetune",
        dataset=files["texts"],
        init=files["bert"],
        regularizer="masked+preserve+none",
        adaptor="bottleneck",
        bottleneck=4,
    )
    check.experiment(config)
    masked = config.stages[0].objective.masked
    assert masked.name == "mlm"
    assert np.all([stage.model.adaptor.hidden == 4 for stage in config.stages])
