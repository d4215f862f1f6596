"""What a line is by its form: a title, a byline, a source; and the names of sections that are not stories.

A title is short and set apart, not a sentence or speech. A single line cannot be decided: "Silas Marner" may
be an author and "Rainbow Pete" a title. So lines are compared over a whole book: the column, or the place in
the headings, that reads most like names of people holds the authors. Left out: lists of known authors.
"""

import re
import unicodedata
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
