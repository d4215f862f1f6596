"""Plain text: cut at ends of sentences; words that wound."""

import re

# Words that wound today and were common in print then. The list names words, it does not judge stories.
FLAGGED = re.compile(
    r"\b(nigg(er|ah|uh)s?|darke?(y|ie)s?|coons?|pickaninn(y|ies)|piccaninn(y|ies)|sambo|mulatto(es)?|"
    r"quadroons?|octoroons?|half-?breeds?|half-?castes?|squaws?|redskins?|injuns?|chinam[ae]n|chinks?|japs?|"
    r"coolies?|dagoe?s?|kikes?|sheen(y|ies)|kaffirs?|hottentots?|wops?|negress(es)?)\b",
    re.I,
)


def split_evenly(text: str, parts: int, count) -> list[str]:
    """`text` in parts of about equal count(text), cut at ends of sentences; [] where one would be empty."""
    sentences = [s for s in re.split(r"(?<=[.!?…])(?=[\"'”’)]*\s)|(?<=\n)", text) if s]
    total, found, seen = count(text), [""] * parts, 0
    for sentence in sentences:
        found[min(parts - 1, parts * seen // max(1, total))] += sentence
        seen += count(sentence)
    found = [part.strip() for part in found]
    return found if all(found) else []
