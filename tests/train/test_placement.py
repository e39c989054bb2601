"""Where activations lie: no program of eight devices holds the whole batch on one of them."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from support import tiny, tiny_contrast, tiny_glad

from flax_adapt import defaults, models, objectives
from flax_adapt.base import config as configs
from flax_adapt.base import placement
from flax_adapt.evals import embed, outputs
from flax_adapt.stage import frozen, solve
from flax_adapt.train import fisher, optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

# Rows of which no other size is a multiple. Of MLM few, beside large parameters: without
# placement the partitioner then moves the batch (15 all-to-alls) rather than the kernels.
BATCH, FEW = 88, 24
LARGE = {**tiny.TEXT_MODEL, "depth": 1, "width": 64, "mlp_dim": 256}
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
OBJECTIVES = {
    "reconstruct": defaults.reconstruct(),
    "mlm": MLM,
    "distill": defaults.distill(),
    "contrast": tiny_contrast.section("moco_v2", queue_size=2 * BATCH),
    "glad": defaults.glad(),
}
HEADS = {**tiny_contrast.HEADS["moco_v2"], "hidden": 16, "width": 8}


def mesh_of(**sizes):
    count = int(np.prod(list(sizes.values())))
    return sharding.make_mesh(
        dict(data=1, fsdp=1, tensor=1) | sizes, jax.devices()[:count]
    )


def model_of(name, objective):
    arch = LARGE if name == "mlm" else tiny.MODEL
    if name == "glad":
        arch = {**arch, "adaptor": tiny_glad.KINDS["vector"]}
    options = dict(projector=HEADS, pooling="mean") if name == "contrast" else {}
    task = objectives.task_of(objective)
    return tiny.build(task, arch, dropout=0.1, drop_path=0.1, **options)


def batch_of(name):
    if name == "mlm":
        return tiny.text_batch_of(FEW)
    batch = tiny.batch_of(BATCH)
    views = (batch["image"], batch["image"] + 1)
    return batch | ({"views": views} if name == "contrast" else {})


def lower(name, mesh, accum_steps=1):
    objective = ConfigDict(OBJECTIVES[name])
    model = model_of(name, objective)
    params, carry = tiny.params_of(model), objectives.build_carry(objective, 10)
    frozen = {"distill": {"teacher": params}, "glad": {"start": params}}.get(name, {})
    tx = optim.build(ConfigDict(defaults.finetune_optim(lr=1e-4)), 10, params)
    state = states.create(params, tx, mesh, seed=3, frozen=frozen, carry=carry)
    loss_fn = objectives.build(objective, model)
    batch = sharding.put_batch(batch_of(name), mesh)
    how = (loss_fn, tx, mesh, accum_steps, carry)
    return steps.make_train_step(*how).lower(state, batch)


def whole_batches(program, rows):
    """Shapes of two axes or more whose first is that of all rows, or of their tokens."""
    shapes = set(re.findall(r"\w+\[\d+,[\d,]+\]", program))
    return {s for s in shapes if int(re.search(r"\[(\d+)", s)[1]) % rows == 0}


def collectives(program):
    pattern = r" (all-to-all|collective-permute|all-gather|all-reduce)(?:-start)?\("
    return {kind: program.count(f" {kind}") for kind in re.findall(pattern, program)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_device_holds_the_batch_of_all(name):
    program = lower(name, mesh_of(fsdp=8)).compile().as_text()
    # InfoNCE compares each query with the keys of the global batch: these, of the width of
    # the projector, are all that is whole, and the slots of the queue that they replace.
    keys = (
        {f"f32[{size},8]" for size in (BATCH, 2 * BATCH)}
        if name == "contrast"
        else set()
    )
    rows = FEW if name == "mlm" else BATCH
    assert whole_batches(program, rows) <= keys
    found = collectives(program)
    assert "all-gather" in found
    assert "all-to-all" not in found
    if name != "contrast":  # there, where the rows of a batch enter the queue
        assert "collective-permute" not in found


def read_features(model, mesh, rows):
    encode = embed._share_encoder(model, "mean", configs.to_text({}), None, mesh)
    return encode, (rows["text"], rows["index"], 0)


def read_outputs(model, mesh, rows):
    return outputs._share_apply(model, configs.to_text({}), mesh), (rows["text"],)


def read_logits(model, mesh, rows):
    return frozen._share_predictor(model, configs.to_text({}), mesh), (rows,)


def read_inputs_of_head(model, mesh, rows):
    return solve._share_encoder(model, configs.to_text({}), mesh), (rows,)


def read_gradients(model, mesh, rows):
    likelihood = fisher.of_classes(model, lambda batch: batch["text"], "empirical")
    add = fisher._make_adder(likelihood, mesh)
    return jax.jit(lambda params, rows: add(params, params, rows, 0)), (rows,)


READERS = (
    read_features,
    read_outputs,
    read_logits,
    read_inputs_of_head,
    read_gradients,
)


@pytest.mark.parametrize("read", READERS)
def test_no_device_encodes_the_rows_of_all(read):
    """Of models that a stage stores in parts: without placement every device has all rows."""
    mesh = mesh_of(fsdp=8)
    task = "encoder" if read is read_features else "classify"
    model = tiny.build(task, LARGE)
    variables = tiny.params_of(model)
    if read is read_outputs:
        variables = models.batch_stats.variables(variables)
    run, arguments = read(model, mesh, sharding.put_batch(batch_of("mlm"), mesh))
    program = run.lower(sharding.put(variables, mesh), *arguments).compile().as_text()
    # The results alone, which every process reads whole.
    assert whole_batches(program, FEW) <= {f"f32[{FEW},64]", f"f32[{FEW},3]"}
    assert "all-to-all" not in collectives(program)


def test_a_name_that_the_table_lacks_is_an_error():
    with pytest.raises(KeyError, match="no 'stetas'"):
        placement.place("stetas", np.zeros((2, 2)))


def test_without_a_mesh_and_on_one_device_nothing_is_placed():
    def names(mesh):
        with sharding.placing(mesh):
            traced = jax.make_jaxpr(lambda x: placement.place("states", x))(
                np.ones((8, 2, 2))
            )
        return [equation.primitive.name for equation in traced.eqns]

    assert names(mesh_of(fsdp=1)) == []
    assert names(mesh_of(fsdp=8)) == ["sharding_constraint"]
    assert (
        jax.make_jaxpr(lambda x: placement.place("states", x))(np.ones((8, 2, 2))).eqns
        == []
    )


def test_what_devices_do_not_divide_evenly_is_left_to_the_partitioner():
    mesh = mesh_of(fsdp=4, tensor=2)
    spec = placement.fit(P("fsdp", None, "tensor"), (6, 5, 4), mesh)
    assert spec == P(None, None, "tensor")


def test_a_parameter_is_whole_where_it_is_used_and_its_gradient_is_stored_in_parts():
    mesh, name = mesh_of(fsdp=4, tensor=2), "encoder/block_00/mlp/up/kernel"

    def slope(kernel):
        with sharding.placing(mesh):
            return jax.grad(lambda k: placement.gather(name, k).sum())(kernel)

    kernel = jax.device_put(np.ones((8, 6), np.float32))
    gradient = jax.jit(slope)(kernel)
    assert gradient.sharding == NamedSharding(mesh, P("fsdp", "tensor"))
    with sharding.placing(mesh):
        used = jax.jit(lambda k: placement.gather(name, k))(kernel)
    assert used.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "tensor")), 2)


def test_activations_are_divided_evenly_or_not_and_not_known_to_be_outside_of_a_step():
    shape = (4, 7, 2, 8)
    assert not placement.divides("heads", shape)
    with sharding.placing(mesh_of(data=1)):
        assert placement.divides("heads", (3, 7, 3, 8))
    with sharding.placing(mesh_of(data=2, fsdp=2, tensor=2)):
        assert placement.divides("heads", shape)
        assert not placement.divides("heads", (6, 7, 2, 8))
        assert not placement.divides("heads", (4, 7, 3, 8))
