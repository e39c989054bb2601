"""Embeddings of images or texts by a model that is loaded from disk."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flax_adapt import data, defaults, models, weights
from flax_adapt.base import config as configs
from flax_adapt.base import keys
from flax_adapt.base.types import Array, Batch, Key, Params
from flax_adapt.data.examples import window_of_percentiles
from flax_adapt.data.images import image
from flax_adapt.evals.features import Encode, Features, extract_all
from flax_adapt.stage import programs
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
    layer, float32 [n, D]. mesh: where they are computed; a batch is filled up to a
    multiple of its devices.
    """

    def __init__(
        self,
        path: Path,
        *,
        fit: Mapping[str, Any],
        pooling: str,
        batch_size: int,
        precision: str,
        mesh: Mesh,
        dropout: float = 0.0,
    ):
        self.model, params, _ = weights.from_pretrained(
            path, "encoder", pooling=pooling, dtype=precision, dropout=dropout, **fit
        )
        self.params = sharding.put(params, mesh)
        self.pooling, self.mesh = pooling, mesh
        self.batch_size = sharding.whole_batch_size(batch_size, mesh)

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
        encode = make_encoder(self.model, self.pooling, examples, self.mesh, number)
        return lambda batch: encode(self.params, batch, seed)


def make_encoder(
    model: nn.Module,
    pooling: str,
    examples: data.Examples,
    mesh: Mesh,
    number: int | None = None,
) -> Callable[[Params, Batch, int], Array]:
    """Returns (params, batch of `examples`, seed) -> features float32 [B, D].

    params: on `mesh`. number: of a view, see `extract`. Raises UserError for texts that do
    not fit the model.
    """
    if isinstance(examples, data.TextExamples):
        models.check_fits(model.config, **examples.row_sizes)
    modality = model.modality
    form = _DESCRIBE[modality](examples.config, number)
    encode = _share_encoder(model, pooling, form, number, mesh)

    def encode_batch(params: Params, batch: Batch, seed: int) -> Array:
        rows = sharding.put_batch((batch[modality], batch["index"]), mesh)
        return encode(params, *rows, seed)

    return encode_batch


# One compiled function for all weights of a model, and for all data sets whose inputs are
# prepared in the same way.
@functools.lru_cache(programs.KEPT)
def _share_encoder(
    model: nn.Module, pooling: str, form: str, number: int | None, mesh: Mesh
) -> Callable[..., Array]:
    """Returns (params, inputs, index_B, seed) -> features float32 [B, D].

    form: of the inputs, see _DESCRIBE. number: of a view, see `extract`.
    """
    prepare, config = _PREPARE[model.modality], configs.from_text(form)

    def encode(params: Params, inputs: Any, index_B: Array, seed: Array) -> Array:
        key_B = None
        if number is not None:
            key = jax.random.fold_in(jax.random.key(seed), _VIEW + number)
            key_B = keys.example_keys(key, index_B)
        variables = models.batch_stats.variables(params)
        with sharding.placing(mesh):
            ready, key_B = prepare(config, inputs, key_B)
            return model.apply(variables, ready, pooling, key_B, method="embed")

    return jax.jit(encode, out_shardings=sharding.whole_on_every_device(mesh))


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
    share = sharding.share_of_process(embedders[0].mesh)
    batches = data.eval_batches(examples, embedders[0].batch_size, *share)
    return extract_all(encoders, batches)


def _prepare_images(
    config: ConfigDict, x: Array, key_B: Key | None
) -> tuple[Array, None]:
    """Returns (images, None): a view is augmented; the model has no dropout."""
    return image.preprocess(x, key_B, config, config.augment), None


def _describe_images(config_data: ConfigDict, number: int | None) -> str:
    fields = {name: config_data[name] for name in ("mean", "std", "channels")}
    augment = None if number is None else config_data.views[number]
    return configs.to_text({**fields, "augment": augment})


# Modality -> (data section, number of a view) -> the settings that `_PREPARE` reads, a text
# of `config.to_text`.
_DESCRIBE: dict[str, Callable[[ConfigDict, int | None], str]] = {
    "image": _describe_images,
    "text": lambda config_data, number: configs.to_text({}),
}
# Modality -> (these settings, inputs, key_B) -> the model's (input, key_B). Views of texts
# differ by the model's dropout alone.
_PREPARE: dict[str, Callable[..., tuple[Any, Key | None]]] = {
    "image": _prepare_images,
    "text": lambda config, x, key_B: (x, key_B),
}
