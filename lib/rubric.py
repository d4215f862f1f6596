"""A rubric: a Markdown file that a person can read and edit, and the data made from it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lib.answers import closed


@dataclass(frozen=True)
class Dimension:
    key: str  # "P1"; the first letter says what it does: P counts for the text, N against it; BONUS, PENALTY
    title: str
    low: float
    high: float
    weight: float
    power: float  # of the share of points earned: above 1, a middling grade counts for less
    text: str  # what it measures, what it does not, anchor bands


@dataclass(frozen=True)
class Rubric:
    version: str  # name, number and hash of the file: part of every cache key and every saved verdict
    rule: str  # how points become a score: "points", "mean" or "range"
    preamble: str
    dimensions: tuple[Dimension, ...]

    def schema(self) -> dict:
        """JSON schema of a verdict: per dimension the reason and the quotes first, so that the number
        follows."""
        why, quote = {"type": "string", "maxLength": 400}, {"type": "string", "maxLength": 120}
        quotes = {"type": "array", "maxItems": 2, "items": quote}
        entries = {}
        for d in self.dimensions:
            score = {"type": "integer", "minimum": int(d.low), "maximum": int(d.high)}
            entries[d.key] = closed({"why": why, "quotes": quotes, "score": score})
        return closed(entries)

    def standards(self) -> str:
        """The headings with their points, one per line, without the open bonus and penalty."""
        lines = []
        for d in self.dimensions:
            if d.key not in ("BONUS", "PENALTY"):
                lines.append(f"{'Fault' if d.key[0] == 'N' else 'Strength'}: {d.title} ({d.high:g})")
        return "\n".join(lines)


HEADING = r"([PN]\d+|BONUS|PENALTY) (.+) \((\d+)-(\d+)\)(?: x(\d+))?(?: \^([\d.]+))?"
BANDS = ("1-2", "3-4", "5-6", "7-8", "9-10")  # of criteria that a benchmark brings per request


def read_rubric(path: Path, criteria: list[dict] | None = None) -> Rubric:
    """Reads a rubric. `criteria` replaces its dimensions (WritingBench writes five for each query).
    FileNotFoundError, or ValueError with the line that does not fit."""
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.md"))
        raise FileNotFoundError(f"no rubric {path}; there are {there}")
    head, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.M)
    fields = dict(re.findall(r"^(version|aggregate): *(\S+)$", head, flags=re.M))
    if set(fields) != {"version", "aggregate"} or fields["aggregate"] not in ("points", "mean", "range"):
        raise ValueError(
            f"{path}: the head needs the lines 'version: NAME-1' and 'aggregate: points|mean|range'"
        )
    dimensions = [_dimension(section, path) for section in sections]
    if criteria:
        dimensions = [_criterion(i, c) for i, c in enumerate(criteria, 1)]
    if len({d.key for d in dimensions}) != len(dimensions) or not dimensions:
        raise ValueError(f"{path}: dimensions are missing or named twice")
    skipped = r"<!--.*?-->|^(?:# |version:|aggregate:)[^\n]*$"
    preamble = re.sub(skipped, "", head, flags=re.M | re.S).strip()
    # Words changed without a new number are another rubric all the same.
    digest = hashlib.sha256(repr((preamble, dimensions, fields)).encode()).hexdigest()[:8]
    return Rubric(f"{fields['version']}+{digest}", fields["aggregate"], preamble, tuple(dimensions))


def _dimension(section: str, path: Path) -> Dimension:
    title, _, body = section.partition("\n")
    match = re.fullmatch(HEADING, title.strip())
    if not match:
        raise ValueError(
            f"{path}: heading {title.strip()!r} does not read '## P1 Title (0-15)'; x2 or ^1.5 may follow"
        )
    low, high, weight, power = (1.0 if number is None else float(number) for number in match.groups()[2:])
    return Dimension(match[1], match[2], low, high, weight, power, body.strip())


def _criterion(number: int, c: dict) -> Dimension:
    bands = [f"- {band}: {c[band]}" for band in BANDS if band in c]
    text = "\n".join([c["criteria_description"], *bands])
    return Dimension(f"P{number}", c["name"], 1, 10, 1, 1, text)
