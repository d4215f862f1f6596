"""The page of contents of a book: which blocks it takes, and the titles and anchors that stand in it.

It begins below the word "Contents", or, where a book has none, at eight short lines in a row before any prose. It ends at
prose, at a title it has already named, at the preface. Titles are kept without page numbers and authors, whole and over
up to three lines, because long ones are broken.

Used by stories.py. Left out: which entries are stories and which are parts; headings.py looks at the text.
"""

from __future__ import annotations

import re

from scripts.anthologies.books import Block
from scripts.anthologies.headings import MATTER, SPEECH, Contents, fold, heading_like, one_line

HEADING = re.compile(r"\W*(table of )?contents( of .*)?\W*(page)?\W*", re.I)
ILLUSTRATIONS = re.compile(r"\W*(list of )?(\w+ )?(illustrations|plates|pictures)\W*$", re.I | re.M)
BARE_NUMBER = re.compile(r"^\s*(?:[IVXLC]+|\d{1,3})\s+(?=\S)")
PAGE = re.compile(r"(\s{3,}|\.{3,}\s*)\d+\s*$")
LETTERED = re.compile(r"[a-e]\.\s")


def contents(blocks: list[Block]) -> Contents:
    first = _first(blocks)
    if first is None:
        return Contents()
    anchors: dict[str, int] = {}
    lines, end = [], first
    for i in range(first, len(blocks)):
        b = blocks[i]
        named = [
            (text, target) for target, text in b.links if len(fold(text)) > 1 and not text.strip().isdigit()
        ]
        new = [_entry(text) for text, _ in named] or [_entry(line) for line in b.text.split("\n")]
        if i > first and (not named and _again(b, new, lines) or _ends(blocks, i)):
            break
        for n, (_, target) in enumerate(named):
            anchors.setdefault(target, len(lines) + n)
        lines += [line for line in new if not LETTERED.match(line)]  # lettered: a part of the story above
        end = i + 1
    half_title = _half_title(blocks, first, end)
    if half_title < end:
        del lines[len(lines) - _count(blocks[half_title:end]) :]
    return Contents(range(first, half_title), _places(lines), anchors)


def _first(blocks: list[Block]) -> int | None:
    limit = max(60, len(blocks) // 5)
    for i, b in enumerate(blocks[: limit + 200]):
        if b.story == 0 and HEADING.fullmatch(b.text.strip().split("\n")[0].strip()):
            return i
    return _bare_list(blocks[:limit])


def _bare_list(blocks: list[Block]) -> int | None:
    """Contents without a heading: eight short lines or more in a row, before any prose."""
    start, lines = None, 0
    for i, b in enumerate(blocks + [Block("x " * 50)]):
        if _is_prose(b) or SPEECH.match(b.text.strip()) or b.gap > 4 or b.level and not b.links:
            if lines >= 8 and start is not None:
                return start
            start, lines = (None, 0) if not (b.gap > 4 or b.level) else (i, b.text.count("\n") + 1)
        else:
            start = i if start is None else start
            lines += b.text.count("\n") + 1
    return None


def _again(block: Block, new: list[str], lines: list[str]) -> bool:
    """Does this block say what the contents have said already? Then it is the heading of the first story."""
    whole = fold(" ".join(new))
    if len(whole) > 3 and whole in {fold(BARE_NUMBER.sub("", l)) for l in lines} | {fold(l) for l in lines}:
        return True
    return block.level > 0 and len(whole) > 5 and any(fold(l).startswith(whole) for l in lines)


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
    if sum(bool(PAGE.search(l)) for l in lines) > 0.5 * len(lines):
        return False
    return sum(len(l.strip()) > 55 for l in lines[:-1]) >= 0.7 * (len(lines) - 1) and len(words) > 22


def _half_title(blocks: list[Block], first: int, end: int) -> int:
    """Where the contents really end: the half-title and the first story's own heading, set apart, are not contents."""
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
    line = one_line(line) if "_" in line else line
    line = re.sub(r"[\s,.-]+(?:[A-Z]\.\s*){1,3}[A-Z][\w'-]+$", "", line.strip()) or line
    line = re.sub(r"(?:[\s.\u2026_]+|(?<=[a-z.]))(\d{1,3}|\b[xvil]{1,6})\s*$", "", line.strip())
    if re.match(
        r"\W*([IVXLC]+|\d+)[.)]?\s{3,}", line
    ):  # the wide space stands behind the number, not before an author
        return re.sub(r"\s+", " ", line)
    return re.sub(r"(?<=\S)(\s+\bby\b |\s{3,}|\t).*$|[\s.\u2026]+$", "", line, flags=re.I)


def _places(lines: list[str]) -> dict[str, list[int]]:
    """{folded title: its places}; long titles run over two or three lines."""
    titles: dict[str, list[int]] = {}
    for n in range(1, 4):
        for k in range(len(lines) - n + 1):
            bare = [BARE_NUMBER.sub("", lines[k])] + lines[k + 1 : k + n]
            for key in dict.fromkeys((fold(" ".join(lines[k : k + n])), fold(" ".join(bare)))):
                if key and k not in titles.setdefault(key, []):
                    titles[key].append(k)
    return titles
