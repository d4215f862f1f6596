"""What a program can see of a text's form: whole sentences and their shapes, repeats, things and people
named.

It knows nothing of meaning. Also here: the one count of words that every length in this project means.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _set("a an the my your his its our their this these every some no")
JOINERS = _set("and but or of to in on at for with from by into over under through as because if when while")
PRONOUNS = _set("i he she it we they you me him her us them who")
PEOPLE = PRONOUNS - {"it"} | _set("man woman boy girl child mother father sister brother wife husband friend")
SENSES = _set(
    """saw heard felt smelled tasted touched cold warm hot wet dry dark bright red blue green white black grey
    yellow gold silver salt smoke rain snow wind sun moon stars fire water stone wood iron glass bread milk
    tea coat boots hands eyes face door window table lamp bell road river sea field garden house kitchen roof
    stairs bird dog horse cat tree leaves grass boat letter clock key box rope knife basket candle"""
)
FEELINGS = _set(
    """but though yet still never only again alone afraid glad sorry sad happy angry proud ashamed love loved
    hope wished missed laughed cried smiled wept quiet silence remembered forgot waited promised"""
)
ACTS = _set(
    """said asked took gave went came ran walked turned looked opened closed put held carried found left told
    kept made began stood sat called wanted knew thought tried pulled pushed brought lifted"""
)
REQUEST = _set(
    "write story short about words long word tell that with from must should which where have make"
)


def words(text: str) -> int:
    """How long a text is: runs of word characters."""
    return len(re.findall(r"\w+", text))


def strip_length(prompt: str) -> str:
    """The request without its length, which the rule measures better: the sentence goes, or, where it asks
    for more, its clause."""
    clause = re.compile(
        r"[\s,]*\(?\b(?:(?:that|which) (?:is|are) |at )?(?:about |around |roughly |approximately |exactly )?"
        r"\d[\d,]*(?:[\s-]words?[\s-](?:long|in length)|-word)\b\)?",
        re.I,
    )
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+", prompt.strip()):
        rest, found = clause.subn("", sentence)
        if not found or words(rest) > 5:
            kept.append(rest if found else sentence)
    return " ".join(kept).strip() or prompt


def between(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, linear between them."""
    return max(0.0, min(1.0, (value - low) / (high - low)))


def repeats(text: str) -> tuple[float, float, float]:
    """(share of 4-grams that repeat an earlier one, share that does so within 64 positions, share of lines
    that repeat an earlier one). Tokens are lower-cased words and single punctuation marks."""
    tokens = re.findall(r"\w+|[^\w\s]", text.lower())
    last_seen, again, near = {}, 0, 0
    grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:]))
    for position, gram in enumerate(grams):
        if gram in last_seen:
            again += 1
            near += position - last_seen[gram] <= 64
        last_seen[gram] = position
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated_lines = 1 - len(set(lines)) / len(lines) if lines else 0.0
    return (again / len(grams), near / len(grams), repeated_lines) if grams else (0.0, 0.0, repeated_lines)


@dataclass(frozen=True)
class Form:
    words: int
    sentences: int
    # what breaks a text, as shares of its words, sentences or 3-grams
    loops: float  # 3-grams that occurred before
    doubled: float  # words that repeat the one before
    unreal: float  # words in small letters that no list of words has
    capitals: float
    unjoined: float  # words that cannot stand side by side ("the and", "of.")
    odd_marks: float
    lower_starts: float  # sentences that begin with a small letter
    ragged: float  # sentences of fewer than 3 or more than 45 words
    finished: bool  # the last sentence ends
    # what carries one
    used: float  # the request's words, each once
    stuffed: float  # 1: the request's words fill the text
    copied: float  # 4-grams taken from the request
    people: float
    acts: float
    things: float
    feelings: float
    spread: float  # of the sentences' lengths, as a share of their mean
    openers: float  # sentences that begin with another word than the rest
    richness: float  # different words
    quotes: int  # quotation marks


def measure(text: str, request: str, real_words: frozenset[str] | None) -> Form:
    """The form of a text that answers a request. real_words: in lower case; None: not checked."""
    sentences = re.split(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+", text.strip())
    sentences = [s for s in sentences if re.search(r"\w", s)] or [""]
    tokens = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[^\w\s]|\d+", text.lower())
    listed = [t for t in tokens if t[0].isalpha()] or ["?"]
    lengths = [len(s.split()) for s in sentences]
    return Form(
        words=len(listed),
        sentences=len(sentences),
        quotes=len(re.findall(r"[\"“”]", text)),
        **_flaws(text, sentences, tokens, listed, lengths, real_words),
        **_carriers(text, request, sentences, listed, lengths),
    )


def _flaws(text, sentences, tokens, listed, lengths, real_words) -> dict[str, float]:
    n, grams = len(listed), list(zip(listed, listed[1:], listed[2:]))
    plain = re.findall(r"(?<![\w'’])[a-z]+(?![\w'’])", text)  # names have a capital and are in no list
    unreal = sum(w not in real_words for w in plain) / max(1, len(plain)) if real_words else 0.0
    finished = bool(re.search(r"[.!?…][\"'”’)]*$", text.rstrip())) and 1 < lengths[-1] < 40
    odd_marks = re.findall(r"[,;:.!?]{2,}|\s[,.;:!?]|[^\w\s.,;:!?'\"“”‘’—–…()-]", text)
    return {
        "loops": 1 - len(set(grams)) / max(1, len(grams)),
        "doubled": sum(a == b for a, b in zip(listed, listed[1:])) / n,
        "unreal": unreal,
        "capitals": len(re.findall(r"\b[A-Z]", text)) / n,
        "unjoined": sum(_cannot_join(a, b) for a, b in zip(tokens, tokens[1:])) / n,
        "odd_marks": len(odd_marks) / n,
        "lower_starts": sum(bool(re.match(r"\W*[a-z]", s)) for s in sentences) / len(sentences),
        "ragged": sum(k < 3 or k > 45 for k in lengths) / len(lengths),
        "finished": finished,
    }


def _cannot_join(a: str, b: str) -> bool:
    if a in DETERMINERS:
        return b in DETERMINERS or b in JOINERS or b in PRONOUNS or not b[0].isalnum()
    return a in JOINERS and b in ".,!?;"


def _carriers(text, request, sentences, listed, lengths) -> dict[str, float]:
    n, distinct = len(listed), set(listed)
    asked = {w[:5] for w in re.findall(r"[a-z]{4,}", request.lower())} - {w[:5] for w in REQUEST}
    stems = [w[:5] for w in listed]
    named = len(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    per = max(1.0, n / 40) ** 0.7  # the same density for long and short texts
    return {
        "used": len(asked & set(stems)) / max(1, min(3, len(asked))),
        "stuffed": between(sum(s in asked for s in stems) / n, 0.15, 0.4),
        "copied": len(_grams(request) & _grams(text)) / max(1, len(_grams(text))),
        "people": between(len(distinct & PEOPLE) + min(named, 3), 0, 4),
        "acts": between(len(distinct & ACTS) / per, 0, 3),
        "things": between(len(distinct & SENSES) / per, 0, 4),
        "feelings": between(len(distinct & FEELINGS) / per, 0, 2),
        "spread": statistics.pstdev(lengths) / (sum(lengths) / len(lengths) or 1),
        "openers": len({s.split()[0].lower() for s in sentences if s}) / len(sentences),
        "richness": between(len(distinct) / n**0.85, 0.75, 1.25),
    }


def _grams(text: str) -> set[tuple]:
    found = re.findall(r"\w+", text.lower())
    return set(zip(found, found[1:], found[2:], found[3:]))


# Not part of the text: the rest is measured as if such words were not there, then marked down.
TO_THE_GRADER = re.compile(
    r"\b(?:(?:ignore|disregard|forget|override) (?:all|any|the|every|previous|your|these)\b[^.!?]{0,40}?"
    r"(?:instruction|rule|criteri|prompt|rubric)"
    r"|(?:give|award|assign)\b[^.!?]{0,30}?(?:full|top|maximum|highest|perfect) (?:marks|points|score|rating)"
    r"|full marks|maximum score|the rubric|language model|(?:grade|rate|score) this)[^.!?]*[.!?]*",
    re.I,
)


def grade(text: str, request: str, real_words: frozenset[str] | None) -> dict[str, float]:
    """The form of a text as points of rubrics/story_quality.md. Words addressed to a grader are cut out
    first."""
    rest, bribes = TO_THE_GRADER.subn(" ", text)
    return points(measure(rest, request, real_words), bool(bribes))


def points(f: Form, bribed: bool) -> dict[str, float]:
    """A story's form as points of rubrics/story_quality.md, each in its range. bribed: it spoke to the
    judge."""
    # Strengths count only as far as the text holds together: word lists, loops and crumbs of text earn
    # little.
    shouted, stolen = between(f.capitals, 0.3, 0.6), between(f.copied, 0.1, 0.6)
    sound = between(f.words, 4, 32) * between(f.sentences, 0, 3) * (0.3 if bribed else 1.0)
    unreal, unjoined = between(f.unreal, 0.02, 0.35), between(f.unjoined, 0.01, 0.1)
    for flaw in (between(f.loops, 0.1, 0.6), unreal, unjoined, shouted, f.stuffed, stolen):
        sound *= 1 - flaw
    cut_off, crumb = 0.5 * (1 - f.finished), 1 - between(f.words, 4, 24)
    breakdown = max(cut_off, between(f.loops, 0.1, 0.5), between(f.doubled, 0, 0.1), crumb)
    several, speech = between(f.sentences, 1, 5), f.quotes >= 2 and f.quotes % 2 == 0
    points = {
        "P1": 15 * sound * min(1.0, f.used),
        "P2": 20 * sound * (0.6 * f.finished + 0.4 * several),
        "P3": 15 * sound * (f.people + f.acts) / 2,
        "P4": 15 * sound * (between(f.spread, 0.1, 0.4) + f.openers) / 2,
        "P5": 20 * sound * (f.things + f.richness) / 2,
        "P6": 15 * sound * (0.8 * f.feelings + 0.2 * speech),
        "N1": 15 * max(bribed, stolen, f.stuffed),
        "N2": 20 * between(f.unjoined, 0.0, 0.12),
        "N3": 15 * (1 - f.richness) * 0.5,
        "N4": 15 * f.ragged,
        "N5": 15 * between(f.loops, 0.02, 0.4),
        "N6": 20 * breakdown,
        "N7": 15 * 0.5 * (f.quotes % 2),
        "N8": 8 * max(between(f.odd_marks, 0, 0.1), f.lower_starts, shouted),
        "N9": 8 * (1 - f.openers) * between(f.sentences, 1, 4),
        "N10": 20 * between(f.unreal, 0.02, 0.3),
        "BONUS": 0,
        "PENALTY": 8 * bribed,
    }
    return {key: float(value) for key, value in points.items()}
