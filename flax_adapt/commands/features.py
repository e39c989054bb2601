"""Writes the embeddings of a data set by a model on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flax_adapt import data as sources
from flax_adapt import models, weights
from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.commands import tables
from flax_adapt.commands.values import INIT_FLAGS, parse_values
from flax_adapt.evals import embed
from flax_adapt.evals.features import Features
from flax_adapt.train import precision as precisions
from flax_adapt.train import sharding


def features(
    init: str,
    data: str,
    out: str,
    split: str,
    data_dir: str,
    pooling: str,
    batch_size: int,
    precision: str,
    max_bad_fraction: float,
    seq_len: int,
    text_fields: str,
    label_field: str,
    label_kind: str,
    image_field: str,
    split_field: str,
    fit: str,
    bits: int,
    window: str,
    init_format: str,
    init_known: str,
    mean: str,
    std: str,
) -> None:
    """Writes embeddings, labels and example names of a data set to a file."""
    choices = dict.fromkeys((weights.AUTO, *models.POOLING))
    errors.choose("--pooling", pooling, choices)
    precision = precisions.settle(precision, field="--precision")
    precisions.set_products(precision)
    target = tables.check_target(out, (".npz", ".csv", ".parquet"))
    folder, pixels = weights_path(init), parse_pixels(mean, std)
    names = tuple(text_fields.split(","))
    of_text = dict(seq_len=seq_len, text_fields=names, label_kind=label_kind)
    of_both: dict[str, Any] = dict(
        label_field=label_field, data_dir=data_dir, max_bad_fraction=max_bad_fraction
    )
    of_images = dict(fit=fit, bits=bits, window=window)
    of_images |= dict(image_field=image_field, split_field=split_field)
    init_options = weights.source_options(
        init_format, parse_values("--init_known", init_known)
    )
    with errors.reword_errors(INIT_FLAGS):
        fields = of_both | dict(of_text=of_text, of_images=of_images, pixels=pixels)
        section = make_section(folder, init_options, data, split, **fields)
        examples = sources.open_examples(section, "")
        embedder = embed.Embedder(
            folder,
            fit=init_options,
            pooling=weights.resolve_pooling(pooling, folder, **init_options),
            batch_size=batch_size,
            precision=precisions.dtype_of(precision),
            mesh=sharding.all_devices(),
        )
    rows = embedder.features(examples)
    _check_finite(out, rows)
    if jax.process_index() == 0:
        _write_features(target, rows, examples)
        _describe(out, rows, embedder)
    say_bad_files(examples)


def _describe(out: str, rows: Features, embedder: embed.Embedder) -> None:
    count, width = rows.embeddings.shape
    how = f"of width {width}, pooled by {embedder.pooling}"
    print(f"{out}: {count} embeddings {how}")


def say_bad_files(examples: sources.Examples) -> None:
    """Prints the names of examples that were left out."""
    if examples.bad_files:
        bad = ", ".join(examples.bad_files.names)
        print(f"left out, since they cannot be decoded: {bad}")


def parse_pixels(mean: str, std: str) -> Any:
    """Returns the flags --mean and --std as numbers; None where neither is given."""
    if not (mean or std):
        return None
    return _parse_numbers("--mean", mean), _parse_numbers("--std", std)


def make_section(
    init: Path,
    init_options: Mapping[str, Any],
    source: str,
    split: str,
    *,
    pixels: Any,
    of_text: Mapping[str, Any],
    of_images: Mapping[str, Any],
    **fields: Any,
) -> ConfigDict:
    """Returns the data section of images or texts, as the model takes.

    source: may be SOURCE@SPLIT, as in `adapt`. pixels: mean and std, or None. of_text,
    of_images: fields that only these sections have. Raises UserError for two splits.
    """
    source, named = sources.source.split_of(source)
    if named and split not in (named, "train"):
        raise UserError(f"--data={source}@{named} and --split={split}: give one split")
    split = named or split
    kind = weights.model_config(init, **init_options)["kind"]
    if models.TASKS[kind]["encoder"].modality == "image":
        fields |= dict(init_options=init_options, pixels=pixels)
        how = _read_as_init(init, of_images)
        return embed.image_section(init, source, split, **how, **fields)
    if pixels:
        raise UserError(f"--mean and --std are of images; {init} takes text")
    return embed.text_section(init, source, split, **of_text, **fields)


def _read_as_init(init: Path, of_images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags on image files; what is not given is as the weights were trained."""
    told = weights.image_reading(init)
    if of_images["bits"] or of_images["window"]:  # two ways of naming one range
        told = {name: value for name, value in told.items() if name == "fit"}
    given = {name: value for name, value in of_images.items() if value}
    return {**of_images, **weights.USUAL_READING, **told, **given}


def _check_finite(out: str, rows: Features) -> None:
    """Raises UserError for embeddings that are not finite."""
    if not np.isfinite(rows.embeddings).all():
        raise UserError(
            f"--out={out}: nothing was written, since embeddings are NaN or infinite: "
            "the weights overflow; take --precision=float32 or other weights"
        )


def _write_features(target: Path, rows: Features, examples: sources.Examples) -> None:
    columns = dict(
        names=np.array([examples.names[index] for index in rows.indices]),
        labels=rows.labels,
        embeddings=rows.embeddings,
    )
    notes = dict(class_names=np.array(examples.class_names))
    tables.write_rows(target, columns, notes)


def _parse_numbers(flag: str, text: str) -> tuple[float, ...]:
    """Returns the numbers of a flag such as `0.5,0.4,0.3`; raises UserError."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 <= value <= 1 for value in values):
        raise UserError(
            f"{flag}={text} must be NUMBER,..., one a channel, of pixels in [0, 1]"
        )
    return values
