"""Texts compared by a rubric: two beside each other, in both orders, or a ranking of several in one call."""

from __future__ import annotations

import json
import random
from statistics import fmean

from lib.answers import Fault, closed, messages
from lib.rubric import Rubric, Verdict, cited, entry, fold, number
from lib.stats import mean

MOST = 3  # how much better one of two texts can be, under one heading

PAIR = f"""Two stories answer one request. Compare them heading by heading: which is better there, and by how
much. Under a strength (P, BONUS) the better story has more of it, under a fault (N, PENALTY) less. Neither
their order nor their length is a reason. Answer with one JSON object and nothing else. For every heading: why
(1-2 sentences), quotes_1 and quotes_2 (0-2 exact quotes from each story, at most 12 words each), then better,
a whole number from {MOST} (story 1 is far better) over 0 (they are alike) to -{MOST} (story 2 is far better).
No total.
"""


def pair_task(rubric: Rubric, request: str, first: str, second: str):
    """Messages, schema and reader of one comparison in one order."""
    shape = '"{}": {{"why": "...", "quotes_1": ["..."], "quotes_2": ["..."], "better": -3..3}}'
    shapes = ", ".join(shape.format(d.key) for d in rubric.dimensions)
    texts = {"REQUEST": request, "STORY 1": first, "STORY 2": second}
    why, quote = {"type": "string", "maxLength": 300}, {"type": "string", "maxLength": 120}
    quotes = {"type": "array", "maxItems": 2, "items": quote}
    better = {"type": "integer", "minimum": -MOST, "maximum": MOST}
    one = closed({"why": why, "quotes_1": quotes, "quotes_2": quotes, "better": better})
    schema = closed({d.key: one for d in rubric.dimensions})

    def read(answer: dict) -> dict:
        kept = {"scores": {}, "why": {}, "quotes_1": {}, "quotes_2": {}}
        for d in rubric.dimensions:
            item = entry(answer, d.key)
            kept["scores"][d.key] = number(item, "better", d.key, -MOST, MOST)
            kept["why"][d.key] = str(item.get("why", ""))
            for name in ("quotes_1", "quotes_2"):
                kept[name][d.key] = cited(item, name, d.key)
        found = _found(kept["scores"], kept["quotes_1"], first)
        found += _found(kept["scores"], kept["quotes_2"], second)
        return kept | {"score": pair_score(kept["scores"], rubric), "evidence": mean(found)}

    return messages([rubric.preamble, *rubric.headings(), f"{PAIR}{{{shapes}}}"], texts), schema, read


def _found(scores: dict[str, float], quotes: dict[str, list[str]], text: str) -> list[bool]:
    """Per quote whether it is in the text. A difference claimed without a quote counts as one not found."""
    page, found = fold(text), []
    for key, score in scores.items():
        found += [bool(fold(quote)) and fold(quote) in page for quote in quotes[key]]
        found += [False] if score and not quotes[key] else []
    return found


def pair_score(marks: dict[str, float], rubric: Rubric) -> float:
    """Marks of the first text, -3..3 per heading -> [-1, 1], weighed by the rubric's points (or weights)."""
    weights = {d.key: d.high if rubric.rule == "points" else d.weight for d in rubric.dimensions}
    total = sum(weights[key] * mark for key, mark in marks.items()) / MOST / sum(weights.values())
    return max(-1.0, min(1.0, total))


def beside(rubric: Rubric, judge: str, answers: list[dict | None]) -> Verdict | None:
    """Answers about one text shown first and second, in turn (two per sample) -> its verdict, the mean of
    both orders. Score in [-100, 100]; swapping the texts negates it exactly. One order alone is no verdict:
    None."""
    both = [(a, b) for a, b in zip(answers[::2], answers[1::2]) if a and b]
    if not both:
        return None
    orders = [fmean(a["score"] for a, _ in both), fmean(-b["score"] for _, b in both)]
    marks, (first, second) = {}, both[0]
    for d in rubric.dimensions:
        marks[d.key] = fmean((a["scores"][d.key] - b["scores"][d.key]) / 2 for a, b in both)
    quotes = {key: [*first["quotes_1"][key], *second["quotes_2"][key]] for key in marks}
    found, score = mean(answer["evidence"] for pair in both for answer in pair), 50 * (orders[0] + orders[1])
    return Verdict(marks, score, first["why"], quotes, found, rubric.version, judge, len(both), orders)


def level(rubric: Rubric, judge: str, share: float, why: str) -> Verdict:
    """A comparison that needs no judge: `share` in [-1, 1] under every heading. At 0 it counts as no pair."""
    marks, orders = {d.key: MOST * share for d in rubric.dimensions}, [share] * 2 if share else None
    reasons, version = dict.fromkeys(marks, why), rubric.version
    return Verdict(marks, 100 * share, reasons, rubric=version, judge=judge, orders=orders)


def by_points(rubric: Rubric, one: Verdict, other: Verdict) -> Verdict:
    """Two verdicts of one judge -> the first text beside the second: differences of their points."""
    marks = {}
    for d in rubric.dimensions:
        gain = (one.scores[d.key] - other.scores[d.key]) / (d.high - d.low)
        marks[d.key] = MOST * (-gain if d.key[0] == "N" or d.key == "PENALTY" else gain)
    score = pair_score(marks, rubric)
    return Verdict(marks, 100 * score, rubric=rubric.version, judge=one.judge, orders=[score, score])


def rank_task(rubric: Rubric, request: str, stories: list[str], order: list[int]):
    """Messages, schema and reader of a ranking: all stories in one prompt, by number, in the order given."""
    task = (
        f"Rank the {len(stories)} stories below, which answer one request, by these standards. Answer with "
        'one JSON object and nothing else: {"why": "...", "order": [numbers of all stories, the best first]}.'
    )
    texts = {"REQUEST": request} | {f"STORY {i + 1}": stories[s] for i, s in enumerate(order)}
    number = {"type": "integer", "minimum": 1, "maximum": len(stories)}
    numbers = {"type": "array", "minItems": len(stories), "maxItems": len(stories), "items": number}
    schema = closed({"why": {"type": "string", "maxLength": 1000}, "order": numbers})

    def read(answer: dict) -> dict:
        ranked = answer.get("order")
        all_once = sorted(str(i + 1) for i in range(len(stories)))
        if not isinstance(ranked, list) or sorted(map(str, ranked)) != all_once:
            raise Fault("schema", "ask", "the order does not name each story once")
        return {"scores": rank_scores([order[int(number) - 1] for number in ranked])}

    return messages([rubric.preamble, task, rubric.standards()], texts), schema, read


def shown_order(prompt: str, stories: list[str], draw: int = 0) -> list[int]:
    """Which story is shown as number i + 1. Shuffled, so that no place in the list belongs to a row."""
    return random.Random(json.dumps([prompt, stories, draw])).sample(range(len(stories)), len(stories))


def rank_scores(order: list[int]) -> list[float]:
    """order: indices, the best first -> points per index, evenly from 100 for the best to 0 for the last."""
    points = {index: 100 * (1 - place / max(1, len(order) - 1)) for place, index in enumerate(order)}
    return [points[index] for index in range(len(order))]
