"""What the benchmarks of a training step share: our step, and both timed in turns."""

import statistics
import time

import jax
from ml_collections import ConfigDict

import flax_adapt as fa


def our_step(arch, task, objective, optimizer, batch):
    """Returns a function that runs one step of ours and waits for it.

    objective, optimizer: sections of a config. No dropout, float32, all devices.
    """
    model = fa.models.build(
        arch,
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )
    params = fa.models.init_params(model, jax.random.key(0))
    mesh = fa.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    tx = fa.optim.build(ConfigDict(optimizer), 1_000, params)
    loss_fn = fa.objectives.build(ConfigDict(objective), model)
    train_step = fa.make_train_step(loss_fn, tx, mesh)
    placed = fa.put_batch(batch, mesh)
    state = fa.create_state(params, tx, mesh, seed=0)

    def step():
        nonlocal state
        state, metrics = train_step(state, placed)
        jax.block_until_ready((state, metrics))

    return step


def median_seconds(steps, rounds):
    """{name: median seconds} of every step, one of each in turn; two to warm up."""
    seconds = {name: [] for name in steps}
    for step in steps.values():  # compile, warm up
        step()
        step()
    for _round in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
