"""Features that a workdir keeps: no model is run twice on the same examples.

They are found by the parameters, the data, the settings of the model and the version of this
package alone, so that a stage that is trained anew, or another test set, is measured anew.
Files of images are compared by name and size, see `data.fingerprint`.
"""

from collections.abc import Sequence
from pathlib import Path

import jax

from flax_adapt import data
from flax_adapt.base import caches
from flax_adapt.base import config as configs
from flax_adapt.base.version import __version__
from flax_adapt.data import base, fingerprint
from flax_adapt.evals import embed
from flax_adapt.evals.embed import Embedder
from flax_adapt.evals.features import Features

FOLDER = "features"
# Bytes of a workdir's folder at most; the oldest files go first (ours).
LIMIT_BYTES = 2**30


class Kept:
    """Several models, and the workdir that keeps their features; None: none are kept.

    Several processes keep nothing: each would have to know what the others have found.
    """

    def __init__(self, workdir: Path | None, embedders: Sequence[Embedder]):
        self.embedders = embedders
        self.folder: Path | None = None
        self.names: list[str] = []
        if workdir is not None and jax.process_count() == 1:
            self.folder = workdir / FOLDER
            self.names = [*map(_describe, embedders)]

    def extract(
        self, examples: data.Examples, number: int | None = None, seed: int = 0
    ) -> list[Features]:
        """Returns the features of every model; arguments as of `embed.extract`."""
        if self.folder is None:
            return embed.extract(self.embedders, examples, number, seed)
        view = "" if number is None else f"{number} {seed}"
        config = configs.to_text(base.drop_free(configs.plain(examples.config)))
        facts = (config, *examples.fingerprint().items(), view)
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


def _describe(embedder: Embedder) -> str:
    """Returns a digest of all that features depend on beside the data."""
    how = repr(embedder.model), embedder.pooling, __version__
    return fingerprint.of_params(embedder.params, how)
