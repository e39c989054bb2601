"""Tiny models with adaptors of every kind."""

from support import tiny

from flax_adapt import defaults
from flax_adapt.base import rules
from flax_adapt.surgery import adaptors

KINDS = {
    "vector": defaults.adaptor(),
    "keywise": defaults.adaptor(keywise=True),
    "mixing": defaults.adaptor(kind="mixing"),
    "bottleneck": defaults.adaptor(kind="bottleneck", hidden=5),
}
MODELS = {"vit": tiny.MODEL, "bert": tiny.TEXT_MODEL}
REGULARIZERS = ("preserve", "masked", "none")


def build(name, kind, task="classify", **options):
    adaptor = KINDS[kind] if kind else None
    return tiny.build(task, {**MODELS[name], "adaptor": adaptor}, **options)


def inputs(name):
    if name == "vit":
        return tiny.batch_of(8)
    return tiny.text_batch_of(8, packed=False)  # some rows are padded


def at_start(params):
    """Random weights everywhere but in the adaptors, which are as they begin."""
    return rules.map_named(
        lambda name, leaf: (
            leaf * 0
            if adaptors.is_adaptor(name) and not name.endswith("squeeze")
            else leaf
        ),
        params,
    )
