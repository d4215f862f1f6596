"""The page of contents of a book: the blocks it takes, and the titles, authors and anchors that it names.

It begins below the word "Contents", or, where a book has none, at eight short lines in a row before any
prose. It
ends at prose, at a title it has already named, at the preface. Titles are kept without page numbers and
authors,
whole and over up to three lines, because long ones are broken.

Used by stories.py. Left out: which entries are stories and which are parts; headings.py looks at the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from scripts.anthologies.books import Block
from scripts.anthologies.bylines import (
    cells,
    halves,
    is_byline,
    is_source,
    label_name,
    name_like,
    names_column,
    person,
)
from scripts.anthologies.titles import MATTER, SPEECH, fold, heading_like, one_line

HEADING = re.compile(r"\W*(table of )?contents( of .*)?\W*(page)?\W*", re.I)
ILLUSTRATIONS = re.compile(r"\W*(list of )?(\w+ )?(illustrations|plates|pictures)\W*$", re.I | re.M)
BARE_NUMBER = re.compile(r"^\s*(?:[IVXLC]+|\d{1,3})\s+(?=\S)")
PAGE = re.compile(r"(\s{3,}|(\.\s?){3,}\s*)\d+\s*$")
LONGEST = 2000  # lines: what is longer is no page of contents
LETTERED = re.compile(r"[a-e]\.\s")
VERB = re.compile(
    r"\W*((as )?(re)?\w+(ed|told|ten)|from the \w+)?\W*", re.I
)  # what may be before "by" and is no title
BY_AUTHOR = re.compile(r"(?<=\S)[\s,.]+_?by\s+(?P<name>[^\d]{3,60}?)_?[\s.]*\d*\s*$", re.I)


@dataclass
class Contents:
    """The page of contents: which blocks it takes, and where a title or an anchor is on it."""

    blocks: range = range(0)
    titles: dict[str, list[int]] = field(default_factory=dict)  # folded title -> its places
    anchors: dict[str, int] = field(default_factory=dict)  # link target -> place
    authors: dict[int, str] = field(default_factory=dict)  # place -> author
    lines: list[str] = field(default_factory=list)  # place -> title
    left_out: set[int] = field(default_factory=set)  # places that a reader said are not stories
    settled: bool = False  # a reader wrote it: nothing else begins a story

    def __post_init__(self):
        self.tries = 0  # near matches looked for, see headings.py
        self.names = {fold(a) for a in self.authors.values()} - {""}
        self.by_start, self.by_end, self.tries = {}, {}, 0  # for near matches: headings.py, _nearly
        for key in self.titles:
            self.by_start.setdefault(key[:2], []).append(key)
            self.by_end.setdefault(key[-3:], []).append(key)


def contents(blocks: list[Block]) -> Contents:
    first = _first(blocks)
    if first is None:
        return Contents()
    anchors: dict[str, int] = {}
    lines, raw, seen, end = [], [], set(), first
    for i in range(first, len(blocks)):
        b = blocks[i]
        named = [(t, target) for target, t in b.links if len(fold(t)) > 1 and not t.strip().isdigit()]
        source = [text for text, _ in named] or re.sub(
            r"(\b(as|told|by))\n\s*", r"\1 ", b.text, flags=re.I
        ).split("\n")
        new = ["" if is_source(line) else _entry(line) for line in source]
        if i == first + 1 and b.text[:1] in "([" and _is_prose(b):
            end = i + 1  # a note on the marks in the list
            continue
        if i > first and (not named and _again(b, new, lines, seen) or _ends(blocks, i)):
            break
        for n, (_, target) in enumerate(named):
            anchors.setdefault(target, len(lines) + n)
        if named and len(named) == 1 and len(cells(b.text.replace("\n", "\t"))) > 1:
            source = [b.text.replace("\n", "\t")]  # the link is one column of a row
        kept = [
            n for n, line in enumerate(new) if not LETTERED.match(line)
        ]  # lettered: part of the story above
        lines += [new[n] for n in kept]
        raw += [source[n] for n in kept]
        seen |= {fold(cell) for n in kept for cell in cells(source[n])}
        seen |= {fold(new[n]) for n in kept} | {fold(BARE_NUMBER.sub("", new[n])) for n in kept}
        end = i + 1
        if len(lines) > LONGEST:
            return Contents()
    half_title = _half_title(blocks, first, end)
    if half_title < end:
        extra = _count(blocks[half_title:end])
        del lines[len(lines) - extra :], raw[len(raw) - extra :]
    if len(lines) < 5 and not HEADING.match(blocks[first].text):
        return Contents()  # a few short lines are not contents
    authors = _authors(lines, raw)
    return Contents(range(first, half_title), _places(lines), anchors, authors, lines)


def given(text: str, blocks: list[Block]) -> Contents:
    """Contents that a reader wrote: a title per line, its author behind a tab or three spaces; "-" leaves a
    section out."""
    found, titles, authors, left = contents(blocks), [], {}, set()
    for line in filter(str.strip, text.splitlines()):
        title, *author = re.split(r"\t+|\s{3,}|\s+\|\s+", line.lstrip("- ").strip())
        if line.lstrip().startswith("-"):
            left.add(len(titles))
        if author:
            authors[len(titles)] = author[0].strip()
        titles.append(title)
    if len(titles) == len(left):
        raise ValueError(
            "the contents file names no story: write one title per line, then a tab and the author"
        )
    places: dict[str, list[int]] = {}
    for place, title in enumerate(titles):
        places.setdefault(fold(title), []).append(place)
    return Contents(found.blocks, places, {}, authors, titles, left, settled=True)


def _first(blocks: list[Block]) -> int | None:
    limit = max(60, len(blocks) // 5)
    for i, b in enumerate(blocks[: limit + 200]):
        line = re.sub(r"\[\w{1,3}\]", "", b.text.strip().split("\n")[0]).strip()
        if b.story == 0 and HEADING.fullmatch(line):
            return i
    return _bare_list(blocks[:limit])


def _bare_list(blocks: list[Block]) -> int | None:
    """Contents without a heading: eight short lines or more in a row, before any prose."""
    start, lines = None, 0
    for i, b in enumerate(blocks + [Block("x " * 50)]):
        sentence = b.text.rstrip()[-1:] == "." and len(b.text.split()) > 14 and not b.links
        if _is_prose(b) or sentence or SPEECH.match(b.text.strip()) or b.gap > 4 or b.level and not b.links:
            if lines >= 8 and start is not None:
                return start
            start, lines = (None, 0) if not (b.gap > 4 or b.level) else (i, b.text.count("\n") + 1)
        else:
            start = i if start is None else start
            lines += b.text.count("\n") + 1
    return None


def _again(block: Block, new: list[str], lines: list[str], seen: set[str]) -> bool:
    """Does this block say what the contents have said already? Then it is the heading of the first story."""
    whole = fold(" ".join(new))
    if len(new) == 1 and name_like(new[0]) and block.gap < 3 and not block.level:
        return False  # an author with two stories
    if len(whole) > 3 and whole in seen:
        return True
    parts = (halves(block.text) if len(new) == 1 else new) if block.gap > 2 else []
    if len(parts) == 2 and any(len(fold(part)) > 3 and fold(part) in seen for part in parts):
        return True  # author and title in one block
    return block.level > 0 and len(whole) > 5 and any(fold(line).startswith(whole) for line in lines)


def _ends(blocks: list[Block], i: int) -> bool:
    """Prose, a preface, a list of plates, or a heading below a list with no list below it."""
    b, below = blocks[i], blocks[i + 1] if i + 1 < len(blocks) else blocks[i]
    matter = b.level and MATTER.fullmatch(b.text.strip()) or ILLUSTRATIONS.match(b.text.strip())
    after_list = (
        blocks[i - 1].kind == "list" and b.level and not b.kind and not below.level and below.kind != "list"
    )
    return bool(_is_prose(b) or matter or after_list)


def _is_prose(block: Block) -> bool:
    if block.kind == "list" or block.links or block.level:
        return False
    lines, words = block.text.split("\n"), block.text.split()
    if len(lines) == 1:
        return len(words) > 22
    rows = sum(bool(PAGE.search(line)) or len(cells(line)) > 1 for line in lines)
    if rows > 0.5 * len(lines) or PAGE.search(lines[0]):
        return False
    return sum(len(line.strip()) > 55 for line in lines[:-1]) >= 0.7 * (len(lines) - 1) and len(words) > 22


def _half_title(blocks: list[Block], first: int, end: int) -> int:
    """Where the contents really end: the half-title and the first story's own heading, set apart, are not
    contents."""
    if end < first + 2:
        return end
    usual = sorted(b.gap for b in blocks[first + 1 : end])[(end - first - 1) // 2]
    for i in range(max(end - 5, first + 4), end):
        b = blocks[i]
        apart = b.gap > max(usual, 2) and not b.links and not b.level
        if apart and _count(blocks[i:end]) <= 8 and (b.gap > 3 or i == end - 1 and heading_like(b)):
            return i
    return end


def _count(blocks: list[Block]) -> int:
    return sum(b.text.count("\n") + 1 for b in blocks)


def _entry(line: str) -> str:
    """A line of the contents without its page number and its author."""
    if "\t" in line:
        line = (cells(line) or [""])[0]
    line = one_line(line) if "_" in line else line
    line = re.sub(r"[\s,.-]+(?:[A-Z]\.\s*){1,3}[A-Z][\w'-]+$", "", line.strip()) or line
    line = re.sub(r"(?:[\s.\u2026_]+|(?<=[a-z.]))(\d{1,3}|\b[xvil]{1,6})\s*$", "", line.strip())
    if re.match(r"\W*([IVXLC]+|\d+)[.)]?\s{3,}", line):  # the wide space follows the number, not the title
        return re.sub(r"\s+", " ", line)
    return re.sub(r"(?<=\S)(\s+\bby\b (?!the |an? )|\s{3,}|\t).*$|[\s.\u2026]+$", "", line, flags=re.I)


def _authors(lines: list[str], raw: list[str]) -> dict[int, str]:
    """{place: author}, from columns, from "by", from lines of their own; `lines` lose the lines that are
    names."""
    found: dict[int, str] = {}
    columns = {k: parts for k, text in enumerate(raw) if len(parts := cells(text)) == 2}
    dashes = {
        k: parts for k, text in enumerate(raw) if k not in columns and len(parts := halves(_entry(text))) == 2
    }
    for pairs in (columns, dashes):
        who = names_column([tuple(p) for p in pairs.values()])
        if who is not None and len(pairs) > 0.4 * len(
            {k for k in range(len(raw)) if not raw[k][:1].isspace()} | set(pairs)
        ):
            for k, parts in pairs.items():
                found[k], lines[k] = person(parts[who]), _entry(parts[1 - who])
    credited = {k: by for k, text in enumerate(raw) if (by := BY_AUTHOR.search(text))}
    for k, by in credited.items():
        text = raw[k]
        if (
            k not in found
            and (name_like(by["name"]) or 2 * len(credited) > len(raw))
            and fold(text[: by.start()])
        ):
            found[k], lines[k] = person(by["name"]), _entry(text[: by.start()])
    return found | _own_lines(lines, raw, found)


def _own_lines(lines: list[str], raw: list[str], found: dict[int, str]) -> dict[int, str]:
    """Authors that have a line of their own: below each title, or once above their titles."""
    texts = [one_line(text) for text in raw]
    paged = sum(text[-1:].isdigit() for text in texts)
    alone = [
        k for k, text in enumerate(texts)
        if k not in found
        and not text[-1:].isdigit()
        and (is_byline(text) or label_name(text) or name_like(text))
    ]  # fmt: skip
    marked = [k for k in alone if raw[k].strip()[:1] == "_" or is_byline(texts[k])]
    in_turn = len(alone) > 0.4 * len(raw) and not any(k + 1 in alone for k in alone)
    if len(marked) > 2:
        alone = marked
    elif len(alone) < 3 or not (in_turn or paged > 0.3 * len(raw)):
        return {}
    first = next((k for k, line in enumerate(lines) if len(fold(line)) > 1 and not _no_entry(line)), 0)
    own: dict[int, str] = {}
    for n, k in enumerate(alone):
        after = alone[n + 1] if n + 1 < len(alone) else len(raw)
        title = next((t for t in range(k - 1, -1, -1) if t not in alone), None)
        for place in range(k + 1, after) if first in alone else [title]:
            if place is not None and fold(lines[place]) and place not in found:
                own.setdefault(place, person(texts[k]))
    for k in alone:
        lines[k] = ""
    return own


def _no_entry(line: str) -> bool:
    return bool(
        HEADING.fullmatch(line)
        or MATTER.fullmatch(line)
        or re.fullmatch(r"\W*(page|introduction.*)\W*", line, re.I)
    )


def _places(lines: list[str]) -> dict[str, list[int]]:
    """{folded title: its places}; long titles run over two or three lines."""
    titles: dict[str, list[int]] = {}
    for n in range(1, 4):
        for k in range(len(lines) - n + 1):
            bare = " ".join([BARE_NUMBER.sub("", lines[k])] + lines[k + 1 : k + n])
            short = re.sub(r"(?<=\w)\s*\(.*", "", bare)  # a remark in brackets
            for key in dict.fromkeys(map(fold, (" ".join(lines[k : k + n]), bare, short))):
                if key and lines[k] and k not in titles.setdefault(key, []):
                    titles[key].append(k)
    return titles
