"""The transfer matrix by hand, and of an experiment: cells where they belong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.evals import drift, transfer
from flax_adapt.experiment import transfer as reports

# Two tasks: the start, after the first, after the second.
BY_HAND = np.array([[0.5, 0.4], [0.8, 0.5], [0.7, 0.9]])


def test_figures_by_hand():
    found = transfer.figures(BY_HAND)
    averages = dict(average_learnt=0.8, average_all=0.8)
    starts = dict(start_learnt=0.45, start_all=0.45)
    changes = dict(forgetting=0.1, backward=-0.1, forward=0.1)
    assert found == pytest.approx({**averages, **starts, **changes})


def test_the_average_over_learnt_domains_leaves_out_one_that_was_never_learnt():
    """The row of the issue: .8, .6 and a never-learnt .1 are .7 learnt, .5 in all."""
    found = transfer.figures(
        np.array([[0.2, 0.4, 0.3], [0.9, 0.1, 0.1], [0.8, 0.6, 0.1]])
    )
    assert found["average_learnt"] == pytest.approx(0.7)
    assert found["average_all"] == pytest.approx(0.5)
    assert found["start_learnt"] == pytest.approx(0.3)
    assert found["start_all"] == pytest.approx(0.3)


def test_a_domain_that_is_never_learnt_counts_in_the_averages_of_all_alone():
    more = np.concatenate([BY_HAND, [[0.2], [0.3], [0.6]]], axis=1)
    found = transfer.figures(more)
    assert found["average_all"] == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    assert found["start_all"] == pytest.approx((0.5 + 0.4 + 0.2) / 3)
    for name in ("average_learnt", "start_learnt"):
        assert found[name] == pytest.approx(transfer.figures(BY_HAND)[name])
    for name in ("forgetting", "backward", "forward"):
        assert found[name] == pytest.approx(transfer.figures(BY_HAND)[name])


def test_forgetting_is_from_the_best_row_before_the_last():
    """Of the first domain 0.9 after the second task, of the second 0.6, then 0.7."""
    matrix = np.array(
        [[1.0, 1.0, 0], [0.8, 0.1, 0], [0.9, 0.6, 0], [0.5, 0.7, 0]], np.float64
    )
    found = transfer.figures(matrix)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
def test_forgetting_is_never_less_than_what_was_lost_since_learning(matrix):
    found = transfer.figures(matrix)
    assert found["forgetting"] >= -found["backward"] - 1e-12


def test_one_task_has_nothing_to_forget():
    averages = {"average_learnt", "average_all", "start_learnt", "start_all"}
    assert set(transfer.figures(np.zeros((2, 3)))) == averages


@pytest.mark.parametrize("shape", [(1, 2), (4, 2)])
def test_a_matrix_that_is_none_is_refused(shape):
    with pytest.raises(UserError, match="must have a row for the start and for each"):
        transfer.figures(np.zeros(shape))


SECTION = dict(
    domains=("a", "b"),
    sources=("folder:a", "folder:b"),
    rows=("pretrained", "task_1", "task_2"),
    others=("joint",),
    finetuned=tuple(
        tuple(f"finetune_{row}_on_{domain}" for domain in "ab")
        for row in ("pretrained", "task_1", "task_2", "joint")
    ),
)


def experiment(tmp_path):
    """A config, a workdir with results, and what was measured of two seeds."""
    rows = [*BY_HAND.tolist(), [0.6, 0.6]]
    cells = zip(SECTION["finetuned"], rows, strict=True)
    results = [
        dict(stage=name, mean=value)
        for names, values in cells
        for name, value in zip(names, values, strict=True)
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    measured = [
        dict(stage=stage, data=f"folder:{domain}", probe=value + seed, knn=value - seed)
        for seed in (-0.1, 0.1)
        for row, values in zip((*SECTION["rows"], "joint"), rows, strict=True)
        for domain, value in zip("ab", values, strict=True)
        for stage in [f"{row}/seed_{seed}" if row != "pretrained" else row]
    ]
    return ConfigDict(dict(transfer=SECTION)), measured


def test_cells_are_means_over_seeds_and_where_they_belong(tmp_path):
    config, measured = experiment(tmp_path)
    whole = reports.report(config, tmp_path, measured)
    assert set(whole) == {"finetune", "probe", "knn"}
    for found in whole.values():
        np.testing.assert_allclose(found["matrix"][:3], BY_HAND)
        np.testing.assert_allclose(found["matrix"][3], [0.6, 0.6])
        assert found["figures"]["average_learnt"] == pytest.approx(
            0.8
        )  # joint is no task
    assert json.loads((tmp_path / "transfer.json").read_text()) == whole
    text = reports.format_text(whole)
    assert "forgetting 0.1000, backward -0.1000, forward 0.1000" in text
    assert text.count("joint") == 3


def test_a_cell_that_was_not_run_is_named(tmp_path):
    config, measured = experiment(tmp_path)
    with pytest.raises(UserError, match="lacks task_2 on folder:b; run the config"):
        reports.report(config, tmp_path, [
            row for row in measured if not row["stage"].startswith("task_2")
            or row["data"] != "folder:b"
        ])  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())[1:]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="lacks finetune_pretrained_on_a; run the conf"):
        reports.report(config, tmp_path, measured)


def test_the_distance_of_weights_by_hand():
    """(3, 4) -> (3, 7): 3 / 5; what has another shape does not count."""
    start = {"a": {"kernel": np.array([3.0, 4.0])}, "b": np.ones(2)}
    moved = {"a": {"kernel": np.array([3.0, 7.0])}, "b": np.ones(3), "c": np.ones(1)}
    assert drift.weight_distance(moved, start) == pytest.approx(0.6)
    assert drift.weight_distance(start, start) == 0
    with pytest.raises(UserError, match="share no parameters"):
        drift.weight_distance({"b": np.ones(3)}, start)
