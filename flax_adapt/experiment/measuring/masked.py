"""The masked loss of weights on test examples: reconstruction of images, perplexity of texts.

Of weights that have the part for it, a decoder or a masked-language head, by the objective of
the config's first stage that has one. All models hide the same patches or words.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt import data, models, objectives, weights
from flax_adapt.base import caches
from flax_adapt.base import config as configs
from flax_adapt.base.metrics import Meter
from flax_adapt.base.version import __version__
from flax_adapt.data import fingerprint
from flax_adapt.experiment.measuring import kept
from flax_adapt.experiment.measuring.embeddings import Model
from flax_adapt.stage import draws, programs
from flax_adapt.stage.stage import Stage
from flax_adapt.train import precision, sharding

# Objective -> the part that weights need, and the metric that is shown.
PARTS = {"reconstruct": ("decoder", "reconstruct"), "mlm": ("mlm", "perplexity")}
MOST = 2_000  # examples that are read (ours)


def measure(
    config: Any, model: Model, examples: data.Examples, batch_size: int, workdir: Any
) -> dict[str, float]:
    """Returns {"reconstruct": loss} or {"perplexity": value}.

    {} where no stage is masked, where the weights lack the part, and where they were changed.
    """
    section = next((s for s in config.stages if s.objective.name in PARTS), None)
    if section is None or model.change is not None:
        return {}
    part, metric = PARTS[section.objective.name]
    task = objectives.TASKS[section.objective.name]
    options = weights.options_in(model.fit)
    kind = weights.model_config(model.folder, **options)["kind"]
    if task not in models.TASKS[kind]:
        return {}
    if part not in weights.parts(model.folder, task, **options):
        return {}
    dtype = precision.dtype_of(config.precision)
    module, params, _ = weights.from_pretrained(
        model.folder, task, dtype=dtype, **model.fit
    )
    path = _name(config, section, module, params, examples, workdir)
    if path is None or (found := caches.read_arrays(path)) is None:
        value = _compute(config, section, module, params, examples, batch_size, metric)
        found = {metric: np.array(value)}
        if path is not None:
            caches.write_arrays(path, found, kept.LIMIT_BYTES)
    return {metric: float(found[metric])}


def _name(
    config: Any, section: Any, module: Any, params: Any, examples: Any, workdir: Any
) -> Path | None:
    """Returns the file that keeps the loss of these weights on these examples."""
    folder = kept.find_folder(workdir)
    if folder is None:
        return None
    how = configs.to_text(configs.plain(section.objective)), repr(module), config.seed
    facts = (*how, *examples.fingerprint().items(), __version__)
    return folder / f"{fingerprint.of_params(params, facts)}.npz"


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
    rows = np.arange(min(MOST, len(examples)))
    for batch in data.eval_batches(examples, size, *share, rows):
        found = step(placed, {}, sharding.put_batch(batch, mesh), config.seed)
        sums.add({metric: jax.device_get(found[metric])})
    return sums.values()[metric]
