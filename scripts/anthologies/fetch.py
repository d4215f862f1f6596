"""Books of the catalogue, from mirrors that welcome programs: one at a time, with pauses, checked.

`stories/catalogue.tsv` lists 100 anthologies; those of Project Gutenberg with the checksum of the edition
that docs/data.md measures. Project Gutenberg asks programs to use a mirror
(gutenberg.org/policy/robot_access.html). Started again, it asks for what is missing. Left out: newer editions
than the mirror's; checksums of Standard Ebooks, which rebuilds its files.
"""

import csv
import hashlib
import re
import time
from pathlib import Path

import requests
from tqdm import tqdm

from lib.files import atomic
from scripts.anthologies.books import FRAME_END, decode, epub_blocks

GUTENBERG = "https://gutenberg.pglaf.org"  # one of gutenberg.org/MIRRORS.ALL
STANDARD_EBOOKS = "https://standardebooks.org"
CATALOGUE = Path(__file__).resolve().parents[2] / "stories" / "catalogue.tsv"
HEADERS = {"User-Agent": "anthologies/1 (one request at a time)"}
ATTEMPTS, TIMEOUT = 4, 60  # tries for each address; seconds without a byte
BUSY = (429, 500, 502, 503, 504)
GONE = ("status 404", "status 410")
NAME = re.compile(r"pg\d+\.(txt|htm)|se(_[a-z0-9-]+){2,4}\.epub")


def catalogue(path: Path = CATALOGUE) -> list[dict]:
    """Rows with name, title, author, year, file, sha256. ValueError: names the line."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for n, row in enumerate(rows, 2):
        if not NAME.fullmatch(row.get("name") or "") or not row.get("title"):
            what = "name must be pgNUMBER.txt, pgNUMBER.htm or se_AUTHOR_TITLE.epub, and title must follow"
            raise ValueError(f"{path} line {n}: {what}")
    return rows


def addresses(row: dict, gutenberg: str | None, standard_ebooks: str | None) -> list[str]:
    """Where a mirror keeps the book; its places are tried in this order, the catalogue's own file first."""
    stem, _, kind = row["name"].rpartition(".")
    if stem.startswith("se_"):
        base, parts = standard_ebooks, stem.removeprefix("se_").split("_")
        places = [f"ebooks/{'/'.join(parts)}/downloads/{'_'.join(parts)}.epub?source=download"]
    else:
        base, number = gutenberg, stem.removeprefix("pg")
        files, cached = [f"{number}{end}.txt" for end in ("-0", "-8", "")], f"pg{number}.txt"
        if kind == "htm":
            files, cached = [f"{number}-h/{number}-h.htm"], f"pg{number}-images.html"
        files.sort(key=lambda file: not file.endswith(row.get("file") or ""))
        folder = "/".join(number[:-1] or "0")
        places = [f"{folder}/{number}/{file}" for file in files] + [f"cache/epub/{number}/{cached}"]
    return [f"{base.rstrip('/')}/{place}" for place in places] if base else []


def download(url: str, pause: float) -> bytes:
    """The bytes at `url`; a broken line, a busy mirror are tried again. ValueError: what went wrong last."""
    for attempt in range(ATTEMPTS):
        wait = pause * 2**attempt
        try:
            reply = requests.get(url, headers=HEADERS, timeout=TIMEOUT)
        except requests.RequestException as error:
            trouble = type(error).__name__
        else:
            if reply.ok:
                return reply.content
            trouble = f"status {reply.status_code}"
            if reply.status_code not in BUSY:
                break
            asked = reply.headers.get("Retry-After", "")
            wait = min(60, int(asked)) if asked.isdigit() else wait
        time.sleep(wait)
    raise ValueError(trouble)


def fetch_one(path: Path, places: list[str], pause: float) -> list[str]:
    """One book to `path`: the troubles of the places tried, empty when a whole book came. A checksum that
    differs is told in the end, see `run`."""
    troubles = []
    for url in places:
        try:
            raw = download(url, pause)
            if path.suffix == ".epub":
                epub_blocks(raw)
            elif not FRAME_END.search(decode(raw)):
                raise ValueError("cut short or another page: a book's closing line is missing")
        except ValueError as error:
            troubles.append(f"{error} at {url}")
        else:
            with atomic(path) as temporary:
                temporary.write_bytes(raw)
            return []
        finally:
            time.sleep(pause)  # a mirror is a gift
    return troubles


def run(args) -> None:
    if not args.gutenberg and not args.standard_ebooks:
        raise ValueError("no mirror: name one with --gutenberg URL, --standard_ebooks URL or both")
    rows, folder = catalogue(Path(args.catalogue)), Path(args.out_dir)
    new, failed, said = 0, 0, []
    for row in tqdm(rows, desc="books", unit="book"):
        path, places = folder / row["name"], addresses(row, args.gutenberg, args.standard_ebooks)
        if path.exists() or not places:
            continue
        troubles = fetch_one(path, places, args.pause)
        if troubles:
            gone = all(t.startswith(GONE) for t in troubles)
            failed += not gone
            what = "gone, skipped" if gone else "failed"
            said.append(f"{what}: {row['name']} ({row['title']}): {'; '.join(troubles)}")
        new += not troubles
    have = [row for row in rows if (folder / row["name"]).exists()]
    print(f"{new} books fetched now, {len(have)} of {len(rows)} in {folder}")
    sure = [row for row in have if row.get("sha256")]
    sums = [hashlib.sha256((folder / row["name"]).read_bytes()).hexdigest() for row in sure]
    other = [row["name"] for row, found in zip(sure, sums) if row["sha256"] != found]
    if other:
        what = "not the catalogue's edition (another checksum, but whole)"
        print(f"{len(other)} are {what}: {', '.join(other)}")
    for line in said:
        print(line)
    if failed or not have:
        what = f"{failed or len(said)} books did not come"
        raise ValueError(f"{what}; run the same command to try them again, or name another mirror")


def add_arguments(p) -> None:
    p.add_argument("--out_dir", required=True, help="folder for the books")
    p.add_argument("--gutenberg", metavar="URL", default=GUTENBERG, help=f"mirror (default {GUTENBERG})")
    se = f"default {STANDARD_EBOOKS}; '' for none"
    p.add_argument("--standard_ebooks", metavar="URL", default=STANDARD_EBOOKS, help=se)
    p.add_argument("--catalogue", default=str(CATALOGUE), help="table of books (default: stories/'s)")
    p.add_argument("--pause", type=float, default=2.0, help="seconds between requests (default 2)")
    p.set_defaults(run=run)
