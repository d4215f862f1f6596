"""Books as they are published (txt, html, epub) -> their stories, whole and clean.

Every format becomes one list of blocks (a paragraph, a heading, a line); then headings and the page of contents
are weighed against each other to find where stories begin, and what is no story (frame, notes, prefaces, lists)
falls away. Standard Ebooks say in their markup what a story is, so there the markup decides.
When the evidence disagrees, a story is left out rather than cut in half.

    from scripts.anthologies import split_anthology

Left out: poetry, plays, footnotes, pictures. Nothing is ever unpacked to disk. lxml parses, offline, entities off.
"""
from __future__ import annotations

import io
import posixpath
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from urllib.parse import unquote

from lxml import etree, html

MAX_BYTES = 40 << 20    # a book of 40 MB is no book; also the limit for what an epub may unpack to
MIN_WORDS = 60          # shorter sections are dividers and dedications


@dataclass
class Story:
    title: str
    author: str
    text: str     # paragraphs between blank lines, lines of verse each on its own
    source: str   # file name of the anthology


@dataclass
class Block:
    """A paragraph or heading. `gap`: blank lines above (txt); `level`: 1-6 for <h1>-<h6>, else 0."""
    text: str
    gap: int = 1
    level: int = 0
    kind: str = ""                                # "note", "break", "verse", "list" or ""
    ids: list[str] = field(default_factory=list)   # anchors that stand here
    links: list[str] = field(default_factory=list)  # anchors it points to
    story: int = 0                                # Standard Ebooks: number of the story it belongs to
    words: int = 0


# ------------------------------------------------------------------ bytes -> text -> blocks

def decode(raw: bytes) -> str:
    """Bytes to text by what they are, line by line, because old books mix encodings. Raises ValueError on binary."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw[:1 << 16] or sum(b < 9 or 13 < b < 32 for b in raw[:4096]) > 40:
        raise ValueError("is binary, not a book: give a txt, html or epub file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "\n".join(map(_decode_line, raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")))


def _decode_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            pass
    return line.decode("latin-1")


def text_blocks(text: str) -> list[Block]:
    blocks, lines, gap, above = [], [], 0, 0
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") + [""]:
        if line.strip():
            if not lines:
                above = gap
            lines.append(line.rstrip().expandtabs())
            gap = 0
        else:
            if lines:
                blocks.append(Block("\n".join(lines), above))
                lines = []
            gap += 1
    return blocks


BLOCK_TAGS = set("address article aside blockquote body center dd div dl dt footer form h1 h2 h3 h4 h5 h6 header "
                 "hgroup li main nav ol p pre section table tr ul".split())
SKIP_TAGS = {"head", "script", "style", "img", "svg", "math", "figure", "object", "audio", "video", "noscript"}
SKIP_CLASS = re.compile(r"\b(page-?num\w*|pageno|pgnum|folio|foot-?notes?|endnotes?|caption\w*|tn|tnote|trans-?notes?|"
                        r"fig(center|left|right)|illus\w*|fnanchor|noteref|pg-boilerplate)\b", re.I)
NOTE_MARK = re.compile(r"\s*[\[(]?\s*(\d{1,3}|[*\u2020\u2021])\s*[\])]?\s*")


def _skipped(el, context) -> bool:
    """Pictures, page numbers, notes and the marks that point to them."""
    if not isinstance(el.tag, str) or el.tag in SKIP_TAGS or "noteref" in el.get("epub:type", ""):
        return True
    if SKIP_CLASS.search(el.get("class", "")):
        return True
    is_mark = el.tag in ("a", "sup") and NOTE_MARK.fullmatch("".join(el.itertext()))
    return bool(is_mark) and (el.tag == "sup" or (el.get("href") is not None and context["kind"] != "list"))


def _enter(el, context, counter) -> dict:
    """What the walk knows inside `el`: heading level, kind of block, number of the story, preformatted or not."""
    kind, inside = el.get("epub:type", ""), dict(context)
    if re.fullmatch(r"h[1-6]", el.tag):
        inside["level"] = int(el.tag[1])
    if el.tag == "pre":
        inside["pre"] = True
    if "se:short-story" in kind or "se:novel" in kind:
        counter[0] += 1
        inside["story"] = counter[0]
    for name, pattern in (("drama", r"drama|dramatis"), ("skip", r"\b(epigraph|dedication|footnote|endnote|contributors)"),
                          ("title", r"\b(fulltitle|subtitle|title)\b"), ("part", r"\b(ordinal|bridgehead)\b"),
                          ("date", r"dateline")):
        if re.search(pattern, kind):
            inside["kind"] = name
    if el.tag in ("table", "ul", "ol", "dl", "nav"):
        inside["kind"] = inside["kind"] or "list"
    return inside


def html_blocks(text: str, name: str = "", counter: list[int] | None = None) -> list[Block]:
    """One HTML page as blocks. `counter[0]` numbers the stories that Standard Ebooks' markup names."""
    counter = [0] if counter is None else counter
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return []
    root = html.document_fromstring(text, parser=html.HTMLParser(no_network=True, remove_comments=True))
    blocks, buf, ids, links, gap = [], [], [name] if name else [], [], [1]

    def flush(context):
        raw = "".join(buf)
        buf.clear()
        if not raw.strip():
            gap[0] += raw.count("\n")
            return
        new = text_blocks(raw.strip("\n")) if context["pre"] else [
            Block("\n".join(" ".join(l.split()) for l in raw.split("\n") if l.strip()))]
        for b in new:
            b.gap, b.level, b.kind, b.story = max(1, b.gap), context["level"], context["kind"], context["story"]
        new[0].gap, new[0].ids, new[0].links = gap[0], ids[:], links[:]
        gap[0] = 1
        ids.clear(), links.clear()
        blocks.extend(new)

    def walk(el, context):
        if isinstance(el.tag, str):
            ids.extend(x for x in (el.get("id"), el.get("name")) if x)
        if _skipped(el, context):
            return
        inside, is_block = _enter(el, context, counter), el.tag in BLOCK_TAGS
        if is_block:
            flush(context)
        if el.tag == "a" and el.get("href"):
            href = el.get("href")
            links.append(unquote(href.rpartition("#")[2] or posixpath.basename(href)))
        if el.tag == "br":
            buf.append("\n")
        elif el.tag == "hr":
            flush(context)
            if context["story"]:
                blocks.append(Block("* * *", 1, 0, "break", story=context["story"]))
            gap[0] += 2
        elif el.tag in ("td", "th"):
            buf.append(" ")
        for piece, child in [(el.text, None)] + [(c.tail, c) for c in el]:
            if child is not None:
                walk(child, inside)
            if piece:
                buf.append(piece if inside["pre"] else piece.replace("\n", " "))
        if is_block:
            flush(inside)

    start = {"level": 0, "kind": "", "story": 0, "pre": False}
    walk(root, start)
    flush(start)
    return blocks


def epub_blocks(raw: bytes) -> tuple[list[Block], str, str]:
    """Blocks of an epub in reading order, its title and its author. Raises ValueError: no epub, hostile, incomplete."""
    try:
        book = zipfile.ZipFile(io.BytesIO(raw))
    except zipfile.BadZipFile:
        raise ValueError("is a damaged zip archive: fetch it again") from None
    names, left = {i.filename: i for i in book.infolist()}, [MAX_BYTES]

    def read(path: str) -> bytes:
        path = posixpath.normpath(path)
        if path.startswith(("/", "..")) or "\\" in path:
            raise ValueError(f"names a path outside itself ({path[:60]!r}): not a book to trust")
        if path not in names:
            raise ValueError(f"names a file it does not hold ({path[:60]!r}): fetch it again")
        left[0] -= names[path].file_size
        if left[0] < 0:
            raise ValueError(f"unpacks to more than {MAX_BYTES >> 20} MB: no book does")
        try:
            with book.open(names[path]) as f:
                return f.read(names[path].file_size)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"cannot be unpacked ({error}): fetch it again") from None

    if "META-INF/container.xml" not in names:
        raise ValueError("is a zip archive without META-INF/container.xml: no epub")
    opf_path = next(iter(_xml(read("META-INF/container.xml")).xpath("//*[local-name()='rootfile']/@full-path")), "")
    opf = _xml(read(opf_path))
    items = {i.get("id"): i for i in opf.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    counter, blocks = [0], []
    for ref in opf.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
        if ref not in items:
            raise ValueError(f"has a spine that names an unknown item ({ref[:60]!r}): fetch it again")
        path = posixpath.join(posixpath.dirname(opf_path), unquote(items[ref].get("href", "")))
        if "html" in items[ref].get("media-type", "html"):
            page = html_blocks(decode(read(path)), posixpath.basename(path), counter)
            if page:
                page[0].gap = 5    # a new file is a new page
            blocks += page
    title, author = (" ".join(opf.xpath(f"//*[local-name()='{tag}']/text()")[:1]) for tag in ("title", "creator"))
    return blocks, title, author


def _xml(raw: bytes):
    try:
        return etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as error:
        raise ValueError(f"has package data that is not XML ({error}): fetch it again") from None


# ------------------------------------------------------------------ Standard Ebooks: the markup knows

def markup_stories(blocks: list[Block], author: str, source: str) -> list[Story]:
    stories = []
    for number in sorted({b.story for b in blocks if b.story}):
        own = [b for b in blocks if b.story == number]
        if any(b.kind == "drama" for b in own):
            continue        # plays are not prose
        title = next((b.text for b in own if b.kind in ("title", "part") or b.level), "")
        body = [b for b in own if b.kind != "skip" and b.text != title or b.kind == ""]
        while body and (body[0].kind in ("title", "part", "date", "break") or body[0].level):
            body.pop(0)
        text = clean(body)
        if len(text.split()) >= MIN_WORDS:
            stories.append(Story(_one_line(title), author, text, source))
    return stories


def _one_line(text: str) -> str:
    return " ".join(text.replace("_", " ").replace("*", " ").split())


# ------------------------------------------------------------------ headings

ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
NUMBER = rf"(?:{ROMAN}|\d{{1,3}}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|second|third|fourth)"
ORDINAL = re.compile(rf"(?:(?:chapter|chap\.|part|pary|book|section|canto|letter|stave|story the|tale|no\.?|number)\s+)?"
                     rf"(?:the\s+)?(?:\d{{1,2}}\.)?{NUMBER}\s*[.:)\]]*", re.I)
LEADING = re.compile(rf"^(?:(?:chapter|part|tale|story|no\.?)\s+)?(?:{ROMAN}|\d{{1,3}})\s*(?:[.:)]|--|\u2014)[-\u2014\s]*", re.I)
MATTER = re.compile(
    r"(the\s+)?(editor'?s?|author'?s?|translator'?s?|publisher'?s?|transcriber'?s?|general|short|brief|a|an)?\s*"
    r"(preface|foreword|introduction|introductory\b.*|contents|table of contents|contents of.*|list of .*|illustrations|"
    r"(color|colour|full.page)? ?plates|dedication|notes?|endnotes?|footnotes?|glossary.*|index.*|appendix.*|"
    r"bibliograph.*|advertisements?|transcriber'?s? .*|errata|corrections|acknowledge?ments?|"
    r"(other )?(books|works|stories|novels) (by|of) .*|by the same author.*|abbreviations|pronunciation.*|"
    r"notes and references.*|notes (on|to) .*|note (on|to) .*|references|sources.*|vocabulary|a word (to|about|from).*|to the reader.*|"
    r"afterword|copyright.*|bibliographical .*|biographical .*|remarks|parallels|prefatory .*|publishers?'? .*|"
    r"how to get into this book|imprint|colophon|uncopyright|title ?page|halftitle.*|about the author.*|the full project.*)"
    r"\W*(to .*|by .*|of .*)?", re.I)
END_MARK = re.compile(r"\W*(the end|finis|end|het einde|fin|end of .{0,40}|explicit)\W*", re.I)
BYLINE = re.compile(r"\W*(by|from the .*? (of|by)|translated (by|from)|retold by|adapted (from|by)|told by|written by)\b.{2,90}",
                    re.I | re.S)


def fold(text: str) -> str:
    """Letters and digits only, so that titles compare across spelling of accents, case and stops."""
    text = re.sub(r"[\[(]\d{1,3}[\])]|\[_?[Ff]ootnote.*", " ", text, flags=re.S)
    text = LEADING.sub("", text.strip())
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


def heading_like(block: Block) -> bool:
    """Could this block be a title? Form only: short, no sentence, not speech."""
    text = block.text
    words = text.split()
    if block.level:
        return len(words) <= 30
    if block.kind in ("list", "break") or len(words) > 22 or text.count("\n") > 3 or text.lstrip()[:1] in "*[(":
        return False
    if block.gap < 2 or re.search(r"[,;:]$|[a-z]--$", text.strip()):
        return False
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return False
    if sum(c.isupper() for c in letters) > 0.7 * len(letters):
        return True
    big = [w for w in words if len(re.sub(r"\W", "", w)) > 3]
    share = sum(w.strip("_*\"'\u201c\u2018(")[:1].isupper() for w in big) / len(big) if big else 1.0
    return share >= 0.75 and len(words) <= 14 and not re.search(r"[a-z]\.[\"\u201d']?$", text.strip()) or \
        share >= 0.75 and block.gap >= 3 and len(words) <= 14


@dataclass
class Head:
    """A run of heading blocks [start, end) above some prose."""
    start: int
    end: int
    title: str
    author: str
    style: tuple
    entry: int | None = None   # its place in the contents
    matter: bool = False       # front or back matter, not a story
    ordinal: bool = False      # only a number: a part of a story
    words: int = 0             # up to the next head


def contents(blocks: list[Block]) -> tuple[list[str], dict[str, int], range]:
    """Lines of the page of contents (folded), where its links lead, and the blocks it takes."""
    limit = max(60, len(blocks) // 5)
    first = next((i for i, b in enumerate(blocks[:limit + 200])
                  if re.fullmatch(r"\W*(table of )?contents( of .*)?\W*", b.text.split("\n")[0].strip(), re.I)), None)
    if first is None:
        first = _bare_list(blocks[:limit])
        if first is None:
            return [], {}, range(0)
    keys: list[str] = []
    links: dict[str, int] = {}
    end = first
    for i in range(first, len(blocks)):
        b = blocks[i]
        if i > first and (_is_prose(b) or re.match(r"\W*(list of )?(\w+ )*(illustrations|plates)\W*$", b.text, re.I)):
            break
        new = [_entry(line) for line in b.text.split("\n")]
        whole = fold(" ".join(new))
        if i > first and (whole in keys and not b.links or b.level and MATTER.fullmatch(b.text.strip())):
            break
        for link in b.links:
            links.setdefault(link, len(keys))
        keys += [k for k in map(fold, new) if k]
        end = i + 1
    return keys, links, range(first, end)


def _entry(line: str) -> str:
    line = re.sub(r"[\s.\u2026_]*(\d{1,3}|\b[xvil]{1,6})\s*$", "", line.strip())
    return re.sub(r"\s+\bby\b .*$|\s{3,}.*$|[\s.]+$", "", line, flags=re.I)


def _is_prose(block: Block) -> bool:
    if block.kind == "list" or block.links or block.level:
        return False
    lines = block.text.split("\n")
    words = block.text.split()
    if len(lines) == 1:
        return len(words) > 22
    return sum(len(l.strip()) > 55 for l in lines[:-1]) >= 0.7 * (len(lines) - 1) and len(words) > 22


def _bare_list(blocks: list[Block]) -> int | None:
    """Contents without a heading: six short lines or more in a row, before any prose that is not frame."""
    run = 0
    for i, b in enumerate(blocks):
        lines = b.text.split("\n")
        if _is_prose(b) or b.gap > 4 and run < 6:
            if run >= 6:
                return i - run_blocks
            run = 0
            continue
        if run == 0:
            run_blocks = 0
        run, run_blocks = run + len(lines), run_blocks + 1
    return None


def heads(blocks: list[Block], keys: list[str], links: dict[str, int], skip: range) -> list[Head]:
    places: dict[str, list[int]] = {}
    for n in range(1, 4):
        for i in range(len(keys) - n + 1):
            places.setdefault("".join(keys[i:i + n]), []).append(i)
    found, i = [], 0
    while i < len(blocks):
        if i in skip or not (heading_like(blocks[i]) or _listed(blocks[i], places, links) is not None):
            i += 1
            continue
        j = i + 1
        while j < len(blocks) and j not in skip and j - i < 7 and len(blocks[j].text.split()) <= 30 and (
                heading_like(blocks[j]) or BYLINE.fullmatch(blocks[j].text.strip())
                or ORDINAL.fullmatch(blocks[j].text.strip()) or blocks[j].text.lstrip()[:1] in "[("):
            j += 1
        found.append(_head(blocks, i, j, places, links))
        i = j
    for h, after in zip(found, found[1:] + [None]):
        h.words = sum(b.words for b in blocks[h.end:after.start if after else len(blocks)])
    return found


def _listed(block: Block, places, links) -> int | None:
    for anchor in block.ids:
        if anchor in links and len(block.text.split()) <= 30:
            return links[anchor]
    if block.kind == "list" or len(block.text) > 140 or block.gap < 2 and not block.level and not block.text.isupper():
        return None
    key = fold(_one_line(block.text))
    if key in places and len(key) > 1:
        return places[key][0]
    if len(key) < 7 or not heading_like(block):
        return None
    for other, where in places.items():
        longer, shorter = (other, key) if len(other) > len(key) else (key, other)
        if len(shorter) > 6 and longer.startswith(shorter) and len(longer) - len(shorter) < 40:
            return where[0]
        if abs(len(other) - len(key)) < 6 and other[:1] == key[:1] and SequenceMatcher(None, other, key).ratio() > 0.86:
            return where[0]
    return None


def _head(blocks, i, j, places, links) -> Head:
    group = list(range(i, j))
    text = {k: _one_line(blocks[k].text) for k in group}
    author = next((text[k] for k in group[1:] if BYLINE.fullmatch(text[k])), "")
    named = [k for k in group if not BYLINE.fullmatch(text[k]) and text[k][:1] not in "[("]
    titles = [k for k in named if not ORDINAL.fullmatch(text[k])]
    entries = {k: e for k in named if (e := _listed(blocks[k], places, links)) is not None}
    key = max(entries) if entries else titles[0] if titles else i
    b = blocks[key]
    letters = [c for c in b.text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) > 0.7 * len(letters)
    style = ("h", b.level) if b.level else ("t", min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
    return Head(i, j, LEADING.sub("", text[key]) or text[key], re.sub(r"^\W*(by)\s+", "", author, flags=re.I), style,
                entries.get(key), bool(MATTER.fullmatch(text[key]) or END_MARK.fullmatch(text[key])),
                not titles and key not in entries)


def strong(style: tuple, other: tuple) -> bool:
    """Is a heading of `style` at least as strong as one of `other`?"""
    if style[0] != other[0]:
        return style[0] == "h"
    if style[0] == "h":
        return style[1] <= other[1]
    return style[1] > other[1] or style[1] == other[1] and style[2] >= other[2]


def choose(found: list[Head], entries: int) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    plain = [h for h in found if not h.matter and not h.ordinal]
    listed = [h for h in plain if h.entry is not None and h.words >= MIN_WORDS]
    if len({h.entry for h in listed}) >= 3:
        style = Counter(h.style for h in listed).most_common(1)[0][0]
        same = [h for h in plain if h.style == style and h.words >= MIN_WORDS]
        pure = sum(h.entry is not None for h in same) >= 0.75 * len(same)
        seen, starts = set(), []
        for h in plain:
            if h.entry is not None and h.entry not in seen and h.words >= MIN_WORDS:
                seen.add(h.entry)
                starts.append(h)
            elif pure and h.style == style and h.entry is None:
                starts.append(h)
        return sorted(starts + [h for h in found if h.matter and strong(h.style, style)], key=lambda h: h.start)
    best, total = None, sum(h.words for h in found)
    for style in {h.style for h in plain}:
        group = [h for h in plain if h.style == style and h.words >= 100]
        if len(group) >= 3 and (best is None or strong(style, best)):
            best = style
    if best is None:
        return []
    return [h for h in found if strong(h.style, best) and not h.ordinal]


# ------------------------------------------------------------------ cleaning

def clean(blocks: list[Block]) -> str:
    """Prose as one line a paragraph, verse line by line; marks, notes and pictures out."""
    parts, verse_indent = [], 2
    raw = "\n\n".join("\n".join(b.text.split("\n")) for b in blocks)
    bracket = r"\[\s*_?(?:Illustration|Footnote|Transcriber|Sidenote|Blank Page|Decoration|Image|Pg|Page)\b[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]_?"
    raw = re.sub(bracket, "", raw, flags=re.I)
    for text in re.split(r"\n\s*\n", raw):
        lines = [l for l in text.split("\n") if l.strip()]
        if not lines or re.match(r"\s*(\[\d{1,3}\]|\[[A-Z*]\]|\(\d{1,3}\)\s)\s*\S", text):
            continue
        if re.fullmatch(r"[\s*.\u2022~#-]*", text):
            text = "* * *"
        elif len(lines) > 1 and (all(l.startswith("  ") for l in lines)
                                 or sum(len(l) for l in lines) < 42 * len(lines) and max(map(len, lines)) < 60):
            text = "\n".join(" ".join(l.split()) for l in lines)
        else:
            text = " ".join(" ".join(lines).split())
        parts.append(text)
    text = "\n\n".join(parts)
    text = re.sub(r"\[\d{1,3}\]|\[[A-Z*\u2020]\]|(?<=[\w.,;:!?\"\u201d\u2019])\(\d{1,3}\)|[\[{]p(?:g|age)?\.? ?\d+[\]}]", "", text)
    text = re.sub(r"(?<![A-Za-z0-9])_([^_]+?)_(?![A-Za-z0-9])|=([^=\n]+)=", lambda m: m[1] or m[2], text)
    text = text.replace("_", "").replace("\u2060", "").replace("\u00ad", "").replace("\u00a0", " ")
    parts = text.split("\n\n")
    while parts and (END_MARK.fullmatch(parts[-1]) or parts[-1] == "* * *"):
        parts.pop()
    while parts and (ORDINAL.fullmatch(parts[0].strip()) or parts[0] == "* * *" or BYLINE.fullmatch(parts[0])):
        parts.pop(0)
    return "\n\n".join(parts).strip()


# ------------------------------------------------------------------ one book

FRAME_START = re.compile(r"\*{3} ?START OF (THIS|THE) PROJECT GUTENBERG|\*END\*? ?THE SMALL PRINT|\*END THE SMALL", re.I)
FRAME_END = re.compile(r"\*{3} ?END OF (THIS|THE) PROJECT GUTENBERG|^\W*End of (the |this )?Project Gutenberg", re.I)
CREDIT = re.compile(r"\W*(produced by|e-?text prepared by|html (file|version) produced|text file produced|transcribed (by|from)|"
                    r"this e-?(book|text) was|prepared by|scanned by|proofed by|digitized by)\b", re.I)


def unframe(blocks: list[Block]) -> list[Block]:
    start = next((i + 1 for i, b in enumerate(blocks) if FRAME_START.search(b.text)), 0)
    end = next((i for i in range(start, len(blocks)) if FRAME_END.search(blocks[i].text)), len(blocks))
    kept = [b for b in blocks[start:end]]
    return [b for i, b in enumerate(kept) if not (i < 8 and CREDIT.match(b.text))]


def split_anthology(path: str | Path) -> list[Story]:
    """Every story of one book, in order. Raises ValueError (with a sentence) for what is no book or holds no story."""
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES >> 20} MB: no anthology is; split it or leave it out")
    raw = path.read_bytes()
    try:
        return _split(raw, path.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _split(raw: bytes, source: str) -> list[Story]:
    if not raw.strip():
        raise ValueError("is empty: fetch it again")
    author = ""
    if raw[:2] == b"PK":
        blocks, _, author = epub_blocks(raw)
        stories = markup_stories(blocks, author, source)
        if stories:
            return stories
    else:
        text = decode(raw)
        author = next(iter(re.findall(r"^Author:\s*(.+?)\s*$", text[:20000], re.M)), "")
        is_html = re.search(r"<(html|body|p|h[1-6])\b", text[:20000], re.I)
        blocks = html_blocks(text) if is_html else text_blocks(text)
    blocks = unframe(blocks)
    for b in blocks:
        b.words = len(b.text.split())
    keys, links, skip = contents(blocks)
    found = heads(blocks, keys, links, skip)
    starts = choose(found, len(keys))
    stories = []
    for h, after in zip(starts, starts[1:] + [None]):
        if h.matter:
            continue
        text = clean(blocks[h.end:after.start if after else len(blocks)])
        if len(text.split()) >= MIN_WORDS:
            stories.append(Story(h.title, h.author or author, text, source))
    if not stories:
        raise ValueError("has no stories that can be told apart (neither contents nor headings): leave it out")
    return stories
