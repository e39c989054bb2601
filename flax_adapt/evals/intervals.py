"""Confidence intervals of a paired difference of two arms, and McNemar's test.

The differences are a table of seeds by test examples: d[s, i] is what the second arm has
more than the first on example i with seed s, such as 1 where it alone is right and -1
where the first alone is. Both arms of a seed have the same labels, so rows are pairs. Of
the true mean two things are samples: the seeds (draws of labels, and training) and the
test examples.

METHODS has the ways to make an interval. benchmarks/coverage.py measures how often each
covers the true mean; `difference` uses the one that keeps to 95 %. A table without
variance has an interval of its own (`unvaried`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# A standard error below this share of the largest difference is rounding.
_ROUNDING = 1e-12


class Interval(NamedTuple):
    """A mean, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


class Components(NamedTuple):
    """Variances of the mean of a table, by their source (two-way random effects).

    seeds: what one seed has in common, with the seeds' share of the residual. examples:
    what one example has in common beyond the residual. df_seeds, df_examples: degrees of
    freedom.
    """

    mean: float
    seeds: float
    examples: float
    df_seeds: int
    df_examples: int


def components(differences_SN: np.ndarray) -> Components:
    """Returns the mean of float [S, N], and what its variance is made of.

    NaN: this seed was not tested on this example. The mean is that of the seeds' means.
    With the mean squares of a two-way analysis of variance, MS_seed / (S N) estimates the
    variance by the seeds and the residual, and (MS_example - MS_residual) / (S N), at
    least 0, that by the examples. With one seed, `seeds` is 0 and `examples` is all that
    can be estimated: the variance over the examples. Raises ValueError for less than one
    seed or two examples.
    """
    num_seeds, num_examples = differences_SN.shape
    if num_seeds < 1 or num_examples < 2:
        raise ValueError("an interval needs one seed and two examples, or more")
    present_SN = ~np.isnan(differences_SN)
    filled_SN = np.where(present_SN, differences_SN, 0.0)
    per_seed_S = present_SN.sum(axis=1)
    seed_S = filled_SN.sum(axis=1) / per_seed_S
    mean = seed_S.mean()
    # The example's share of the mean: its column, with the seeds where it is missing at
    # the mean of the seed.
    centred_SN = np.where(present_SN, differences_SN - seed_S[:, None], 0.0)
    weighted_SN = centred_SN * (num_examples / per_seed_S)[:, None]
    example_N = weighted_SN.mean(axis=0)
    examples = example_N.var(ddof=1) / num_examples
    if num_seeds == 1:
        return Components(mean, 0.0, examples, 0, num_examples - 1)
    seeds = seed_S.var(ddof=1) / num_seeds
    residual_SN = np.where(present_SN, weighted_SN - example_N, 0.0)
    degrees = (num_seeds - 1) * (num_examples - 1)
    residual = (residual_SN**2).sum() / degrees / (num_seeds * num_examples)
    return Components(
        mean, seeds, max(examples - residual, 0.0), num_seeds - 1, num_examples - 1
    )


def satterthwaite(differences_SN: np.ndarray, level: float) -> Interval:
    """Returns the t-interval with the degrees of freedom of Satterthwaite (1946)."""
    from scipy import stats

    found = components(differences_SN)
    variance = found.seeds + found.examples
    if variance == 0:
        return Interval(found.mean, found.mean, found.mean)
    parts = ((found.seeds, found.df_seeds), (found.examples, found.df_examples))
    degrees = variance**2 / sum(part**2 / df for part, df in parts if df)
    half = stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(variance)
    return Interval(found.mean, found.mean - half, found.mean + half)


def two_terms(differences_SN: np.ndarray, level: float) -> Interval:
    """Returns the interval whose half width has a term of the seeds and one of the examples.

    half^2 = t_{S-1}^2 var_seeds + t_{N-1}^2 var_examples, after Howe (1974): each term has
    the quantile of its own degrees of freedom.
    """
    from scipy import stats

    found = components(differences_SN)
    parts = ((found.seeds, found.df_seeds), (found.examples, found.df_examples))
    tail = (1 + level) / 2
    squares = [stats.t.ppf(tail, df) ** 2 * part for part, df in parts if df]
    half = np.sqrt(sum(squares))
    return Interval(found.mean, found.mean - half, found.mean + half)


def blended(differences_SN: np.ndarray, level: float) -> Interval:
    """Returns the interval whose quantile goes from that of the examples to that of the seeds.

    With r, the seeds' share of the variance V, half^2 = V (z^2 + (t^2 - z^2) r^1.5), t and z
    the quantiles of S - 1 and N - 1 degrees of freedom. It is exact where the seeds have no
    noise and where they have all of it; between them the power (ours; 1 is `two_terms`)
    takes back what that covers too much with 3 seeds. Where V is 0 it is `unvaried`.
    """
    from scipy import stats

    found = components(differences_SN)
    variance, tail = found.seeds + found.examples, (1 + level) / 2
    if variance <= (_ROUNDING * np.nanmax(np.abs(differences_SN))) ** 2:
        return unvaried(differences_SN, level)
    square = stats.t.ppf(tail, found.df_examples) ** 2
    if found.seeds > 0:
        more = stats.t.ppf(tail, found.df_seeds) ** 2 - square
        square += more * (found.seeds / variance) ** 1.5
    half = np.sqrt(variance * square)
    return Interval(found.mean, found.mean - half, found.mean + half)


def unvaried(differences_SN: np.ndarray, level: float) -> Interval:
    """Returns the interval of a table whose variance by seeds and examples is estimated as 0.

    That is no proof of a certain mean: three examples may be alike by chance.

    Where all differences are equal, c, the share of such examples is p or more, with
    p = ((1 - level) / 2)^(1 / N) (Clopper and Pearson 1934). The others count -c each, so
    that the mean lies between c (2 p - 1) and c. With c = 1 or -1, of accuracies, this
    leaves 0 out where `mcnemar` gives a p-value below 1 - level, at 95 % from 6 examples
    on. With c = 0 it is 0 to 0.

    In other tables the residual hides both parts. Then all squares together, by the
    residual's degrees of freedom (S - 1) (N - 1), are the variance of one number; that is
    rather too much (ours).
    """
    from scipy import stats

    known, tail = differences_SN[~np.isnan(differences_SN)], (1 - level) / 2
    num_seeds, num_examples = differences_SN.shape
    mean = float(known.mean())
    if num_seeds == 1 or np.ptp(known) <= _ROUNDING * np.abs(known).max():
        end = mean - 2 * (1 - tail ** (1 / num_examples)) * mean
        return Interval(mean, min(end, mean), max(end, mean))
    degrees = (num_seeds - 1) * (num_examples - 1)
    variance = np.sum((known - mean) ** 2) / degrees / len(known)
    half = stats.t.isf(tail, degrees) * np.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def seeds_alone(differences_SN: np.ndarray, level: float) -> Interval:
    """Returns the usual t-interval over the means of the seeds; the examples count as fixed."""
    from scipy import stats

    found = components(differences_SN)
    half = stats.t.ppf((1 + level) / 2, max(found.df_seeds, 1)) * np.sqrt(found.seeds)
    return Interval(found.mean, found.mean - half, found.mean + half)


def bootstrap(
    differences_SN: np.ndarray, level: float, *, resamples: int = 400, seed: int = 0
) -> Interval:
    """Returns the percentile interval of the paired hierarchical bootstrap.

    Seeds are drawn with replacement, and examples, the same for all seeds. With few seeds
    it is too narrow by the factor sqrt((S - 1) / S). The table must have no NaN.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_examples = differences_SN.shape
    seeds_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), resamples)
    counts_RN = rng.poisson(1.0, (resamples, num_examples))
    counts_RN = counts_RN / counts_RN.sum(axis=1, keepdims=True)
    means_R = np.einsum(
        "rs,rs->r", seeds_RS / num_seeds, counts_RN @ differences_SN.T.astype(float)
    )
    tails = 100 * (1 - level) / 2
    low, high = np.percentile(means_R, [tails, 100 - tails])
    return Interval(float(differences_SN.mean()), float(low), float(high))


METHODS: dict[str, Callable[[np.ndarray, float], Interval]] = {
    "satterthwaite": satterthwaite,
    "two_terms": two_terms,
    "blended": blended,
    "bootstrap": bootstrap,
    "seeds_alone": seeds_alone,
}


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the p-value of McNemar's test in its exact form, two-sided.

    only_first, only_second: numbers of examples that one arm alone has right. Were both
    arms equal, each of these examples would be a toss of a coin. 3 and 9: 0.146.
    """
    from scipy import stats

    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue)
