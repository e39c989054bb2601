"""Tiny configs, models and batches for tests: all compile in a second or two."""

import jax
import numpy as np

from flax_adapt import config as configs
from flax_adapt import defaults, models

MODEL = dict(
    image_size=8,
    patch_size=4,
    channels=1,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    layer_norm_eps=1e-12,
    qkv_bias=True,
    gelu="erf",
    pooler=False,
    decoder=dict(width=16, depth=1, heads=2, mlp_dim=32),
)


def digits(**changes):
    return defaults.image_data(
        "builtin:digits",
        "train",
        **dict(image_size=8, channels=1, mean=(0.5,), std=(0.5,), **changes),
    )


FEW = {**defaults.ALL, "per_class": 4}


def pretrain(name="pretrain", **changes):
    fields = dict(num_steps=6, batch_size=16, init_from="scratch")
    fields |= dict(optim=defaults.pretrain_optim(lr=1e-3))
    return defaults.pretrain_stage(name, digits(), **{**fields, **changes})


def distill(name="distill", teacher="stage:pretrain", **changes):
    return pretrain(
        name, **{"objective": defaults.distill(), "teacher": teacher, **changes}
    )


def finetune(name="finetune", **changes):
    test = digits(subset={**FEW, "part": "rest"})
    evaluation = dict(
        every_steps=0, batch_size=64, data=test, metric="accuracy", mode="max"
    )
    fields = dict(num_steps=4, batch_size=16, init_from="stage:pretrain", seeds=(0,))
    fields |= dict(
        optim=defaults.finetune_optim(lr=1e-3, warmup_steps=1), eval=evaluation
    )
    labelled = digits(subset=FEW)
    return defaults.finetune_stage(name, labelled, test, **{**fields, **changes})


def experiment(*stages, **changes):
    fields = dict(
        init="",
        model=MODEL,
        mesh=dict(data=-1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=2, keep_last=2, keep_best=0),
        log_every_steps=1,
        evaluate=defaults.evaluate(
            digits(subset=FEW), digits(subset={**FEW, "part": "rest"})
        ),
        stages=stages,
    )
    return configs.build(defaults.experiment(**{**fields, **changes}))


def build(task, arch=MODEL, **changes):
    fields = dict(
        dtype="float32", dropout=0.0, drop_path=0.0, pooling="cls", num_classes=3
    )
    return models.build(arch, task, **{**fields, **changes})


def params_of(model, seed=0):
    """Random everywhere (biases, scales too), so that nothing hides behind zeros."""
    params = models.init_params(model, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [
        leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves
    ]
    return jax.tree.unflatten(tree, noisy)


def batch_of(size=8, seed=0):
    """Normalised float images, as objectives take them."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, 8, 8, 1), np.float32),
        "label": rng.integers(0, 3, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "position": np.arange(size, dtype=np.int32),
        "weight": np.ones(size, np.float32),
    }
