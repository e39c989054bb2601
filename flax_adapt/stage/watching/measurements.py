"""What a stage that watches a metric has measured, and what follows from it.

Features are measured by a package that comes later (`experiment.measuring.watched`), hence
`Instruments`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data
from flax_adapt.base.errors import NonFiniteError
from flax_adapt.defaults.sections import METRICS, split_metrics
from flax_adapt.stage.stage import Stage
from flax_adapt.train.state import TrainState

# A measurement: state -> {metric: float64 [N], numbers whose mean it is}. N are the same
# examples (batches, groups) in each measurement.
Meter = Callable[[TrainState], dict[str, np.ndarray]]


class Instruments(NamedTuple):
    """How metrics are measured and compared.

    open: of a stage, its model, its training examples and its mesh. judge: (numbers before,
    numbers after; higher is better) -> the verdict as JSON values, with `word`, `helped` and
    `hurt`.
    """

    open: Callable[[Stage, nn.Module, data.Examples, Mesh], Meter]
    judge: Callable[[np.ndarray, np.ndarray], dict[str, Any]]


class Watch:
    """The measurements of a stage that watches a metric, and maybe others beside it.

    start: numbers of the initial state; [] until it is measured. history: [step, metric] of
    each measurement of a trained state. best, last: step and numbers of the best one and of
    the last; {} before the first. others: {metric: [step, value] of each measurement} of
    those that decide nothing, the initial state at step 0; a value that is not finite is
    None.
    """

    def __init__(self, section: Any, instruments: Instruments, meter: Meter):
        self._section, self._instruments, self._meter = section, instruments, meter
        self.metric, *others = split_metrics(section.metric)
        self._sign = 1 if METRICS[self.metric] == "max" else -1
        self.others: dict[str, list[Any]] = {metric: [] for metric in others}
        self.start: list[float] = []
        self.history: list[list[float]] = []
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    @property
    def best_step(self) -> int | None:
        """The step of the best state; None before the first measurement."""
        return self.best["step"] if self.best else None

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        patience = self._section.patience
        later = [step for step, _ in self.history if step > self.best["step"]]
        return 0 < patience <= len(later)

    def is_due(self, step: int, is_last: bool) -> bool:
        """Returns whether the state after `step` is to be measured, and is not yet."""
        if step == 0:
            return not self.start
        every = self._section.every_steps
        is_known = bool(self.history) and self.history[-1][0] >= step
        return not is_known and (is_last or (every > 0 and step % every == 0))

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Measures a state, and returns {column of metrics.jsonl: metric}.

        Raises NonFiniteError where the metric that decides is not finite; of the others such
        a value is left out.
        """
        measured = self._meter(state)
        numbers = np.asarray(measured[self.metric], np.float64)
        value = float(numbers.mean())
        if not math.isfinite(value):
            raise NonFiniteError(
                f"watch: {self.metric} at step {step} is not finite: lower optim.lr or set "
                "optim.clip_norm"
            )
        beside = {metric: _finite_mean(measured[metric]) for metric in self.others}
        for metric, other in beside.items():
            self.others[metric].append([step, other])
        if step == 0:
            self.start = numbers.tolist()
        else:
            self.history.append([step, value])
            self.last = {"step": step, "numbers": numbers.tolist()}
            if self._is_better(value):
                self.best = self.last
        known = {name: one for name, one in beside.items() if one is not None}
        return {
            _column(name): one for name, one in {self.metric: value, **known}.items()
        }

    def _is_better(self, value: float) -> bool:
        if not self.best:
            return True
        best = float(np.mean(self.best["numbers"]))
        return self._sign * (value - best) > self._section.min_delta

    def forget_best(self) -> None:
        """Makes the next measured state the best; for a checkpoint that is damaged."""
        self.best, self.last, self.history = {}, {}, []
        for metric, found in self.others.items():
            self.others[metric] = [one for one in found if one[0] == 0]

    def judge(self) -> dict[str, Any]:
        """Returns the verdict on the stage, with `step`; {} where the start is not known.

        It is about the best state. Where there is no evidence that this helped, but that
        the last one hurt, it is about the last: what looks best among many may be noise.
        """
        if not (self.start and self.best):
            return {}
        best, last = self._compare(self.best), self._compare(self.last or self.best)
        return last if last["hurt"] and not best["helped"] else best

    def _compare(self, state: dict[str, Any]) -> dict[str, Any]:
        before, after = (
            self._sign * np.asarray(numbers)
            for numbers in (self.start, state["numbers"])
        )
        return {**self._instruments.judge(before, after), "step": state["step"]}

    def describe(self) -> dict[str, Any]:
        """Returns what result.json says: measurements, the step that is kept, the verdict.

        kept_step: of the result; 0 after a rollback. stopped: whether patience ran out.
        others: where there are some, their values in the initial and in the best state.
        """
        verdict = self.judge()
        hurt = bool(verdict) and verdict["hurt"]
        rolled_back = hurt and self._section.on_hurt == "rollback"
        return {
            "metric": self.metric,
            "mode": METRICS[self.metric],
            "start": _mean(self.start),
            "best": _mean(self.best["numbers"]),
            "best_step": self.best["step"],
            "last_step": self.history[-1][0],
            "history": self.history,
            "stopped": self.is_over,
            "verdict": verdict,
            "rolled_back": rolled_back,
            "kept_step": 0 if rolled_back else self.best["step"],
            **({"others": self._describe_others()} if self.others else {}),
        }

    def _describe_others(self) -> dict[str, Any]:
        found = {}
        for metric, measured in self.others.items():
            values = dict(measured)
            start, best = values.get(0), values.get(self.best["step"])
            known = {"mode": METRICS[metric], "start": start, "best": best}
            found[metric] = {**known, "history": [one for one in measured if one[0]]}
        return found

    def to_plain(self) -> dict[str, Any]:
        """Returns the measurements as JSON values, which `read_plain` reads exactly."""
        return {
            "start": list(self.start),
            "history": [list(one) for one in self.history],
            "best": dict(self.best),
            "last": dict(self.last),
            **({"others": self._copy_others()} if self.others else {}),
        }

    def _copy_others(self) -> dict[str, Any]:
        return {name: [list(one) for one in x] for name, x in self.others.items()}

    def read_plain(self, stored: dict[str, Any]) -> None:
        """Goes on from the measurements of a checkpoint; {}: it has none."""
        if stored:
            self.start, self.history = stored["start"], stored["history"]
            self.best, self.last = stored["best"], stored.get("last", {})
            known = stored.get("others", {})
            self.others = {name: known.get(name, []) for name in self.others}


def _column(metric: str) -> str:
    """Returns the name of a metric in metrics.jsonl."""
    return f"watch_{metric.replace('/', '_')}"


def _finite_mean(numbers: np.ndarray) -> float | None:
    value = float(np.asarray(numbers, np.float64).mean())
    return value if math.isfinite(value) else None


def _mean(numbers: Sequence[float]) -> float | None:
    return float(np.mean(numbers)) if numbers else None
