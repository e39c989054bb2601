"""The heads of contrast: their numbers, which rows count, what they are built from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.programs import products

from flax_adapt import models
from flax_adapt.base import keys, rules
from flax_adapt.base.errors import UserError
from flax_adapt.train import optim, sharding

PROJECTOR = dict(layers=3, hidden=12, width=6, predictor_layers=2, batch_norm=True)
PLAIN = dict(layers=2, hidden=12, width=6, predictor_layers=0, batch_norm=False)
WEIGHT_B = np.float32([1, 1, 0, 1, 1, 0])
NORM = ("scale", "bias")
ARCHITECTURES = {"image": tiny.MODEL, "text": tiny.TEXT_MODEL}


def build(modality="image", heads=PROJECTOR, **changes):
    arch = ARCHITECTURES[modality]
    return tiny.build("contrast", arch, projector=heads, **changes)


def inputs_of(modality, size=6):
    if modality == "image":
        return tiny.batch_of(size)["image"]
    return tiny.text_batch_of(size, packed=False)["text"]


def head(x_BD, params, weight_B, *, batch_norm):
    """Independent: float64 NumPy, the statistics over counted rows alone."""
    x_BD, params = jax.tree.map(lambda leaf: np.asarray(leaf, float), (x_BD, params))
    for number in range(sum(name.startswith("layer") for name in params)):
        layer = params[f"layer_{number}"]
        x_BD = x_BD @ layer["kernel"] + layer.get("bias", 0)
        if batch_norm:
            counted = x_BD[weight_B > 0]
            x_BD = (x_BD - counted.mean(axis=0)) / np.sqrt(counted.var(axis=0) + 1e-5)
            norm = params.get(f"norm_{number}", {"scale": 1, "bias": 0})
            x_BD = x_BD * norm["scale"] + norm["bias"]
        if f"layer_{number + 1}" in params:
            x_BD = np.maximum(x_BD, 0)
    return x_BD


@pytest.mark.parametrize("modality", ARCHITECTURES)
@pytest.mark.parametrize("heads", [PROJECTOR, PLAIN], ids=["batch_norm", "plain"])
def test_the_heads_equal_numpy_and_stand_on_the_pooled_states(modality, heads):
    model, inputs = build(modality, heads, pooling="mean"), inputs_of(modality)
    params = tiny.params_of(model)

    @jax.jit
    def run(inputs):
        variables = {"params": params}
        key_BD = model.apply(variables, inputs, None, WEIGHT_B, method="project")
        pooled_BD = model.apply(variables, inputs, "mean", method="embed")
        return model.apply(variables, inputs, None, WEIGHT_B), key_BD, pooled_BD

    query_BD, key_BD, pooled_BD = run(inputs)
    batch_norm = heads["batch_norm"]
    expected = head(pooled_BD, params["projector"], WEIGHT_B, batch_norm=batch_norm)
    np.testing.assert_allclose(key_BD, expected, rtol=1e-5, atol=1e-5)
    predictor = params.get("predictor", {})
    expected = head(key_BD, predictor, WEIGHT_B, batch_norm=batch_norm)
    np.testing.assert_allclose(query_BD, expected, rtol=1e-5, atol=1e-5)
    assert query_BD.dtype == key_BD.dtype == jnp.float32


def test_the_encoder_computes_in_bfloat16_and_the_heads_in_float32():
    image = inputs_of("image")
    params = tiny.params_of(build())
    programs = [
        jax.make_jaxpr(build(dtype=dtype).apply)(
            {"params": params}, image, None, WEIGHT_B
        )
        for dtype in models.DTYPES
    ]
    dots = [[dot.outvars[0].aval for dot in products(program)] for program in programs]
    assert {dot.dtype for dot in dots[0]} == {jnp.dtype("float32")}
    coarse = [dot.dtype for dot in dots[1]]
    # Three layers of the projector and two of the predictor come last.
    assert coarse[-5:] == [jnp.float32] * 5
    assert coarse[0] == coarse[-6] == jnp.bfloat16


def test_rows_that_do_not_count_change_nothing_for_the_others():
    model, image_BYXC = build(), inputs_of("image")
    params = tiny.params_of(model)
    apply = jax.jit(
        lambda image: model.apply({"params": params}, image, None, WEIGHT_B)
    )
    other = np.where(WEIGHT_B[:, None, None, None] > 0, image_BYXC, 7)
    one_BD, other_BD = apply(image_BYXC), apply(other)
    counts_B = WEIGHT_B > 0
    np.testing.assert_array_equal(one_BD[counts_B], other_BD[counts_B])
    assert np.all(np.isfinite(other_BD))


def test_a_batch_without_a_row_that_counts_is_finite():
    model = build()
    params, image = tiny.params_of(model), inputs_of("image")

    def total(params):
        return jnp.sum(model.apply({"params": params}, image, None, jnp.zeros(6)))

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, grads)))


def test_the_heads_have_the_promised_names_and_no_leaf_that_does_nothing():
    params = tiny.params_of(build())
    names = {name for name in rules.names(params) if not name.startswith("encoder/")}
    assert names == {
        *(f"projector/layer_{number}/kernel" for number in range(3)),
        *(f"projector/norm_{number}/{leaf}" for number in range(2) for leaf in NORM),
        *(f"predictor/layer_{number}/kernel" for number in range(2)),
        *(f"predictor/norm_0/{leaf}" for leaf in NORM),
    }
    assert params["projector"]["layer_2"]["kernel"].shape == (12, 6)
    assert params["predictor"]["layer_0"]["kernel"].shape == (6, 12)
    plain = tiny.params_of(build(heads=PLAIN))
    assert set(plain) == {"encoder", "projector"}
    assert set(plain["projector"]["layer_1"]) == {"kernel", "bias"}


@pytest.mark.parametrize("modality", ARCHITECTURES)
def test_the_encoder_is_that_of_the_encoder_alone(modality):
    arch, inputs = ARCHITECTURES[modality], inputs_of(modality)
    alone, model = tiny.build("encoder", arch), build(modality)
    params = {"encoder": tiny.params_of(model)["encoder"]}
    shapes = (jax.tree.map(jnp.shape, p) for p in (params, tiny.params_of(alone)))
    assert next(shapes) == next(shapes)
    states = [
        m.apply({"params": params}, inputs, None, method="encode")[-1]
        for m in (alone, model)
    ]
    np.testing.assert_array_equal(*states)
    assert models.task_of(model) == "contrast"
    expected = {**arch, "decoder": None} if modality == "image" else arch
    assert models.config_of(model) == expected


@pytest.mark.parametrize("modality", ARCHITECTURES)
@pytest.mark.parametrize("heads", [PROJECTOR, PLAIN], ids=["batch_norm", "plain"])
def test_every_leaf_has_one_rule_also_where_it_is_carried(modality, heads):
    params = tiny.params_of(build(modality, heads))
    queue = np.zeros((16, 6), np.float32)
    carried = {"key_encoder": params, "queue": queue}
    rules.check("sharding", sharding.RULES, params)
    rules.check("sharding", sharding.RULES, carried)
    rules.check("sharding", sharding.RULES, {"extra": carried})
    for table in optim.DECAY.values():
        rules.check("decay", table, params)
    table = optim.layer_rules(0.5, 2)
    rules.check("layer decay", table, params)


@pytest.mark.parametrize("rows", ["own", "partner"])
def test_mixed_embeddings_are_what_the_blocks_of_a_text_see(rows):
    model, text = build("text", dropout=0.5), inputs_of("text")
    params, weight_B = tiny.params_of(model), jnp.ones(6)
    key_B = keys.example_keys(jax.random.key(0), jnp.arange(6))
    partner_B = np.array([1, 0, 3, 2, 5, 4])

    @jax.jit
    def run(text, rows_B, key_B):
        def mix(x_BLD):
            return x_BLD[rows_B]

        variables = {"params": params}
        mixed = model.apply(variables, text, key_B, weight_B, mix)
        return mixed, model.apply(variables, text, key_B, weight_B)

    rows_B = np.arange(6) if rows == "own" else partner_B
    # Of the partner's segments, too: the text is then the partner's throughout.
    there = text._replace(segments_BL=text.segments_BL[rows_B])
    mixed, plain = run(there, rows_B, key_B)
    of_rows = run(type(text)(*(leaf[rows_B] for leaf in text)), np.arange(6), key_B)[1]
    np.testing.assert_allclose(mixed, of_rows, atol=1e-6)
    assert np.allclose(mixed, plain, atol=1e-3) == (rows == "own")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(heads=None), "model.projector is None but task 'contrast'"),
        (dict(heads={**PROJECTOR, "depth": 1}), r"model.projector: .*unknown \['depth"),
        (
            dict(heads={**PROJECTOR, "layers": -1}),
            "projector.layers=-1 must be at least 0",
        ),
        (dict(heads={**PLAIN, "predictor_layers": -1}), "predictor_layers=-1.*least 0"),
        (dict(pooling="pooler"), "pooling='pooler' is unknown.*cls.*mean"),
    ],
)
def test_heads_that_cannot_be_built_are_the_users_mistake(changes, text):
    with pytest.raises(UserError, match=text):
        build(**changes)


def test_a_pooling_of_images_alone_is_no_pooling_of_texts():
    build("image", pooling="mean_norm")
    text = r"pooling='mean_norm' is unknown; choose one of \['cls', 'mean'\]"
    with pytest.raises(UserError, match=text):
        build("text", pooling="mean_norm")
