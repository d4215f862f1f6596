"""Where stories begin: the headings of a book, weighed against its page of contents (contents.py).

Titles that stand in the contents begin stories; headings of the same style between them do too (contents forget some);
prefaces, notes, advertisements, poems and numbered parts do not. Without contents the strongest style of heading
that at least three sections share decides. When the evidence disagrees a story is left out rather than cut in half.

Used by stories.py. Left out: reading what a section says; only its form is looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from scripts.anthologies.books import BYLINE, END_MARK, LEADING, NUMBER, ORDINAL, Block

MIN_WORDS = 60  # shorter sections are dividers and dedications

MATTER = re.compile(
    r"(the\s+)?((editor|author|translator|publisher|transcriber)s?'?s?|general|short|brief|a|an|critical|historical)?\s*"
    r"((preface|foreword|introduction|introductory( \w+)?|prefatory( \w+)?|acknowledge?ments?|afterword|dedication|"
    r"postscript|advertisements?)\b(\W+(to|by|of)\b.*)?|(table of )?contents( of .*)?|list of .*|(\w+ )?(illustrations|plates)|"
    r"notes?( (and|on|to) .*)?|(end|foot)notes?|glossary.*|index\b.*|appendix.*|bibliograph.*|errata|corrections|"
    r"(other )?(books|works|stories|novels)( \w+)? by .*|by the same author.*|abbreviations|(on )?(\w+ )?pronunciation.*|"
    r"references|sources\b.*|parallels|remarks|vocabulary|a word (to|about|from)\b.*|to (the|my)( \w+)? readers?|copyright.*|"
    r"(bio|biblio)graphical .*|publishers?'? .*|transcrib\w+'? .*|imprint|colophon|uncopyright|title ?page|halftitle.*|"
    r"about the author.*|the full project.*|(.* )?press notices.*|opinions of the press.*)\W*",
    re.I,
)
NO_STORIES = re.compile(r"\W*(\w+\W)?(essays|studies|poems|verses|plays|speeches|articles)\W*", re.I)
PART = re.compile(rf"\W*(chapter|part)\s+(the\s+)?{NUMBER}\W*", re.I)
NOTES = re.compile(r"\W*(foot|end)?notes?\W*|glossary\W*|notes and references\W*", re.I)
SPEECH = re.compile(r"[\"\u201c\u2018'].*[.,!?-][\"\u201d\u2019']+(\[\w{1,3}\])?$", re.S)
MONTH = r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b"


def fold(text: str) -> str:
    """Letters and digits only, so that titles compare across spelling of accents, case and stops."""
    text = re.sub(r"\(\d{1,3}\)|\[.*?(\]|$)", " ", text, flags=re.S)
    text = LEADING.sub("", text.strip())
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


def one_line(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


# ------------------------------------------------------------------ headings


def heading_like(block: Block) -> bool:
    """Could this block be a title? Form only: short, set apart, no sentence, not speech."""
    if block.level:
        return len(block.text.split()) <= 30 and not re.search(r"[,;]$", block.text.strip())
    if block.kind in ("list", "break") or block.gap < 2 or block.text.count("\n") > 3:
        return False
    stop = re.search(r"[a-z][.][\"\u201d'\u2019]?$", block.text.strip())
    return title_form(block.text) and not (stop and block.gap < 3 and not len(block.text.split()) < 5)


def title_form(text: str) -> bool:
    text = text.strip()
    if re.search(rf"{MONTH}.{{0,12}}\b1[5-9]\d\d\b", text, re.I) or SPEECH.match(text):
        return False  # the head of a letter; speech
    if re.search(r"[!?].*[!?]|--$", text, re.S):
        return False  # a cry
    words, letters = text.split(), [c for c in text if c.isalpha()]
    if not letters or len(words) > 22 or text.lstrip()[:1] in "*[(" or re.search(r"[,;:]$", text):
        return False
    if sum(c.isupper() for c in letters) > 0.7 * len(letters):
        return True
    big = [w for w in words if len(re.sub(r"\W", "", w)) > 3]
    capital = sum(w.strip("_*\"'\u201c\u2018(")[:1].isupper() for w in big)
    return len(words) <= 14 and capital >= 0.75 * len(big)


def is_byline(text: str) -> bool:
    """ "By John Writer", "Translated by Ann Author"; not "By nine all was still." """
    words = re.findall(r"[^\W\d_]{3,}", text)
    return bool(BYLINE.fullmatch(text)) and sum(w[0].isupper() for w in words) >= 0.5 * len(words)


@dataclass
class Head:
    """A run of heading blocks [start, end) above some prose."""

    start: int
    end: int
    title: str
    author: str
    style: tuple
    entry: int | None = None  # its place in the contents
    matter: bool = False  # front or back matter, not a story
    ordinal: bool = False  # only a number: a part of a story
    poems: bool = False  # from here on poems, essays or plays
    verse: bool = False  # what follows is verse
    numbered: bool = False
    words: int = 0  # up to the next head that is as strong
    near: int = 0  # up to the next head of any kind


@dataclass
class Contents:
    """The page of contents: which blocks it takes, and where a title or an anchor stands in it."""

    blocks: range = range(0)
    titles: dict[str, list[int]] = field(default_factory=dict)  # folded title -> its places
    anchors: dict[str, int] = field(default_factory=dict)  # link target -> place


def heads(blocks: list[Block], toc: Contents) -> list[Head]:
    found, i = [], toc.blocks.stop
    levels = Counter(b.level for b in blocks if b.level)
    rare = {level for level, n in levels.items() if n < 3 <= max(levels.values())}  # the title page's
    while i < len(blocks):
        if not heading_like(blocks[i]) and listed(blocks[i], toc) is None:
            i += 1
            continue
        j = i + 1
        while (
            j < len(blocks) and j - i < 7 and len(blocks[j].text.split()) <= 30 and _continues(blocks, j, toc)
        ):
            j += 1
        found.append(_head(blocks, i, j, toc, rare))
        i = found[-1].end
    for k, h in enumerate(
        found
    ):  # a part's heading does not end a story, nor do two headings in a row begin two
        after = next(
            (
                o.start
                for o in found[k + 1 :]
                if strong(o.style, h.style) and not o.ordinal or o.matter and NOTES.fullmatch(o.title)
            ),
            len(blocks),
        )
        h.words = sum(b.words for b in blocks[h.end : after])
        h.near = sum(
            b.words for b in blocks[h.end : found[k + 1].start if k + 1 < len(found) else len(blocks)]
        )
    return found


def _continues(blocks: list[Block], j: int, toc: Contents) -> bool:
    """Does block j still belong to the heading above it (title under a number, author, note in brackets)?"""
    text, above = blocks[j].text.strip(), blocks[j - 1].text.strip()
    if (
        heading_like(blocks[j])
        or text.isupper()
        and len(text.split()) <= 12
        and not text.endswith("--")
        or is_byline(text)
        or ORDINAL.fullmatch(text)
        or text[:1] in "[(*"
    ):
        return blocks[j].kind not in ("list", "break")
    if listed(blocks[j], toc, near=True) is not None:
        return True
    return bool(ORDINAL.fullmatch(above)) and title_form(text) and not blocks[j].level


def listed(block: Block, toc: Contents, near: bool = False) -> tuple[int, int] | None:
    """(certainty, place in the contents) if the block's text or anchor stands there; `near`: right under a heading."""
    text = one_line(block.text)
    if (
        ORDINAL.fullmatch(text)
        or len(text.split()) > 30
        or len(text) > 160
        or block.kind in ("list", "break")
    ):
        return None
    if not (near or block.gap > 1 or block.level or text.isupper() or block.ids):
        return None
    if near and SPEECH.match(text) and not text.isupper():
        return None
    key = fold(text)
    if key in toc.titles and len(key) > 1:
        return 3, toc.titles[key][0]
    for anchor in block.ids:
        if anchor in toc.anchors and (block.level or title_form(text)):
            return 2, toc.anchors[anchor]
    if len(key) < 6 or not (heading_like(block) or near and title_form(text)):
        return None
    for other, where in (
        toc.titles.items() if len(toc.titles) < 3000 else ()
    ):  # a longer list is no page of contents
        longer, shorter = (other, key) if len(other) > len(key) else (key, other)
        if len(shorter) > 6 and longer.startswith(shorter) and len(shorter) > 0.45 * len(longer):
            return 1, where[0]
        if (
            abs(len(other) - len(key)) < 8
            and len(key) > 5
            and (other[:2] == key[:2] or other[-3:] == key[-3:])
            and SequenceMatcher(None, other, key).ratio() > 0.85
        ):
            return 1, where[0]
    return None


def _head(blocks: list[Block], i: int, j: int, toc: Contents, rare: set[int]) -> Head:
    text = {k: one_line(blocks[k].text) for k in range(i, j)}
    sure = {
        k: found
        for k in text
        if (found := listed(blocks[k], toc, near=k > i)) and (k == i or not is_byline(text[k]))
    }
    author = next((text[k] for k in text if k > i and k not in sure and is_byline(text[k])), "")
    titles = [
        k
        for k in text
        if k in sure or not (is_byline(text[k]) or ORDINAL.fullmatch(text[k]) or text[k][:1] in "[(")
    ]
    titles = [k for k in titles if blocks[k].level not in rare] or titles
    key = max(sure, key=lambda k: (sure[k][0], k)) if sure else titles[0] if titles else i
    # what stands below the title and is neither number, author nor note may be the story's first line
    end = next((k for k in range(key + 1, j) if blocks[k].level and re.search(r"[,;]$", text[k])), j)
    b = blocks[key]
    letters = [c for c in b.text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) > 0.7 * len(letters)
    style = ("h", b.level) if b.level else ("t", min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
    matter = bool(MATTER.fullmatch(text[key]) or END_MARK.fullmatch(text[key])) or any(
        MATTER.fullmatch(text[k]) and "note" in text[k].lower() for k in text
    )
    poems = any(NO_STORIES.fullmatch(text[k]) for k in titles)
    if key > i and (b.level < blocks[i].level if b.level else 3 <= b.gap > blocks[i].gap):
        i = key  # what stands closer to the text above belongs to it
    title = LEADING.sub("", text[key]) or text[key]
    return Head(
        i,
        end,
        title,
        re.sub(r"^\W*(by)\s+", "", author, flags=re.I),
        style,
        sure[key][1] if key in sure else None,
        matter,
        not titles,
        poems,
        end < len(blocks)
        and "\n" in blocks[end].text
        and all(len(l) < 50 for l in blocks[end].text.split("\n")),
        title != text[key] or any(PART.fullmatch(text[k]) for k in range(i, key)),
    )


def strong(style: tuple, other: tuple) -> bool:
    """Is a heading of `style` at least as strong as one of `other`?"""
    if style[0] != other[0]:
        return style[0] == "h"
    if style[0] == "h":
        return style[1] <= other[1]
    return style[1] > other[1] or style[1] == other[1] and style[2] >= other[2]


def choose(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    whole = []
    for h in found:  # a half-title and the title after it are one heading
        if whole and h.entry is not None and h.entry == whole[-1].entry and whole[-1].near < 40:
            h.start = whole.pop().start
        whole.append(h)
    found = whole
    plain = [h for h in found if not h.matter and not h.ordinal and h.words >= MIN_WORDS]
    known = [h for h in plain if h.entry is not None]
    if len({h.entry for h in known}) < 3:
        return _choose_by_form(found)
    style = Counter(h.style for h in known).most_common(1)[0][0]
    same = [h for h in plain if h.style == style]
    pure = len([h for h in same if h.entry is not None]) >= 0.6 * len(same)
    numbers = len([h for h in known if h.numbered]) > 0.5 * len(known)
    uses, starts = Counter(), []
    for (
        h
    ) in known:  # a title that stands twice in the contents begins two stories; in the notes it begins none
        if uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            starts.append(h)
    first, last = starts[0].start, starts[-1].start
    notes = min((h.start for h in found if h.matter and h.start > last), default=1 << 60)
    ends = [
        h
        for h in found
        if h.matter and (strong(h.style, style) or NOTES.fullmatch(h.title) or h.start > last)
    ]
    for h in plain:  # not in the contents: forgotten there, or an advertisement
        if (
            h.entry is None
            and (h.start > first or h.author)
            and strong(h.style, style)
            and (numbers or not h.numbered)
        ):
            forgotten = h.style == style and (pure and h.start < last or h.author and h.start < notes)
            if (
                forgotten
                and len(fold(h.title)) > 1
                and (h.author or not h.verse)
                and not (h.start > last and fold(h.title) in {fold(o.title) for o in starts})
            ):
                starts.append(h)
            elif h.start > last:
                ends.append(h)
                h.matter = True
    return _without_poems(sorted(starts + ends, key=lambda h: h.start), style)


def _choose_by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain, best = [h for h in found if not h.matter and not h.ordinal], None
    for style in {h.style for h in plain}:
        if len([h for h in plain if h.style == style and h.words >= 100]) >= 3 and (
            best is None or strong(style, best)
        ):
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
        h.matter = h.matter or off
    return chosen
