"""The content of a model to write, and checks that a format can hold it.

All checks run before anything is written.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights.fields import KNOWN

# Contents other than config and parameters; not every format can hold them.
EXTRAS = ("preprocessor", "tokenizer", "class_names", "reconstruction")


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """A model to write, with its tokenizer and the like.

    config: the model's. leaves: {name: parameter}. preprocessor: content of
    preprocessor_config.json. tokenizer: a folder to copy it from. reconstruction: how a
    masked autoencoder was trained, see `saving.save`. None: the model has none.
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
        """The number of outputs of the head; 0 without a head."""
        return len(self.leaves["head/bias"]) if "head/bias" in self.leaves else 0


def check_config(
    where: object, source: str, content: Content, fixed: Mapping[str, Any], *, kind: str
) -> None:
    """Raises UserError for a model config that a format cannot hold.

    kind: the kind of model of the format. fixed: fields that the format does not hold, with
    the values that its readers assume.
    """
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


def check_no_extras(
    where: object, source: str, content: Content, allowed: Collection[str] = ()
) -> None:
    """Raises UserError for contents of EXTRAS that a format cannot hold.

    allowed: those that it can hold.
    """
    refused = [name for name in EXTRAS if name not in allowed]
    given = [name for name in refused if getattr(content, name) is not None]
    if given:
        raise UserError(f"{where}: {source} has no place for {', '.join(given)}")


def check_file(path: Path, source: str, suffix: str) -> None:
    """Raises UserError for a path that does not end in the suffix of a format."""
    if path.suffix != suffix:
        raise UserError(f"{path}: {source} is written as a file; end it in {suffix}")


def check_class_names(path: Path, content: Content) -> None:
    """Raises UserError for names of classes without a head."""
    if content.class_names and not content.num_classes:
        raise UserError(
            f"{path}: class_names need a head, which task {content.task} has not"
        )


def check_no_decoder(path: Path, source: str, content: Content) -> None:
    """Raises UserError for task "mae" in a format that cannot hold a decoder."""
    if content.task == "mae":
        raise UserError(f"{path}: {source} has no decoder; save the task 'encoder'")


def check_pooling(
    path: Path, source: str, content: Content, allowed: Collection[str]
) -> None:
    """Raises UserError for a pooling that readers of the format do not have."""
    pooling = content.pooling
    matters = content.task == "classify" or pooling == "mean_norm"
    if matters and pooling not in allowed:
        raise UserError(
            f"{path}: {source} has no model with pooling {pooling!r}, only with "
            f"{', '.join(allowed)}"
        )
