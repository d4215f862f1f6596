"""Means and their doubt, ranks and agreement. Each is checked against its definition in the tests."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import numpy as np

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t for 1 to 9 freedoms


def mean(values) -> float | None:
    """Mean of what is not None; None where nothing is left."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def student(values: list[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval (Student's t); None for a single value."""
    average, n = statistics.fmean(values), len(values)
    if n < 2:
        return average, None
    t = T975[n - 2] if n - 2 < len(T975) else 1.96 + 2.7 / (n - 1)
    return average, t * statistics.stdev(values) / math.sqrt(n)


def jumped(history: list[float], start: float, times: float, least: float) -> bool:
    """Whether the last value is far above its own history: `times` the median of those before it and above
    `least`; the first value of all must not exceed `start`."""
    *before, last = history
    limit = max(least, times * statistics.median(before)) if before else start
    return last > limit


def rise(old: list[float], new: list[float]) -> float:
    """How far the mean rose from `old` to `new`; 0 where that is within two standard errors, or with fewer
    than three values on a side."""
    if min(len(old), len(new)) < 3:
        return 0.0
    error = math.sqrt(statistics.variance(old) / len(old) + statistics.variance(new) / len(new))
    change = statistics.fmean(new) - statistics.fmean(old)
    return change if change > 2 * error else 0.0


def correlation(a: list[float], b: list[float]) -> float | None:
    """Pearson's r; None where one side does not vary."""
    if len(a) < 2 or min(len(set(a)), len(set(b))) < 2:
        return None
    return statistics.correlation(a, b)


def ranks(values: list[float]) -> list[float]:
    """1-based ranks, ties shared."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Spearman's rho; None where one side does not vary."""
    return correlation(ranks(a), ranks(b))


def bootstrap(by_unit: dict[str, list[float]], resamples: int = 10000, seed: int = 0) -> dict:
    """Mean over units of each unit's mean, with the 95 % percentile interval over resampled units.

    A unit is a prompt: two annotators of one pair are not two independent observations. Fewer than two units
    have no interval (None). Where all units agree it has no width: read the sign test there.
    """
    means = np.array([np.mean(values) for values in by_unit.values() if values])
    if len(means) < 2:
        return {"mean": float(means[0]) if len(means) else None, "interval": None, "prompts": len(means)}
    picks = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    low, high = np.percentile(means[picks].mean(axis=1), [2.5, 97.5])
    return {"mean": float(means.mean()), "interval": [float(low), float(high)], "prompts": len(means)}


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of a split at least this uneven, ties left out beforehand; 1 for no
    trials."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)


def cohen(first: list, second: list) -> float | None:
    """Cohen's kappa (1960) of two annotators' labels for the same items; None where one label is used
    throughout."""
    if not first:
        return None
    n = len(first)
    left, right = Counter(first), Counter(second)
    agreed = sum(a == b for a, b in zip(first, second)) / n
    chance = sum(left[label] * right[label] for label in left) / n**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def krippendorff(units: list[list], interval: bool = False) -> float | None:
    """Krippendorff's alpha (2004): each unit is the list of its values; units with one value are left out.

    Nominal by default; interval=True takes squared differences of numbers. None where no values differ at
    all.
    """
    units = [unit for unit in units if len(unit) > 1]

    def apart(counts: Counter) -> float:  # sum over ordered pairs of values
        pairs = ((a, x, b, y) for a, x in counts.items() for b, y in counts.items())
        return sum(x * y * ((a - b) ** 2 if interval else a != b) for a, x, b, y in pairs)

    values = [value for unit in units for value in unit]
    expected = apart(Counter(values))
    if not expected:
        return None
    observed = sum(apart(Counter(unit)) / (len(unit) - 1) for unit in units)
    return 1 - (len(values) - 1) * observed / expected
