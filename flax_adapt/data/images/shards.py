"""tar:PATTERN: images in the tar files of a WebDataset, read by random access.

PATTERN is a path with * or {000..012}. A sample is the files that share a name up to its
first dot: an image, and its class as .cls (a number or a name) or .json with the field
`data.label_field`. What is kept in memory is where every sample lies, and its name.
"""

import itertools
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import expand_user, user_pattern
from flax_adapt.data import arrow, files
from flax_adapt.data.base import Source
from flax_adapt.data.images import folder, tables


class Sample(NamedTuple):
    """Where the image of a sample lies, and its class ("": none)."""

    shard: int
    offset: int
    size: int
    name: str
    label: str


def open_shards(pattern: str, config_data: ConfigDict) -> Source:
    """Reads the headers of all shards once; raises UserError for what is no tar file."""
    splits = _splits(pattern)
    chosen = {name.lower(): paths for name, paths in splits.items()} | splits
    where = f"tar:{pattern} {config_data.split}"
    if config_data.split not in chosen:
        raise errors.UserError(
            f"data.split={config_data.split!r}: tar:{pattern} has the splits {sorted(splits)}"
            f"{errors.suggest(config_data.split, splits)}"
        )
    paths = chosen[config_data.split]
    samples = _index(paths, config_data.label_field)
    if not samples:
        raise errors.UserError(f"data.source='tar:{pattern}': no image in {paths[0]}")
    of_others = [
        [sample.label for sample in _index(others, config_data.label_field)]
        for others in splits.values()
        if others != paths
    ]
    own = [sample.label for sample in samples]
    class_names, labels = tables.number_classes([own, *of_others], own)
    place = np.array([sample[:3] for sample in samples], np.int64)
    opened = [os.open(path, os.O_RDONLY) for path in paths]

    def read(i: int) -> tuple[bytes, int]:
        shard, offset, size = place[i].tolist()
        # Reads at a place, so that threads share the file.
        return os.pread(opened[shard], size, offset), int(labels[i])

    return Source(
        where=where,
        names=[sample.name for sample in samples],
        class_names=class_names,
        read=read,
        read_labels=lambda: labels,
        broken={},
    )


def _splits(pattern: str) -> dict[str, list[Path]]:
    """The shards by split, which their names or folders tell; else all are "train"."""
    found = [user_pattern(one) for one in expand_braces(pattern)]
    paths = sorted({Path(name) for names in found for name in names})
    if not paths:
        missing = Path(expand_user(pattern))
        raise errors.UserError(
            f"data.source='tar:{pattern}': there is no such file;"
            f" {files.describe_neighbours(missing, 'files')}"
        )
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(arrow.split_of(Path(path.name)) or "train", []).append(path)
    return splits


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` and `a-{x,y}.tar` as a list of patterns."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return ["".join(choice) for choice in itertools.product(*map(_choices, parts))]


def _choices(part: str) -> list[str]:
    if found := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
        first, last = found.groups()
        return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return part[1:-1].split(",") if part.startswith("{") else [part]


def _index(paths: list[Path], label_field: str) -> list[Sample]:
    return [
        s
        for number, path in enumerate(paths)
        for s in _samples(number, path, label_field)
    ]


def _samples(number: int, path: Path, label_field: str) -> list[Sample]:
    endings, images, labels = folder.read_endings(), {}, {}
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                directory, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                key = f"{directory}/{stem}".lstrip("/")
                if f".{extension.lower().rpartition('.')[2]}" in endings:
                    images[key] = (member.offset_data, member.size)
                elif label_field and extension in _LABELS:
                    body = os.pread(raw.fileno(), member.size, member.offset_data)
                    labels[key] = _LABELS[extension](body, label_field)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise errors.UserError(
            f"data.source: {path} is no tar file that can be read by random access (compressed "
            f"ones are unpacked first: gunzip): {error}"
        ) from error
    return [
        Sample(number, *place, f"{path.name}/{key}", labels.get(key, ""))
        for key, place in images.items()
    ]


def _text(body: bytes, label_field: str) -> str:
    del label_field
    return body.decode("utf-8", "replace").strip()


def _field(body: bytes, label_field: str) -> str:
    found: Any = json.loads(body)
    return tables.class_of(found.get(label_field)) if isinstance(found, dict) else ""


_LABELS = {"cls": _text, "json": _field}
