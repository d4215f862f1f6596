"""The blocks of one section -> the paragraphs of its story, without what is around the story.

`paragraphs` undoes wraps, marks, notes and pictures. `trim` cuts. Above a story: numbers, authors, sources,
editors' notes, mottoes. Below: notes, where the tale was taken from, THE END. Form decides (brackets,
indentation, a name below some verse); where form leaves a doubt the words stay. Left out: mottoes without a
source and notes that look like prose; the date below a letter or a story.
"""

import re
from collections import Counter
from dataclasses import dataclass

from scripts.anthologies.books import END_MARK, ORDINAL, Block, text_blocks
from scripts.anthologies.titles import fold, is_byline, is_source, title_form

# a note of its own, and the marks that point to notes and pages
FOOTNOTE = re.compile(r"\s*(\[\d{1,3}\]|\[[A-Z*]\]|\(\d{1,3}\)\s|\d{1,2}\.\[)\s*\S")
MARK = re.compile(
    r"\[\d{1,3}\]|\[[A-Z*\u2020]\]|(?<=[\w.,;:!?\"\u201d\u2019])\(\d{1,3}\)|[\[{]p(?:g|age)?\.? ?\d+[\]}]"
)
IN_BRACKETS = re.compile(  # may hold notes of their own, and run over paragraphs
    r"(?i)\[\s*_?(?:Illustration|Footnote|Transcriber|Sidenote|Blank Page|Decoration|Image|Pg|Page)\b"
    r"[^\[\]]{0,4000}(?:\[[^\[\]]{0,400}\][^\[\]]{0,4000}){0,20}\]_?"
)
ITALIC = re.compile(r"(?<![A-Za-z0-9])_([^_]+?)_(?![A-Za-z0-9])|=([^=\n]+)=")
SCENE_BREAK = "* * *"


@dataclass
class Paragraph:
    """Prose on one line, or verse line by line."""

    text: str
    indent: int = 0  # columns right of the margin
    gap: int = 1  # blank lines above
    verse: bool = False
    apart: bool = False  # markup sets it apart: italics, a quotation, a class of its own


def paragraphs(blocks: list[Block], wrapped=False, marks=False, marked_up=False) -> list[Paragraph]:
    """Hard wraps, marks, notes and pictures undone.

    `wrapped`: plain text, whose lines end at a margin, not where the author ended them. `marks`: the book has
    notes that begin with (1), so a (1) after a space points to one too. `marked_up`: notes and italics are
    markup already dealt with, so brackets and underscores are the author's.
    """
    found = []
    widths = sorted(len(line) for b in blocks for line in b.text.split("\n"))
    width = max(60, widths[int(0.9 * len(widths))] if widths else 0)  # a poem alone has no margin of its own
    raw = IN_BRACKETS.sub("", "".join("\n" * (b.gap + 1) + b.text for b in blocks))
    for text, gap in ((b.text, b.gap) for b in text_blocks(raw) if not FOOTNOTE.match(b.text)):
        lines = text.split("\n")
        verse, apart = _is_verse_block(lines, width), bool(re.fullmatch(r"\s*_[^_]+_\s*", text))
        if re.fullmatch(r"[\s*.\u2022~#\u2015\u2014\u2500_-]*", text):
            text = SCENE_BREAK
        elif wrapped and not verse:
            text = re.sub(r"(?<=[a-z]-)\n\s*(?=[a-z])", "", "\n".join(lines))  # red-and-/white
            text = " ".join(text.split())
        else:
            text = "\n".join(" ".join(line.split()) for line in lines)
        if not marked_up:
            text = re.sub(r"\s\(\d{1,3}\)(?=[\s.,;:!?]|$)", "", text) if marks else text
            text = ITALIC.sub(lambda m: m[1] or m[2], MARK.sub("", text)).replace("_", "")
        text = re.sub("[\u2060\u00ad]", "", text)
        text = re.sub(" {2,}", " ", text.replace("\u00a0", " ")).strip()
        if text:
            indent = min(len(line) - len(line.lstrip()) for line in lines)
            found.append(Paragraph(text, indent, gap, verse, apart))
    margin = Counter(p.indent for p in found if not p.verse).most_common(1)
    for p in found:
        p.indent -= margin[0][0] if margin else 0
    return found


def _is_verse_block(lines: list[str], width: int) -> bool:
    """Lines broken on purpose: well short of the margin, most beginning with a capital."""
    bare = [line.strip() for line in lines]
    capitals = sum(line.lstrip("\"'\u201c\u2018(_").strip()[:1].isupper() for line in bare)
    return len(lines) > 1 and max(map(len, bare)) <= 0.85 * width and capitals >= 0.7 * len(lines)


def is_verse(text: str) -> bool:
    verse = [p for p in text.split("\n\n") if "\n" in p]
    prose, lines = text.count("\n\n") + 1 - len(verse), sum(p.count("\n") + 1 for p in verse)
    return lines > 2.5 * prose and sum(map(len, verse)) > 0.7 * len(text)


# ------------------------------------------------------------------ edges

EDITOR = re.compile(r"(?i)\b(note|title|author|translat\w+|edit(or|ed|ion)|publish\w+|printed)\b")
HEAD_NOTE = re.compile(
    r"(?is)(--|\u2014)?\[.*\]|\*(?! \*).*|\((From|(Narrator's )?Note)\b.*\)|\([^()]{3,80}\b1[5-9]\d\d\.?\)|"
    r"(A \w+ story |This story was )?(Narrat(ed|or)|Paraphrased)\b.{,300}|((?-i:From (the )?[\"\u201cA-Z(])|"
    r"Translated|Copyright|Reprinted|Published|By permission|(This|The following) (story|tale) (is|was)\b)"
    r".{,200}\b(permission|copyright|published|volume|translat\w+|one of many)\b.{,500}"
)
# .--Young.
NAMED_AFTER = re.compile(r"(?:--|[\u2014\u2015])\s*([\"\u201c']?[A-Z][^!?;]{2,60}?)\.?[\"\u201d')]*$")
SOURCE_LINE = re.compile(  # --Goethe; From the Latin; Luke iv. 18
    r"(--|[\u2014\u2015])\s*[A-Z\"\u201c]|From |(\d )?[A-Z]\w+,? [ivxlc\d]+[.,:] ?[ivxlc\d-]+\.?$"
)
FIRST_PART = re.compile(r"(?i)\W*((chapter|part|book)\s+)?(I|1|one|the first)\W*")
LIFE = re.compile(
    r"\b(born|died|educated|author of|published|novels?|novelist|stories|story|writer|writes|wrote|poet|"
    r"journalist|editor|magazines?|university|college|contribut\w+|native of|lives? (in|at)|biograph\w+|"
    r"works|books?|literary|career)\b"
)
DATED = re.compile(r"\W*([A-Z][\w. ]{2,25},\s*)*([A-Z][a-z]{2,9}\.?\s*(\d{1,2},?)?\s*)?1[5-9]\d\d\W*")
CONTINUED = re.compile(  # a line of its own, not a word in a sentence
    r"(?i)[\W_]*((to be|will be) (continued|concluded)\b.{0,60}|(part \w+ of )?(this|the) (story|novel|"
    r"serial) will be \w+ed\b.{0,60}|(continued|concluded)( (in|next)\b.{0,50})?|end of (the )?(part|book|"
    r"instal+ment) .{1,12})\W*"
)


def trim(parts: list[Paragraph], numbered: bool = False, author: str = "", teased: bool = False) -> list[str]:
    """The story's own paragraphs. `numbered`: the number of its first part is gone with the heading, so that
    the numbers of the others become scene breaks. `teased`: this book sets a teaser above each story."""
    start = above(parts, author)
    chaptered = any(ORDINAL.fullmatch(p.text) for p in parts[:start])
    if teased and not chaptered and teaser(parts, start):
        start = above(parts, author, start + 1)
    texts = [p.text for p in parts[start:]]
    for n, text in enumerate(texts):
        if (numbered or chaptered) and ORDINAL.fullmatch(text):
            texts[n] = SCENE_BREAK
    return texts[: _below(texts)]


def above(parts: list[Paragraph], author: str = "", n: int = 0) -> int:
    """How many paragraphs are before the story."""
    step = 1
    while step and n < len(parts) - 1:
        step = _about_author(parts, n, author) or _apparatus(parts, n)
        step = step or _motto(parts, n) or _inset(parts[n], parts[n + 1])
        n += step
    return n


def _apparatus(parts: list[Paragraph], n: int) -> bool:
    """A number, a byline, a source, a subtitle, an editor's note of one paragraph."""
    text, words = parts[n].text, len(parts[n].text.split())
    if text == SCENE_BREAK or ORDINAL.fullmatch(text) or is_byline(text) or is_source(text):
        return True
    if n and words <= 10 and ORDINAL.fullmatch(parts[n - 1].text) and title_form(text):
        return True  # the title of the first chapter
    loud = words > 5 and text.isupper() and text[0].isalpha()
    if loud or words <= 40 and FIRST_PART.fullmatch(parts[n + 1].text):
        return True  # a subtitle
    return words < 250 and bool(HEAD_NOTE.fullmatch(text))


def _about_author(parts: list[Paragraph], n: int, author: str) -> int:
    """A note on the author: the name alone, then prose that has the surname, a year or a trade."""
    if len(fold(author)) < 4:
        return 0
    k = n + (fold(parts[n].text) == fold(author))
    surname, end = author.split()[-1].strip(".,()").casefold(), k
    while end < min(k + 5, len(parts) - 1):
        text = parts[end].text
        about = surname in text.casefold() or end > k
        life = len(set(LIFE.findall(text.casefold()))) + 2 * bool(re.search(r"\b1[5-9]\d\d\b", text))
        if not about or life < 3 or len(text.split()) > 299:
            break
        end += 1
    if k < end < len(parts) - 1 and DATED.fullmatch(parts[end].text):
        end += 1
    return end - n


def teaser(parts: list[Paragraph], n: int) -> bool:
    """Is paragraph n one to three sentences that are set apart from what follows?"""
    if n + 2 >= len(parts):
        return False
    p, below = parts[n], parts[n + 1]
    sentences = len(re.findall(r"[.!?\u2026][\"\u201d')]*(?=\s|$)", p.text))
    far = below.gap > max(1, *(q.gap for q in parts[n + 2 : n + 8]))
    apart = far or p.apart or FIRST_PART.fullmatch(below.text)
    return bool(apart) and 5 < len(p.text.split()) <= 90 and sentences <= 3


def has_teaser(parts: list[Paragraph], author: str) -> bool:
    """Is a teaser between the heading and the story, or its first part?"""
    start = above(parts, author)
    before = [n for n in range(start) if FIRST_PART.fullmatch(parts[n + 1].text)]
    return any(teaser(parts, n) and not _about_author(parts, n, author) for n in [start, *before])


def _motto(parts: list[Paragraph], n: int) -> int:
    """Verse or a quotation, and below it or at its end whom it is from."""
    words = 0
    for k in range(n, min(n + 8, len(parts) - 1)):
        p, before = parts[k], parts[k - 1]
        words += len(p.text.split())
        if words > 200:
            return 0
        if k > n and _names_source(p, before.verse):
            return k - n + 1
        quoted = p.verse or p.apart or p.indent > 0 or k == n and p.text[:1] in "\"\u201c\u2018'"
        if not quoted:
            return k - n if p.gap > 1 and before.verse and before.indent > 0 else 0
        named = NAMED_AFTER.search(p.text)
        if named and title_form(named[1]) or p.verse and p.text.split("\n")[-1].isupper():
            return k - n + 1
    return 0


def _names_source(p: Paragraph, below_verse: bool) -> bool:
    """A line that names author or work: set right, in capitals, after a dash, or every word like a name's."""
    text = p.text.strip("()[] ")
    if "\n" in text or len(text.split()) > 12 or text[-1:] in "!?" or ORDINAL.fullmatch(text):
        return False
    return bool((p.indent > 3 or below_verse) and title_form(text) or SOURCE_LINE.match(text))


def _inset(p: Paragraph, below: Paragraph) -> bool:
    """Prose set in from the margin, above prose at the margin: an author's note, a clipping, a quotation."""
    prose = not p.verse and not below.verse and len(p.text.split()) > 5
    return prose and p.indent >= 3 and below.indent <= 0


def _below(texts: list[str]) -> int:
    """Where the story ends: the number of paragraphs before notes and end marks."""
    sizes, end = [len(t.split()) for t in texts], len(texts)
    for i, text in enumerate(texts[1:], 1):
        few = len(texts) - i <= 3 or len(texts) - i <= 10 and sum(sizes[i:]) < 0.5 * sum(sizes[:i])
        notes = few and re.match(r"Notes?(:|\.--|\.\u2014|\. )", text, re.I)
        if notes or re.fullmatch(r"\W*footnotes?\W*", text, re.I):
            end = i
            break
    if end > 1 and re.fullmatch(r"\[[^\]]*\]\.?", texts[end - 1]) and sizes[end - 1] <= 30:
        end -= 1  # where the tale was taken from
    if end and texts[end - 1].endswith("]"):  # an editor's note of several paragraphs
        start = next((i for i in range(end - 1, max(0, end - 6), -1) if texts[i].startswith("[")), end)
        if EDITOR.search(" ".join(texts[start:end])):
            end = start
    while end and (END_MARK.fullmatch(texts[end - 1]) or texts[end - 1] == SCENE_BREAK):
        end -= 1
    return end
