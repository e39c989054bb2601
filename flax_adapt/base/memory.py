"""How a step saves memory: what is recomputed, loops over blocks, logits in chunks.

None of this changes what is computed or which parameters there are: checkpoints, exports
and optimizers do not know of it. It is the section `memory` of a stage. `bind` gives it to
a loss, and the models read it where they are traced (`current`).
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from flax_adapt.base.checks import Check, Context, Row, one_of
from flax_adapt.base.types import LossFn

# Value of `memory.remat` -> (whether blocks are recomputed in the backward pass, the
# policy of what they keep, whether whole stacks of blocks are recomputed too).
#
#     none    every intermediate array is kept
#     dots    of a block its matrix products, but not the logits of attention
#     blocks  the input of every block
#     full    the input of every stack of blocks: of several passes (two views, a teacher's
#             student) one at a time holds the inputs of its blocks; two forward passes more
#     auto    `settle` says which of them; a loss that no stage trains is traced as "none"
AUTO = "auto"
REMAT: dict[str, tuple[bool, Callable[..., bool] | None, bool]] = {
    "none": (False, None, False),
    "dots": (True, jax.checkpoint_policies.dots_with_no_batch_dims_saveable, False),
    "blocks": (True, None, False),
    "full": (True, None, True),
    AUTO: (False, None, False),
}
# Platform -> the width of a transformer from which "auto" recomputes its blocks, in a loop
# (ours, after the memory of a chip; `flax-adapt plan` tells what a step takes). "cuda" is the
# name that plans give a GPU, "gpu" that of JAX.
LARGE_WIDTH = {"tpu": 768, "cuda": 1024, "gpu": 1024}


class Memory(NamedTuple):
    """The section `memory`.

    remat         a key of REMAT
    scan          blocks of one architecture are one loop: their parameters are stacked
                  inside the step. The program is that of one block, so it compiles in a
                  fraction of the time; without `remat` it takes more memory
    logit_chunks  into how many parts the logits of MLM (over the vocabulary) and of
                  contrast (over the keys) are divided; only one part exists at a time
    """

    remat: str
    scan: bool
    logit_chunks: int


NOTHING_SAVED = Memory("none", False, 1)
_CURRENT: contextvars.ContextVar[Memory] = contextvars.ContextVar(
    "memory", default=NOTHING_SAVED
)


_IGNORED: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "ignored", default=False
)


def settle(section: Any, config_model: Any, platform: str) -> dict[str, Any]:
    """Returns the section `memory` with what remat="auto" means for a model on a platform.

    That is "blocks" with `scan` from a width of LARGE_WIDTH on; for the rest, ResNets and
    CPUs, whose memory is large and whose speed is small, "none".
    """
    settled = {name: section[name] for name in Memory._fields}
    if settled["remat"] != AUTO:
        return settled
    least = LARGE_WIDTH.get(platform)
    if config_model.kind == "resnet" or not least or config_model.width < least:
        return settled | {"remat": "none"}
    return settled | {"remat": "blocks", "scan": True}


def settle_config(config: Any, platform: str) -> Any:
    """Returns the config of an experiment with a settled section `memory` in every stage."""

    def settled(stage: Any) -> Any:
        section = settle(stage.memory, config.model, platform)
        return ConfigDict({**stage, "memory": ConfigDict(section)})

    return ConfigDict({**config, "stages": tuple(map(settled, config.stages))}).lock()


def current() -> Memory:
    """Returns the settings of the loss that is being traced, those of none by default."""
    return NOTHING_SAVED if is_ignored() else _CURRENT.get()


def is_ignored() -> bool:
    """Returns whether losses are traced as if nothing saved memory, see `ignore`."""
    return _IGNORED.get()


@contextlib.contextmanager
def ignore() -> Iterator[None]:
    """Traces losses as if nothing saved memory: for counts of what they compute."""
    token = _IGNORED.set(True)
    try:
        yield
    finally:
        _IGNORED.reset(token)


def bind(loss_fn: LossFn, section: Any) -> LossFn:
    """Returns the same loss, traced with a section `memory` (or a `Memory`'s fields)."""
    memory = Memory(**{name: section[name] for name in Memory._fields})

    def bound(*arguments):
        token = _CURRENT.set(memory)
        try:
            return loss_fn(*arguments)
        finally:
            _CURRENT.reset(token)

    return bound


def remat(call: Callable[..., Any], *, in_loop: bool) -> Callable[..., Any]:
    """Returns `call`, the function of one block, recomputed as the current settings say."""
    recomputes, policy, _ = REMAT[current().remat]
    if not recomputes:
        return call
    # In a loop nothing of the backward pass can be merged with the forward pass.
    return jax.checkpoint(call, policy=policy, prevent_cse=not in_loop)


def remat_module(module: type[nn.Module]) -> type[nn.Module]:
    """Returns the module class of a block, recomputed as the current settings say."""
    recomputes, policy, _ = REMAT[current().remat]
    return nn.remat(module, policy=policy) if recomputes else module


class _Chunked(NamedTuple):
    """The section `memory` of a stage, the name of its objective, its kind of model."""

    memory: Any
    objective: str
    kind: str


def _settings(at: Context) -> list[_Chunked]:
    section, kind = at.section, at.config.model.kind
    config = section.objective
    name = config.masked.name if config.name == "distill" else config.name
    return [_Chunked(section.memory, name, kind)]


ROWS = (
    one_of("memory.remat", lambda it: it.memory.remat, REMAT),
    Row(
        lambda it: it.memory.logit_chunks >= 1,
        "memory.logit_chunks={0.memory.logit_chunks} must be at least 1",
    ),
    Row(
        lambda it: it.memory.logit_chunks == 1 or it.objective in ("mlm", "contrast"),
        "memory.logit_chunks={0.memory.logit_chunks} must be 1 for objective "
        "{0.objective!r}: logits of a vocabulary or of many keys are in 'mlm' and "
        "'contrast'",
    ),
    Row(
        lambda it: not it.memory.scan or it.kind != "resnet",
        "memory.scan must be False for a resnet: its blocks differ",
    ),
)
CHECKS = (Check(_settings, ROWS),)
