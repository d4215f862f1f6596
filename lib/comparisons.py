"""Texts compared by a rubric: two beside each other, in both orders, or several ranked in one answer."""

from statistics import fmean

from lib.answers import Fault, closed
from lib.rubric import Rubric, Verdict, are_in
from lib.stats import mean

MOST = 3  # how much better one of two texts can be, under one heading
MARKS = ("better", ("quotes_1", "quotes_2"), (-MOST, MOST))  # see lib/rubric.py, POINTS


def read_pair(rubric: Rubric, answer: dict, first: str, second: str) -> dict:
    """An answer about two texts in one order, checked. Raises Fault."""
    kept = rubric.entries(answer, MARKS)
    claimed = [key for key, mark in kept["scores"].items() if mark]  # a difference needs quotes from both
    found = are_in(first, kept["quotes_1"], claimed) + are_in(second, kept["quotes_2"], claimed)
    return kept | {"score": pair_score(kept["scores"], rubric), "evidence": mean(found)}


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


# ---- rankings: the texts are shown under numbers from 1 on -------------------------------------------------


def ranking_schema(n: int) -> dict:
    """JSON schema of a ranking of n texts."""
    number = {"type": "integer", "minimum": 1, "maximum": n}
    numbers = {"type": "array", "minItems": n, "maxItems": n, "items": number}
    return closed({"why": {"type": "string", "maxLength": 1000}, "order": numbers})


def read_ranking(answer: dict, order: list[int]) -> dict:
    """order: which text was shown under each number -> {"scores": points per text}. Raises Fault."""
    ranked, numbers = answer.get("order"), [str(i + 1) for i in range(len(order))]
    if not isinstance(ranked, list) or sorted(map(str, ranked)) != sorted(numbers):
        raise Fault("schema", "ask", "the order does not name each number once")
    return {"scores": rank_scores([order[int(number) - 1] for number in ranked])}


def rank_scores(order: list[int]) -> list[float]:
    """order: indices, the best first -> points per index, evenly from 100 for the best to 0 for the last."""
    points = {index: 100 * (1 - place / max(1, len(order) - 1)) for place, index in enumerate(order)}
    return [points[index] for index in range(len(order))]
