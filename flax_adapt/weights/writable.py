"""What a format has no place for is refused before anything is written."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights.fields import KNOWN


def check_config(
    where: object,
    source: str,
    config: Mapping[str, Any],
    fixed: Mapping[str, Any],
    *,
    kind: str,
) -> None:
    """What a format has no place for must be as all its readers assume."""
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


def check_nothing_beside(where: object, source: str, **beside: Any) -> None:
    """A format of weights alone has no place for anything beside them."""
    given = [name for name, value in beside.items() if value is not None]
    if given:
        raise UserError(f"{where}: {source} has no place for {', '.join(given)}")


def check_file(path: Path, source: str, suffix: str) -> None:
    """A format of one file has its ending."""
    if path.suffix != suffix:
        raise UserError(f"{path}: {source} is written as a file; end it in {suffix}")


def check_pooling(
    path: Path, source: str, task: str, pooling: str, allowed: Collection[str]
) -> None:
    """The readers of a format know some classifiers only, and norms of those alone."""
    matters = task == "classify" or pooling == "mean_norm"
    if matters and pooling not in allowed:
        raise UserError(
            f"{path}: {source} has no model with pooling {pooling!r}, only with "
            f"{', '.join(allowed)}"
        )
