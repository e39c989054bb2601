"""Every objective on backbones with traits: it trains, keeps its laws, and is exported."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_glad, tiny_runs
from support.depth import long_except

from flax_adapt import defaults, models, weights
from flax_adapt.base.logs import read_json
from flax_adapt.experiment import recipe
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.surgery import TrainedBlock, adaptors, last_block
from flax_adapt.weights import strict

pytestmark = pytest.mark.usefixtures("compile_fast")
TRAITS = {
    "dinov2": make_fields(
        registers=2, layer_scale=True, swiglu=True, position_resize="antialias"
    ),
    "dinov3": make_fields(
        registers=2,
        cls_position=False,
        key_bias=False,
        layer_scale=True,
        rotary_theta=100.0,
    ),
    "clip": make_fields(pre_norm=True, patch_bias=False),
    "deit": make_fields(distilled=True),
    "deit3": make_fields(cls_position=False, layer_scale=True),
}
MLP = {"dinov2": dict(mlp_dim=48)}  # DINOv2's is a multiple of 8 near 2/3 of a multiple
IMAGE = tiny.batch_of(4)["image"]


def arch(name, **changes):
    return (
        {**tiny.MODEL, "depth": 1, "traits": TRAITS[name]} | MLP.get(name, {}) | changes
    )


def run_penalties(root, **changes):
    """A task, then one that L2-SP and EWC hold near it, then LoRA and an exact probe."""
    del root

    def stage(name, start, **fields):
        model = defaults.stage_model(**fields.pop("model", {}))
        optim = defaults.finetune_optim(lr=1e-3, warmup_steps=1)
        fields = dict(num_steps=2, optim=optim, model=model, eval=None) | fields
        return tiny.finetune(name, init_from=start, **fields)

    kept = defaults.fisher(num_examples=8, decay=0.5, batch_size=8)
    pooled = dict(pooling="cls_mean")
    stages = (
        stage("task", "scratch", fisher=kept, model=pooled),
        stage(
            "held",
            "stage:task",
            penalties=(defaults.l2_sp(), defaults.ewc("stage:task")),
            model=pooled,
        ),
        stage(
            "low_rank", "stage:held", model=dict(lora=defaults.lora(rank=2), **pooled)
        ),
    )
    return tiny.experiment(*stages, **changes)


EXPERIMENTS = {**tiny_runs.EXPERIMENTS, "penalties": run_penalties}
NAMES = ("image", "contrast", "resize", "glad", "penalties")
CASES = [(name, "dinov2") for name in NAMES] + [
    (name, one) for one in ("dinov3", "clip", "deit") for name in ("image", "glad")
]
# 15 seconds each on a busy machine; the others take 20 to 40.
QUICK = [("penalties", "dinov2"), ("image", "dinov3")]


@pytest.mark.parametrize(("name", "backbone"), long_except(QUICK, CASES))
def test_an_objective_trains_and_its_export_loads_in_the_same_format(
    tmp_path, name, backbone
):
    """Self-distillation, GLAD, resizing, LoRA, penalties, MoCo, MAE with a new decoder."""
    config = EXPERIMENTS[name](tmp_path, model=arch(backbone))
    recipe.run(config, tmp_path / "run", force=False)
    for stage in recipe.stage_runs(config, tmp_path / "run"):
        result = read_json(stage.folder / "result.json")
        assert np.isfinite(result["train"]["loss"])
        folder = stage.folder / "export"
        found = weights.model_config(folder)
        assert found["traits"] == TRAITS[backbone]
        model, params, report = weights.from_pretrained(folder, stage.exported_task)
        again = folder.parent / "again"
        weights.save_pretrained(again, model, params)
        kinds = [
            read_json(one / "config.json")["model_type"] for one in (again, folder)
        ]
        assert kinds[0] == kinds[1]
        assert not [name for name in report.ignored if "mask_token" not in name]


@pytest.mark.parametrize("backbone", TRAITS)
def test_expanding_the_last_block_keeps_the_function(backbone):
    """With LayerScale, too: the new features have a scale of their own."""
    old_config = arch(backbone, decoder=None)
    section = ConfigDict(defaults.resize(width=24))
    old = tiny.build("encoder", old_config)
    new = tiny.build("encoder", models.with_resize(old_config, section))
    key = jax.random.key(7)
    params, init = tiny.params_of(old), models.init_params(new, key)
    flat = strict.flatten(params), strict.flatten(init)
    done = last_block.resize(TrainedBlock(*flat, old_config, section, key, None))
    made, _ = weights.adopt(init, strict.unflatten(done.leaves), done.fresh)
    before, after = (
        jax.jit(
            lambda p, m=model: m.apply({"params": p}, IMAGE, None, method="encode")
        )(found)[-1]
        for model, found in ((old, params), (new, made))
    )
    np.testing.assert_allclose(after[..., : before.shape[-1]], before, atol=1e-5)


@pytest.mark.parametrize("backbone", ["dinov2", "dinov3"])
def test_glad_begins_as_the_model_without_adaptors(backbone):
    config = arch(backbone, decoder=None)
    plain = tiny.build("classify", config)
    adapted = tiny.build("classify", {**config, "adaptor": defaults.adaptor()})
    params = tiny_glad.at_start(tiny.params_of(adapted))
    both = [
        jax.jit(lambda p, m=model: m.apply({"params": p}, IMAGE, None))(found)
        for model, found in (
            (adapted, params),
            (plain, weights.adopt(weights.shapes(plain), adaptors.drop(params))[0]),
        )
    ]
    np.testing.assert_allclose(*both, atol=1e-6)


EXPORTS = [
    ("encoder", {}, "cls"),
    ("mae", {}, "cls"),
    ("classify", {}, "mean"),
    ("encoder", dict(resize=True), "cls"),
]


@pytest.mark.parametrize("backbone", TRAITS)
@pytest.mark.parametrize(("task", "changes", "pooling"), EXPORTS)
def test_any_backbone_comes_back_from_its_export_bit_for_bit(
    tmp_path, backbone, task, changes, pooling
):
    """Where transformers has no class, in a folder that only we read."""
    config = arch(backbone)
    if task != "mae":
        config |= dict(decoder=None)
    if changes:
        config = models.with_resize(config, ConfigDict(defaults.resize(width=24)))
    model = tiny.build(task, config, pooling=pooling)
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(3).standard_normal(leaf.shape, np.float32),
        weights.shapes(model),
    )
    weights.save_pretrained(tmp_path / "a", model, params)
    again, found, report = weights.from_pretrained(tmp_path / "a", task)
    assert models.config_of(again) == models.config_of(model)
    assert {*report.ignored} <= {"dinov2_with_registers.embeddings.mask_token"} | {
        "embeddings.mask_token"
    }
    jax.tree.map(np.testing.assert_array_equal, found, params)
    if task == "classify":
        assert again.pooling == pooling
