"""Features of source and target in two dimensions, by each model (PCA)."""

from typing import Any

import numpy as np

from flax_adapt import weights
from flax_adapt.evals.embed import Embedder
from flax_adapt.report import backbones, pictures, svg
from flax_adapt.report.backbones import Backbone
from flax_adapt.report.workdir import Run
from flax_adapt.train import sharding

# Of each data set: a large model takes a second a dozen on a CPU.
POINTS = 48


def feature_maps(run: Run) -> dict[str, Any] | None:
    """Returns a picture for each model: target by class, and the source if there is one."""
    if not backbones.is_alone():
        return None
    config = backbones.open_config(run)
    found = backbones.list_backbones(run, "encoder")
    target = backbones.open_section(config.evaluate.test) if found else None
    if target is None:
        return None
    section = find_source(config)
    source = None if section is None else backbones.open_section(section)
    with svg.settings():
        charts = [_draw(config, one, target, source) for one in found]
    named = "" if source is None else f"; grey crosses are the source, {section.source}"
    return {
        "text": f"The first two principal components of {POINTS} examples of "
        f"{config.evaluate.test.source}, coloured by class{named}. Each model has axes of "
        "its own: distances between pictures mean nothing.",
        "charts": charts,
    }


def find_source(config: Any) -> Any:
    """Returns the section of data that is not the target's: of drift, or the first stage's."""
    if config.evaluate.source is not None:
        return config.evaluate.source
    first, target = config.stages[0].data, config.evaluate.test
    return first if first.source != target.source else None


def _draw(config: Any, one: Backbone, target: Any, source: Any) -> dict[str, str]:
    how = weights.options_in(one.fit)
    pooling = weights.resolve_pooling(config.evaluate.pooling, one.folder, **how)
    embedder = Embedder(
        one.folder,
        fit=one.fit,
        pooling=pooling,
        batch_size=POINTS,
        precision="float32",
        mesh=sharding.one_device(),
    )
    sets = [target] if source is None else [target, source]
    pairs = [_embed(embedder, examples) for examples in sets]
    points, share = project(np.concatenate([features for features, _ in pairs]))
    labels, count = pairs[0][1], len(pairs[0][0])
    figure, axes = svg.new_axes(3.3, 2.9)
    axes.scatter(
        *points[count:].T, marker="x", s=16, linewidths=0.9, color=svg.INK, alpha=0.4
    )
    colours = [svg.SERIES[int(label) % len(svg.SERIES)] for label in labels]
    axes.scatter(*points[:count].T, s=20, color=colours)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    text = f"features by {one.label} in two dimensions, coloured by class"
    note = f"{share:.0%} of the variance"
    return {"title": one.label, "of": note, "svg": svg.draw(figure, text)}


def _embed(embedder: Embedder, examples: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [n, D] and labels [n] of at most POINTS examples."""
    rows = np.asarray(pictures.spread_rows(len(examples), POINTS), np.int64)
    batch = examples.batch(rows, np.arange(len(rows)))
    encode = embedder.encoder(examples, None, 0)
    return np.asarray(encode(batch), np.float64), np.asarray(batch["label"])


def project(rows_nD: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the first two principal components [n, 2] and their share of the variance.

    The sign of each is such that its largest weight is positive.
    """
    centred = rows_nD - rows_nD.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = (
        axes[:2] * np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None]
    )
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    return centred @ axes.T, share
