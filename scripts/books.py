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
    links: list[tuple[str, str]] = field(default_factory=list)  # (anchor it points to, words of the link)
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
            links.append((_anchor(el.get("href")), " ".join(el.itertext())))
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
    blocks = _navigation(items.values(), lambda href: read(posixpath.join(posixpath.dirname(opf_path), unquote(href)))) + blocks
    title, author = (" ".join(opf.xpath(f"//*[local-name()='{tag}']/text()")[:1]) for tag in ("title", "creator"))
    return blocks, title, author


def _navigation(items, read) -> list[Block]:
    """The table of contents that every epub carries beside its text, as a page of contents; numbered parts left out."""
    nav = next((i for i in items if "nav" in i.get("properties", "").split()), None)
    ncx = next((i for i in items if "ncx" in i.get("media-type", "")), None)
    entries = []
    if nav is not None:
        page = html_blocks(decode(read(nav.get("href"))))
        entries = [link for b in page for link in b.links]
    elif ncx is not None:
        for point in _xml(read(ncx.get("href"))).iter("{*}navPoint"):
            source = point.findtext("{*}navLabel/{*}text", ""), point.find("{*}content")
            if source[1] is not None:
                entries.append((_anchor(source[1].get("src", "")), source[0]))
    entries = [(target, " ".join(text.split())) for target, text in entries]
    entries = [(t, text) for t, text in entries if text and not ORDINAL.fullmatch(text) and LEADING.sub("", text) == text]
    return [Block("Contents", 5)] * bool(entries) + [Block(text, 1, kind="list", links=[(t, text)]) for t, text in entries]


def _anchor(href: str) -> str:
    return unquote(href.rpartition("#")[2] if "#" in href else posixpath.basename(href))


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
        words = [len(b.text.split()) for b in own]
        if sum(n for n, b in zip(words, own) if b.kind == "drama") > 0.5 * sum(words):
            continue        # plays are not prose
        title = next((b.text for b in own if b.kind in ("title", "part") or b.level), "")
        body = [b for b in own if b.kind != "skip"]
        while body and (body[0].kind in ("title", "part", "date", "break") or body[0].level):
            body.pop(0)
        text = clean(body)
        if text:
            stories.append(Story(_title(title), author, text, source))
    return stories


def _title(text: str) -> str:
    """A title on one line, without the marks of notes and remarks in brackets."""
    text = re.sub(r"\s*(--|\u2014)?\[.*?(\]|$)|\(\d{1,3}\)|\*+$", "", _one_line(text).strip(" *"))
    return text.strip().removesuffix(".").strip() or _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


# ------------------------------------------------------------------ headings

ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
NUMBER = rf"(?:{ROMAN}|\d{{1,3}}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|second|third|fourth)"
ORDINAL = re.compile(rf"(?:(?:chapter|chap\.|part|pary|book|section|canto|letter|stave|story the|tale|no\.?|number)\s+)?"
                     rf"(?:the\s+)?(?:\d{{1,2}}\.)?{NUMBER}\s*[.:)\]]*", re.I)
LEADING = re.compile(rf"^(?:(?:chapter|part|tale|story|no\.?)\s+)?(?:(?:{ROMAN}|\d{{1,3}})\s*(?:[.:)]|--|\u2014)[-\u2014\s]*)?"
                     rf"(?:\([a-z]\)\s+)?", re.I)
MATTER = re.compile(
    r"(the\s+)?((editor|author|translator|publisher|transcriber)s?'?s?|general|short|brief|a|an|critical|historical)?\s*"
    r"((preface|foreword|introduction|introductory( \w+)?|prefatory( \w+)?|acknowledge?ments?|afterword|dedication|"
    r"postscript|advertisements?)\b(\W+(to|by|of)\b.*)?|(table of )?contents( of .*)?|list of .*|(\w+ )?(illustrations|plates)|"
    r"notes?( (and|on|to) .*)?|(end|foot)notes?|glossary.*|index\b.*|appendix.*|bibliograph.*|errata|corrections|"
    r"(other )?(books|works|stories|novels)( \w+)? by .*|by the same author.*|abbreviations|(on )?(\w+ )?pronunciation.*|"
    r"references|sources\b.*|parallels|remarks|vocabulary|a word (to|about|from)\b.*|to (the|my)( \w+)? readers?|copyright.*|"
    r"(bio|biblio)graphical .*|publishers?'? .*|transcrib\w+'? .*|imprint|colophon|uncopyright|title ?page|halftitle.*|"
    r"about the author.*|the full project.*|(.* )?press notices.*|opinions of the press.*)\W*", re.I)
NO_STORIES = re.compile(r"\W*(\w+\W)?(essays|studies|poems|verses|plays|speeches|articles)\W*", re.I)
NOTES = re.compile(r"\W*(foot|end)?notes?\W*|glossary\W*|notes and references\W*", re.I)
THE_END = re.compile(r"\W*(the end|finis|het einde)\W*", re.I)
MONTH = r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b"
END_MARK = re.compile(r"\W*(the end|finis|end|het einde|fin|end of .{0,40}|explicit)\W*", re.I)
BYLINE = re.compile(r"\W*(by|from the .*? (of|by)|translated (by|from)|retold by|adapted (from|by)|told by|written by)\b.{2,90}",
                    re.I | re.S)


def fold(text: str) -> str:
    """Letters and digits only, so that titles compare across spelling of accents, case and stops."""
    text = re.sub(r"\(\d{1,3}\)|\[.*?(\]|$)", " ", text, flags=re.S)
    text = LEADING.sub("", text.strip())
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


def heading_like(block: Block) -> bool:
    """Could this block be a title? Form only: short, set apart, no sentence, not speech."""
    if block.level:
        return len(block.text.split()) <= 30 and not re.search(r"[,;]$", block.text.strip())
    if block.kind in ("list", "break") or block.gap < 2 or block.text.count("\n") > 3:
        return False
    stop = re.search(r"[a-z][.][\"\u201d'\u2019]?$", block.text.strip())
    return _title_form(block.text) and not (stop and block.gap < 3 and not len(block.text.split()) < 5)


def _title_form(text: str) -> bool:
    if re.search(rf"{MONTH}.{{0,12}}\b1[5-9]\d\d\b", text, re.I) or re.match(r"[\"\u201c\u2018'].*[.,!?-][\"\u201d\u2019']+$", text.strip(), re.S):
        return False      # the head of a letter; speech
    words, letters = text.split(), [c for c in text if c.isalpha()]
    if not letters or len(words) > 22 or text.lstrip()[:1] in "*[(" or re.search(r"[,;:]$|[a-z]--$", text.strip()):
        return False
    if sum(c.isupper() for c in letters) > 0.7 * len(letters):
        return True
    big = [w for w in words if len(re.sub(r"\W", "", w)) > 3]
    capital = sum(w.strip("_*\"'\u201c\u2018(")[:1].isupper() for w in big)
    return len(words) <= 14 and capital >= 0.75 * len(big)


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
    poems: bool = False        # from here on poems, essays or plays
    numbered: bool = False
    words: int = 0             # up to the next head that is as strong
    near: int = 0              # up to the next head of any kind


@dataclass
class Contents:
    """The page of contents: which blocks it takes, and where a title or an anchor stands in it."""
    blocks: range = range(0)
    titles: dict[str, list[int]] = field(default_factory=dict)   # folded title -> its places
    anchors: dict[str, int] = field(default_factory=dict)        # link target -> place


def contents(blocks: list[Block]) -> Contents:
    limit = max(60, len(blocks) // 5)
    first = next((i for i, b in enumerate(blocks[:limit + 200]) if b.story == 0 and re.fullmatch(
        r"\W*(table of )?contents( of .*)?\W*(page)?\W*", b.text.strip().split("\n")[0].strip(), re.I)), None)
    if first is None:
        first = _bare_list(blocks[:limit])
    if first is None:
        return Contents()
    found, lines, end = Contents(), [], first
    for i in range(first, len(blocks)):
        b = blocks[i]
        named = [(text, target) for target, text in b.links if len(fold(text)) > 1 and not text.strip().isdigit()]
        new = [_entry(text) for text, _ in named] or [_entry(line) for line in b.text.split("\n")]
        if i > first:
            whole = fold(" ".join(new))
            again = not named and len(whole) > 3 and whole in {fold(_BARE_NUMBER.sub("", l)) for l in lines} | {fold(l) for l in lines}
            title_page = b.level and MATTER.fullmatch(b.text.strip()) or _ILLUSTRATIONS.match(b.text.strip())
            if _is_prose(b) or again or title_page:
                break
        for n, (_, target) in enumerate(named):
            found.anchors.setdefault(target, len(lines) + n)
        lines += new
        end = i + 1
    usual = sorted(b.gap for b in blocks[first + 1:end])[(end - first - 1) // 2] if end > first + 1 else 1
    for i in range(max(end - 5, first + 4), end):     # the half-title and the first story's own heading are not contents
        if sum(b.text.count("\n") + 1 for b in blocks[i:end]) > 8:
            continue
        if blocks[i].gap > max(usual, 2) and not blocks[i].links and not blocks[i].level and (
                blocks[i].gap > 3 or i == end - 1 and heading_like(blocks[i])):
            del lines[len(lines) - sum(b.text.count("\n") + 1 for b in blocks[i:end]):]
            end = i
            break
    for n in range(1, 4):      # long titles run over two or three lines
        for k in range(len(lines) - n + 1):
            for key in {fold(" ".join(lines[k:k + n])), fold(" ".join([_BARE_NUMBER.sub("", lines[k])] + lines[k + 1:k + n]))}:
                if key and k not in found.titles.setdefault(key, []):
                    found.titles[key].append(k)
    found.blocks = range(first, end)
    return found


_ILLUSTRATIONS = re.compile(r"\W*(list of )?(\w+ )?(illustrations|plates|pictures)\W*$", re.I | re.M)
_BARE_NUMBER = re.compile(r"^\s*(?:[IVXLC]+|\d{1,3})\s+(?=\S)")


def _entry(line: str) -> str:
    """A line of the contents without its page number and its author."""
    line = re.sub(r"[\s,.-]+_?(?:[A-Z][a-z]?\.\s*){1,3}[A-Z][\w'-]+_?$", "", line.strip()) or line
    line = re.sub(r"(?:[\s.\u2026_]+|(?<=[a-z.]))(\d{1,3}|\b[xvil]{1,6})\s*$", "", line.strip())
    return re.sub(r"(?<=\S)(\s+\bby\b |\s{3,}|\t).*$|[\s.\u2026]+$", "", line, flags=re.I) \
        if not re.match(r"\W*([IVXLC]+|\d+)[.)]?\s{3,}", line) else re.sub(r"\s+", " ", line)


def _is_prose(block: Block) -> bool:
    if block.kind == "list" or block.links or block.level:
        return False
    lines, words = block.text.split("\n"), block.text.split()
    if len(lines) == 1:
        return len(words) > 22
    return sum(len(l.strip()) > 55 for l in lines[:-1]) >= 0.7 * (len(lines) - 1) and len(words) > 22


def _bare_list(blocks: list[Block]) -> int | None:
    """Contents without a heading: eight short lines or more in a row, before any prose."""
    start, lines = None, 0
    for i, b in enumerate(blocks + [Block("x " * 50)]):
        if _is_prose(b) or b.gap > 4 or b.level and not b.links:
            if lines >= 8 and start is not None:
                return start
            start, lines = (None, 0) if _is_prose(b) else (i, b.text.count("\n") + 1)
        else:
            start = i if start is None else start
            lines += b.text.count("\n") + 1
    return None


def heads(blocks: list[Block], toc: Contents) -> list[Head]:
    found, i = [], toc.blocks.stop
    while i < len(blocks):
        if not heading_like(blocks[i]) and listed(blocks[i], toc) is None:
            i += 1
            continue
        j = i + 1
        while j < len(blocks) and j - i < 7 and len(blocks[j].text.split()) <= 30 and _continues(blocks, j, toc):
            j += 1
        found.append(_head(blocks, i, j, toc))
        i = found[-1].end
    for k, h in enumerate(found):    # a part's heading does not end a story, nor do two headings in a row begin two
        after = next((o.start for o in found[k + 1:] if o.matter or strong(o.style, h.style) and not o.ordinal), len(blocks))
        h.words = sum(b.words for b in blocks[h.end:after])
        h.near = sum(b.words for b in blocks[h.end:found[k + 1].start if k + 1 < len(found) else len(blocks)])
    return found


def _continues(blocks: list[Block], j: int, toc: Contents) -> bool:
    """Does block j still belong to the heading above it (title under a number, author, note in brackets)?"""
    text, above = blocks[j].text.strip(), blocks[j - 1].text.strip()
    if heading_like(blocks[j]) or text.isupper() and len(text.split()) <= 12 or BYLINE.fullmatch(text) or ORDINAL.fullmatch(text) or text[:1] in "[(*":
        return blocks[j].kind not in ("list", "break")
    if listed(blocks[j], toc, near=True) is not None:
        return True
    return bool(ORDINAL.fullmatch(above)) and _title_form(text) and not blocks[j].level


def listed(block: Block, toc: Contents, near: bool = False) -> tuple[int, int] | None:
    """(certainty, place in the contents) if the block's text or anchor stands there; `near`: right under a heading."""
    text = _one_line(block.text)
    if ORDINAL.fullmatch(text) or len(text.split()) > 30 or len(text) > 160 or block.kind in ("list", "break"):
        return None
    if not (near or block.gap > 1 or block.level or text.isupper() or block.ids):
        return None
    key = fold(text)
    if key in toc.titles and len(key) > 1:
        return 3, toc.titles[key][0]
    for anchor in block.ids:
        if anchor in toc.anchors and (block.level or _title_form(text)):
            return 2, toc.anchors[anchor]
    if len(key) < 6 or not (heading_like(block) or near and _title_form(text)):
        return None
    for other, where in toc.titles.items():
        longer, shorter = (other, key) if len(other) > len(key) else (key, other)
        if len(shorter) > 6 and longer.startswith(shorter) and len(shorter) > 0.45 * len(longer):
            return 1, where[0]
        if abs(len(other) - len(key)) < 8 and len(key) > 5 and (other[:2] == key[:2] or other[-3:] == key[-3:]) and SequenceMatcher(None, other, key).ratio() > 0.85:
            return 1, where[0]
    return None


def _head(blocks: list[Block], i: int, j: int, toc: Contents) -> Head:
    text = {k: _one_line(blocks[k].text) for k in range(i, j)}
    sure = {k: found for k in text if (found := listed(blocks[k], toc, near=k > i)) and (k == i or not BYLINE.fullmatch(text[k]))}
    author = next((text[k] for k in text if k > i and k not in sure and BYLINE.fullmatch(text[k])), "")
    titles = [k for k in text if k in sure or not (BYLINE.fullmatch(text[k]) or ORDINAL.fullmatch(text[k]) or text[k][:1] in "[(")]
    key = max(sure, key=lambda k: (sure[k][0], k)) if sure else titles[0] if titles else i
    # what stands below the title and is neither number, author nor note may be the story's first line
    end = next((k for k in range(key + 1, j) if blocks[k].level and re.search(r"[,;]$", text[k])), j)
    b = blocks[key]
    letters = [c for c in b.text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) > 0.7 * len(letters)
    style = ("h", b.level) if b.level else ("t", min(max(blocks[k].gap for k in range(i, key + 1)), 4), caps)
    matter = bool(MATTER.fullmatch(text[key]) or END_MARK.fullmatch(text[key])) or \
        any(MATTER.fullmatch(text[k]) and "note" in text[k].lower() for k in text)
    poems = any(NO_STORIES.fullmatch(text[k]) for k in titles)
    if key > i and (b.level < blocks[i].level if b.level else 3 <= b.gap > blocks[i].gap):
        i = key       # what stands closer to the text above belongs to it
    title = LEADING.sub("", text[key]) or text[key]
    return Head(i, end, title, re.sub(r"^\W*(by)\s+", "", author, flags=re.I), style,
                sure[key][1] if key in sure else None, matter, not titles, poems, title != text[key])


def strong(style: tuple, other: tuple) -> bool:
    """Is a heading of `style` at least as strong as one of `other`?"""
    if style[0] != other[0]:
        return style[0] == "h"
    if style[0] == "h":
        return style[1] <= other[1]
    return style[1] > other[1] or style[1] == other[1] and style[2] >= other[2]


def choose(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    # a half-title is followed by the title itself
    found = [h for h, after in zip(found, found[1:] + [None])
             if not (after and h.entry is not None and h.entry == after.entry and h.near < 40)]
    plain = [h for h in found if not h.matter and not h.ordinal and h.words >= MIN_WORDS]
    known = [h for h in plain if h.entry is not None]
    if len({h.entry for h in known}) < 3:
        return _choose_by_form(found)
    style = Counter(h.style for h in known).most_common(1)[0][0]
    same = [h for h in plain if h.style == style]
    pure = len([h for h in same if h.entry is not None]) >= 0.6 * len(same)
    numbers = len([h for h in known if h.numbered]) > 0.5 * len(known)
    uses, starts = Counter(), []
    for h in known:      # a title that stands twice in the contents begins two stories; in the notes it begins none
        if uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            starts.append(h)
    first, last = starts[0].start, starts[-1].start
    notes = min((h.start for h in found if h.matter and h.start > last), default=1 << 60)
    ends = [h for h in found if h.matter and (strong(h.style, style) or NOTES.fullmatch(h.title) or h.start > last)]
    for h in plain:      # not in the contents: forgotten there, or an advertisement
        if h.entry is None and (h.start > first or h.author) and strong(h.style, style) and (numbers or not h.numbered):
            forgotten = h.style == style and (pure and h.start < last or h.author and h.start < notes)
            if forgotten and len(fold(h.title)) > 1 and not (h.start > last and fold(h.title) in {fold(o.title) for o in starts}):
                starts.append(h)
            elif h.start > last:
                ends.append(h)
                h.matter = True
    return _without_poems(sorted(starts + ends, key=lambda h: h.start), style)


def _choose_by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain, best = [h for h in found if not h.matter and not h.ordinal], None
    for style in {h.style for h in plain}:
        if len([h for h in plain if h.style == style and h.words >= 100]) >= 3 and (best is None or strong(style, best)):
            best = style
    if best is None:
        return []
    same = [h for h in plain if h.style == best]
    parts = len([h for h in same if h.numbered]) < 0.5 * len(same)   # then a numbered title is a part of a story
    chosen = [h for h in found if (strong(h.style, best) or h.matter and NOTES.fullmatch(h.title))
              and not h.ordinal and not (parts and h.numbered)]
    return _without_poems(chosen, best)


def _without_poems(chosen: list[Head], style: tuple) -> list[Head]:
    off = False
    for h in chosen:
        off = h.poems or off and not (strong(h.style, style) and h.style != style)
        h.matter = h.matter or off
    return chosen


# ------------------------------------------------------------------ cleaning

EDITOR = re.compile(r"\b(note|title|author|translat\w+|edit(or|ed|ion)|publish\w+|printed)\b", re.I)
LEAD_NOTE = re.compile(r"\[.*\]|(A \w+ story |This story was )?(Narrat(ed|or)|Paraphrased)\b.{,300}|\*(?! \*).*|"
                       r"\((From|(Narrator's )?Note)\b.*\)", re.S | re.I)

def clean(blocks: list[Block], wrapped: bool = False) -> str:
    """Prose as one line a paragraph, verse line by line; marks, notes and pictures out."""
    parts = []
    widths = sorted(len(line) for b in blocks for line in b.text.split("\n"))
    width = widths[int(0.9 * len(widths))] if widths else 0
    raw = "\n\n".join("\n".join(b.text.split("\n")) for b in blocks)
    bracket = r"\[\s*_?(?:Illustration|Footnote|Transcriber|Sidenote|Blank Page|Decoration|Image|Pg|Page)\b[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]_?"
    raw = re.sub(bracket, "", raw, flags=re.I)
    for text in re.split(r"\n\s*\n", raw):
        lines = [l for l in text.split("\n") if l.strip()]
        if not lines or re.match(r"\s*(\[\d{1,3}\]|\[[A-Z*]\]|\(\d{1,3}\)\s)\s*\S", text):
            continue
        if re.fullmatch(r"[\s*.\u2022~#\u2015\u2014\u2500_-]*", text):
            text = "* * *"
        elif not wrapped or _is_verse_block(lines, width):
            text = "\n".join(" ".join(l.split()) for l in lines)
        else:
            text = " ".join(" ".join(lines).split())
        parts.append(text)
    text = "\n\n".join(parts)
    text = re.sub(r"\[\d{1,3}\]|\[[A-Z*\u2020]\]|(?<=[\w.,;:!?\"\u201d\u2019])\(\d{1,3}\)|[\[{]p(?:g|age)?\.? ?\d+[\]}]", "", text)
    text = re.sub(r"(?<![A-Za-z0-9])_([^_]+?)_(?![A-Za-z0-9])|=([^=\n]+)=", lambda m: m[1] or m[2], text)
    text = text.replace("_", "").replace("\u2060", "").replace("\u00ad", "").replace("\u00a0", " ")
    parts = text.split("\n\n")
    while parts and LEAD_NOTE.fullmatch(parts[0]) and len(parts[0].split()) < 120 and len(parts) > 1:
        parts.pop(0)
    if len(parts) > 1 and re.fullmatch(r"\[[^\]]*\]", parts[-1]) and len(parts[-1].split()) <= 30:
        parts.pop()       # where the tale was taken from
    parts = parts[:next((i for i, p in enumerate(parts) if i and re.match(r"Note(:|\.--|\.\u2014)", p, re.I)
                         and len(parts) - i <= 3), len(parts))]
    if text.endswith("]") and (start := next((i for i in range(len(parts) - 1, max(0, len(parts) - 6), -1)
                                              if parts[i].startswith("[")), 0)) and EDITOR.search(" ".join(parts[start:])):
        parts = parts[:start]
    while parts and (END_MARK.fullmatch(parts[-1]) or parts[-1] == "* * *"):
        parts.pop()
    while parts and (ORDINAL.fullmatch(parts[0].strip()) or parts[0] == "* * *" or BYLINE.fullmatch(parts[0])):
        parts.pop(0)
    return "\n\n".join(parts).strip()


def _is_verse_block(lines: list[str], width: int) -> bool:
    """Lines broken on purpose: well short of the margin, most beginning with a capital."""
    bare = [l.strip() for l in lines]
    capitals = sum(l.lstrip("\"'\u201c\u2018(_").strip()[:1].isupper() for l in bare)
    return len(lines) > 1 and max(map(len, bare)) <= 0.85 * width and capitals >= 0.7 * len(lines)


def is_verse(text: str) -> bool:
    return sum(p.count("\n") + 1 for p in text.split("\n\n") if "\n" in p) > 2.5 * len([p for p in text.split("\n\n") if "\n" not in p]) \
        and sum(len(p) for p in text.split("\n\n") if "\n" in p) > 0.7 * len(text)


# ------------------------------------------------------------------ one book

FRAME_START = re.compile(r"\*{3} ?START OF (THIS|THE) PROJECT GUTENBERG|\*END\*? ?THE SMALL PRINT|\*END THE SMALL", re.I)
FRAME_END = re.compile(r"\*{3} ?END OF (THIS|THE) PROJECT GUTENBERG|^\W*End of (the |this )?Project Gutenberg", re.I)
BACK_PAGE = re.compile(r"\b(8vo|12mo|16mo|4to)\b|\b\d+s\.? (net|6d)|transcriber.{0,3} notes?|\b(corrected|changed) to \"|"
                       r"& sons, (limited|ltd)|^\W*printed (in|by)\b|illustrated from photographs|punctuation .* retained", re.I)
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
    author, wrapped = "", False
    if raw[:2] == b"PK":
        blocks, _, author = epub_blocks(raw)
        stories = markup_stories(blocks, author, source)
        if stories:
            return stories
    else:
        text = decode(raw)
        author = next(iter(re.findall(r"^Author:\s*(.+?)\s*(?:[\[(].*)?$", text[:20000], re.M)), "")
        is_html = re.search(r"<(html|body|p|h[1-6])\b", text[:20000], re.I)
        wrapped = not is_html
        blocks = html_blocks(text) if is_html else text_blocks(text)
    blocks = unframe(blocks)
    for b in blocks:
        b.words = len(b.text.split())
    toc = contents(blocks)
    starts = choose(heads(blocks, toc), toc)
    stories = []
    for h, after in zip(starts, starts[1:] + [None]):
        about_author = len(fold(author)) > 8 and fold(author) in fold(h.title)
        if h.matter or about_author:
            continue
        body = blocks[h.end:after.start if after else len(blocks)]
        if after is None:     # advertisements and transcribers' remarks follow the last story
            tail = len(body) // 2
            body = body[:next((i for i, b in enumerate(body) if i > tail and BACK_PAGE.search(b.text)), len(body))]
        text = clean(body[:next((i for i, b in enumerate(body) if THE_END.fullmatch(b.text.strip())), len(body))], wrapped)
        if len(text.split()) >= MIN_WORDS and not is_verse(text):
            stories.append(Story(_title(h.title), _one_line(h.author) or author, text, source))
    if not stories:
        raise ValueError("has no stories that can be told apart (neither contents nor headings): leave it out")
    return stories
