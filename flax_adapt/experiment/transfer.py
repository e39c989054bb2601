"""Transfer matrices of an experiment, whose config names the stage of each cell.

A section `transfer` of a config:

    domains    names of the columns: the learnt domains in their order, then the others
    sources    data.source of each domain
    rows       stages that are evaluated: "pretrained" first, then the stage of each task
    others     further stages to compare with, such as joint training
    finetuned  for every row and every other, for every domain, the name of the stage that
               fine-tunes it; (): nothing was fine-tuned
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.evals import transfer

# Measures of frozen features: columns of `measure.evaluate`.
PROBES = ("probe", "knn")


def report(
    config: Any, workdir: Path, measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns {name: {"rows", "columns", "matrix", "figures"}}; writes transfer.json.

    "finetune" has the means over seeds of the fine-tuned stages (results.json), "probe"
    and "knn" the accuracies of `measured`, the rows of `measure.evaluate`. Raises
    UserError for a cell that was not measured.
    """
    section = config.transfer
    names = (*section.rows, *section.others)
    found = {}
    if section.finetuned:
        found["finetune"] = _finetuned_matrix(section, workdir)
    for probe in PROBES:
        found[probe] = _measured_matrix(section, names, measured, probe)
    tasks = len(section.rows)
    whole = {
        name: {
            "rows": list(names),
            "columns": list(section.domains),
            "matrix": matrix.tolist(),
            "figures": transfer.figures(matrix[:tasks]),
        }
        for name, matrix in found.items()
    }
    if jax.process_index() == 0:
        logs.write_json(workdir / "transfer.json", whole)
    return whole


def _finetuned_matrix(section: Any, workdir: Path) -> np.ndarray:
    means = {
        row["stage"]: row["mean"] for row in logs.read_json(workdir / "results.json")
    }
    missing = [one for row in section.finetuned for one in row if one not in means]
    if missing:
        raise UserError(
            f"{workdir}: the transfer matrix lacks {', '.join(missing)}; run the config "
            "to its end first"
        )
    return np.array([[means[one] for one in row] for row in section.finetuned])


def _measured_matrix(
    section: Any,
    names: Sequence[str],
    measured: Sequence[Mapping[str, Any]],
    probe: str,
) -> np.ndarray:
    """Returns the matrix of one probe, with means over the seeds of each stage."""

    def cell(name: str, source: str) -> float:
        found = [
            row[probe]
            for row in measured
            if row["stage"].split("/")[0] == name
            and row.get("data", section.sources[0]) == source
        ]
        if not found:
            raise UserError(
                f"the transfer matrix lacks {name} on {source}; run the config to its end "
                "first"
            )
        return float(np.mean(found))

    return np.array([[cell(name, one) for one in section.sources] for name in names])


def format_text(whole: Mapping[str, Any]) -> str:
    """Returns the matrices and their figures as text."""
    parts = []
    for name, found in whole.items():
        rows = transfer.table(
            found["rows"], found["columns"], np.array(found["matrix"])
        )
        figures = ", ".join(f"{k} {v:.4f}" for k, v in found["figures"].items())
        parts.append(f"{name}\n{logs.format_table(rows, tuple(rows[0]))}\n{figures}")
    return "\n\n".join(parts)
