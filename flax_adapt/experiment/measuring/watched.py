"""How a stage measures the metric that it watches, see `stage.watching`.

    target/knn         accuracy of kNN by frozen features on the labelled examples of
                       `evaluate.train`, each of which the others classify
    target/probe       accuracy of a linear probe on them, by cross-validation
    pool/rankme        RankMe of the features of the stage's own data, the mean of GROUPS
                       groups of examples
    held_out/loss      the stage's loss on a part of its data that it is not trained on
    held_out/accuracy  the accuracy of a classifier on that part

Test examples have no say. Labels are those of the run's seed. A verdict takes the difference
of the best and the initial state by example, or by group of examples for RankMe and the loss,
which are no means over examples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Meter as Sums
from flax_adapt.evals import drift, embed, intervals, knn, probe, verdict
from flax_adapt.evals.features import Features, extract
from flax_adapt.experiment.measuring.folds import number_folds
from flax_adapt.models import batch_stats
from flax_adapt.stage import draws, loop, training
from flax_adapt.stage import stage as stages
from flax_adapt.stage.evaluating import Evaluation
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.watching import section as watching
from flax_adapt.stage.watching.measurements import Instruments, Meter
from flax_adapt.surgery import adaptors
from flax_adapt.train import linear, sharding
from flax_adapt.train.preemption import Preemption
from flax_adapt.train.state import TrainState

GROUPS, FOLDS = 16, 5


def train(stage: Stage, preemption: Preemption) -> dict[str, Any]:
    """Trains a stage, see `loop.train_and_evaluate`; it may watch a metric."""
    needed = () if stage.config.watch is None else (INSTRUMENTS,)
    return loop.train_and_evaluate(stage, preemption, *needed)


def judge(before_N: np.ndarray, after_N: np.ndarray) -> dict[str, Any]:
    """Returns the verdict on paired numbers, of which higher ones are better.

    The fields are word, hurt (whether the word says so), difference, low, high and units, the
    number of pairs.
    """
    if len(before_N) != len(after_N):
        raise ValueError(f"{len(before_N)} and {len(after_N)} numbers are no pairs")
    found = intervals.blended((after_N - before_N)[None], verdict.LEVEL)
    word = verdict.name_interval(found)
    mean, low, high = (float(value) for value in found)
    ends = dict(difference=mean, low=low, high=high)
    return {"word": word, "hurt": word == verdict.HURT, **ends, "units": len(before_N)}


class _Encoder:
    """Computes features of the same examples for any state of a stage."""

    def __init__(self, stage: Stage, section: Any, mesh: Mesh):
        _check_mesh(stage, mesh)
        self.stage, self.mesh = stage, mesh
        self.examples = data.open_examples(section, "")
        self.rows = _choose_rows(len(self.examples), stage.config.watch.examples)
        config = models.encoder_config(stage.architecture)
        self.model = stages.build_for_task(stage, config, "encoder", 0)
        self.parts = tuple(weights.shapes(self.model))
        pooling = _choose_pooling(stage)
        self.encode = embed.make_encoder(self.model, pooling, self.examples, mesh)

    def compute(self, state: TrainState) -> Features:
        merged = training.merge_lora(self.stage, state.evaluated)
        whole = batch_stats.join(merged, state.statistics)
        params = adaptors.drop({name: whole[name] for name in self.parts})
        config = self.stage.experiment.evaluate
        size = sharding.whole_batch_size(config.batch_size, self.mesh)
        share = sharding.share_of_process(self.mesh)
        batches = data.eval_batches(self.examples, size, *share, self.rows)
        found = extract(lambda batch: self.encode(params, batch, 0), batches)
        if not np.isfinite(found.embeddings).all():
            return found._replace(embeddings=np.full_like(found.embeddings, np.nan))
        return found


def _check_mesh(stage: Stage, mesh: Mesh) -> None:
    if jax.process_count() > 1 and mesh.shape["tensor"] > 1:
        raise UserError(
            f"stage {stage.label}: watch.metric={stage.config.watch.metric!r} needs "
            "mesh.tensor=1 with several processes; 'held_out/loss' does not"
        )


def _choose_rows(count: int, most: int) -> np.ndarray:
    """Returns int64 [m], `most` of `count` rows at most, the same ones always."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _choose_pooling(stage: Stage) -> str:
    """Returns the pooling of features, as `flax-adapt eval` has it."""
    asked, start = stage.experiment.evaluate.pooling, stage.config.init_from
    if asked != weights.AUTO:
        return str(asked)
    if start == "scratch":
        own = str(stage.config.model.pooling)
        return "cls" if own == "pooler" else own
    path = stages.resolve_field(stage, "init_from")
    known = stages.known_options_of(stage, start)
    return weights.resolve_pooling(asked, path, **known)


def _open_labelled(stage: Stage, mesh: Mesh) -> Callable[[TrainState], Features]:
    """Returns what computes the features of the labelled examples of `evaluate.train`."""
    section = draws.draw_labels(stage.experiment.evaluate.train, stage.run_seed)
    encoder, metric = _Encoder(stage, section, mesh), stage.config.watch.metric
    labels = encoder.examples.labels[encoder.rows]
    if labels.dtype.kind == "f" or len(np.unique(labels[labels >= 0])) < 2:
        raise UserError(
            f"stage {stage.label}: watch.metric={metric!r} needs examples of two classes "
            f"in evaluate.train, which {section.source} has not; without labels there are "
            "'pool/rankme' and 'held_out/loss'"
        )
    encoder.rows = encoder.rows[labels >= 0]
    return encoder.compute


def _open_knn(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Meter:
    compute, section = _open_labelled(stage, mesh), stage.experiment.evaluate
    how = dict(k=section.knn_k, temperature=section.knn_temperature)

    def measure(state: TrainState) -> np.ndarray:
        found = compute(state)
        if np.isnan(found.embeddings).any():
            return found.embeddings[:, 0]
        guesses = knn.predict_left_out(found.embeddings, found.labels, **how)
        return np.asarray(guesses == found.labels, np.float64)

    return measure


def _open_probe(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Meter:
    compute, section = _open_labelled(stage, mesh), stage.experiment.evaluate
    l2 = section.probe_l2 or linear.PENALTY

    def measure(state: TrainState) -> np.ndarray:
        found = compute(state)
        if np.isnan(found.embeddings).any():
            return found.embeddings[:, 0]
        return cross_validate(found.embeddings, found.labels, l2)

    return measure


def cross_validate(
    features_nD: np.ndarray, labels_n: np.ndarray, l2: float
) -> np.ndarray:
    """Returns 1.0 for each example that a linear probe of the other folds has right, else 0.0.

    An example that is alone in its class is left out.
    """
    folds = number_folds(labels_n, FOLDS)
    parts = []
    for fold in range(FOLDS):
        test, rest = folds == fold, folds != fold
        if not np.any(test):
            continue
        sets = (features_nD[rest], labels_n[rest], features_nD[test], labels_n[test])
        answers = probe.predict(*sets, l2=l2, folds=FOLDS, seed=0)
        parts.append(answers.guesses == labels_n[test])
    return np.concatenate(parts).astype(np.float64)


def _open_rankme(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Meter:
    encoder = _Encoder(stage, _take_whole_texts(stage.config.data), mesh)
    groups = _split(len(encoder.rows), 2 * GROUPS, stage)

    def measure(state: TrainState) -> np.ndarray:
        rows = encoder.compute(state).embeddings
        if np.isnan(rows).any():
            return rows[:, 0]
        return np.array([drift.rankme(rows[i::groups]) for i in range(groups)])

    return measure


def _take_whole_texts(section: Any) -> Any:
    """Returns a data section with one text in a row; images stay as they are."""
    if section.modality != "text":
        return section
    return draws.change_fields(section, layout="padded")


def _split(count: int, least: int, stage: Stage) -> int:
    """Returns the number of groups; raises UserError for fewer than `least` examples."""
    if count < least:
        raise UserError(
            f"stage {stage.label}: watch.metric={stage.config.watch.metric!r} needs "
            f"{least} examples or more, and there are {count}"
        )
    return min(GROUPS, count)


def _open_held_out(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Meter:
    metric = stage.config.watch.metric.partition("/")[2]
    fields = dict(data=watching.take_held_out(stage), metric=metric, every_steps=0)
    fields |= dict(batch_size=stage.config.batch_size, mode="max")
    tested = stage._replace(config=draws.change_fields(stage.config, eval=fields))
    evaluation = Evaluation(tested, model, examples, mesh)
    count = len(evaluation.examples)
    groups = np.array_split(np.arange(count), _split(count, 2, stage))
    largest = min(stage.config.batch_size, len(groups[0]))
    evaluation.batch_size = sharding.whole_batch_size(largest, mesh)

    def of_group(state: TrainState, rows: np.ndarray) -> float:
        sums = Sums()
        for metrics in evaluation.measure_batches(state, rows):
            sums.add({metric: metrics[metric]})
        return sums.values()[metric]

    return lambda state: np.array([of_group(state, rows) for rows in groups])


_OPEN: dict[str, Callable[..., Meter]] = {
    "target/knn": _open_knn,
    "target/probe": _open_probe,
    "pool/rankme": _open_rankme,
    "held_out/loss": _open_held_out,
    "held_out/accuracy": _open_held_out,
}


def _open(stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh) -> Meter:
    return _OPEN[stage.config.watch.metric](stage, model, examples, mesh)


INSTRUMENTS = Instruments(_open, judge)


def describe(row: dict[str, Any]) -> list[str]:
    """Returns a line for each run of a stage that watched a metric; row: of results.json."""
    return [
        _describe(row["stage"], seed, found)
        for seed, found in zip(row["seeds"], row.get("watch", ()), strict=False)
        if found is not None
    ]


def _describe(name: str, seed: int, found: dict[str, Any]) -> str:
    compared = found["verdict"]
    said = "no verdict, as the initial state was not measured"
    if compared:
        ends = " to ".join(f"{compared[end]:+.4f}" for end in ("low", "high"))
        said = f"{compared['word']} {compared['difference']:+.4f}, 95 % interval {ends}"
    if found["rolled_back"]:
        result = "rolled back: its result is the initial weights"
    else:
        result = f"its result is the best state, of step {found['best_step']}"
    where = f"{name} (seed {seed}) against its start by {found['metric']}"
    stop = f"; stopped at step {found['last_step']}" if found["stopped"] else ""
    return f"{where}: {said}; {result}{stop}"


def shorten(found: Sequence[dict[str, Any] | None]) -> str:
    """Returns what the runs of a stage kept, as a cell of a table."""
    kept = [
        "initial weights" if one["rolled_back"] else f"step {one['kept_step']}"
        for one in found
        if one is not None
    ]
    return ", ".join(dict.fromkeys(kept))
