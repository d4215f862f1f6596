"""Means and their doubt."""

from __future__ import annotations

import math
import statistics

T975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # Student's t, 1 to 9 degrees of freedom


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
