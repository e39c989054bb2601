"""Why self-distillation regularises: ridge rounds, then fine-tuning, in a linear model.

Run     python benchmarks/self_distill_theory.py --plot=benchmarks/results/self_distill_theory.png
Prints  JSON: for several ridges, after 0, 1, ... rounds, the distance to the initial
        weights of the model that a round gives ("distilled") and of that model fine-tuned
        ("fine_tuned"), and how far the latter is from the initial weights fine-tuned
        ("apart"); draws the plot.
Source  S1, after the analysis of Lee et al. 2023: w_t = A w_{t-1} with
        A = (Phi' Phi + lambda I)^-1 Phi' Phi. The sizes are ours.

Weights are counted from the initial ones, so that their length is the distance, and the
ridge is what holds a student to where it starts. In the basis of the singular vectors of
Phi a round multiplies each part of w by s^2 / (s^2 + lambda): what the data does not see
(s = 0) is gone after the first round, the rest decays. Fine-tuning adds the same to all
of them, whatever the round, so that "apart" falls as "distilled" does; the distance of the
fine-tuned model itself has the labels in it: it falls where w's unseen part goes, at the
first round, and then changes little.
"""

import json

import numpy as np
from absl import app, flags

_PLOT = flags.DEFINE_string("plot", "", "the .png to draw; '': none")
ROUNDS, EXAMPLES, WIDTH, STEPS, DRAWS = 6, 20, 40, 5, 200
RIDGES = (1.0, 10.0, 50.0)


def distil(features, weights, ridge, rounds):
    """Returns w_0 .. w_rounds, [rounds + 1, d]; features [n, d]."""
    gram = features.T @ features
    found = [weights]
    for _ in range(rounds):
        found.append(
            np.linalg.solve(gram + ridge * np.eye(len(gram)), gram @ found[-1])
        )
    return np.stack(found)


def fine_tune(features, targets, weights, rate, steps):
    """Gradient descent on |Phi w - y|^2 / 2 from `weights`."""
    for _ in range(steps):
        weights = weights - rate * features.T @ (features @ weights - targets)
    return weights


def largest_rate(features):
    """The rate up to which every direction shrinks."""
    return 1 / np.linalg.norm(features, 2) ** 2


def distances(seed, ridge):
    """{what: by round}, see above."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((EXAMPLES, WIDTH))
    start, truth = rng.standard_normal((2, WIDTH))
    rounds = distil(features, start, ridge, ROUNDS)
    settings = (largest_rate(features), STEPS)
    *tuned, of_initial = (
        fine_tune(features, features @ truth, weights, *settings)
        for weights in (*rounds, np.zeros(WIDTH))
    )
    found = dict(distilled=rounds, fine_tuned=tuned, apart=tuned - of_initial)
    return {name: np.linalg.norm(rows, axis=1) for name, rows in found.items()}


def measure():
    """{ridge: {what: the mean over draws, by round}}"""
    found = {}
    for ridge in RIDGES:
        draws = [distances(seed, ridge) for seed in range(DRAWS)]
        found[ridge] = {
            name: np.mean([draw[name] for draw in draws], axis=0).tolist()
            for name in draws[0]
        }
    return found


def draw(found, path):
    from matplotlib import pyplot

    titles = {
        "distilled": "distance to the initial weights",
        "apart": f"fine-tuned, {STEPS} steps: distance to the\ninitial weights fine-tuned",
        "fine_tuned": f"fine-tuned, {STEPS} steps: distance to the\ninitial weights",
    }
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.5), sharey=True)
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for ridge, curves in found.items():
            axes.plot(curves[name], marker="o", markersize=3, label=f"ridge {ridge:g}")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("rounds of self-distillation")
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(_):
    found = measure()
    print(json.dumps(found))
    if _PLOT.value:
        draw(found, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
