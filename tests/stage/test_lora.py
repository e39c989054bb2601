"""A stage with LoRA: its export, its evaluation, its checkpoints, what it refuses."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny
from support.tiny_lora import logits, noisy, section

from flax_adapt import defaults, objectives, weights
from flax_adapt.base import checks
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import programs
from flax_adapt.surgery import lora

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose second stage adapts the first one's encoder."""
    path = tmp_path_factory.mktemp("run")
    rates = defaults.finetune_optim(lr=0.01, warmup_steps=1)
    stage = tiny.finetune(optim=rates)
    stage["model"] |= dict(lora=dict(section()))
    recipe.run(tiny.experiment(tiny.pretrain(num_steps=2), stage), path, force=False)
    return path


def exported(workdir, stage):
    return load_file(workdir / f"stages/{stage}/export/model.safetensors")


def test_a_stage_exports_an_ordinary_model_with_merged_kernels(workdir):
    before, after = exported(workdir, "pretrain"), exported(workdir, "finetune")
    assert not [name for name in after if "lora" in name]
    kept = {name for name in after if name in before}
    changed = {name for name in kept if np.any(before[name] != after[name])}
    assert len(changed) == 4
    assert all(re.search("attention.(query|value).weight", name) for name in changed)


def test_the_checkpoint_is_read_as_the_export_is(workdir):
    model, params, report = weights.from_pretrained(
        workdir / "stages/finetune/checkpoints", "classify"
    )
    _, expected, _ = weights.from_pretrained(
        workdir / "stages/finetune/export", "classify"
    )
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-7)
    jax.tree.map(close, params, expected)
    assert not report.ignored
    batch = tiny.batch_of()
    np.testing.assert_allclose(
        *(logits(model, p, batch) for p in (params, expected)), atol=1e-5
    )


def test_a_stage_is_evaluated_with_the_merged_model(workdir):
    told = configs.build(json.loads((workdir / "config.json").read_text()))
    run = recipe.stage_runs(told, workdir)[-1]
    model, config = tiny.build("classify"), run.config.model.lora
    params = noisy(lora.add(tiny.params_of(model), config, jax.random.key(0)))
    pixels = {**tiny.batch_of(), "image": np.full((8, 8, 8, 1), 200, np.uint8)}
    keys_B = jax.random.split(jax.random.key(0), 8)
    recipe_of_run = programs.recipe_of_evaluation(run, model, run.config.data)
    loss_fn = programs.make_evaluation_loss(recipe_of_run)
    loss = jax.jit(loss_fn)(params, {}, pixels, keys_B)[0]
    plain = objectives.build(run.config.objective, model, train=False)
    plain = objectives.on_pixels(
        plain, run.config.objective, run.config.data, train=False
    )
    merged = lora.merge(params, config)
    expected = jax.jit(plain)(merged, {}, pixels, keys_B)[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert (
        abs(loss / jax.jit(plain)(pairs_off(params), {}, pixels, keys_B)[0] - 1) > 1e-3
    )


def pairs_off(params):
    """The model without its adaptors."""
    return {name: leaves for name, leaves in params.items() if name != "lora"}


def test_a_checkpoint_whose_run_does_not_tell_alpha_is_refused(workdir, tmp_path):
    told = json.loads((workdir / "config.json").read_text())
    told["stages"][1]["model"]["lora"] = None
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/finetune").symlink_to(workdir / "stages/finetune")
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"has LoRA adaptors but its config no .*alpha"):
        weights.load(tmp_path / "stages/finetune/checkpoints", "encoder", pooling=None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(rank=0), "model.lora: rank=0 must be at least 1"),
        (dict(alpha=0.0), "model.lora: alpha=0.0 must be above 0"),
        (dict(targets=()), r"model.lora: targets=\(\) must name a layer"),
        (dict(targets=("queries",)), "model.lora.targets='queries'.*query"),
    ],
)
def test_errors_name_the_field(changes, text):
    with pytest.raises(UserError, match=text):
        checks.run(lora.ROWS, section(**changes))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (dict(init_from="scratch"), "there are no weights to adapt"),
        (
            dict(optim=defaults.finetune_optim(mars_radius=1.0, warmup_steps=1)),
            "optim.mars_radius and model.lora do not fit: all that trains is new",
        ),
    ],
)
def test_what_lora_cannot_go_with_is_told_before_anything_runs(stage, text, tmp_path):
    fields = tiny.finetune(**stage)
    fields["model"] |= dict(lora=dict(section()))
    with pytest.raises(UserError, match=text):
        recipe.run(tiny.experiment(tiny.pretrain(), fields), tmp_path, force=False)
