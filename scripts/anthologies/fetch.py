"""Books of the catalogue, from a mirror the user names: one at a time, with pauses, resumed, checked.

`stories/catalogue.tsv` lists 100 anthologies: Project Gutenberg numbers and Standard Ebooks names. Nothing is fetched from
anywhere but the mirror given; Project Gutenberg asks that bulk downloads use one (gutenberg.org/policy/robot_access.html).

    python -m scripts.anthologies fetch --out_dir books --gutenberg https://a.mirror/gutenberg \\
        --standard_ebooks https://standardebooks.org

Left out: finding a mirror, and newer editions of a book than the one the mirror has.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from pathlib import Path

import requests
from tqdm import tqdm

from scripts.anthologies.books import MAX_BYTES, decode

CATALOGUE = Path(__file__).resolve().parents[2] / "stories" / "catalogue.tsv"
AGENT = "anthologies/1 (polite: one request at a time)"


def catalogue(path: Path = CATALOGUE) -> list[dict]:
    """Rows with name, title, author; raises FileNotFoundError or ValueError naming the line."""
    if not path.is_file():
        raise FileNotFoundError(f"no catalogue {path}; restore it from the repository")
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"))) for line in lines if line.strip()]
    for n, row in enumerate(rows, 2):
        if (
            not re.fullmatch(r"pg\d+\.(txt|htm)|se(_[a-z0-9-]+){2,4}\.epub", row.get("name", ""))
            or "title" not in row
        ):
            raise ValueError(
                f"{path} line {n}: name must be pgNUMBER.txt, pgNUMBER.htm or se_AUTHOR_TITLE.epub, and title must follow"
            )
    return rows


def addresses(name: str, gutenberg: str | None, standard_ebooks: str | None) -> list[str]:
    """Where a mirror keeps the book: its places are tried in this order."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("se_"):
        parts = stem.removeprefix("se_").split("_")
        return (
            [
                f"{standard_ebooks.rstrip('/')}/ebooks/{'/'.join(parts)}/downloads/{'_'.join(parts)}.epub?source=download"
            ]
            if standard_ebooks
            else []
        )
    if not gutenberg:
        return []
    number, base = stem.removeprefix("pg"), gutenberg.rstrip("/")
    folder = "/".join(number[:-1] or "0") + f"/{number}/"
    places = (
        [f"{folder}{number}-h/{number}-h.htm", f"cache/epub/{number}/pg{number}-images.html"]
        if kind == "htm"
        else [
            f"{folder}{number}-0.txt",
            f"{folder}{number}-8.txt",
            f"{folder}{number}.txt",
            f"cache/epub/{number}/pg{number}.txt",
        ]
    )
    return [f"{base}/{place}" for place in places]


def check(path: Path, row: dict) -> str | None:
    """What is wrong with a downloaded book, or None."""
    if path.suffix == ".epub":
        try:
            with zipfile.ZipFile(path) as book:
                if sum(i.file_size for i in book.infolist()) > 4 * MAX_BYTES:
                    return "unpacks to far more than a book"
                return (
                    "a damaged epub"
                    if book.testzip()
                    else None
                    if "META-INF/container.xml" in book.namelist()
                    else "no epub"
                )
        except zipfile.BadZipFile:
            return "no epub"
    try:
        text = decode(path.read_bytes())
    except ValueError:
        return "no text"
    number = re.search(r"\d+", path.stem)[0]
    if not re.search(rf"#{number}\b", text) and not re.search(rf"\b{number}\b", text[:3000] + text[-3000:]):
        return f"not Project Gutenberg's number {number}"
    if not re.search(r"END OF (THE|THIS) PROJECT GUTENBERG|End of (the )?Project Gutenberg", text, re.I):
        return "cut short: the closing line is missing"
    return None


def download(url: str, part: Path, attempts: int, pause: float) -> str | None:
    """Bytes of `url` into `part`, going on where an earlier try stopped. A word on what failed, or None."""
    trouble = "nothing came"
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2**attempt)
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"} | (
            {"Range": f"bytes={have}-"} if have else {}
        )
        try:
            with requests.get(url, headers=headers, stream=True, timeout=60) as reply:
                if reply.status_code == 416:  # what we have is longer than the file: begin anew
                    part.unlink(missing_ok=True)
                    trouble = "status 416"
                    continue
                if reply.status_code not in (200, 206):
                    trouble = f"status {reply.status_code}"
                    if reply.status_code in (429, 500, 502, 503, 504):
                        after = reply.headers.get("Retry-After", "").strip()
                        time.sleep(min(60, int(after)) if after.isdigit() else 0)
                        continue
                    return trouble
                size = have if reply.status_code == 206 else 0
                expected = (
                    size + int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
                )
                with open(part, "ab" if reply.status_code == 206 else "wb") as f:
                    for chunk in reply.iter_content(
                        1 << 10
                    ):  # small: a broken line loses the chunk it broke in
                        size += len(chunk)
                        if size > MAX_BYTES:
                            part.unlink()
                            return "larger than any book"
                        f.write(chunk)
                if expected is None or size == expected:
                    return None
                trouble = f"{size} bytes of {expected}"
        except requests.RequestException as error:
            trouble = type(error).__name__
    return trouble


def run(args) -> None:
    if not args.gutenberg and not args.standard_ebooks:
        raise ValueError("no mirror: name one with --gutenberg URL, --standard_ebooks URL or both")
    rows, folder, failed, new = catalogue(Path(args.catalogue)), Path(args.out_dir), [], 0
    folder.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, desc="books", unit="book"):
        path = folder / row["name"]
        places = addresses(row["name"], args.gutenberg, args.standard_ebooks)
        if path.exists() and check(path, row) is None or not places:
            continue
        troubles = []
        for n, url in enumerate(places):  # a part belongs to its address: two mirrored files may differ
            part = folder / f"{row['name']}.{n}.part"
            trouble = download(url, part, args.attempts, args.pause) or check_part(part, path, row)
            time.sleep(args.pause)  # a mirror is somebody's gift
            if trouble is None:
                new += 1
                break
            troubles.append(f"{trouble} at {url}")
        else:
            failed.append(f"{row['name']} ({row['title']}): {'; '.join(troubles)}")
    have = sum((folder / row["name"]).exists() for row in rows)
    print(f"{new} books fetched now, {have} of {len(rows)} in {folder}")
    for line in failed:
        print("failed:", line)
    if failed:
        raise ValueError(
            f"{len(failed)} books did not come; run the same command to try them again, or name another mirror"
        )


def check_part(part: Path, path: Path, row: dict) -> str | None:
    """Checks a finished download under its final suffix, then gives it its name."""
    probe = part.with_name("checking_" + path.name)
    os.replace(part, probe)
    trouble = check(probe, row)
    if trouble:
        probe.unlink()
    else:
        os.replace(probe, path)
    return trouble


def add_arguments(p) -> None:
    p.add_argument("--out_dir", required=True, help="folder for the books")
    p.add_argument("--gutenberg", metavar="URL", help="a Project Gutenberg mirror's base address")
    p.add_argument("--standard_ebooks", metavar="URL", help="Standard Ebooks or a mirror of it")
    p.add_argument(
        "--catalogue", default=str(CATALOGUE), help="table of names and titles (default: the one in stories/)"
    )
    p.add_argument("--pause", type=float, default=2.0, help="seconds between requests (default 2)")
    p.add_argument("--attempts", type=int, default=4, help="tries for each address (default 4)")
    p.set_defaults(run=run)
