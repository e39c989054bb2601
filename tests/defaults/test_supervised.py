"""Arms of a comparison are trained alike: tested on what the configs build."""

import pytest
from support import tiny_files

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError

# Fields that a method may change: what it is. All others are alike.
OWN = dict(
    l2_sp=("optim.weight_decay",),
    recadam=("optim.recadam",),
    mars=("optim.mars_radius", "optim.mars_head_radius", "optim.mars_norms"),
    adaptors=("optim.freeze",),
)
METHODS = "full+lora+l2_sp+recadam+mars+r3f+ema+adaptors+lp_ft"
AFTER = "full+ewc+lwf"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(config, **arguments):
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return configs.load(f"{config}:{text}").stages


def settings(stage):
    """{field: value} of what a comparison must have alike."""
    fields = dict(
        augment=dict(stage.data.augment) if "augment" in stage.data else None,
        subset=dict(stage.data.subset),
        batch_size=stage.batch_size,
        num_steps=stage.num_steps,
        seeds=stage.seeds,
        dropout=stage.model.dropout,
        drop_path=stage.model.drop_path,
        pooling=stage.model.pooling,
        eval=(stage.eval.metric, stage.eval.every_steps, stage.eval.batch_size),
    )
    return fields | {f"optim.{name}": stage.optim[name] for name in stage.optim}


def arms(files, kind, **arguments):
    """{arm: its stage}: all that benchmarks compare, from the same arguments."""
    init = files[dict(images="init", texts="bert")[kind]]
    same = dict(dataset=files[kind], init=init, **arguments)
    found = load("baseline_finetune", method=METHODS, **same)
    found += load("baseline_finetune", method=AFTER, previous=files[kind], **same)[1:]
    found += load("glad_finetune", regularizer="preserve+masked+none", **same)
    return {f"{number} {stage.name}": stage for number, stage in enumerate(found)}


GIVEN = [
    {},
    dict(steps=100, lr=1e-3, batch_size=8, per_class=3, seeds=2, dropout=0.0),
    dict(lrs="1e-4+1e-3", pooling="mean"),
]


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("arguments", GIVEN)
def test_every_arm_has_the_same_training_settings(files, kind, arguments):
    found = arms(files, kind, **arguments)
    first = settings(found["0 finetune_full"])
    for name, stage in found.items():
        if name.endswith("_head"):  # of LP-FT: a stage before the one that is compared
            continue
        own = OWN.get(name.partition("finetune_")[2], ())
        ours = settings(stage)
        unlike = {n for n in first if ours[n] != first[n] and n not in own}
        assert not unlike, name


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_augmentation_is_that_asked_for_in_every_arm(files, augment):
    wanted = defaults.AUGMENTS[augment]
    for name, stage in arms(files, "images", augment=augment).items():
        assert dict(stage.data.augment) == wanted, name
        assert dict(stage.eval.data.augment) == defaults.NO_AUGMENT, name


def test_fine_tuning_in_a_matrix_is_that_of_every_arm_too(files):
    sizes = dict(steps=100, batch_size=8, lr=1e-3)
    (full,) = load(
        "baseline_finetune", dataset=files["images"], init=files["init"], **sizes
    )
    sizes = {f"finetune_{name}": value for name, value in sizes.items()}
    *_, cell = load(
        "continual_pretrain",
        domains=files["images"],
        init=files["init"],
        joint=False,
        **sizes,
    )
    ours, theirs = settings(cell), settings(full)
    assert {n for n in ours if ours[n] != theirs[n]} == {
        "eval"
    }  # how often: at the end
    assert cell.eval.metric == full.eval.metric


# Arguments that load each shipped config with a supervised stage.
SUPERVISED = {
    "baseline_finetune": "dataset={images},init={init}",
    "continual_pretrain": "domains={images}+{others},init={init},objective=classify",
    "glad_finetune": "dataset={images},init={init}",
    "quickstart": "",
    "resize_last_block": "dataset={images},init={init},width=24,objective=classify",
    "small_adapt": "dataset={images},init={init},per_class=0",
    "vit_finetune": "dataset={images},init={init}",
    "vit_further_pretrain": "dataset={images},init={init},finetune=True",
    "vit_self_distill": "dataset={images},init={init}",
}
TEXTS = {
    "bert_further_pretrain": "dataset={texts},init={bert},finetune=True",
    "bert_self_distill": "dataset={texts},init={bert}",
    "text_finetune": "dataset={texts},init={bert}",
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_augmentation_is_an_argument_of_every_supervised_config(files, name):
    arguments = SUPERVISED[name].format(**files)
    for augment in ("none", "crop"):
        text = ",".join(filter(None, (arguments, f"augment={augment}")))
        found = [
            stage.data.augment
            for stage in configs.load(f"{name}:{text}").stages
            if stage.objective.name in ("classify", "glad")
        ]
        assert found
        for one in found:
            assert dict(one) == defaults.AUGMENTS[augment]
    with pytest.raises(UserError, match="augment='mixup' is unknown; choose one of"):
        configs.load(f"{name}:" + ",".join(filter(None, (arguments, "augment=mixup"))))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_not_augmented_and_say_so(files, name):
    arguments = TEXTS[name].format(**files)
    assert configs.load(f"{name}:{arguments},augment=none").stages
    with pytest.raises(UserError, match="augment='flip' is of images; texts are not"):
        configs.load(f"{name}:{arguments},augment=flip")


def test_every_shipped_config_with_a_supervised_stage_is_in_the_list():
    others = {"small_pretrain", "unsup_finetune"}
    assert set(configs.list_shipped()) >= {*SUPERVISED, *TEXTS, *others}
    for name, path in configs.list_shipped().items():
        if name not in {*SUPERVISED, *TEXTS, *others}:
            assert "augment" in path.read_text(), name
