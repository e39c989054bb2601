"""The evaluation of a stage on its `eval.data`: every example once, after some steps."""

import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data
from flax_adapt.base.errors import NonFiniteError
from flax_adapt.base.metrics import Meter
from flax_adapt.base.types import Metrics
from flax_adapt.stage import data as inputs
from flax_adapt.stage import predictions, programs
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding
from flax_adapt.train.preemption import Preemption
from flax_adapt.train.state import TrainState


class Evaluation:
    """The opened evaluation data of a stage, and its compiled step.

    Raises UserError where the data does not fit the model or the training examples.
    """

    def __init__(
        self, stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
    ):
        config = stage.config.eval
        self.stage, self.mesh, self.batch_size = stage, mesh, config.batch_size
        sharding.check_batch_size(config.batch_size, 1, mesh)
        self.examples = inputs.open_examples(stage, config.data)
        inputs.check_text(stage, model, config.data, self.examples)
        inputs.check_same_classes(stage, examples, self.examples)
        recipe = programs.recipe_of_evaluation(stage, model, config.data)
        self.step = programs.share_eval_step(recipe, mesh)

    def run(
        self, state: TrainState, step: int, preemption: Preemption
    ) -> dict[str, float] | None:
        """Returns the metrics after `step`, and writes the predictions of a classifier.

        Returns None where SIGTERM came before the end. Raises NonFiniteError for a value
        that is not finite.
        """
        sums = Meter()
        for metrics in self.measure_batches(state):
            sums.add(metrics)
            if preemption.has_signal():
                return None
        predicted = sums.take("predictions")
        values = sums.values()
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteError(
                f"stage {self.stage.label}: evaluation at step {step} is not finite: "
                f"{values}; lower optim.lr or set optim.clip_norm"
            )
        if predicted is not None:
            kept = predictions.of_metric(self.examples.names, predicted)
            predictions.write(self.stage.folder, kept)
        return values

    def measure_batches(
        self, state: TrainState, rows: np.ndarray | None = None
    ) -> Iterator[Metrics]:
        """Yields the metrics of each batch of the evaluation data, on the host.

        rows: int [m], the examples to evaluate; None: all.
        """
        share = sharding.share_of_process(self.mesh)
        for batch in data.eval_batches(self.examples, self.batch_size, *share, rows):
            placed = sharding.put_batch(batch, self.mesh)
            inputs_of_loss = (state.evaluated, state.loss_inputs)
            metrics = self.step(*inputs_of_loss, placed, self.stage.seed)
            yield jax.device_get(metrics)


def describe_break(
    stage: Stage, step: int, place: str, good: int | None
) -> NonFiniteError:
    """Returns the error of a training step that is not finite.

    place: the first bad parameter, in words. good: the step of the last good checkpoint.
    """
    return NonFiniteError(
        f"stage {stage.label}: loss, gradient or update is not finite at step "
        f"{step}; first bad parameter: {place}; last good checkpoint: step "
        f"{good if good is not None else 'none'}; lower optim.lr, set "
        "optim.clip_norm or use precision='float32'"
    )
