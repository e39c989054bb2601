"""Another width of the last block: what it computes, how it starts, how it is stored."""

import jax
import numpy as np
import pytest
from support import tiny
from support.tiny_resized import KEY, MODELS, WIDTH, inputs_of, resized, run

from flax_adapt import defaults, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.surgery import check_resize, last_block, matched
from flax_adapt.train import sharding
from flax_adapt.weights import strict

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def states_and_sums(model, params):
    """All states, and what every block handed to the norm behind it."""
    options = dict(method="encode", mutable=[models.SUMS])
    states, found = run(model, params, **options)
    blocks = found[models.SUMS]["encoder"]
    return states, {block: sums["sum"][0] for block, sums in blocks.items()}


def outputs(model, params):
    """What the whole model computes of the same inputs."""
    if isinstance(model, models.MAE):
        noise_BL = np.random.default_rng(5).random((4, 4), np.float32)
        return run(model, params, noise_BL, hidden_ratio=0.5)[0]
    if isinstance(model, models.MaskedLM):
        return run(model, params, np.array([[1, 2]] * 4))
    found = run(model, params)
    return found[1] if isinstance(found, tuple) else found


@pytest.mark.parametrize("kind", ["resized", "linear"])
@pytest.mark.parametrize("width", [WIDTH, 4 * WIDTH])
def test_expanding_keeps_the_first_features_and_all_outputs(name, kind, width):
    old, params, new, made, _ = resized(name, width=width, kind=kind)
    before = run(old, params, method="encode")[-1]
    after = run(new, made, method="encode")[-1]
    assert after.shape[-1] == width
    np.testing.assert_allclose(after[..., :WIDTH], before, atol=1e-5)
    np.testing.assert_allclose(outputs(new, made), outputs(old, params), atol=1e-5)
    if width == 4 * WIDTH:
        # The new features are about as large as the old ones, and none is a copy.
        spread = np.std(after[..., WIDTH:]) / np.std(before)
        assert 0.2 < spread < 5
        if kind == "resized":  # more than linear in the old ones
            rows = np.asarray(after).reshape(-1, width)
            assert np.linalg.matrix_rank(rows - rows.mean(0)) > WIDTH


def test_an_extra_block_adds_nothing_at_first():
    for one in ("mae", "vit", "classify"):
        changes = dict(width=WIDTH, kind="extra", mlp_dim=24)
        old, params, new, made, _ = resized(one, **changes)
        assert made["encoder"]["block_02"]["mlp"]["up"]["kernel"].shape[1] == 24
        np.testing.assert_allclose(outputs(new, made), outputs(old, params), atol=1e-5)
        assert np.any(made["encoder"]["block_02"]["mlp"]["up"]["kernel"] != 0)


def test_noise_scales_the_new_features_alone():
    """0: the norm, whose mean they share, gives the same number for all of them."""
    _, _, new, made, _ = resized("vit", width=2 * WIDTH, noise=0.0)
    states = np.asarray(run(new, made, method="encode")[-1])[..., WIDTH:]
    np.testing.assert_allclose(states, states[..., :1] + 0 * states, atol=1e-6)


def test_what_a_resized_block_computes_is_the_formula(name):
    """S3: y = W_s x' + W_2 GELU(W_1 LN x'); BERT: LN(W_s x + W_2 GELU(W_1 x))."""
    _, _, new, made, _ = resized(name, width=24, init="random")
    made = tiny.params_of(new)
    states, sums = states_and_sums(new, made)
    block, encoder = made["encoder"]["block_01"], made["encoder"]
    norm = encoder.get("norm") or block["norm2"]  # pre-norm models end in one
    x = np.asarray(sums["block_01"], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    normed = x * np.asarray(norm["scale"]) + np.asarray(norm.get("bias", 0.0))
    np.testing.assert_allclose(states[-1], normed, atol=1e-4)
    # Without the MLP only the shortcut is left: W_s x, without a bias.
    silent = jax.tree.map(np.zeros_like, block["mlp"]["down"])
    block = {**block, "mlp": {**block["mlp"], "down": silent}}
    quiet = {**made, "encoder": {**encoder, "block_01": block}}
    around = np.asarray(states_and_sums(new, quiet)[1]["block_01"]).reshape(-1, 24)
    kernel = np.asarray(block["shortcut"]["kernel"])
    assert kernel.shape == (WIDTH, 24)
    x = np.linalg.lstsq(kernel.T, around.T)[0]
    np.testing.assert_allclose(kernel.T @ x, around.T, atol=1e-4)


@pytest.mark.parametrize("kind", ["resized", "linear"])
def test_narrowing_projects_what_the_last_block_gave(name, kind):
    old, params, new, made, done = resized(name, width=6, kind=kind, init="pca")
    before, sums = states_and_sums(old, params)
    after, new_sums = states_and_sums(new, made)
    is_new, was = strict.flatten(made), strict.flatten(params)
    place = "linear" if kind == "linear" else "block_01/shortcut"
    P_dD = is_new[f"encoder/{place}/kernel"]
    readers = [leaf for leaf in done.rules if not leaf.startswith("encoder/")]
    assert bool(readers) == (len(params) > 1)
    for leaf in readers:
        assert leaf.endswith("kernel")
        np.testing.assert_allclose(is_new[leaf], P_dD.T @ was[leaf], atol=1e-6)
    if kind == "linear":
        np.testing.assert_allclose(after[-1], before[-1] @ P_dD, atol=1e-5)
        return
    wide, narrow = sums["block_01"], new_sums["block_01"]
    np.testing.assert_allclose(narrow, wide @ P_dD, atol=1e-5)
    norm = last_block.places(MODELS[name][0]).norm
    leaves = {f"{norm}/scale", f"{norm}/bias"} & set(was)
    assert leaves == set(done.fresh) != set()


def test_a_relu_makes_the_final_states_sparse(name):
    _, _, new, made, _ = resized(name, width=32, relu=True)
    states = run(new, made, method="encode")
    assert np.min(states[-1]) == 0
    assert 0.1 < np.mean(states[-1] == 0) < 0.9
    assert np.min(states[-2]) < 0


def test_random_starts_anew_what_has_another_shape_and_nothing_else(name):
    _, params, new, made, done = resized(name, width=24, init="random")
    init = models.init_params(new, KEY)
    kept, drawn = strict.flatten(params), strict.flatten(init)
    for leaf, value in strict.flatten(made).items():
        is_new = any(f"{leaf}/".startswith(f"{prefix}/") for prefix in done.fresh)
        source = drawn if is_new else kept
        np.testing.assert_array_equal(value, source[leaf])
        assert is_new or value.shape == kept[leaf].shape


def test_an_extra_block_has_as_many_parameters_as_the_resized_one():
    for config in (tiny.MODEL | dict(decoder=None), tiny.TEXT_MODEL):
        wide = 6 * WIDTH
        mlp_dim = matched.mlp_dim(config, wide)
        sections = (
            defaults.resize(wide),
            defaults.resize(WIDTH, kind="extra", mlp_dim=mlp_dim),
        )
        resized_size, extra_size = (
            sum(
                leaf.size
                for leaf in jax.tree.leaves(
                    weights.shapes(
                        tiny.build("encoder", models.with_resize(config, section))
                    )
                )
            )
            for section in sections
        )
        assert 0 <= resized_size - extra_size < 2 * WIDTH + 1
    with pytest.raises(UserError, match="no extra block to compare with"):
        matched.mlp_dim(tiny.MODEL, WIDTH)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("vit", dict(width=8), "makes features of at least the model's width=16, not"),
        ("vit", dict(width=24, init="pca"), "at most the model's width=16, not of"),
        ("vit", dict(width=24, init="svd"), r"model.resize.init='svd' is unknown"),
        ("vit", dict(width=24, tokens="cls"), "model.resize.tokens='cls' is unknown"),
        ("vit", dict(width=0, init="random"), "width=0 must be at least 1"),
        ("vit", dict(width=24, noise=-1.0), "noise=-1.0 must be at least 0"),
        ("vit", dict(width=24, mlp_dim=3), "mlp_dim=3 must be given for kind='extra'"),
        ("vit", dict(width=16, kind="extra"), "mlp_dim=0 must be given"),
        (
            "vit",
            dict(width=24, kind="extra", mlp_dim=3, init="random"),
            "width=24 must be the model's, 16, for kind='extra'",
        ),
        (
            "vit",
            dict(width=16, kind="extra", mlp_dim=3, init="pca"),
            "init='pca' must be 'preserve' or 'random': an extra",
        ),
        (
            "bert",
            dict(width=16, kind="extra", mlp_dim=3),
            "init='preserve' must be 'random': after a post-norm block",
        ),
    ],
)
def test_what_cannot_be_made_of_a_model_is_said(name, changes, text):
    with pytest.raises(UserError, match=text) as error:
        check_resize(defaults.resize(**changes), MODELS[name][0], "pretrained")
    assert "\n" not in str(error.value)


def test_a_start_from_scratch_has_nothing_to_keep():
    with pytest.raises(UserError, match="must be 'random': there are no weights"):
        check_resize(defaults.resize(24), tiny.MODEL, "scratch")


def test_a_norm_after_the_pooling_and_a_last_block_do_not_go_together():
    _, _, new, made, _ = resized("classify", width=24)
    with pytest.raises(UserError, match=r"with model\.last_block pool by 'mean'"):
        new.apply({"params": made}, inputs_of(new), "mean_norm", method="embed")


@pytest.mark.parametrize("kind", ["resized", "linear"])
def test_the_new_kernels_are_sharded(kind):
    config = models.with_resize(tiny.MODEL, defaults.resize(64, kind=kind))
    mesh = sharding.make_mesh(dict(data=1, fsdp=8, tensor=1))
    shapes = weights.shapes(tiny.build("mae", config))
    specs = {
        name: placed.spec
        for name, placed in strict.flatten(
            sharding.tree_shardings(shapes, mesh)
        ).items()
    }
    name = {"resized": "block_01/shortcut", "linear": "linear"}[kind]
    assert tuple(specs[f"encoder/{name}/kernel"]) == ("tensor", "fsdp")
