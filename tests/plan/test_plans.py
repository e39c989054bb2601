"""Plans of tiny stages: counts by hand, kinds of stages, hardware by name."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny

from flax_adapt import defaults
from flax_adapt.base.errors import UserError
from flax_adapt.models import masking
from flax_adapt.plan import flops, hlo, notes, plans, search, topology
from flax_adapt.plan.topology import GIB
from flax_adapt.stage import shapes
from flax_adapt.train import sharding

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text("utf-8")


def described(*stages, devices=1, **changes):
    config = tiny.experiment(*stages, **changes)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    return shapes.describe(plans.group_stages(config)[0].stage, mesh)


def block(length, width, mlp_dim, used=None):
    """Multiply-adds of a block: four projections, two products of attention, the MLP.

    Keys and values are of all tokens, the rest of the used ones.
    """
    used = length if used is None else used
    keys_and_values = 2 * length * width**2
    return keys_and_values + used * width * (2 * width + 2 * mlp_dim + 2 * length)


def test_the_analytic_count_of_a_masked_autoencoder_is_that_by_hand():
    # 8 x 8 pixels in patches of 4: four patches of 16 pixels, one of them visible; width 16.
    encoder = 16 * 16 + 2 * block(2, 16, 32)
    decoder = 2 * 16 * 16 + block(5, 16, 32, used=3) + 3 * 16 * 16
    # A gradient takes twice its forward pass; the pixels have none.
    total = 2 * (3 * (encoder + decoder) - 16 * 16)
    assert flops.count_step(described(tiny.pretrain(batch_size=4))) == 4 * total


def test_self_distillation_adds_a_student_and_a_teacher_of_the_whole_image():
    whole = 4 * 16 * 16 + block(5, 16, 32) + block(5, 16, 32, used=1)
    alone, distilled = (
        flops.count_step(described(make(batch_size=4)))
        for make in (tiny.pretrain, tiny.distill)
    )
    # The teacher has no gradient, and neither have the pixels.
    assert distilled - alone == 4 * 2 * (3 * whole - 4 * 16 * 16 + whole)


def test_the_analytic_count_of_a_masked_language_model_is_that_by_hand():
    texts = defaults.text_data("jsonl:none", "train", "none", seq_len=12)
    stage = defaults.text_pretrain_stage(
        "mlm", texts, tiny.MASK, batch_size=4, init_from="scratch"
    )
    found = described(stage, model=tiny.TEXT_MODEL)
    hidden = masking.max_hidden(12, stage["objective"]["max_masked_fraction"])
    head = hidden * (16 * 16 + 16 * tiny.TEXT_MODEL["vocab_size"])
    encoder = block(12, 16, 32) + block(12, 16, 32, used=hidden)
    assert flops.count_step(found) == 4 * 2 * 3 * (encoder + head)


def test_a_frozen_encoder_has_no_backward_pass():
    frozen = defaults.pretrain_optim(freeze=("encoder/.*",))
    encoder = 16 * 16 + 2 * block(2, 16, 32)
    embed = 2 * 16 * 16
    decoder = embed + block(5, 16, 32, used=3) + 3 * 16 * 16
    total = 2 * (encoder + 3 * decoder - embed)  # no gradient to its inputs
    stage = tiny.pretrain(batch_size=4, optim=frozen)
    assert flops.count_step(described(stage)) == 4 * total


def test_a_loop_counts_as_often_as_it_runs():
    def run(x):
        return jax.lax.scan(lambda x, _: (x @ np.ones((3, 3)), None), x, length=5)[0]

    assert (
        flops.count_products(jax.make_jaxpr(run)(np.ones((2, 3))).jaxpr)
        == 5 * 2 * 2 * 3 * 3
    )


def test_stages_with_the_same_program_are_one_kind():
    config = tiny.experiment(
        tiny.pretrain(num_steps=6),
        tiny.pretrain("again", init_from="scratch", num_steps=4, seeds=(0, 1)),
        tiny.distill("distill_1"),
        tiny.distill("distill_2", teacher="stage:distill_1"),
        tiny.pretrain("larger", batch_size=32),
        tiny.finetune(),
    )
    found = plans.group_stages(config)
    names = [
        ("pretrain", "again"),
        ("distill_1", "distill_2"),
        ("larger",),
        ("finetune",),
    ]
    assert [kind.names for kind in found] == names
    assert found[0].num_steps == 6 + 2 * 4


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:0x4", "v5e:4x", "5", "v9:4x4", "h100:2x4"]
)
def test_a_topology_that_cannot_be_is_refused_in_the_users_words(name):
    with pytest.raises(UserError, match=f"--topology={name}"):
        topology.parse(name)


def test_a_topology_has_the_product_of_its_sizes_of_chips():
    assert topology.parse("v5p:2x3x4").chips == 24


def test_the_page_has_the_peaks_that_are_counted_with():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+(?: \| [\d.]+){4}) \|$", PAGE, re.MULTILINE)
    told = {name: [*map(float, cells.split(" | "))] for name, cells in rows}
    assert told == {
        name: [c.flops / 1e12, c.hbm / 1e9, c.link / 1e9, c.gib, c.lanes]
        for name, c in topology.CHIPS.items()
    }


def test_the_bytes_that_a_program_needs_are_read_from_the_refusal_of_the_compiler():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 72.10G of 15.75G hbm. Exceeded ..."
    )
    assert plans._needed(text) == int(72.1 * GIB)
    assert plans._needed("RESOURCE_EXHAUSTED") == 0


def test_large_parameters_that_no_rule_splits_are_warned_of():
    # Positions are on every chip by the table of shardings.
    model = {**tiny.MODEL, "image_size": 256, "width": 512, "heads": 4}
    data = tiny.digits()
    data |= {"image_size": 256}
    mesh = dict(data=1, fsdp=8, tensor=1)
    stage = tiny.pretrain(batch_size=8, data=data)
    found = described(stage, devices=8, model=model, mesh=mesh)
    texts = notes.list_warnings(found, None, topology.parse("cpu:8"))
    assert "encoder/position [1, 4097, 512], 8 MiB, is copied to every chip" in texts
    assert not any("kernel" in text for text in texts)


def test_sizes_that_fill_few_lanes_are_warned_of():
    texts = notes.list_warnings(
        described(tiny.pretrain()), None, topology.parse("v5e:1x1")
    )
    assert "head_dim=8 fills 6% of the 128 lanes of a v5e" in texts


def test_an_array_with_the_whole_batch_on_a_chip_is_warned_of():
    def warned(sizes, batch_size=48):
        mesh = dict(data=2, fsdp=4, tensor=1)
        stage = tiny.pretrain(batch_size=batch_size)
        one = f"ROOT %x = bf16{sizes} constant(0)"
        module = hlo.parse(f"ENTRY %main () -> bf16[] {{\n  {one}\n}}\n")
        found = described(stage, devices=8, mesh=mesh)
        texts = notes.list_warnings(found, module, topology.parse("cpu:8"))
        return [text for text in texts if "global batch" in text]

    text = "bf16[48, 5, 99999], 0.04 GiB, has the global batch of 48 on every chip"
    assert warned("[48,5,99999]") == [text]
    assert warned("[240,99999]")  # 48 examples of 5 tokens
    assert not warned("[6,5,99999]")  # the part of a chip
    assert not warned("[48,5,16]")  # too small to matter
    # 32 is a width of the model, too: it is the batch where the tokens are beside it.
    assert warned("[32,5,99999]", 32)
    assert not warned("[32,99999]", 32)
    assert not warned("[4,5,32,9999]", 32)


def candidate(number, speed, memory, fits=True):
    plan = {
        "memory": {"fits": fits, "total": memory},
        "roofline": {"examples_per_second": speed, "mfu": 0.5},
    }
    return search.Candidate({"stages.0.batch_size": number}, plan)


def test_what_is_beaten_in_speed_and_memory_is_not_in_the_table():
    small, fast = candidate(1, 10.0, 1), candidate(2, 20.0, 4)
    beaten, too_large = candidate(3, 15.0, 5), candidate(4, 90.0, 9, fits=False)
    best = search.pareto([small, beaten, fast, too_large])
    assert best == [fast, small]
    assert search.format_flags(best[0]) == "--config.stages.0.batch_size=2"
    assert search.pareto([too_large]) == []


def test_a_candidate_changes_fields_of_a_copy():
    config = tiny.experiment(tiny.pretrain())
    changes = {"mesh.fsdp": -1, "mesh.data": 1, "stages.0.optim.accum_steps": 2}
    changed = search.change_config(config, changes)
    assert (changed.mesh.fsdp, changed.stages[0].optim.accum_steps) == (-1, 2)
    assert (config.mesh.fsdp, config.stages[0].optim.accum_steps) == (1, 1)
