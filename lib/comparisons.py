"""Texts compared by a rubric: a ranking of several in one call."""

from __future__ import annotations

import json
import random

from lib.answers import Fault, closed, messages
from lib.rubric import Rubric


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
    """shown_order[i]: which story is shown as number i + 1. Shuffled, so that no place in the list belongs to
    a row."""
    return random.Random(json.dumps([prompt, stories, draw])).sample(range(len(stories)), len(stories))


def rank_scores(order: list[int]) -> list[float]:
    """order: indices, the best first -> points for each index, 100 for the best .. 0 for the last, evenly
    spaced."""
    points = {index: 100 * (1 - place / max(1, len(order) - 1)) for place, index in enumerate(order)}
    return [points[index] for index in range(len(order))]
