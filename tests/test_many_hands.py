"""Collections by many hands: two books whose boundaries were drawn by reading, and titles that look like bylines."""

import os
from collections import Counter
from pathlib import Path

import pytest

from scripts.anthologies import split_anthology
from scripts.anthologies.stories import _read
from synthetic_books import collection
from test_anthologies import gutenberg, prose, put
from test_boundaries import plain

ROOT = Path(__file__).resolve().parent.parent
BOOKS = Path(os.environ.get("MANY_HANDS", ROOT.parent / "shared" / "cases" / "books"))

LIKE_BYLINES = [
    "By Nine", "By the Sea", "Anonymous", "From the Diary of a Clerk", "Told by the Fire", "After Gogol",
    "The Author", "Translated",
]  # fmt: skip
BYLINES = [
    "By Nine Fingers Jack", "From the Danish of A. Writer", "Told by an Old Sailor of Whitby", "Translated by the Editor",
]  # fmt: skip


def many_hands() -> dict[str, list[list[str]]]:
    """{book: [[title, author, source line, first six words, last six words], ...]}"""
    books: dict[str, list[list[str]]] = {}
    for line in (ROOT / "tests/many_hands.tsv").read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            books[name].append(line.split("\t"))
        else:
            name = line
            books[name] = []
    return books


@pytest.mark.skipif(not BOOKS.is_dir(), reason="the two collections are not beside this checkout")
@pytest.mark.parametrize("book", many_hands())
def test_every_story_of_a_collection_has_its_title_author_source_and_ends(book):
    wanted = many_hands()[book]
    found = split_anthology(BOOKS / book)
    assert [[s.title, s.author, s.credit] for s in found] == [row[:3] for row in wanted]
    for s, (*_, first, last) in zip(found, wanted):
        assert plain(s.text.split()[: len(first.split())]) == plain([first]), s.title
        assert plain(s.text.split()[-len(last.split()) :]) == plain([last]), s.title


def sections(titles: list[str], above: str = "") -> str:
    return "\n\n\n\n\n".join(f"{t}\n\n{above}\n\n{prose(n)}" for n, t in enumerate(titles))


@pytest.mark.parametrize("first", range(len(LIKE_BYLINES)))
@pytest.mark.parametrize("loud", [False, True])
def test_titles_that_look_like_bylines_begin_stories(tmp_path, first, loud):
    titles = LIKE_BYLINES[first:] + LIKE_BYLINES[:first]
    titles = [t.upper() for t in titles] if loud else titles
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg(sections(titles))))
    assert [s.title for s in stories] == titles
    assert [s.text.split()[0] for s in stories] == [f"Opening{n}x0" for n in range(len(titles))]
    assert [s.text.split()[-1] for s in stories] == [f"closing{n}x5." for n in range(len(titles))]


@pytest.mark.parametrize("title", LIKE_BYLINES)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_title_that_looks_like_a_byline_among_other_titles(tmp_path, title, place):
    titles = ["The Lamp in the Mill", "A Basket of Eels", "Salt and Candle", "The Man Who Sold Fog"]
    titles.insert(place, title)
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg(sections(titles))))
    assert [s.title for s in stories] == titles
    assert [s.text.split()[0] for s in stories] == [f"Opening{n}x0" for n in range(5)]


@pytest.mark.parametrize("byline", BYLINES)
@pytest.mark.parametrize("loud", [False, True])
def test_bylines_below_titles_are_no_part_of_the_story(tmp_path, byline, loud):
    titles = ["The Lamp in the Mill", "By the Sea", "Anonymous", "The Man Who Sold Fog"]
    byline = byline.upper() if loud else byline
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg(sections(titles, byline))))
    assert [s.title for s in stories] == titles
    assert [s.text.split()[0] for s in stories] == [f"Opening{n}x0" for n in range(4)]
    assert byline not in stories[0].text


def test_two_hundred_collections_of_all_forms_combined():
    """F1 of stories whose title, author, first and last words are right; the forms of what fails are printed."""
    there = found = right = 0
    failures: dict[str, Counter] = {}
    for seed in range(200):
        book = collection(seed)
        raw = book.raw.encode() if isinstance(book.raw, str) else book.raw
        mine = {
            (s.title.casefold(), s.author.casefold(), s.text.split()[0], s.text.split()[-1])
            for s in _read(raw, book.name).stories
        }
        theirs = {(title.casefold(), author.casefold(), *ends) for title, author, *ends in book.stories}
        there, found, right = there + len(theirs), found + len(mine), right + len(mine & theirs)
        for name, form in book.forms.items():
            failures.setdefault(name, Counter())[form] += len(mine ^ theirs)
    for name, counts in failures.items():
        print(f"{name:10s}", ", ".join(f"{form}: {n}" for form, n in counts.most_common()))
    f1 = 2 * right / (there + found)
    print(f"{there} stories, {found} found, {right} right, F1 {f1:.4f}")
    assert f1 >= 0.97
