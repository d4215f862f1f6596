"""One book -> its stories, whole and clean: reading (books.py) and headings (headings.py) put together.

Standard Ebooks say in their markup what a story is, so there the markup decides; everywhere else contents and headings.

    from scripts.anthologies import split_anthology
    for story in split_anthology("pg2814.txt"): print(story.title, len(story.text.split()))

Left out: plays and poems, sections too short to be a story.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from scripts.anthologies.books import (
    LEADING,
    MAX_BYTES,
    ORDINAL,
    THE_END,
    Block,
    decode,
    epub_blocks,
    html_blocks,
    is_verse,
    paragraphs,
    text_blocks,
    unframe,
)
from scripts.anthologies.contents import contents
from scripts.anthologies.edges import trim
from scripts.anthologies.headings import MIN_WORDS, choose, fold, heads, one_line

BACK_PAGE = re.compile(
    r"\b(8vo|12mo|16mo|4to)\b|\b\d+s\.? (net|6d)|transcriber.{0,3} notes?|\b(corrected|changed) to \"|"
    r"& sons, (limited|ltd)|^\W*printed (in|by)\b|illustrated from photographs|punctuation .* retained|"
    r"typographical errors|^\s*\+-{9}",
    re.I,
)

EDITORS = re.compile(  # heading or signature of a foreword that is not the storyteller's
    r"((editor|translator)\W?s )?note|(editor|translator)\W?s \w+|\W*(the )?(editor|translator)\W*|"
    r"\W*([A-Z]\.\s?){2,4}",
    re.I,
)


@dataclass
class Story:
    title: str
    author: str
    text: str  # paragraphs between blank lines, lines of verse each on its own
    source: str  # file name of the anthology


def _title(text: str) -> str:
    """A title on one line, without the marks of notes and remarks in brackets."""
    text = re.sub(
        r"\s*(--|\u2014)?\[.*?(\]|$)|\(\d{1,3}\)|\*+$", "", one_line(text.replace("\u2060", "")).strip(" *")
    )
    return re.sub(r"([\s.,]|--|\u2014)+$", "", text).strip() or one_line(text)


def markup_stories(blocks: list[Block], author: str, source: str) -> list[Story]:
    stories = []
    for number in sorted({b.story for b in blocks if b.story}):
        own = [b for b in blocks if b.story == number]
        words = [len(b.text.split()) for b in own]
        prose = [b.kind != "drama" for b in own if not (b.level or b.kind in ("title", "part"))]
        told = prose and prose[0] and prose[-1]  # a talk inside a tale
        if sum(n for n, b in zip(words, own) if b.kind == "drama") > 0.5 * sum(words) and not told:
            continue  # plays are not prose
        editors = {b.foreword for b in own if b.foreword and EDITORS.fullmatch(b.text.strip())}
        body = [b for b in own if b.kind != "skip" and b.foreword not in editors]
        above = []
        while body and (body[0].kind in ("title", "part", "date", "break") or body[0].level):
            above.append(body.pop(0))
        text = "\n\n".join(trim(paragraphs(body, marked_up=True), _numbered(above)))
        if text:
            named = [b.text for b in above if b.kind == "title" or b.level] or [b.text for b in above] or [""]
            title = next((t for t in named if not ORDINAL.fullmatch(t.strip())), named[0])
            stories.append(Story(_title(title), author, text, source))
    return stories


def _numbered(heading: list[Block]) -> bool:
    return any(ORDINAL.fullmatch(b.text.strip()) for b in heading)


def _without_back_pages(body: list[Block]) -> list[Block]:
    """The last story without advertisements: from the headings and lists on that stand above their first sign."""
    end = next((i for i, b in enumerate(body) if i > len(body) // 5 and BACK_PAGE.search(b.text)), len(body))
    if end == len(body):
        return body

    def announces(i: int) -> bool:
        b = body[i]
        return bool(
            b.level or b.kind == "list" or b.words < 25 and any(o.level for o in body[max(0, i - 3) : i])
        )

    while end and announces(end - 1):
        end -= 1
    return body[:end]


def _without_divider(body: list[Block]) -> list[Block]:
    """A story's blocks without what announces the next part: headings and lists below its last prose."""
    end = len(body)
    while end and (_heads_part(body[end - 1]) or body[end - 1].kind == "list"):
        end -= 1
    return (
        body[:end] if any(_heads_part(b) for b in body[end:]) else body
    )  # a list alone may be the story's own


def _heads_part(block: Block) -> bool:
    text = block.text.strip()
    if text[:1] in "\"'\u201c\u2018":  # a last shout, printed large
        return False
    return bool(block.level or block.gap > 2 and block.words < 25 and LEADING.sub("", text) not in ("", text))


def split_anthology(path: str | Path) -> list[Story]:
    """Every story of one book, in order. Raises ValueError (with a sentence) for what is no book or holds no story."""
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: larger than {MAX_BYTES >> 20} MB: no anthology is; split it or leave it out"
        )
    raw = path.read_bytes()
    try:
        return _split(raw, path.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _split(raw: bytes, source: str) -> list[Story]:
    if not raw.strip():
        raise ValueError("is empty: fetch it again")
    author, wrapped, nav = "", False, []
    if raw[:2] == b"PK":
        nav, blocks, author = epub_blocks(raw)
        stories = markup_stories(blocks, author, source)
        if stories:
            return stories
    else:
        text = decode(raw)
        author = one_line(next(iter(re.findall(r"^Author:\s*(.+?)\s*(?:[\[(].*)?$", text[:20000], re.M)), ""))
        is_html = re.search(r"<(html|body|p|h[1-6])\b", text[:20000], re.I)
        wrapped = not is_html
        blocks = html_blocks(text) if is_html else text_blocks(text)
    blocks = unframe(blocks)
    for b in nav + blocks:
        b.words = len(b.text.split())
    best: list[Story] = []
    for read in ([nav + blocks] if nav else []) + [blocks]:  # an epub's table of contents may be of no use
        best = max(best, _sections(read, author, source, wrapped), key=_length)
        if _length(best) > 0.5 * sum(b.words for b in blocks):
            break
    if not best:
        raise ValueError(
            "has no stories that can be told apart (neither contents nor headings): leave it out"
        )
    return best


def _length(stories: list[Story]) -> int:
    return sum(len(s.text.split()) for s in stories)


def _sections(blocks: list[Block], author: str, source: str, wrapped: bool) -> list[Story]:
    """The stories that contents and headings of these blocks tell apart."""
    toc = contents(blocks)
    starts = choose(heads(blocks, toc), toc)
    marks = any(re.match(r"\(\d{1,3}\)\s", b.text) for b in blocks)
    stories = []
    last = next((h for h in reversed(starts) if not h.matter), None)
    for h, after in zip(starts, starts[1:] + [None]):
        about_author = len(fold(author)) > 8 and fold(author) in fold(h.title)
        if h.matter or about_author:
            continue
        body = blocks[h.end : after.start if after else len(blocks)]
        if (
            after
            and body
            and body[-1].gap > max(3, blocks[after.start].gap)
            and body[-1].text.startswith("_")
        ):
            body.pop()  # a note on the next story
        if h is last:  # advertisements and transcribers' remarks follow the last story
            body = _without_back_pages(body)
        body = body[: next((i for i, b in enumerate(body) if THE_END.fullmatch(b.text.strip())), len(body))]
        parts = paragraphs(_without_divider(body), wrapped, marks)
        text = "\n\n".join(trim(parts, _numbered(blocks[h.start : h.end])))
        cut = re.search(r"[,;:](--|\u2014)?$", text)  # a frame that hands over to a tale of its own
        if len(text.split()) >= MIN_WORDS and not is_verse(text) and not cut:
            stories.append(Story(_title(h.title), one_line(h.author) or author, text, source))
    return stories
