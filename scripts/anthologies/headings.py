"""The headings of a book: runs of short lines set apart, with title, author and source line told from each
other.

A heading is looked at by its form, against the page of contents (contents.py), and against the other headings
of the book: whether names are above titles or below them is decided once for all.

Used by starts.py and stories.py. Left out: which headings begin stories.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import accumulate

from scripts.anthologies import titles as form
from scripts.anthologies.books import END_MARK, LEADING, ORDINAL, Block
from scripts.anthologies.contents import Contents
from scripts.anthologies.titles import fold, name_like, one_line, person

TRIES = 20_000  # near matches with the contents; of the catalogue no book needs a thousand


@dataclass
class Head:
    """A run of heading blocks [start, end) above some prose."""

    start: int
    end: int
    title: str
    style: tuple
    author: str = ""
    credit: str = ""  # where the story was printed
    entry: int | None = None  # its place in the contents
    matter: bool = False  # front or back matter, not a story
    ordinal: bool = False  # only a number: a part of a story
    poems: bool = False  # from here on poems, essays or plays
    verse: bool = False  # what follows is verse
    numbered: bool = False
    label: str = ""  # all that the heading says, for words like "Part Two"
    words: int = 0  # up to the next head that is as strong
    near: int = 0  # up to the next head of any kind
    why: str = ""  # why it begins no story

    def leave_out(self, why: str) -> None:
        self.matter, self.why = True, why


# ------------------------------------------------------------------ lines


def split_headings(blocks: list[Block], toc: Contents) -> list[Block]:
    """The blocks, with title, author and source line of one heading block on blocks of their own."""
    first = toc.blocks.stop
    pairs = {i: p for i, b in enumerate(blocks) if i >= first and len(p := _halves(b, toc)) == 2}
    who, out = form.names_column(list(pairs.values())), blocks[:first]
    for i, b in enumerate(blocks[first:], first):
        pieces, gap = _lines(b, toc), 1
        if who is not None and i in pairs and (name_like(pairs[i][who]) or form.BY.match(pairs[i][who])):
            pieces, gap = pairs[i], 2
        out.append(b if len(pieces) == 1 else replace(b, text=pieces[0]))
        out += [Block(text, gap, b.level, b.kind) for text in pieces[1:]]
    return out


def _lines(b: Block, toc: Contents) -> list[str]:
    """TITLE, by AUTHOR and (SOURCE) of one block."""
    lines = b.text.strip().split("\n")
    if (
        not 1 < len(lines) < 6
        or b.kind in ("list", "break")
        or b.gap < 2
        and not b.level
        and not form.is_byline(lines[0])
    ):
        return [b.text]
    pieces = lines[:1]
    for line in lines[1:]:
        by = form.is_byline(line) and form.BY.match(line.strip()) and name_like(line)
        if by or form.is_source(line) or fold(person(line)) in toc.names:
            pieces.append(line)
        else:
            pieces[-1] += "\n" + line
    return pieces


def _halves(b: Block, toc: Contents) -> list[str]:
    """AUTHOR -- TITLE or TITLE    AUTHOR, where the block may be such a heading."""
    if "\n" in b.text.strip() or b.words > 24 or b.links or b.gap < 2 and not b.level:
        return []
    parts = form.halves(b.text)
    fits = (
        len(parts) == 2 and all(map(fold, parts)) and form.heading_like(b) and fold(b.text) not in toc.titles
    )
    return parts if fits else []


# ------------------------------------------------------------------ headings


def heads(blocks: list[Block], toc: Contents) -> list[Head]:
    levels = Counter(b.level for b in blocks if b.level)
    rare = {level for level, n in levels.items() if n < 3 <= max(levels.values())}  # the title page's
    runs, i = [], toc.blocks.stop
    while i < len(blocks):
        j = i + 1
        if form.heading_like(blocks[i]) or listed(blocks[i], toc):
            while j < min(len(blocks), i + 9) and _continues(blocks, i, j, toc):
                j += 1
            runs.append((i, j))
        i = j
    names_first = _names_first(blocks, runs, toc)
    found = [_head(blocks, i, j, toc, rare, names_first) for i, j in runs]
    _measure(found, blocks)
    return found


def _continues(blocks: list[Block], i: int, j: int, toc: Contents) -> bool:
    """Does block j (title, author, source, note in brackets) belong to the heading that block i begins?"""
    b, text, above = blocks[j], blocks[j].text.strip(), blocks[j - 1].text.strip()
    number, below_number = ORDINAL.fullmatch(text), ORDINAL.fullmatch(above)
    if b.words > 40 or not number and not below_number and _new_page(blocks, i, j, toc):
        return False
    loud = b.words <= 12 and text.isupper() and not text.endswith("--")
    if (
        form.heading_like(b)
        or loud
        or number
        or _is_note(text)
        or form.is_byline(text)
        or fold(person(text)) in toc.names
    ):
        return b.kind not in ("list", "break")
    if listed(b, toc, near=True) or below_number and form.title_form(text) and not b.level:
        return True
    alone = b.words < 6 and "\n" not in text and name_like(text)
    return alone and not re.search(r"(?<!\bJr)[.!?:\"']$", text)


def _new_page(blocks: list[Block], i: int, j: int, toc: Contents) -> bool:
    """Does block j begin a heading of its own, below a signature or far below a name?"""
    if blocks[j].gap < 4 or j < i + 2:
        return 0 < blocks[j].level < blocks[i].level
    return any(form.is_byline(one_line(b.text)) or fold(person(b.text)) in toc.names for b in blocks[i:j])


def listed(block: Block, toc: Contents, near: bool = False) -> tuple[int, int] | None:
    """(certainty, place in the contents) if the block is there; `near`: it is right under a heading."""
    text = one_line(block.text)
    if len(text) > 160 or len(text.split()) > 30 or block.kind in ("list", "break") or not toc.titles:
        return None
    key = fold(text)
    if toc.settled:
        return (3, toc.titles[key][0]) if key in toc.titles else None
    if ORDINAL.fullmatch(text) or not (near or block.gap > 1 or block.level or text.isupper() or block.ids):
        return None
    if near and form.SPEECH.match(text) and not text.isupper():
        return None
    if key in toc.titles and len(key) > 1:
        return 3, toc.titles[key][0]
    for anchor in block.ids:
        if anchor in toc.anchors and (block.level or form.title_form(text)):
            return 2, toc.anchors[anchor]
    fits = len(key) > 5 and (form.heading_like(block) or near and form.title_form(text))
    return _nearly(key, toc) if fits else None


def _nearly(key: str, toc: Contents) -> tuple[int, int] | None:
    """A title that the contents shorten, lengthen or spell otherwise."""
    start, end = toc.by_start.get(key[:2], []), toc.by_end.get(key[-3:], [])
    toc.tries += len(start) + len(end)
    if toc.tries > TRIES:
        return None
    for other in start:
        shorter, longer = sorted((key, other), key=len)
        if len(shorter) > 6 and longer.startswith(shorter) and len(shorter) > 0.45 * len(longer):
            return 1, toc.titles[other][0]
    for other in start + end:
        if abs(len(other) - len(key)) < 8 and SequenceMatcher(None, other, key).ratio() > 0.85:
            return 1, toc.titles[other][0]
    return None


def _names_first(blocks: list[Block], runs: list[tuple[int, int]], toc: Contents) -> bool | None:
    """Is the author named above the title (True), below it (False), or only after "by" (None)?"""
    pairs = []
    for i, j in runs:
        texts = [one_line(b.text) for b in blocks[i:j]]
        plain = {fold(t): t for t in texts if not _is_note(t) and not (form.is_byline(t) and name_like(t))}
        plain = [t for t in plain.values() if not ORDINAL.fullmatch(t) and not form.MATTER.fullmatch(t)]
        if len(plain) > 1:
            pairs.append(plain[:2])
    column = form.names_column(pairs)
    return None if column is None else column == 0


def _is_note(text: str) -> bool:
    return text[:1] in "[(*" or form.is_source(text)


def _roles(texts: dict[int, str], sure: dict, toc: Contents, names_first: bool | None) -> tuple[list, list]:
    """(blocks that may be titles, blocks that name an author) of one run; a lone line is always a title."""
    plain = [k for k in texts if not (_is_note(texts[k]) or ORDINAL.fullmatch(texts[k]))]
    plain = plain or [k for k in texts if form.is_source(texts[k]) and texts[k][:1] not in "[("][:1]
    if len(plain) < 2:
        return plain, []
    open_ = [k for k in plain if sure.get(k, (0,))[0] < 3]
    known = {k for k in open_ if fold(person(texts[k])) in toc.names}
    by = {k for k in open_ if form.is_byline(texts[k]) or form.label_name(texts[k])}
    authors = known | by
    if len(authors) == len(
        plain
    ):  # titles like "Anonymous", "By the Sea": the first line that is not a person's
        first = next((k for k in plain if k not in known and not name_like(texts[k])), plain[0])
        authors -= {k for k in plain if fold(texts[k]) == fold(texts[first])}
    if not authors and names_first is not None:
        unlike: dict[str, int] = {}
        for k in plain:
            unlike.setdefault(fold(texts[k]), k)
        different = list(unlike.values())
        guess = different[:1] if names_first else different[1:2]
        authors = {k for k in guess if k in open_ and name_like(texts[k])}
    weak = {k for k in by if not name_like(texts[k]) and not form.label_name(texts[k])}
    rest = [k for k in plain if k not in authors]
    swapped = weak and rest and (max(weak) > rest[0] if names_first else min(weak) < rest[0])
    if swapped and not known and all(name_like(texts[k]) for k in rest):
        authors = set(rest)  # TOLD BY THE FIRE, by Captain Meek
    return [k for k in plain if k not in authors], sorted(authors)


def _head(blocks: list[Block], i: int, j: int, toc: Contents, rare: set, names_first: bool | None) -> Head:
    text = {k: one_line(blocks[k].text) for k in range(i, j)}
    sure = {k: found for k in text if (found := listed(blocks[k], toc, near=k > i))}
    titles, authors = _roles(text, sure, toc, names_first)
    sure = {k: v for k, v in sure.items() if k not in authors}
    titles = [k for k in titles if blocks[k].level not in rare] or titles
    key = max(sure, key=lambda k: (sure[k][0], k)) if sure else titles[0] if titles else i
    b, entry = blocks[key], sure[key][1] if key in sure else None
    letters = [c for c in b.text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) > 0.7 * len(letters)
    style = ("h", b.level) if b.level else ("t", min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
    matter = form.MATTER.fullmatch(text[key]) or END_MARK.fullmatch(text[key])
    notes = any(form.MATTER.fullmatch(t) and "note" in t.lower() for t in text.values())
    title = LEADING.sub("", text[key]) or text[key]
    part = any(form.PART.fullmatch(text[k]) for k in range(i, key))
    below = blocks[j].text.split("\n") if j < len(blocks) else []
    return Head(
        start=i,
        end=j,
        title=title,
        style=style,
        author=form.label_name(text[key])
        or next((person(text[k]) for k in authors), "")
        or toc.authors.get(entry, ""),
        credit=next((t for t in text.values() if form.is_source(t)), ""),
        entry=entry,
        matter=bool(matter or notes or entry in toc.left_out),
        ordinal=not titles,
        poems=any(form.NO_STORIES.fullmatch(text[k]) for k in titles),
        verse=len(below) > 1 and all(len(line) < 50 for line in below),
        numbered=title != text[key] or part,
        label=" ".join(text.values()),
    )


def _measure(found: list[Head], blocks: list[Block]) -> None:
    """How many words follow each head, up to the next and up to the next as strong."""
    total, after, nearest = [0, *accumulate(b.words for b in blocks)], {}, len(blocks)
    for h in reversed(found):
        ends = [start for style, start in after.items() if strong(style, h.style)]
        h.words = total[min(ends, default=len(blocks))] - total[h.end]
        h.near = total[nearest] - total[h.end]
        nearest = h.start
        if not h.ordinal:
            after[h.style] = h.start


def strong(style: tuple, other: tuple) -> bool:
    """Is a heading of `style` at least as strong as one of `other`?"""
    if style[0] != other[0]:
        return style[0] == "h"
    if style[0] == "h":
        return style[1] <= other[1]
    return style[1:] >= other[1:]
