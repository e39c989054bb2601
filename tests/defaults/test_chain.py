"""The config chain: which step follows which, from whose weights, and what is left out."""

import re

import numpy as np
import pytest
from support import tiny_files

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.usefixtures("compile_fast")
ALL = "dataset={images},init={init},domains={others}+{images},source={others},width=24"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, arguments):
    return configs.load("chain:" + arguments.format(**files))


def starts(config):
    """{stage: what it starts from}."""
    return {stage.name: stage.init_from for stage in config.stages}


def test_every_step_starts_from_the_weights_that_the_one_before_left(files):
    config = load(files, ALL + ",rounds=2,compare=False")
    assert starts(config) == {
        "task_1_others": "pretrained",
        "task_2_images": "stage:task_1_others",
        "unsupervised": "stage:task_2_images",
        "resized": "stage:unsupervised",
        "further": "stage:resized",
        "distill_1": "stage:resized",  # S1: rounds restart where the teacher started
        "distill_2": "stage:resized",
        "glad": "stage:distill_2",
    }
    by_name = {stage.name: stage for stage in config.stages}
    assert by_name["distill_1"].teacher == "stage:further"
    assert by_name["distill_2"].teacher == "stage:distill_1"
    assert by_name["unsupervised"].replay.ratio == 1.0
    assert by_name["unsupervised"].model.resize is None
    after = ("resized", "further", "distill_1", "distill_2", "glad")
    assert {by_name[name].model.resize.width for name in after} == {24}


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (",rounds=0,regularizer=,compare=False,width=24", "resized finetune"),
        (",rounds=0,compare=False", "glad"),
        (",rounds=1,regularizer=", "finetune_start further distill_1 finetune_rounds"),
        (
            ",rounds=0,regularizer=none,source={others}",
            "finetune_start unsupervised finetune_unsupervised glad",
        ),
    ],
)
def test_each_step_can_be_left_out(files, arguments, stages):
    config = load(files, "dataset={images},init={init}" + arguments)
    assert [stage.name for stage in config.stages] == stages.split()


def test_all_arms_are_trained_alike(files):
    """Fine-tuning of the start, after each step, and GLAD: one source of settings."""
    config = load(files, ALL + ",augment=none,lr=2e-4,steps=7,seeds=2,per_class=3")
    arms = [s for s in config.stages if re.match("finetune|glad", s.name)]
    assert len(arms) == 6
    for field in ("data", "optim", "num_steps", "batch_size", "seeds", "sweep", "eval"):
        assert all(arm[field] == arms[0][field] for arm in arms), field


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dataset={images}", "needs dataset=TARGET with labels and init=PATH"),
        ("dataset={images},init={vit}", "has no decoder, which masked modelling of"),
        ("dataset={images},init={init},rounds=-1", "rounds=-1 and width=0 must be at"),
        (
            "dataset={images},init={init},rounds=0,regularizer=",
            "every step is left out",
        ),
        ("dataset={images},init={init},regularizer=all", "regularizer.*all.*masked"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(files, arguments, message):
    with pytest.raises(UserError, match=message):
        load(files, arguments)


@pytest.mark.long  # a dozen programs; images run in test_configs.py
def test_a_text_model_goes_through_all_steps(files, tmp_path):
    arguments = (
        "dataset={texts},init={bert},domains={texts},source={texts},width=8,per_class=2,"
        "seeds=1,seq_len=16,pooling=cls,compare=False"
    )
    config = tiny_files.shrink(load(files, arguments))
    rows = recipe.run(config, tmp_path, force=False)
    assert all(np.isfinite(row["mean"]) for row in rows)
    names = [row["stage"] for row in rows]
    assert names[1:] == ["unsupervised", "resized", "further", "distill_1", "glad"]
    left = weights.model_config(rows[-1]["export"])
    assert left["last_block"]["width"] == 8
    assert left["adaptor"] is None
