"""The recipe as a picture: a tree, in which each stage hangs below its initial weights."""

from pathlib import PurePath
from typing import Any

from flax_adapt.experiment.measuring import watched
from flax_adapt.report.outcomes import count_of, format_number
from flax_adapt.report.verdicts import claims
from flax_adapt.report.workdir import Run

# Objective -> what a reader sees.
_WORDS = {
    "reconstruct": "masked reconstruction",
    "mlm": "masked language modelling",
    "distill": "self-distillation",
    "classify": "classification",
    "regress": "regression",
    "contrast": "contrast",
}


def tree(run: Run) -> dict[str, Any]:
    """Returns the roots of the tree; a node has `children`, stages that start from it."""
    colours = stage_colours(run)
    nodes = {
        name: _node(run, section, colours[name])
        for name, section in run.sections.items()
    }
    roots: dict[str, dict[str, Any]] = {}
    for name, section in run.sections.items():
        start = section["init_from"]
        parent = start.removeprefix("stage:").split("/")[0]
        if start.startswith("stage:") and parent in nodes and parent != name:
            nodes[parent]["children"].append(nodes[name])
            continue
        root = {"title": _name_start(run, start), "children": []}
        roots.setdefault(start, root)["children"].append(nodes[name])
    return {"roots": list(roots.values())}


def stage_colours(run: Run) -> dict[str, int]:
    """Returns {stage: number of its colour}, the same in all pictures."""
    return {name: index % 8 for index, name in enumerate(run.sections)}


def _name_start(run: Run, start: str) -> str:
    if start == "scratch":
        return "random weights"
    given = run.config["init"] if start == "pretrained" else start
    return PurePath(str(given)).name or str(given)


def _node(run: Run, section: dict[str, Any], colour: int) -> dict[str, Any]:
    row = next((row for row in run.rows if row["stage"] == section["name"]), None)
    objective = section["objective"]["name"]
    solved = section["optim"].get("solve") is not None
    steps = "solved exactly" if solved else f"{section['num_steps']:,} steps"
    facts = [f"{steps} of {section['batch_size']}"]
    if not solved:
        facts.append(f"learning rate {section['optim']['lr']:g}")
    if len(section["seeds"]) > 1:
        facts.append(count_of(len(section["seeds"]), "seed"))
    return {
        **dict(title=section["name"], colour=colour, facts=facts, children=[]),
        "objective": _WORDS.get(objective, objective),
        "data": _name_data(section["data"]),
        "chips": [*_list_extras(section), *_list_kept(row)],
        "result": f"{row['metric']} {format_number(row['mean'])}" if row else "",
    }


def _list_kept(row: dict[str, Any] | None) -> list[str]:
    """Returns what a stage that watched a metric kept, and the verdicts on that metric."""
    if row is None or "watch" not in row:
        return []
    judged = [
        f"{one['metric']} {one['verdict']['word']}"
        + (", rolled back" if one["rolled_back"] else "")
        for _, one in claims.list_watched(row)
    ]
    return [f"watched, kept: {watched.shorten(row['watch'])}", *dict.fromkeys(judged)]


def _name_data(data: dict[str, Any]) -> str:
    """Returns source and split of a data section, with the labels that are drawn from it."""
    kind, _, place = data["source"].partition(":")
    short = PurePath(place).name if kind != "tfds" else place
    few = data["subset"]["per_class"]
    part = f", {few} a class" if few and data["subset"]["part"] != "rest" else ""
    return f"{kind}:{short} · {data['split']}{part}"


def _list_extras(section: dict[str, Any]) -> Any:
    """Yields what a stage has beside its objective: teacher, replay, penalties, adaptors."""
    if section.get("teacher", "none") != "none":
        yield f"teacher: {section['teacher'].removeprefix('stage:')}"
    if section.get("replay"):
        yield "replay"
    if section.get("sweep"):
        rates = section["sweep"]["lrs"]
        yield f"{count_of(len(rates), 'learning rate')} tried"
    for penalty in section.get("penalties") or ():
        yield str(penalty.get("name", "penalty"))
    model = section["model"]
    names = ("adaptor", "lora", "resize")
    yield from (name for name in names if model.get(name))
