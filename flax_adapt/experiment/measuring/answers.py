"""What frozen features say about each test example: kNN, linear probe, few shots."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.evals import few_shot, knn, probe, sparsity
from flax_adapt.evals.features import Features
from flax_adapt.stage.predictions import Predictions


class LabelledSets(NamedTuple):
    """Features of one draw of labels and of its test examples, with the names of these.

    A draw without test examples (a model has learnt all of them) has no answers.
    """

    train: Features
    test: Features
    names: np.ndarray


class Answers(NamedTuple):
    """Predictions by metric and draw of labels, and the l2 of the first draw's probe."""

    arms: dict[str, dict[int, Predictions]]
    l2: float

    def accuracies(self) -> dict[str, float]:
        """Returns the mean accuracy over draws by metric; of few shots, the spread, too."""
        found: dict[str, float] = {}
        for metric, arm in self.arms.items():
            values = [float(np.mean(one.guesses == one.labels)) for one in arm.values()]
            found[metric] = float(np.mean(values))
            if metric == "probe":
                found["probe_l2"] = self.l2
            if metric.startswith("shot_") and len(values) > 1:
                found[f"{metric}_std"] = float(np.std(values, ddof=1))
        return found


def answer(section: Any, seed: int, drawn: Sequence[LabelledSets]) -> Answers:
    """Returns the predictions by kNN, linear probe and few shots.

    section: of an evaluation. seed: of the probe's folds. Raises UserError as the measures
    do.
    """
    arms: dict[str, dict[int, Predictions]] = {"knn": {}, "probe": {}}
    l2s = []
    for number, one in enumerate(drawn):
        if not len(one.names):
            continue
        neighbours = dict(k=section.knn_k, temperature=section.knn_temperature)
        guesses = knn.predict(
            one.train.embeddings, one.train.labels, one.test.embeddings, **neighbours
        )
        arms["knn"][number] = _without_losses(one, guesses)
        linear = fit_probe(section, seed, one)
        columns = (one.names, one.test.labels, linear.guesses)
        losses = linear.losses.astype(np.float32)
        arms["probe"][number] = Predictions(*columns, losses)
        l2s.append(linear.l2)
    for shots in section.shots:
        if arm := _answer_few(section, shots, drawn):
            arms[f"shot_{shots}"] = arm
    return Answers(arms, l2s[0])


def fit_probe(section: Any, seed: int, sets: LabelledSets) -> probe.ProbeAnswers:
    """Returns the answers of the linear probe of an evaluation section."""
    how: dict[str, Any] = dict(l2=section.probe_l2, folds=section.probe_folds)
    return probe.predict(*_arrays(sets), **how, seed=seed)


def measure_wide(section: Any, seed: int, sets: LabelledSets, l2: float) -> dict:
    """Returns sparsity and the accuracy of probes of wide features (S3).

    l2: of the linear probe.
    """
    train, test = (
        rows._replace(embeddings=sparsity.binarise(rows.embeddings))
        for rows in (sets.train, sets.test)
    )
    binary = fit_probe(section, seed, LabelledSets(train, test, sets.names))
    mlp = probe.mlp_accuracy(
        *_arrays(sets),
        hidden=section.wide.mlp_hidden,
        l2=l2,
        max_iterations=section.wide.mlp_max_iterations,
        seed=seed,
    )
    return {
        "zeros": sparsity.zeros(sets.test.embeddings),
        "binarised": float(np.mean(binary.guesses == sets.test.labels)),
        "binarised_l2": binary.l2,
        "mlp": mlp,
    }


def _answer_few(
    section: Any, shots: int, drawn: Sequence[LabelledSets]
) -> dict[int, Predictions]:
    """Returns the answers of `shots` labels a class by draw; {} where a class has fewer."""
    arm: dict[int, Predictions] = {}
    known = set()
    for draw in range(section.shot_draws):
        number = draw % len(drawn)
        one = drawn[number]
        if not len(one.names):
            continue
        rows = few_shot.draw(one.train.labels, shots, draw)
        if rows is None:
            return {}
        # Ten of ten labels are the same ones in every draw.
        if (number, rows.tobytes()) in known:
            continue
        known.add((number, rows.tobytes()))
        some = (one.train.embeddings[rows], one.train.labels[rows])
        guesses = few_shot.predict(*some, one.test.embeddings)
        arm[draw] = _without_losses(one, guesses)
    return arm


def _without_losses(sets: LabelledSets, guesses: np.ndarray) -> Predictions:
    losses = np.full(len(guesses), np.nan, np.float32)
    return Predictions(sets.names, sets.test.labels, guesses, losses)


def _arrays(sets: LabelledSets) -> list[Any]:
    both = (sets.train, sets.test)
    return [array for rows in both for array in (rows.embeddings, rows.labels)]
