"""A stage as shapes is what a run begins with, leaf by leaf: no second description of it."""

import jax
import pytest
from support import tiny, tiny_runs

from flax_adapt import data, defaults
from flax_adapt.models import batch_stats
from flax_adapt.stage import data as inputs
from flax_adapt.stage import frozen, shapes, training
from flax_adapt.stage import stage as stages
from flax_adapt.stage import weights as stage_weights
from flax_adapt.train import sharding

MESH = dict(data=2, fsdp=2, tensor=2)
# Stages that only write what later ones start from are begun, too, and need no second look.
KINDS = {
    "image": ("pretrain", "distill", "finetune"),
    "text": ("pretrain", "distill", "finetune"),
    "contrast": ("moco_v3", "moco_v2"),
    "resize": ("pretrain", "expand", "finetune"),
    "glad": ("pretrain", "masked", "preserve"),
}


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


def begin_and_compare(stage):
    """Begins a stage, compares, and writes its initial weights as its export."""
    mesh = sharding.make_mesh(stage.experiment.mesh)
    examples = inputs.open_training(stage)
    classes = inputs.num_classes(stage, examples)
    model = stages.build_model(stage, classes)
    begun = training.begin_training(stage, model, examples, mesh)
    found = shapes.describe(stage, mesh, classes)
    assert shapes_of(found.state) == shapes_of(begun.state)
    assert found.model == model
    size = stage.config.batch_size
    batch = next(iter(data.make_batches(examples, size, 0, 0, 1)))
    placed = shapes_of(sharding.put_batch(batch, mesh))
    assert {*found.batch} == {*placed}
    if "text" not in batch:  # rows of text may be shorter
        assert shapes_of(found.batch) == placed
    state = begun.state
    params = {k: v for k, v in state.params.items() if k != "lora"}
    stored = batch_stats.join(params, state.statistics)
    stage_weights.export(stage, model, stored, examples)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_as_shapes_is_what_a_run_begins_with(kind, tmp_path):
    config = tiny_runs.experiment(kind, tmp_path, mesh=MESH)
    for section in config.stages:
        if section.name in KINDS[kind]:
            begin_and_compare(stages.Stage(config, section, section.seeds[0], tmp_path))


def test_a_stage_with_lora_penalties_and_an_average_is_too(tmp_path):
    adapted = defaults.stage_model(fresh=("head",), lora=defaults.lora())
    config = tiny.experiment(
        tiny.finetune("first", init_from="scratch"),
        tiny.finetune("lora", init_from="stage:first", model=adapted),
        tiny.finetune(
            "held",
            init_from="stage:first",
            penalties=(defaults.l2_sp(), defaults.lwf("stage:first")),
            ema=defaults.ema(),
            model=defaults.stage_model(),
        ),
        mesh=MESH,
    )
    for section in config.stages:
        begin_and_compare(stages.Stage(config, section, 0, tmp_path))


def test_all_that_is_read_from_files_has_shapes():
    assert shapes.FROZEN.keys() == frozen.PENALTIES.keys()
