"""Books split, stories chosen, requests written, books fetched: against books made here and servers on
loopback."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from argparse import Namespace
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import Example, read_examples, words, write_examples
from lib.answers import Fault
from scripts.anthologies import books, choosing, edges, prompts
from scripts.anthologies.__main__ import main
from scripts.anthologies.edges import trim
from scripts.anthologies.stories import Story, read_anthology

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
PROGRAM = [sys.executable, "-m", "scripts.anthologies"]
TITLES = [
    "The Lamp in the Mill",
    "A Basket of Eels",
    "The Widow's Third Goose",
    "Salt and Candle",
    "The Man Who Sold Fog",
]


def prose(seed: int, paragraphs: int = 6) -> str:
    """Wrapped paragraphs that differ from story to story; the first and last words of each are known."""
    vocabulary = (
        "the river and a miller of stone who had walked to the old town where his daughter kept in her house "
        "that lantern which it was said to burn for him at night but they were not afraid"
    ).split()
    out = []
    for p in range(paragraphs):
        body = [vocabulary[(seed * 7 + p * 13 + i * (seed + 3)) % len(vocabulary)] for i in range(60)]
        text = f"Opening{seed}x{p} " + " ".join(body) + f" closing{seed}x{p}."
        out.append(textwrap.fill(text, 70))
    return "\n\n".join(out)


def gutenberg(body: str, number: int = 4242) -> str:
    return (
        f"The Project Gutenberg EBook of Tales, by Ann Author\n\nTitle: Tales\n\nAuthor: Ann "
        f"Author\n\nRelease Date: 2001 [EBook #{number}]\n\n"
        f"*** START OF THIS PROJECT GUTENBERG EBOOK TALES ***\n\nProduced by Some "
        f"Volunteer\n\n\n\n\n{body}\n\n\n\n\n"
        "End of the Project Gutenberg EBook of Tales, by Ann Author\n\n*** END OF THIS PROJECT GUTENBERG "
        "EBOOK TALES ***\n\nlicence\n"
    )


def contents_page(titles) -> str:
    return (
        "CONTENTS\n\n\n"
        + "\n\n".join(f"{t.upper()} {10 * n + 1}" for n, t in enumerate(titles))
        + "\n\n\n\n\n"
    )


def tale(n: int, title: str) -> str:
    return f"{title.upper()}\n\n\n{prose(n)}"


def plain_book() -> str:
    return gutenberg(
        "TALES\n\n\n\n\n"
        + contents_page(TITLES)
        + "PREFACE\n\n\n"
        + prose(90)
        + "\n\n\n\n\n"
        + "\n\n\n\n\n".join(tale(n, t) for n, t in enumerate(TITLES))
    )


def split_anthology(path: Path, listed: str = "") -> list[Story]:
    return read_anthology(path, listed).stories


def ends(stories) -> list[tuple[str, str]]:
    return [(s.text.split()[0], s.text.split()[-1]) for s in stories]


EXPECTED = [(f"Opening{n}x0", f"closing{n}x5.") for n in range(5)]


def put(tmp_path, name, content) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------ splitting


def test_plain_text_with_contents_and_preface(tmp_path):
    stories = split_anthology(put(tmp_path, "tales.txt", plain_book()))
    assert ends(stories) == EXPECTED
    assert [prompts._title(s.title) for s in stories] == [
        "The Lamp in the Mill",
        "A Basket of Eels",
        "The Widow's Third Goose",
        "Salt and Candle",
        "The Man Who Sold Fog",
    ]
    assert {s.author for s in stories} == {"Ann Author"} and {s.source for s in stories} == {"tales.txt"}
    assert "\n" not in stories[0].text.split("\n\n")[0], "wrapped lines are joined"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_encodings_are_known_by_their_bytes(tmp_path, encoding):
    text = plain_book().replace(
        "Opening0x0", "Opening0x0 caf\u00e9" + ("" if encoding == "latin-1" else " \u201cquoted\u201d")
    )
    story = split_anthology(put(tmp_path, "tales.txt", text.replace("\n", "\r\n").encode(encoding)))[0]
    assert story.text.startswith(
        "Opening0x0 caf\u00e9 " + ("" if encoding == "latin-1" else "\u201cquoted\u201d ")
    )


def test_lines_of_different_encodings_in_one_file():
    assert (
        books.decode(
            "d\u00e9j\u00e0 \u201cvu\u201d\n".encode() + "d\u00e9j\u00e0 \u201cvu\u201d\n".encode("cp1252")
        )
        == "d\u00e9j\u00e0 \u201cvu\u201d\nd\u00e9j\u00e0 \u201cvu\u201d\n"
    )


def test_parts_stay_in_their_story_and_a_title_the_contents_forgot_begins_one(tmp_path):
    parts = "I\n\n" + prose(0, 2) + "\n\n\nII\n\n" + prose(10, 2)
    text = gutenberg(
        contents_page([TITLES[0], *TITLES[2:]])
        + f"{TITLES[0].upper()}\n\n\n{parts}\n\n\n\n\n"
        + "\n\n\n\n\n".join(tale(n, t) for n, t in enumerate(TITLES) if n)
    )
    stories = split_anthology(put(tmp_path, "t.txt", text))
    assert [words(s.text) > 100 for s in stories] == [True] * 5
    assert ends(stories)[0] == ("Opening0x0", "closing10x1.") and "\n\n* * *\n\n" in stories[0].text


def test_numbers_above_titles_authors_below_and_notes_after(tmp_path):
    body = "\n\n\n\n\n".join(
        f"TALE {n + 1}\n\n{t.upper()}.\n\n\nBY JOHN WRITER{n}\n\n\n{prose(n)}\n\n\nNotes.\n\n\nSee also "
        f"Opening99 of Benfey."
        for n, t in enumerate(TITLES)
    )
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg(contents_page(TITLES) + body)))
    assert ends(stories) == EXPECTED and [s.author for s in stories] == [f"JOHN WRITER{n}" for n in range(5)]


def test_notes_that_repeat_titles_glossary_and_advertisements_are_left_out(tmp_path):
    notes = "NOTES AND REFERENCES\n\n\n" + "\n\n\n".join(
        f"{t.upper()}.\n\n{prose(50 + n, 2)}" for n, t in enumerate(TITLES)
    )
    text = plain_book().replace(
        "\n\n\n\n\nEnd of the Project",
        f"\n\n\n\n\n{notes}\n\n\n\n\nGLOSSARY\n\n\n{prose(80)}\n\n\n\n\n"
        f"BOOKS BY ANN AUTHOR\n\n\nCloth, 12mo, $1.50 {prose(81)}\n\n\n\n\nEnd of the Project",
    )
    assert ends(split_anthology(put(tmp_path, "t.txt", text))) == EXPECTED


def test_without_contents_the_headings_decide(tmp_path):
    text = gutenberg("\n\n\n\n\n".join(tale(n, t) for n, t in enumerate(TITLES)))
    assert ends(split_anthology(put(tmp_path, "t.txt", text))) == EXPECTED


def test_marks_notes_and_pictures_are_cleaned():
    text = (
        "[Illustration: A mill]\n\nHe _never_ came[3] back,[A] he said.(2) [Footnote: so\nit is "
        "[really]\ntold] \u2014 so.\n\n"
        "[3] A note about him.\n\n    Row, brothers,\n    Row to the sea\n    For the night\n\n* * * * "
        "*\n\nThe end of\nit all was here.\n\nTHE END"
    )
    cleaned = "\n\n".join(trim(edges.paragraphs(books.text_blocks(text), wrapped=True)))
    for noise in ("Illustration", "Footnote", "_", "[3]", "[A]", "(2)", "A note", "THE END"):
        assert noise not in cleaned
    assert cleaned.split("\n\n")[-1] == "The end of it all was here." and cleaned.startswith(
        "He never came back, he said."
    )
    assert "\n\n* * *\n\n" in cleaned and "Row, brothers,\nRow to the sea\nFor the night" in cleaned


def html_page() -> str:
    body = "".join(
        f'<p><span class="pagenum">[{n}]</span></p><h2><a id="s{n}"></a>{t}</h2>'
        + "".join(f"<p>{p}<a href='#fn1'>[1]</a></p>" for p in prose(n).split("\n\n"))
        + "<div class='footnotes'><p>[1] a note</p></div>"
        for n, t in enumerate(TITLES)
    )
    toc = (
        "<h2>CONTENTS</h2><table>"
        + "".join(f'<tr><td><a href="#s{n}">{t}</a></td><td>{n}</td></tr>' for n, t in enumerate(TITLES))
        + "</table>"
    )
    return (
        f"<html><head><title>Tales</title></head><body><pre>*** START OF THIS PROJECT GUTENBERG EBOOK "
        f"TALES ***</pre><h1>TALES</h1>{toc}"
        f"<h2>PREFACE</h2><p>{prose(90)}</p>{body}<pre>*** END OF THIS PROJECT GUTENBERG EBOOK TALES "
        f"***</pre></body></html>"
    )


def test_half_titles_belong_to_the_story_they_announce(tmp_path):
    text = gutenberg(
        contents_page(TITLES)
        + "\n\n\n\n\n".join(
            f"{t.upper()}\n\n\n\n\n{t}\n\nBY JOHN WRITER\n\nFrom The Sun. By permission of the "
            f"editor.\n\n\n{prose(n)}"
            for n, t in enumerate(TITLES)
        )
    )
    stories = split_anthology(put(tmp_path, "t.txt", text))
    assert [s[1] for s in ends(stories)] == [s[1] for s in EXPECTED] and all(
        t.lower() not in s.text.lower() for t in TITLES for s in stories
    )


def test_pictures_of_first_letters_are_read_and_the_next_part_is_no_end(tmp_path):
    caps = "".join(
        f'<h2>{title}</h2><div class="figleft"><img src="c.jpg" alt="O" title="O"/></div>'
        f"<p>nce {title} began. {paragraphs(3)[3:]}" + divider
        for title, divider in (
            ("The Mill", ""),
            (
                "The Weir",
                "<hr/><p>2. Two Tales of Water</p><ul><li>People: a Miller</li><li>An Eel</li></ul>",
            ),
            ("The Ford", "<ul><li>a list of the story</li></ul><h4>\u201cGive it back!\u201d</h4>"),
        )
    )
    stories = split_anthology(put(tmp_path, "t.htm", f"<html><body>{caps}</body></html>"))
    assert [s.title for s in stories] == ["The Mill", "The Weir", "The Ford"]
    assert all(s.text.startswith(f"Once {s.title} began.") for s in stories)
    assert not any("Two Tales" in s.text or "Eel" in s.text for s in stories)
    assert "a list of" in stories[2].text and stories[2].text.endswith("back!\u201d")


def test_marks_after_a_space_go_only_where_the_book_has_such_notes(tmp_path):
    with_notes = plain_book().replace(
        "End of the Project", "NOTES\n\n\n(1) A note on this word.\n\n\nEnd of the Project", 1
    )
    first = prose(1).split(".")[0].split("\n")[0]
    for book, kept in ((with_notes, False), (plain_book(), True)):
        marked = book.replace(first, first + " (1)")
        assert marked != book
        assert any("(1)" in s.text for s in split_anthology(put(tmp_path, "t.txt", marked))) == kept


def test_a_subtitle_in_capitals_and_the_printer_s_name_are_no_story(tmp_path):
    book = plain_book().replace("Opening1x0", "READ AT A MEETING OF THE MILLERS OF THE TOWN.\n\nOpening1x0")
    book = book.replace(
        "End of the Project",
        "*****\n\n\nRichard Roe & Sons, Limited,\nLondon.\n\n\n*****\n\n\n\n\nANOTHER AUTHOR'S WORKS\n\n\n"
        + "A novel. Price six shillings. " * 20
        + "\n\n\nEnd of the Project",
        1,
    )
    assert ends(split_anthology(put(tmp_path, "t.txt", book))) == EXPECTED


def test_advertisements_after_the_last_story_go_with_their_headings(tmp_path):
    ads = (
        "<h3>ON THE WATERS.</h3><h4>By Jane Roe,</h4><p>Author of Reeds</p><h5>12mo. Cloth. $1.50.</h5>"
        + paragraphs(9)
    )
    text = html_page()
    at = text.rindex("closing4x5.") + len("closing4x5.")
    at = text.index("</p>", at) + 4
    assert ends(split_anthology(put(tmp_path, "t.htm", text[:at] + ads + text[at:]))) == EXPECTED


def test_html(tmp_path):
    stories = split_anthology(put(tmp_path, "t.htm", html_page()))
    assert ends(stories) == EXPECTED and [s.title for s in stories] == TITLES
    assert not any("[1]" in s.text or "a note" in s.text for s in stories)


def epub(pages: dict[str, str], spine=None, opf_extra: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="epub/content.opf"/></rootfiles></container>',
        )
        names = spine or list(pages)
        items = "".join(
            f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>'
            for n, name in enumerate(names)
        )
        refs = "".join(f'<itemref idref="i{n}"/>' for n in range(len(names)))
        z.writestr(
            "epub/content.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            "<metadata><dc:title>Tales</dc:title><dc:creator>Ann Author</dc:creator></metadata>"
            f"<manifest>{items}{opf_extra}</manifest>"
            f"<spine>{refs}</spine></package>",
        )
        for name, page in pages.items():
            z.writestr("epub/" + name, page)
    return out.getvalue()


def page(body: str) -> str:
    head = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml">'
    return f"{head}<body>{body}</body></html>"


def paragraphs(n: int) -> str:
    return "".join(f"<p>{p}</p>" for p in prose(n).split("\n\n"))


def test_epub_whose_markup_names_the_stories_several_in_one_file(tmp_path):
    def article(n):
        return (
            f'<article epub:type="se:short-story"><h3 epub:type="title">{TITLES[n]}</h3>'
            f'<blockquote epub:type="epigraph"><p>an epigraph</p></blockquote>{paragraphs(n)}</article>'
        )

    pages = {
        "preface.xhtml": page(f'<section epub:type="preface"><h2>Preface</h2>{paragraphs(70)}</section>'),
        "one.xhtml": page(article(0)),
        "group.xhtml": page("<section><h2>Fables</h2>" + article(1) + article(2) + "</section>"),
        "play.xhtml": page(
            '<article epub:type="se:short-story z3998:drama"><h2 epub:type="title">A Play</h2>'
            f"{paragraphs(71)}</article>"
        ),
    }
    stories = split_anthology(put(tmp_path, "t.epub", epub(pages)))
    assert (
        ends(stories) == EXPECTED[:3]
        and [s.title for s in stories] == TITLES[:3]
        and stories[0].author == "Ann Author"
    )


def test_epub_without_such_markup_uses_its_navigation(tmp_path):
    pages = {f"s{n}.xhtml": page(f"<h2>{t}</h2>{paragraphs(n)}") for n, t in enumerate(TITLES)}
    nav = page(
        "<nav><ol>"
        + "".join(f'<li><a href="s{n}.xhtml">{t}</a></li>' for n, t in enumerate(TITLES))
        + "</ol></nav>"
    )
    raw = epub(
        {**pages, "nav.xhtml": nav},
        spine=list(pages),
        opf_extra='<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>',
    )
    assert ends(split_anthology(put(tmp_path, "t.epub", raw))) == EXPECTED


@pytest.mark.skipif(not (SHARED / "truth").is_dir(), reason="the known books are not beside this checkout")
def test_known_books_meet_the_bars(tmp_path):
    some = [
        p
        for p in sorted((SHARED / "anthologies").iterdir())
        if any(k in p.name for k in ("pg1210", "pg2814", "pg3079", "pg8299", "m-r-james"))
    ]
    main(["split", *map(str, some), "--out", str(tmp_path / "split.jsonl")])
    table = subprocess.run(
        [
            sys.executable,
            SHARED / "truth/score_split.py",
            tmp_path / "split.jsonl",
            SHARED / "truth",
            "--present",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    scores = {
        line.split()[0]: float(line.split()[-2])
        for line in table[1:]
        if line.strip() and not line.startswith("(")
    }
    assert scores["ALL"] >= 0.92 and min(scores.values()) >= 0.80, table
    assert float(next(line for line in table if line.startswith("ALL")).split()[-1]) <= 0.01


# ------------------------------------------------------------------ bad input


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        with zipfile.ZipFile(io.BytesIO(epub({"a.xhtml": ""}))) as source:
            for name in ("META-INF/container.xml", "epub/content.opf"):
                z.writestr(name, source.read(name))
        z.writestr("epub/a.xhtml", b"<p>" + b"a " * (books.MAX_BYTES // 2 + 10))
    return out.getvalue()


def zipped(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
    return out.getvalue()


BAD = {
    "empty": (b"", "is empty"),
    "binary": (bytes(range(256)) * 40, "is binary"),
    "no_epub": (zipped({"a.txt": "hello"}), "no epub"),
    "torn": (epub({"a.xhtml": page("x")})[:300], "a damaged one"),
    "missing": (epub({}, spine=["text/none.xhtml"]), "no item named"),
    "outside": (epub({}, spine=["../../../etc/passwd"]), "no item named"),
    "no_stories": (b"word " * 5000, "no stories"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_book_is_named_with_its_reason(tmp_path, name):
    raw, says = BAD[name]
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        split_anthology(put(tmp_path, name, raw))


def test_a_zip_bomb_and_a_huge_text_are_refused_by_size(tmp_path):
    with pytest.raises(ValueError, match="unpacks to more"):
        split_anthology(put(tmp_path, "bomb.epub", bomb()))
    with open(tmp_path / "huge.txt", "wb") as f:
        f.truncate(200 << 20)
    with pytest.raises(ValueError, match="larger than"):
        split_anthology(tmp_path / "huge.txt")


def test_entities_are_not_expanded(tmp_path):
    secret = put(tmp_path, "secret", "the secret words")
    xml = (
        f'<?xml version="1.0"?><!DOCTYPE c [<!ENTITY x SYSTEM "file://{secret}">]><container><rootfiles>'
        '<rootfile full-path="&x;"/></rootfiles></container>'
    )
    with pytest.raises(ValueError) as error:
        split_anthology(put(tmp_path, "x.epub", zipped({"META-INF/container.xml": xml})))
    assert "secret words" not in str(error.value)


def test_bad_books_leave_the_good_ones_and_a_failed_build_leaves_no_file(tmp_path, capsys):
    good, bad = put(tmp_path, "good.txt", plain_book()), put(tmp_path, "bad.txt", b"")
    main(["build", str(bad), str(good), str(tmp_path / "absent.txt"), "--out", str(tmp_path / "out.jsonl")])
    said = capsys.readouterr().out
    assert (
        "5 examples from 1 books" in said
        and "bad.txt: is empty" in said
        and "absent.txt: no such file" in said
    )
    for argv in (
        ["build", str(bad), "--out", str(tmp_path / "none.jsonl")],
        [
            "build",
            str(good),
            "--out",
            str(tmp_path / "none.jsonl"),
            "--min_words",
            "9000",
            "--max_words",
            "9999",
        ],
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(p.name for p in tmp_path.iterdir() if "none" in p.name or p.suffix == ".part") == []


# ------------------------------------------------------------------ choosing


def story(title: str, text: str, source: str) -> Story:
    return Story(title, "Ann Author", text, source)


def settings(**changed) -> Namespace:
    usual = {"min_words": 20, "max_words": 4000, "per_anthology": 25, "limit": 1400, "exclude_flagged": False}
    return Namespace(**{**usual, "seed": 0, "test_out": None, "test_share": 0.1, **changed})


def test_shared_runs_agree_with_a_brute_search():
    import random

    rng, common = random.Random(0), [f"w{i}" for i in range(400)]
    texts = [[rng.choice(common) for _ in range(300)] for _ in range(8)]
    texts[3][40:140] = texts[0][100:200]  # 100 words: a whole block must fall inside
    texts[5][0:48] = texts[1][0:48]  # shorter than a block: nobody's business
    found = choosing.shared_runs([" ".join(t) for t in texts])

    def share(a, b, run):
        windows = {tuple(a[i : i + run]) for i in range(len(a) - run + 1)}
        return any(tuple(b[i : i + run]) in windows for i in range(len(b) - run + 1))

    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    assert (
        {p for p in pairs if share(texts[p[0]], texts[p[1]], 99)}
        <= found
        <= {p for p in pairs if share(texts[p[0]], texts[p[1]], 50)}
    )
    assert found == {(0, 3)}
    assert choosing.shared_runs([]) == set() == choosing.shared_runs(["short", "short"])


def test_copies_go_whatever_their_titles_and_the_rest_stays():
    a, b = prose(1), prose(2)
    stories = [
        story("One", a, "x.txt"),
        story("Another Name", "A new first line. " + a, "y.txt"),
        story("Two", b, "y.txt"),
    ]
    train, test, why = choosing.choose(stories, settings())
    assert (
        len(train) == 2
        and test == []
        and why["a copy of a story already in"] == 1
        and {s.title for s in train} >= {"Two"}
    )


def test_two_translations_of_one_tale_are_found_by_their_rare_words():
    common = "the old man went to the house and said that it was late and the night came on "
    tale_a = common * 5 + "porridge spindle thimble wolfhound cauldron bramble steeple lantern anvil " * 3
    tale_b = common * 6 + "steeple anvil wolfhound lantern thimble spindle cauldron porridge bramble " * 3
    others = [common * 5 + " ".join(f"rare{n}x{i} rare{n}x{i}" for i in range(9)) for n in range(6)]
    assert choosing.same_tales([tale_a, tale_b, *others]) == {(0, 1)}


def test_held_out_books_share_no_story_with_training():
    stories = [story(f"Title {n}", prose(n), f"book{n % 10}.txt") for n in range(40)]
    stories += [
        story("The Title 1", prose(77), "book0.txt"),
        story("Else", prose(5), "book8.txt"),
        story("Again", prose(6), "book3.txt"),
    ]
    for seed in range(6):
        train, test, _ = choosing.choose(stories, settings(test_out="t", test_share=0.3, seed=seed))
        assert len({s.source for s in test}) == 3 and not {s.source for s in train} & {s.source for s in test}
        assert not {choosing.title_key(s.title) for s in train} & {choosing.title_key(s.title) for s in test}
        assert not {s.text for s in train} & {s.text for s in test}


def test_books_that_evaluation_asks_about_are_held_out_under_any_name_and_the_rest_by_seed():
    asked = choosing.asked_for()
    assert len(asked) == 10 and {"pg1312", "se_sherwood-anderson_winesburg-ohio"} <= asked
    names = [f"pg{n}.txt" for n in range(9000, 9018)] + ["pg1312.txt", "pg4357_american-fairy-tales.txt"]
    stories = [story(f"Title {n} {i}", prose(4 * n + i), b) for n, b in enumerate(names) for i in range(2)]
    drawn = set()
    for seed in range(4):
        _, test, _ = choosing.choose(stories, settings(test_out="t", test_share=0.2, seed=seed))
        held = {s.source for s in test}
        assert len(held) == 4 and {"pg1312.txt", "pg4357_american-fairy-tales.txt"} <= held
        drawn |= held
    assert len(drawn) > 4
    train, test, _ = choosing.choose(stories[-6:], settings(test_out="t", test_share=0.1))
    assert {s.source for s in test} == {"pg1312.txt", "pg4357_american-fairy-tales.txt"}, (
        "a small share leaves none out"
    )
    renamed = [Story(s.title, s.author, s.text, choosing.book_id(s.source) + "-0.htm") for s in stories]
    for mine, theirs in zip(choosing.choose(stories, settings())[0], choosing.choose(renamed, settings())[0]):
        assert mine.text == theirs.text, "the choice does not hang on what files are called"


def test_few_books_keep_one_back_or_say_why_not(tmp_path, capsys):
    def books(names):
        return [
            Story(f"Title {n} {i}", "A", prose(5 * n + i), name)
            for n, name in enumerate(names)
            for i in range(2)
        ]

    for count in (2, 3, 5):
        train, test, _ = choosing.choose(books([f"b{n}.txt" for n in range(count)]), settings(test_out="t"))
        assert len({s.source for s in test}) == 1 and len({s.source for s in train}) == count - 1
    for names, says in (
        (["one.txt"], "only one.txt has stories"),
        (["pg1312.txt", "pg4357.txt"], "asks about every book"),
    ):
        with pytest.raises(ValueError, match=says):
            choosing.choose(books(names), settings(test_out="t"))
    good, out = put(tmp_path, "good.txt", plain_book()), str(tmp_path / "a.jsonl")
    with pytest.raises(SystemExit) as stop:
        main(["build", str(good), "--out", out, "--test_out", str(tmp_path / "b.jsonl")])
    assert stop.value.code == 2 and "no book can be kept back" in capsys.readouterr().err
    assert not Path(out).exists()


def test_cap_limit_language_flags_and_order(tmp_path):
    stories = [story(f"T{n}", prose(n), "big.txt") for n in range(20)] + [
        story(f"S{n}", prose(30 + n), f"small{n}.txt") for n in range(3)
    ]
    train, _, why = choosing.choose(stories, settings(per_anthology=4, limit=6))
    books_of = Counter(s.source for s in train)
    assert len(train) == 6 and books_of["small0.txt"] == books_of["small1.txt"] == books_of["small2.txt"] == 1
    assert why["more than 4 of its book"] == 16 and why["beyond the limit"] == 1
    again, _, _ = choosing.choose(stories[::-1], settings(per_anthology=4, limit=6))
    assert [s.title for s in again] == [s.title for s in train], "the order of the files changes nothing"
    french = story(
        "F",
        "il \u00e9tait une fois un roi qui avait une fille tr\u00e8s belle et tr\u00e8s sage " * 9,
        "f.txt",
    )
    slur = story("W", prose(60) + " the coolies waited", "w.txt")
    assert choosing.choose([french, slur], settings())[2]["not English"] == 1
    assert choosing.choose([slur], settings())[0] == [slur]
    assert choosing.choose([slur], settings(exclude_flagged=True))[0] == []


def test_build_gives_the_same_bytes_and_prompts_that_end_in_the_length(tmp_path):
    book = put(tmp_path, "good.txt", plain_book())
    outs = []
    for hash_seed in ("1", "2"):  # sets and dicts may not decide anything
        out = tmp_path / f"out{hash_seed}.jsonl"
        subprocess.run(
            [*PROGRAM, "build", book, "--out", out],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    for e in read_examples(tmp_path / "out1.jsonl"):
        assert (
            e.prompt.endswith(f"{e.target_words} words long.") and abs(e.target_words - words(e.story)) <= 25
        )
        assert prompts.leaks(e.prompt, e.story) is None


# ------------------------------------------------------------------ prompts


def test_round_words_and_leaks():
    assert [prompts.round_words(n) for n in (3, 137, 512, 1234, 3870, 10321)] == [
        10,
        140,
        500,
        1200,
        3900,
        10500,
    ]
    told = "One two three four, five six seven eight nine ten."
    assert (
        prompts.leaks("Say: two THREE four five six seven eight nine!", told)
        == "two three four five six seven eight nine"
    )
    assert prompts.leaks("two three four five six seven eight ten", told) is None


def test_offline_prompt_names_people_places_and_things():
    text = (
        "In the morning old Marta walked down to Ostend with the lantern. \u201cWhere is the "
        "lantern?\u201d asked Marta. They went to Ostend, "
        "and Joost followed Marta; the heron, the heron stood there. In Ostend the lantern shone. But "
        "Joost laughed at the heron. " * 2
    )
    people, places = prompts.cast(text)
    assert people[:2] == ["Marta", "Joost"] and places == ["Ostend"]
    prompt = prompts.offline_prompt("THE LANTERN OF OSTEND", text, 120, prompts.background([text]))
    assert "The Lantern of Ostend" in prompt and "heron" in prompt and prompt.endswith("120 words long.")


def test_offline_prompt_asks_for_what_a_person_would_ask():
    text = (
        "In Rome the Bear met Anna. To Rome the Bear went, and Anna said that a darkie sat in Rome with "
        "a lantern of tin, a way "
        "and tools. The lantern was lit, the darkie laughed, the Bear was sad, his tools were lost, the "
        "way was long. "
    ) * 3
    seen_in = prompts.background([text])
    people, places = prompts.cast(text)
    assert set(people) == {"the Bear", "Anna"} and places == ["Rome"]
    found = prompts.things(text, seen_in)
    assert "a lantern" in found and "tools" in found and not {"a way", "way", "a darkie"} & set(found)
    assert "\u201cA Poor Stick\u201d" in prompts.offline_prompt('"A POOR STICK."', text, 120, seen_in)
    assert "XIV" not in prompts.offline_prompt("XIV", text, 120, seen_in)
    assert "darkie" not in prompts.offline_prompt("The Darkie", text, 120, seen_in).lower()


@pytest.mark.parametrize(
    "printed, asked",
    [
        ("THE CONVERSION OF AURELIAN McGOGGIN", "The Conversion of Aurelian McGoggin"),
        ("The Cook of the \u201cGannet\u201d", "The Cook of the \u2018Gannet\u2019"),
        ('"AFTER" JENKINS', "\u2018After\u2019 Jenkins"),
        ("Fate And The Artist", "Fate and the Artist"),
        ("SNIP'S LUCK: A TALE", "Snip's Luck: A Tale"),
        ("THE ROMANCE OF A BUSY BROKER.", "The Romance of a Busy Broker"),
        ("THE FIRST CHRISTMAS-TREE", "The First Christmas-Tree"),
    ],
)
def test_titles_are_written_as_in_running_text(printed, asked):
    assert f"\u201c{asked}\u201d" in prompts.offline_prompt(printed, prose(0), 120, Counter())


def test_who_is_named_in_one_passage_or_by_halves_is_nobody_of_the_cast():
    told = "That day Pigling went to market, and Bland went with him, for Pigling Bland said so. " * 30
    gossip = "In the inn Mac said that Mac had gone, and then Mac laughed. "
    assert len(prompts.cast(told + gossip + told)[0]) == 1, "one name of one pig, and no Mac"
    assert "Mac" in prompts.cast((told[:400] + gossip) * 4)[0]


def test_nouns_that_name_nothing_are_no_things():
    text = (
        "There was a something, a bit of a lamp, a lot, a sort of nothing. He saw the something and the bit. "
        * 3
    )
    found = prompts.things(text, prompts.background([text, prose(1)]))
    assert not {"a something", "the something", "a bit", "the bit", "a lot", "a sort"} & set(found)
    for n in range(20):
        asked = prompts.offline_prompt(f"Tale {n}", text, 120, prompts.background([text]))
        assert not re.search(r"\b(something|nothing|bit|lot|sort)\b", asked)


def test_adjectives_are_no_things():
    text = (
        "There was a gentle, kind word and a lantern in the house. He found a gentle and the lantern of tin. "
        * 3
    )
    found = prompts.things(text, prompts.background([text, prose(1)]))
    assert "a lantern" in found and not any("gentle" in f for f in found)


class Scripted(BaseHTTPRequestHandler):
    """A chat endpoint that answers from a list of functions of the request number; counts what it was
    asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            n = len(server.asked)
            server.asked.append(body)
            server.keys.append(self.headers.get("Authorization"))
        status, answer = server.answer(n, body)
        data = (
            json.dumps({"choices": [{"message": {"content": answer}}]}).encode() if status == 200 else b"{}"
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.asked, server.keys, server.lock = [], [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


GOOD = json.dumps(
    {
        "request": "Write about a miller who fears the dark water and a girl who does not. It should be "
        "99 words long. Keep it hushed.",
        "reasoning": "Whose story: the girl. Order: mill, river, house.",
    }
)


def examples_file(tmp_path, n=6) -> str:
    path = tmp_path / "stories.jsonl"
    write_examples(
        path,
        [
            Example(f"u{i}", "x 400 words long.", 400, prose(i), None, f"Tale {i} | A | b.txt")
            for i in range(n)
        ],
    )
    return str(path)


def asking(tmp_path, endpoint, out: str, n: int = 6) -> list[str]:
    where = ["--url", endpoint.url, "--model", "m"]
    return ["prompts", examples_file(tmp_path, n), "--out", out, *where]


def test_requests_are_written_with_notes_and_our_own_length(tmp_path, endpoint, monkeypatch):
    monkeypatch.setenv("PROMPTS_API_KEY", "sk-secret-1")
    endpoint.answer = lambda n, body: (200, "Here you are: " + GOOD)
    out = str(tmp_path / "asked.jsonl")
    main([*asking(tmp_path, endpoint, out), "--reasoning"])
    for e in read_examples(out):
        assert (
            e.prompt.startswith("Write about a miller")
            and e.prompt.endswith("400 words long.")
            and "99 words" not in e.prompt
        )
        assert "Keep it hushed." in e.prompt and e.reasoning.startswith("Whose story")
    assert len(endpoint.asked) == 6 and set(endpoint.keys) == {"Bearer sk-secret-1"}
    assert all("<story>" in b["messages"][0]["content"] for b in endpoint.asked)
    for path in tmp_path.iterdir():
        assert b"sk-secret-1" not in path.read_bytes()
    main([*asking(tmp_path, endpoint, out), "--reasoning"])
    assert len(endpoint.asked) == 6, "a second run asks for nothing"


def test_a_quoting_answer_is_refused_and_asked_for_again_then_given_up(tmp_path, endpoint, capsys):
    quote = json.dumps({"request": "Write a tale that begins so: " + " ".join(prose(0).split()[:12])})

    def answer(n, body):
        return 200, quote if "Opening0x0" in body["messages"][0]["content"] else "no json" if n == 3 else GOOD

    endpoint.answer = answer
    out = str(tmp_path / "asked.jsonl")
    main([*asking(tmp_path, endpoint, out, 3), "--workers", "1"])
    rows = {e.uid: e.prompt for e in read_examples(out)}
    assert rows["u0"] == "x 400 words long.", "the request it had stays"
    assert (
        rows["u2"].startswith("Write about a miller")
        and "stories keep the request they had" in capsys.readouterr().out
    )


def test_an_answer_that_is_short_or_ends_the_thinking_is_refused():
    good = json.loads(GOOD)
    assert "99 words" not in prompts.read(good, ["request", "reasoning"], prose(0))["request"]
    for bad in ({"request": "Write it. It should be 99 words long."}, {"reasoning": "First </think> then"}):
        with pytest.raises(Fault, match="unusable"):
            prompts.read(good | bad, ["request", "reasoning"], prose(0))


def test_a_killed_run_goes_on_without_paying_twice(tmp_path, endpoint):
    release = threading.Event()

    def answer(n, body):
        if n == 3:
            release.set()
        if n >= 3 and not server_free.is_set():
            time.sleep(30)
        return 200, GOOD

    server_free = threading.Event()
    endpoint.answer = answer
    out = tmp_path / "asked.jsonl"
    command = [*PROGRAM, *asking(tmp_path, endpoint, str(out)), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert release.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    server_free.set()
    main(command[3:])
    asked = Counter(b["messages"][0]["content"] for b in endpoint.asked)
    assert len(read_examples(out)) == 6
    assert sorted(asked.values()) == [1, 1, 1, 1, 1, 2], "only the request that was in flight was asked again"


def test_a_busy_server_is_waited_for_and_a_dead_one_stops_with_its_answers_kept(
    tmp_path, endpoint, capsys, monkeypatch
):
    monkeypatch.setattr("lib.endpoint.BACKOFF", 0.001)
    endpoint.answer = lambda n, body: (429, "") if n == 0 else (200, GOOD) if n < 4 else (503, "")
    out = str(tmp_path / "asked.jsonl")
    with pytest.raises(SystemExit) as stop:
        main([*asking(tmp_path, endpoint, out), "--workers", "1"])
    assert stop.value.code == 2 and "3 answers are kept" in capsys.readouterr().err and not Path(out).exists()
    with pytest.raises(SystemExit):
        main(["prompts", examples_file(tmp_path), "--out", out])
    assert "no endpoint" in capsys.readouterr().err


# ------------------------------------------------------------------ a look, and the requests shipped


def test_stats_counts_samples_and_draws(tmp_path, capsys):
    out = str(tmp_path / "out.jsonl")
    main(["build", str(put(tmp_path, "good.txt", plain_book())), "--out", out, "--limit", "4"])
    capsys.readouterr()
    main(["stats", out, "--sample", "2"])
    said = capsys.readouterr().out
    assert "4 stories from 1 books" in said and "1 beyond the limit" in said and said.count("PROMPT:") == 2


def test_evaluation_requests():
    examples = read_examples(ROOT / "stories/eval.jsonl")
    buckets = Counter(
        next(hi for hi in (2000, 4000, 6000, 8000, 10000, 12000) if e.target_words < hi) for e in examples
    )
    assert (
        len(examples) == 180
        and set(buckets.values()) == {30}
        and min(e.target_words for e in examples) >= 1000
    )
    assert all(e.story is None and e.prompt.endswith(f"{e.target_words} words long.") for e in examples)
    openings = Counter(" ".join(e.prompt.split()[:4]) for e in examples)
    assert max(openings.values()) <= 4, "no template"
    assert max(choosing.shared_runs([e.prompt for e in examples], run=8), default=None) is None


def test_help_reads():
    for command in ([], ["fetch"], ["split"], ["build"], ["prompts"], ["stats"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
