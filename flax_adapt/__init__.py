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

from flax_adapt import data, defaults, models, objectives, weights
from flax_adapt.base import config
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import Text
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
