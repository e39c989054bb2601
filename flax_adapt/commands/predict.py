"""Predictions of a classifier, or of a regression, for a data set."""

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
from flax_adapt.commands.features import make_section, parse_pixels, say_bad_files
from flax_adapt.commands.values import INIT_FLAGS, parse_values
from flax_adapt.data.images import image
from flax_adapt.evals.features import Features, extract
from flax_adapt.train import sharding

_DEVICES = dict(data=-1, fsdp=1, tensor=1)


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
    fit: str,
    bits: int,
    window: str,
    init_format: str,
    init_known: str,
    mean: str,
    std: str,
) -> None:
    """Writes the predicted class and the probability of each class for a data set."""
    errors.choose("--precision", precision, models.DTYPES)
    target = tables.check_target(out, tuple(tables.WRITERS))
    folder, pixels = weights_path(init), parse_pixels(mean, std)
    known = parse_values("--init_known", init_known)
    init_options = weights.source_options(init_format, known)
    of_text = dict(seq_len=seq_len, text_fields=tuple(text_fields.split(",")))
    of_images = dict(fit=fit, bits=bits, window=window, image_field=image_field)
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
            folder, "classify", dtype=precision, **init_options
        )
        examples = sources.open_examples(section, "")
    outputs = _compute_outputs(model, params, examples, section, batch_size)
    columns = _name_columns(outputs, examples, weights.class_names(folder))
    tables.write_rows(target, columns, {})
    print(f"{out}: {len(outputs.indices)} predictions")
    say_bad_files(examples)


def _check_classifier(init: str, folder: Any, init_options: Any) -> None:
    """Raises UserError for weights without a head, whose outputs would mean nothing."""
    if "head" not in weights.parts(folder, "classify", **init_options):
        raise UserError(
            f"--init={init} has no classifier, so that it predicts nothing: give the export "
            "of a stage that was fine-tuned; `flax-adapt features` writes its embeddings"
        )


def _compute_outputs(
    model: Any,
    params: Any,
    examples: sources.Examples,
    section: ConfigDict,
    batch_size: int,
) -> Features:
    """Returns the logits (or numbers) of every example, computed on all devices."""
    if isinstance(examples, sources.TextExamples):
        models.check_fits(model.config, **examples.row_sizes)
    mesh = sharding.make_mesh(ConfigDict(_DEVICES))
    placed = sharding.put(models.batch_stats.variables(params), mesh)
    is_image = model.modality == "image"

    @jax.jit
    def apply(variables: Any, inputs: Any) -> Any:
        given = image.preprocess(inputs, None, section, None) if is_image else inputs
        return model.apply(variables, given, None)

    def encode(batch: Any) -> Any:
        return apply(placed, sharding.put_batch(batch[model.modality], mesh))

    from tqdm import tqdm

    size = sharding.whole_batch_size(batch_size, mesh)
    batches = sources.eval_batches(examples, size, 0, 1)
    total = -(-len(examples) // size)
    return extract(encode, tqdm(batches, "predict", total, disable=None, leave=False))


def _name_columns(
    outputs: Features, examples: sources.Examples, class_names: tuple[str, ...] | None
) -> dict[str, np.ndarray]:
    """Returns name and number of a regression; else name, class, probability of each class."""
    logits = outputs.embeddings
    if not np.isfinite(logits).all():
        raise UserError(
            "nothing was written, since outputs are NaN or infinite: the weights overflow; "
            "take --precision=float32"
        )
    names = np.array([examples.names[index] for index in outputs.indices])
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return {"name": names, "value": logits.reshape(-1)}
    count = logits.shape[-1]
    classes = class_names or tuple(str(number) for number in range(count))
    wide = logits.astype(np.float64)
    scaled = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares = scaled / scaled.sum(axis=-1, keepdims=True)
    probabilities = {f"probability_{c}": shares[:, i] for i, c in enumerate(classes)}
    predicted = np.array(classes)[logits.argmax(axis=-1)]
    return {"name": names, "predicted": predicted, **probabilities}
