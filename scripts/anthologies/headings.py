"""The headings of a book, and which of them begin stories.

A heading is a run of short lines set apart: title, author and source line are told from each other by their
form, against the page of contents (titles.py), and against the other headings of the book. Titles that are
in the contents begin stories; headings as strong between them do too (contents forget some). Without contents
the strongest style of heading that at least three sections share decides. When the evidence disagrees a story
is left out rather than cut in half. Left out: reading what a section says; only its form is looked at.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import accumulate

from scripts.anthologies import titles as form
from scripts.anthologies.books import END_MARK, LEADING, ORDINAL, Block
from scripts.anthologies.titles import MIN_WORDS, Contents, fold, name_like, one_line, person

TRIES = 2000  # headings looked for among titles spelled otherwise; most books of the catalogue have fewer
FILLER = 500  # words: a filler has a heading of its own, no author, and comes last before the next story
MANY_HANDS = 0.6  # share of the sections that name an author, above which one that names none is not a story


@dataclass(order=True)
class Head:
    """A run of heading blocks [start, end) above some prose."""

    start: int
    end: int
    title: str
    style: tuple  # the greater, the stronger: markup, else blank lines above and capitals
    author: str = ""
    credit: str = ""  # where the story was printed
    entry: int | None = None  # its place in the contents
    ordinal: bool = False  # only a number: a part of a story
    poems: bool = False  # from here on poems, essays or plays
    verse: bool = False  # what follows is verse
    numbered: bool = False
    words: int = 0  # up to the next head that is as strong
    why: str = ""  # why what it begins is not a story


# ------------------------------------------------------------------ lines


def split_headings(blocks: list[Block], toc: Contents) -> list[Block]:
    """The blocks, with title, author and source line of one heading block on blocks of their own."""
    first, pairs = toc.blocks.stop, {}
    for i, b in enumerate(blocks[first:], first):  # AUTHOR -- TITLE or TITLE    AUTHOR
        one = "\n" not in b.text.strip() and b.words <= 24 and not b.links and fold(b.text) not in toc.titles
        if one and form.heading_like(b):
            halves = re.split(r"\s{2,}|\t|\s*(?:--|\u2014|\u2013)\s*|\s-\s", b.text.strip())
            if len(named := list(filter(fold, halves))) == 2:
                pairs[i] = named
    who, out = form.names_column(list(pairs.values())), blocks[:first]
    for i, b in enumerate(blocks[first:], first):
        pieces, gap = _lines(b), 1
        if who is not None and i in pairs:
            pieces, gap = pairs[i], 2
        out.append(b if len(pieces) == 1 else replace(b, text=pieces[0]))
        out += [Block(text, gap, b.level, b.kind) for text in pieces[1:]]
    return out


def _lines(b: Block) -> list[str]:
    """TITLE, by AUTHOR and (SOURCE) of one block."""
    lines = b.text.strip().split("\n")
    apart = b.gap > 1 or b.level or form.is_byline(lines[0])
    if not 1 < len(lines) < 6 or not apart:
        return [b.text]
    pieces = lines[:1]
    for line in lines[1:]:
        by = form.is_byline(line) and form.BY.match(line.strip()) and name_like(line)
        if by or form.is_source(line):
            pieces.append(line)
        else:
            pieces[-1] += "\n" + line
    return pieces


# ------------------------------------------------------------------ headings


def heads(blocks: list[Block], toc: Contents) -> list[Head]:
    """The headings below the page of contents, each with what follows it."""
    levels = Counter(b.level for b in blocks if b.level)
    rare = {level for level, n in levels.items() if n < 3 <= max(levels.values())}  # the title page's
    runs, i, total = [], toc.blocks.stop, [0, *accumulate(b.words for b in blocks)]
    while i < len(blocks):
        j = i + 1
        if form.heading_like(blocks[i]) or listed(blocks[i], toc):
            while j < min(len(blocks), i + 9) and _continues(blocks, i, j, toc):
                j += 1
            runs.append((i, j))
        i = j
    names_first = _names_first(blocks, runs, toc)
    found: list[Head] = []
    for i, j in runs:
        h, before = _head(blocks, i, j, toc, rare, names_first), found[-1] if found else None
        # a half-title and the title after it are one heading
        if before and h.entry is not None and h.entry == before.entry and total[i] - total[before.end] < 40:
            h.start, h.credit = before.start, h.credit or before.credit
            found.pop()
        found.append(h)
    after: dict[tuple, int] = {}  # where the next head of each style is
    for h in reversed(found):
        ends = [start for style, start in after.items() if style >= h.style]
        h.words = total[min(ends, default=len(blocks))] - total[h.end]
        if not h.ordinal:
            after[h.style] = h.start
    return found


def _continues(blocks: list[Block], i: int, j: int, toc: Contents) -> bool:
    """Does block j (title, author, source, note in brackets) belong to the heading that block i begins?"""
    b, text, above = blocks[j], blocks[j].text.strip(), blocks[j - 1].text.strip()
    number, below_number = ORDINAL.fullmatch(text), ORDINAL.fullmatch(above)
    new_page = 0 < b.level < blocks[i].level
    if b.gap > 3 and j > i + 1:  # far below a byline
        new_page = any(form.is_byline(one_line(o.text)) for o in blocks[i:j])
    if b.words > 40 or new_page and not number and not below_number:
        return False
    loud = b.words <= 12 and text.isupper() and not text.endswith("--")
    about = _is_note(text) or form.is_byline(text) or fold(person(text)) in toc.names
    if form.heading_like(b) or loud or number or about:
        return b.kind not in ("list", "break")
    if listed(b, toc, near=True) or below_number and form.title_form(text) and not b.level:
        return True
    alone = b.words < 6 and "\n" not in text and name_like(text)
    return alone and not re.search(r"(?<!\bJr)[.!?:\"']$", text)


def listed(block: Block, toc: Contents, near: bool = False) -> tuple[int, int] | None:
    """(certainty, place in the contents) if the block is there; `near`: it is right under a heading."""
    text = one_line(block.text)
    if len(text) > 160 or len(text.split()) > 30 or block.kind in ("list", "break") or not toc.titles:
        return None
    key = fold(text)
    if toc.settled:
        return (3, toc.titles[key][0]) if key in toc.titles else None
    if ORDINAL.fullmatch(text) or not (near or block.gap > 1 or block.level or text.isupper()):
        return None
    if near and form.SPEECH.match(text) and not text.isupper():
        return None
    if key in toc.titles:
        return 3, toc.titles[key][0]
    fits = len(key) > 5 and (form.heading_like(block) or near and form.title_form(text))
    return _nearly(key, toc) if fits else None


def _nearly(key: str, toc: Contents) -> tuple[int, int] | None:
    """A title that the contents spell otherwise."""
    toc.tries += 1
    alike = [t for t in toc.titles if t[:2] == key[:2] or t[-3:] == key[-3:]] if toc.tries < TRIES else []
    close = get_close_matches(key, alike, 1, 0.85)
    return (1, toc.titles[close[0]][0]) if close else None


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
    by = {k for k in open_ if form.is_byline(texts[k])}
    authors = known | by
    if len(authors) == len(plain):  # titles like "By the Sea": the first line that is not a person's
        first = next((k for k in plain if k not in known and not name_like(texts[k])), plain[0])
        authors -= {k for k in plain if fold(texts[k]) == fold(texts[first])}
    if not authors and names_first is not None:
        different = sorted({fold(texts[k]): k for k in reversed(plain)}.values())
        guess = different[:1] if names_first else different[1:2]
        authors = {k for k in guess if k in open_ and name_like(texts[k])}
    weak = {k for k in by if not name_like(texts[k])}
    rest = [k for k in plain if k not in authors]
    swapped = weak and rest and (max(weak) > rest[0] if names_first else min(weak) < rest[0])
    if swapped and all(name_like(texts[k]) for k in rest):
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
    style = (1, -b.level) if b.level else (0, min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
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
        author=next((person(text[k]) for k in authors), "") or toc.authors.get(entry, ""),
        credit=next((t for t in text.values() if form.is_source(t)), ""),
        entry=entry,
        why="front or back matter" if matter or notes or entry in toc.left_out else "",
        ordinal=not titles,
        poems=any(form.NO_STORIES.fullmatch(text[k]) for k in titles),
        verse=len(below) > 1 and all(len(line) < 50 for line in below),
        numbered=title != text[key] or part,
    )


# ------------------------------------------------------------------ which of them begin stories


def beginnings(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `why` end the story before them and begin none."""
    plain = [h for h in found if not h.why and not h.ordinal and h.words >= MIN_WORDS]
    known, uses = [], Counter()
    for h in plain:  # a title that is twice in the contents begins two stories; in the notes it begins none
        if h.entry is not None and uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            known.append(h)
    if toc.settled:
        return sorted(known + [h for h in found if h.why and h.entry is not None])
    by_contents = len({h.entry for h in known}) > 2
    chosen = sorted(_by_contents(found, plain, known) if by_contents else _by_form(found))
    poems = next((n for n, h in enumerate(chosen) if h.poems), len(chosen))
    for h in chosen[poems:]:
        h.why = h.why or "poems, essays or plays"
    return _by_many(chosen, found)


def _by_contents(found: list[Head], plain: list[Head], known: list[Head]) -> list[Head]:
    style = Counter(h.style for h in known).most_common(1)[0][0]
    numbers = sum(h.numbered for h in known) > 0.5 * len(known)
    first, last = known[0].start, known[-1].start
    chosen = list(known)
    for h in found:
        if h.why and (h.style >= style or "note" in h.title.lower() or h.start > last):
            chosen.append(h)
    for h in plain:  # not in the contents: forgotten there, or an advertisement
        possible = h.entry is None and h.start > first and (numbers or not h.numbered)
        if possible and h.style >= style and (h.start > last or h.author or not h.verse):
            h.why = "follows the last title of the contents" if h.start > last else ""
            chosen.append(h)
    return chosen


def _by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain = [h for h in found if not h.why and not h.ordinal]
    count = Counter(h.style for h in plain if h.words >= 100)
    shared = [style for style, n in count.items() if n > 2]
    if not shared:
        return []
    best = max(shared)
    same = [h.numbered for h in plain if h.style == best]
    parts = sum(same) < 0.5 * len(same)  # then a numbered title is a part of a story
    return [h for h in found if h.style >= best and not h.ordinal and not (parts and h.numbered)]


def _by_many(chosen: list[Head], found: list[Head]) -> list[Head]:
    """In a book by many hands a section without an author ends a story or belongs to it."""
    plain = [h for h in chosen if not h.why and h.words >= MIN_WORDS]
    signed = [h for h in plain if h.author]
    hands = len({fold(h.author) for h in signed})
    if hands < 3 or len(signed) < MANY_HANDS * len(plain) and hands < 0.6 * len(signed):
        return chosen
    numbers = sum(h.numbered for h in signed) > 0.5 * len(signed)
    for h in chosen:
        # of numbered stories one that the printer left unsigned is a story too
        if not (h.why or h.author or h.numbered and numbers and h.words > FILLER):
            h.why = "names no author, where the other sections do"
    return sorted(chosen + _fillers(chosen, found))


def _fillers(chosen: list[Head], found: list[Head]) -> list[Head]:
    """Headings within a story that end it, for other stories have them too: letters, advertisements."""
    plain = [h for h in found if not (h.ordinal or h.numbered or h.author or h.verse)]
    names, fillers, inside = Counter(fold(h.title) for h in plain), [], False
    begun = {h.start: not h.why for h in chosen}
    for h in sorted(chosen + plain):
        if h.start in begun:
            inside = begun[h.start]
        elif inside and names[fold(h.title)] > 1:
            h.why = "a filler, letters or an advertisement: no author, and in several stories"
            fillers.append(h)
            inside = False
    return fillers
