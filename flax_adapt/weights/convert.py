"""Converts weights from any format to any other, tensor by tensor, in little memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError, choose, reword_errors
from flax_adapt.base.types import Key
from flax_adapt.data.texts import tokenizer
from flax_adapt.weights import fields, loading, strict
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.loading import PARTS

# Formats that hold weights alone: names of classes and the like are left out, and reported.
BARE = (
    "facebook_mae",
    "facebook_dinov2",
    "facebook_dinov3",
    "big_vision",
    "torchvision",
)
NO_TOKENIZER = (*BARE, "timm", "timm_dinov3")
# Names of arguments in errors of `weights` -> flags of the command.
FLAGS = {
    **formats.rewordings("--known=", "--from_format"),
    r"save with that in the model config": "give --change=NAME=VALUE",
    r"(?:load|save) (?:the )?task '(\w+)'": r"give --task=\1",
    r"fresh=\('([\w/]+)',\)": r"--fresh=\1",
    r"`fresh`": "--fresh",
}


class Conversion(NamedTuple):
    """Result of a conversion.

    task: of the written model. report: of loading. left_out: contents that the target's
    format cannot hold, such as "tokenizer".
    """

    task: str
    report: weights.Report
    left_out: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    source_format: str | None,
    target_format: str,
    task: str | None,
    known: Mapping[str, Any],
    changes: Mapping[str, Any],
    fresh: Sequence[str],
    num_classes: int,
    seed: int,
) -> Conversion:
    """Writes the weights of `source` to `target`, a folder or file that does not exist yet.

    source_format None: detected. task None: the one that uses all parts of the source. known:
    see `weights`. changes: {field: value} of the model config to write another value, where
    the target's format has one value only; no tensor changes. fresh: leaves or prefixes to
    initialise anew with `seed`, such as "head" of `num_classes` (0: the source's). Raises
    UserError, with the flags of the command `convert` in its text.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"--to={target}: is there already; delete it or choose another")
    choose("--format", target_format, weights.WRITERS)
    with reword_errors(FLAGS):
        options: dict[str, Any] = dict(format=source_format, known=known)
        task = _choose_task(source, options, task, fresh)
        one = formats.find(source, source_format)
        own = one.pooling(source, known)
        pooling = formats.pooling_of(own, task, own)
        extras = _read_extras(source, one, options, task, fresh)
        left_out = _names_left_out(target_format, extras)
        with weights.open_weights(source, task, pooling=pooling, **options) as found:
            config = _change_config(source, found[0], changes, task)
            model = _build_model(source, config, found[1], task, pooling, num_classes)
            params, adopted = _adopt(source, model, found[1], fresh, seed)
            weights.save(
                target,
                config,
                params,
                task,
                pooling=pooling,
                format=target_format,
                **{k: None if k in left_out else value for k, value in extras.items()},
            )
    return Conversion(task, found[2].merge(adopted), left_out)


def _choose_task(
    source: Path, options: Mapping[str, Any], task: str | None, fresh: Sequence[str]
) -> str:
    """Returns `task`; for None the task that has all parts of the source and of `fresh`."""
    kind = weights.model_config(source, **options)["kind"]
    if task is not None:
        kept = [one for one in models.KEPT_TASKS if one in models.TASKS[kind]]
        choose(f"{source}: holds a {kind}: --task", task, dict.fromkeys(kept))
        return task
    for one in (one for one in PARTS if one in models.TASKS[kind]):
        if PARTS[one] in fresh or weights.does_task(source, one, **options):
            return one
    return "encoder"


def _change_config(
    source: Path, found: Mapping[str, Any], changes: Mapping[str, Any], task: str
) -> dict[str, Any]:
    """Returns the model config to write; a new decoder has the sizes of the paper."""
    if bad := sorted(set(changes) - set(found)):
        raise UserError(
            f"{source}: --change: its model config has no {', '.join(bad)}; it has "
            f"{', '.join(found)}"
        )
    config = {**found, **changes}
    fields.check_model(f"{source}: --change", config)
    return weights.reshape.resized_config(config, {}, task, None)


def _build_model(
    source: Path,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    task: str,
    pooling: str,
    num_classes: int,
) -> nn.Module:
    bias = strict.flatten(params).get("head/bias")
    if task == "classify" and bias is None and not num_classes:
        raise UserError(
            f"{source}: has no classifier; --task=classify needs --fresh=head and "
            "--num_classes=NUMBER"
        )
    num_classes = num_classes or (0 if bias is None else len(bias))
    return loading.plain_model(config, task, pooling, num_classes)


def _adopt(
    source: Path,
    model: nn.Module,
    params: Mapping[str, Any],
    fresh: Sequence[str],
    seed: int,
) -> tuple[dict[str, Any], weights.Report]:
    """Returns (parameters, report); loaded ones are not read yet, fresh ones are drawn."""
    try:
        adopted, report = weights.adopt(weights.shapes(model), params, fresh)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None

    def draw(key: Key) -> dict[str, Any]:
        drawn = strict.flatten(models.init_params(model, key))
        return {leaf: drawn[leaf] for leaf in report.fresh}

    # One jit of it all: XLA removes the parameters that are not returned.
    new = jax.jit(draw)(jax.random.key(seed)) if fresh else {}
    return strict.unflatten({**strict.flatten(adopted), **new}), report


def _read_extras(
    source: Path,
    one: formats.Format,
    options: Mapping[str, Any],
    task: str,
    fresh: Sequence[str],
) -> dict[str, Any]:
    """Returns class names, tokenizer and the like of a source, as `weights.save` takes them."""
    config = weights.model_config(source, **options)
    has_pixels = models.TASKS[config["kind"]]["encoder"].modality == "image"
    statistics = one.pixel_statistics(source) if has_pixels else None
    how = weights.image_reading(source)
    images = weights.preprocessor(config, *statistics, how) if statistics else None
    named = task == "classify" and "head" not in fresh
    own = any((source / name).is_file() for name in tokenizer.FILES)
    return {
        "class_names": one.class_names(source) if named else None,
        "tokenizer": source if own else None,
        "preprocessor": images,
        "reconstruction": _reconstruction(source, options, task, fresh),
    }


def _reconstruction(
    source: Path, options: Mapping[str, Any], task: str, fresh: Sequence[str]
) -> dict[str, Any] | None:
    """Returns the settings that the source's decoder was trained with.

    None: the target has no decoder, or a new one, or the source does not have the settings.
    """
    if task != "mae" or PARTS["mae"] in fresh:
        return None
    return weights.reconstruction(source, format=options["format"]) or None


def _names_left_out(target_format: str, extras: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of contents in `extras` that the target format cannot hold."""
    no_place = {
        "class_names": BARE,
        "tokenizer": NO_TOKENIZER,
        "preprocessor": BARE,
        "reconstruction": BARE,
    }
    present = [name for name, value in extras.items() if value is not None]
    return tuple(name for name in present if target_format in no_place[name])
