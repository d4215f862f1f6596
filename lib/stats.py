"""Means and their doubt."""

from __future__ import annotations

import statistics


def mean(values) -> float | None:
    """Mean of what is not None; None where nothing is left."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def jumped(history: list[float], start: float, times: float, least: float) -> bool:
    """Whether the last value is far above its own history: `times` the median of those before it and above
    `least`; the first value of all must not exceed `start`."""
    *before, last = history
    limit = max(least, times * statistics.median(before)) if before else start
    return last > limit
