"""Predictions of a classifier, or of a regression, for a data set."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from flax_adapt import data as sources
from flax_adapt import weights
from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.commands import tables
from flax_adapt.commands.features import make_section, parse_pixels, say_bad_files
from flax_adapt.commands.values import INIT_FLAGS, parse_values
from flax_adapt.evals import outputs
from flax_adapt.evals.features import Features
from flax_adapt.train import precision as precisions


def predict(
    init: str,
    data: str,
    out: str,
    split: str,
    data_dir: str,
    batch_size: int,
    precision: str,
    max_bad_fraction: float,
    seq_len: int,
    text_fields: str,
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
    """Writes the predicted class and the probability of each class for a data set."""
    precision = precisions.settle(precision, field="--precision")
    precisions.set_products(precision)
    target = tables.check_target(out, tuple(tables.WRITERS))
    folder, pixels = weights_path(init), parse_pixels(mean, std)
    known = parse_values("--init_known", init_known)
    init_options = weights.source_options(init_format, known)
    of_text = dict(seq_len=seq_len, text_fields=tuple(text_fields.split(",")))
    of_images = dict(fit=fit, bits=bits, window=window)
    of_images |= dict(image_field=image_field, split_field=split_field)
    with errors.reword_errors(INIT_FLAGS):
        section = make_section(
            folder,
            init_options,
            data,
            split,
            pixels=pixels,
            of_text=of_text,
            of_images=of_images,
            label_field="",
            data_dir=data_dir,
            max_bad_fraction=max_bad_fraction,
        )
        _check_classifier(init, folder, init_options)
        model, params, _ = weights.from_pretrained(
            folder, "classify", dtype=precisions.dtype_of(precision), **init_options
        )
        examples = sources.open_examples(section, "")
    found = outputs.compute_outputs(model, params, examples, section, batch_size, _show)
    temperature = outputs.read_temperature(folder)
    columns = _name_columns(found, examples, weights.class_names(folder), temperature)
    if jax.process_index() == 0:
        tables.write_rows(target, columns, {})
        print(f"{out}: {len(found.indices)} predictions")
    say_bad_files(examples)


def _check_classifier(init: str, folder: Any, init_options: Any) -> None:
    """Raises UserError for weights without a head, whose outputs would mean nothing."""
    if "head" not in weights.parts(folder, "classify", **init_options):
        raise UserError(
            f"--init={init} has no classifier, so that it predicts nothing: give the export "
            "of a stage that was fine-tuned; `flax-adapt features` writes its embeddings"
        )


def _show(batches: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    shown: Iterable[Any] = tqdm(batches, "predict", total, disable=None, leave=False)
    return shown


def _name_columns(
    found: Features,
    examples: sources.Examples,
    class_names: tuple[str, ...] | None,
    temperature: float,
) -> dict[str, np.ndarray]:
    """Returns name and number of a regression; else name, class, probability of each class."""
    logits = found.embeddings
    if not np.isfinite(logits).all():
        raise UserError(
            "nothing was written, since outputs are NaN or infinite: the weights overflow; "
            "take --precision=float32"
        )
    names = np.array([examples.names[index] for index in found.indices])
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return {"name": names, "value": logits.reshape(-1)}
    count = logits.shape[-1]
    classes = class_names or tuple(str(number) for number in range(count))
    wide = logits.astype(np.float64) / temperature
    scaled = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares = scaled / scaled.sum(axis=-1, keepdims=True)
    probabilities = {f"probability_{c}": shares[:, i] for i, c in enumerate(classes)}
    predicted = np.array(classes)[logits.argmax(axis=-1)]
    return {"name": names, "predicted": predicted, **probabilities}
