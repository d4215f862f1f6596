"""The same things measured at several settings: means per setting with intervals, and paired differences.

A row is a dictionary: "unit" (rows of one unit are not independent: intervals resample units), "target" (the
setting), and one number or None per metric.
"""

import math
from itertools import combinations

from lib import stats

FEW = 30  # units; an interval from fewer is itself uncertain


def buckets_of(targets: list[int], step: int = 2000) -> list[tuple[str, int, int]]:
    """(label, above, up to): each setting there is, or steps where there are more than eight settings."""
    distinct = sorted(set(targets))
    if len(distinct) <= 8:
        return [(f"{t:,}", t - 1, t) for t in distinct]
    steps = [(low, low + step) for low in range(0, distinct[-1], step)]
    return [(f"{low:,}-{up:,}", low, up) for low, up in steps if any(low < t <= up for t in distinct)]


def figures(rows: list[dict], metric: str, buckets, extra=()) -> dict[str, dict]:
    """{bucket, extra range, "all" or "slope" (per bucket): {mean, prompts (units), interval}}."""
    columns = [*buckets, *extra, ("all", 0, math.inf)]
    points = [(r["unit"], r["target"], r[metric]) for r in rows if r.get(metric) is not None]
    return stats.by_column(points, columns, len(buckets))


def differences(a: list[dict], b: list[dict], metric: str) -> list[dict]:
    """b - a per unit and setting that both have, as rows: paired figures need no other statistics."""

    def means(rows):
        found = {}
        for r in rows:
            found.setdefault((r["unit"], r["target"]), []).append(r.get(metric))
        return {key: m for key, values in found.items() if (m := stats.mean(values)) is not None}

    a, b = means(a), means(b)
    return [{"unit": u, "target": t, metric: b[u, t] - a[u, t]} for u, t in a if (u, t) in b]


def summarise(measured: dict[str, list[dict]], compared, targets: list[int], extra=()) -> dict:
    """What a report says of {label: rows}: figures per label and metric, paired differences of the metrics in
    `compared`, the buckets and where they lie, and a warning where units are few.

    extra: (label, above, up to), shown beside buckets that are steps; no slope goes through them."""
    labels, buckets = list(measured), buckets_of(targets)
    metrics = dict.fromkeys(m for rows in measured.values() for row in rows for m in row)
    metrics = [m for m in metrics if m not in ("unit", "target")]
    steps = any(high - low > 1 for _, low, high in buckets)
    extra = [column for column in extra if steps and column[1] < buckets[-1][2]]
    found = {k: {m: figures(rows, m, buckets, extra) for m in metrics} for k, rows in measured.items()}
    pairs = []
    for a, b in combinations(labels, 2):
        apart = {m: differences(measured[a], measured[b], m) for m in compared}
        apart = {m: figures(rows, m, buckets, extra) for m, rows in apart.items()}
        pairs.append({"of": b, "minus": a, "figures": apart})
    counts = [max(found[labels[0]][m][bucket]["prompts"] for m in metrics) for bucket, _, _ in buckets]
    columns = [label for label, _, _ in [*buckets, *extra]] + ["all", "slope"] * (len(buckets) > 1)
    few = f"only {min(counts)} prompts" + " at some length" * (len(buckets) > 1)
    few += f": intervals from fewer than {FEW} are too narrow, and no small difference can be seen"
    lie = {k: float(stats.mean([t for t in targets if low < t <= up])) for k, low, up in buckets}
    report = {"models": labels, "figures": found, "warnings": [few] * (min(counts) < FEW), "buckets": lie}
    return report | {"columns": columns, "differences": pairs}
