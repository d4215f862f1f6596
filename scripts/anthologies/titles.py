"""What a line is by its form (a title, a byline, a source), and what a book's page of contents names.

A title is short and set apart, not a sentence or speech. A single line cannot be decided: "Silas Marner" may
be an author and "Rainbow Pete" a title. So lines are compared over a whole book: the column, or the place in
the headings, that reads most like names of people holds the authors. The contents begin below that word and
end at prose, at a title they have already named, at the preface. Left out: lists of known authors; which
entries of the contents are stories and which are parts: headings.py looks at the text.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

from scripts.anthologies.books import LEADING, NUMBER, Block

MIN_WORDS = 60  # shorter sections are dividers and dedications
MATTER = re.compile(
    r"(?i)(the\s+)?((editor|author|translator|publisher|transcriber)s?'?s?|general|short|brief|a|an|critical|"
    r"historical)?\s*((preface|foreword|introduction|introductory( \w+)?|prefatory( \w+)?|acknowledge?ments?|"
    r"afterword|dedication|postscript|advertisements?)\b(\W+(to|by|of)\b.*)?|(table of )?contents( of .*)?|"
    r"list of .*|(\w+ )?(illustrations|plates)|notes?( (and|on|to) .*)?|(end|foot)notes?|glossary.*|"
    r"index\b.*|appendix.*|bibliograph.*|errata|corrections|(other )?(books|works|stories|novels)( \w+)? by "
    r".*|by the same author.*|abbreviations|(on )?(\w+ )?pronunciation.*|references|sources\b.*|parallels|"
    r"remarks|vocabulary|a word (to|about|from)\b.*|to (the|my)( \w+)? readers?|copyright.*|(bio|"
    r"biblio)graphical .*|publishers?'? .*|transcrib\w+'? .*|imprint|colophon|uncopyright|title ?page|"
    r"halftitle.*|about the author.*|the full project.*|(.* )?press notices.*|opinions of the press.*|"
    r"editorial|(the |a )?(\w+ )?roll of hono.*|(the |a )?year ?book of .*|magazine averages.*|addresses of "
    r".*)\W*"
)
NO_STORIES = re.compile(r"(?i)\W*(\w+\W)?(essays|studies|poems|verses|plays|speeches|articles)\W*")
PART = re.compile(rf"(?i)\W*(chapter|part)\s+(the\s+)?{NUMBER}\W*")
SPEECH = re.compile(r"(?s)[\"\u201c\u2018'].*[.,!?-][\"\u201d\u2019']+(\[\w{1,3}\])?$")
DATE = re.compile(r"(?i)\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.{0,12}\b1[5-9]\d\d\b")
CRY = re.compile(r"(?s)[!?].*[!?]|--$")


@lru_cache(1 << 16)
def fold(text: str) -> str:
    """Letters and digits only, so that titles compare across spelling of accents, case and stops."""
    text = re.sub(r"\(\d{1,3}\)|\[.*?(\]|$)", " ", text, flags=re.S)
    text = LEADING.sub("", text.strip())
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


def one_line(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


def heading_like(block: Block) -> bool:
    """Could this block be a title? Form only: short, set apart, no sentence, not speech."""
    text = block.text.strip()
    if block.level:
        return block.words <= 30 and text[-1:] not in (",", ";")
    if block.kind in ("list", "break") or block.gap < 2 or text.count("\n") > 3:
        return False
    sentence = block.gap < 3 and block.words > 4 and re.search(r"[a-z][.][\"\u201d'\u2019]?$", text)
    return not sentence and title_form(text)


@lru_cache(1 << 16)
def title_form(text: str) -> bool:
    text = text.strip()
    if DATE.search(text) or SPEECH.match(text) or CRY.search(text):  # the head of a letter; speech; a cry
        return False
    words, letters = text.split(), [c for c in text if c.isalpha()]
    if not letters or len(words) > 22 or text[:1] in "*[(" or text[-1:] in ",;:":
        return False
    if sum(c.isupper() for c in letters) > 0.7 * len(letters):
        return True
    big = [w.strip("_*\"'\u201c\u2018(") for w in words if len(re.sub(r"\W", "", w)) > 3]
    return len(words) <= 14 and sum(w[:1].isupper() for w in big) >= 0.75 * len(big)


# ------------------------------------------------------------------ names of people

DONE = r"(as )?(re)?(told|written|compiled|edited|adapted|translated|rendered|selected|arranged)"
BYLINE = re.compile(
    rf"(?is)\W*anonymous\W*|\W*(by|from the .{{2,60}}? (of|by)|{DONE} by|(translated|adapted) "
    rf"from)\b.{{2,90}}"
)
BY = re.compile(rf"(?i)^\W*(({DONE} )?by|(translated |adapted )?from the \w+ (of|by))\b\s*")
LABEL = re.compile(  # A Tale by ...
    r"(?is)\W*(an?|another|the|our)\s.{4,90}?[\s,](by|from the \w+ of)\s+(?P<name>[^,;:]{4,50})"
)
SOURCE = re.compile(  # where a story was printed; the year alone tells in brackets
    r"(?s)\W*((From|Reprinted( by permission)? from|First (published|printed) in)\s(?!the \w+ of\b).{3,120}|"
    r"[(\[][^()\[\]]{3,90}\b1[5-9]\d\d\b[^()\[\]]{0,12}[)\]]\.?|\(From [^()]{3,120}\)\.?)"
)
DATES = re.compile(r"\s*[(\[][^()\[\]]*[)\]]|,?\s+1[5-9]\d\d\s*-.*$")
IN_NAMES = frozenset(  # ranks and particles
    "capt captain col colonel major general lieut sir lady lord mr mrs miss dr prof professor rev count "
    "countess baron baroness mme madame monsieur princess de du des da di della del van von der den la le y "
    "e and & jr sr esq md phd".split()
)
NO_NAME = frozenset(
    "the a an in at on to for from with of by my his her our your their its what who how why when where is "
    "was are not no first second third last old new one two three four part chapter book story tale tales "
    "stories".split()
)


@lru_cache(1 << 16)
def is_byline(text: str) -> bool:
    """ "By John Writer", "Translated by Ann Author"; not "By nine all was still." """
    text = text.replace("_", " ").strip()
    words = re.findall(r"[^\W\d_]{3,}", text)
    return bool(BYLINE.fullmatch(text)) and sum(w[0].isupper() for w in words) >= 0.5 * len(words)


@lru_cache(1 << 16)
def is_source(text: str) -> bool:
    """ "From Harper's Magazine", "(The Something Review, 1921)"; not "From the hill he looked down." """
    text = one_line(text)
    return bool(SOURCE.fullmatch(text)) and len(text.split()) < 16 and title_form(text.strip(" ()[].*"))


@lru_cache(1 << 16)
def person(text: str) -> str:
    """The author's name out of a byline: no "By", no dates, no italics, no full stop after the surname."""
    text = one_line(DATES.sub("", text.replace("_", " ")))
    if LABEL.fullmatch(text) and not is_byline(text):
        text = LABEL.fullmatch(text)["name"]
    text = re.sub(r"\b(Jr|Esq)$", r"\1.", BY.sub("", text).strip(" ,;:*"))
    return text[:-1] if re.search(r"\w{3,}\.$", text) and not text.endswith("Esq.") else text


@lru_cache(1 << 16)
def name_like(text: str) -> bool:
    """Two to seven words that may be a person's name: capitals, initials, ranks, no word of a sentence."""
    name = person(text)
    words = re.findall(r"[^\s,]+", name)
    if not 2 <= len(words) <= 7 or re.search(r"[!?;:]|\d|\w{3,}\.$", name):
        return False
    plain = {w: w.strip(".\"'\u2018\u2019\u201c\u201d()").casefold().replace(".", "") for w in words}
    if any(bare in NO_NAME and not re.fullmatch(r"[A-Z]\.", w) for w, bare in plain.items()):
        return False
    named = [w.lstrip("\"'\u2018\u201c(") for w, bare in plain.items() if bare not in IN_NAMES]
    return bool(named) and all(w[:1].isupper() or w[:2] in ("d'", "d\u2019") for w in named)


def cells(line: str) -> list[str]:
    """The columns of a line, without page numbers: wide spaces, tabs and leaders part them."""
    parts = re.split(r"\s{3,}|\t|(?:\s?[.\u2026]){3,}", line.strip())
    parts = [re.sub(r"(?<!\bJr)(?<!\bEsq)[\s.\u2026_]+$", "", p).lstrip(" ._\u2026") for p in parts]
    return [p for p in parts if re.search(r"[^\W\d]", p) and not re.fullmatch(r"[xvil]{1,6}|[IVXLC]{1,7}", p)]


def names_column(pairs: list[list[str]]) -> int | None:
    """Which of two columns holds people: 0, 1, or None where neither reads like names."""
    score = [sum(name_like(p[c]) for p in pairs) for c in (0, 1)]
    if len(pairs) < 3 or max(score) < 0.6 * len(pairs):
        return None
    return 0 if score[0] > score[1] else 1


# ------------------------------------------------------------------ the page of contents

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
        new = ["" if is_source(line) else _entry(line) for line in source]
        said = fold(" ".join(new))
        again = not named and len(said) > 3 and said in seen  # then it is the heading of the first story
        preface = b.level and MATTER.fullmatch(b.text.strip())
        if i > first and (again or preface or _is_prose(b)):
            break
        above[i] = len(lines)
        whole = [n for n, line in enumerate(new) if not LETTERED.match(line)]
        lines += [new[n] for n in whole]
        raw += [source[n] for n in whole]
        seen |= {fold(cell) for line in source for cell in cells(line)}
        seen |= {fold(line) for line in new}
        if len(lines) > LONGEST:
            return Contents()
    end = first + len(above)
    gaps = sorted(b.gap for b in blocks[first:end])
    usual, tail = max(3, gaps[len(gaps) // 2]), range(max(end - 5, first + 4), end)
    apart = (i for i in tail if blocks[i].gap > usual and not blocks[i].links and not blocks[i].level)
    end = next(apart, end)  # a half-title and the heading of the first story are not contents
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


def _is_prose(block: Block) -> bool:
    lines = block.text.split("\n")
    if block.kind == "list" or block.links or block.level or block.words < 23:
        return False
    rows = sum(bool(PAGE.search(line)) or len(cells(line)) > 1 for line in lines)
    if len(lines) > 1 and (rows > 0.5 * len(lines) or PAGE.search(lines[0])):
        return False
    return sum(len(line.strip()) > 55 for line in lines[:-1]) >= 0.7 * (len(lines) - 1)


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
    columns = {k: parts for k, text in enumerate(raw) if len(parts := cells(text)) == 2}
    who = names_column(list(columns.values()))
    for k, parts in columns.items() if who is not None else ():
        found[k], lines[k] = person(parts[who]), _entry(parts[1 - who])
    texts = [one_line(text) for text in raw]
    paged = {k for k, text in enumerate(texts) if text[-1:].isdigit()}
    free = [k for k in range(len(texts)) if k not in found and k not in paged]
    alone = [k for k in free if is_byline(texts[k]) or name_like(texts[k])]
    in_turn = len(alone) > 0.4 * len(raw) and not any(k + 1 in alone for k in alone)
    if len(alone) < 3 or not (in_turn or len(paged) > 0.3 * len(raw)):
        return found
    entries = [k for k, line in enumerate(lines) if fold(line) and not NO_ENTRY.fullmatch(line)]
    first = next((k for k in entries if not MATTER.fullmatch(lines[k])), 0)
    for n, k in enumerate(alone):
        after = alone[n + 1] if n + 1 < len(alone) else len(raw)
        below = [t for t in range(k - 1, -1, -1) if t not in alone][:1]
        for place in range(k + 1, after) if first in alone else below:
            if fold(lines[place]):
                found.setdefault(place, person(texts[k]))
    for k in alone:
        lines[k] = ""
    return found
