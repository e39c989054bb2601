"""What the configs of text promise beyond their tables."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny_files, tiny_text

from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def test_the_warmup_of_a_new_head_leaves_the_encoder_as_it_was(files, tmp_path):
    arguments = f"dataset={files['texts']},init={files['bert']},mlm_warmup=2"
    config = configs.load(f"bert_self_distill:{arguments}")
    stages = {stage.name: stage for stage in config.stages}
    warmup = stages["mlm_warmup"]
    assert warmup.model.fresh == ("mlm",)
    assert stages["further"].init_from == "stage:mlm_warmup"
    assert stages["distill_1"].init_from == "stage:mlm_warmup"
    alone = ConfigDict({**tiny_files.shrink(config), "stages": (warmup,)})
    recipe.run(alone, tmp_path, force=False)
    after = load_file(tmp_path / "stages/mlm_warmup/export/model.safetensors")
    before = load_file(files["bert"] / "model.safetensors")
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert moved
    assert all(name.startswith("cls.predictions") for name in moved)


def test_numbers_of_pairs_are_learnt_and_measured_by_rank(files, tmp_path):
    rows = [dict(a="the cat", b="cat " * n, score=0.5 * n) for n in range(1, 9)]
    for split in ("train", "test"):
        tiny_text.jsonl(tmp_path / f"pairs/{split}.jsonl", rows)
    config = configs.load(
        f"text_finetune:dataset=jsonl:{tmp_path / 'pairs'},init={files['bert']},"
        "text_field=a,pair_field=b,label_field=score,regress=True"
    )
    (row,) = recipe.run(tiny_files.shrink(config), tmp_path / "run", force=False)
    assert row["metric"] == "spearman"
    assert -1 <= row["mean"] <= 1
    head = load_file(f"{row['export']}/model.safetensors")["classifier.weight"]
    assert head.shape[0] == 1


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        (
            "bert_self_distill",
            "dataset={texts},init={init}",
            "holds a vit; this config",
        ),
        ("vit_finetune", "dataset={images},init={bert}", "holds a bert; this config"),
        (
            "bert_further_pretrain",
            "dataset={texts},init={encoder}",
            "has no masked-language head; give mlm_warmup=STEPS",
        ),
    ],
)
def test_weights_of_another_kind_are_told_at_once(files, name, arguments, told):
    with pytest.raises(UserError, match=told):
        configs.load(f"{name}:{arguments.format(**files)}")


def test_a_split_that_is_not_there_is_told_before_the_first_stage(files, tmp_path):
    arguments = f"dataset={files['texts']},init={files['bert']},test_split=dev"
    config = configs.load(f"bert_further_pretrain:{arguments},finetune=True")
    with pytest.raises(UserError, match="split='dev'"):
        recipe.run(tiny_files.shrink(config), tmp_path, force=False)
    assert not list(tmp_path.iterdir())
