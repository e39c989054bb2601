"""Sections of penalties as the configs have them, and what their losses are given."""

import jax
import numpy as np
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, objectives
from flax_adapt.base import keys

SECTIONS = {
    "weight_distance": defaults.weight_distance(weight=0.3),
    "l2_sp": defaults.l2_sp(weight=0.5, alpha=0.4, beta=0.2),
    "ewc": defaults.ewc("stage:a", weight=0.7),
    "r3f": defaults.r3f(weight=2.0, eps=0.3),
    "lwf": defaults.lwf("stage:a", weight=0.6),
    "er": defaults.er(weight=0.8),
    "der": defaults.der(("stage:a",), weight=0.9),
}
# Half of the patches or tokens: tiny rows shall never have none to guess.
RECONSTRUCT = defaults.reconstruct() | dict(hidden_ratio=0.5)
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=0.5)
OBJECTIVES = {
    "reconstruct": RECONSTRUCT,
    "mlm": MLM,
    "distill": defaults.distill(RECONSTRUCT),
    "classify": defaults.classify(),
    "classify_text": defaults.classify(),
    "glad": defaults.glad(),
}
# The models of "glad" have adaptors.
ADAPTORS = {"glad": defaults.adaptor()}
FRESH = ("head/kernel", "head/bias")
NUM_SOURCE, FIRST = 10, 40


def section(name, /, **changes):
    return ConfigDict({**SECTIONS[name], **changes})


def with_domains(batch, seed=0):
    """Every third row is replayed: of 10 rows behind the 40 of the target."""
    count = len(batch["weight"])
    domain_B = (np.arange(count) % 3 == 2).astype(np.int32)
    rows = np.random.default_rng(seed).integers(0, NUM_SOURCE, count)
    index_B = np.where(domain_B == 1, FIRST + rows, np.arange(count)).astype(np.int32)
    return {**batch, "domain": domain_B, "index": index_B}


def given(params, seed=3):
    """`frozen` for every penalty; nothing in it is that of `params`."""
    rng = np.random.default_rng(seed)

    def near(leaf):
        return leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32)

    held = {"encoder": params["encoder"]}
    squares = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), held)
    logits_nN = rng.standard_normal((NUM_SOURCE, 3), np.float32)
    return {
        "start": jax.tree.map(near, params),
        "ewc": {"fisher": squares, "center": jax.tree.map(near, held)},
        "lwf": jax.tree.map(near, params),
        "der": {"logits": logits_nN, "first": np.int32(FIRST)},
        "teacher": jax.tree.map(near, held),
    }


def is_text(name):
    return name in ("mlm", "classify_text")


def model_of(name, dropout=0.0):
    arch = {**(tiny.TEXT_MODEL if is_text(name) else tiny.MODEL), "depth": 1}
    arch["adaptor"] = ADAPTORS.get(name)
    task = objectives.task_of(ConfigDict(OBJECTIVES[name]))
    return tiny.build(task, arch, dropout=dropout)


def batch_of(name, size=12, seed=0):
    if is_text(name):
        return with_domains(tiny.text_batch_of(size, seed, packed=name == "mlm"), seed)
    return with_domains(tiny.batch_of(size, seed), seed)


def keys_of(batch, seed=0):
    return keys.example_keys(jax.random.key(seed), batch["position"])
