"""Plain text: cut at ends of sentences."""

from __future__ import annotations

import re


def split_evenly(text: str, parts: int, count) -> list[str]:
    """`text` in parts of about equal count(text), cut at ends of sentences; [] where one would be empty."""
    sentences = [s for s in re.split(r"(?<=[.!?…])(?=[\"'”’)]*\s)|(?<=\n)", text) if s]
    total, found, seen = count(text), [""] * parts, 0
    for sentence in sentences:
        found[min(parts - 1, parts * seen // max(1, total))] += sentence
        seen += count(sentence)
    found = [part.strip() for part in found]
    return found if all(found) else []
