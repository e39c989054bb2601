"""Features of the same examples in any state of a running stage."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flax_adapt import data, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.evals import embed
from flax_adapt.evals.features import Features, extract
from flax_adapt.experiment.measuring import drawn
from flax_adapt.models import batch_stats
from flax_adapt.stage import stage as stages
from flax_adapt.stage import training
from flax_adapt.stage.stage import Stage
from flax_adapt.surgery import adaptors
from flax_adapt.train import sharding
from flax_adapt.train.state import TrainState


class StateFeatures:
    """Computes features of the same examples for any state of a stage.

    section: of the examples. metric: which needs them, as errors name it. rows: int64 [m],
    those examples that are encoded.
    """

    def __init__(self, stage: Stage, section: Any, mesh: Mesh, metric: str):
        _check_mesh(stage, mesh, metric)
        self.stage, self.mesh = stage, mesh
        self.examples = data.open_examples(section, "")
        self.rows = drawn.choose_rows(len(self.examples), stage.config.watch.examples)
        config = models.encoder_config(stage.architecture)
        self.model = stages.build_for_task(stage, config, "encoder", 0)
        self.parts = tuple(weights.shapes(self.model))
        pooling = _choose_pooling(stage)
        self.encode = embed.make_encoder(self.model, pooling, self.examples, mesh)

    def compute(self, state: TrainState) -> Features:
        """Returns the features in a state; all of them NaN where one is not finite."""
        merged = training.merge_lora(self.stage, state.evaluated)
        whole = batch_stats.join(merged, state.statistics)
        params = adaptors.drop({name: whole[name] for name in self.parts})
        config = self.stage.experiment.evaluate
        size = sharding.whole_batch_size(config.batch_size, self.mesh)
        share = sharding.share_of_process(self.mesh)
        batches = data.eval_batches(self.examples, size, *share, self.rows)
        found = extract(lambda batch: self.encode(params, batch, 0), batches)
        if not np.isfinite(found.embeddings).all():
            return found._replace(embeddings=np.full_like(found.embeddings, np.nan))
        return found


def _check_mesh(stage: Stage, mesh: Mesh, metric: str) -> None:
    if jax.process_count() > 1 and mesh.shape["tensor"] > 1:
        raise UserError(
            f"stage {stage.label}: watch.metric={metric!r} needs "
            "mesh.tensor=1 with several processes; 'held_out/loss' does not"
        )


def _choose_pooling(stage: Stage) -> str:
    """Returns the pooling of features, as `flax-adapt eval` has it."""
    asked, start = stage.experiment.evaluate.pooling, stage.config.init_from
    if asked != weights.AUTO:
        return str(asked)
    if start == "scratch":
        own = str(stage.config.model.pooling)
        return "cls" if own == "pooler" else own
    path = stages.resolve_field(stage, "init_from")
    known = stages.known_options_of(stage, start)
    return weights.resolve_pooling(asked, path, **known)
