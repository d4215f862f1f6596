"""What a title is, by its form alone: short, set apart, no sentence, no speech; and the names of what is not
a story.

Used by contents.py and headings.py. Left out: the text around a title.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from scripts.anthologies.books import LEADING, NUMBER, Block

MIN_WORDS = 60  # shorter sections are dividers and dedications

MATTER = re.compile(
    r"(the\s+)?((editor|author|translator|publisher|transcriber)s?'?s?|general|short|brief|a|an|critical|"
    r"historical)?\s*"
    r"((preface|foreword|introduction|introductory( \w+)?|prefatory( \w+)?|acknowledge?ments?|afterword|"
    r"dedication|"
    r"postscript|advertisements?)\b(\W+(to|by|of)\b.*)?|(table of )?contents( of .*)?|list of .*|(\w+ "
    r")?(illustrations|plates)|"
    r"notes?( (and|on|to) .*)?|(end|foot)notes?|glossary.*|index\b.*|appendix.*|bibliograph.*|errata|"
    r"corrections|"
    r"(other )?(books|works|stories|novels)( \w+)? by .*|by the same author.*|abbreviations|(on )?(\w+ "
    r")?pronunciation.*|"
    r"references|sources\b.*|parallels|remarks|vocabulary|a word (to|about|from)\b.*|to (the|my)( \w+)? "
    r"readers?|copyright.*|"
    r"(bio|biblio)graphical .*|publishers?'? .*|transcrib\w+'? .*|imprint|colophon|uncopyright|title "
    r"?page|halftitle.*|"
    r"about the author.*|the full project.*|(.* )?press notices.*|opinions of the press.*|editorial|"
    r"(the |a )?(\w+ )?roll of hono.*|(the |a )?year ?book of .*|magazine averages.*|addresses of .*)\W*",
    re.I,
)
DEPARTMENT = re.compile(
    r"(the |our )?readers?'? (corner|column|page|letters|speaks?|forum|departments?)|(the )?editor'?s? "
    r"(page|desk|letters)|"
    r"(our )?(letters|correspondence|advertisements?)( (from|to) (the |our )?(readers?|editor)s?)?",
    re.I,
)  # fmt: skip
NO_STORIES = re.compile(r"\W*(\w+\W)?(essays|studies|poems|verses|plays|speeches|articles)\W*", re.I)
PART = re.compile(rf"\W*(chapter|part)\s+(the\s+)?{NUMBER}\W*", re.I)
NOTES = re.compile(r"\W*(foot|end)?notes?\W*|glossary\W*|notes and references\W*", re.I)
SPEECH = re.compile(r"[\"\u201c\u2018'].*[.,!?-][\"\u201d\u2019']+(\[\w{1,3}\])?$", re.S)
MONTH = r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b"


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
    if block.level:
        return len(block.text.split()) <= 30 and not re.search(r"[,;]$", block.text.strip())
    if block.kind in ("list", "break") or block.gap < 2 or block.text.count("\n") > 3:
        return False
    stop = re.search(r"[a-z][.][\"\u201d'\u2019]?$", block.text.strip())
    return title_form(block.text) and not (stop and block.gap < 3 and not len(block.text.split()) < 5)


@lru_cache(1 << 16)
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
