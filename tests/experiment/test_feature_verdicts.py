"""`eval` says of frozen features whether they got better, on the target and the source."""

import json
import types

import numpy as np
import pytest
from support import tiny

from flax_adapt import defaults, weights
from flax_adapt.base import caches, rules
from flax_adapt.base.errors import UserError
from flax_adapt.commands.measures.evaluate import evaluate
from flax_adapt.data import subset
from flax_adapt.evals import embed, verdict
from flax_adapt.experiment import interpolate, measure, pairs, recipe
from flax_adapt.experiment.measuring import answers, drawn, kept, verdicts
from flax_adapt.stage.predictions import Predictions

pytestmark = pytest.mark.usefixtures("compile_fast")
LABELS = defaults.few(10, "each_seed")


def experiment():
    """A classifier; its weights as they are; and pre-training at a rate 100 times too high."""
    test = tiny.digits(subset={**LABELS, "part": "rest"})
    known = tiny.digits(subset={**defaults.ALL, "fraction": 0.5})
    start = tiny.finetune("start", init_from="scratch", num_steps=120)
    start |= dict(data=known, eval=None, model=defaults.stage_model())
    start["optim"] = defaults.finetune_optim(lr=5e-3, warmup_steps=5)
    fields = dict(init_from="stage:start", num_steps=1)
    fields["model"] = defaults.stage_model(fresh=("decoder",))
    optim = defaults.pretrain_optim(lr=0.1)
    stages = (
        start,
        tiny.pretrain("still", **fields, optim={**optim, "lr": 0.0}),
        tiny.pretrain("wild", **{**fields, "num_steps": 20}, optim=optim),
    )
    how = dict(probe_l2=1e-2, shots=(1, 5))
    on_target = defaults.evaluate(tiny.digits(subset=LABELS), test, **how)
    # The same digits with fixed labels, as if they were another domain.
    few = {**defaults.ALL, "per_class": 15}
    again = (tiny.digits(subset=few), tiny.digits(subset={**few, "part": "rest"}))
    saves = dict(every_steps=100, keep_last=1, keep_best=0)
    more = (defaults.evaluate(*again, **{**how, "shots": ()}),)
    fields = dict(evaluate=on_target, more_evaluations=more, checkpoint=saves)
    return tiny.experiment(*stages, **fields)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("measured")
    recipe.run(experiment(), workdir, force=False)
    return workdir, measure.evaluate(experiment(), workdir)


def test_a_run_of_no_change_is_no_evidence_and_one_made_to_hurt_is_said_to(measured):
    workdir, _ = measured
    entries = verdicts.read(workdir)
    assert [(one["stage"], one["against"]) for one in entries] == [
        ("still", "start"),
        ("wild", "start"),
    ] * 2
    still, wild, still_again, wild_again = (one["metrics"] for one in entries)
    for one in [*still.values(), *still_again.values()]:
        assert (one["word"], one["difference"]) == ("no evidence either way", 0.0)
    for metrics in (wild, wild_again):
        assert metrics["knn"]["word"] == metrics["probe"]["word"] == "hurt"
        assert metrics["knn"]["mcnemar"][0]["p"] < 0.001
    assert not any(one["disagree"] for one in entries)


def test_what_was_measured_is_kept_and_what_is_lost_is_measured_again(
    measured, monkeypatch
):
    workdir, rows = measured
    passes, solved = [], []
    extract, answer = embed.extract, answers.answer

    def count(models, *arguments):
        passes.append(len(models))
        return extract(models, *arguments)

    def count_answers(*arguments):
        solved.append(1)
        return answer(*arguments)

    monkeypatch.setattr(embed, "extract", count)
    monkeypatch.setattr(answers, "answer", count_answers)
    entries = verdicts.read(workdir)
    assert measure.evaluate(experiment(), workdir) == rows
    assert (passes, solved) == ([], [])
    assert verdicts.read(workdir) == entries
    of_features, of_answers = (
        [path for path in (workdir / kept.FOLDER).iterdir() if holds(path, column)]
        for column in ("embeddings", "l2")
    )
    for damaged in (of_features[0], of_answers[0]):
        damaged.write_bytes(damaged.read_bytes()[:100])
    assert measure.evaluate(experiment(), workdir) == rows
    assert (passes, solved) == ([1], [1])


def holds(path, column):
    return column in (caches.read_arrays(path) or ())


def test_features_are_kept_for_their_weights_model_and_pooling_alone(tmp_path):
    model = types.SimpleNamespace(params={"w": np.ones(3)}, model="vit", pooling="cls")
    others = [
        types.SimpleNamespace(**{**vars(model), **change})
        for change in (
            dict(params={"w": np.ones(3)}),
            dict(params={"w": np.full(3, 2.0)}),
            dict(model="bert"),
            dict(pooling="mean"),
        )
    ]
    first, same, *changed = kept.Kept(tmp_path, [model, *others]).names
    assert first == same
    assert len({first, *changed}) == 4


def test_draws_of_labels_are_in_the_interval_and_each_is_tested_on_the_rest(measured):
    workdir, rows = measured
    assert not any("seen" in one for one in verdicts.read(workdir))
    one = verdicts.read(workdir)[1]["metrics"]
    assert one["knn"]["seeds"] == [0, 1, 2, 3, 4]
    assert "draws of labels" in one["knn"]["covers"]
    assert len(one["shot_5"]["seeds"]) == 5
    # No example is a training example of all five draws; `start` has learnt a half of them.
    learnt = subset.open_chosen(experiment().stages[0].data)
    assert one["knn"]["examples"] == 1797 - len(learnt)
    assert {"shot_1", "shot_1_std", "shot_5", "rankme"} <= set(rows[0])
    assert rows[0]["shot_5"] > rows[0]["shot_1"] > 0.1
    section = experiment().evaluate
    train, test = (drawn.open_drawn(section[name], 3) for name in ("train", "test"))
    for number in range(3):
        names = [
            {one.examples.names[i] for i in one.rows[number]} for one in (train, test)
        ]
        assert [len(some) for some in names] == [100, 1697]
        assert not names[0] & names[1]


def test_the_verdict_is_on_the_screen_and_stays_in_results_json(
    measured, capsys, monkeypatch
):
    workdir, rows = measured
    monkeypatch.setattr(measure, "evaluate", lambda *_: rows)
    evaluate(experiment(), str(workdir), near_copies=False, report=True)
    (line,) = [
        text
        for text in capsys.readouterr().out.splitlines()
        if text.startswith("wild against start") and "5-shot" in text
    ]
    assert "kNN hurt -0." in line
    assert "linear probe hurt -0." in line
    recipe.run(experiment(), workdir, force=False)
    rows = json.loads((workdir / "results.json").read_text())
    assert rows[2]["features"] == verdicts.read(workdir)[1::2]
    assert "features" not in rows[0]


def test_the_initial_model_forgets_the_source_where_features_break():
    """A source with classes is tested on its second half; without them it is left out."""
    section = experiment().evaluate
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40).astype(np.int32)
    clear = np.eye(3)[labels] + 0.1 * rng.standard_normal((120, 3))
    noise = rng.standard_normal((120, 3))
    opened = drawn.open_drawn(section.train, 1).examples
    config = experiment()
    found = []
    for embeddings in (clear, noise):
        rows = np.arange(120) % 100
        features = measure.Features(embeddings.astype(np.float32), labels, rows)
        model = measure.MeasuredModel(None, features, (), features, {})
        sets = measure.Sets(None, drawn.DrawnExamples(opened, ()), opened)
        found.append(measure._answer_source(config, section, None, model, sets))
    runs = [("init", 0), ("adapted", 0)]
    entry = verdicts.compare(runs, found, "the source", verdicts.SOURCE, is_drawn=False)
    for name in ("knn", "probe"):
        assert entry[0]["metrics"][name]["word"] == "hurt"
    (joined,) = verdicts.join_finetuned(config, entry, [])
    assert "on the source the source (forgetting): kNN hurt" in verdicts.describe(
        joined
    )


def guess(rng, share):
    """Predictions for 300 examples, of which about this share is right."""
    labels, names = np.zeros(300, np.int32), np.array([f"{i:03}" for i in range(300)])
    guesses = (rng.random(300) > share).astype(np.int32)
    return Predictions(names, labels, guesses, np.full(300, np.nan))


def test_runs_of_a_stage_are_one_verdict_whose_pairs_have_the_labels_of_their_seeds():
    rng = np.random.default_rng(0)

    def answer(share, draws):
        arms = {
            name: {d: guess(rng, share) for d in draws} for name in ("knn", "shot_5")
        }
        return verdicts.Answers(arms, 1.0)

    first, *runs = (answer(share, range(3)) for share in (0.5, 0.4, 0.7, 0.6))
    names = [("init", 0), *(("more", seed) for seed in (0, 1, 5))]
    how = ([first, *runs], "x", verdicts.TARGET)
    (entry,) = verdicts.compare(names, *how, is_drawn=True)
    draws = {0: 0, 1: 1, 5: 2}  # there is no draw 5, and the third run has the third
    sides = (
        {seed: first.arms["knn"][draw] for seed, draw in draws.items()},
        {seed: run.arms["knn"][draw]
         for run, (seed, draw) in zip(runs, draws.items(), strict=True)},
    )  # fmt: skip
    expected = verdict.compare(*sides, "accuracy")
    assert entry["stage"] == "more"
    said = entry["metrics"]["knn"]
    assert said == {**expected, "covers": said["covers"], "runs": said["runs"]}
    words = {verdict.UNCLEAR: 2, verdict.HELPED: 1}
    assert said["runs"] == words
    text = verdicts.describe({**entry, "finetuned": [], "disagree": False})
    assert f"(each run alone: 2 {verdict.UNCLEAR}, 1 helped)" in text
    assert "draws of labels and training" in entry["metrics"]["knn"]["covers"]
    # One run has a pair for each draw; a few of the same labels are no draw of all labels.
    for is_drawn, covers in (
        (True, "draws of labels"),
        (False, "from the same labels"),
    ):
        single = verdicts.compare(
            names[:2], *([first, runs[0]], *how[1:]), is_drawn=is_drawn
        )
        found = single[0]["metrics"]["shot_5"]
        assert (found["seeds"], found["covers"].endswith(covers)) == ([0, 1, 2], True)
    once = answer(0.5, [0]), answer(0.6, [0])
    alone = verdicts.compare(names[:2], once, *how[1:], is_drawn=False)[0]["metrics"]
    assert "test examples alone" in alone["knn"]["covers"]


def test_metrics_that_disagree_are_said_to_the_fine_tuned_one_included():
    labels = np.arange(200, dtype=np.int32) % 2
    names = np.array([f"{i:03}" for i in range(200)])

    def arm(share):
        guesses = np.where(np.arange(200) < share * 200, labels, 1 - labels)
        return {0: Predictions(names, labels, guesses, np.full(200, np.nan))}

    first = verdicts.Answers({"knn": arm(0.5), "probe": arm(0.9)}, 1.0)
    second = verdicts.Answers({"knn": arm(0.8), "probe": arm(0.9)}, 1.0)
    worse = verdicts.Answers({"knn": arm(0.8), "probe": arm(0.6)}, 1.0)
    stages = [tiny.finetune("a", init_from="stage:start")]
    stages.append(tiny.finetune("b", init_from="stage:more"))
    config = tiny.experiment(*stages)
    other = dict(word="hurt", difference=-0.1, low=-0.2, high=-0.05, against="a")
    tuned = {**other, "weights": ["start", "more"]}

    def disagree(answers, rows):
        runs = [("start", 0), ("more", 0)]
        entries = verdicts.compare(runs, answers, "x", verdicts.TARGET, is_drawn=False)
        (one,) = verdicts.join_finetuned(config, entries, rows)
        assert ("the metrics disagree" in verdicts.describe(one)) == one["disagree"]
        return one["disagree"]

    assert not disagree([first, second], [])
    assert disagree([first, worse], [])
    assert disagree([first, second], [{"stage": "b", "verdicts": [tuned]}])
    assert not disagree([first, second], [{"stage": "a", "verdicts": [tuned]}])
    # Another way to train is another question.
    assert not disagree([first, second], [{"stage": "b", "verdicts": [other]}])


def test_weights_in_between_are_measured_and_a_rollback_is_exported(measured):
    """a=0 is the start and a=1 the stage; of one that hurts nothing is kept."""
    workdir, rows = measured
    found, best = interpolate.run(experiment(), workdir, "wild", 3, 0.01, True)
    assert [row["a"] for row in found] == [0.0, 0.5, 1.0]
    for name in ("knn", "probe"):
        ends = [rows[0][name], rows[2][name]]
        assert [found[0][name], found[2][name]] == ends
        assert [found[0][f"{name}_source"], found[2][f"{name}_source"]] == [
            *(rows[3][name], rows[5][name])
        ]
    assert best["a"] == 0.0
    start, back = (
        rules.name_leaves(weights.from_pretrained(folder, "encoder")[1])
        for folder in (workdir / "stages/start/export", best["export"])
    )
    assert start.keys() == back.keys()
    for name, leaf in start.items():
        np.testing.assert_array_equal(back[name], leaf)
    for name, text in (("start", "began from scratch"), ("x", "no finished stage")):
        with pytest.raises(UserError, match=text):
            pairs.open_pair(experiment(), workdir, name)
