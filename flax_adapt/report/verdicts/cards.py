"""The section "Did it help?": a headline, and a card for each verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax_adapt.evals import verdict
from flax_adapt.experiment import handover
from flax_adapt.experiment.measuring import leaks, verdicts, watched
from flax_adapt.report import outcomes
from flax_adapt.report.outcomes import TONES, count_of, describe_interval
from flax_adapt.report.verdicts import claims
from flax_adapt.report.workdir import Run, read_optional

# Shares of a bar's half that the widest interval takes, so that it does not touch the edge.
_WIDEST = 0.92
# The most cards on frozen features; the section "Target and source" has all verdicts.
_MOST = 8


def find_verdicts(run: Run) -> dict[str, Any] | None:
    """Returns headline and cards: fine-tuned stages, watched metrics, frozen features.

    Of fine-tuned stages those on adapted weights come first. None without any verdict.
    """
    judged = [row for row in run.rows if "verdict" in row]
    judged.sort(key=lambda row: "weights" not in row["verdict"])
    entries = claims.list_entries(run)
    said = [
        *claims.of_stages(judged),
        *claims.of_watched(run.rows),
        *claims.of_features(entries),
    ]
    if not said:
        return None
    found = read_optional(run.folder / handover.RECORD)
    handed = f"Handed over: {found['stage']}, {found['why']}." if found else ""
    tuned = _find_reach([row["verdict"] for row in judged])
    cards = [
        *(_describe_stage(run, row, tuned) for row in judged),
        *_describe_watched(run.rows),
        *map(_describe_features, entries[:_MOST]),
    ]
    head = claims.headline(said, _list_remarks(run.rows, judged))
    left_out = max(0, len(entries) - _MOST)
    return {"headline": head, "handed": handed, "cards": cards, "left_out": left_out}


def _list_remarks(
    rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Returns what a headline adds: metrics that disagree, and stages that were rolled back."""
    mixed = [row["stage"] for row in judged if row["verdict"]["disagree"]]
    rolled = claims.list_rolled_back(rows)
    remarks = [f"the metrics of {claims.join(mixed)} disagree"] if mixed else []
    verb = "was" if len(rolled) == 1 else "were"
    back = f"{claims.join(rolled)} {verb} rolled back to the initial weights"
    return [*remarks, *([back] if rolled else [])]


def _find_reach(found: Sequence[Mapping[str, Any]]) -> float:
    """Returns which difference is at the end of a bar."""
    ends = [abs(one[end]) for one in found for end in ("low", "high")]
    return (max(ends, default=0.0) or 1.0) / _WIDEST


def _card(found: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    """Returns what all cards have; found: a verdict. title: {stage, against}."""
    tone, sign = TONES[found["word"]]
    return {
        **dict(title, on="", word=found["word"], tone=tone, sign=sign, number=None),
        **dict(small="", also=[], caption="", mcnemar=[], notes=[]),
    }


def _measure(metric: str, found: Mapping[str, Any], reach: float) -> dict[str, Any]:
    """Returns a difference with its bar."""
    shown = {"metric": metric, "difference": f"{found['difference']:+.4f}"}
    return {**shown, "bar": outcomes.bar(found, reach)}


def _describe_stage(run: Run, row: Mapping[str, Any], reach: float) -> dict[str, Any]:
    found = row["verdict"]
    seeds = count_of(len(found["seeds"]), "seed")
    examples = count_of(found["examples"], "test example")
    interval = f"95 % interval {describe_interval(found)}"
    return {
        **_card(found, dict(stage=row["stage"], against=found["against"])),
        "number": _measure(found["metric"], found, reach),
        "small": f"{interval} · {seeds} · {examples}; {found['covers']}.",
        "caption": f"Other metrics{': they disagree' if found['disagree'] else ''}",
        "also": [_describe_metric(one["metric"], one) for one in found["also"]],
        "mcnemar": found.get("mcnemar", []),
        "notes": outcomes.notes(run, row["stage"]),
    }


def _describe_metric(name: str, one: Mapping[str, Any]) -> dict[str, str]:
    shown = dict(metric=name, word=one["word"], tone=TONES[one["word"]][0])
    interval = describe_interval(one)
    return {**shown, "interval": interval, "difference": f"{one['difference']:+.4f}"}


def _describe_watched(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the cards of watched metrics; bars of one metric have one scale."""
    every = [(row, *one) for row in rows for one in claims.list_watched(row)]
    cards = []
    for row, seed, found in every:
        compared, metric = found["verdict"], found["metric"]
        alike = [one["verdict"] for _, _, one in every if one["metric"] == metric]
        several = len(row["seeds"]) > 1
        stage = f"{row['stage']} (seed {seed})" if several else row["stage"]
        state = "last" if watched.is_about_last(found) else "best"
        small = (
            f"Watched as it trained, the {state} state against the first. 95 % interval "
            f"{describe_interval(compared)} over {watched.name_units(found)}."
        )
        cards.append(
            {
                **_card(compared, dict(stage=stage, against="its initial weights")),
                "number": _measure(metric, compared, _find_reach(alike)),
                "small": small,
                "notes": [f"{watched.describe_result(found)}."],
            }
        )
    return cards


def _describe_features(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the card of an entry of `features`: every metric, and what they say together."""
    metrics = {
        verdicts.name_metric(name): one for name, one in entry["metrics"].items()
    }
    word, tone = _join_words(metrics)
    some = next(iter(metrics.values()))
    covers = verdicts.describe_covers(entry["metrics"])
    source = entry["domain"] == verdicts.SOURCE
    disagree = ": the metrics disagree" if entry["disagree"] else ""
    where = f" on {'the source ' if source else ''}{entry['data']}"
    return {
        **_card(some, dict(stage=entry["stage"], against=entry["against"])),
        **dict(on=where, word=word, tone=TONES[tone][0], sign=TONES[tone][1]),
        "small": f"{count_of(some['examples'], 'test example')}; {covers}.",
        "caption": f"Frozen features, by flax-adapt eval{disagree}",
        "also": [_describe_metric(name, one) for name, one in metrics.items()],
        "notes": leaks.list_notes(entry),
    }


def _join_words(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Returns what metrics say together, and the word whose tone it has."""
    clear = {
        word: [name for name, one in metrics.items() if one["word"] == word]
        for word in (verdict.HELPED, verdict.HURT)
    }
    parts = [f"{word} ({', '.join(names)})" for word, names in clear.items() if names]
    words = [word for word, names in clear.items() if names]
    tone = words[0] if len(words) == 1 else verdict.UNCLEAR
    return "; ".join(parts) or verdict.UNCLEAR, tone
