"""Every shipped config: whole, locked, and really runs, at a tiny size."""

import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny_files
from support.depth import long_except

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe

SHIPPED = configs.list_shipped()
# What each config is run with, and the stages that this gives. A new config needs a line.
START = "finetune_start further finetune_further"
RUNS = {
    "adapt": ("unlabelled={images},init={init},method=further", "adapt"),
    "baseline_finetune": (
        "dataset={images},init={init},per_class=3,method=full+lp_ft",
        "finetune_full finetune_lp_ft_head finetune_lp_ft",
    ),
    "bert_further_pretrain": ("dataset={texts},init={bert}", "further"),
    "bert_self_distill": (
        "dataset={texts},init={bert},rounds=1,mlm_warmup=2",
        "finetune_start mlm_warmup further finetune_further distill_1"
        " finetune_distilled",
    ),
    "chain": (
        "dataset={images},init={init},per_class=3,domains={others},source={others},"
        "width=24,seeds=1",
        "finetune_start task_1_others finetune_domains unsupervised"
        " finetune_unsupervised resized finetune_resized further distill_1"
        " finetune_rounds glad",
    ),
    "continual_pretrain": (
        "domains={images}+{others},init={init},per_class=3,rho=0.5,finetune=False",
        "task_1_images task_2_others joint",
    ),
    "glad_finetune": (
        "dataset={images},init={init},per_class=3,seeds=1,regularizer=masked+preserve,"
        "then={others}",
        "glad_masked glad_masked_then_1 glad_preserve glad_preserve_then_1",
    ),
    "text_finetune": ("dataset={texts},init={bert},pooling=mean", "finetune"),
    "quickstart": (
        "",
        "pretrain finetune_only further further_finetune distill distill_finetune",
    ),
    "mae_finetune": ("dataset={images},init={init}", "finetune"),
    "resize_last_block": (
        "dataset={images},init={init},width=8+24,hidden=8,variant=resized+random+same",
        "resized_8 resized_24 random_8 random_24 same",
    ),
    "small_pretrain": ("dataset={images}", "pretrain"),
    "small_adapt": (
        "dataset={images},init={init},per_class=2",
        f"{START} distill_1 finetune_distilled",
    ),
    "unsup_finetune": (
        "dataset={images},source={images},init={init},per_class=3,"
        "method=naive+replay+mixing+both+frozen",
        "naive replay mixing both frozen",
    ),
    "vit_finetune": ("dataset={images},init={init},per_class=3", "finetune"),
    "vit_further_pretrain": (
        "dataset={images},init={init},finetune=True",
        "further finetune",
    ),
    "vit_self_distill": (
        "dataset={images},init={init},rounds=2",
        f"{START} distill_1 distill_2 finetune_distilled",
    ),
}
NEEDS_INIT = {
    "adapt": "the config needs init=MODEL, .* and unlabelled=SOURCE or labelled=SOURCE",
    "mae_finetune": "the config needs dataset=SOURCE with labels and init=PATH",
    "chain": "the config needs dataset=TARGET with labels and init=PATH",
    "small_adapt": "small_adapt needs init=PATH",
    "continual_pretrain": r"the config needs domains=A\+B\+..., .* and init=PATH",
    "glad_finetune": "the config needs dataset=DATA with labels and init=PATH",
    "unsup_finetune": "the config needs dataset=TARGET, source=SOURCE .* and init=PATH",
    "resize_last_block": r"the config needs dataset=DATA to train on, and init=PATH",
    "baseline_finetune": "the config needs dataset=SOURCE and init=PATH",
    **dict.fromkeys(
        ("bert_further_pretrain", "bert_self_distill", "text_finetune"),
        "the config needs dataset=SOURCE .* and init=PATH",
    ),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(name, files, more=""):
    arguments = RUNS[name][0].format(**files) + more
    return configs.load(f"{name}:{arguments}" if arguments else name)


pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """Runs a config once, tiny; `change` may change it further."""

    def run(name, more="", change=lambda config: None):
        workdir = tmp_path_factory.mktemp(name)
        config = load(name, files, more)
        change(tiny_files.shrink(config))
        return workdir, config, recipe.run(config, workdir, force=False)

    return run


def test_every_config_is_run_here():
    assert set(RUNS) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_defaults_alone_make_a_config_or_say_what_is_missing(name):
    if name in NEEDS_INIT:
        with pytest.raises(UserError, match=NEEDS_INIT[name]):
            configs.load(name)
    else:
        assert configs.load(name).stages


def sections(config):
    yield config
    for value in config.values():
        for inner in value if isinstance(value, tuple) else [value]:
            if isinstance(inner, ConfigDict):
                yield from sections(inner)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_typo_in_any_section_is_refused(name, files):
    found = list(sections(load(name, files)))
    assert len(found) >= 15
    for section in found:
        with pytest.raises((AttributeError, KeyError)):
            section.num_stepz = 1


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_goes_through_json_unchanged(name, files):
    fields = configs.plain(load(name, files))
    again = json.loads(json.dumps(fields))
    assert configs.difference(again, fields) == []
    assert len(configs.flatten(again)) > 50


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_says_what_it_is(name):
    text = SHIPPED[name].read_text()
    docstring = text.split('"""')[1]
    for part in ("Run", "Expect", "Source"):
        assert re.search(rf"^{part} +\S", docstring, re.MULTILINE), part
    assert f"config={name}" in docstring
    assert len(configs.summary(SHIPPED[name])) > 20


# The quickstart runs in CI, vit_self_distill below; files of tests beside this one run
# what else there is with other arguments.
USUAL = ("bert_self_distill", "glad_finetune", "small_adapt")


@pytest.mark.parametrize(
    "name", long_except(USUAL, [n for n in RUNS if n != "vit_self_distill"])
)
def test_every_stage_takes_its_steps(name, run):
    check_rows(run(name)[2], RUNS[name][1])


def check_rows(rows, stages):
    assert [row["stage"] for row in rows] == stages.split()
    for row in rows:
        assert np.isfinite(row["mean"])
        tuned = re.search("finetune|glad", row["stage"])
        assert row["metric"] in (("accuracy", "macro_f1") if tuned else ("loss",))


@pytest.fixture(scope="module")
def rounds(run):
    """vit_self_distill in which the rounds do not learn: they stay where they start."""

    def hold_still(config):
        for stage in config.stages:
            if stage.name.startswith("distill"):
                stage.optim.lr = 0.0

    return run("vit_self_distill", change=hold_still)


def tensors(folder):
    leaves = load_file(folder / "model.safetensors")
    return {name: leaf for name, leaf in leaves.items() if name.startswith("vit.")}


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_the_quickstart_without_adapting_steps_is_its_pretraining():
    """launch/quickstart.sh makes the released model so, and goes on with `adapt`."""
    whole, start = configs.load("quickstart"), configs.load("quickstart:adapt_steps=0")
    assert [*start.stages] == [*whole.stages[:1]]


def test_self_distillation_has_all_its_stages(rounds):
    check_rows(rounds[2], RUNS["vit_self_distill"][1])


def test_every_round_starts_from_the_original_weights(rounds, files):
    workdir, config, _ = rounds
    starts = {s.name: s.init_from for s in config.stages}
    assert starts["distill_1"] == starts["distill_2"] == "pretrained"
    original = tensors(files["init"])
    for name in ("distill_1", "distill_2"):
        assert same(tensors(workdir / f"stages/{name}/export"), original)
    assert not same(tensors(workdir / "stages/further/export"), original)


def test_the_teacher_of_a_round_is_the_model_before_it(rounds):
    workdir, config, _ = rounds
    teachers = {s.name: s.teacher for s in config.stages}
    assert teachers["distill_1"] == "stage:further"
    assert teachers["distill_2"] == "stage:distill_1"
    distances = {
        name: json.loads((workdir / f"stages/{name}/result.json").read_text())
        for name in ("distill_1", "distill_2")
    }
    # Round 1 held still, so its model and that of round 2 are the same original.
    assert distances["distill_1"]["train"]["distill"] > 1e-6
    assert distances["distill_2"]["train"]["distill"] < 1e-9


def test_a_linear_probe_trains_the_head_alone(run, files):
    workdir, _, _ = run("vit_finetune", ",linear_probe=True")
    export = workdir / "stages/finetune/export"
    before, after = tensors(files["init"]), tensors(export)
    assert same({name: before[name] for name in after}, after)
    result = json.loads((workdir / "stages/finetune/result.json").read_text())
    assert result["train"]["grad_norm"] > 0
    head = load_file(export / "model.safetensors")["classifier.bias"]
    assert np.abs(head).max() > 0


def test_per_class_takes_that_many_labels_of_every_class(files):
    config = load("vit_finetune", files)
    rest = load("vit_finetune", files, ",test_split=rest")
    few = data.open_examples(config.stages[0].data, "")
    others = data.open_examples(rest.stages[0].eval.data, "")
    np.testing.assert_array_equal(np.bincount(few.labels), [3, 3])
    np.testing.assert_array_equal(np.bincount(others.labels), [5, 5])
    assert not set(few.names) & set(others.names)


def test_a_model_of_another_size_than_the_weights_is_refused(files):
    with pytest.raises(UserError, match=r"model=S is .*384.* holds .*'width': 16"):
        load("vit_finetune", files, ",model=S")


def test_a_config_fits_the_pixels_to_the_weights(files):
    config = load("vit_further_pretrain", files)
    for section in tiny_files.data_sections(config):
        assert (section.image_size, section.channels) == (8, 3)
        assert section.mean == (0.5,) * 3
        assert section.std == (0.25,) * 3


def test_vit_configs_train_from_scratch_where_there_are_no_weights(files):
    images = files["images"]
    config = configs.load(f"vit_further_pretrain:dataset={images},model=Ti")
    assert config.stages[0].init_from == "scratch"
    assert (config.model.width, config.model.image_size) == (192, 224)
    assert len(jax.tree.leaves(config.model.decoder.to_dict())) == 4
