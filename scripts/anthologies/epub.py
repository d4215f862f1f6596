"""An epub -> its table of contents, its blocks in reading order, its author.

Nothing is unpacked to disk, no entity is expanded, no path leads outside, no book unpacks to more than 40 MB.
Used by stories.py. Left out: pictures, styles, encryption.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from urllib.parse import unquote

from lxml import etree

from scripts.anthologies.books import LEADING, MAX_BYTES, ORDINAL, Block, anchor, decode, html_blocks

DAMAGE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error)


class _Archive:
    """Files of a zip archive by path. ValueError: a path outside, a missing or damaged file, a bomb."""

    def __init__(self, raw: bytes):
        try:
            self.book = zipfile.ZipFile(io.BytesIO(raw))
        except zipfile.BadZipFile:
            raise ValueError("is a damaged zip archive: fetch it again") from None
        self.names, self.left = {i.filename: i for i in self.book.infolist()}, MAX_BYTES

    def read(self, path: str) -> bytes:
        path = _inside(path)
        if path not in self.names:
            raise ValueError(f"names a file it does not hold ({path[:60]!r}): fetch it again")
        self.left -= self.names[path].file_size
        if self.left < 0:
            raise ValueError(f"unpacks to more than {MAX_BYTES >> 20} MB: no book does")
        try:
            with self.book.open(self.names[path]) as f:
                return f.read(self.names[path].file_size)
        except DAMAGE as error:
            raise ValueError(f"cannot be unpacked ({error}): fetch it again") from None


def _inside(path: str) -> str:
    path = posixpath.normpath(path)
    if path.startswith(("/", "..")) or "\\" in path:
        raise ValueError(f"names a path outside itself ({path[:60]!r}): not a book to trust")
    return path


def epub_blocks(raw: bytes) -> tuple[list[Block], list[Block], str]:
    """-> (table of contents, blocks in reading order, author). ValueError: not an epub, hostile,
    incomplete."""
    archive = _Archive(raw)
    if "META-INF/container.xml" not in archive.names:
        raise ValueError("is a zip archive without META-INF/container.xml: no epub")
    container = _xml(archive.read("META-INF/container.xml"))
    opf_path = next(iter(container.xpath("//*[local-name()='rootfile']/@full-path")), "")
    opf, folder = _xml(archive.read(opf_path)), posixpath.dirname(opf_path)
    items = {i.get("id"): i for i in opf.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    paths = {name: _inside(posixpath.join(folder, unquote(i.get("href", "")))) for name, i in items.items()}
    counter, blocks = [0], []
    for ref in opf.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
        if ref not in items:
            raise ValueError(f"has a spine that names an unknown item ({ref[:60]!r}): fetch it again")
        if "html" in items[ref].get("media-type", "html"):
            page = html_blocks(decode(archive.read(paths[ref])), posixpath.basename(paths[ref]), counter)
            if page:
                page[0].gap = 5  # a new file is a new page
            blocks += page
    nav = _navigation(items.values(), lambda href: archive.read(posixpath.join(folder, unquote(href))))
    return nav, blocks, " ".join(opf.xpath("//*[local-name()='creator']/text()")[:1])


def _navigation(items, read) -> list[Block]:
    """The table of contents that every epub carries beside its text, as a page of contents; numbered parts
    left out."""
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
                entries.append((anchor(source[1].get("src", "")), source[0]))
    entries = [(target, " ".join(text.split())) for target, text in entries]
    entries = [
        (t, text)
        for t, text in entries
        if text and not ORDINAL.fullmatch(text) and LEADING.sub("", text) == text
    ]
    return [Block("Contents", 5)] * bool(entries) + [
        Block(text, 1, kind="list", links=[(t, text)]) for t, text in entries
    ]


def _xml(raw: bytes):
    try:
        return etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as error:
        raise ValueError(f"has package data that is not XML ({error}): fetch it again") from None
