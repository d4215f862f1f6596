"""Who wrote a story and where it was printed: names, bylines and source lines, told from titles by form and
by vote.

A single line cannot be decided: "Silas Marner" may be an author and "Rainbow Pete" a title. So lines are
compared
over a whole book. The column, or the place in the headings, that reads most like names of people holds the
authors.

Used by contents.py and headings.py. Left out: lists of known authors.
"""

from __future__ import annotations

import re
from functools import lru_cache

from scripts.anthologies.titles import title_form

BYLINE = re.compile(
    r"\W*anonymous\W*|\W*(by|from the .{2,60}? (of|by)|(as )?(re)?(told|written|compiled|edited|adapted|"
    r"translated|rendered|selected|arranged) by|(translated|adapted) from)\b.{2,90}",
    re.I | re.S,
)
BY = re.compile(
    r"^\W*((as )?((re)?(told|written|compiled|edited|adapted|translated|rendered|selected|arranged) )?by|"
    r"(translated |adapted )?from the \w+ (of|by))\b\s*",
    re.I,
)
LABEL = re.compile(
    r"\W*(an?|another|the|our)\s.{4,90}?[\s,](by|from the \w+ of)\s+(?P<name>[^,;:]{4,50})", re.I | re.S
)  # A Tale by ...
SOURCE = re.compile(  # where a story was printed; the year alone tells in brackets
    r"\W*((From|Reprinted( by permission)? from|First (published|printed) in)\s(?!the \w+ of\b).{3,120}|"
    r"[(\[][^()\[\]]{3,90}\b1[5-9]\d\d\b[^()\[\]]{0,12}[)\]]\.?|\(From [^()]{3,120}\)\.?)",
    re.S,
)
DATES = re.compile(r"\s*[(\[][^()\[\]]*[)\]]|,?\s+1[5-9]\d\d\s*-.*$")
RANK = set(
    "capt captain col colonel major general lieut sir lady lord mr mrs miss dr prof professor rev count "
    "countess "
    "baron baroness mme madame monsieur princess".split(" ")
)
PARTICLE = set("de du des da di della del van von der den la le y e and & jr sr esq md phd".split(" "))
NO_NAME = set(
    "the a an in at on to for from with of by my his her our your their its what who how why when where is "
    "was are "
    "not no first second third last old new one two three four part chapter book story tale tales "
    "stories".split(" ")
)


@lru_cache(1 << 16)
def is_byline(text: str) -> bool:
    """ "By John Writer", "Translated by Ann Author"; not "By nine all was still." """
    text = text.replace("_", " ").strip()
    words = re.findall(r"[^\W\d_]{3,}", text)
    return bool(BYLINE.fullmatch(text)) and sum(w[0].isupper() for w in words) >= 0.5 * len(words)


@lru_cache(1 << 16)
def is_source(text: str) -> bool:
    """ "From Harper's Magazine", "(The Something Review, 1921)"; not "From the hill he looked down." """
    text = " ".join(text.replace("_", " ").split())
    return bool(SOURCE.fullmatch(text)) and len(text.split()) < 16 and title_form(text.strip(" ()[].*"))


@lru_cache(1 << 16)
def person(text: str) -> str:
    """The author's name out of a byline: no "By", no dates, no italics, no full stop after the surname."""
    text = " ".join(DATES.sub("", text.replace("_", " ")).split())
    if LABEL.fullmatch(text) and not is_byline(text):
        text = LABEL.fullmatch(text)["name"]
    text = re.sub(r"\b(Jr|Esq)$", r"\1.", BY.sub("", text).strip(" ,;:*"))
    return text[:-1] if re.search(r"\w{3,}\.$", text) and not re.search(r"\b(Jr|Esq)\.$", text) else text


@lru_cache(1 << 16)
def name_like(text: str) -> bool:
    """Two to six words that may be a person's name: capitals, initials, ranks, particles, no word of a
    sentence."""
    words = re.findall(r"[^\s,]+", person(text))
    if not 2 <= len(words) <= 7 or re.search(r"[!?;:]|\d|\w{3,}\.$", person(text)):
        return False
    plain = [w.strip(".\"'\u2018\u2019\u201c\u201d()").casefold().replace(".", "") for w in words]
    if any(bare in NO_NAME for w, bare in zip(words, plain) if not re.fullmatch(r"[A-Z]\.", w)):
        return False
    named = [w for w, bare in zip(words, plain) if bare not in PARTICLE | RANK]
    return bool(named) and all(
        w.lstrip("\"'\u2018\u201c(")[:1].isupper() or w[:2] in ("d'", "d\u2019") for w in named
    )


def label_name(text: str) -> str:
    """The author in a magazine's line "A Strange Tale of the Sea by John Writer", or an empty string."""
    found = LABEL.fullmatch(" ".join(text.split()))
    return found["name"].strip() if found and name_like(found["name"]) else ""


def cells(line: str) -> list[str]:
    """The columns of a line, without page numbers: wide spaces, tabs and leaders part them."""
    parts = [
        re.sub(r"(?<!\bJr)(?<!\bEsq)[\s.\u2026_]+$", "", p).lstrip(" ._\u2026")
        for p in re.split(r"\s{3,}|\t|(?:\s?[.\u2026]){3,}", line.strip())
    ]
    return [p for p in parts if re.search(r"[^\W\d]", p) and not re.fullmatch(r"[xvil]{1,6}|[IVXLC]{1,7}", p)]


def halves(text: str) -> list[str]:
    """The two halves of a heading that has title and author on one line, or fewer or more parts."""
    parts = re.split(r"\s{2,}|\t|\s*(?:--|\u2014|\u2013)\s*|\s-\s", text.strip())
    return [p.strip() for p in parts if p.strip()]


def names_column(pairs: list[tuple[str, str]]) -> int | None:
    """Which of two columns holds people: 0, 1, or None where neither reads like names."""
    if len(pairs) < 3:
        return None
    score = [
        sum(name_like(p[c]) * (1 + 2 * bool(BY.match(p[c]))) for p in pairs) / len(pairs) for c in (0, 1)
    ]
    if max(score) < 0.6:
        return None
    if score[0] == score[1]:  # initials are in names, hardly ever in titles
        score = [sum(bool(re.search(r"\b[A-Z]\.", p[c])) for p in pairs) for c in (0, 1)]
    return 0 if score[0] > score[1] else 1
