"""One book -> its stories, whole and clean: reading (books.py) and headings (headings.py) put together.

Standard Ebooks say in their markup what a story is, so there the markup decides; everywhere else contents and
headings.

    for story in read_anthology("pg2814.txt").stories: print(story.title, len(story.text.split()))

Left out: plays and poems, sections too short to be a story.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from scripts.anthologies import books
from scripts.anthologies.books import LEADING, ORDINAL, Block
from scripts.anthologies.edges import CONTINUED, has_teaser, is_verse, paragraphs, trim
from scripts.anthologies.headings import Head, beginnings, heads, split_headings
from scripts.anthologies.titles import MIN_WORDS, Contents, contents, fold, given, one_line

BACK_PAGE = re.compile(
    r"(?i)\b(8vo|12mo|16mo|4to)\b|\b\d+s\.? (net|6d)|transcriber.{0,3} notes?|\b(corrected|changed) to \"|"
    r"& sons, (limited|ltd)|^\W*printed (in|by)\b|illustrated from photographs|punctuation .* retained|"
    r"typographical errors|^\s*\+-{9}"
)
EDITORS = re.compile(  # heading or signature of a foreword that is not the storyteller's
    r"(?i)((editor|translator)\W?s )?note|(editor|translator)\W?s \w+|\W*(the )?(editor|translator)\W*|"
    r"\W*([A-Z]\.\s?){2,4}"
)


@dataclass
class Story:
    title: str
    author: str
    text: str  # paragraphs between blank lines, lines of verse each on its own
    source: str  # file name of the anthology
    credit: str = ""  # where the story was first printed, where the book says so
    why: str = ""  # why this section is not a story


@dataclass
class Reading:
    """One book as it was understood: what `--explain` shows."""

    source: str  # file name of the anthology
    author: str
    how: str  # what told the stories apart
    sections: list[Story]  # those with `why` are left out
    toc: Contents = field(default_factory=Contents)
    found: list[Head] = field(default_factory=list)
    starts: list[Head] = field(default_factory=list)  # those that begin or end a section

    @property
    def stories(self) -> list[Story]:
        return [s for s in self.sections if not s.why]


def read_anthology(path: str | Path, listed: str = "") -> Reading:
    """One book with all that was found in it. `listed`: contents that a reader wrote (`given`). ValueError (a
    sentence): it is not a book or holds no story."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("no such file; check the path")
        if path.stat().st_size > books.MAX_BYTES:
            raise ValueError(f"is larger than {books.MAX_BYTES >> 20} MB: split it or leave it out")
        return _read(path.read_bytes(), path.name, listed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(raw: bytes, source: str, listed: str = "") -> Reading:
    if not raw.strip():
        raise ValueError("is empty: fetch it again")
    wrapped, nav = False, []
    if raw[:2] == b"PK":
        nav, blocks, author = books.epub_blocks(raw)
        marked = _marked_up(blocks, author, source)
        if marked and not listed:
            return Reading(source, author, "the publisher's markup", marked)
    else:
        text = books.decode(raw)
        author = re.search(r"^Author:\s*(.+?)\s*(?:[\[(].*)?$", text[:20000], re.M)
        author = one_line(author[1]) if author else ""
        wrapped = not re.search(r"<(html|body|p|h[1-6])\b", text[:20000], re.I)
        blocks = books.text_blocks(text) if wrapped else books.html_blocks(text)
    blocks = books.unframe(blocks)
    pages = [nav, []] if nav else [[]]  # an epub's table of contents may be of no use
    readings = [_sections(page + blocks, author, source, wrapped, listed) for page in pages]
    best = max(readings, key=lambda reading: sum(len(s.text) for s in reading.stories))
    if not best.stories:
        raise ValueError("has no stories that can be told apart by contents or headings: leave it out")
    return best


# ------------------------------------------------------------------ the publisher's markup


def _marked_up(blocks: list[Block], author: str, source: str) -> list[Story]:
    """The stories that Standard Ebooks' markup names. More than half a play is none."""
    stories: dict[int, list[Block]] = {}
    for b in blocks:
        if b.story:
            stories.setdefault(b.story, []).append(b)
    found = []
    for own in stories.values():
        editors = {b.foreword for b in own if b.foreword and EDITORS.fullmatch(b.text.strip())}
        body = [b for b in own if b.kind != "skip" and b.foreword not in editors]
        above = []
        while body and (body[0].kind in ("title", "part", "date", "break") or body[0].level):
            above.append(body.pop(0))
        text = "\n\n".join(trim(paragraphs(body, marked_up=True), _numbered(above)))
        drama = sum(b.words for b in own if b.kind == "drama")
        told = [b.kind != "drama" for b in own if not (b.level or b.kind in ("title", "part"))] or [False]
        talk = told[0] and told[-1]  # inside a tale
        if text and (talk or drama <= 0.5 * sum(b.words for b in own)):
            named = [b.text for b in above if b.kind == "title" or b.level] or [b.text for b in above] or [""]
            title = next((t for t in named if not ORDINAL.fullmatch(t.strip())), named[0])
            found.append(Story(_title(title), author, text, source))
    return found


def _title(text: str) -> str:
    """A title on one line, without the marks of notes and remarks in brackets."""
    text = one_line(text.replace("\u2060", ""))
    bare = re.sub(r"\s*(--|\u2014)?\[.*?(\]|$)|\(\d{1,3}\)|\*+$", "", text.strip(" *"))
    return re.sub(r"([\s.,]|--|\u2014)+$", "", bare).strip() or text


def _numbered(heading: list[Block]) -> bool:
    return any(ORDINAL.fullmatch(b.text.strip()) for b in heading)


# ------------------------------------------------------------------ contents and headings


def _sections(blocks: list[Block], author: str, source: str, wrapped: bool, listed: str) -> Reading:
    """The sections that contents and headings of these blocks tell apart."""
    toc = given(listed, blocks) if listed else contents(blocks)
    blocks = split_headings(blocks, toc)
    found = heads(blocks, toc)
    missing = set(toc.lines) - {toc.lines[h.entry] for h in found if h.entry is not None}
    if toc.settled and missing:
        what = f"has no line that says {min(missing)!r}, which the contents file names"
        raise ValueError(f"{what}: write it as the book does")
    starts = beginnings(found, toc)
    marks = any(re.match(r"\(\d{1,3}\)\s", b.text) for b in blocks)
    last = next((h for h in reversed(starts) if not h.why), None)
    parts = []
    for h, after in zip(starts, [*starts[1:], None]):
        body = [] if h.why else _body(blocks, h, after, h is last and not toc.settled)
        parts.append(paragraphs(body, wrapped, marks))
    told = [has_teaser(p, h.author) for h, p in zip(starts, parts) if len(p) > 2]
    teased, sections = sum(told) >= max(3, 0.6 * len(told)), []
    for h, after, p in zip(starts, [*starts[1:], None], parts):
        text = "\n\n".join(trim(p, _numbered(blocks[h.start : h.end]), h.author, teased))
        lines = [b.text for b in blocks[h.end : after.end if after else len(blocks)][-8:] if b.words < 30]
        why = h.why or _left_out(h, lines, text, author)
        credit = one_line(h.credit).strip(" ()[].*")
        sections.append(Story(_title(h.title), one_line(h.author) or author, text, source, credit, why))
    how = "the contents file" if toc.settled else "contents and headings" if toc.titles else "headings alone"
    return Reading(source, author, how, sections, toc, found, starts)


def _body(blocks: list[Block], h: Head, after: Head | None, last: bool) -> list[Block]:
    """The blocks of one section, without what is announced at its end."""
    body = blocks[h.end : after.start if after else len(blocks)]
    if after and body and body[-1].gap > max(3, blocks[after.start].gap) and body[-1].text.startswith("_"):
        body.pop()  # a note on the next story
    ads = (i for i, b in enumerate(body) if i > len(body) // 5 and BACK_PAGE.search(b.text))
    end = next(ads, None) if last else None  # advertisements and transcribers' remarks follow the last story
    while end:  # they begin with the headings and lists above their first sign
        b, near = body[end - 1], body[max(0, end - 4) : end - 1]
        if not (b.level or b.kind == "list" or b.words < 25 and any(o.level for o in near)):
            break
        end -= 1
    body = body[:end]
    end = len(body)  # headings and lists below a story's last prose announce the next part
    while end and (_heads_part(body[end - 1]) or body[end - 1].kind == "list"):
        end -= 1
    # a list alone may be the story's own
    return body[:end] if any(map(_heads_part, body[end:])) else body


def _heads_part(block: Block) -> bool:
    text = block.text.strip()
    if text[:1] in "\"'\u201c\u2018":  # a last shout, printed large
        return False
    return bool(block.level or block.gap > 2 and block.words < 25 and LEADING.sub("", text) not in ("", text))


def _left_out(h: Head, last: list[str], text: str, author: str) -> str:
    """Why a section is not a story, or an empty string."""
    if len(fold(author)) > 8 and fold(author) in fold(h.title):
        return "its heading is the author's name"
    if len(text.split()) < MIN_WORDS:
        return f"shorter than {MIN_WORDS} words"
    if any(CONTINUED.fullmatch(t.strip()) for t in last):
        return "part of a serial: the rest is not in this book"
    if is_verse(text):
        return "verse"
    return ""
