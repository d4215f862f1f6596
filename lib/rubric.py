"""A rubric: a Markdown file that a person can read and edit, the data made from it, and how an answer that
fills it is read."""

import hashlib
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

from lib.answers import Fault, closed
from lib.form import words
from lib.stats import mean


@dataclass
class Verdict:
    """A rubric, filled."""

    scores: dict[str, float]  # dimension -> points; beside another text: from -3 (worse) to 3 (better)
    score: float  # what the points, a rank or a comparison add up to
    why: dict[str, str] = field(default_factory=dict)
    quotes: dict[str, list[str]] = field(default_factory=dict)
    evidence: float | None = None  # share of the quotes found in the text; None: none were due
    rubric: str = ""
    judge: str = ""
    samples: int = 1  # verdicts averaged
    orders: list[float] | None = None  # beside another text: the score when shown first, and second

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Dimension:
    key: str  # "P1"; the first letter says what it does: P counts for the text, N against it; BONUS, PENALTY
    title: str
    low: float
    high: float
    weight: float
    power: float  # of the share of points earned: above 1, a middling grade counts for less
    text: str  # what it measures, what it does not, anchor bands

    @property
    def against(self) -> bool:
        return self.key[0] == "N" or self.key == "PENALTY"


# Under every heading an answer says why, then quotes, then a number, so that the number follows. Here the
# names of the number and of the lists of quotes, and the number's range; None: the points of the heading.
POINTS = ("score", ("quotes",), None)
MOST = 3  # how much better one of two texts can be, under one heading
MARKS = ("better", ("quotes_1", "quotes_2"), (-MOST, MOST))
RULES = ("points", "mean", "range", "rate")  # how points become a score; rate: proved faults per 1,000 words


@dataclass(frozen=True)
class Rubric:
    version: str  # name, number and hash of the file: part of every cache key and every saved verdict
    rule: str  # one of RULES
    preamble: str
    dimensions: tuple[Dimension, ...]

    def ask(self, words: str, kind: tuple = POINTS) -> tuple[list[str], dict]:
        """What a judge is told (the same for each text, so that providers can cache it): the rubric, `words`
        and how an answer looks; and the answer's JSON schema. kind: see POINTS."""
        number, lists, span = kind
        why = {"type": "string", "maxLength": 300 if span else 400}
        quote, shapes, properties = {"type": "string", "maxLength": 120}, [], {}
        for d in self.dimensions:
            low, high = span or (int(d.low), int(d.high))
            most = 2 * high if self.rule == "rate" and not span else 2
            quotes = dict.fromkeys(lists, {"type": "array", "maxItems": most, "items": quote})
            score = {"type": "integer", "minimum": low, "maximum": high}
            properties[d.key] = closed({"why": why, **quotes, number: score})
            shown = "".join(f'"{name}": ["..."], ' for name in lists)
            numbers = f"{low}..{high}" if span else f"{low}-{high}"
            shapes.append(f'"{d.key}": {{"why": "...", {shown}"{number}": {numbers}}}')
        headings = [f"## {d.key} {d.title} ({d.low:g}-{d.high:g})\n{d.text}".strip() for d in self.dimensions]
        return [self.preamble, *headings, f"{words}\n{{{', '.join(shapes)}}}"], closed(properties)

    def entries(self, answer: dict, kind: tuple = POINTS) -> dict[str, dict]:
        """An answer, checked -> {"scores", "why" and each list of quotes: {heading: value}}. Keys that the
        rubric does not have, such as totals, are dropped. Raises Fault."""
        number, lists, span = kind
        found = {name: {} for name in ("scores", "why", *lists)}
        for d in self.dimensions:
            item = answer.get(d.key)
            if not isinstance(item, dict) or number not in item:
                raise Fault("schema", "ask", f"{d.key} has no {number}")
            found["scores"][d.key] = _number(item[number], d.key, *(span or (d.low, d.high)))
            found["why"][d.key] = str(item.get("why", ""))
            for name in lists:
                quotes = item.get(name, [])
                if not isinstance(quotes, list) or not all(isinstance(q, str) for q in quotes):
                    raise Fault("schema", "ask", f"the {name} of {d.key} are not a list of strings")
                found[name][d.key] = [q for q in quotes if q.strip()]
        return found

    def read(self, answer: dict, text: str, judge: str) -> Verdict:
        """What an answer says of a text. Raises Fault."""
        found = self.entries(answer)
        scores, quotes = found["scores"], found["quotes"]
        due = [d.key for d in self.dimensions if scores[d.key] > 0 and (d.against or d.key == "BONUS")]
        evidence, score = mean(are_in(text, quotes, due)), self.score(scores)
        if self.rule == "rate":  # only what both quotes prove counts
            scores = {key: min(count, proved(quotes[key], text)) for key, count in scores.items()}
            score = 1000 * sum(scores.values()) / max(1, words(text))
        return Verdict(scores, score, found["why"], quotes, evidence, self.version, judge)

    def score(self, scores: dict[str, float]) -> float:
        """Points per dimension -> a score. points: S = P - N + B' - Pen' in [-159, 108] (POLARIS); mean and
        range: 0..100; rate: 0, since it depends on the text (see `read`)."""
        if self.rule == "rate":
            return 0.0
        if self.rule == "points":
            P = sum(scores[d.key] for d in self.dimensions if d.key[0] == "P" and d.key != "PENALTY")
            N = sum(scores[d.key] for d in self.dimensions if d.key[0] == "N")
            bonus = 0.0 if N > P / 2 else scores["BONUS"]  # no prize for a badly flawed text
            penalty = min(3.0, scores["PENALTY"]) if P > 1.5 * N else scores["PENALTY"]  # spares a good one
            return max(-159.0, min(108.0, P - N + bonus - penalty))
        # Benchmarks grade every line on one scale; a fault counts from the other end.
        shares, base = 0.0, 0.0
        for d in self.dimensions:
            low = d.low if self.rule == "range" else 0.0
            score = d.high + d.low - scores[d.key] if d.against else scores[d.key]
            shares, base = shares + d.weight * ((score - low) / (d.high - low)) ** d.power, base + d.weight
        return 100 * shares / base

    def mean(self, verdicts: list[Verdict]) -> Verdict | None:
        """Dimensions averaged, then aggregated; words and quotes are the first verdict's. None of none."""
        if len(verdicts) < 2:
            return verdicts[0] if verdicts else None
        scores = {d.key: fmean(v.scores[d.key] for v in verdicts) for d in self.dimensions}
        found = mean(v.evidence for v in verdicts)
        score = mean(v.score for v in verdicts) if self.rule == "rate" else self.score(scores)
        return replace(verdicts[0], scores=scores, score=score, samples=len(verdicts), evidence=found)

    def read_pair(self, answer: dict, first: str, second: str) -> dict:
        """What an answer says of two texts in one order. Raises Fault. score: of the first, in [-1, 1], its
        marks weighed by the points (or weights) of the headings."""
        kept = self.entries(answer, MARKS)
        marks = kept["scores"]
        claimed = [key for key, mark in marks.items() if mark]  # a difference needs quotes from both
        found = are_in(first, kept["quotes_1"], claimed) + are_in(second, kept["quotes_2"], claimed)
        weights = {d.key: d.high if self.rule == "points" else d.weight for d in self.dimensions}
        total = sum(weights[key] * mark for key, mark in marks.items()) / MOST / sum(weights.values())
        return kept | {"score": max(-1.0, min(1.0, total)), "evidence": mean(found)}

    def beside(self, judge: str, answers: list[dict | None]) -> Verdict | None:
        """Answers about one text shown first and second, in turn (two per sample) -> its verdict, the mean of
        both orders. Score in [-100, 100]; swapping the texts negates it exactly. One order alone is no
        verdict: None."""
        both = [(a, b) for a, b in zip(answers[::2], answers[1::2]) if a and b]
        if not both:
            return None
        orders = [fmean(a["score"] for a, _ in both), fmean(-b["score"] for _, b in both)]
        marks, (first, second) = {}, both[0]
        for d in self.dimensions:
            marks[d.key] = fmean((a["scores"][d.key] - b["scores"][d.key]) / 2 for a, b in both)
        quotes = {key: [*first["quotes_1"][key], *second["quotes_2"][key]] for key in marks}
        found, score = mean(answer["evidence"] for pair in both for answer in pair), 50 * sum(orders)
        return Verdict(marks, score, first["why"], quotes, found, self.version, judge, len(both), orders)

    def empty(self, judge: str) -> Verdict:
        """Of an empty text, which is not a failed call: it earns nothing and bears every fault."""
        bad = {d.key: d.high if d.against else d.low for d in self.dimensions}
        why = dict.fromkeys(bad, "the text is empty")
        return Verdict(bad, self.score(bad), why, rubric=self.version, judge=judge)

    def standards(self) -> str:
        """The headings with their points, one per line, without the open bonus and penalty."""
        told = [d for d in self.dimensions if d.key not in ("BONUS", "PENALTY")]
        return "\n".join(f"{'Fault' if d.against else 'Strength'}: {d.title} ({d.high:g})" for d in told)


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
    if "version" not in fields or fields.get("aggregate") not in RULES:
        need = f"the lines 'version: NAME-1' and 'aggregate: {'|'.join(RULES)}'"
        raise ValueError(f"{path}: the head needs {need}")
    dimensions = []
    for section in sections:
        title, _, body = section.partition("\n")
        if not (match := re.fullmatch(HEADING, title.strip())):
            reads = "does not read '## P1 Title (0-15)'; x2 or ^1.5 may follow"
            raise ValueError(f"{path}: heading {title.strip()!r} {reads}")
        numbers = [float(number or 1) for number in match.groups()[2:]]
        dimensions.append(Dimension(match[1], match[2], *numbers, body.strip()))
    if criteria:
        dimensions = []
    for i, c in enumerate(criteria or (), 1):
        text = [c["criteria_description"], *(f"- {band}: {c[band]}" for band in BANDS if band in c)]
        dimensions.append(Dimension(f"P{i}", c["name"], 1, 10, 1, 1, "\n".join(text)))
    if len({d.key for d in dimensions}) != len(dimensions) or not dimensions:
        raise ValueError(f"{path}: dimensions are missing or named twice")
    skipped = r"<!--.*?-->|^(?:# |version:|aggregate:)[^\n]*$"
    preamble = re.sub(skipped, "", head, flags=re.M | re.S).strip()
    # Words changed without a new number are another rubric all the same.
    digest = hashlib.sha256(repr((preamble, dimensions, fields)).encode()).hexdigest()[:8]
    return Rubric(f"{fields['version']}+{digest}", fields["aggregate"], preamble, tuple(dimensions))


def _number(value, key: str, low: float, high: float) -> float:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,3}(\.\d+)?", value.strip()):
        value = float(value)  # the number is not in doubt, only its quotation marks
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Fault("schema", "ask", f"{key} is {str(value)[:40]!r}, not a number from {low:g} to {high:g}")
    return float(value)


# ---- quotes ------------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Without quotation marks, differences of case and white space, and marks at the ends."""
    return " ".join(re.sub(r"[\"'“”‘’«»`]", "", text).casefold().split()).strip(" .,;:!?…")


def are_in(text: str, quotes: dict[str, list[str]], due) -> list[bool]:
    """Per quote whether the folded text has it. A heading of `due` without a quote counts as one that was not
    found: a judge that cites nothing has seen nothing."""
    page, found = fold(text), []
    for key, cited in quotes.items():
        found += [bool(fold(q)) and fold(q) in page for q in cited]
        found += [False] * (key in due and not cited)
    return found


def proved(quotes: list[str], text: str) -> float:
    """How many pairs of neighbours among the quotes are different passages that both stand in the text."""
    page, folded = fold(text), [fold(q) for q in quotes]
    pairs = set(zip(folded[::2], folded[1::2]))
    return float(sum(a != b and bool(a) and bool(b) and a in page and b in page for a, b in pairs))
