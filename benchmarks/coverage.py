"""How often the interval of a verdict covers the truth, in simulated experiments.

Run     python benchmarks/coverage.py [--trials=500]          (about 2 minutes of one core)
Expect  benchmarks/results/coverage.md has the table: the share of the trials in which an
        interval of 95 % covers the true difference of two arms, by number of seeds, of
        test examples, and with or without noise of the labels. Of one hundred cells of a
        method at exactly 95 %, 500 trials put about 96 between 93 and 97 %.

A trial: two arms, S seeds, N test examples. Example i is answered rightly by arm a with
seed s where the sum of normal variables is above 0: the arm's level, the difficulty of the
example, what the arm makes of the example, the draw of labels (common to both arms of a
seed), what the arm makes of the draw and of training, and a remainder. The true accuracy
of an arm, over all examples, draws and trainings, is then known: Phi(level / deviation).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from scipy import stats

from flax_adapt.evals import intervals

_TRIALS = flags.DEFINE_integer("trials", 500, "experiments of each cell")
SEEDS, EXAMPLES = (3, 5, 10), (300, 2000)
LEVELS = (0.9, 1.2)  # of the two arms
DIFFICULTY, TASTE, REST = 1.0, 0.4, 0.5  # deviations: example, example x arm, remainder
NOISE = {"with": (0.2, 0.12), "without": (0.0, 0.0)}  # draw of labels, draw x arm


class Cell(NamedTuple):
    """A simulated setting: number of seeds and of examples, and a key of NOISE."""

    seeds: int
    examples: int
    noise: str


def simulate(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """Returns the differences int [S, N] of one experiment."""
    shared, own = NOISE[cell.noise]
    difficulty_N = DIFFICULTY * rng.standard_normal(cell.examples)
    draw_S1 = shared * rng.standard_normal((cell.seeds, 1))
    correct = []
    for level in LEVELS:
        taste_N = TASTE * rng.standard_normal(cell.examples)
        arm_S1 = own * rng.standard_normal((cell.seeds, 1))
        rest_SN = REST * rng.standard_normal((cell.seeds, cell.examples), np.float32)
        correct.append(level + difficulty_N + taste_N + draw_S1 + arm_S1 + rest_SN > 0)
    return correct[1].astype(np.float64) - correct[0]


def truth(noise: str) -> float:
    """Returns the true difference of the accuracies of the two arms."""
    deviation = np.sqrt(sum(x**2 for x in (DIFFICULTY, TASTE, REST, *NOISE[noise])))
    first, second = (stats.norm.cdf(level / deviation) for level in LEVELS)
    return float(second - first)


def coverage(
    cell: Cell, methods: dict[str, Callable[..., Any]], trials: int
) -> dict[str, tuple[float, float]]:
    """Returns {method: (share of trials that cover the truth, mean width)}."""
    rng = np.random.default_rng([cell.seeds, cell.examples, cell.noise == "with"])
    true, found = truth(cell.noise), {name: [] for name in methods}
    for _ in range(trials):
        differences_SN = simulate(cell, rng)
        for name, method in methods.items():
            found[name].append(method(differences_SN, 0.95))
    return {
        name: (
            float(np.mean([one.low <= true <= one.high for one in some])),
            float(np.mean([one.high - one.low for one in some])),
        )
        for name, some in found.items()
    }


def cells() -> Iterator[Cell]:
    """Yields every setting of the table."""
    for noise in NOISE:
        for examples in EXAMPLES:
            yield from (Cell(seeds, examples, noise) for seeds in SEEDS)


def main(_: Any) -> None:
    names = list(intervals.METHODS)
    print(f"seeds  examples  label noise  {'  '.join(f'{n:>18}' for n in names)}")
    for cell in cells():
        found = coverage(cell, intervals.METHODS, _TRIALS.value)
        shown = [
            f"{100 * share:6.1f} % ({width:.3f})" for share, width in found.values()
        ]
        row = "  ".join(f"{one:>18}" for one in shown)
        print(f"{cell.seeds:5}  {cell.examples:8}  {cell.noise:>11}  {row}", flush=True)


if __name__ == "__main__":
    app.run(main)
