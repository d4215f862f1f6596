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
    """-> (table of contents, blocks in reading order, author). ValueError: not an epub, hostile, incomplete."""
    archive = _Archive(raw)
    if "META-INF/container.xml" not in archive.names:
        raise ValueError("is a zip archive without META-INF/container.xml: no epub")
    container = _xml(archive.read("META-INF/container.xml"))
    opf_path = next(iter(container.xpath("//*[local-name()='rootfile']/@full-path")), "")
    opf, folder = _xml(archive.read(opf_path)), posixpath.dirname(opf_path)
    items = {i.get("id"): i for i in opf.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    paths = {name: _inside(posixpath.join(folder, unquote(i.get("href", "")))) for name, i in items.items()}
    counter, blocks, nav = [0], [], []
    for ref in opf.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
        if ref not in items:
            raise ValueError(f"has a spine that names an unknown item ({ref[:60]!r}): fetch it again")
        if "html" in items[ref].get("media-type", "html"):
            page = html_blocks(decode(archive.read(paths[ref])), posixpath.basename(paths[ref]), counter)
            if page:
                page[0].gap = 5  # a new file is a new page
            blocks += page
    for name, item in items.items():
        if "nav" in item.get("properties", "").split():
            nav = [link for b in html_blocks(decode(archive.read(paths[name]))) for link in b.links]
        elif "ncx" in item.get("media-type", "") and not nav:
            nav = _ncx(_xml(archive.read(paths[name])))
    return _table(nav), blocks, " ".join(opf.xpath("//*[local-name()='creator']/text()")[:1])


def _ncx(page) -> list[tuple[str, str]]:
    points = [(p.find("{*}content"), p.findtext("{*}navLabel/{*}text", "")) for p in page.iter("{*}navPoint")]
    return [(anchor(at.get("src", "")), text) for at, text in points if at is not None]


def _table(entries: list[tuple[str, str]]) -> list[Block]:
    """An epub's own table of contents as a page of contents; numbers and numbered parts left out."""
    entries = [(target, " ".join(text.split())) for target, text in entries]
    titles = [e for e in entries if e[1] and not ORDINAL.fullmatch(e[1]) and LEADING.sub("", e[1]) == e[1]]
    heading = [Block("Contents", 5)] if titles else []
    return heading + [Block(text, kind="list", links=[(at, text)]) for at, text in titles]


def _xml(raw: bytes):
    try:
        return etree.fromstring(raw, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as error:
        raise ValueError(f"has package data that is not XML ({error}): fetch it again") from None
