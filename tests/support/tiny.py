"""Tiny configs, models and batches for tests: all compile in a second or two."""

import jax
import numpy as np

from flax_adapt import defaults, models
from flax_adapt.base import config as configs
from flax_adapt.base.types import Text

MODEL = dict(
    kind="vit",
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
    last_block=None,
    adaptor=None,
    traits=None,
    decoder=dict(width=16, depth=1, heads=2, mlp_dim=32),
)


TEXT_MODEL = dict(
    kind="bert",
    vocab_size=29,
    max_positions=16,
    token_types=2,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    layer_norm_eps=1e-12,
    gelu="erf",
    pad_token_id=0,
    pooler=False,
    last_block=None,
    adaptor=None,
    traits=None,
)
CLS, SEP, MASK = 1, 2, 3  # 0 is padding, the rest are words


def digits(**changes):
    return defaults.image_data(
        "builtin:digits",
        "train",
        **dict(image_size=8, channels=1, mean=(0.5,), std=(0.5,), **changes),
    )


FEW = {**defaults.ALL, "per_class": 4}
LARS = dict(momentum=0.9, trust=0.001)


def pretrain(name="pretrain", **changes):
    fields = dict(num_steps=6, batch_size=16, init_from="scratch")
    fields |= dict(optim=defaults.pretrain_optim(lr=1e-3))
    changes = {**fields, **changes}
    data = changes.pop("data", None) or digits()
    return defaults.pretrain_stage(name, data, **changes)


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


def text_of(*rows, length=12, seed=0):
    """`Text` with each row a tuple of the lengths of its documents, CLS and SEP included.

    A word is a token, except that the second word of a document has two pieces.
    """
    rng = np.random.default_rng(seed)
    text = Text(*(np.zeros((len(rows), length), np.int32) for _ in Text._fields))
    text.words_BL[:] = -1
    for row, documents in enumerate(rows):
        start, words = 0, 0
        for number, count in enumerate(documents, start=1):
            inner = np.arange(count - 2)
            ids = [CLS, *rng.integers(4, TEXT_MODEL["vocab_size"], count - 2), SEP]
            place = (row, slice(start, start + count))
            text.tokens_BL[place] = ids
            text.segments_BL[place] = number
            text.positions_BL[place] = np.arange(count)
            text.words_BL[row, start + 1 : start + count - 1] = (
                words + inner - (inner > 1)
            )
            start, words = start + count, words + count
    return text


def text_batch_of(size=8, seed=0, packed=True):
    """A batch of text: rows of one document, or of two (then the last is padded)."""
    lengths = [(5, 7), (6, 4)] if packed else [(12,), (9,)]
    text = text_of(*[lengths[row % 2] for row in range(size)], seed=seed)
    batch = batch_of(size, seed)
    del batch["image"]
    return {**batch, "text": text}
