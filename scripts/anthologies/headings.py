"""Where stories begin: the headings of a book, weighed against its page of contents (contents.py).

Titles that are in the contents begin stories; headings of the same style between them do too (contents forget some);
prefaces, notes, advertisements, poems and numbered parts do not. Without contents the strongest style of heading
that at least three sections share decides. In a book by many hands a section that names no author is not a story.
When the evidence disagrees a story is left out rather than cut in half.

Used by stories.py. Left out: reading what a section says; only its form is looked at.
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
    DEPARTMENT,
    MATTER,
    MIN_WORDS,
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
FILLER = (
    500  # words: a filler has a heading of its own, no author, and is the last thing before the next story
)
EDITED = re.compile(
    r"\W*(edited|compiled|selected|collected|chosen|arranged)( and \w+)? by\b", re.I
)  # a title page
MANY_HANDS = 0.6  # share of the sections that name an author, above which one that names none is not a story


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
    """Does block j still belong to the heading that block i begins (title, author, source, note in brackets)?"""
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
    """(certainty, place in the contents) if the block's text or anchor is there; `near`: right under a heading."""
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
    """Do headings name the author above the title (True), below it (False), or nowhere without "by" (None)?"""
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
    """(blocks that may be titles, blocks that name an author) of one run; a lone line is a title whatever it looks like."""
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
    if (
        weak and not known and rest and all(name_like(texts[k]) for k in rest)
    ):  # TOLD BY THE FIRE, by Captain Meek
        if names_first and max(weak) > rest[0] or not names_first and min(weak) < rest[0]:
            authors = set(rest)
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
    """How many words follow each head, up to the next and up to the next as strong. A part's heading ends no story."""
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


# ------------------------------------------------------------------ choosing


def choose(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    whole = []
    for h in found:  # a half-title and the title after it are one heading
        before = whole[-1] if whole else None
        again = before and (
            h.entry is not None and h.entry == before.entry or fold(h.title) == fold(before.title) != ""
        )
        if again and before.near < 40:
            h.start, h.author, h.credit = before.start, h.author or before.author, h.credit or before.credit
            h.entry = before.entry if h.entry is None else h.entry
            whole.pop()
        whole.append(h)
    found = whole
    plain = [h for h in found if not h.matter and not h.ordinal and h.words >= MIN_WORDS]
    known = [h for h in plain if h.entry is not None]
    if toc.settled:
        chosen = _once(known, toc) + [h for h in found if h.matter and h.entry is not None]
        return sorted(chosen, key=lambda h: h.start)
    if len({h.entry for h in known}) < 3:
        return _by_many(_choose_by_form(found), found, toc)
    return _by_many(_choose_by_contents(found, plain, known, toc), found, toc)


def _once(known: list[Head], toc: Contents) -> list[Head]:
    """A title that is twice in the contents begins two stories; in the notes it begins none."""
    uses, starts = Counter(), []
    for h in known:
        if uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            starts.append(h)
    return starts


def _choose_by_contents(found: list[Head], plain: list[Head], known: list[Head], toc: Contents) -> list[Head]:
    style = Counter(h.style for h in known).most_common(1)[0][0]
    same = [h for h in plain if h.style == style]
    pure = len([h for h in same if h.entry is not None]) >= 0.6 * len(same)
    numbers = len([h for h in known if h.numbered]) > 0.5 * len(known)
    starts = _once(known, toc)
    first, last = starts[0].start, starts[-1].start
    notes = min((h.start for h in found if h.matter and h.start > last), default=1 << 60)
    ends = [
        h
        for h in found
        if h.matter and (strong(h.style, style) or NOTES.fullmatch(h.title) or h.start > last)
    ]
    titles = {fold(h.title) for h in starts}
    for h in plain:  # not in the contents: forgotten there, or an advertisement
        if (
            h.entry is None
            and (h.start > first or h.author)
            and strong(h.style, style)
            and (numbers or not h.numbered)
        ):
            forgotten = h.style == style and (pure and h.start < last or h.author and h.start < notes)
            real = len(fold(h.title)) > 1 and (h.author or not h.verse)
            if forgotten and real and not (h.start > last and fold(h.title) in titles):
                starts.append(h)
            elif h.start > last:
                ends.append(h)
                h.matter, h.why = True, "follows the last title of the contents"
    return _without_poems(sorted(starts + ends, key=lambda h: h.start), style)


def _choose_by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain, best = [h for h in found if not h.matter and not h.ordinal], None
    signed = [h for h in plain if h.author and h.words >= MIN_WORDS]
    if len({fold(h.author) for h in signed}) > 2:
        plain = signed
    for style in {h.style for h in plain}:
        enough = len([h for h in plain if h.style == style and h.words >= 100]) >= 3
        if enough and (best is None or strong(style, best)):
            best = style
    if best is None:
        return []
    same = [h for h in plain if h.style == best]
    parts = len([h for h in same if h.numbered]) < 0.5 * len(
        same
    )  # then a numbered title is a part of a story
    chosen = [
        h
        for h in found
        if (strong(h.style, best) or h.matter and NOTES.fullmatch(h.title))
        and not h.ordinal
        and not (parts and h.numbered)
    ]
    return _without_poems(chosen, best)


def _without_poems(chosen: list[Head], style: tuple) -> list[Head]:
    off = False
    for h in chosen:
        off = h.poems or off and not (strong(h.style, style) and h.style != style)
        if off and not h.matter:
            h.matter, h.why = True, "poems, essays or plays"
    return chosen


def _by_many(chosen: list[Head], found: list[Head], toc: Contents) -> list[Head]:
    """In a book by many hands: sections without an author end a story or belong to it, they are none themselves."""
    plain = [h for h in chosen if not h.matter and h.words >= MIN_WORDS]
    signed = [h for h in plain if h.author]
    hands, numbers = (
        len({fold(h.author) for h in signed}),
        sum(h.numbered for h in signed) > 0.5 * len(signed),
    )
    if hands < 3 or len(signed) < MANY_HANDS * len(plain) and hands < 0.6 * len(signed):
        return chosen
    if len(signed) < 0.3 * len(plain):
        return chosen
    kept = []
    for n, h in enumerate(chosen):
        if h.matter or h.author:
            kept.append(h)
            continue
        after = next((o for o in chosen[n + 1 :] if o.author or o.matter), None)
        alike = h.numbered and numbers
        inside = toc.titles and h.entry is None and after and any(o.author for o in chosen[:n])
        if inside and not alike and sum(o.words for o in chosen[n : chosen.index(after)]) > FILLER:
            h.why = "taken for a part of the story above"
            continue
        if not (alike and h.words > FILLER):  # a story that the printer left unsigned
            h.matter, h.why = True, "names no author, where the other sections do"
        kept.append(h)
    return sorted(kept + _fillers(kept, found), key=_start)


def _fillers(chosen: list[Head], found: list[Head]) -> list[Head]:
    """Headings within a story that end it: letters, advertisements, short pieces without an author before the next story."""
    plain = [h for h in found if not (h.ordinal or h.numbered or h.author or h.verse)]
    names = Counter(fold(h.title) for h in plain)
    fillers = []
    for s, after in zip(chosen, [*chosen[1:], None]):
        inner = [h for h in plain if s.start < h.start and (after is None or h.start < after.start)]
        if s.matter or not inner:
            continue
        h, single = inner[-1], len(inner) == 1 and after is not None
        short = single and h.near <= FILLER and 4 * h.near < s.words + s.near
        page = single and h.style[:2] >= s.style[:2] and h.style[0] == "t"
        again = next((o for o in inner if names[fold(o.title)] > 1 or DEPARTMENT.fullmatch(o.title)), None)
        if again or short or page:
            h = again or h
            h.matter, h.why = (
                True,
                "a filler, letters or an advertisement: no author, and before the next story",
            )
            fillers.append(h)
    return fillers


def _start(h: Head) -> int:
    return h.start
