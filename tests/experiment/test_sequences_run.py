"""Sequences that hold on to their earlier tasks, as they run at a tiny size."""

import numpy as np
import pytest
from support import tiny_files

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base.logs import read_json
from flax_adapt.experiment import recipe
from flax_adapt.train import fisher

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    found = tiny_files.everything(tmp_path_factory.mktemp("files"))
    third = tiny_files.image_folder(tmp_path_factory.mktemp("third") / "third")
    return {**found, "third": f"folder:{third}"}


def run(files, workdir, names, **arguments):
    """(config, {stage: its training metrics}) of a sequence of two steps a task."""
    domains = "+".join(files[name] for name in names)
    fields = dict(domains=domains, init=files["init"], finetune=False, **arguments)
    text = ",".join(f"{name}={value}" for name, value in fields.items())
    config = tiny_files.shrink(configs.load(f"continual_pretrain:{text}"))
    for stage in config.stages:
        if stage.fisher is not None:
            stage.fisher.update(num_examples=6)
    recipe.run(config, workdir, force=False)
    results = {s.name: read_json(workdir / f"stages/{s.name}/result.json")
               for s in config.stages}  # fmt: skip
    return config, {name: result["train"] for name, result in results.items()}


def test_ewc_without_labels_holds_each_task_by_its_masked_loss(files, tmp_path):
    names = ("images", "others", "third")
    _, train = run(files, tmp_path, names, method="ewc", joint=False)
    tasks = [f"task_{t}_{name}" for t, name in enumerate(names, start=1)]
    held = [fisher.load(tmp_path / "stages" / t / fisher.FILE) for t in tasks[:2]]
    for leaves in held:
        assert np.any(leaves["decoder/predict/kernel"])
        assert np.any(leaves["encoder/block_00/mlp/up/kernel"])
    assert not (tmp_path / "stages" / tasks[2] / fisher.FILE).exists()
    assert "ewc" not in train[tasks[0]]
    # Of one task it starts at 0; of two not, since their weights differ.
    assert train[tasks[2]]["ewc"] > train[tasks[1]]["ewc"] > 0


def test_der_compares_stored_logits_and_a_joint_model_has_one_head(files, tmp_path):
    fields = dict(objective="grow", method="der", buffer_size=5)
    _, train = run(files, tmp_path, ("images", "others"), **fields)
    assert {"der", "er"} <= set(train["task_2_others"])
    assert np.isfinite(train["task_2_others"]["der"])
    drawn = read_json(tmp_path / "stages/task_2_others/replay.json")
    assert len(drawn["names"]) == 5
    whole = read_json(tmp_path / "stages/joint/replay.json")
    assert (len(whole["names"]), whole["sampling"]) == (16, "joint")
    model = weights.from_pretrained(tmp_path / "stages/joint/export", "classify")[0]
    assert model.num_classes == 2
