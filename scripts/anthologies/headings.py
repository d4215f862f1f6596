"""The headings of a book: runs of short lines set apart, with the title, author and source line told from
each other.

A heading is looked at by its form, against the page of contents (contents.py), and against the other
headings of the
book: whether names stand above titles or below them is decided once for all.

Used by starts.py and stories.py. Left out: which headings begin stories.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from scripts.anthologies.books import END_MARK, LEADING, ORDINAL, Block
from scripts.anthologies.bylines import (
    BY,
    halves,
    is_byline,
    is_source,
    label_name,
    name_like,
    names_column,
    person,
)
from scripts.anthologies.contents import Contents
from scripts.anthologies.titles import (
    MATTER,
    NO_STORIES,
    NOTES,
    PART,
    SPEECH,
    fold,
    heading_like,
    one_line,
    title_form,
)

TRIES = 20_000  # near matches with the contents; of the catalogue no book needs a thousand
TITLE_PAGE_BY = r"\W*(edited|compiled|selected|collected|chosen|arranged)( and \w+)? by\b"
EDITED = re.compile(TITLE_PAGE_BY, re.I)


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


# ------------------------------------------------------------------ lines


def split_headings(blocks: list[Block], toc: Contents) -> list[Block]:
    """The blocks, with title, author and source line of one heading block on blocks of their own."""
    out = blocks[: toc.blocks.stop]
    for b in blocks[toc.blocks.stop :]:
        lines = b.text.strip().split("\n")
        parted = (
            len(lines) > 1
            and len(lines) < 6
            and (b.gap > 1 or b.level or is_byline(lines[0]))
            and b.kind not in ("list", "break")
        )
        cut = [k for k in range(1, len(lines)) if parted and _is_apparatus(lines[k], toc)]
        if parted and not cut and fold(lines[0]) in toc.names:
            cut = [1]
        edges = [0, *cut, len(lines)]
        pieces = ["\n".join(lines[x:y]) for x, y in zip(edges, edges[1:])] if cut else [b.text]
        for n, text in enumerate(pieces):
            piece = b if len(pieces) == 1 else replace(b, text=text, words=len(text.split()))
            out.append(piece if n == 0 else replace(piece, gap=1, ids=[], links=[]))
    return _part_halves(out, toc)


def _is_apparatus(line: str, toc: Contents) -> bool:
    line = line.strip()
    return bool(
        is_byline(line)
        and BY.match(line)
        and name_like(line)
        or is_source(line)
        or fold(person(line)) in toc.names
    )


def _part_halves(blocks: list[Block], toc: Contents) -> list[Block]:
    """Headings of the form AUTHOR -- TITLE or TITLE    AUTHOR in two, where the whole book has them so."""
    pairs = {}
    for i, b in enumerate(blocks):
        if (
            i >= toc.blocks.stop
            and "\n" not in b.text.strip()
            and (b.gap > 1 or b.level)
            and b.words < 25
            and not b.links
            and b.kind != "list"
        ):
            parts = halves(b.text)
            if (
                len(parts) == 2
                and fold(b.text) not in toc.titles
                and all(map(fold, parts))
                and heading_like(b)
            ):
                pairs[i] = parts
    who = names_column([tuple(p) for p in pairs.values()])
    if who is None:
        return blocks
    out = []
    for i, b in enumerate(blocks):
        first, second = pairs.get(i, ("", ""))
        if i in pairs and (name_like(pairs[i][who]) or BY.match(pairs[i][who])):
            out.append(replace(b, text=first, words=len(first.split())))
            out.append(replace(b, text=second, words=len(second.split()), gap=2, ids=[], links=[]))
        else:
            out.append(b)
    return out


# ------------------------------------------------------------------ headings


def heads(blocks: list[Block], toc: Contents) -> list[Head]:
    levels = Counter(b.level for b in blocks if b.level)
    rare = {level for level, n in levels.items() if n < 3 <= max(levels.values())}  # the title page's
    runs, i = [], toc.blocks.stop
    while i < len(blocks):
        if not heading_like(blocks[i]) and listed(blocks[i], toc) is None:
            i += 1
            continue
        j = i + 1
        while j < min(len(blocks), i + 9) and _continues(blocks, i, j, toc):
            j += 1
        runs.append((i, j))
        i = j
    names_first = _names_first(blocks, runs, toc)
    found = []
    for i, j in runs:
        while i < j:
            found.append(_head(blocks, i, j, toc, rare, names_first))
            i = max(found[-1].end, i + 1)
            while i < j and not (heading_like(blocks[i]) or listed(blocks[i], toc)):
                i += 1
    _measure(found, blocks)
    return found


def _new_page(blocks: list[Block], i: int, j: int, toc: Contents) -> bool:
    """Does block j begin a heading of its own, below the heading that block i begins?"""
    if ORDINAL.fullmatch(blocks[j - 1].text.strip()) or ORDINAL.fullmatch(blocks[j].text.strip()):
        return False
    apart = blocks[j].gap > 3 and j > i + 1 and any(_is_author(b.text, toc) for b in blocks[i:j])
    lower = 0 < blocks[j].level < blocks[i].level  # a signature above a title
    title_page = EDITED.match(blocks[j - 1].text) and listed(blocks[i], toc) is None
    return bool(apart or lower or title_page)


def _is_author(text: str, toc: Contents) -> bool:
    return is_byline(one_line(text)) or fold(person(text)) in toc.names


def _continues(blocks: list[Block], i: int, j: int, toc: Contents) -> bool:
    """Does block j still belong to the heading that block i begins (title, author, source, note in
    brackets)?"""
    text, above = blocks[j].text.strip(), blocks[j - 1].text.strip()
    if len(text.split()) > 40 or _new_page(blocks, i, j, toc):
        return False
    if (
        heading_like(blocks[j])
        or text.isupper()
        and len(text.split()) <= 12
        and not text.endswith("--")
        or is_byline(text)
        or ORDINAL.fullmatch(text)
        or text[:1] in "[(*"
        or is_source(text)
        or fold(person(text)) in toc.names
    ):
        return blocks[j].kind not in ("list", "break")
    if listed(blocks[j], toc, near=True) is not None:
        return True
    alone = (
        "\n" not in text
        and len(text.split()) < 6
        and name_like(text)
        and not re.search(r"(?<!\bJr)[.!?:\"']$", text)
    )
    return bool(ORDINAL.fullmatch(above)) and title_form(text) and not blocks[j].level or alone


def listed(block: Block, toc: Contents, near: bool = False) -> tuple[int, int] | None:
    """(certainty, place in the contents) if the block's text or anchor is there; `near`: right under a
    heading."""
    text = one_line(block.text)
    if len(text) > 160 or len(text.split()) > 30 or block.kind in ("list", "break") or not toc.titles:
        return None
    key = fold(text)
    if toc.settled and key in toc.titles:
        return 3, toc.titles[key][0]
    if ORDINAL.fullmatch(text) or not (near or block.gap > 1 or block.level or text.isupper() or block.ids):
        return None
    if near and SPEECH.match(text) and not text.isupper():
        return None
    if key in toc.titles and len(key) > 1:
        return 3, toc.titles[key][0]
    if toc.settled:
        return None
    for anchor in block.ids:
        if anchor in toc.anchors and (block.level or title_form(text)):
            return 2, toc.anchors[anchor]
    if len(key) < 6 or not (heading_like(block) or near and title_form(text)):
        return None
    return _nearly(key, toc)


def _nearly(key: str, toc: Contents) -> tuple[int, int] | None:
    """A title that the contents shorten, lengthen or spell otherwise."""
    start, end = toc.by_start.get(key[:2], []), toc.by_end.get(key[-3:], [])
    toc.tries += len(start) + len(end)
    if toc.tries > TRIES:
        return None
    for other in start:
        longer, shorter = (other, key) if len(other) > len(key) else (key, other)
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
        texts = {fold(t): t for k in range(i, j) if not _no_name(t := one_line(blocks[k].text))}
        if len(texts) > 1:
            pairs.append(tuple(texts.values())[:2])
    in_toc = [
        fold(person(p[0])) in toc.names for p in pairs if {fold(person(p[0])), fold(person(p[1]))} & toc.names
    ]
    if len(in_toc) > 2:
        return sum(in_toc) > 0.5 * len(in_toc)
    column = names_column(pairs)
    return None if column is None else column == 0


def _no_name(text: str) -> bool:
    plain = _is_note(text) or ORDINAL.fullmatch(text) or MATTER.fullmatch(text)
    return bool(plain or is_byline(text) and name_like(text))


def _is_note(text: str) -> bool:
    return text[:1] in "[(*" or is_source(text)


def _roles(
    texts: dict[int, str], sure: dict, toc: Contents, names_first: bool | None
) -> tuple[list[int], list[int]]:
    """(blocks that may be titles, blocks that name an author) of one run; a lone line is a title whatever
    it looks like."""
    plain = [k for k in texts if not (_is_note(texts[k]) or ORDINAL.fullmatch(texts[k]))]
    plain = plain or [k for k in texts if is_source(texts[k]) and texts[k][:1] not in "[("][:1]
    exact = {k for k in sure if sure[k][0] == 3}
    known = {k for k in plain if fold(person(texts[k])) in toc.names and k not in exact}
    by = {k for k in plain if (is_byline(texts[k]) or label_name(texts[k])) and k not in exact}
    if len(plain) < 2:
        return plain, []
    authors = known | by
    if len(authors) == len(
        plain
    ):  # THE titles "Anonymous", "By the Sea": the first line that is not a person's
        first = next((k for k in plain if k not in known and not name_like(texts[k])), plain[0])
        authors -= {k for k in plain if fold(texts[k]) == fold(texts[first])}
    different = [k for n, k in enumerate(plain) if fold(texts[k]) not in {fold(texts[o]) for o in plain[:n]}]
    if not authors and names_first is not None:
        guess = different[:1] if names_first else different[1:2]
        authors = {k for k in guess if k not in exact and name_like(texts[k])}
    weak = {k for k in by if not name_like(texts[k]) and not label_name(texts[k])}
    rest = [k for k in plain if k not in authors]
    swapped = weak and rest and (max(weak) > rest[0] if names_first else min(weak) < rest[0])
    if swapped and not known and all(name_like(texts[k]) for k in rest):
        authors = set(rest)  # TOLD BY THE FIRE, by Captain Meek
    return [k for k in plain if k not in authors], sorted(authors)


def _head(
    blocks: list[Block], i: int, j: int, toc: Contents, rare: set[int], names_first: bool | None
) -> Head:
    text = {k: one_line(blocks[k].text) for k in range(i, j)}
    sure = {k: found for k in text if (found := listed(blocks[k], toc, near=k > i))}
    titles, authors = _roles(text, sure, toc, names_first)
    sure = {k: v for k, v in sure.items() if k not in authors}
    titles = [k for k in titles if blocks[k].level not in rare] or titles
    key = max(sure, key=lambda k: (sure[k][0], k)) if sure else titles[0] if titles else i
    # what is below the title and is neither number, author nor note may be the story's first line
    end = next((k for k in range(key + 1, j) if blocks[k].level and re.search(r"[,;]$", text[k])), j)
    b = blocks[key]
    letters = [c for c in b.text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) > 0.7 * len(letters)
    style = ("h", b.level) if b.level else ("t", min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
    edited = key not in sure and any(EDITED.match(t) for t in text.values())
    matter = (
        edited
        or bool(MATTER.fullmatch(text[key]) or END_MARK.fullmatch(text[key]))
        or any(MATTER.fullmatch(text[k]) and "note" in text[k].lower() for k in text)
    )
    poems = any(NO_STORIES.fullmatch(text[k]) for k in titles)
    named = next((person(text[k]) for k in authors), "")
    if key > i and (b.level < blocks[i].level if b.level else 3 <= b.gap > blocks[i].gap):
        i = key  # what is closer to the text above belongs to it
    title = LEADING.sub("", text[key]) or text[key]
    entry = sure[key][1] if key in sure else None
    below = blocks[end].text.split("\n") if end < len(blocks) else []
    return Head(
        i,
        end,
        title,
        style,
        label_name(text[key]) or named or toc.authors.get(entry, ""),
        next((text[k] for k in text if is_source(text[k])), ""),
        entry,
        matter or entry in toc.left_out,
        not titles,
        poems,
        len(below) > 1 and all(len(line) < 50 for line in below),
        title != text[key] or any(PART.fullmatch(text[k]) for k in range(i, key)),
        " ".join(text.values()),
    )


def _measure(found: list[Head], blocks: list[Block]) -> None:
    """How many words follow each head, up to the next and up to the next as strong. A part's heading ends
    no story."""
    total = [0]
    for b in blocks:
        total.append(total[-1] + b.words)
    after: dict[tuple, int] = {}
    notes, nearest = len(blocks), len(blocks)
    for h in reversed(found):
        ends = [start for style, start in after.items() if strong(style, h.style)]
        h.words = total[min([*ends, notes])] - total[h.end]
        h.near = total[nearest] - total[h.end]
        nearest = h.start
        if not h.ordinal:
            after[h.style] = h.start
        if h.matter and NOTES.fullmatch(h.title):
            notes = h.start


def strong(style: tuple, other: tuple) -> bool:
    """Is a heading of `style` at least as strong as one of `other`?"""
    if style[0] != other[0]:
        return style[0] == "h"
    if style[0] == "h":
        return style[1] <= other[1]
    return style[1] > other[1] or style[1] == other[1] and style[2] >= other[2]
