"""Where 3,000 stories of 86 books begin and end, and how many of them the splitter gets right.

`boundaries.tsv` names, book by book, title, first six and last six words of each story, as a language model
read them in
the books without seeing what the splitter does. Two fair readings stand side by side, ` / ` between them;
`either` marks
sections (sketches, verse, plays) that may be taken or left. The books are not in this repository:

    BOOKS=books .venv/bin/python -m pytest -s tests/test_boundaries.py
"""

import os
import re
import unicodedata
from pathlib import Path

import pytest

from scripts.anthologies.choosing import book_id
from scripts.anthologies.stories import read_anthology

ROOT = Path(__file__).resolve().parent.parent
BOOKS = Path(os.environ.get("BOOKS", ROOT.parent / "shared" / "anthologies"))
NOISE = re.compile(
    r"\*\*\*\s*(START|END) OF|Project Gutenberg|\[(Illustration|Footnote)|transcriber\W?s\W? note", re.I
)


def plain(words: list[str]) -> str:
    folded = unicodedata.normalize("NFKD", re.sub(r"[\[(]\d{1,3}[\])]", " ", " ".join(words)).casefold())
    return "".join(c for c in folded if c.isalnum())


def boundaries() -> dict[str, list[list[str]]]:
    """{book: [[kind, title, first words, last words], ...]}"""
    name, books = "", {}
    for line in (ROOT / "tests/boundaries.tsv").read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            books[name].append(line.split("\t"))
        else:
            books[name := line] = []
    return books


def score(book: str, rows: list[list[str]]) -> tuple[int, int, int, int]:
    """Stories there are, sections found that count, sections exact at both ends, sections with noise."""
    found = [
        (plain(s.text.split()[:40]), plain(s.text.split()[-40:]), s.text)
        for s in read_anthology(BOOKS / book).stories
    ]
    noise, exact, left = sum(bool(NOISE.search(text)) for *_, text in found), 0, found[:]
    for kind, _, first, last in sorted(rows, reverse=True):  # "story" before "either"
        hit = next(
            (
                f
                for f in left
                if any(plain([x]) in f[0] for x in first.split(" / "))
                and any(plain([x]) in f[1] for x in last.split(" / "))
            ),
            None,
        )
        if hit:
            left.remove(hit)
            exact += kind == "story"
            if kind == "either":
                found.remove(hit)
    return sum(kind == "story" for kind, *_ in rows), len(found), exact, noise


def f1(there: int, found: int, exact: int) -> float:
    return 2 * exact / (there + found)


@pytest.mark.skipif(
    not BOOKS.is_dir(), reason="no books: set BOOKS to the folder that `anthologies fetch` filled"
)
def test_the_splitter_finds_where_stories_begin_and_end():
    files = {book_id(p.name): p.name for p in BOOKS.iterdir()}
    books = {files[book_id(book)]: rows for book, rows in boundaries().items() if book_id(book) in files}
    if not books:
        pytest.skip(f"none of the books is in {BOOKS}")
    scores = {book: score(book, rows) for book, rows in books.items()}
    for book, (there, found, exact, noise) in scores.items():
        print(
            f"{book[:60]:60s} {there:5d} stories {found:5d} found {exact:5d} exact "
            f"{noise:3d} noise  F1 {f1(there, found, exact):.3f}"
        )
    there, found, exact, noise = map(sum, zip(*scores.values()))
    print(
        f"{len(books)} books: {there} stories, {found} found, {exact} exact, "
        f"F1 {f1(there, found, exact):.4f}, {noise} with noise"
    )
    assert f1(there, found, exact) >= 0.98 and noise <= 0.01 * found
    assert all(f1(*s[:3]) >= 0.80 for s in scores.values())
