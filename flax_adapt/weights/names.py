"""Names of tensors and our leaves: one table a family of models, read both ways."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.errors import UserError

Spellings = tuple[str, ...]  # the first is written, all are read
# Their "weight" is our "scale" in a norm, our "kernel" in a dense layer. TensorFlow's
# names of a norm are in the oldest files.
DENSE = {"kernel": ("weight",), "bias": ("bias",)}
NORM = {"scale": ("weight", "gamma"), "bias": ("bias", "beta")}


class Spare(NamedTuple):
    """A tensor that stands in for a leaf where the leaf's own tensor is absent.

    Beside that tensor it is ignored, by `rule`; with `equal` it must be the same, unless
    the task has no place for `part`, to which it belongs.
    """

    leaf: str
    part: str
    rule: str
    equal: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """The table of one family; {n} is the number of a block.

    source: who writes such names. prefix: what base models leave out, such as "vit.".
    tensors: leaf -> names. modules: dense layers and norms without `.weight`. stacks:
    blocks, each with the modules of `layers`. spare: name -> what it stands in for.
    buffers: pattern -> why such a tensor is no weight of ours.
    """

    source: str
    prefix: str
    tensors: Mapping[str, Spellings]
    modules: Mapping[str, Spellings]
    stacks: Mapping[str, Spellings]
    layers: Mapping[str, Spellings]
    spare: Mapping[str, Spare]
    buffers: Mapping[str, str]

    def leaf_of(self, name: str) -> str | None:
        """Returns our leaf of a tensor's name; None if the name is unknown."""
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

    def spare_of(self, name: str) -> Spare | None:
        """Returns what the tensor stands in for, if it does."""
        return self.spare.get(name, self.spare.get(self.prefix + name))

    def why_ignored(self, name: str) -> str | None:
        """Returns the rule by which a tensor is no weight of ours, if there is one."""
        for pattern, rule in self.buffers.items():
            if re.fullmatch(pattern, name) or re.fullmatch(pattern, self.prefix + name):
                return rule
        return None

    @functools.cached_property
    def _rows(self) -> list[tuple[str, str]]:
        """Rows (leaf, name), the name to write first."""
        modules = dict(self.modules)
        for ours, stacks in self.stacks.items():
            for layer, names in self.layers.items():
                spellings = tuple(f"{s}.{n}" for s in stacks for n in names)
                modules[f"{ours}/{layer}"] = spellings
        rows = [(leaf, name) for leaf, names in self.tensors.items() for name in names]
        for ours, names in modules.items():
            suffixes = NORM if "norm" in ours.rsplit("/", 1)[-1] else DENSE
            for leaf, theirs in suffixes.items():
                rows += [(f"{ours}/{leaf}", f"{n}.{t}") for t in theirs for n in names]
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


def to_ours(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """Kernels become [in, out]; patches (row, column, channel).

    A tensor of another rank is left as it is: the strict check will name it.
    """
    if leaf == "encoder/patch_embed/kernel" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    if leaf.endswith("/kernel") and tensor.ndim == 2:
        return tensor.T
    return tensor


def to_theirs(leaf: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Undoes `to_ours`; `config` is the model's."""
    if leaf == "encoder/patch_embed/kernel":
        size = config["patch_size"]
        image = array.reshape(size, size, -1, array.shape[-1])
        return image.transpose(3, 2, 0, 1)
    return array.T if leaf.endswith("/kernel") else array
