"""Did it help? The headline over all verdicts of a workdir, and their cards."""

import dataclasses

import pytest
from support import html_page, tiny_report

from flax_adapt.base import logs
from flax_adapt.report import page, workdir
from flax_adapt.report.verdicts import cards, claims

HELPED, HURT, UNCLEAR = "helped", "hurt", "no evidence either way"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    tiny_report.write(folder)
    return workdir.read(folder)


def watched(word, difference, **changes):
    ends = dict(difference=difference, low=difference - 0.1, high=difference + 0.1)
    judged = dict(word=word, hurt=word == HURT, units=100, **ends)
    found = dict(metric="target/knn", verdict=judged, rolled_back=False, best_step=2)
    return {**found, "stopped": False, "last_step": 4, "kept_step": 2, **changes}


def frozen(stage, words, **changes):
    some = dict(difference=0.1, low=0.0, high=0.2, examples=9, covers="covers all")
    metrics = {name: dict(some, word=word) for name, word in words.items()}
    where = dict(stage=stage, against="pretrained", domain="target", data="x:y")
    disagree = {HELPED, HURT} <= {*words.values()}
    return {**where, "metrics": metrics, "disagree": disagree, **changes}


def with_rows(run, **changes):
    """The run with more fields in the rows of stages; other rows have no verdict."""
    rows = [
        {
            **{k: v for k, v in row.items() if "verdict" not in k},
            **changes[row["stage"]],
        }
        for row in run.rows
        if row["stage"] in changes
    ]
    return dataclasses.replace(run, rows=rows)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (dict(a=HELPED, b=HURT), ("a helped; b hurt", "open")),
        (dict(a=HURT), ("a hurt", "bad")),
        (dict(a=UNCLEAR), ("There is no evidence either way", "open")),
        (dict(a=HELPED, b=HELPED, c=HELPED), ("a, b and c helped", "good")),
        (dict(a=HURT, b=UNCLEAR), (f"a hurt; b {UNCLEAR}", "bad")),
        (dict.fromkeys("abcdefgh", HURT), ("a, b, c, d, e, f and 2 more hurt", "bad")),
    ],
)
def test_the_headline_says_every_word_and_is_good_only_if_nothing_hurt(words, expected):
    rows = [
        {"stage": name, "verdict": dict(word=word, difference=1.0)}
        for name, word in words.items()
    ]
    found = claims.headline(claims.of_stages(rows))
    assert (found["text"], found["tone"]) == expected
    # Where a stage was trained as another one from other weights, it is about these.
    judged = dict(word=HELPED, difference=1.0, weights=["old", "new"])
    found = claims.of_stages([*rows, {"stage": "z", "verdict": judged}])
    assert claims.headline(found)["text"] == "z helped"


def test_a_stage_that_was_rolled_back_is_the_answer_where_nothing_was_fine_tuned(run):
    found = watched(HURT, -0.25, rolled_back=True, kept_step=0)
    rolled = with_rows(run, further={"watch": [found]})
    shown = cards.find_verdicts(rolled)
    text = "further (target/knn, watched) hurt; further was rolled back"
    assert shown["headline"]["text"].startswith(text)
    assert shown["headline"]["tone"] == "bad"
    (card,) = shown["cards"]
    assert (card["word"], card["number"]["difference"]) == (HURT, "-0.2500")
    assert card["notes"] == ["rolled back: its result is the initial weights."]
    found = html_page.Page(page.render("x", {"verdict": shown}))
    assert found.problems == []
    assert "the best state against the first. 95 % interval -0.35" in found.words
    assert "-0.3500 to -0.1500 over 100 examples" in found.words
    rolled.rows[0]["watch"][0]["verdict"]["step"] = (
        4  # no state helped, the last one hurt
    )
    (card,) = cards.find_verdicts(rolled)["cards"]
    assert card["small"].startswith("Watched as it trained, the last state")
    assert cards.find_verdicts(with_rows(run, further={})) is None


def test_frozen_features_that_hurt_are_in_the_headline(run):
    """The arm that was fine-tuned from these weights helped: that they disagree is said."""
    entry = frozen("further", dict(knn=HURT, probe=UNCLEAR, shot_5=UNCLEAR))
    entry["metrics"]["shot_5"]["covers"] = "covers some"
    entry["seen"] = [dict(by=["arm"], examples=2, of=9)]
    rows = [{**row, "features": [{**entry, "stage": row["stage"]}]} for row in run.rows]
    shown = cards.find_verdicts(dataclasses.replace(run, rows=rows))
    assert shown["headline"] == {
        "text": "arm helped; pretrain (kNN) and further (kNN) hurt; the verdicts on "
        "further disagree",
        "tone": "open",
    }
    card = shown["cards"][1]
    assert card["small"].endswith(
        "; kNN, linear probe: covers all; 5-shot: covers some."
    )
    assert card["notes"][0].startswith("2 of the 9 test examples are training examples")
    # Those of stages that saw labels are under "Target and source".
    assert [card["stage"] for card in shown["cards"]] == ["arm", "pretrain", "further"]
    assert html_page.Page(page.render("x", {"verdict": shown})).problems == []


def test_metrics_that_disagree_are_open_and_forgetting_is_no_disagreement(run):
    entries = [
        frozen("further", dict(knn=HELPED, shot_5=HURT)),
        frozen("pretrain", dict(knn=HELPED)),
        frozen("pretrain", dict(knn=HURT), domain="source"),
        frozen("distill/seed_0", dict(knn=UNCLEAR)),
        frozen("distill/seed_1", dict(knn=UNCLEAR)),
    ]
    said = claims.of_features(entries)
    assert claims.headline(said)["text"] == (
        "further (kNN) and pretrain (kNN) helped; further (5-shot) and pretrain (kNN on "
        f"the source) hurt; distill (frozen features) {UNCLEAR}; the verdicts on further "
        "disagree"
    )
    several = with_rows(run, further={"features": entries[:1] * 10})
    shown = cards.find_verdicts(several)
    assert (len(shown["cards"]), shown["left_out"]) == (8, 2)
    card = shown["cards"][0]
    assert (card["word"], card["tone"]) == ("helped (kNN); hurt (5-shot)", "open")


def test_metrics_of_a_stage_that_disagree_are_in_the_headline(run):
    rows = logs.plain(run.rows)
    for row in rows:
        if "verdict" in row:
            row["verdict"]["disagree"] = True
    shown = cards.find_verdicts(dataclasses.replace(run, rows=rows))
    assert shown["headline"]["text"] == "arm helped; the metrics of arm disagree"
