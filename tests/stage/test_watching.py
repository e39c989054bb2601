"""A stage that watches a metric: the state that it keeps, when it stops, and what it holds out.

What is measured is written down here, by step, so that the best step is known.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from support import tiny
from support.runner import assert_identical, tensors

from flax_adapt import defaults, weights
from flax_adapt.base.errors import NonFiniteError
from flax_adapt.data import source, subset
from flax_adapt.experiment.measuring import watched
from flax_adapt.stage import loop
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.watching import section as watching
from flax_adapt.stage.watching.measurements import Instruments, Watch
from flax_adapt.train.preemption import Preemption

pytestmark = pytest.mark.usefixtures("compile_fast")
BEST_AT_2 = {0: 0.5, 1: 0.6, 2: 0.9, 3: 0.7, 4: 0.85, 5: 0.2, 6: 0.2, 7: 0.95, 8: 0.1}
HURTS = {step: 0.9 if step == 0 else 0.1 + step / 100 for step in range(9)}


def instruments(values, seen=None):
    """Measures a state as `values` says for its step; `seen` gets the parameters by step.

    RankMe gets better with each step.
    """

    def measure(state):
        step = int(state.step)
        if seen is not None:
            seen[step] = jax.device_get(state.params)
        numbers = values[step] + np.array([0.001, -0.001] * 8)
        return {"target/knn": numbers, "pool/rankme": np.array([step + 1.0])}

    return Instruments(lambda *_: measure, watched.judge)


def run(workdir, values, seen=None, metric="target/knn", **changes):
    """Trains one stage that is measured after every step, and saved after every second."""
    section = defaults.watch(metric, **{"every_steps": 1, **changes})
    stage = tiny.pretrain(num_steps=8, watch=section)
    config = tiny.experiment(stage, model={**tiny.MODEL, "depth": 1})
    with Preemption() as preemption:
        one = Stage(config, config.stages[0], 0, workdir)
        return loop.train_and_evaluate(one, preemption, instruments(values, seen))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir, seen = tmp_path_factory.mktemp("straight"), {}
    return workdir, run(workdir, BEST_AT_2, seen), seen


def exported(workdir):
    return weights.from_pretrained(workdir / "stages/pretrain/export", "mae")[1]


def test_training_stops_when_patience_runs_out_and_the_best_state_is_the_result(
    straight,
):
    workdir, result, seen = straight
    found = result["watch"]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert (found["best_step"], found["kept_step"], found["last_step"]) == (2, 2, 5)
    assert (found["stopped"], found["rolled_back"]) == (True, False)
    assert found["verdict"]["word"] == "helped"
    assert found["verdict"]["difference"] == pytest.approx(0.4)
    assert_identical(exported(workdir), seen[2])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "watch_target_knn" in row]
    measured = [(row["step"], row["watch_target_knn"]) for row in rows]
    assert measured == [(s, pytest.approx(BEST_AT_2[s])) for s in range(6)]


class StoppedError(RuntimeError):
    """The run breaks off here."""


def break_off(workdir, monkeypatch, breaks, **how):
    """Trains until each of the steps, and leaves the run there."""
    advance = loop.Run.advance
    for last in breaks:

        def spy(run, step, last=last):
            if step == last:
                raise StoppedError
            advance(run, step)

        monkeypatch.setattr(loop.Run, "advance", spy)
        with pytest.raises(StoppedError):
            run(workdir, BEST_AT_2, **how)
    monkeypatch.undo()


@pytest.mark.parametrize("breaks", [(2,), (3, 5), (4, 5)])
def test_a_run_that_broke_off_keeps_the_same_state_bit_for_bit(
    straight, tmp_path, monkeypatch, breaks
):
    """Before the best state, after it, and before patience runs out."""
    break_off(tmp_path, monkeypatch, breaks)
    found = run(tmp_path, BEST_AT_2)
    assert found["watch"] == straight[1]["watch"]
    for ours, theirs in zip(
        tensors(tmp_path, "pretrain"), tensors(straight[0], "pretrain"), strict=True
    ):
        assert_identical(ours, theirs)
    kept = {int(path.name) for path in checkpoints(tmp_path)}
    assert 2 in kept


TOGETHER = "target/knn+pool/rankme"


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    return workdir, run(workdir, BEST_AT_2, metric=TOGETHER)


def test_the_first_metric_decides_and_the_others_change_nothing(straight, together):
    """RankMe rises to the end: were it to decide, step 8 would be kept."""
    found = dict(together[1]["watch"])
    others = found.pop("others")
    assert found == straight[1]["watch"]
    known = dict(mode="max", start=1.0, best=3.0)
    history = [[step, step + 1.0] for step in range(1, 6)]
    assert others == {"pool/rankme": {**known, "history": history}}
    for ours, theirs in zip(
        *(tensors(one[0], "pretrain") for one in (together, straight)), strict=True
    ):
        assert_identical(ours, theirs)


def test_the_others_are_written_at_the_same_steps(together):
    lines = (together[0] / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "watch_target_knn" in row]
    measured = [(row["step"], row["watch_pool_rankme"]) for row in rows]
    assert measured == [(step, step + 1.0) for step in range(6)]


@pytest.mark.parametrize("breaks", [(2,), (4, 5)])
def test_a_run_that_broke_off_has_the_same_history_of_every_metric(
    together, tmp_path, monkeypatch, breaks
):
    break_off(tmp_path, monkeypatch, breaks, metric=TOGETHER)
    found = run(tmp_path, BEST_AT_2, metric=TOGETHER)
    assert found["watch"] == together[1]["watch"]
    for ours, theirs in zip(
        *(tensors(one, "pretrain") for one in (tmp_path, together[0])), strict=True
    ):
        assert_identical(ours, theirs)


def checkpoints(workdir):
    return [*(workdir / "stages/pretrain/checkpoints").iterdir()]


def test_an_export_that_was_deleted_is_made_again_from_the_best_state(
    straight, tmp_path
):
    shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "stages/pretrain/export")
    run(tmp_path, BEST_AT_2)
    assert_identical(exported(tmp_path), exported(straight[0]))


def test_a_later_best_replaces_the_first_where_patience_allows(straight, tmp_path):
    seen = {}
    found = run(tmp_path, BEST_AT_2, seen, patience=0)["watch"]
    assert (found["best_step"], found["last_step"], found["stopped"]) == (7, 8, False)
    assert_identical(exported(tmp_path), seen[7])
    assert_identical(seen[2], straight[2][2])


def test_a_stage_that_hurt_has_its_initial_weights_as_its_result(tmp_path):
    for number, how in enumerate(("rollback", "warn")):
        workdir, seen = tmp_path / how, {}
        found = run(workdir, HURTS, seen, on_hurt=how, patience=0)["watch"]
        assert found["verdict"]["word"] == "hurt"
        assert (found["best_step"], found["rolled_back"]) == (8, how == "rollback")
        assert_identical(exported(workdir), seen[(0, 8)[number]])


def make_watch(numbers, **changes):
    """A Watch that has measured `numbers` at steps 0, 1, ..."""
    fields = {"metric": "target/knn", **changes}
    section = tiny.experiment(tiny.pretrain(watch=defaults.watch(**fields)))
    meters = Instruments(lambda *_: None, watched.judge)
    name = fields["metric"]
    found = Watch(section.stages[0].watch, meters, lambda x: {name: np.atleast_1d(x)})
    for step, number in enumerate(numbers):
        found.measure(step, np.asarray(number))
    return found


def test_the_smallest_loss_is_the_best_and_a_smaller_gain_than_min_delta_is_none():
    falling = [3.0, 2.0, 1.95, 1.5, 1.6]
    assert make_watch(falling, metric="held_out/loss").best_step == 3
    found = make_watch(falling, metric="held_out/loss", min_delta=0.1, patience=1)
    assert found.best_step == 3
    assert make_watch(falling[:3], min_delta=0.1, metric="held_out/loss").best_step == 1
    assert make_watch(falling).best_step == 1


def test_a_measurement_that_is_not_finite_breaks_the_run_off():
    with pytest.raises(NonFiniteError, match="target/knn at step 1 is not finite"):
        make_watch([1.0, np.nan])


def test_another_metric_that_is_not_finite_stops_nothing_and_has_no_number():
    section = tiny.experiment(tiny.pretrain(watch=defaults.watch(TOGETHER)))
    meters = Instruments(lambda *_: None, watched.judge)
    numbers = {"target/knn": np.ones(2), "pool/rankme": np.array([np.nan])}
    found = Watch(section.stages[0].watch, meters, lambda state: numbers)
    assert found.measure(1, None) == {"watch_target_knn": 1.0}
    again = Watch(section.stages[0].watch, meters, lambda state: numbers)
    again.read_plain(json.loads(json.dumps(found.to_plain())))
    assert again.others == found.others == {"pool/rankme": [[1, None]]}
    again.read_plain({"start": [1.0], "history": [], "best": {}})  # one metric, so far
    assert again.others == {"pool/rankme": []}


def test_equal_numbers_are_no_evidence_and_a_loss_that_rose_hurt():
    assert make_watch([[1.0, 0.0]] * 2).judge()["word"] == "no evidence either way"
    rose = make_watch([[1.0, 1.1, 0.9], [2.0, 2.2, 1.9]], metric="held_out/loss")
    assert rose.judge()["word"] == "hurt"
    assert rose.judge()["difference"] == pytest.approx(-1.0333, abs=1e-3)


def test_training_that_hurt_is_judged_by_its_last_state_unless_one_helped():
    """An early state that looks a little better does not hide what came after it."""
    start = np.linspace(0.5, 0.9, 8)
    luck, wild = start + 0.1 * (start > 0.8), start - 0.3
    found = make_watch([start, luck, wild, wild], on_hurt="rollback").describe()
    assert (found["verdict"]["word"], found["verdict"]["step"]) == ("hurt", 3)
    assert (found["best_step"], found["kept_step"], found["rolled_back"]) == (
        1,
        0,
        True,
    )
    helped = make_watch([start, start + 0.1, wild], on_hurt="rollback").describe()
    assert (helped["verdict"]["word"], helped["verdict"]["step"]) == ("helped", 1)
    assert (helped["kept_step"], helped["rolled_back"]) == (1, False)


def test_held_out_examples_are_a_tenth_of_each_class_that_training_never_sees():
    for labels in (tiny.digits(), tiny.digits(subset=tiny.FEW)):
        stage = tiny.pretrain(data=labels, watch=defaults.watch("held_out/loss"))
        config = tiny.experiment(stage)
        one = Stage(config, config.stages[0], 0, None)
        without = watching.hold_out(one)
        names = [
            {*subset.select(source.open_source(x), x.subset).names}
            for x in (
                one.config.data,
                without.config.data,
                watching.take_held_out(without),
            )
        ]
        assert names[1] | names[2] == names[0]
        assert not names[1] & names[2]
        tenth = 10 if labels["subset"]["per_class"] else len(names[0]) / 10
        assert len(names[2]) == pytest.approx(tenth, rel=0.05)
        assert watching.take_held_out(one) == watching.take_held_out(without)
