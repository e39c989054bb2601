"""The Fisher information: exact squares of every example's gradient, and its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from support import tiny
from support.tiny_meshes import mesh_of

from flax_adapt import defaults, objectives
from flax_adapt.base import checks, keys, rules
from flax_adapt.base.errors import UserError
from flax_adapt.train import fisher

pytestmark = pytest.mark.usefixtures("compile_fast")
MODEL = {**tiny.MODEL, "depth": 1}


TEXT_MODEL = {**tiny.TEXT_MODEL, "depth": 1}
# What masks: the model, its objective, and batches of so many examples.
MASKED = {
    "reconstruct": (
        lambda: tiny.build("mae", MODEL),
        defaults.reconstruct(),
        tiny.batch_of,
    ),
    "mlm": (
        lambda: tiny.build("mlm", TEXT_MODEL),
        {**defaults.mlm(tiny.MASK), "max_masked_fraction": 0.5},
        tiny.text_batch_of,
    ),
}


def images(batch):
    return batch["image"]


@pytest.fixture(scope="module")
def model():
    return tiny.build("classify", MODEL)


def estimate(
    model, params, size=8, mesh="one", labels="empirical", seed=0, change=None
):
    """Of 16 images, `size` at once."""
    whole = tiny.batch_of(16)
    whole["weight"][[3, 9]] = 0
    whole.update(change or {})
    batches = [
        {name: leaf[i : i + size] for name, leaf in whole.items()}
        for i in range(0, 16, size)
    ]
    likelihood = fisher.of_classes(model, images, labels)
    where = dict(seed=seed, mesh=mesh_of(mesh))
    return fisher.estimate(likelihood, params, batches, **where)


def one_by_one(model, params, labels_B, rows):
    """The mean of the squares, an example after the other, in float64."""

    @jax.jit
    def gradient(image, label):
        def log_likelihood(params):
            logits = model.apply({"params": params}, image[None], None)[0]
            return jax.nn.log_softmax(logits)[label]

        return jax.grad(log_likelihood)(params)

    batch, total = tiny.batch_of(16), None
    for row in rows:
        grads = gradient(batch["image"][row], labels_B[row])
        squares = jax.tree.map(lambda leaf: np.float64(leaf) ** 2, grads)
        total = squares if total is None else jax.tree.map(np.add, total, squares)
    return jax.tree.map(lambda leaf: leaf / len(rows), total)


ROWS = [row for row in range(16) if row not in (3, 9)]


def assert_close(ours, theirs):
    for name, leaf in rules.name_leaves(theirs).items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(
            rules.name_leaves(ours)[name], leaf, rtol=1e-4, atol=1e-6 * scale + 1e-12
        )


def test_it_is_the_mean_of_squares_not_the_square_of_the_mean(model):
    params = tiny.params_of(model)
    found = estimate(model, params)
    expected = one_by_one(model, params, tiny.batch_of(16)["label"], ROWS)
    assert_close(found, expected)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_that_of_the_bias_of_a_head_by_hand(model):
    """The gradient of log p(y) with respect to it is onehot(y) - p."""
    params, batch = tiny.params_of(model), tiny.batch_of(16)
    p_BN = jax.nn.softmax(model.apply({"params": params}, batch["image"], None))
    squares_BN = (np.eye(3)[batch["label"]] - p_BN) ** 2
    found = estimate(model, params)["head"]["bias"]
    np.testing.assert_allclose(
        found, squares_BN[np.array(ROWS)].mean(axis=0), rtol=1e-4
    )


def test_labels_of_the_model_are_drawn_by_example(model):
    params, batch = tiny.params_of(model), tiny.batch_of(16)
    key = jax.random.fold_in(jax.random.key(7), fisher._LABEL)
    logits_BN = model.apply({"params": params}, batch["image"], None)
    labels_B = jax.vmap(jax.random.categorical)(
        keys.example_keys(key, batch["index"]), logits_BN
    )
    assert len(np.unique(labels_B)) > 1
    fields = dict(labels="model", seed=7)
    found = estimate(model, params, **fields)
    assert_close(found, one_by_one(model, params, np.array(labels_B), ROWS))
    # The labels of the data do not matter then.
    others = estimate(
        model, params, change=dict(label=np.zeros(16, np.int32)), **fields
    )
    jax.tree.map(np.testing.assert_array_equal, found, others)


@pytest.mark.parametrize("objective", ["reconstruct", "mlm"])
def test_that_of_a_masked_model_is_of_the_loss_of_each_example_with_its_own_mask(
    objective,
):
    """Against the loss of one example after the other; labels do not count."""
    make, config, batch = MASKED[objective]
    masked = make()
    params, whole = tiny.params_of(masked), batch(6)
    whole["weight"][2] = 0
    loss_fn = objectives.build(ConfigDict(config), masked, train=False)
    found = fisher.estimate(
        fisher.of_loss(loss_fn), params, [whole], seed=5, mesh=mesh_of("one")
    )
    key = jax.random.fold_in(jax.random.key(5), fisher._LABEL)
    key_B = keys.example_keys(key, whole["index"])
    gradient = jax.jit(jax.grad(lambda p, one, key: loss_fn(p, {}, one, key)[0]))
    total, rows = None, [0, 1, 3, 4, 5]
    for row in rows:
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], whole)
        grads = gradient(params, one, key_B[row : row + 1])
        squares = jax.tree.map(lambda leaf: np.float64(leaf) ** 2, grads)
        total = squares if total is None else jax.tree.map(np.add, total, squares)
    assert_close(found, jax.tree.map(lambda leaf: leaf / len(rows), total))


def test_neither_the_batch_size_nor_the_devices_matter(model):
    params = tiny.params_of(model)
    whole = estimate(model, params, 16)
    assert_close(estimate(model, params, 4), whole)
    assert_close(estimate(model, params, 8, mesh="eight"), whole)


def test_online_it_decays_where_both_know_a_leaf():
    new = {
        "encoder": {"a": np.float32([1, 2]), "b": np.float32([5])},
        "head": np.ones(3),
    }
    old = {
        "encoder/a": np.float32([10, 20]),
        "encoder/b": np.ones(4),
        "gone": np.ones(1),
    }
    found = rules.name_leaves(fisher.add_decayed(new, old, 0.5))
    np.testing.assert_array_equal(found["encoder/a"], [6, 12])
    np.testing.assert_array_equal(found["encoder/b"], [5])
    np.testing.assert_array_equal(found["head"], np.ones(3))
    assert set(found) == {"encoder/a", "encoder/b", "head"}


def test_the_penalties_of_several_tasks_are_one_but_for_a_constant():
    rng = np.random.default_rng(0)
    parts = [
        {part: {"a": rng.random(4, np.float32)} for part in ("fisher", "center")}
        for _ in range(3)
    ]
    for part in parts:
        part["fisher"]["a"][0] = 0
    parts[1]["fisher"]["head"] = parts[1]["center"]["head"] = np.float32([7])
    held = fisher.join_penalties(parts)

    def each(theta):
        return sum(p["fisher"]["a"] * (theta - p["center"]["a"]) ** 2 for p in parts)

    def one(theta):
        return held["fisher"]["a"] * (theta - held["center"]["a"]) ** 2

    thetas = rng.random((2, 4), np.float32)
    differences = [f(thetas[0]) - f(thetas[1]) for f in (each, one)]
    np.testing.assert_allclose(*differences, rtol=1e-4, atol=1e-6)
    assert held["center"]["a"][0] == parts[2]["center"]["a"][0]
    assert held["fisher"]["head"] == held["center"]["head"] == 7


def test_the_file_keeps_every_bit_and_is_whole_or_not_there(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tree = {"a": {"kernel": rng.random((3, 2), np.float32)}, "b": np.float32([1e-30])}
    fisher.save(tmp_path / fisher.FILE, tree)
    found = fisher.load(tmp_path / fisher.FILE)
    np.testing.assert_array_equal(found["a/kernel"], tree["a"]["kernel"])
    assert set(found) == set(load_file(tmp_path / fisher.FILE)) == {"a/kernel", "b"}

    def broken(file, tensors):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(fisher.writing, "save_safetensors", broken)
    with pytest.raises(OSError, match="disk full"):
        fisher.save(tmp_path / fisher.FILE, {"a": jnp.ones(1)})
    assert set(fisher.load(tmp_path / fisher.FILE)) == {"a/kernel", "b"}
    assert [file.name for file in tmp_path.iterdir()] == [fisher.FILE]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.float32([1, -1]), "encoder/x has numbers that are no mean of sq"),
        (np.float32([np.nan]), "encoder/x: 1 of its 1 numbers are NaN or infinite"),
    ],
)
def test_a_file_that_holds_no_squares_is_refused(tmp_path, leaf, message):
    save_file({"encoder/x": leaf}, tmp_path / fisher.FILE)
    with pytest.raises(UserError, match=message):
        fisher.load(tmp_path / fisher.FILE)


def test_examples_none_of_which_counts_are_refused(model):
    with pytest.raises(UserError, match="none of the examples counts"):
        estimate(
            model, tiny.params_of(model), change=dict(weight=np.zeros(16, np.float32))
        )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(labels="true"), "fisher.labels='true' is unknown.*'empirical', 'model'"),
        (dict(num_examples=-1), "fisher.num_examples=-1 must be >= 0"),
        (dict(batch_size=0), "fisher.batch_size=0 must be at least 1"),
        (dict(decay=1.5), r"fisher.decay=1.5 must lie in \[0, 1\]"),
    ],
)
def test_errors_name_the_field(changes, text):
    with pytest.raises(UserError, match=text):
        checks.run(fisher.ROWS, ConfigDict(defaults.fisher(**changes)))
