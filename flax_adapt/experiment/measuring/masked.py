"""The masked loss of weights on test examples: reconstruction of images, perplexity of texts.

Of weights that have the part for it, a decoder or a masked-language head, by the objective of
the config's first stage that has one. All models hide the same patches or words.
"""

from pathlib import Path
from typing import Any

import jax

from flax_adapt import data, objectives, weights
from flax_adapt.base import config as configs
from flax_adapt.base.metrics import Meter
from flax_adapt.base.version import __version__
from flax_adapt.data import fingerprint
from flax_adapt.experiment.measuring import drawn, kept
from flax_adapt.experiment.measuring.embeddings import Model
from flax_adapt.stage import draws, programs
from flax_adapt.stage.stage import Stage
from flax_adapt.train import precision, sharding

# Masked objective -> the metric that is shown.
METRICS = {"reconstruct": "reconstruct", "mlm": "perplexity"}
MOST = 2_000  # examples that are read, drawn from all (ours)


def measure(
    config: Any, model: Model, examples: data.Examples, batch_size: int, workdir: Any
) -> dict[str, float]:
    """Returns {"reconstruct": loss} or {"perplexity": value}.

    {} where no stage is masked, where the weights lack the part, and where they were changed.
    """
    section = next((s for s in config.stages if s.objective.name in METRICS), None)
    if section is None or model.change is not None:
        return {}
    metric = METRICS[section.objective.name]
    task = objectives.TASKS[section.objective.name]
    if not weights.does_task(model.folder, task, **weights.options_in(model.fit)):
        return {}
    dtype = precision.dtype_of(config.precision)
    module, params, _ = weights.from_pretrained(
        model.folder, task, dtype=dtype, **model.fit
    )
    folder = kept.find_folder(workdir)

    def compute() -> dict[str, float]:
        how = (config, section, module, params, examples, batch_size, metric)
        return {metric: _compute(*how)}

    if folder is None:
        return compute()
    name = _name(config, section, module, params, examples)
    return kept.recall_values(folder / name, compute)


def _name(config: Any, section: Any, module: Any, params: Any, examples: Any) -> str:
    """Returns the name of the file that keeps the loss of these weights on these examples."""
    how = configs.to_text(configs.plain(section.objective)), repr(module), config.seed
    facts = (*how, *kept.describe_examples(examples), __version__)
    return f"{fingerprint.of_params(params, facts)}.npz"


def _compute(
    config: Any,
    section: Any,
    module: Any,
    params: Any,
    examples: data.Examples,
    batch_size: int,
    metric: str,
) -> float:
    mesh, sums = sharding.all_devices(), Meter()
    plain = draws.change_fields(section.model, lora=None)
    stage = Stage(config, draws.change_fields(section, model=plain), 0, Path())
    recipe = programs.recipe_of_evaluation(stage, module, examples.config)
    step = programs.share_eval_step(recipe, mesh)
    placed, share = sharding.put(params, mesh), sharding.share_of_process(mesh)
    size = sharding.whole_batch_size(batch_size, mesh)
    rows = drawn.choose_rows(len(examples), MOST)
    for batch in data.eval_batches(examples, size, *share, rows):
        found = step(placed, {}, sharding.put_batch(batch, mesh), config.seed)
        sums.add({metric: jax.device_get(found[metric])})
    return sums.values()[metric]
