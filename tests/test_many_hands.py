"""Collections by many hands: two books whose boundaries were drawn by reading, and titles that look like
bylines."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from synthetic_books import collection
from test_anthologies import gutenberg, prose, put, split_anthology
from test_boundaries import plain

from lib.files import read_lines
from scripts.anthologies.__main__ import main
from scripts.anthologies.stories import _read

ROOT = Path(__file__).resolve().parent.parent
BOOKS = Path(os.environ.get("MANY_HANDS", ROOT.parent / "shared" / "cases" / "books"))

LIKE_BYLINES = [
    "By Nine", "By the Sea", "Anonymous", "From the Diary of a Clerk", "Told by the Fire", "After Gogol",
    "The Author", "Translated",
]  # fmt: skip
BYLINES = [
    "By Nine Fingers Jack", "From the Danish of A. Writer", "Told by an Old Sailor of Whitby",
    "Translated by the Editor",
]  # fmt: skip


def many_hands() -> dict[str, list[list[str]]]:
    """{book: [[title, author, source line, first six words, last six words], ...]}"""
    name, books = "", {}
    for line in (ROOT / "tests/many_hands.tsv").read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            books[name].append(line.split("\t"))
        else:
            books[name := line] = []
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
    """F1 of stories whose title, author, first and last words are right; the forms of what fails are
    printed."""
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


# ------------------------------------------------------------------ a reader settles a book


def odd_book() -> str:
    """Titles that look like any line of the text: no form tells where its stories begin."""
    titles = ["it was raining", "then what.", "Number 7, Mill Lane"]
    parts = [f"{title}\n\n{prose(n)}" for n, title in enumerate(titles)]
    return gutenberg("\n\n".join([*parts, "letters to us", prose(8)]))


def test_a_contents_file_settles_a_book_that_form_cannot(tmp_path, capsys):
    book = put(tmp_path, "odd.txt", odd_book())
    with pytest.raises(ValueError, match="no stories that can be told apart"):
        split_anthology(book)
    listed = "it was raining\tAnn Author\nThen what\nNumber 7, Mill Lane   John Writer\n- Letters to us\n"
    settled, out = put(tmp_path, "odd.contents", listed), tmp_path / "out.jsonl"
    main(["split", str(book), "--contents", str(settled), "--out", str(out)])
    rows = [row for _, row in read_lines(out)]
    assert [row["author"] for row in rows] == ["Ann Author", "Ann Author", "John Writer"]
    assert [row["story"].split()[0] for row in rows] == ["Opening0x0", "Opening1x0", "Opening2x0"]
    assert rows[-1]["story"].split()[-1] == "closing2x5."
    main(f"build {book} {put(tmp_path, 'b.txt', odd_book())} --contents {settled} --out {out}".split())
    assert "3 examples from 1 books" in capsys.readouterr().out, "a file settles the book whose name it has"
    for text, says in (
        ("A title that is not there\n", "'A title that is not there'"),
        ("- it was raining\n", "no story"),
    ):
        with pytest.raises(ValueError, match=says):
            split_anthology(book, text)


def test_explain_says_what_was_taken_for_what_and_why_a_section_was_left_out(tmp_path, capsys):
    body = sections(["The Lamp in the Mill", "A Basket of Eels", "Salt and Candle"], "By Ann Author")
    serial = "\n\n\n\n\nThe Fog\n\nBy John Writer\n\n" + prose(5) + "\n\n(To be continued)"
    book = put(tmp_path, "mine.txt", gutenberg("PREFACE\n\n\n" + prose(9) + "\n\n\n\n\n" + body + serial))
    main(["split", str(book), "--explain"])
    said = capsys.readouterr().out
    assert "3 stories, told apart by headings alone" in said and "CONTENTS (0 lines)" in said
    assert "A Basket of Eels | Ann Author | - | begins a section" in said
    assert "Opening1x0" in said and "closing1x5." in said
    assert "PREFACE | front or back matter" in said and "The Fog | part of a serial" in said


# ------------------------------------------------------------------ hostile books


@pytest.mark.parametrize(
    "subset",
    [
        '<!ENTITY x "the secret words">',
        "<!ENTITY x 'the ]> secret words'><!ELEMENT p (#PCDATA)>",
        '<!-- it\'s the secret words ]> --><!ENTITY x SYSTEM "file:///the/secret/words">',
        '<!ENTITY x "z"><!ENTITY % y "the secret words"> %y;',
    ],
)
def test_an_internal_dtd_subset_leaves_nothing_in_a_story(tmp_path, subset):
    body = "".join(f"<h2>Tale {'ABC'[n]} of Mills</h2><p>Once &x; upon. {prose(n)}</p>" for n in range(3))
    for doctype in (
        f"<!DOCTYPE html [{subset}]>",
        f'<!DOCTYPE html PUBLIC "-//W3C//DTD" "x.dtd" [\n{subset}\n] >',
    ):
        stories = split_anthology(put(tmp_path, "t.htm", f"{doctype}\n<html><body>{body}</body></html>"))
        assert [s.text.split()[:2] for s in stories] == [["Once", "upon."]] * 3
        assert not any(word in s.text for s in stories for word in ("secret", "]", "ENTITY", "&x"))


def test_time_grows_with_the_size_of_a_book_of_short_lines():
    draw = random.Random(0)
    words = "river mill lamp eel salt candle fog widow goose basket stone wind".split(" ")

    def seconds(kilobytes: int) -> float:
        lines = [" ".join(draw.choices(words, k=5)).title() for _ in range(kilobytes * 1000 // 33)]
        listed = "CONTENTS\n\n" + "\n".join(lines[:600])
        began = time.process_time()
        with pytest.raises(ValueError, match="no stories"):
            _read((listed + "\n\n\n\n" + "\n\n\n".join(lines)).encode(), "lines.txt")
        return time.process_time() - began

    seconds(100)
    assert seconds(1600) < 8 * seconds(400), "four times the lines, sixteen times the time"
