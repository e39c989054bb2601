"""Rules about parameters: tables of (regex, value) that match every leaf exactly once."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from flax_adapt.base.errors import UserError

T = TypeVar("T")
Rules = Sequence[tuple[str, T]]


def name_of(path: Any) -> str:
    """Returns the name of a leaf from its key path, such as `encoder/norm/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: Any) -> list[str]:
    """Returns the names of all leaves, in the order of `jax.tree.leaves`."""
    return [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def name_leaves(tree: Any) -> dict[str, Any]:
    """Returns {name: leaf} of all leaves, in the order of `jax.tree.leaves`."""
    return dict(zip(names(tree), jax.tree.leaves(tree), strict=True))


def map_named(function: Callable[..., Any], tree: Any) -> Any:
    """Returns the tree of `function(name, leaf)` for every leaf of a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(name_of(path), leaf), tree
    )


def check(what: str, rules: Rules, tree: Any) -> None:
    """Raises UserError unless exactly one rule matches the full name of every leaf."""
    hits = {
        name: [pattern for pattern, _ in rules if re.fullmatch(pattern, name)]
        for name in names(tree)
    }
    wrong = [f"{name} by {found or 'none'}" for name, found in hits.items()
             if len(found) != 1]  # fmt: skip
    if wrong:
        raise UserError(
            f"{what}: every parameter must be covered by exactly one rule; "
            f"these are not: {'; '.join(wrong)}"
        )


def first(rules: Rules, name: str, otherwise: Any) -> Any:
    """Returns the value of the first rule that matches the full name, else `otherwise`."""
    matching = (value for pattern, value in rules if re.fullmatch(pattern, name))
    return next(matching, otherwise)


def assign(what: str, rules: Rules, tree: Any) -> Any:
    """Returns the tree of rule values; `what` names the table in errors.

    Raises UserError as `check` does.
    """
    check(what, rules, tree)
    return map_named(lambda name, _: first(rules, name, None), tree)
