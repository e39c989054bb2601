"""Embeddings of images or texts by a model on disk."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from flax_adapt import data, defaults, models, weights
from flax_adapt.base import config as configs
from flax_adapt.base import keys
from flax_adapt.base.types import Array, Batch, Key, Params
from flax_adapt.data.images import image
from flax_adapt.evals.features import Encode, Features, extract_all
from flax_adapt.train import sharding

log = logging.getLogger(__name__)
_VIEW = 0x7FFFFF00  # keys of views never meet those of training steps


def image_section(
    path: Path,
    source: str,
    split: str,
    *,
    told: Mapping[str, Any],
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None,
    **changes: Any,
) -> ConfigDict:
    """The data section that fits a ViT: its size, channels, mean and std.

    told: see `weights.source_options`. pixels: mean and std where it is not the model that tells.
    """
    arch = weights.model_config(path, **told)
    channels = arch["channels"]
    mean, std = pixels or defaults.pixel_statistics(str(path), channels, told["format"])
    unknown = weights.pixel_statistics(path, format=told["format"]) is None
    if pixels is None and unknown:
        log.warning(
            "%s does not tell the mean and std of its pixels: taken are mean %s and std "
            "%s; others are given by --mean and --std",
            *(path, mean, std),
        )
    fits = dict(
        image_size=arch["image_size"], channels=channels, mean=mean, std=std, **changes
    )
    return ConfigDict(defaults.image_data(source, split, **fits)).lock()


def text_section(path: Path, source: str, split: str, **changes: Any) -> ConfigDict:
    """The data section that fits a BERT: its own tokenizer."""
    return ConfigDict(defaults.text_data(source, split, str(path), **changes)).lock()


class Embedder:
    """An encoder on disk, to be asked for the features of one set after the other.

    fit: arguments of `from_pretrained` beside these: what the file is, other images.
    dropout: of the views of texts. Features are the pooled states of the last layer,
    [n, D].
    """

    def __init__(
        self,
        path: Path,
        *,
        fit: Mapping[str, Any],
        pooling: str,
        batch_size: int,
        precision: str,
        mesh: Any,
        dropout: float = 0.0,
    ):
        self.model, params, _ = weights.from_pretrained(
            path, "encoder", pooling=pooling, dtype=precision, dropout=dropout, **fit
        )
        self.params = sharding.put(params, mesh)
        self.pooling, self.batch_size, self.mesh = pooling, batch_size, mesh
        # One program for all sets whose inputs are prepared alike.
        self._programs: dict[str, Callable[..., Array]] = {}

    def features(self, examples: data.Examples) -> Features:
        """Of every example as it is."""
        return extract([self], examples)[0]

    def view(self, examples: data.Examples, number: int, seed: int) -> Features:
        """Of one view of every example, see `extract`."""
        return extract([self], examples, number, seed)[0]

    def encoder(self, examples: data.Examples, number: int | None, seed: int) -> Encode:
        """Returns what encodes the batches of `examples`, see `extract`."""
        if isinstance(examples, data.TextExamples):
            models.check_fits(self.model.config, **examples.row_sizes)
        modality = self.model.modality
        encode = self._program(examples.config, number)

        def encode_batch(batch: Batch) -> Array:
            rows = sharding.put_batch((batch[modality], batch["index"]), self.mesh)
            return encode(self.params, *rows, seed)

        return encode_batch

    def _program(self, config: ConfigDict, number: int | None) -> Callable[..., Array]:
        prepare = (_image if self.model.modality == "image" else _text)(config, number)

        def encode(params: Params, inputs: Any, index_B: Array, seed: Array) -> Array:
            key_B = None
            if number is not None:
                key = jax.random.fold_in(jax.random.key(seed), _VIEW + number)
                key_B = keys.example_keys(key, index_B)
            given = prepare.inputs(inputs, key_B)
            variables = models.batch_stats.variables(params)
            return self.model.apply(
                variables, given[0], self.pooling, given[1], method="embed"
            )

        return self._programs.setdefault(prepare.name, jax.jit(encode))


def extract(
    embedders: Sequence[Embedder],
    examples: data.Examples,
    number: int | None = None,
    seed: int = 0,
) -> list[Features]:
    """Returns the features of every model, from one pass over the examples.

    number: of a view of every example: by `data.views[number]`, of texts by dropout;
    None: the example as it is.
    """
    encoders = [one.encoder(examples, number, seed) for one in embedders]
    batches = data.eval_batches(examples, embedders[0].batch_size, 0, 1)
    return extract_all(encoders, batches)


class _Prepared(NamedTuple):
    """How inputs become what the model takes: (inputs, key_B) -> (inputs, its key_B)."""

    name: str
    inputs: Callable[[Any, Key | None], tuple[Any, Key | None]]


def _image(config: ConfigDict, number: int | None) -> _Prepared:
    """A view is augmented; nothing is dropped in the model."""
    augment = None if number is None else config.views[number]
    name = json.dumps(configs.plain([number, config.mean, config.std, augment]))
    return _Prepared(
        name, lambda x, key_B: (image.preprocess(x, key_B, config, augment), None)
    )


def _text(config: ConfigDict, number: int | None) -> _Prepared:
    """A view is what dropout leaves of it."""
    del config
    return _Prepared(str(number), lambda x, key_B: (x, key_B))
