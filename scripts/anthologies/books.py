"""A book as it is published (txt, html, epub) -> a list of blocks: paragraphs, headings, lines.

Bytes are decoded by what they are, the publisher's frame is removed, and headings.py sees the same blocks
whatever the format was. lxml parses HTML and XML, offline and with entities off. Of an epub nothing is
unpacked to disk, and no book unpacks to more than 40 MB. Left out: footnotes, pictures, page numbers. Poems
keep their lines, tables do not keep their columns.
"""

import codecs
import io
import posixpath
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from html.entities import html5
from itertools import groupby
from urllib.parse import unquote

from lxml import etree, html

MAX_BYTES = 40 << 20  # larger is not a book; also the limit for what an epub may unpack to

# how numbers, authors and ends of stories are written
ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|second|third|fourth"
NUMBER = rf"(?:{ROMAN}|\d{{1,3}}|{WORDS})"
ORDINAL = re.compile(
    rf"(?i)(?:(?:chapter|chap\.|part|book|section|canto|letter|stave|story the|tale|no\.?|number)\s+)?"
    rf"(?:the\s+)?(?:\d{{1,2}}\.)?{NUMBER}\s*[.:)\]]*"
)
LEADING = re.compile(
    rf"(?i)^(?:(?:(?:chapter|part|tale|story|no\.?)\s+)?(?:{ROMAN}|\d{{1,3}})\s*(?:[.:)]|--|"
    rf"\u2014)[-\u2014\s]*)?(?:\([a-z]\)\s+)?"
)
END_MARK = re.compile(r"(?i)\W*(the end|finis|end|het einde|fin|end of .{0,40}|explicit)\W*")


@dataclass
class Block:
    """A paragraph or heading. `gap`: blank lines above (txt); `level`: 1-6 for <h1>-<h6>, else 0."""

    text: str
    gap: int = 1
    level: int = 0
    kind: str = ""  # list, break, or what markup says: title, part, date, drama, skip
    links: list[str] = field(default_factory=list)  # the words of each
    story: int = 0  # Standard Ebooks: number of the story it belongs to,
    foreword: str = ""  # and the id of the preface or introduction inside that story

    @cached_property
    def words(self) -> int:
        return len(self.text.split())


def decode(raw: bytes) -> str:
    """Bytes to text by what they are: old books mix encodings. ValueError: binary."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw[: 1 << 16] or sum(b < 9 or 13 < b < 32 for b in raw[:4096]) > 40:
        raise ValueError("is binary, not a book: give a txt, html or epub file")
    return raw.decode("utf-8-sig", errors="cp1252")


codecs.register_error("cp1252", lambda e: (e.object[e.start : e.end].decode("cp1252", "replace"), e.end))


def text_blocks(text: str) -> list[Block]:
    blocks, gap = [], 0
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for blank, run in groupby(lines, lambda line: not line.strip()):
        if blank:
            gap = len(list(run))
        else:
            blocks.append(Block("\n".join(line.rstrip().expandtabs() for line in run), gap))
    return blocks


# ------------------------------------------------------------------ HTML

BLOCK_TAGS = frozenset(
    "address article aside blockquote body center dd div dl dt footer form h1 h2 h3 h4 h5 h6 header hgroup "
    "hr li main nav ol p pre section table tr ul".split()
)
BY_ITSELF = {"br": "\n", "td": "\t", "th": "\t"}  # what a tag adds to the text
SKIP_TAGS = frozenset("head script style img svg math figure object audio video noscript".split())
SKIP_CLASS = re.compile(
    r"(?i)\b(page-?num\w*|pageno|pgnum|folio|foot-?notes?|endnotes?|caption\w*|tn|tnote|trans-?notes?|"
    r"fig(center|left|right)|illus\w*|fnanchor|noteref|pg-boilerplate)\b"
)
NOTE_MARK = re.compile(r"\s*[\[(]?\s*(\d{1,3}|[*\u2020\u2021])\s*[\])]?\s*")
KINDS = {  # what epub:type says of an element
    "drama": r"drama|dramatis",
    "skip": r"\b(epigraph|dedication|footnote|endnote|contributors)",
    "title": r"\b(fulltitle|subtitle|title)\b",
    "part": r"\b(ordinal|bridgehead)\b",
    "date": r"dateline",
}


def _skipped(el, context) -> bool:
    """Pictures, page numbers, notes and the marks that point to them."""
    if not isinstance(el.tag, str) or el.tag in SKIP_TAGS or "noteref" in el.get("epub:type", ""):
        return True
    if SKIP_CLASS.search(el.get("class", "")):
        return True
    link = el.tag == "a" and el.get("href") is not None and context["kind"] != "list"
    return (link or el.tag == "sup") and bool(NOTE_MARK.fullmatch("".join(el.itertext())))


def _drop_cap(el) -> str:
    """The letter when `el` is nothing but the picture of a story's first letter, else an empty string."""
    if not isinstance(el.tag, str) or any(t.strip() for t in el.itertext()):
        return ""
    letters = [i.get("alt", "").strip() for i in el.iter("img")]
    return letters[0] if len(letters) == 1 and re.fullmatch(r"\W?[A-Z]", letters[0]) else ""


def _enter(el, context, counter) -> dict:
    """What the walk knows inside `el`: heading level, kind of block, number of the story, preformatted."""
    kind, inside = el.get("epub:type", ""), dict(context)
    if re.fullmatch(r"h[1-6]", el.tag):
        inside["level"] = int(el.tag[1])
    if el.tag == "pre":
        inside["pre"] = True
    if el.tag in ("p", "div", "center", "blockquote"):
        only = len(el) == 1 and el[0].tag in ("i", "em")
        inside["apart"] = only and not (el.text or "").strip() and not (el[0].tail or "").strip()
    if "se:short-story" in kind or "se:novel" in kind:
        counter[0] += 1
        inside["story"] = counter[0]
    if re.search(r"\b(preface|introduction|foreword)\b", kind):
        inside["foreword"] = el.get("id") or "foreword"
    for name, pattern in KINDS.items():
        if re.search(pattern, kind):
            inside["kind"] = name
    if el.tag in ("table", "ul", "ol", "dl", "nav"):
        inside["kind"] = inside["kind"] or "list"
    return inside


def _cells(line: str) -> str:
    """A line without extra spaces; a tab separates the cells of a table and what hard spaces separated."""
    parts = re.split(r"\t|[ \u2003]*[\u00a0\u2003]{2,}[ \u2003]*", line)
    return "\t".join(text for part in parts if (text := " ".join(part.split())))


def html_blocks(text: str, counter: list[int] | None = None) -> list[Block]:
    """One HTML page as blocks. `counter[0]` numbers the stories that Standard Ebooks' markup names."""
    text = re.sub(r"(?is)^.*?(?=<html\b)", "", text)  # the document type may declare entities: they go
    text = re.sub(r"&[\w.-]+;", lambda m: m[0] if m[0][1:] in html5 else "", text)
    if not text.strip():
        return []
    root = html.document_fromstring(text, parser=html.HTMLParser(no_network=True, remove_comments=True))
    page = _Page(counter or [0])
    start = {"level": 0, "kind": "", "story": 0, "foreword": "", "pre": False, "apart": False}
    page.walk(root, start)
    page.flush(start)
    return page.blocks


class _Page:
    """The blocks of one page so far, and what belongs to the next: text, links, first letter."""

    def __init__(self, counter: list[int]):
        self.blocks, self.counter = [], counter
        self.text, self.links = [], []
        self.gap, self.cap = 1, ""

    def flush(self, context: dict) -> None:
        raw = "".join(self.text)
        self.text.clear()
        if not raw.strip():
            self.gap += raw.count("\n")
            return
        lines = [_cells(line) for line in raw.split("\n") if line.strip()]
        new = text_blocks(raw.strip("\n")) if context["pre"] else [Block("\n".join(lines))]
        for b in new:
            b.gap, b.level, b.kind = max(1, b.gap), context["level"], context["kind"]
            b.story, b.foreword = context["story"], context["foreword"]
            if context["apart"] and not b.level and not b.story and "_" not in b.text:
                b.text = f"_{b.text}_"
        new[0].gap, new[0].links = self.gap, self.links
        self.gap, self.links = 1, []
        self.blocks += new

    def walk(self, el, context: dict) -> None:
        if _skipped(el, context):
            self.cap = _drop_cap(el) or self.cap
            return
        inside, is_block = _enter(el, context, self.counter), el.tag in BLOCK_TAGS
        if is_block:
            self.flush(context)
        if el.tag == "a" and el.get("href"):
            self.links.append(" ".join(el.itertext()))
        if el.tag == "hr":
            self.gap += 2
            if context["story"]:
                self.blocks.append(Block("* * *", 1, 0, "break", story=context["story"]))
        self.text.append(BY_ITSELF.get(el.tag, ""))
        for piece, child in [(el.text, None)] + [(c.tail, c) for c in el]:
            if child is not None:
                self.walk(child, inside)
            if piece:
                if self.cap and piece.strip():
                    piece, self.cap = self.cap + piece, ""
                self.text.append(piece if inside["pre"] else piece.replace("\n", " "))
        if is_block:
            self.flush(inside)


# ------------------------------------------------------------------ epub

DAMAGE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error)


def epub_blocks(raw: bytes) -> tuple[list[Block], list[Block], str]:
    """-> (table of contents, blocks in reading order, author), checked by the archive's own checksums.
    ValueError: damage."""
    counter, blocks = [0], []
    try:
        book = zipfile.ZipFile(io.BytesIO(raw))
        if sum(item.file_size for item in book.infolist()) > MAX_BYTES:
            raise ValueError(f"unpacks to more than {MAX_BYTES >> 20} MB: no book does")
        container = _xml(book.read("META-INF/container.xml"))
        path = next(iter(container.xpath("//*[local-name()='rootfile']/@full-path")), "")
        opf = _xml(book.read(path))
        items = {i.get("id"): i for i in opf.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
        spine = [items[n] for n in opf.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")]

        def read(item) -> bytes:
            place = posixpath.join(posixpath.dirname(path), unquote(item.get("href", "")))
            return book.read(posixpath.normpath(place))

        pages, entries = [read(i) for i in spine if "html" in i.get("media-type", "html")], []
        for item in items.values():
            if "nav" in item.get("properties", "").split():
                entries = [link for b in html_blocks(decode(read(item))) for link in b.links]
            elif "ncx" in item.get("media-type", "") and not entries:
                points = _xml(read(item)).iter("{*}navPoint")
                entries = [point.findtext("{*}navLabel/{*}text", "") for point in points]
    except (KeyError, etree.XMLSyntaxError, *DAMAGE) as error:  # KeyError: it lacks a file that it names
        raise ValueError(f"is no epub, or a damaged one ({error}): fetch it again") from None
    for page in pages:
        found = html_blocks(decode(page), counter)
        if found:
            found[0].gap = 5  # a new file is a new page
        blocks += found
    entries = [" ".join(text.split()) for text in entries]
    titles = [t for t in entries if t and not ORDINAL.fullmatch(t) and LEADING.sub("", t) == t]  # no numbers
    table = [Block("Contents", 5)] if titles else []
    table += [Block(text, kind="list", links=[text]) for text in titles]
    return table, blocks, " ".join(opf.xpath("//*[local-name()='creator']/text()")[:1])


def _xml(raw: bytes):
    return etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))


# ------------------------------------------------------------------ the frame around a book

FRAME_START = re.compile(
    r"(?i)\*{3} ?START OF (THIS|THE) PROJECT GUTENBERG|\*END\*? ?THE SMALL PRINT|\*END THE SMALL"
)
FRAME_END = re.compile(
    r"(?im)\*{3} ?END OF (THIS|THE) PROJECT GUTENBERG|^\W*End of (the |this )?Project Gutenberg"
)
CREDIT = re.compile(
    r"(?i)\W*(this e-?(book|text) was|(produced|transcribed|(e-?text )?prepared|scanned|proofed) (by|from))\b"
)


def unframe(blocks: list[Block]) -> list[Block]:
    start = next((i + 1 for i, b in enumerate(blocks) if FRAME_START.search(b.text)), 0)
    end = next((i for i in range(start, len(blocks)) if FRAME_END.search(blocks[i].text)), len(blocks))
    return [b for i, b in enumerate(blocks[start:end]) if not (i < 8 and CREDIT.match(b.text))]
