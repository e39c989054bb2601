"""Tables that map tensor names to our leaves and back, one for each family of models."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.base.errors import UserError

# Layers of this prefix have one parameter, whose whole name the table has: LayerScale.
SCALE = "layer_scale"
Spellings = tuple[str, ...]  # names of a tensor: all are read, the first is written


class Spare(NamedTuple):
    """A tensor that replaces a leaf's own tensor where that is absent.

    Where the leaf's own tensor is present, this one is ignored by `rule`. equal: it must then
    have the same values, unless the task does not have `part`, to which it belongs.
    """

    leaf: str
    part: str
    rule: str
    equal: bool


class Style(NamedTuple):
    """Names and layout of the tensors in a dense layer and in a norm, in one library.

    join: separates the name of a layer from that of a tensor in it. dense, norm: our leaf ->
    their names. patch_axes: axes of row and column in the patch embedding.
    to_ours(leaf, tensor), to_theirs(leaf, array, config): convert the layout. A tensor of an
    unexpected rank is not converted; `strict.adopt` will report its shape.
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

    source: the library, for errors. prefix: prefix that files of base models omit, such as
    "vit.". tensors: leaf -> names. modules: dense layers and norms, names without `.weight`.
    stacks: blocks, each with the modules of `layers`. fused: a layer that has several of
    our layers side by side -> these. spare: name -> the leaf that it can replace. buffers:
    pattern -> why such a tensor is ignored. refused: pattern -> the feature that our models
    lack.
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

        For a fused layer the result is not a leaf of our model: see `parts_of`.
        """
        for candidate in (name, self.prefix + name):
            for pattern, leaf in self._to_leaf:
                if found := pattern.fullmatch(candidate):
                    return leaf.replace("{n}", found.groupdict().get("n", "").zfill(2))
        return None

    def name_of(self, leaf: str) -> str:
        """Returns the tensor name to write for one of our leaves.

        Raises UserError for a leaf that the family does not have.
        """
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
        """Returns the fused leaf that contains `leaf`, or `leaf` itself."""
        layer, _, kind = leaf.rpartition("/")
        for whole, parts in self.fused.items():
            for part in parts:
                if layer.endswith(f"/{part}"):
                    return f"{layer.removesuffix(part)}{whole}/{kind}"
        return leaf

    def spare_of(self, name: str) -> Spare | None:
        """Returns the `Spare` of a tensor's name, or None."""
        return self.spare.get(name, self.spare.get(self.prefix + name))

    def why_ignored(self, name: str) -> str | None:
        """Returns the rule by which a tensor is ignored, or None."""
        for pattern, rule in self.buffers.items():
            if re.fullmatch(pattern, name) or re.fullmatch(pattern, self.prefix + name):
                return rule
        return None

    def why_refused(self, name: str) -> str | None:
        """Returns the feature that a tensor belongs to and our models lack, or None."""
        found = (text for p, text in self.refused.items() if re.fullmatch(p, name))
        return next(found, None)

    @functools.cached_property
    def _rows(self) -> list[tuple[str, str]]:
        """All rows (leaf, name) of the table; the first row of a leaf has the written name."""
        modules = dict(self.modules)
        for ours, stacks in self.stacks.items():
            for layer, names in self.layers.items():
                join = self.style.join
                spellings = tuple(f"{s}{join}{n}" for s in stacks for n in names)
                modules[f"{ours}/{layer}"] = spellings
        rows = [(leaf, name) for leaf, names in self.tensors.items() for name in names]
        for ours, names in modules.items():
            layer = ours.rsplit("/", 1)[-1]
            if layer.startswith(SCALE):
                rows += [(f"{ours}/scale", name) for name in names]
                continue
            is_norm = "norm" in layer
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
