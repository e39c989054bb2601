"""Replay of images: what is drawn, which batch holds what, processes, resume, errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support import tiny_replay
from support.tiny_replay import ORDERS

from flax_adapt import data
from flax_adapt.data import examples as examples_module


@pytest.fixture(scope="module")
def opened():
    """name of ORDERS -> examples: 20 of the target, 10 of the source (20 if rising)."""
    return {name: tiny_replay.digits(**changes) for name, changes in ORDERS.items()}


@pytest.mark.parametrize("batch_size", [5, 7, 30, 64])
def test_an_epoch_of_uniform_is_every_target_and_every_drawn_example_once(
    opened, batch_size
):
    examples = opened["uniform"]
    batches = tiny_replay.take(examples, 90 // batch_size + 1, batch_size)
    seen = np.concatenate([batch["index"] for batch in batches])
    for epoch in (seen[:30], seen[30:60], seen[60:90]):
        assert sorted(epoch) == list(range(30))
    assert len({tuple(epoch) for epoch in (seen[:30], seen[30:60])}) == 2


def names(examples, rows):
    return [examples.names[row] for row in rows]


@pytest.mark.parametrize("name", [n for n in ORDERS if n != "uniform"])
def test_a_pass_of_a_domain_is_exactly_its_examples(opened, name):
    """Of the source those that were stored, whatever the batches hold of it."""
    examples = opened[name]
    stored = examples.record()["names"]
    batches = tiny_replay.take(examples, 60)
    for domain, wanted in ((0, list(examples.target.names)), (1, stored)):
        found = names(examples, tiny_replay.rows(batches, domain))
        assert len(found) >= 2 * len(wanted)
        first, second = found[: len(wanted)], found[len(wanted) : 2 * len(wanted)]
        assert sorted(first) == sorted(second) == sorted(wanted)
        assert first != second


@pytest.mark.parametrize(
    ("ratio", "batch_size", "of_source"),
    [(0.5, 6, 2), (0.5, 7, 2), (0.25, 64, 13), (1.0, 2, 1), (4.0, 10, 8)],
)
def test_every_stratified_batch_has_the_promised_counts(ratio, batch_size, of_source):
    examples = tiny_replay.digits(ratio, sampling="stratified")
    batches = tiny_replay.take(examples, 25, batch_size)
    assert set(tiny_replay.counts(batches)) == {of_source}


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        # r = 0, 1/4, 1/2, 3/4, 1, 1; of 8 rows 8 r / (1 + r).
        ("linear", [0, 2, 3, 3, 4, 4]),
        # r = 0, 0.146, 1/2, 0.854, 1, 1.
        ("cosine", [0, 1, 3, 4, 4, 4]),
    ],
)
def test_the_schedule_gives_hand_computed_counts(schedule, wanted):
    changes = dict(sampling="stratified", final_ratio=1.0, schedule=schedule)
    examples = tiny_replay.digits(0.0, **changes)
    assert len(examples.source) == 20  # enough for the largest ratio
    assert tiny_replay.counts(tiny_replay.take(examples, 6, 8)) == wanted


def test_uniform_on_a_schedule_draws_as_often_as_the_share_says():
    """Binomial: 200 batches of 50 at 1/2 after 100 that rise from none."""
    changes = dict(sampling="uniform", final_ratio=1.0, schedule="linear")
    examples = tiny_replay.digits(0.0, num_steps=100, **changes)
    order = examples.order(50, 3)
    counts = np.array([np.sum(order[k] >= 20) for k in range(300)])
    ratio = np.minimum(np.arange(300) / 100, 1.0)
    share = ratio / (1 + ratio)
    spread = np.sqrt(50 * share * (1 - share))
    assert counts[0] == 0
    assert np.all(np.abs(counts - 50 * share) <= 4.5 * spread)
    assert np.std(counts[100:]) == pytest.approx(spread[-1], rel=0.2)


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_a_function_of_batch_number_and_seed(opened, name):
    examples = opened[name]
    in_turn = [batch["index"] for batch in tiny_replay.take(examples, 9, seed=4)]
    order = examples.order(6, 4)
    at_random = {k: order[k] for k in (7, 2, 8, 0, 1, 6, 3, 5, 4)}
    assert order[0].dtype == np.int64
    np.testing.assert_array_equal(in_turn, [at_random[k] for k in range(9)])


@pytest.mark.parametrize("name", ORDERS)
def test_all_of_the_order_depends_on_the_seed(opened, name):
    """Each domain's rows, and where in the batches they stand."""
    orders = [
        np.stack([opened[name].order(6, seed)[k] for k in range(9)])
        for seed in range(4)
    ]
    for part in (
        lambda order: order[order < 20],
        lambda order: order[order >= 20],
        lambda order: order < 20,
    ):
        assert len({part(order).tobytes() for order in orders}) == len(orders)


@pytest.mark.parametrize("name", ORDERS)
def test_set_state_continues_exactly(opened, name):
    iterator = data.make_batches(opened[name], 6, 0, 0, 1)
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    following = [next(iterator) for _ in range(5)]
    # Opened anew, as a run that resumes does: nothing is remembered.
    again = data.make_batches(tiny_replay.digits(**ORDERS[name]), 6, 0, 0, 1)
    again.set_state(state)
    tiny_replay.assert_same([next(again) for _ in range(5)], following)


def test_source_rows_stand_anywhere_in_the_batch(opened):
    """So every process gets rows of both domains."""
    batches = tiny_replay.take(opened["stratified"], 40)
    share = np.mean([batch["domain"] for batch in batches], axis=0)
    assert np.all((share > 0.05) & (share < 0.7))


def test_a_row_is_what_its_own_domain_has(opened):
    examples = opened["stratified"]
    for batch in tiny_replay.take(examples, 5):
        assert batch["domain"].dtype == np.int32
        np.testing.assert_array_equal(batch["domain"], batch["index"] >= 20)
        for i, pixels, label in zip(
            *(batch[name] for name in ("index", "image", "label")), strict=True
        ):
            part, row = (examples.source, i - 20) if i >= 20 else (examples.target, i)
            alone = part.batch(np.array([row]), np.array([0]))
            np.testing.assert_array_equal(pixels, alone["image"][0])
            assert label == alone["label"][0] == examples.labels[i]
            assert examples.names[i] == part.names[row]


def test_padding_is_of_the_target_and_weighs_nothing(opened):
    last = list(data.eval_batches(opened["uniform"], 16, 0, 1))[-1]
    np.testing.assert_array_equal(last["index"], [*range(16, 30), -1, -1])
    np.testing.assert_array_equal(last["domain"], [0] * 4 + [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(last["weight"], [1] * 14 + [0] * 2)
    np.testing.assert_array_equal(last["label"][-2:], -1)
    assert not last["image"][-2:].any()


@pytest.mark.parametrize("name", ORDERS)
def test_four_processes_see_together_what_one_sees(opened, name):
    whole = tiny_replay.take(opened[name], 8, 12)
    parts = [tiny_replay.take(opened[name], 8, 12, 0, p, 4) for p in range(4)]
    tiny_replay.assert_same(tiny_replay.joined(parts), whole)


# A process of its own: what it draws depends on nothing that one process remembers.
WORKER = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from support import tiny_replay
process, folder = int(sys.argv[1]), sys.argv[2]
for name, changes in tiny_replay.ORDERS.items():
    examples = tiny_replay.digits(**changes)
    batches = tiny_replay.take(examples, 20, 12, 5, process, 2)
    fields = {{f"{{i}}/{{k}}": v for i, b in enumerate(batches) for k, v in b.items()}}
    np.savez(f"{{folder}}/{{name}}_{{process}}", stored=examples.record()["names"], **fields)
"""


def test_two_real_processes_read_together_what_one_reads(opened, tmp_path, request):
    code = WORKER.format(tests=str(request.path.parent.parent))
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(p), str(tmp_path)])
        for p in range(2)
    ]
    assert [each.wait(120) for each in started] == [0] * 2
    for name, examples in opened.items():
        parts = [np.load(tmp_path / f"{name}_{p}.npz") for p in range(2)]
        whole = tiny_replay.take(examples, 20, 12, 5)
        for part in parts:
            assert part["stored"].tolist() == examples.record()["names"]
        for i, batch in enumerate(whole):
            for field, value in batch.items():
                pieces = [part[f"{i}/{field}"] for part in parts]
                np.testing.assert_array_equal(np.concatenate(pieces), value)


def test_each_image_is_decoded_once(monkeypatch):
    examples = tiny_replay.digits(sampling="stratified")
    calls, decode = [], examples_module.image.decode
    monkeypatch.setattr(
        examples_module.image, "decode", lambda *a: calls.append(a) or decode(*a)
    )
    for k in range(20):
        examples.batch(examples.order(6, 0)[k], np.arange(6))
    assert len(calls) == 30
