"""Features and answers that a workdir keeps: nothing is measured twice on the same examples.

Features are found by the parameters, the data, the settings of the model and the version of
this package alone, so that a stage that is trained anew, or another test set, is measured
anew. Files of images are compared by name and size, see `data.fingerprint`. Answers (kNN,
probes, few shots) are found by the features and the settings of the evaluation.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt import data
from flax_adapt.base import caches
from flax_adapt.base import config as configs
from flax_adapt.base.version import __version__
from flax_adapt.data import base, fingerprint
from flax_adapt.evals import embed
from flax_adapt.evals.embed import Embedder
from flax_adapt.evals.features import Features
from flax_adapt.experiment.measuring import answers
from flax_adapt.experiment.measuring.answers import Answers, LabelledSets
from flax_adapt.stage.predictions import Predictions

FOLDER = "features"
# Bytes of a workdir's folder at most; the oldest files go first (ours).
LIMIT_BYTES = 2**30


class Kept:
    """Several models, and the workdir that keeps their features; None: none are kept.

    Several processes keep nothing: each would have to know what the others have found.
    """

    def __init__(self, workdir: Path | None, embedders: Sequence[Embedder]):
        self.embedders = embedders
        self.folder = find_folder(workdir)
        self.names = [*map(_describe, embedders)] if self.folder is not None else []

    def extract(
        self, examples: data.Examples, number: int | None = None, seed: int = 0
    ) -> list[Features]:
        """Returns the features of every model; arguments as of `embed.extract`."""
        if self.folder is None:
            return embed.extract(self.embedders, examples, number, seed)
        view = "" if number is None else f"{number} {seed}"
        facts = (*describe_examples(examples), view)
        names = [fingerprint.digest([name, *facts]) for name in self.names]
        paths = [self.folder / f"{name}.npz" for name in names]
        found = {path: caches.read_arrays(path) for path in paths}
        # Models with the same weights are one.
        models = dict(zip(paths, self.embedders, strict=True))
        missing = {path: one for path, one in models.items() if found[path] is None}
        if missing:
            made = embed.extract([*missing.values()], examples, number, seed)
            for path, features in zip(missing, made, strict=True):
                found[path] = features._asdict()
                caches.write_arrays(path, features._asdict(), LIMIT_BYTES)
        return [Features(**arrays) for path in paths if (arrays := found[path])]


def find_folder(workdir: Path | None) -> Path | None:
    """Returns where a workdir keeps what is measured; None where nothing is kept."""
    return None if workdir is None or jax.process_count() > 1 else workdir / FOLDER


def describe_examples(examples: data.Examples) -> tuple[Any, ...]:
    """Returns what a measure of examples depends on: their section, and their digests."""
    config = configs.to_text(base.drop_free(configs.plain(examples.config)))
    return (config, *examples.fingerprint().items())


def recall(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the arrays of a file, which are made and written where it has none."""
    if (found := caches.read_arrays(path)) is not None:
        return found
    made = make()
    caches.write_arrays(path, made, LIMIT_BYTES)
    return made


def recall_values(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Returns `recall` of numbers."""
    arrays = recall(path, lambda: {k: np.array(value) for k, value in make().items()})
    return {name: float(value) for name, value in arrays.items()}


def answer(
    folder: Path | None, section: Any, seed: int, drawn: Sequence[LabelledSets]
) -> Answers:
    """Returns `answers.answer`, which is computed once; folder: of `find_folder`."""
    if folder is None:
        return answers.answer(section, seed, drawn)
    path = folder / f"{_digest(section, seed, drawn)}.npz"
    made = recall(path, lambda: _pack(answers.answer(section, seed, drawn)))
    return _unpack(made, drawn)


def measure_wide(
    folder: Path | None, section: Any, seed: int, sets: LabelledSets, l2: float
) -> dict[str, float]:
    """Returns `answers.measure_wide`, which is computed once."""
    if folder is None:
        return answers.measure_wide(section, seed, sets, l2)
    facts = (_digest(section, seed, [sets]), *dict(section.wide).items(), l2)
    path = folder / f"{fingerprint.digest(facts)}.npz"
    return recall_values(path, lambda: answers.measure_wide(section, seed, sets, l2))


_SETTINGS = (
    *("knn_k", "knn_temperature", "probe_l2", "probe_folds"),
    *("shots", "shot_draws"),
)


def _digest(section: Any, seed: int, drawn: Sequence[LabelledSets]) -> str:
    arrays = [
        column
        for one in drawn
        for column in (
            *(one.train.embeddings, one.train.labels),
            *(one.test.embeddings, one.test.labels, one.names),
        )
    ]
    how = [section[name] for name in _SETTINGS]
    return fingerprint.digest([*arrays, *how, seed, __version__])


def _pack(found: Answers) -> dict[str, np.ndarray]:
    """Returns the answers as arrays; names and labels are those of the examples."""
    packed: dict[str, np.ndarray] = {"l2": np.array(found.l2)}
    for metric, arm in found.arms.items():
        for number, one in arm.items():
            packed[f"{metric} {number} guesses"] = one.guesses
            packed[f"{metric} {number} losses"] = one.losses
    return packed


def _unpack(arrays: Mapping[str, Any], drawn: Sequence[LabelledSets]) -> Answers:
    arms: dict[str, dict[int, Predictions]] = {}
    for key in arrays:
        metric, _, rest = key.partition(" ")
        number, _, column = rest.partition(" ")
        if column != "guesses":
            continue
        # The draws of few shots take the draws of labels in turn.
        sets = drawn[int(number) % len(drawn)]
        arms.setdefault(metric, {})[int(number)] = Predictions(
            *(sets.names, sets.test.labels, arrays[key]),
            arrays[f"{metric} {number} losses"],
        )
    return Answers(arms, float(arrays["l2"]))


def _describe(embedder: Embedder) -> str:
    """Returns a digest of all that features depend on beside the data."""
    how = repr(embedder.model), embedder.pooling, __version__
    return fingerprint.of_params(embedder.params, how)
