"""Means and their doubt, whether readers agree, and strengths from wins.

One bootstrap for everything: it draws clusters with replacement, each with all its observations, since
observations of one cluster (a prompt, a seed) are not independent. Agreement: Cohen (1960), Krippendorff
(2004). Strengths: Bradley and Terry (1952). Suffixes: U clusters, C columns, R resamples, M players.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean, its 95 % interval (None for fewer than two clusters), and the number of clusters."""

    mean: float | None
    interval: list[float] | None
    n: int


def mean(values) -> float | None:
    """Mean of what is not None; None where nothing is left."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def finite(x: float) -> float | None:
    """x, or None for NaN and infinity, which JSON cannot hold."""
    return x if math.isfinite(x) else None


def running_mean(values: list[float], window: int) -> list[float]:
    """Each value's mean with up to window - 1 values before it."""
    parts = (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


# ---- the bootstrap -----------------------------------------------------------------------------------------


def resample(n: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each of n clusters is drawn [resamples, n]."""
    return np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)


def bootstrap(sums_UC, counts_UC, resamples: int | None = None, seed: int = 0) -> np.ndarray:
    """Means per column over all observations [1 + R, C]; row 0 is the sample itself. NaN: an empty draw.

    sums_UC, counts_UC: sum and number of a cluster's observations per column."""
    clusters = len(sums_UC)
    draws_RU = np.vstack([np.ones((1, clusters)), resample(clusters, resamples or RESAMPLES, seed)])
    with np.errstate(invalid="ignore"):
        return (draws_RU @ sums_UC) / (draws_RU @ counts_UC)


def interval(drawn, n: int = 2) -> list[float] | None:
    """The 95 % percentile interval of what is finite; None for fewer than two clusters."""
    drawn = np.asarray(drawn)[np.isfinite(drawn)]
    return [float(edge) for edge in np.percentile(drawn, [2.5, 97.5])] if n > 1 and len(drawn) else None


def by_cluster(values: dict[str, list[float]], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean over clusters of each cluster's mean. Where all clusters agree the interval has no width."""
    means_U1 = np.array([[np.mean(v)] for v in values.values() if v])
    if not len(means_U1):
        return Estimate(None, None, 0)
    drawn = bootstrap(means_U1, np.ones_like(means_U1), resamples, seed)[:, 0]
    return Estimate(float(drawn[0]), interval(drawn[1:], len(means_U1)), len(means_U1))


def by_column(points, columns, steps: int, seed: int = 0) -> dict[str, Estimate]:
    """{column: estimate, "slope": estimate} of (cluster, x, value) triples.

    columns: (label, above, up to) ranges of x, which may overlap. The slope is that of least squares through
    the means of the first `steps` columns against 0, 1, 2 ..."""
    labels = [*(label for label, _, _ in columns), "slope"]
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(cluster for cluster, _, _ in points))}
    if not places:
        return {label: Estimate(None, None, 0) for label in labels}
    sums_UC, counts_UC = np.zeros((2, len(places), len(columns)))
    for cluster, x, value in points:
        for c, (_, low, high) in enumerate(columns):
            if low < x <= high:
                sums_UC[places[cluster], c] += value
                counts_UC[places[cluster], c] += 1
    means_RC = bootstrap(sums_UC, counts_UC, seed=seed)
    used = np.flatnonzero(counts_UC.any(0)[:steps])
    x = used - used.mean()
    slope_R = means_RC[:, used] @ x / (x @ x) if len(used) > 1 else np.full(len(means_RC), np.nan)
    clusters_C = (counts_UC > 0).sum(0)
    poorest = clusters_C[used].min(initial=len(places))  # a slope is no surer than its poorest column
    found = {}
    for label, drawn_R, n in zip(labels, [*means_RC.T, slope_R], [*clusters_C, poorest]):
        known = math.isfinite(drawn_R[0])
        found[label] = Estimate(
            finite(float(drawn_R[0])), interval(drawn_R[1:], n) if known else None, int(n)
        )
    return found


# ---- agreement and signs -----------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of a split at least this uneven, ties left out beforehand; 1 without any."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)


def cohen(first: list, second: list) -> float | None:
    """Cohen's kappa of two annotators' labels for the same items; None where one label is all there is."""
    if not first:
        return None
    n = len(first)
    left, right = Counter(first), Counter(second)
    agreed = sum(a == b for a, b in zip(first, second)) / n
    chance = sum(left[label] * right[label] for label in left) / n**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def krippendorff(units: list[list], interval: bool = False) -> float | None:
    """Krippendorff's alpha: each unit is the list of its values, whoever gave them; units with one value are
    left out. Nominal by default; interval=True takes squared differences. None where no values differ."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]

    def apart(counts: Counter) -> float:  # sum over ordered pairs of values
        total = 0
        for a, x in counts.items():
            for b, y in counts.items():
                total += x * y * ((a - b) ** 2 if interval else a != b)
        return total

    expected = apart(Counter(values))
    if not expected:
        return None
    observed = sum(apart(Counter(unit)) / (len(unit) - 1) for unit in units)
    return 1 - (len(values) - 1) * observed / expected


# ---- strengths from wins -----------------------------------------------------------------------------------


def bradley_terry(wins_MM: np.ndarray, prior: float = 0.5, steps: int = 10_000) -> np.ndarray:
    """Log strengths [M], mean 0, from wins[i, j] = how often i beat j, ties as half a win each.

    prior: wins that every pair is given both ways, so that a player that always won has a finite strength."""
    wins_MM = wins_MM + prior * (1 - np.eye(len(wins_MM)))
    games_MM, p_M = wins_MM + wins_MM.T, np.ones(len(wins_MM))
    for _ in range(steps):  # minorise and maximise: monotone, no step size
        new_M = wins_MM.sum(1) / (games_MM / (p_M[:, None] + p_M[None])).sum(1)
        new_M /= np.exp(np.log(new_M).mean())
        done, p_M = np.abs(np.log(new_M / p_M)).max() < 1e-10, new_M
        if done:
            break
    return np.log(p_M)


def elo(strengths: np.ndarray) -> np.ndarray:
    """Log strengths on Elo's scale, 1000 for the mean."""
    return 1000 + 400 / math.log(10) * strengths
