"""Tables of tensor names and our leaves, one for each family, read both ways."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.base.errors import UserError

Spellings = tuple[str, ...]  # the first is written, all are read


class Spare(NamedTuple):
    """A tensor that stands in for a leaf where the leaf's own tensor is absent.

    Beside that tensor it is ignored, by `rule`; with `equal` it must be the same, unless
    the task has no place for `part`, to which it belongs.
    """

    leaf: str
    part: str
    rule: str
    equal: bool


class Style(NamedTuple):
    """How a library spells and lays out what is in a dense layer and in a norm.

    join: between the name of a layer and that of a tensor in it. dense, norm: our leaf ->
    their names. patch_axes: row and column in the patch embedding. to_ours(leaf, tensor),
    to_theirs(leaf, array, config): the layout; a tensor of another rank is left as it is,
    and the strict check will name it.
    """

    join: str
    dense: Mapping[str, Spellings]
    norm: Mapping[str, Spellings]
    patch_axes: tuple[int, int]
    to_ours: Callable[[str, np.ndarray], np.ndarray]
    to_theirs: Callable[[str, np.ndarray, Mapping[str, Any]], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """The table of one family; {n} is the number of a block.

    source: who writes such names. prefix: what base models leave out, such as "vit.".
    tensors: leaf -> names. modules: dense layers and norms without `.weight`. stacks:
    blocks, each with the modules of `layers`. fused: a layer that is several of ours
    side by side, and those. spare: name -> what it stands in for. buffers: pattern ->
    why such a tensor is no weight of ours. refused: pattern -> what our models lack.
    """

    source: str
    style: Style
    prefix: str
    tensors: Mapping[str, Spellings]
    modules: Mapping[str, Spellings]
    stacks: Mapping[str, Spellings]
    layers: Mapping[str, Spellings]
    fused: Mapping[str, tuple[str, ...]]
    spare: Mapping[str, Spare]
    buffers: Mapping[str, str]
    refused: Mapping[str, str]

    def leaf_of(self, name: str) -> str | None:
        """Returns our leaf of a tensor's name; None if the name is unknown.

        That of a fused layer is not one of ours: see `parts_of`.
        """
        for candidate in (name, self.prefix + name):
            for pattern, leaf in self._to_leaf:
                if found := pattern.fullmatch(candidate):
                    return leaf.replace("{n}", found.groupdict().get("n", "").zfill(2))
        return None

    def name_of(self, leaf: str) -> str:
        """Returns the tensor's name of one of our leaves."""
        for pattern, name in self._to_name:
            if found := pattern.fullmatch(leaf):
                return name.replace("{n}", str(int(found.groupdict().get("n", "0"))))
        raise UserError(f"{leaf}: {self.source} has no such tensor")

    def parts_of(self, leaf: str) -> tuple[str, ...]:
        """Returns the leaves that lie side by side in the tensor of `leaf`."""
        layer, _, kind = leaf.rpartition("/")
        for whole, parts in self.fused.items():
            if layer.endswith(f"/{whole}"):
                stem = layer.removesuffix(whole)
                return tuple(f"{stem}{part}/{kind}" for part in parts)
        return (leaf,)

    def whole_of(self, leaf: str) -> str:
        """Returns the leaf whose parts hold `leaf`; most are whole themselves."""
        layer, _, kind = leaf.rpartition("/")
        for whole, parts in self.fused.items():
            for part in parts:
                if layer.endswith(f"/{part}"):
                    return f"{layer.removesuffix(part)}{whole}/{kind}"
        return leaf

    def spare_of(self, name: str) -> Spare | None:
        """Returns what the tensor stands in for, if it does."""
        return self.spare.get(name, self.spare.get(self.prefix + name))

    def why_ignored(self, name: str) -> str | None:
        """Returns the rule by which a tensor is no weight of ours, if there is one."""
        for pattern, rule in self.buffers.items():
            if re.fullmatch(pattern, name) or re.fullmatch(pattern, self.prefix + name):
                return rule
        return None

    def why_refused(self, name: str) -> str | None:
        """Returns what a tensor needs that our models cannot do, if it does."""
        found = (text for p, text in self.refused.items() if re.fullmatch(p, name))
        return next(found, None)

    @functools.cached_property
    def _rows(self) -> list[tuple[str, str]]:
        """Rows (leaf, name), the name to write first."""
        modules = dict(self.modules)
        for ours, stacks in self.stacks.items():
            for layer, names in self.layers.items():
                join = self.style.join
                spellings = tuple(f"{s}{join}{n}" for s in stacks for n in names)
                modules[f"{ours}/{layer}"] = spellings
        rows = [(leaf, name) for leaf, names in self.tensors.items() for name in names]
        for ours, names in modules.items():
            is_norm = "norm" in ours.rsplit("/", 1)[-1]
            suffixes = self.style.norm if is_norm else self.style.dense
            for leaf, theirs in suffixes.items():
                both = [f"{n}{self.style.join}{t}" for t in theirs for n in names]
                rows += [(f"{ours}/{leaf}", name) for name in both]
        return rows

    @functools.cached_property
    def _to_leaf(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(name), leaf) for leaf, name in self._rows]

    @functools.cached_property
    def _to_name(self) -> list[tuple[re.Pattern[str], str]]:
        # Reversed: the first row of a leaf is the one to write.
        rows = dict(reversed(self._rows))
        return [(_pattern(leaf), name) for leaf, name in rows.items()]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>[0-9]+)"))
