"""Features of source and target in two dimensions, by each model (PCA)."""

from typing import Any

import numpy as np

from flax_adapt.report import encoders, svg
from flax_adapt.report.encoders import Encoded
from flax_adapt.report.workdir import Run


def feature_maps(run: Run) -> dict[str, Any] | None:
    """Returns a picture for each model: target by class, and the source if there is one.

    None for a single example of the target: one point is no map.
    """
    points = encoders.encode_points(run)
    if points is None or len(points.target.names) < 2:
        return None
    labels = np.asarray(points.target.batch["label"])
    with svg.settings():
        charts = [_draw(one, labels) for one in points.models]
    config = run.experiment
    source = encoders.find_source(config) if points.source else None
    named = f"; grey crosses are the source, {source.source}" if source else ""
    return {
        "text": f"The first two principal components of {encoders.POINTS} examples of "
        f"{config.evaluate.test.source}, coloured by class{named}. Each model has axes of "
        "its own: distances between pictures mean nothing.",
        "charts": charts,
    }


def _draw(one: Encoded, labels: np.ndarray) -> dict[str, str]:
    sets = [one.target_nD] if one.source_nD is None else [one.target_nD, one.source_nD]
    points, share = project(np.concatenate(sets).astype(np.float64))
    count = len(labels)
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
