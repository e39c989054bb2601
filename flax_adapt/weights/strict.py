"""Strict loading: every tensor is used, ignored by a rule or an error; a report lists all."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params
from flax_adapt.weights import reshape

_UNKNOWN = "unknown/"
# The number of a block, in our names and in those of other libraries.
_BLOCK = re.compile(r"(?<=[._])\d+(?=[./]|$)")
DECODER = "decoder"
# Leaf that is missing or unexpected -> hint in the error.
HINTS = {
    "encoder/norm": "a source whose norm follows its pooling (fc_norm) is read with "
    "pooling='mean_norm'",
    "head/pre_logits": "the source's head stands on a tanh layer (pre_logits), which our "
    "classifiers have not: name 'head' in `fresh`, or load the task 'encoder'",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """A record of every tensor of a source and every leaf of a model.

    renamed: source name -> leaf, or leaves with ", " between. used: leaves with loaded values.
    ignored: source name -> the rule by which it was ignored. fresh: leaves with their initial
    values. converted: source name -> its dtype before conversion to float32. reshaped: leaf
    -> the rule (see `reshape`). assumed: config field that neither tensors nor a config show,
    such as the number of heads of a file alone -> the assumed value; `known` sets another.
    origin: of a name on the Hub: its name and the revision (commit) that was loaded.
    """

    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    used: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    converted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reshaped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    assumed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def merge(self, other: "Report") -> "Report":
        """Returns one report of two steps (load, reshape, adopt)."""
        fresh = self.fresh + other.fresh
        reshaped = {**self.reshaped, **other.reshaped}
        return Report(
            {**self.renamed, **other.renamed},
            self.used + other.used,
            {**self.ignored, **other.ignored},
            fresh,
            {**self.converted, **other.converted},
            {leaf: rule for leaf, rule in reshaped.items() if leaf not in fresh},
            {**self.assumed, **other.assumed},
            {**self.origin, **other.origin},
        )

    def summary(self) -> str:
        """Returns one line: `150 tensors used, 132 ignored (decoder dropped ...), ...`."""
        parts = [f"{len(self.used)} tensors used"]
        for rule in sorted(set(self.ignored.values())):
            count = sum(name == rule for name in self.ignored.values())
            parts.append(f"{count} ignored ({rule})")
        if self.reshaped:
            rules = ", ".join(f"{k} {rule}" for k, rule in self.reshaped.items())
            parts.append(f"{len(self.reshaped)} reshaped ({rules})")
        if self.fresh:
            parts.append(f"{len(self.fresh)} fresh ({', '.join(self.fresh)})")
        if self.converted:
            kinds = ", ".join(sorted(set(self.converted.values())))
            parts.append(f"{len(self.converted)} converted from {kinds} to float32")
        if self.assumed:
            values = ", ".join(f"{name}={v}" for name, v in self.assumed.items())
            parts.append(f"assumed {values}")
        return ", ".join(parts)

    def table(self) -> str:
        """Returns text with a row for each tensor: source name, leaf, result."""
        return _columns(("source", "leaf", ""), self._rows())

    def overview(self) -> str:
        """Returns `table` with one row for tensors that are alike in every block."""
        counts = collections.Counter(
            (_BLOCK.sub("*", source), _BLOCK.sub("*", leaf), note)
            if note != "assumed"
            else (source, leaf, note)
            for source, leaf, note in self._rows()
        )
        rows = [(*row, str(count)) for row, count in counts.items()]
        return _columns(("source", "leaf", "", "tensors"), rows)

    def _rows(self) -> list[tuple[str, str, str]]:
        source_of = {
            leaf: source
            for source, leaves in self.renamed.items()
            for leaf in leaves.split(", ")
        }
        rows = []
        for leaf in self.used:
            source = source_of.get(leaf, leaf)
            dtype = self.converted.get(source)
            notes = [f"from {dtype}"] if dtype else []
            notes += [self.reshaped[leaf]] if leaf in self.reshaped else []
            rows.append((source, leaf, ", ".join(notes) or "used"))
        rows += [(source, "-", rule) for source, rule in self.ignored.items()]
        rows += [("-", leaf, "fresh") for leaf in self.fresh]
        return rows + [("-", f"{k}={v}", "assumed") for k, v in self.assumed.items()]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain dicts and lists."""
        return {
            name: dict(value) if isinstance(value, Mapping) else list(value)
            for name, value in vars(self).items()
        }


def _columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def flatten(params: Params) -> dict[str, Any]:
    """Returns {"encoder/norm/scale": leaf, ...}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def unknown(name: str) -> str:
    """Returns the leaf name under which `adopt` reports a tensor of an unknown name."""
    return _UNKNOWN + name.replace("/", ".")


def adopt(
    init_params: Params, loaded_params: Params, fresh: Sequence[str] = ()
) -> tuple[dict[str, Any], Report]:
    """Returns the loaded parameters in the order of `init_params`, and the report.

    fresh: leaves, or prefixes such as "head", that keep their value of `init_params`. The
    report lists the source's tensors for them as ignored. Without fresh leaves `init_params`
    may hold shapes alone. Raises UserError for any other difference, and lists all of them.
    """
    init, loaded = flatten(init_params), flatten(loaded_params)
    replaced = [k for k in loaded if any(_is_under(k, name) for name in fresh)]
    loaded = {leaf: value for leaf, value in loaded.items() if leaf not in replaced}
    kept = [leaf for leaf in init if any(_is_under(leaf, name) for name in fresh)]
    _check_decoder(init, flatten(loaded_params), fresh)
    problems = _problems(init, loaded, kept, fresh)
    if problems:
        raise UserError(
            f"the weights do not fit the model: {'; '.join(problems)} -- fix the "
            "source or the model config, or name leaves that shall be new in `fresh`"
            f"{reshape.hint_at_rules(_wrong_shapes(init, loaded))}{_hint(init, loaded, kept)}"
        )
    leaves = {leaf: init[leaf] if leaf in kept else loaded[leaf] for leaf in init}
    used = tuple(leaf for leaf in init if leaf not in kept)
    ignored = dict.fromkeys(replaced, "named fresh")
    return unflatten(leaves), Report(used=used, fresh=tuple(kept), ignored=ignored)


def _check_decoder(
    init: Mapping[str, Any], loaded: Mapping[str, Any], fresh: Sequence[str]
) -> None:
    """Raises UserError for a source without any decoder where the model needs one.

    Most files of masked autoencoders hold the encoder alone. If `fresh` names a part of the
    decoder, the other parts must still be in the source.
    """
    needed = any(_is_under(leaf, DECODER) for leaf in init) and DECODER not in fresh
    if needed and not any(_is_under(leaf, DECODER) for leaf in loaded):
        raise UserError(
            "the source is an encoder without the decoder that masked pre-training "
            "needs: get the file with the decoder, or begin with a new one, "
            f"fresh=({DECODER!r},), and train that with the encoder frozen first "
            "(decoder_warmup=STEPS in the configs)"
        )


def _hint(
    init: Mapping[str, Any], loaded: Mapping[str, Any], kept: Sequence[str]
) -> str:
    wrong = (set(init) ^ set(loaded)) - set(kept)
    hints = [f"; {text}" for prefix, text in HINTS.items()
             if any(_is_under(leaf, prefix) for leaf in wrong)]  # fmt: skip
    return "".join(hints)


def _is_under(leaf: str, prefix: str) -> bool:
    return f"{leaf}/".startswith(f"{prefix}/")


def _wrong_shapes(init: Mapping[str, Any], loaded: Mapping[str, Any]) -> list[str]:
    return [k for k in init if k in loaded and loaded[k].shape != init[k].shape]


def _problems(
    init: Mapping[str, Any],
    loaded: Mapping[str, Any],
    kept: Sequence[str],
    fresh: Sequence[str],
) -> list[str]:
    """Returns the differences between the two trees, a list of leaves for each kind."""
    missing = [leaf for leaf in init if leaf not in loaded and leaf not in kept]
    unexpected = [k.removeprefix(_UNKNOWN) for k in loaded if k not in init]
    shapes = [
        f"{leaf} {tuple(loaded[leaf].shape)} -> {tuple(init[leaf].shape)}"
        for leaf in _wrong_shapes(init, loaded)
    ]
    nothing = [name for name in fresh if not any(_is_under(key, name) for key in init)]
    kinds = {
        "missing in the source": missing,
        "unexpected in the source": unexpected,
        "wrong shape (source -> model)": shapes,
        "named fresh but not in the model": nothing,
    }
    return [f"{kind}: {', '.join(found)}" for kind, found in kinds.items() if found]
