"""The headline: what all verdicts of a workdir say, in one sentence.

Verdicts are on stages that were fine-tuned, on metrics that a stage watched as it trained,
and on frozen features, of `flax-adapt eval`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax_adapt.evals import verdict
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring import verdicts, watched
from flax_adapt.report.outcomes import TONES
from flax_adapt.report.workdir import Run

# The most subjects of one word that a headline names; the sections below have all.
_NAMED = 6
_MIXED = TONES[verdict.UNCLEAR][0]


class Claim(NamedTuple):
    """A word of a verdict on a subject.

    weights, domain: what the verdict is about. Claims on the same weights and domain, of
    which one is HELPED and another HURT, disagree.
    """

    subject: str
    word: str
    weights: str
    domain: str = verdicts.TARGET


def headline(claims: Sequence[Claim], remarks: Iterable[str] = ()) -> dict[str, str]:
    """Returns the answer to "did it help?" as {text, tone}.

    tone: of TONES; where something helped and something hurt, that of no evidence. remarks:
    are added to the text.
    """
    words = {claim.word for claim in claims}
    parts = [
        f"{_name_subjects(claims, word)} {word}" for word in TONES if word in words
    ]
    if words == {verdict.UNCLEAR}:
        parts = ["There is no evidence either way"]
    if divided := find_divided(claims):
        parts.append(f"the verdicts on {join(divided)} disagree")
    tone = next(TONES[word][0] for word in TONES if word in words)
    mixed = {verdict.HELPED, verdict.HURT} <= words
    text = "; ".join([*parts, *remarks])
    return {"text": text, "tone": _MIXED if mixed else tone}


def find_divided(claims: Iterable[Claim]) -> list[str]:
    """Returns the weights on which one claim says HELPED and another one HURT."""
    words: dict[tuple[str, str], set[str]] = {}
    for claim in claims:
        words.setdefault((claim.weights, claim.domain), set()).add(claim.word)
    both = {verdict.HELPED, verdict.HURT}
    divided = [key for key, said in words.items() if both <= said]
    return list(dict.fromkeys(weights for weights, _ in divided))


def _name_subjects(claims: Iterable[Claim], word: str) -> str:
    found = list(dict.fromkeys(one.subject for one in claims if one.word == word))
    left_out = len(found) - _NAMED
    return join([*found[:_NAMED], *([f"{left_out} more"] if left_out > 0 else [])])


def join(names: list[str]) -> str:
    """Returns names as a list in words: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def of_stages(judged: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Returns the claims on fine-tuned stages; judged: rows of results.json with `verdict`.

    Where stages were trained alike from other weights, they are about these weights alone.
    """
    judged = [row for row in judged if "weights" in row["verdict"]] or judged
    found = []
    for row in judged:
        weights = row["verdict"].get("weights", [row["stage"]])[-1]
        found.append(Claim(row["stage"], row["verdict"]["word"], weights))
    return found


def of_watched(rows: Iterable[Mapping[str, Any]]) -> list[Claim]:
    """Returns the claims on what stages watched; rows: of results.json."""
    found = []
    for row in rows:
        for _, one in list_watched(row):
            metric, stage = one["metric"], row["stage"]
            domain = metric.partition("/")[0]
            domain = verdicts.SOURCE if domain == verdicts.SOURCE else verdicts.TARGET
            subject = f"{stage} ({metric}, watched)"
            # The weights of a stage that was rolled back are its initial ones again.
            about = (
                f"{stage}, before it was rolled back" if one["rolled_back"] else stage
            )
            found.append(Claim(subject, one["verdict"]["word"], about, domain))
    return found


def list_watched(row: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Returns (seed, what it watched) of the runs of a stage that have a verdict on it."""
    return [(seed, one) for seed, one in watched.list_runs(row) if one["verdict"]]


def list_rolled_back(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the stages of which a run was rolled back to its initial weights."""
    return [
        row["stage"]
        for row in rows
        if any(one["rolled_back"] for _, one in watched.list_runs(row))
    ]


def of_features(entries: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Returns the claims on frozen features; entries: `features` of results.json.

    A claim names the metrics with its word; "no evidence" is said where no metric has more.
    """
    words: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for entry in entries:
        stage = entry["stage"].partition("/")[0]
        mine = words.setdefault((stage, entry["domain"], entry["data"]), {})
        for metric, one in entry["metrics"].items():
            mine.setdefault(one["word"], []).append(verdicts.name_metric(metric))
    several = len({data for _, domain, data in words if domain == verdicts.TARGET}) > 1
    found = []
    for (stage, domain, data), mine in words.items():
        where = " on the source" if domain == verdicts.SOURCE else ""
        where = f" on {data}" if several and not where else where
        clear = {word: names for word, names in mine.items() if word != verdict.UNCLEAR}
        for word, names in (clear or {verdict.UNCLEAR: ["frozen features"]}).items():
            subject = f"{stage} ({', '.join(dict.fromkeys(names))}{where})"
            found.append(Claim(subject, word, stage, domain))
    return found


def list_entries(run: Run) -> list[dict[str, Any]]:
    """Returns the verdicts on frozen features of the stages that train without labels.

    Where only other stages were measured, those of these.
    """
    sections = {section.name: section for section in run.experiment.stages}
    entries = [
        (row["stage"], one) for row in run.rows for one in row.get("features", ())
    ]
    unlabelled = [
        one for stage, one in entries if not held_out.sees_labels(sections[stage])
    ]
    return unlabelled or [one for _, one in entries]
