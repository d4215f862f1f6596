"""How sure is a human study, and do its readers agree? Four statistics, each checked against its definition in the tests.

Intervals resample prompts. Cohen's kappa (1960) compares two annotators, Krippendorff's alpha (2004) any number of them and
gaps. Used by scripts/blind.py.
"""
from __future__ import annotations

import math
from collections import Counter

import numpy as np


def bootstrap(by_prompt: dict[str, list[float]], resamples: int = 10000, seed: int = 0) -> dict:
    """Mean over prompts of each prompt's mean, with the 95 % percentile interval over resampled prompts.

    Prompts are the units, since two annotators of one pair are not two independent observations. Fewer than two
    prompts have no interval (None). Where all prompts agree it has no width: read the sign test there.
    """
    means = np.array([np.mean(values) for values in by_prompt.values() if values])
    if len(means) < 2:
        return {"mean": float(means[0]) if len(means) else None, "interval": None, "prompts": len(means)}
    picks = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    low, high = np.percentile(means[picks].mean(axis=1), [2.5, 97.5])
    return {"mean": float(means.mean()), "interval": [float(low), float(high)], "prompts": len(means)}


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of a split at least this uneven, ties left out beforehand; 1 where nothing is left."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)


def cohen(first: list, second: list) -> float | None:
    """Cohen's kappa of two annotators' labels for the same items; None where it is undefined (one label throughout)."""
    if not first:
        return None
    n = len(first)
    left, right = Counter(first), Counter(second)
    agreed = sum(a == b for a, b in zip(first, second)) / n
    chance = sum(left[label] * right[label] for label in left) / n**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def krippendorff(units: list[list], interval: bool = False) -> float | None:
    """Krippendorff's alpha: each unit is the list of its values, whoever gave them; units with one value are left out.

    Nominal by default; interval=True takes squared differences of numbers. None where no values differ at all.
    """
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    def apart(counts: Counter) -> float:  # sum over ordered pairs of values
        return sum(x * y * ((a - b) ** 2 if interval else a != b) for a, x in counts.items() for b, y in counts.items())
    expected = apart(Counter(values))
    if not expected:
        return None
    observed = sum(apart(Counter(unit)) / (len(unit) - 1) for unit in units)
    return 1 - (len(values) - 1) * observed / expected
