"""The page of contents of a book: the blocks it takes, and the titles and authors that it names.

It begins below the word "Contents" and ends at prose, at a title it has already named, at the preface. Titles
are kept without page numbers and authors, whole and over up to three lines, because long ones are broken.

Used by stories.py. Left out: which entries are stories and which are parts; headings.py looks at the text.
"""

import re
from dataclasses import dataclass, field

from scripts.anthologies import titles as form
from scripts.anthologies.books import Block
from scripts.anthologies.titles import fold, name_like, one_line, person

HEADING = re.compile(r"(?i)\W*(table of )?contents( of .*)?\W*(page)?\W*")
BARE_NUMBER = re.compile(r"^\s*(?:[IVXLC]+|\d{1,3})\s+(?=\S)")
PAGE = re.compile(r"(\s{3,}|(\.\s?){3,}\s*)\d+\s*$")
LONGEST = 2000  # lines: what is longer is not a page of contents
LETTERED = re.compile(r"[a-z]\.\s")  # a part of the story above
NO_ENTRY = re.compile(rf"{HEADING.pattern}|\W*(page|introduction.*)\W*")


@dataclass
class Contents:
    """The page of contents: which blocks it takes, and where a title is on it."""

    blocks: range = range(0)
    lines: list[str] = field(default_factory=list)  # place -> title
    authors: dict[int, str] = field(default_factory=dict)  # place -> author
    left_out: set[int] = field(default_factory=set)  # places that a reader said are not stories
    settled: bool = False  # a reader wrote it: nothing else begins a story

    tries: int = 0  # near matches looked for: headings.py, _nearly

    def __post_init__(self):
        self.names = {fold(a) for a in self.authors.values()} - {""}
        self.titles: dict[str, list[int]] = {}  # folded title, over one to three lines -> its places
        for k, line in enumerate(self.lines):
            for end in range(k + 1, min(k + 4, len(self.lines) + 1)):
                bare = " ".join([BARE_NUMBER.sub("", line)] + self.lines[k + 1 : end])
                short = re.sub(r"(?<=\w)\s*\(.*", "", bare)  # a remark in brackets
                for key in map(fold, (" ".join(self.lines[k:end]), bare, short)):
                    if key and line and k not in self.titles.setdefault(key, []):
                        self.titles[key].append(k)


def contents(blocks: list[Block]) -> Contents:
    early = [re.sub(r"\[\w{1,3}\]", "", b.text) for b in blocks[: max(60, len(blocks) // 5) + 200]]
    heads = (i for i, text in enumerate(early) if HEADING.fullmatch(text.strip().split("\n")[0].strip()))
    first = next((i for i in heads if not blocks[i].story), None)
    if first is None:
        return Contents()
    lines, raw, seen, above = [], [], set(), {}  # above: how many lines of the contents, block by block
    for i, b in enumerate(blocks[first:], first):
        named = [t for t in b.links if len(fold(t)) > 1 and not t.strip().isdigit()]
        source = named or b.text.split("\n")
        new = ["" if form.is_source(line) else _entry(line) for line in source]
        said = fold(" ".join(new))
        again = not named and len(said) > 3 and said in seen  # then it is the heading of the first story
        if i > first and (again or _ends(blocks, i)):
            break
        above[i] = len(lines)
        whole = [n for n, line in enumerate(new) if not LETTERED.match(line)]
        lines += [new[n] for n in whole]
        raw += [source[n] for n in whole]
        seen |= {fold(cell) for line in source for cell in form.cells(line)}
        seen |= {fold(line) for line in new} | {fold(BARE_NUMBER.sub("", line)) for line in new}
        if len(lines) > LONGEST:
            return Contents()
    end = _half_title(blocks, first, first + len(above))
    kept = above.get(end, len(lines))
    lines, raw = lines[:kept], raw[:kept]
    return Contents(range(first, end), lines, _authors(lines, raw))


def given(text: str, blocks: list[Block]) -> Contents:
    """Contents that a reader wrote: a title per line, its author behind a tab; "-" leaves a section out."""
    titles, authors, left = [], {}, set()
    for place, line in enumerate(filter(str.strip, text.splitlines())):
        title, *author = re.split(r"\t+|\s{3,}|\s+\|\s+", line.lstrip("- ").strip())
        titles.append(title)
        if line.lstrip().startswith("-"):
            left.add(place)
        if author:
            authors[place] = author[0].strip()
    if len(titles) == len(left):
        how = "write one title per line, then a tab and the author"
        raise ValueError(f"the contents file names no story: {how}")
    return Contents(contents(blocks).blocks, titles, authors, left, settled=True)


def _ends(blocks: list[Block], i: int) -> bool:
    """Prose, a preface, or a heading below a list with no list below it."""
    b, text, (below, *_) = blocks[i], blocks[i].text.strip(), blocks[i + 1 : i + 2] or [blocks[i]]
    if blocks[i - 1].kind == "list" and b.level and not b.kind and not below.level and below.kind != "list":
        return True
    return bool(_is_prose(b) or b.level and form.MATTER.fullmatch(text))


def _is_prose(block: Block) -> bool:
    lines = block.text.split("\n")
    if block.kind == "list" or block.links or block.level or block.words < 23:
        return False
    rows = sum(bool(PAGE.search(line)) or len(form.cells(line)) > 1 for line in lines)
    if len(lines) > 1 and (rows > 0.5 * len(lines) or PAGE.search(lines[0])):
        return False
    return sum(len(line.strip()) > 55 for line in lines[:-1]) >= 0.7 * (len(lines) - 1)


def _half_title(blocks: list[Block], first: int, end: int) -> int:
    """Where the contents end: the half-title and the first story's heading, set apart, are not contents."""
    gaps = sorted(b.gap for b in blocks[first + 1 : end])
    for i in range(max(end - 5, first + 4), end):
        b = blocks[i]
        apart = b.gap > max(gaps[len(gaps) // 2], 2) and not b.links and not b.level
        short = sum(b.text.count("\n") + 1 for b in blocks[i:end]) <= 8
        if apart and short and (b.gap > 3 or i == end - 1 and form.heading_like(b)):
            return i
    return end


def _entry(line: str) -> str:
    """A line of the contents without its page number and its author."""
    line = one_line(line) if "_" in line else line
    line = re.sub(r"(?:[\s.\u2026_]+|(?<=[a-z.]))(\d{1,3}|\b[xvil]{1,6})\s*$", "", line.strip())
    if re.match(r"\W*([IVXLC]+|\d+)[.)]?\s{3,}", line):  # the wide space follows the number, not the title
        return re.sub(r"\s+", " ", line)
    return re.sub(r"(?<=\S)(\s+\bby\b (?!the |an? )|\s{3,}|\t).*$|[\s.\u2026]+$", "", line, flags=re.I)


def _authors(lines: list[str], raw: list[str]) -> dict[int, str]:
    """{place: author}, from columns, then from lines of their own: below each title, or once above their
    titles. `lines` lose what is a name."""
    found: dict[int, str] = {}
    columns = {k: parts for k, text in enumerate(raw) if len(parts := form.cells(text)) == 2}
    who = form.names_column(list(columns.values()))
    for k, parts in columns.items() if who is not None else ():
        found[k], lines[k] = person(parts[who]), _entry(parts[1 - who])
    texts = [one_line(text) for text in raw]
    paged = {k for k, text in enumerate(texts) if text[-1:].isdigit()}
    free = [k for k in range(len(texts)) if k not in found and k not in paged]
    alone = [k for k in free if form.is_byline(texts[k]) or name_like(texts[k])]
    marked = [k for k in alone if raw[k].strip()[:1] == "_" or form.is_byline(texts[k])]
    in_turn = len(alone) > 0.4 * len(raw) and not any(k + 1 in alone for k in alone)
    if len(marked) > 2:
        alone = marked
    elif len(alone) < 3 or not (in_turn or len(paged) > 0.3 * len(raw)):
        return found
    entries = [k for k, line in enumerate(lines) if fold(line) and not NO_ENTRY.fullmatch(line)]
    first = next((k for k in entries if not form.MATTER.fullmatch(lines[k])), 0)
    for n, k in enumerate(alone):
        after = alone[n + 1] if n + 1 < len(alone) else len(raw)
        below = [t for t in range(k - 1, -1, -1) if t not in alone][:1]
        for place in range(k + 1, after) if first in alone else below:
            if fold(lines[place]):
                found.setdefault(place, person(texts[k]))
    for k in alone:
        lines[k] = ""
    return found
