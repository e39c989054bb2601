"""A stage whose head is solved: what it leaves, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from support import tiny

from flax_adapt import data, defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.data.images import image
from flax_adapt.evals import probe
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.usefixtures("compile_fast")


def solved(**changes):
    model = defaults.stage_model(fresh=("head",), head_norm=True)
    fields = dict(num_steps=1, optim=defaults.exact_probe_optim(), model=model)
    return tiny.finetune("probe", **{**fields, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("solved")
    config = tiny.experiment(tiny.pretrain(num_steps=2), solved())
    return workdir, config, recipe.run(config, workdir, force=False)


def features(path, section, pooling="cls"):
    examples = data.open_examples(section, "")
    rows = np.arange(len(examples))
    batch = examples.batch(rows, rows)
    inputs = image.preprocess(batch["image"], None, section, None)
    model, params, _ = weights.from_pretrained(path, "encoder", pooling=pooling)
    x = model.apply({"params": params}, inputs, pooling, method="embed")
    return inputs, np.asarray(x), np.asarray(batch["label"])


def test_its_export_says_what_the_probe_of_eval_says(run):
    workdir, config, rows = run
    section, export = config.stages[1], workdir / "stages/probe/export"
    _, x, y = features(export, section.data)
    inputs, test_x, test_y = features(export, section.eval.data)
    model, params, _ = weights.from_pretrained(export, "classify")
    logits = np.asarray(model.apply({"params": params}, inputs, None))
    right = np.mean(logits.argmax(axis=1) == test_y)
    result = json.loads((workdir / "stages/probe/result.json").read_text())
    assert result["value"] == pytest.approx(right, abs=1e-6)
    assert (result["num_steps"], rows[1]["metric"]) == (1, "accuracy")
    l2 = result["train"]["l2"]
    one = probe.linear_probe(x, y, test_x, test_y, l2=l2, folds=2, seed=0)
    assert right == pytest.approx(one.accuracy, abs=0.01)


def test_the_encoder_stays_to_the_bit(run):
    before, after = (
        weights.from_pretrained(run[0] / f"stages/{name}/export", "encoder")[1]
        for name in ("pretrain", "probe")
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_it_goes_on_from_its_checkpoint_to_the_same_result(run, tmp_path):
    workdir, config, _ = run
    result = workdir / "stages/probe/result.json"
    before = json.loads(result.read_text())
    result.unlink()
    recipe.run(config, workdir, force=False)
    after = json.loads(result.read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_it_does_not_go_on_with_other_evaluation_data(run, tmp_path):
    workdir, config, _ = run
    shutil.copytree(workdir, tmp_path / "run")
    folder = tmp_path / "run/stages/probe"
    (folder / "result.json").unlink()
    before = json.loads((folder / "eval_data.json").read_text())
    (folder / "eval_data.json").write_text(json.dumps({**before, "contents": "0"}))
    text = r"eval.data builtin:digits train is not what the stage began with \(contents"
    with pytest.raises(UserError, match=text):
        recipe.run(config, tmp_path / "run", force=False)


def test_more_than_the_head_cannot_be_solved_for(run):
    optim = defaults.exact_probe_optim(freeze=("encoder/block_00/.*",))
    stage = solved(optim=optim, init_from="scratch")
    with pytest.raises(UserError, match=r"optim.freeze leaves encoder/.* to train"):
        recipe.run(tiny.experiment(stage), run[0].parent / "more", force=False)
