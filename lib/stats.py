"""Means and their doubt."""

from __future__ import annotations


def mean(values) -> float | None:
    """Mean of what is not None; None where nothing is left."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None
