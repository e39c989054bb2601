"""continual_pretrain: stages in order, every cell, what is drawn, what is not forgotten."""

from pathlib import Path

import numpy as np
import pytest
from support import tiny_files

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.stage import check

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
    assert drawn(joint, batch_size=8, num_batches=4) == {0: 0.5, 1: 0.5}


def drawn(stage, batch_size, num_batches):
    """{source: its share of the rows of so many batches}, as the stage draws them."""
    if stage.replay is None:
        return {0: 1.0}
    examples = data.open_replay(stage.data, stage.replay, "", stage.num_steps)
    ends = [len(examples.target)]
    for section in data.replay_sections(stage.replay):
        ends.append(ends[-1] + len(data.open_examples(section, "")))
    order = examples.order(batch_size, 0)
    rows = np.concatenate([order[k] for k in range(num_batches)])
    sources, counts = np.unique(
        np.searchsorted(ends, rows, side="right"), return_counts=True
    )
    return dict(zip(sources.tolist(), counts / len(rows), strict=True))


SIZES = dict(photo=167, art=205, cartoon=234, sketch=393)  # PACS's, a tenth of them


@pytest.mark.parametrize("objective", ["mae", "classify", "grow", "glad"])
def test_a_joint_epoch_has_every_example_of_every_domain_once(
    files, tmp_path, objective
):
    """Domains of other sizes are drawn in proportion: .167 .205 .234 .393."""
    image = next(Path(files["images"].removeprefix("folder:")).glob("train/*/*.png"))
    for name, size in SIZES.items():
        for split in ("train", "test"):
            (tmp_path / name / split / name).mkdir(parents=True)
        for number in range(size):
            (tmp_path / name / "train" / name / f"{number}.png").symlink_to(image)
    domains = "+".join(f"folder:{tmp_path / name}" for name in SIZES)
    config = continual(files, domains=domains, objective=objective, finetune=False)
    (joint,) = (stage for stage in config.stages if stage.name == "joint")
    shares = drawn(joint, batch_size=27, num_batches=37)  # 999: an epoch
    assert shares == pytest.approx({n: s / 999 for n, s in enumerate(SIZES.values())})
    labelled = objective != "mae"
    assert joint.data.classes == (tuple(SIZES) if labelled else ())
    assert (joint.objective.name == "glad") == (objective == "glad")
    assert ("head" in joint.model.fresh, joint.model.grow_head) == (labelled, False)


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
    names = [name for name in starts(config) if name != "joint"]
    assert [model.grow_head for model in models[1 : len(names)]] == (
        [objective == "grow"] * (len(names) - 1)
    )
    assert all(("head" in model.fresh) != model.grow_head for model in models)
    assert all((model.adaptor is not None) == (objective == "glad") for model in models)


def test_the_classes_of_a_growing_head_are_those_seen_so_far(files):
    config = continual(files, objective="grow", finetune=False, joint=False)
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
            "rho=0.5 .*=classify drops .*use objective=grow, or method=none|ewc",
        ),
        (dict(objective="glad", rho=0.5), "rho=0.5 .*=glad drops .*objective=grow, or"),
        (
            dict(method="lwf"),
            "method=lwf .*=mae has no predictions .*use objective=grow",
        ),
        (
            dict(method="der"),
            "method=der .*=mae has no predictions .*use objective=grow",
        ),
        (
            dict(method="er", objective="classify"),
            "method=er .*=classify drops the head",
        ),
        (
            dict(method="ewc", objective="glad"),
            "=glad drops .* use objective=classify or",
        ),
        (dict(method="ewc", rho=0.5), "rho=0.5 .* of replay, which method=ewc has not"),
        (dict(method="ewc", penalty=-1.0), "penalty=-1.0 is the weight of a method's"),
        (dict(penalty=1.0), "penalty=1.0 is the weight .* and a method"),
        (dict(method="si"), "method='si' is unknown; choose one of .*'online_ewc'"),
        (dict(objective="classify", augment="mixup"), "augment='mixup' is unknown"),
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


THREE = ("images", "others", "third")


def sequence(files, objective, method, **arguments):
    domains = "+".join(files[name] for name in THREE)
    fields = dict(objective=objective, method=method, finetune=False, joint=False)
    return continual(files, domains=domains, **fields, **arguments).stages


@pytest.mark.parametrize(("method", "decay"), [("ewc", 0.0), ("online_ewc", 1.0)])
@pytest.mark.parametrize("objective", ["mae", "classify", "grow"])
def test_ewc_holds_each_task_and_online_ewc_the_last_with_all_fishers(
    files, objective, method, decay
):
    stages = sequence(files, objective, method, penalty=20.0)
    of = ("stage:task_1_images", "stage:task_2_others")
    wanted = ((), of[:1], of if method == "ewc" else of[1:])
    held = [stage.penalties[0].of if stage.penalties else () for stage in stages]
    assert tuple(held) == wanted
    assert {p.weight for stage in stages for p in stage.penalties} == {20.0}
    labels = "empirical" if objective == "mae" else "model"
    found = [
        stage.fisher and (stage.fisher.labels, stage.fisher.decay) for stage in stages
    ]
    assert found == [(labels, decay), (labels, decay), None]


def test_lwf_replays_nothing_and_keeps_the_predictions_of_the_task_before(files):
    first, *others = sequence(files, "grow", "lwf")
    assert first.penalties == ()
    for stage, of in zip(others, ("task_1_images", "task_2_others"), strict=True):
        ((name, before),) = ((p.name, p.of) for p in stage.penalties)
        assert (name, before, stage.replay) == ("lwf", f"stage:{of}", None)


def test_er_and_der_replay_a_buffer_of_all_earlier_tasks(files):
    for method, names in (("er", ["er"]), ("der", ["der", "er"])):
        first, _, third = sequence(files, "grow", method, buffer_size=5)
        assert (first.replay, first.penalties) == (None, ())
        assert [penalty.name for penalty in third.penalties] == names
        assert (third.replay.buffer_size, third.replay.ratio) == (5, 1.0)
        sources = [section.source for section in third.replay.data]
        assert sources == [files["images"], files["others"]]
    assert third.penalties[0].of == ("stage:task_1_images", "stage:task_2_others")


def test_the_head_of_der_has_all_classes_from_the_first_task_on(files, tmp_path):
    """Logits that are stored have as many as those they are compared with."""
    new = tiny_files.image_folder(tmp_path / "new", classes=("asp", "bee"))
    domains = f"{files['images']}+folder:{new}"
    for method, first in (("der", ("ant", "bee", "asp")), ("er", ("ant", "bee"))):
        fields = dict(domains=domains, objective="grow", method=method, joint=False)
        stages = continual(files, finetune=False, **fields).stages
        assert stages[0].data.classes == first
        assert stages[1].data.classes == ("ant", "bee", "asp")
        assert stages[1].replay.data[0].classes == ("ant", "bee", "asp")


@pytest.mark.parametrize("method", ["er", "ewc", "online_ewc"])
def test_masked_modelling_needs_no_labels_for_what_holds_on_to_domains(files, method):
    for stage in sequence(files, "mae", method):
        assert stage.objective.name == "reconstruct"
        assert all(penalty.name == "ewc" for penalty in stage.penalties)
