"""The edges of a section: what stands between heading and story, and between the story and the next heading.

Above a story: numbers, authors, sources, editors' notes, mottoes. Below: notes, where the tale was taken
from, THE END.
Form decides (brackets, indentation, a name below some verse), and where form leaves a doubt the words stay.

Used by stories.py. Left out: mottoes without a source and notes that look like prose, which only a reader
would know; the date below a letter or a story.
"""

from __future__ import annotations

import re

from scripts.anthologies.books import END_MARK, ORDINAL
from scripts.anthologies.bylines import is_byline, is_source
from scripts.anthologies.prose import SCENE_BREAK, Paragraph
from scripts.anthologies.titles import fold, title_form

EDITOR = re.compile(r"\b(note|title|author|translat\w+|edit(or|ed|ion)|publish\w+|printed)\b", re.I)
HEAD_NOTE = re.compile(
    r"(--|\u2014)?\[.*\]|(A \w+ story |This story was )?(Narrat(ed|or)|Paraphrased)\b.{,300}|\*(?! \*).*|"
    r"\*? ?((?-i:From (the )?[\"\u201cA-Z(])|Translated|Copyright|Reprinted|Published|By permission).{,200}"
    r"\b(permission|copyright|published|volume|translat\w+)\b.{,200}|"
    r"\*? ?(This|The following) (story|tale) (is|was)\b.{,200}\b(published|translat\w+|one of many)\b.{,500}|"
    r"\((From|(Narrator's )?Note)\b.*\)|\([^()]{3,80}\b1[5-9]\d\d\.?\)",
    re.S | re.I,
)
CREDITED = re.compile(r"\W*(From|Reprinted|Adapted|By permission|Used by)\b")
NAMED_AFTER = re.compile(
    r"(?:--|\u2014|\u2015)\s*([\"\u201c']?[A-Z][^!?;]{2,60}?)\.?[\"\u201d')]*$"
)  # ... at last.--Young.
LETTER = re.compile(r"\W*(my )?(dear(est)?|sir|madam\w*|gentlemen)\b", re.I)
FIRST_PART = re.compile(r"\W*((chapter|part|book)\s+)?(I|1|one|the first)\W*", re.I)
LIFE = re.compile(
    r"\b(born|died|educated|author of|published|novels?|novelist|stories|story|writer|writes|wrote|poet|"
    r"journalist|editor|"
    r"magazines?|university|college|contribut\w+|native of|lives? (in|at)|biograph\w+|works|books?|"
    r"literary|career)\b"
)
YEAR = re.compile(r"\b1[5-9]\d\d\b")
HE = re.compile(r"\W*(He|She|Born|The (present )?(author|writer)|Mr|Mrs|Miss|This (author|writer))\b")
SAID = re.compile(r"\b(said|cried|asked|replied|whispered)\b|[\"\u201c][A-Z][^\"\u201d]*[,?!][\"\u201d]")
DATED = re.compile(r"\W*([A-Z][\w. ]{2,25},\s*)*([A-Z][a-z]{2,9}\.?\s*(\d{1,2},?)?\s*)?1[5-9]\d\d\W*")
CONTINUED = re.compile(  # a line of its own, not a word in a sentence
    r"[\W_]*((to be|will be) (continued|concluded)\b.{0,60}|(part \w+ of )?(this|the) (story|novel|"
    r"serial) will be \w+ed\b.{0,60}|"
    r"(continued|concluded)( (in|next)\b.{0,50})?|end of (the )?(part|book|instal+ment) .{1,12})\W*", re.I
)  # fmt: skip
INSTALMENT = re.compile(
    r"\b(two|three|four|five|six|\d)[- ]part (novel|story|serial|tale)|\bpart \w+ of (a|the|two|three|"
    r"four|\d)\b|"
    r"\b(first|second|third|fourth|last|concluding|final) (part|instal+ment) of|"
    r"\b(a|new|our|thrilling|great) serial\b|\bconclusion of (a|the|our)\b", re.I
)  # fmt: skip
SYNOPSIS = re.compile(
    r"\W*(synopsis|what has gone before|the story (so far|thus far)|previous chapters)\b", re.I
)
MOTTO_WORDS = 200
SMALL = {"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"}


def trim(parts: list[Paragraph], numbered: bool = False, author: str = "", teased: bool = False) -> list[str]:
    """The story's own paragraphs. `numbered`: the number of its first part is gone with the heading, so that
    the
    numbers of the others become scene breaks. `teased`: this book sets a teaser above each story."""
    start = above(parts, author)
    chaptered = any(ORDINAL.fullmatch(p.text) for p in parts[:start])
    if teased and not chaptered and teaser(parts, start):
        start = above(parts, author, start + 1)
    numbered = numbered or chaptered
    texts = [SCENE_BREAK if numbered and _is_number(p.text) else p.text for p in parts[start:]]
    return texts[: _below(texts)]


def _is_number(text: str) -> bool:
    return bool(ORDINAL.fullmatch(text)) and (
        text.isupper() or text.strip(" .").isdigit() or len(text.split()) == 2
    )


def above(parts: list[Paragraph], author: str = "", n: int = 0) -> int:
    """How many paragraphs are before the story."""
    credited = bool(parts and CREDITED.match(parts[0].text))
    while n < len(parts) - 1:
        step = (
            _about_author(parts, n, author)
            or _apparatus(parts, n, credited)
            or _note_in_brackets(parts, n)
            or _motto(parts, n)
            or _inset(parts, n)
        )
        if not step:
            break
        credited = credited or bool(HEAD_NOTE.fullmatch(parts[n].text))
        n += step
    return n


def _apparatus(parts: list[Paragraph], n: int, credited: bool) -> int:
    text = parts[n].text
    words = len(text.split())
    capitals = text.isupper() and text[:1].isalpha()
    return int(
        bool(HEAD_NOTE.fullmatch(text) and words < 250)
        or text == SCENE_BREAK
        or bool(ORDINAL.fullmatch(text))
        or n
        and bool(ORDINAL.fullmatch(parts[n - 1].text))
        and words <= 10
        and title_form(text)  # the title of the first chapter
        or is_byline(text)
        or is_source(text)
        or text.startswith("From ")
        and words < 8
        and title_form(text)  # the book it stands in
        or words <= 40
        and bool(FIRST_PART.fullmatch(parts[n + 1].text))  # a subtitle
        or capitals
        and (words > 5 or credited)
    )


def _about_author(parts: list[Paragraph], n: int, author: str) -> int:
    """A note on the author: his name alone, then prose that has his surname or "He", a year or two, and his
    trade."""
    if len(fold(author)) < 4:
        return 0
    k = n + (fold(parts[n].text) == fold(author))
    surname, end = author.split()[-1].strip(".,()").casefold(), k
    while end < min(k + 5, len(parts) - 1):
        text = parts[end].text
        about = surname in text.casefold() or end > k or HE.match(text)
        life = len(set(LIFE.findall(text.casefold()))) + 2 * bool(YEAR.search(text))
        if not (about and life > 2 and len(text.split()) < 300 and not SAID.search(text)):
            break
        end += 1
    if end > k and end < len(parts) - 1 and DATED.fullmatch(parts[end].text):
        end += 1
    return end - n if end > k or k > n else 0


def teaser(parts: list[Paragraph], n: int) -> bool:
    """Is paragraph n one to three sentences that are set apart from what follows?"""
    if n + 2 >= len(parts):
        return False
    p, below = parts[n], parts[n + 1]
    sentences = len(re.findall(r"[.!?\u2026][\"\u201d')]*(?=\s|$)", p.text))
    apart = (
        p.apart
        or FIRST_PART.fullmatch(below.text)
        or below.gap > 1
        and below.gap > max((q.gap for q in parts[n + 2 : n + 8]), default=1)
    )
    return bool(apart) and 5 < len(p.text.split()) <= 90 and sentences <= 3 and p.text != SCENE_BREAK


def has_teaser(parts: list[Paragraph], author: str) -> bool:
    """Is a teaser between the heading and the story, or its first part?"""
    start = above(parts, author)
    before = [n for n in range(start) if FIRST_PART.fullmatch(parts[n + 1].text)]
    return any(teaser(parts, n) and not _about_author(parts, n, author) for n in [start, *before])


def serial(last: list[str], heading: str, first: str) -> bool:
    """Is this a part of a story whose other parts are elsewhere? `last`: the section's last paragraphs."""
    continued = any(CONTINUED.fullmatch(t.strip()) for t in last)
    return continued or bool(INSTALMENT.search(heading) or SYNOPSIS.match(first))


def _note_in_brackets(parts: list[Paragraph], n: int) -> int:
    """An editor's note of several paragraphs, [from here ... to there]."""
    if not parts[n].text.startswith("["):
        return 0
    end = next((k for k in range(n, min(n + 6, len(parts) - 1)) if parts[k].text.endswith("]")), None)
    return (
        end - n + 1 if end is not None and EDITOR.search(" ".join(p.text for p in parts[n : end + 1])) else 0
    )


def _motto(parts: list[Paragraph], n: int) -> int:
    """Verse or a quotation, and below it or at its end whom it is from."""
    words = 0
    for k in range(n, min(n + 8, len(parts) - 1)):
        p = parts[k]
        words += len(p.text.split())
        if words > MOTTO_WORDS or LETTER.match(p.text) or p.text == SCENE_BREAK:
            return 0
        if k > n and _is_source(p, parts[k - 1].verse):
            return k - n + 1
        quoted = p.verse or p.apart or p.indent > 0 or k == n and p.text[:1] in "\"\u201c\u2018'"
        if not quoted:
            return k - n if p.gap > 1 and parts[k - 1].verse and parts[k - 1].indent > 0 else 0
        named = NAMED_AFTER.search(p.text)
        if named and title_form(named[1]) or p.verse and p.text.split("\n")[-1].isupper():
            return k - n + 1
    return 0


def _is_source(p: Paragraph, below_verse: bool) -> bool:
    """A line that names author or work: set right, in capitals, after a dash, or every word like a name's."""
    text = p.text.strip("()[] ")
    if "\n" in text or len(text.split()) > 12 or text[-1:] in "!?" or ORDINAL.fullmatch(text):
        return False
    named = text.isupper() or p.indent > 3 and title_form(text) or below_verse and _names(text)
    verse_of_bible = re.fullmatch(r"(\d )?[A-Z]\w+,? [ivxlc\d]+[.,:] ?[ivxlc\d-]+\.?", text)
    return named or bool(verse_of_bible or re.match(r"(\u2014|\u2015|--)\s*[A-Z\"\u201c]|From ", text))


def _names(text: str) -> bool:
    return "\n" not in text and all(w[:1].isupper() or w.lower() in SMALL for w in text.rstrip(".").split())


def _inset(parts: list[Paragraph], n: int) -> int:
    """Prose set in from the margin, above prose at the margin: an author's note, a clipping, a quotation."""
    p, below = parts[n], parts[n + 1]
    prose = not p.verse and len(p.text.split()) > 5 and not LETTER.match(p.text)
    return int(prose and p.indent >= 3 and below.indent <= 0 and not below.verse)


def _below(texts: list[str]) -> int:
    """Where the story ends: the number of paragraphs before notes and end marks."""
    end = next(
        (i for i, t in enumerate(texts) if i and re.fullmatch(r"\W*footnotes?\W*", t, re.I)), len(texts)
    )
    if end > 1 and re.fullmatch(r"\[[^\]]*\]\.?", texts[end - 1]) and len(texts[end - 1].split()) <= 30:
        end -= 1  # where the tale was taken from
    for i in range(1, end):
        if re.match(r"Notes?(:|\.--|\.\u2014|\. )", texts[i], re.I):
            after = sum(len(t.split()) for t in texts[i:end])
            if end - i <= 3 or end - i <= 10 and after < 0.5 * sum(len(t.split()) for t in texts[:i]):
                end = i
                break
    if end and texts[end - 1].endswith("]"):  # an editor's note of several paragraphs
        start = next((i for i in range(end - 1, max(0, end - 6), -1) if texts[i].startswith("[")), end)
        if EDITOR.search(" ".join(texts[start:end])):
            end = start
    while end and (END_MARK.fullmatch(texts[end - 1]) or texts[end - 1] == SCENE_BREAK):
        end -= 1
    if end > 1 and "\n" in texts[end - 2] and len(texts[end - 1].split()) < 6 and _names(texts[end - 1]):
        end -= 1  # who wrote the closing verse
    return end
