"""Adapt a pretrained ViT or BERT to a domain with few labels or none, in JAX and Flax.

    model, params, report = fa.from_pretrained("path/to/hf_folder", "mae")
    loss_fn = fa.objectives.build(config.objective, model)
    tx = fa.optim.build(config.optim, config.num_steps, params)
    state = fa.create_state(params, tx, mesh, seed=0)
    step = fa.make_train_step(loss_fn, tx, mesh)
    state, metrics = step(state, batch)
    fa.save_pretrained("out", model, state.params)

`flax_adapt.experiment.recipe.run(config, workdir, force=False)` is the command `flax-adapt run`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flax_adapt.base.version import __version__ as __version__

if TYPE_CHECKING:
    from flax_adapt import data, defaults, models, objectives, weights
    from flax_adapt.base import config
    from flax_adapt.base.errors import UserError
    from flax_adapt.base.metrics import Loss, Mean
    from flax_adapt.base.types import Text
    from flax_adapt.commands.adapt import adapt_model as adapt
    from flax_adapt.train import optim, sharding
    from flax_adapt.train.sharding import make_mesh, put_batch
    from flax_adapt.train.state import TrainState
    from flax_adapt.train.state import create as create_state
    from flax_adapt.train.step import make_eval_step, make_train_step
    from flax_adapt.weights import from_pretrained, save_pretrained

__all__ = [
    "Loss",
    "Mean",
    "Text",
    "TrainState",
    "UserError",
    "adapt",
    "config",
    "create_state",
    "data",
    "defaults",
    "from_pretrained",
    "make_eval_step",
    "make_mesh",
    "make_train_step",
    "models",
    "objectives",
    "optim",
    "put_batch",
    "save_pretrained",
    "sharding",
    "weights",
]

# Public name -> its module, and its name there ("": it is the module). Each is imported
# when it is asked for (PEP 562), so that `flax-adapt --help` does not import JAX.
_PLACES = {
    "Loss": ("base.metrics", "Loss"),
    "Mean": ("base.metrics", "Mean"),
    "Text": ("base.types", "Text"),
    "TrainState": ("train.state", "TrainState"),
    "UserError": ("base.errors", "UserError"),
    "adapt": ("commands.adapt", "adapt_model"),
    "config": ("base.config", ""),
    "create_state": ("train.state", "create"),
    "data": ("data", ""),
    "defaults": ("defaults", ""),
    "from_pretrained": ("weights", "from_pretrained"),
    "make_eval_step": ("train.step", "make_eval_step"),
    "make_mesh": ("train.sharding", "make_mesh"),
    "make_train_step": ("train.step", "make_train_step"),
    "models": ("models", ""),
    "objectives": ("objectives", ""),
    "optim": ("train.optim", ""),
    "put_batch": ("train.sharding", "put_batch"),
    "save_pretrained": ("weights", "save_pretrained"),
    "sharding": ("train.sharding", ""),
    "weights": ("weights", ""),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'flax_adapt' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = importlib.import_module(f"flax_adapt.{module}")
    globals()[name] = getattr(found, attribute) if attribute else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
