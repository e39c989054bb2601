"""What is written, and what a format has no place for: refused before anything is."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights.fields import KNOWN

# What stands beside the parameters; not every format has a place for it.
BESIDE = ("preprocessor", "tokenizer", "class_names", "reconstruction")


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What is written: a model, and what stands beside its parameters, or None.

    config: the model's. leaves: {name: parameter}. preprocessor: preprocessor_config.json.
    tokenizer: a folder to copy it from. reconstruction: how a masked autoencoder was
    trained, see `saving.save`.
    """

    config: Mapping[str, Any]
    leaves: Mapping[str, Any]
    task: str
    pooling: str
    preprocessor: Mapping[str, Any] | None
    tokenizer: Path | None
    class_names: tuple[str, ...] | None
    reconstruction: Mapping[str, Any] | None

    @property
    def num_classes(self) -> int:
        """The size of the head; 0 without one."""
        return len(self.leaves["head/bias"]) if "head/bias" in self.leaves else 0


def check_config(
    where: object, source: str, content: Content, fixed: Mapping[str, Any], *, kind: str
) -> None:
    """Raises UserError for fields that a format cannot hold and its readers assume otherwise."""
    config = content.config
    if config["kind"] != kind:
        raise UserError(
            f"{where}: {source} holds models of kind {kind}, not {config['kind']}; "
            "choose another format"
        )
    wrong = {name: value for name, value in fixed.items() if config[name] != value}
    if wrong:
        texts = [f"{name}={config[name]!r} but {v!r}" for name, v in wrong.items()]
        raise UserError(
            f"{where}: {source} cannot hold {', '.join(texts)}: outputs would change; "
            + (
                "save with that in the model config if it is meant"
                if set(wrong) <= set(KNOWN)
                else "choose another format"
            )
        )


def check_nothing_beside(
    where: object, source: str, content: Content, allowed: Collection[str] = ()
) -> None:
    """A format of weights alone has no place for anything beside them."""
    refused = [name for name in BESIDE if name not in allowed]
    given = [name for name in refused if getattr(content, name) is not None]
    if given:
        raise UserError(f"{where}: {source} has no place for {', '.join(given)}")


def check_file(path: Path, source: str, suffix: str) -> None:
    """A format of one file has its ending."""
    if path.suffix != suffix:
        raise UserError(f"{path}: {source} is written as a file; end it in {suffix}")


def check_class_names(path: Path, content: Content) -> None:
    """Names of classes are those of a head."""
    if content.class_names and not content.num_classes:
        raise UserError(
            f"{path}: class_names need a head, which task {content.task} has not"
        )


def check_no_decoder(path: Path, source: str, content: Content) -> None:
    """A format without a decoder can hold the encoder of a masked autoencoder alone."""
    if content.task == "mae":
        raise UserError(f"{path}: {source} has no decoder; save the task 'encoder'")


def check_pooling(
    path: Path, source: str, content: Content, allowed: Collection[str]
) -> None:
    """Raises UserError for a pooling that no reader of the format has."""
    pooling = content.pooling
    matters = content.task == "classify" or pooling == "mean_norm"
    if matters and pooling not in allowed:
        raise UserError(
            f"{path}: {source} has no model with pooling {pooling!r}, only with "
            f"{', '.join(allowed)}"
        )
