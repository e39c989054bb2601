"""Every shipped config takes the same training settings, and they reach its stages."""

import pytest
from support import tiny_files

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError

IMAGES, TEXTS = "dataset={images},init={init}", "dataset={texts},init={bert}"
# Arguments that load a config, and the stages that its settings of training are of.
CONFIGS = {
    "adapt": (
        *("unlabelled={images},labelled={images},init={init}", "further distill_1"),
    ),
    "baseline_finetune": (f"{IMAGES},method=full+linear_probe", "finetune_full"),
    "bert_further_pretrain": (f"{TEXTS},mlm_warmup=3", "further"),
    "bert_self_distill": (TEXTS, "further distill_1"),
    "chain": (f"{IMAGES},width=24", "finetune_start finetune_rounds"),
    "continual_pretrain": (
        *("domains={images}+{others},init={init}", "task_1_images task_2_others"),
    ),
    "glad_finetune": (IMAGES, "glad_preserve"),
    "mae_finetune": (IMAGES, "finetune"),
    "quickstart": ("", "pretrain"),
    "resize_last_block": (f"{IMAGES},width=8+24,hidden=8", "resized_8 resized_24"),
    "small_adapt": (f"{IMAGES},per_class=2,decoder_warmup=3", "further distill_1"),
    "small_pretrain": ("dataset={images}", "pretrain"),
    "text_finetune": (TEXTS, "finetune"),
    "unsup_finetune": (f"{IMAGES},source={{images}},method=naive+both", "naive both"),
    "vit_finetune": (IMAGES, "finetune"),
    "vit_further_pretrain": (f"{IMAGES},finetune=True", "further"),
    "vit_self_distill": (f"{IMAGES},decoder_warmup=3", "further distill_1"),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


@pytest.fixture
def load(files):
    def load(name, more):
        head = CONFIGS[name][0].format(**files)
        config = configs.load(f"{name}:{head}{',' * bool(head)}{more}")
        return {stage.name: stage for stage in config.stages}

    return load


@pytest.mark.parametrize("name", configs.list_shipped())
def test_every_config_takes_the_same_settings_and_they_reach_its_stages(name, load):
    watch = "watch=pool/rankme,patience=2,on_hurt=rollback"
    stages = load(name, f"steps=40,batch_size=4,lr=0.5,warmup=3,{watch}")
    for stage in (stages[one] for one in CONFIGS[name][1].split()):
        assert (stage.num_steps, stage.batch_size) == (40, 4), stage.name
        assert (stage.optim.lr, stage.optim.warmup_steps) == (0.5, 3), stage.name
        found = [
            stage.watch[x] for x in ("metric", "every_steps", "patience", "on_hurt")
        ]
        assert found == ["pool/rankme", 2, 2, "rollback"], stage.name


@pytest.mark.parametrize("name", configs.list_shipped())
def test_seeds_and_augment_are_of_fine_tuning_where_there_is_any(name, load):
    own = "" if name == "resize_last_block" else ",augment=none"  # it has views
    stages = load(name, f"seeds=2{own}").values()
    tuned = [one for one in stages if one.objective.name in ("classify", "glad")]
    for stage in tuned or [one for one in stages if "warmup" not in one.name]:
        assert stage.seeds == (0, 1) or name == "continual_pretrain", stage.name
        if stage.data.modality == "image" and not stage.data.views:
            assert dict(stage.data.augment) == defaults.NO_AUGMENT, stage.name


@pytest.mark.parametrize("name", configs.list_shipped())
def test_a_pass_over_the_data_has_as_many_steps_as_batches(name, load):
    before, stages = (load(name, f"epochs={n},batch_size=8") for n in (3, 6))
    for one in CONFIGS[name][1].split():
        assert 0 <= stages[one].num_steps - 2 * before[one].num_steps + 1 <= 2, one


def test_new_parts_keep_their_own_steps_and_others_their_proportion(load):
    stages = load("vit_self_distill", "steps=100,compare=False,ablation=twice")
    assert {name: stage.num_steps for name, stage in stages.items()} == {
        **{"decoder_warmup": 3, "twice": 100, "finetune_twice": 10_000}
    }
    stages = load("vit_self_distill", "steps=100,ablation=twice")
    assert (stages["further"].num_steps, stages["twice"].num_steps) == (100, 200)


def test_the_warm_up_keeps_its_share_of_the_steps(load):
    assert load("vit_finetune", "steps=100")["finetune"].optim.warmup_steps == 5


@pytest.mark.parametrize("wrong", ["steps=-1", "lr=-0.1", "warmup=-2", "seeds=-1"])
def test_a_setting_below_its_range_is_refused_by_name(wrong, load):
    with pytest.raises(UserError, match=rf"{wrong} must be above 0"):
        load("vit_self_distill", wrong)


def test_views_are_an_augmentation_of_their_own(load):
    with pytest.raises(UserError, match="augment=crop: stage naive compares two views"):
        load("unsup_finetune", "augment=crop")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("watch=knn", r"watch='knn' is unknown.*target/knn"),
        ("watch=target/knn+rankme", r"watch='rankme' is unknown.*pool/rankme"),
        ("watch=pool/rankme+pool/rankme", "has pool/rankme twice"),
        (
            "watch=target/knn+source/knn",
            "source/knn is measured on.*give source=SOURCE",
        ),
        ("watch=target/knn,on_hurt=stop", "on_hurt='stop' is unknown"),
        ("on_hurt=rollback", "on_hurt=rollback needs a metric"),
        ("watch=target/knn,patience=-1", "patience=-1 must be"),
    ],
)
def test_a_mistake_in_what_is_watched_is_said_before_data_are_read(more, text):
    with pytest.raises(UserError, match=text):
        configs.load(f"quickstart:{more}")


def test_a_stage_that_tries_rates_is_not_watched_and_is_told_so_by_argument(load):
    with pytest.raises(
        UserError, match="watch=target/knn: stage finetune_full tries several"
    ):
        load("baseline_finetune", "lrs=1e-4+1e-3,watch=target/knn")
