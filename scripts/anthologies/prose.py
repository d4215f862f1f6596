"""The blocks of one section -> paragraphs of prose: wraps, marks, notes and pictures undone.

Used by edges.py and stories.py. Left out: footnotes, pictures, page numbers. Poems keep their lines, tables do not
keep their columns.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from scripts.anthologies.books import Block

# a note of its own, and the marks that point to notes and pages
FOOTNOTE = re.compile(r"\s*(\[\d{1,3}\]|\[[A-Z*]\]|\(\d{1,3}\)\s|\d{1,2}\.\[)\s*\S")
MARK = re.compile(
    r"\[\d{1,3}\]|\[[A-Z*\u2020]\]|(?<=[\w.,;:!?\"\u201d\u2019])\(\d{1,3}\)|[\[{]p(?:g|age)?\.? ?\d+[\]}]"
)
IN_BRACKETS = re.compile(  # may hold notes of their own, and run over paragraphs
    r"\[\s*_?(?:Illustration|Footnote|Transcriber|Sidenote|Blank Page|Decoration|Image|Pg|Page)\b"
    r"[^\[\]]{0,4000}(?:\[[^\[\]]{0,400}\][^\[\]]{0,4000}){0,20}\]_?",
    re.I,
)
ITALIC = re.compile(r"(?<![A-Za-z0-9])_([^_]+?)_(?![A-Za-z0-9])|=([^=\n]+)=")
SCENE_BREAK = "* * *"


@dataclass
class Paragraph:
    """Prose on one line, or verse line by line. `indent`: columns right of the margin; `gap`: blank lines above."""

    text: str
    indent: int = 0
    gap: int = 1
    verse: bool = False
    apart: bool = False  # markup sets it apart: italics, a quotation, a class of its own


def paragraphs(
    blocks: list[Block], wrapped: bool = False, marks: bool = False, marked_up: bool = False
) -> list[Paragraph]:
    """Hard wraps, marks, notes and pictures undone.

    `wrapped`: plain text, whose lines end at a margin, not where the author ended them. `marks`: the book has notes
    that begin with (1), so a (1) after a space points to one too. `marked_up`: notes and italics are markup already
    dealt with, so brackets and underscores are the author's.
    """
    found = []
    widths = sorted(len(line) for b in blocks for line in b.text.split("\n"))
    width = max(60, widths[int(0.9 * len(widths))] if widths else 0)  # a poem alone has no margin of its own
    raw = IN_BRACKETS.sub("", "".join("\n" * (b.gap + 1) + b.text for b in blocks))
    pieces = re.split(r"(^\s*\n|\n\s*\n)", raw)[1:]  # blank lines, text, blank lines, text ...
    for above, text in zip(pieces[::2], pieces[1::2]):
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines or FOOTNOTE.match(text):
            continue
        verse, apart = _is_verse_block(lines, width), bool(re.fullmatch(r"\s*_[^_]+_\s*", text))
        if re.fullmatch(r"[\s*.\u2022~#\u2015\u2014\u2500_-]*", text):
            text = SCENE_BREAK
        elif wrapped and not verse:
            text = re.sub(r"(?<=[a-z]-)\n\s*(?=[a-z])", "", "\n".join(lines))  # red-and-/white
            text = " ".join(text.split())
        else:
            text = "\n".join(" ".join(line.split()) for line in lines)
        text = re.sub("[\u2060\u00ad]", "", text if marked_up else _unmarked(text, marks))
        text = re.sub(" {2,}", " ", text.replace("\u00a0", " ")).strip()
        if text:
            indent = min(len(line) - len(line.lstrip()) for line in lines)
            found.append(Paragraph(text, indent, above.count("\n") - 1, verse, apart))
    margin = Counter(p.indent for p in found if not p.verse).most_common(1)
    for p in found:
        p.indent -= margin[0][0] if margin else 0
    return found


def _unmarked(text: str, marks: bool) -> str:
    text = MARK.sub("", text)
    text = re.sub(r"\s\(\d{1,3}\)(?=[\s.,;:!?]|$)", "", text) if marks else text
    return ITALIC.sub(lambda m: m[1] or m[2], text).replace("_", "")


def _is_verse_block(lines: list[str], width: int) -> bool:
    """Lines broken on purpose: well short of the margin, most beginning with a capital."""
    bare = [line.strip() for line in lines]
    capitals = sum(line.lstrip("\"'\u201c\u2018(_").strip()[:1].isupper() for line in bare)
    return len(lines) > 1 and max(map(len, bare)) <= 0.85 * width and capitals >= 0.7 * len(lines)


def is_verse(text: str) -> bool:
    verse = [p for p in text.split("\n\n") if "\n" in p]
    prose, lines = text.count("\n\n") + 1 - len(verse), sum(p.count("\n") + 1 for p in verse)
    return lines > 2.5 * prose and sum(map(len, verse)) > 0.7 * len(text)
