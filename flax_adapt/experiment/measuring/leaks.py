"""Test examples that training has seen: in a pool without labels, or as near-copies.

With labels: `measuring.seen`.

A pool is what a stage without labels is trained on. Where it holds test examples, the
gain is transductive: it says what is gained on examples that are known, without labels, when
the model is adapted. `pool=without_test` takes them out of the pools. Near-copies are those
of `data.duplicates`.
"""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base import logs
from flax_adapt.data import duplicates, fingerprint, subset
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring import seen
from flax_adapt.stage import draws

FILE, RECORD = "near_copies.csv", "near_copies.json"
_VERSION = 2  # of RECORD: its lines count what two sets share, too
_SHOWN = 3
_FEW = 5_000  # examples that are compared without being asked (ours)
log = logging.getLogger(__name__)


class ExampleSet(NamedTuple):
    """A set of examples of an experiment: "pool", "training" or "test", and its section."""

    role: str
    section: Any

    def describe(self) -> str:
        """Returns the set in words."""
        name = {
            "pool": "the pool",
            "training": "the training set",
            "test": "the test set",
        }
        part = _describe_part(self.section.subset)
        more = f" ({part})" if part else ""
        return f"{name[self.role]} {self.section.source} {self.section.split}{more}"


# Part of `data.subset` -> words; others are named by their name.
_PARTS = {
    "chosen": "{}",
    "rest": "all but {}",
    "without_data": "without what other sets hold, of {}",
}


def _describe_part(section: Any) -> str:
    """Returns which part of a split a subset section takes; "": all of it.

    Sets of one source and split differ in it alone.
    """
    subsets = section.of if section.part == "any" else (section,)
    one = subsets[0]
    base = one.base if "base" in one else one
    amounts = (
        *([f"{base.per_class} a class"] if base.per_class else []),
        *([f"{base.fraction:g} of each class"] if base.fraction < 1 else []),
    )
    if not amounts and one.part == "chosen":
        return ""
    text = _PARTS.get(one.part, f"{one.part} of {{}}")
    text = text.format(" of ".join(amounts) or "all")
    seeds = [str(subset.seed) for subset in subsets if "seed" in subset]
    numbers = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"
    return f"{text}, {numbers}" if amounts and seeds else text


def find_shared(
    config: Any, stage: str, test: Any, known: subset.Identities | None = None
) -> dict[str, Any] | None:
    """Returns which pools of a stage hold examples of a test section; None: no pool does.

    stage: its name. The pools are those of the stage and of the stages that it follows from,
    as far as they train without labels. The result has `pools` (names of stages), `examples`
    (how many test examples the first of them holds) and `of` (how many there are). known: the
    identities of the examples of sections; calls that share it read each section once.
    """
    sections = {section.name: section for section in config.stages}
    if stage not in sections:
        return None
    tested, counts = draws.draw_labels(test, 0), {}
    known = {} if known is None else known
    for one in _follow(sections, stage):
        section = sections[one]
        if held_out.sees_labels(section):
            continue
        if shared := subset.list_shared(section.data, tested, known):
            counts[one] = len(shared)
    if not counts:
        return None
    whole = len(subset.list_identities(tested, known))
    return {"pools": [*counts], "examples": next(iter(counts.values())), "of": whole}


def describe_shared(shared: dict[str, Any]) -> str:
    """Returns the words of `find_shared`'s result."""
    pools = ", ".join(shared["pools"])
    return (
        f"transductive: the pool of {pools} holds {shared['examples']} of the "
        f"{shared['of']} test examples, without labels"
    )


def list_notes(row: Mapping[str, Any]) -> list[str]:
    """Returns what training has seen of the test set, in words; row: see `add_shared`."""
    shared = row.get("transductive")
    notes = [describe_shared(shared)] if shared else []
    return [*notes, *map(seen.describe, row.get("seen") or ())]


def add_shared(
    config: Any,
    rows: Sequence[dict[str, Any]],
    with_labels: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns the rows of results.json, those with a gain with what training has seen.

    That is `transductive`, and `seen`, the result of `seen.find_by_stage`, in a list; rows
    of stages that have seen nothing have neither. with_labels: of `seen.find_by_stage`.
    """
    sections, found = {one.name: one for one in config.stages}, []
    known: subset.Identities = {}
    for row in rows:
        section, shared = sections.get(row["stage"]), None
        if "gain" in row and section is not None and section.eval is not None:
            shared = find_shared(config, row["stage"], section.eval.data, known)
        more: dict[str, Any] = {"transductive": shared} if shared else {}
        if "gain" in row and row["stage"] in with_labels:
            more["seen"] = [with_labels[row["stage"]]]
        found.append({**row, **more})
    return found


def _follow(sections: dict[str, Any], stage: str) -> Iterator[str]:
    """Yields a stage and the stages that it follows from, each once, the nearest first."""
    waiting, known = [stage], set()
    while waiting:
        name = waiting.pop(0)
        if name in known or name not in sections:
            continue
        known.add(name)
        yield name
        references = sorted(draws.references_of(sections[name]))
        waiting += [text.partition(":")[2].partition("/")[0] for text in references]


def list_sets(config: Any) -> list[ExampleSet]:
    """Returns the pools, training sets and test sets of an experiment, each once."""
    found = []
    for section in config.stages:
        role = "training" if held_out.sees_labels(section) else "pool"
        found.append(ExampleSet(role, draws.join_draws(section.data, section.seeds)))
        if section.eval is not None and role == "training":
            found.append(ExampleSet("test", section.eval.data))
    for one in (config.evaluate, *config.more_evaluations):
        train = draws.join_draws(one.train, range(one.draws))
        found += [ExampleSet("training", train), ExampleSet("test", one.test)]
    known: dict[str, ExampleSet] = {}
    for one in found:
        drawn = one._replace(section=draws.draw_labels(one.section, 0))
        known.setdefault(f"{drawn.role} {subset.name_examples(drawn.section)}", drawn)
    return list(known.values())


def list_copies(config: Any, workdir: Path) -> list[str]:
    """Writes near_copies.csv, and returns a line for each pair of sets.

    Pairs are test and pool, test and training, training and pool. A set is read once. They
    are not compared again where near_copies.json has these sets with the same examples,
    whose files are read in the same way.
    """
    sets = list_sets(config)
    identity = [
        f"{one.role} {subset.name_examples(one.section)} {_fingerprint(one.section)}"
        f" {_describe_reading(one.section)}"
        for one in sets
    ]
    record, path = workdir / RECORD, workdir / FILE
    known = logs.read_json(record) if record.exists() and path.exists() else {}
    is_ours = isinstance(known, dict) and known.get("version") == _VERSION
    if is_ours and known["sets"] == identity:
        lines: list[str] = known["lines"]
        return lines
    lines, rows = _compare(sets)
    with logs.replace_file(path) as file:
        text = [("set", "name", "other_set", "other_name", "similarity"), *rows]
        file.write(_to_csv(text))
    found = {"version": _VERSION, "sets": identity, "lines": lines}
    logs.write_json(record, found)
    return lines


def list_few_copies(config: Any, workdir: Path) -> list[str]:
    """Returns the lines of `list_copies`; of many examples one that says who lists them."""
    sections = (one.section for one in list_sets(config))
    count = sum(len(subset.open_chosen(section)) for section in sections)
    if count <= _FEW:
        return list_copies(config, workdir)
    return [
        f"near-copies: not looked for in {count} examples; `flax-adapt eval` does it"
    ]


_PAIRS = (("test", "pool"), ("test", "training"), ("training", "pool"))


def _fingerprint(section: Any) -> dict[str, str]:
    return fingerprint.of_source(subset.open_chosen(section))


def _describe_reading(section: Any) -> list[Any]:
    """Returns what the comparison of images depends on, beside their files."""
    return [section.get(name) for name in ("channels", "fit", "bits", "window")]


def _compare(sets: Sequence[ExampleSet]) -> tuple[list[str], list[tuple]]:
    described = [
        duplicates.describe(subset.open_chosen(x.section), x.section) for x in sets
    ]
    lines, rows = [], []
    known: subset.Identities = {}
    for ours, theirs in _PAIRS:
        for one, mine in zip(sets, described, strict=True):
            for other, their in zip(sets, described, strict=True):
                same_kind = one.section.modality == other.section.modality
                if (one.role, other.role) != (ours, theirs) or not same_kind:
                    continue
                found = duplicates.find(mine, their)
                both = subset.list_shared(one.section, other.section, known)
                line = _describe(one, other, found, len(mine.source))
                lines.append(line + _mention_both(other, len(both)))
                names = (one.describe(), other.describe())
                rows += [
                    (names[0], x.name, names[1], x.other, f"{x.similarity:.4f}")
                    for x in found
                ]
    return lines, rows


def _describe(
    one: ExampleSet, other: ExampleSet, found: Sequence[duplicates.Copy], count: int
) -> str:
    where = f"of {count} examples of {one.describe()} in {other.describe()}"
    if not found:
        return f"near-copies: none {where}"
    shown = ", ".join(f"{x.name} ~ {x.other}" for x in found[:_SHOWN])
    return f"near-copies: {len(found)} {where}, such as {shown}; all are in {FILE}"


def _mention_both(other: ExampleSet, count: int) -> str:
    """Returns words about the examples that both sets have, which are no near-copies."""
    chosen = other.section.subset
    is_drawn = chosen.part == "any" and (chosen.per_class > 0 or chosen.fraction < 1)
    drawn = ", in one draw of labels or another" if is_drawn else ""
    return f", besides the {count} that are in both{drawn}" if count else ""


def _to_csv(rows: Sequence[tuple]) -> bytes:
    import io

    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
