"""What a title is, by its form alone: short, set apart, no sentence, no speech; and the names of what is not a story.

Used by contents.py and headings.py. Left out: the text around a title.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from scripts.anthologies.books import LEADING, NUMBER, Block

MIN_WORDS = 60  # shorter sections are dividers and dedications
MATTER = re.compile(
    r"(the\s+)?((editor|author|translator|publisher|transcriber)s?'?s?|general|short|brief|a|an|critical|historical)?\s*"
    r"((preface|foreword|introduction|introductory( \w+)?|prefatory( \w+)?|acknowledge?ments?|afterword|dedication|"
    r"postscript|advertisements?)\b(\W+(to|by|of)\b.*)?|(table of )?contents( of .*)?|list of .*|(\w+ )?(illustrations|"
    r"plates)|notes?( (and|on|to) .*)?|(end|foot)notes?|glossary.*|index\b.*|appendix.*|bibliograph.*|errata|corrections|"
    r"(other )?(books|works|stories|novels)( \w+)? by .*|by the same author.*|abbreviations|(on )?(\w+ )?pronunciation.*|"
    r"references|sources\b.*|parallels|remarks|vocabulary|a word (to|about|from)\b.*|to (the|my)( \w+)? readers?|"
    r"copyright.*|(bio|biblio)graphical .*|publishers?'? .*|transcrib\w+'? .*|imprint|colophon|uncopyright|title ?page|"
    r"halftitle.*|about the author.*|the full project.*|(.* )?press notices.*|opinions of the press.*|editorial|"
    r"(the |a )?(\w+ )?roll of hono.*|(the |a )?year ?book of .*|magazine averages.*|addresses of .*)\W*",
    re.I,
)
DEPARTMENT = re.compile(
    r"(the |our )?readers?'? (corner|column|page|letters|speaks?|forum|departments?)|(the )?editor'?s? (page|desk|letters)|"
    r"(our )?(letters|correspondence|advertisements?)( (from|to) (the |our )?(readers?|editor)s?)?",
    re.I,
)
NO_STORIES = re.compile(r"\W*(\w+\W)?(essays|studies|poems|verses|plays|speeches|articles)\W*", re.I)
PART = re.compile(rf"\W*(chapter|part)\s+(the\s+)?{NUMBER}\W*", re.I)
NOTES = re.compile(r"\W*(foot|end)?notes?\W*|glossary\W*|notes and references\W*", re.I)
SPEECH = re.compile(r"[\"\u201c\u2018'].*[.,!?-][\"\u201d\u2019']+(\[\w{1,3}\])?$", re.S)
DATE = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.{0,12}\b1[5-9]\d\d\b", re.I)
CRY = re.compile(r"[!?].*[!?]|--$", re.S)


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
