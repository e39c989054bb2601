"""Our objectives and optimizer against torch's AdamW, step by step (make_goldens.py)."""

import goldens
import inputs
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flax_adapt import defaults, objectives
from flax_adapt.train import optim, sharding, state, step
from flax_adapt.weights import strict

pytestmark = pytest.mark.parity


def batch(name, number=0):
    return dict(
        image=inputs.images(name, number),
        noise=inputs.noise(name, number),
        label=inputs.labels(number),
        position=np.arange(inputs.BATCH, dtype=np.int32),
        weight=np.ones(inputs.BATCH, np.float32),
    )


def distill_config(name):
    config = ConfigDict(defaults.distill())
    config.masked.hidden_ratio = inputs.MASK_RATIO[name]
    return config


def train(model, objective, optimizer, params, frozen, num_steps):
    """Returns final parameters and the metrics of every step, by the path of `run`."""
    mesh = sharding.one_device()
    loss_fn = objectives.build(objective, model)
    tx = optim.build(optimizer, num_steps, params)
    now = state.create(params, tx, mesh, seed=0, frozen=frozen)
    train_step = step.make_train_step(loss_fn, tx, mesh)
    history = []
    for number in range(num_steps):
        now, metrics = train_step(now, batch("A", number))
        history.append({name: float(mean.value()) for name, mean in metrics.items()})
    return jax.device_get(now.params), history


def assert_same_training(final, start, expected, lr_sum):
    """Final parameters to 1e-5 relative (weight decay alone is 1e-4), moves to 1e-3."""
    start = strict.flatten(start)
    final = strict.flatten(final)
    for leaf, value in expected.items():
        difference = np.linalg.norm(final[leaf] - value)
        moved = np.linalg.norm(value - start[leaf])
        if leaf.endswith("key/bias"):
            # Softmax ignores a constant: the gradient is rounding, which Adam divides by
            # its own size. No two implementations agree on it; it is bounded.
            assert np.max(np.abs(final[leaf] - start[leaf])) < 1.1 * lr_sum
            continue
        assert difference < 1e-5 * np.linalg.norm(value), leaf
        assert difference <= 1e-3 * moved, leaf


@pytest.mark.parametrize("name", sorted(inputs.SHAPES))
def test_one_self_distillation_step_has_the_references_terms_and_gradients(name):
    golden = goldens.read(f"distill_{name}")
    model = goldens.build(name, "mae")
    student = goldens.params(golden, inputs.STUDENT)
    teacher = goldens.params(golden, inputs.TEACHER)
    loss_fn = jax.value_and_grad(
        objectives.build(distill_config(name), model), has_aux=True
    )
    key_B = jax.random.split(jax.random.key(0), inputs.BATCH)
    frozen = {"teacher": teacher}
    (loss, metrics), grads = jax.jit(loss_fn)(student, frozen, batch(name), key_B)

    masked, distance = golden["masked"], golden["distance"]
    np.testing.assert_allclose(metrics["reconstruct"].value(), masked, rtol=1e-5)
    np.testing.assert_allclose(metrics["distill"].value(), distance, rtol=1e-5)
    np.testing.assert_allclose(loss, masked + distance, rtol=1e-5)
    expected = goldens.under(golden, "grad")
    largest = max(np.linalg.norm(value) for value in expected.values())
    distances = goldens.distances(grads, expected, floor=1e-3 * largest)
    assert max(distances.values()) < 1e-4, distances


def test_20_steps_of_teacher_and_student_end_where_torch_ends():
    golden = goldens.read("training_A")
    model = goldens.build("A", "mae")
    start = goldens.params(golden, inputs.STUDENT)
    settings = dict(inputs.PRETRAIN)
    num_steps = settings.pop("num_steps")
    optimizer = ConfigDict(defaults.pretrain_optim(**settings))
    lr_sum = settings["lr"] * num_steps / 2

    teacher, history = train(
        model, ConfigDict(defaults.reconstruct()), optimizer, start, {}, num_steps
    )
    losses = [metrics["loss"] for metrics in history]
    np.testing.assert_allclose(losses, golden["teacher_loss"], rtol=1e-5)
    assert_same_training(teacher, start, goldens.under(golden, "teacher"), lr_sum)

    student, history = train(
        model, distill_config("A"), optimizer, start, {"teacher": teacher}, num_steps
    )
    losses = [metrics["loss"] for metrics in history]
    np.testing.assert_allclose(losses, golden["student_loss"], rtol=1e-5)
    assert_same_training(student, start, goldens.under(golden, "student"), lr_sum)


def test_fine_tuning_ends_where_torch_ends():
    golden = goldens.read("finetune_A")
    model = goldens.build("A", "classify")
    start = goldens.params(golden, inputs.CLASSIFIER)
    settings = dict(inputs.FINETUNE)
    num_steps = settings.pop("num_steps")
    optimizer = ConfigDict(defaults.finetune_optim(**settings))
    final, history = train(
        model, ConfigDict(defaults.classify()), optimizer, start, {}, num_steps
    )
    losses = [metrics["loss"] for metrics in history]
    norms = [metrics["grad_norm"] for metrics in history]
    assert min(norms) > settings["clip_norm"]  # every step is clipped
    np.testing.assert_allclose(losses, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(norms, golden["grad_norm"], rtol=1e-4)
    lr_sum = settings["lr"] * num_steps / 2
    assert_same_training(final, start, goldens.under(golden, "final"), lr_sum)
