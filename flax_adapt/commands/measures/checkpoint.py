"""Measures weights on a data set with labels, without a config."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt import models, weights
from flax_adapt.base import errors, logs
from flax_adapt.base.hub import weights_path
from flax_adapt.commands import tables
from flax_adapt.commands.features import make_section, parse_pixels
from flax_adapt.commands.values import INIT_FLAGS, parse_values
from flax_adapt.experiment.measuring import checkpoints, verdicts
from flax_adapt.train import precision as precisions


def checkpoint(
    init: str,
    data: str,
    against: str,
    split: str,
    test_split: str,
    per_class: int,
    out: str,
    data_dir: str,
    pooling: str,
    batch_size: int,
    precision: str,
    max_bad_fraction: float,
    seq_len: int,
    text_fields: str,
    label_field: str,
    init_format: str,
    init_known: str,
    mean: str,
    std: str,
    fit: str,
    bits: int,
    window: str,
    image_field: str,
    split_field: str,
) -> None:
    """kNN, linear probe, few shots and RankMe of any weights, without a config."""
    errors.choose("--pooling", pooling, dict.fromkeys((weights.AUTO, *models.POOLING)))
    target = tables.check_target(out, (".json",)) if out else None
    precision = precisions.settle(precision, field="--precision")
    precisions.set_products(precision)
    known = parse_values("--init_known", init_known)
    of_text = dict(seq_len=seq_len, text_fields=tuple(text_fields.split(",")))
    of_images = dict(fit=fit, bits=bits, window=window)
    of_images |= dict(image_field=image_field, split_field=split_field)
    reading: dict[str, Any] = dict(
        label_field=label_field, data_dir=data_dir, max_bad_fraction=max_bad_fraction
    )
    reading |= dict(
        of_text=of_text, of_images=of_images, pixels=parse_pixels(mean, std)
    )
    how = dict(pooling=pooling, batch_size=batch_size)
    options = [(init, weights.source_options(init_format, known))]
    if against:
        options.insert(0, (against, weights.source_options("", {})))
    measured = [
        checkpoints.Weights(name, weights_path(name), of_file)
        for name, of_file in options
    ]

    def open_evaluation(one: checkpoints.Weights) -> ConfigDict:
        section = make_section(one.path, one.options, data, split, **reading)
        return checkpoints.make_evaluation(section, test_split, per_class, **how)

    with errors.reword_errors(INIT_FLAGS):
        found = checkpoints.measure(measured, open_evaluation, precision)
    if jax.process_index() == 0:
        _write(*found, target)


def _write(
    rows: list[dict[str, Any]],
    entries: list[dict[str, Any]],
    notes: tuple[str, ...],
    target: Path | None,
) -> None:
    print(logs.format_table(rows, tuple(rows[-1])))
    for line in (*verdicts.list_lines(entries), *notes):
        print(line)
    if target is not None:
        found = {"rows": rows, "verdicts": entries, "notes": [*notes]}
        logs.write_json(target, found)
        print(f"results: {target}")
