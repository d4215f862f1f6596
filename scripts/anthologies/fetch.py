"""Books of the catalogue, from mirrors that welcome programs: one at a time, with pauses, resumed, checked.

`stories/catalogue.tsv` lists 100 anthologies: Project Gutenberg numbers and Standard Ebooks names, and for
Project Gutenberg the checksum of the edition that docs/data.md measures. Project Gutenberg asks programs to
use a mirror (gutenberg.org/policy/robot_access.html); the default below is one of its list,
gutenberg.org/MIRRORS.ALL.

    python -m scripts.anthologies fetch --out_dir out/books
    python -m scripts.anthologies fetch --out_dir out/books --gutenberg https://another.mirror/gutenberg

Left out: newer editions than the mirror's. Standard Ebooks rebuilds its files, so these have no checksum.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from pathlib import Path

import requests
from tqdm import tqdm

from lib.files import digest
from scripts.anthologies.books import MAX_BYTES, decode

GUTENBERG = "https://gutenberg.pglaf.org"  # the default mirrors, here alone
STANDARD_EBOOKS = "https://standardebooks.org"
CATALOGUE = Path(__file__).resolve().parents[2] / "stories" / "catalogue.tsv"
HEADERS = {"User-Agent": "anthologies/1 (one request at a time)", "Accept-Encoding": "identity"}
NAME = re.compile(r"pg\d+\.(txt|htm)|se(_[a-z0-9-]+){2,4}\.epub")
CLOSING = re.compile(r"(?i)END OF (THE|THIS) PROJECT GUTENBERG|End of (the )?Project Gutenberg")
BUSY = (429, 500, 502, 503, 504)
GONE = ("status 404", "status 410")


def catalogue(path: Path = CATALOGUE) -> list[dict]:
    """Rows with name, title, author, file, sha256. FileNotFoundError, ValueError: names the line."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no catalogue {path}; restore it from the repository")
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"))) for line in lines if line.strip()]
    for n, row in enumerate(rows, 2):
        if not NAME.fullmatch(row.get("name", "")) or "title" not in row:
            what = "name must be pgNUMBER.txt, pgNUMBER.htm or se_AUTHOR_TITLE.epub, and title must follow"
            raise ValueError(f"{path} line {n}: {what}")
    return rows


def addresses(row: dict, gutenberg: str | None, standard_ebooks: str | None) -> list[str]:
    """Where a mirror keeps the book; its places are tried in this order, the catalogue's own file first."""
    stem, _, kind = row["name"].rpartition(".")
    base = (standard_ebooks if stem.startswith("se_") else gutenberg or "").rstrip("/")
    if not base:
        return []
    if stem.startswith("se_"):
        parts = stem.removeprefix("se_").split("_")
        return [f"{base}/ebooks/{'/'.join(parts)}/downloads/{'_'.join(parts)}.epub?source=download"]
    number = stem.removeprefix("pg")
    if kind == "htm":
        files, cached = [f"{number}-h/{number}-h.htm"], f"pg{number}-images.html"
    else:
        files, cached = [f"{number}{end}.txt" for end in ("-0", "-8", "")], f"pg{number}.txt"
    files.sort(key=lambda file: not file.endswith(row.get("file") or "-0.txt"))
    folder = "/".join(number[:-1] or "0") + f"/{number}"
    return [f"{base}/{folder}/{file}" for file in files] + [f"{base}/cache/epub/{number}/{cached}"]


def check(path: Path, name: str) -> str | None:
    """What is wrong with the bytes at `path` as the book `name` of the catalogue, or None."""
    if name.endswith(".epub"):
        return _check_epub(path)
    try:
        text = decode(path.read_bytes())
    except ValueError:
        return "not text"
    number = re.search(r"\d+", name)[0]
    if not re.search(rf"#{number}\b", text) and not re.search(rf"\b{number}\b", text[:3000] + text[-3000:]):
        return f"not Project Gutenberg's number {number}"
    return None if CLOSING.search(text) else "cut short: the closing line is missing"


def _check_epub(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as book:
            if sum(i.file_size for i in book.infolist()) > 4 * MAX_BYTES:
                return "unpacks to far more than a book"
            if book.testzip():
                return "a damaged epub"
            return None if "META-INF/container.xml" in book.namelist() else "not an epub"
    except zipfile.BadZipFile:
        return "not an epub"


def download(url: str, part: Path, args) -> str | None:
    """Bytes of `url` into `part`, resumed where an earlier try stopped. A word on what failed, or None."""
    trouble = "nothing came"
    for attempt in range(args.attempts):
        time.sleep(args.pause * 2**attempt if attempt else 0)
        have = part.stat().st_size if part.exists() else 0
        headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=args.timeout) as reply:
                trouble = _save(reply, part, have)
        except requests.RequestException as error:
            trouble = type(error).__name__
            continue
        if reply.status_code in BUSY:
            wait = reply.headers.get("Retry-After", "").strip()
            time.sleep(min(60, int(wait)) if wait.isdigit() else 0)
        elif trouble is None or trouble.startswith(("status", "larger")):
            return trouble
    return trouble


def _save(reply: requests.Response, part: Path, have: int) -> str | None:
    """Writes the body of a reply. What is wrong with it, or None when the body is whole."""
    if reply.status_code == 416:  # what is here is longer than the file: begin anew
        part.unlink(missing_ok=True)
        return "more than the file has"
    if reply.status_code not in (200, 206):
        return f"status {reply.status_code}"
    size = have if reply.status_code == 206 else 0
    expected = size + int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
    with open(part, "ab" if size else "wb") as file:
        for chunk in reply.iter_content(1 << 10):  # small: a broken line loses the chunk it broke in
            size += len(chunk)
            if size > MAX_BYTES:
                part.unlink()
                return "larger than any book"
            file.write(chunk)
    return None if expected is None or size == expected else f"{size} bytes of {expected}"


def fetch_one(name: str, places: list[str], folder: Path, args) -> list[str]:
    """One book into `folder`. The troubles of the places tried, empty when the book came."""
    troubles = []
    for n, url in enumerate(places):  # a part belongs to its address: two mirrored files may differ
        part = folder / f"{name}.{n}.part"
        trouble = download(url, part, args)
        time.sleep(args.pause)  # a mirror is a gift
        if trouble is None:
            trouble = check(part, name)
            if trouble is None:
                os.replace(part, folder / name)
                return []
            part.unlink()
        troubles.append(f"{trouble} at {url}")
    return troubles


def run(args) -> None:
    if not args.gutenberg and not args.standard_ebooks:
        raise ValueError("no mirror: name one with --gutenberg URL, --standard_ebooks URL or both")
    rows, folder = catalogue(Path(args.catalogue)), Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    gone, failed, new = [], [], 0
    for row in tqdm(rows, desc="books", unit="book"):
        path, places = folder / row["name"], addresses(row, args.gutenberg, args.standard_ebooks)
        if not places or path.exists() and check(path, row["name"]) is None:
            continue
        troubles = fetch_one(row["name"], places, folder, args)
        if troubles:
            skip = all(t.startswith(GONE) for t in troubles)
            (gone if skip else failed).append(f"{row['name']} ({row['title']}): {'; '.join(troubles)}")
        new += not troubles
    have = [row for row in rows if (folder / row["name"]).exists()]
    print(f"{new} books fetched now, {len(have)} of {len(rows)} in {folder}")
    other = [r["name"] for r in have if r.get("sha256") and digest(folder / r["name"]) != r["sha256"]]
    if other:
        what = "not the catalogue's edition (another checksum, but whole)"
        print(f"{len(other)} are {what}: {', '.join(other)}")
    for line in [f"gone, skipped: {line}" for line in gone] + [f"failed: {line}" for line in failed]:
        print(line)
    if failed or not have:
        what = f"{len(failed) or len(gone)} books did not come"
        raise ValueError(f"{what}; run the same command to try them again, or name another mirror")


def add_arguments(p) -> None:
    p.add_argument("--out_dir", required=True, help="folder for the books")
    p.add_argument("--gutenberg", metavar="URL", default=GUTENBERG, help=f"mirror (default {GUTENBERG})")
    se = f"default {STANDARD_EBOOKS}; '' for none"
    p.add_argument("--standard_ebooks", metavar="URL", default=STANDARD_EBOOKS, help=se)
    p.add_argument("--catalogue", default=str(CATALOGUE), help="table of books (default: stories/'s)")
    p.add_argument("--pause", type=float, default=2.0, help="seconds between requests (default 2)")
    p.add_argument("--attempts", type=int, default=4, help="tries for each address (default 4)")
    p.add_argument("--timeout", type=float, default=60.0, help="seconds without a byte per try (default 60)")
    p.set_defaults(run=run)
