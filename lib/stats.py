"""Means and their doubt, ranks, agreement, strengths. Each is checked against its definition in the tests.

One bootstrap for everything: it draws units with replacement, each with all its observations, since
observations of one unit (a prompt, a seed) are not independent. Suffixes: U units, C columns, R resamples
(of resampled means: one more, the sample itself first), M players.
"""

import math
import statistics
from collections import Counter
from itertools import combinations, pairwise

import numpy as np

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees


def mean(values) -> float | None:
    """Mean of what is not None; None where nothing is left."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def finite(x: float) -> float | None:
    """x, or None for NaN and infinity, which JSON cannot hold."""
    return x if math.isfinite(x) else None


def student(values: list[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval (Student's t); None for a single value."""
    average, n = statistics.fmean(values), len(values)
    if n < 2:
        return average, None
    t = T975[n - 2] if n - 2 < len(T975) else 1.96 + 2.7 / (n - 1)
    return average, t * statistics.stdev(values) / math.sqrt(n)


def jumped(history: list[float], start: float, times: float, least: float) -> bool:
    """Whether the last value is far above what was usual before it: above `least` and above `times` the
    median of the values that had not jumped themselves; with none of these, above `start`."""
    usual, far = [], False
    for value in history:
        far = value > (max(least, times * statistics.median(usual)) if usual else start)
        if not far:
            usual.append(value)
    return far


def rise(history: list[dict], name: str, window: int, sign: int = 1) -> float:
    """How far the mean of `name` rose (sign -1: fell) from the first to the second half of the last `window`
    entries; 0 where that is within two standard errors, with fewer than three values in a half, and before
    there are `window` entries. Entries without a value are skipped."""
    recent = history[-window:]
    halves = recent[: window // 2], recent[window // 2 :]
    old, new = ([sign * entry[name] for entry in half if entry.get(name) is not None] for half in halves)
    if len(recent) < window or min(len(old), len(new)) < 3:
        return 0.0
    error = math.sqrt(statistics.variance(old) / len(old) + statistics.variance(new) / len(new))
    change = statistics.fmean(new) - statistics.fmean(old)
    return change if change > 2 * error else 0.0


def correlation(a: list[float], b: list[float]) -> float | None:
    """Pearson's r; None where one side does not vary."""
    if len(a) < 2 or min(len(set(a)), len(set(b))) < 2:
        return None
    return statistics.correlation(a, b)


def rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Spearman's rho, Pearson's r of the ranks, ties shared; None where one side does not vary."""
    ranks = []
    for side in ([a for a, _ in pairs], [b for _, b in pairs]):
        order = sorted(side)
        ranks.append([order.index(v) + (order.count(v) + 1) / 2 for v in side])
    return correlation(*ranks)


# ---- the bootstrap -----------------------------------------------------------------------------------------


def draws(units: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each unit is drawn [R, U]."""
    return np.random.default_rng(seed).multinomial(units, [1 / units] * units, size=resamples)


def interval(drawn_R) -> list[float] | None:
    """The 95 % percentile interval of what is finite."""
    drawn_R = np.asarray(drawn_R)[np.isfinite(drawn_R)]
    return [float(edge) for edge in np.percentile(drawn_R, [2.5, 97.5])] if len(drawn_R) else None


def estimate(means_R, units: int) -> dict:
    """{mean, prompts (units), interval} of a mean [0] and its resamples [1:]. Fewer than two units have no
    interval. Where all units agree it has no width: read the sign test there."""
    sure = units > 1 and math.isfinite(means_R[0])
    mean = finite(float(means_R[0]))
    return {"mean": mean, "prompts": int(units), "interval": interval(means_R[1:]) if sure else None}


def figures(rows, metric: str, buckets, resamples: int = 2000, seed: int = 0) -> dict[str, dict]:
    """{bucket, "all", "slope" or "change": estimate} of a metric. rows: {"unit", "target", metric: number or
    None}; buckets: (label, above, up to) ranges of the target.

    The slope is that of least squares through the means of the buckets against 0, 1, 2 ...; the change is the
    last of them minus the first."""
    ranges = [*buckets, ("all", -math.inf, math.inf)]
    labels = [*(label for label, _, _ in ranges), "slope", "change"]
    rows = [r for r in rows if r.get(metric) is not None]
    places = {unit: i for i, unit in enumerate(dict.fromkeys(r["unit"] for r in rows))}
    if not places:
        return {label: estimate([math.nan], 0) for label in labels}
    sums_UC, counts_UC = np.zeros((2, len(places), len(ranges)))
    for r in rows:
        for c, (_, low, high) in enumerate(ranges):
            if low < r["target"] <= high:
                sums_UC[places[r["unit"]], c] += r[metric]
                counts_UC[places[r["unit"]], c] += 1
    sample_1U = np.ones((1, len(places)))  # row 0 is the sample itself
    draws_RU = np.vstack([sample_1U, draws(len(places), resamples, seed)])
    with np.errstate(invalid="ignore"):  # a draw without a value of a column is NaN
        means_RC = (draws_RU @ sums_UC) / (draws_RU @ counts_UC)
    used = np.flatnonzero(counts_UC[:, :-1].any(0))
    slope_R = change_R = np.full(len(means_RC), np.nan)
    if len(used) > 1:
        x = used - used.mean()
        slope_R, change_R = means_RC[:, used] @ x / (x @ x), means_RC[:, used[-1]] - means_RC[:, used[0]]
    units_C = (counts_UC > 0).sum(0)
    poorest = units_C[used].min(initial=len(places))  # a slope is no surer than its poorest column
    found = zip(labels, [*means_RC.T, slope_R, change_R], [*units_C, poorest, poorest])
    return {label: estimate(means_R, units) for label, means_R, units in found}


def bootstrap(by_unit: dict[str, list[float]], resamples: int = 10_000, seed: int = 0) -> dict:
    """The mean over units of each unit's mean, as `estimate` gives it."""
    rows = [{"unit": u, "target": 0, "mean": np.mean(values)} for u, values in by_unit.items() if values]
    return figures(rows, "mean", [], resamples, seed)["all"]


# ---- the same things measured at several settings ----------------------------------------------------------

FEW = 30  # units; an interval from fewer is itself uncertain


def buckets_of(targets: list[int], edges=(0, 1000, 4000, 8000, 12000)) -> list[tuple[str, int, int]]:
    """(label, above, up to): each setting there is, or what lies between edges where there are more than
    eight settings. The default is that of POLARIS's table, in words."""
    distinct = sorted(set(targets))
    if len(distinct) <= 8:
        return [(f"{t:,}", t - 1, t) for t in distinct]
    steps = pairwise([*edges, distinct[-1]])
    return [(f"{low:,}-{up:,}", low, up) for low, up in steps if any(low < t <= up for t in distinct)]


def differences(a: list[dict], b: list[dict], metric: str) -> list[dict]:
    """b - a per unit and setting that both have, as rows: paired figures need no other statistics."""

    def means(rows):
        found = {}
        for r in rows:
            found.setdefault((r["unit"], r["target"]), []).append(r.get(metric))
        return {key: m for key, values in found.items() if (m := mean(values)) is not None}

    a, b = means(a), means(b)
    return [{"unit": u, "target": t, metric: b[u, t] - a[u, t]} for u, t in a if (u, t) in b]


def sweep(measured: dict[str, list[dict]], compared, targets: list[int]) -> dict:
    """What a report says of {label: rows}, see `figures`: figures per label and metric, paired differences of
    the metrics in `compared`, the buckets and where they lie, and a warning where units are few."""
    buckets = buckets_of(targets)
    metrics = dict.fromkeys(m for rows in measured.values() for row in rows for m in row)
    metrics = [m for m in metrics if m not in ("unit", "target")]
    found = {k: {m: figures(rows, m, buckets) for m in metrics} for k, rows in measured.items()}
    pairs = []
    for a, b in combinations(measured, 2):
        apart = {m: figures(differences(measured[a], measured[b], m), m, buckets) for m in compared}
        pairs.append({"of": b, "minus": a, "figures": apart})
    first, labels = next(iter(found.values())), [label for label, _, _ in buckets]
    fewest = min(max(first[m][label]["prompts"] for m in metrics) for label in labels)
    few = f"only {fewest} prompts" + " at some length" * (len(buckets) > 1)
    few += f": intervals from fewer than {FEW} are too narrow, and no small difference can be seen"
    lie = {k: float(mean([t for t in targets if low < t <= up])) for k, low, up in buckets}
    columns = labels + ["all", "slope"] * (len(buckets) > 1)
    report = {"models": list(measured), "figures": found, "differences": pairs, "columns": columns}
    return report | {"buckets": lie, "warnings": [few] * (fewest < FEW)}


# ---- agreement and strengths -------------------------------------------------------------------------------


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

    Nominal by default; interval=True takes squared differences of numbers. None where no values differ."""
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


def bradley_terry(wins_MM: np.ndarray, prior: float = 0.5, steps: int = 10_000) -> np.ndarray:
    """Log strengths [M] (Bradley and Terry, 1952), mean 0, from wins[i, j] = how often i beat j, ties as half
    a win each.

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
