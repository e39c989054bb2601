"""The sections on how a run was made: data, commands, versions, weights, config."""

import json
from pathlib import Path
from typing import Any

from flax_adapt.experiment.measuring import leaks
from flax_adapt.report.outcomes import count_of
from flax_adapt.report.workdir import Run, read_optional

# Parts of data.json that are shown as fingerprints.
_DIGESTS = ("names", "labels", "sizes", "contents")
_FILES = (("data.json", "data", "trained on"), ("eval_data.json", "eval", "tested on"))


def data_sets(run: Run) -> dict[str, Any] | None:
    """Returns the data of all stages with size and fingerprints, each once; near-copies."""
    rows: dict[Any, dict[str, Any]] = {}
    for name in run.names:
        for folder in run.seed_folders(name).values():
            for file, field, use in _FILES:
                known = read_optional(folder / file)
                if known is None:
                    continue
                section = run.sections[name][field]
                section = section["data"] if field == "eval" else section
                row = describe_data(known, section)
                key = (use, *(str(value) for value in row.values()))
                entry = rows.setdefault(key, {**row, "use": use, "stages": []})
                if name not in entry["stages"]:
                    entry["stages"].append(name)
    copies = read_optional(run.folder / leaks.RECORD) or {}
    lines = copies.get("lines", []) if isinstance(copies, dict) else []
    return {"rows": list(rows.values()), "copies": lines} if rows else None


def describe_data(known: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of the table of data.

    known: of data.json or eval_data.json. section: the plain data section.
    """
    classes = known.get("class_names") or []
    return {
        **dict(source=section["source"], split=section["split"]),
        "rows": count_of(known["rows"], "example") if "rows" in known else "",
        "classes": count_of(len(classes), "class", "classes") if classes else "",
        "digests": [f"{name} {known[name]}" for name in _DIGESTS if name in known],
    }


def commands(run: Run) -> dict[str, Any] | None:
    """Returns the commands that were run in the workdir, with versions and devices.

    A workdir of an earlier version has none; that of `adapt` has its flags.
    """
    starts = [
        {**one, "versions": [" ".join(pair) for pair in one["versions"].items()]}
        for one in run.starts
    ]
    versions = starts[-1]["versions"] if starts else []
    changed = len({tuple(one["versions"]) for one in starts}) > 1
    found = {"starts": starts, "versions": versions, "changed": changed}
    return found if starts else None


def imports(run: Run) -> dict[str, Any] | None:
    """Returns what loading the initial weights of each stage did, in numbers."""
    rows = []
    for name in run.names:
        found = read_optional(Path(run.export(name)).parent / "import_report.json")
        if not isinstance(found, dict):
            continue
        counts = {kind: len(names) for kind, names in found.items() if names}
        if counts:
            said = [f"{number:,} {kind}" for kind, number in counts.items()]
            rows.append({"stage": name, "said": ", ".join(said)})
    return {"rows": rows} if rows else None


def config(run: Run) -> dict[str, Any]:
    """Returns the config as JSON."""
    return {"text": json.dumps(run.config, indent=2, sort_keys=True)}
