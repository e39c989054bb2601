"""Embeddings of a data set by a model on disk."""

from pathlib import Path

import numpy as np

from flax_adapt import data as sources
from flax_adapt import models, weights
from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import user_path
from flax_adapt.commands.values import INIT_FLAGS, parse_values
from flax_adapt.evals import embed
from flax_adapt.evals.features import Features
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
    init_format: str,
    init_known: str,
    mean: str,
    std: str,
) -> None:
    """Writes embeddings, labels and example names of a data set to an .npz file."""
    errors.choose("--pooling", pooling, models.POOLING)
    errors.choose("--precision", precision, models.DTYPES)
    target = user_path(out)
    if target.suffix != ".npz" or not target.parent.is_dir():
        raise UserError(f"--out={out} must be a new .npz file in a folder that exists")
    common = dict(data_dir=data_dir, max_bad_fraction=max_bad_fraction)
    of_text = dict(
        seq_len=seq_len,
        text_fields=tuple(text_fields.split(",")),
        label_field=label_field,
        label_kind=label_kind,
    )
    pixels = (_numbers("--mean", mean), _numbers("--std", std)) if mean or std else None
    told = weights.told(init_format, parse_values("--init_known", init_known))
    with errors.reworded(INIT_FLAGS):
        kind = weights.model_config(init, **told)["kind"]
        if models.TASKS[kind]["encoder"].modality == "image":
            section = embed.image_section(
                user_path(init), data, split, told=told, pixels=pixels, **common
            )
        elif pixels:
            raise UserError(f"--mean and --std are of images; {init} takes text")
        else:
            section = embed.text_section(
                user_path(init), data, split, **common, **of_text
            )
        examples = sources.open_examples(section, "")
        embedder = embed.Embedder(
            user_path(init),
            fit=told,
            pooling=pooling,
            batch_size=batch_size,
            precision=precision,
            mesh=sharding.one_device(),
        )
    rows = embedder.features(examples)
    _write_features(target, rows, examples)
    count, width = rows.embeddings.shape
    print(f"{out}: {count} embeddings of width {width}")
    if examples.bad_files:
        bad = ", ".join(examples.bad_files.names)
        print(f"left out, since they cannot be decoded: {bad}")


def _write_features(target: Path, rows: Features, examples: sources.Examples) -> None:
    """Writes all of the file or nothing, and no embeddings that are no numbers."""
    if not np.isfinite(rows.embeddings).all():
        raise UserError(
            f"--out={target}: nothing was written, since embeddings are NaN or infinite: "
            "the weights overflow; take --precision=float32 or other weights"
        )
    partial = target.with_suffix(".partial.npz")
    np.savez(
        partial,
        embeddings=rows.embeddings,
        labels=rows.labels,
        names=np.array([examples.names[index] for index in rows.indices]),
        class_names=np.array(examples.class_names),
    )
    partial.replace(target)


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    """`0.5,0.4,0.3` as numbers."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 <= value <= 1 for value in values):
        raise UserError(
            f"{flag}={text} must be NUMBER,..., one a channel, of pixels in [0, 1]"
        )
    return values
