"""Embeddings of images or texts by a model that is loaded from disk."""

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
from flax_adapt.data.examples import window_of_percentiles
from flax_adapt.data.images import image
from flax_adapt.evals.features import Encode, Features, extract_all
from flax_adapt.train import sharding

log = logging.getLogger(__name__)
_VIEW = 0x7FFFFF00  # keys of views differ from those of training steps


def image_section(
    path: Path,
    source: str,
    split: str,
    *,
    init_options: Mapping[str, Any],
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None,
    **changes: Any,
) -> ConfigDict:
    """Returns the data section that fits a ViT: its image size, channels, mean and std.

    init_options: how the file is read, see `weights.source_options`. pixels: mean and std; None:
    those of the model, or usual ones, with a warning.
    """
    arch = weights.model_config(path, **init_options)
    channels = arch["channels"]
    mean, std = pixels or defaults.pixel_statistics(
        str(path), channels, init_options["format"]
    )
    unknown = weights.pixel_statistics(path, format=init_options["format"]) is None
    if pixels is None and unknown:
        log.warning(
            "%s does not tell the mean and std of its pixels: taken are mean %s and std "
            "%s; others are given by --mean and --std",
            *(path, mean, std),
        )
    fits = dict(
        image_size=arch["image_size"], channels=channels, mean=mean, std=std, **changes
    )
    section = ConfigDict(defaults.image_data(source, split, **fits))
    section.window = window_of_percentiles(section)
    return section.lock()


def text_section(path: Path, source: str, split: str, **changes: Any) -> ConfigDict:
    """Returns the data section that fits a BERT: with its own tokenizer."""
    return ConfigDict(defaults.text_data(source, split, str(path), **changes)).lock()


class Embedder:
    """An encoder loaded from disk that computes features of any number of data sets.

    fit: further arguments of `from_pretrained`: the format of the file, another image
    size. dropout: the rate for views of texts. Features are the pooled states of the last
    layer, float32 [n, D].
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
        # One compiled function for all data sets whose inputs are prepared in the same way.
        self._programs: dict[str, Callable[..., Array]] = {}

    def features(self, examples: data.Examples) -> Features:
        """Returns the features of every example, without augmentation and dropout."""
        return extract([self], examples)[0]

    def view(self, examples: data.Examples, number: int, seed: int) -> Features:
        """Returns the features of one view of every example, see `extract`."""
        return extract([self], examples, number, seed)[0]

    def encoder(self, examples: data.Examples, number: int | None, seed: int) -> Encode:
        """Returns a function that encodes one batch of `examples`; arguments as of `extract`.

        Raises UserError for texts that do not fit the model.
        """
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

    number: of a view: images are augmented by `data.views[number]`, texts differ by
    dropout; None: the examples as they are. seed: of the views.
    """
    encoders = [one.encoder(examples, number, seed) for one in embedders]
    batches = data.eval_batches(examples, embedders[0].batch_size, 0, 1)
    return extract_all(encoders, batches)


class _InputForm(NamedTuple):
    """The preparation of inputs: (inputs, key_B) -> (the model's input, the model's key_B)."""

    name: str
    inputs: Callable[[Any, Key | None], tuple[Any, Key | None]]


def _image(config: ConfigDict, number: int | None) -> _InputForm:
    """Returns the preparation of images: a view is augmented; the model has no dropout."""
    augment = None if number is None else config.views[number]
    name = json.dumps(configs.plain([number, config.mean, config.std, augment]))
    return _InputForm(
        name, lambda x, key_B: (image.preprocess(x, key_B, config, augment), None)
    )


def _text(config: ConfigDict, number: int | None) -> _InputForm:
    """Returns the preparation of texts: none, since views differ by the model's dropout."""
    del config
    return _InputForm(str(number), lambda x, key_B: (x, key_B))
