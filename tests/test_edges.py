"""What stands around a story: mottoes, notes, subtitles above it, notes below; and headings that are none."""

import random

import pytest
from test_anthologies import (
    EXPECTED,
    TITLES,
    ends,
    epub,
    gutenberg,
    page,
    plain_book,
    prose,
    put,
    split_anthology,
    tale,
)

from scripts.anthologies import books, edges
from scripts.anthologies.edges import trim
from scripts.anthologies.stories import _read

MORE = ["A Piece of Bread", "The Mirror", "Tonton"]
BODY = "The miller rose before the sun.\n\nHe had no bread in the house."
VERSE = (
    "     Turn, wheel, and grind the corn,\n     The miller's hands are white,\n"
    "     And no one has been born to-day"
)


def story_of(section: str) -> str:
    return "\n\n".join(trim(edges.paragraphs(books.text_blocks(section), wrapped=True)))


@pytest.mark.parametrize(
    "above",
    [
        f"{VERSE}.\n\n                              The Mill Song.",  # whom it is from, set right
        f"{VERSE}.\n          --OLD BALLAD.",
        f"{VERSE}.--Herrick.\n\n     Let well alone.--Proverb.",  # two in a row
        f"{VERSE}.\n\n\n",  # nobody named, but set apart
        f'{VERSE}.\n\n            "The Mill of Keeldar," by J. Leyden.',
        '"And the will therein lieth, which dieth not."--_Joseph Glanvill_.',
        '"A change from clouds to sunshine."\n\n_From Ernest Newman\'s criticism of Tschaikowsky_.',
        "--[Some years ago, when this was first published, few believed it.]",
        "     There is an admirable foundation for a story in the\n     history of this mill, as every "
        "reader will see.",
        "A Tale intended to be after the Fact\n\nI",  # a subtitle above the first part
        "(_The Sun_, Saturday, December 19, 1874.)",
        "This story was first published in the Companion, vol. 82.",
        "The following story is one of many which have drifted down to us.",
        "From _The Ingoldsby Legends_\n\nCOMPILED BY RICHARD BARHAM",
    ],
)
def test_what_stands_above_a_story_is_left_out(above):
    assert story_of(f"{above}\n\n{BODY}") == BODY


@pytest.mark.parametrize(
    "opening",
    [
        f"{VERSE},",  # verse that the tale itself begins with
        '"I wish," said Katje, looking up from her book--"I wish a man would come."',
        '"Oh, George, I do love you!"\n\n"Bless your dear heart, Mary."\n\nCHAPTER II\n\nThey went to Rome.',
        "By nine o'clock all was still.",
        "From the oval-shaped bed there rose a hundred stalks, translated by the light of noon into "
        "gold, and by the "
        "wind into waves, until the eye was tired of so much colour and turned to the wall.",
    ],
)
def test_how_a_story_opens_is_kept(opening):
    kept = story_of(f"{opening}\n\n{BODY}")
    assert kept.split()[:3] == opening.split()[:3] and kept.endswith(BODY)


def test_a_word_broken_at_its_hyphen_is_joined():
    assert story_of("A lamp of red-and-\nwhite stripes, and a pre- and\npost-war -\nlamp.") == (
        "A lamp of red-and-white stripes, and a pre- and post-war - lamp."
    )


def test_mottoes_of_html_books_have_no_margin():
    motto = "<p>Turn, wheel, and grind,<br>The miller is white,</p><p>The Mill Song.</p>"
    told = "<p>Turn, wheel, and grind,<br>The miller is white,</p><p>That was his song.</p>"
    for markup, first in ((motto, "The miller rose"), (told, "Turn, wheel,")):
        blocks = books.html_blocks(markup + "".join(f"<p>{p}</p>" for p in BODY.split("\n\n")))
        assert "\n\n".join(trim(edges.paragraphs(blocks))).startswith(first)


@pytest.mark.parametrize(
    "below",
    [
        '    Note. Salix: the name is Chinese.\n\n    "Zephyr": a wind.\n\n'
        "    So is Fong.\n\n    And the rest.",
        "notes.--l. The song is from a book of birds.",
        "1.[Mr. Disraeli, at that time Prime Minister, had made a speech.]",
        "[Traditions populaires (Asie Mineure)].",
        "[This story appeared in the Figaro.\n\nThe editor has corrected two names.]",
        "THE END.\n\n* * * * *",
    ],
)
def test_what_stands_below_a_story_is_left_out(below):
    told = BODY + "\n\nAnd so they ground the corn, and all of them had bread until the spring." * 3
    assert story_of(f"{told}\n\n{below}") == told


def test_the_printed_cipher_and_underscores_of_marked_up_books_stay():
    block = [books.Block("8\u202083(88)5*\u2020 in N_w Yo_k")]
    assert trim(edges.paragraphs(block, marked_up=True)) == ["8\u202083(88)5*\u2020 in N_w Yo_k"]
    assert trim(edges.paragraphs([books.Block("He came(8) _late_.")])) == ["He came late."]


def test_numbers_of_parts_go_together():
    parts = f"I\n\n{BODY}\n\nII\n\n{BODY}\n\nCHAPTER III\n\n{BODY}"
    assert story_of(parts) == f"{BODY}\n\n* * *\n\n{BODY}\n\n* * *\n\n{BODY}"
    assert story_of(f"{BODY}\n\nII\n\n{BODY}") == f"{BODY}\n\nII\n\n{BODY}", (
        "without a first number they stay"
    )


def test_chapters_with_titles_of_their_own_stay_in_their_story(tmp_path):
    chapters = prose(1).split("\n\n")
    whole = (
        "\n\n".join(chapters[:3])
        + "\n\n\n\n\nCHAPTER II.\n\nTHE PLOT THICKENS.\n\n"
        + "\n\n".join(chapters[3:])
    )
    book = plain_book().replace(prose(1), whole)
    assert book != plain_book()
    stories = split_anthology(put(tmp_path, "t.txt", book))
    assert ends(stories) == EXPECTED and "PLOT THICKENS" in stories[1].text


def test_a_heading_above_verse_that_the_contents_do_not_name_is_a_poem_in_the_story(tmp_path):
    poem = "\n\n\n\n\nTHE WOLF\n\n\nHe ran by night,\nHe ran by day,\nNobody saw\nHim run away.\n\n"
    chapters = prose(1).split("\n\n")
    book = plain_book().replace(prose(1), "\n\n".join(chapters[:3]) + poem + "\n\n".join(chapters[3:]))
    assert ends(split_anthology(put(tmp_path, "t.txt", book))) == EXPECTED


def test_a_small_heading_that_says_advertisement_belongs_to_the_story(tmp_path):
    chapters = prose(2).split("\n\n")
    mock = chapters[0][:60].rsplit(" ", 1)[0] + ".\n\n\nADVERTISEMENT\n\n" + "\n\n".join(chapters)
    stories = split_anthology(put(tmp_path, "t.txt", plain_book().replace(prose(2), mock)))
    assert ends(stories) == EXPECTED


def test_the_first_words_of_a_story_are_no_title_when_they_are_spoken_or_cried(tmp_path):
    for cry in ("'Eels!'[1]", "Ding-dong! Ding-dong! Ding-dong!", "By nine o'clock all was still."):
        book = (
            plain_book()
            .replace(prose(1), f"{cry}\n\n{prose(1)}")
            .replace("A BASKET OF EELS\n\n\n'", "EELS\n\n\n'")
        )
        story = split_anthology(put(tmp_path, "t.txt", book))[1]
        assert story.text.startswith(cry.removesuffix("[1]")) and "!" not in story.title


def test_contents_whose_lines_are_long_lettered_or_abbreviated(tmp_path):
    titles = ["Science Vs. Luck", "The Widow", *TITLES]
    listed = "CONTENTS\n\n" + "\n\n".join(
        f"{t.upper() if n else t}{' ' * 50}{n}" for n, t in enumerate(titles[:-1])
    )
    listed += f"\n\n{titles[-1].upper():64}277\n   a. THE VISION OF VICTORY{' ' * 38}277\n"
    listed += f"   b. THE LAND OF DARKNESS{' ' * 39}282\n\n\n\n\n"
    parts = prose(6).split("\n\n")
    told = (
        "I. THE VISION OF VICTORY\n\n"
        + "\n\n".join(parts[:3])
        + "\n\n\nII. THE LAND OF DARKNESS\n\n"
        + "\n\n".join(parts[3:])
    )
    tales = [tale(n, t) for n, t in enumerate(titles[:-1])] + [f"{titles[-1].upper()}\n\n\n{told}"]
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg(listed + "\n\n\n\n\n".join(tales))))
    assert ends(stories) == [(f"Opening{n}x0", f"closing{n}x5.") for n in range(7)]


def test_contents_without_a_heading_that_name_authors_in_italics(tmp_path):
    listed = "\n\n".join(f"{t.upper()} _By John Writer_" for t in TITLES + MORE) + "\n\n\n\n"
    tales = "\n\n\n\n".join(
        f"{t.upper()}\n\nBY JOHN WRITER\n\n\n{prose(n)}" for n, t in enumerate(TITLES + MORE)
    )
    stories = split_anthology(put(tmp_path, "t.txt", gutenberg("FRENCH STORIES\n\n" + listed + tales)))
    assert ends(stories)[:5] == EXPECTED and len(stories) == 8


def test_a_note_on_the_next_story_and_the_printer_s_box_end_no_story(tmp_path):
    note = "_In a letter from a friend I found this line, and I made a tale about it._"
    book = plain_book().replace(
        f"\n\n\n\n\n{TITLES[2].upper()}", f"\n\n\n\n\n\n{note}\n\n\n{TITLES[2].upper()}", 1
    )
    box = (
        "\n\n*****\n\n\n\n+"
        + "-" * 40
        + "+\n| Typographical errors corrected in text: |\n+"
        + "-" * 40
        + "+\n\n\n"
    )
    stories = split_anthology(
        put(tmp_path, "t.txt", book.replace("\n\n\n\n\nEnd of the", box + "\n\nEnd of the"))
    )
    assert ends(stories) == EXPECTED


def test_forewords_of_editors_go_and_forewords_of_storytellers_stay(tmp_path):
    def article(n: int, heading: str, signed: str) -> str:
        return (
            f'<article id="s{n}" epub:type="se:short-story"><h2 epub:type="title">{TITLES[n]}</h2>'
            f'<section id="f{n}" epub:type="preface"><h3 epub:type="title">{heading}</h3>'
            f"<p>Foreword of {n}.</p>"
            f'<footer><p>{signed}</p></footer></section><section><h3 epub:type="title">The Tale</h3>'
            + "".join(f"<p>{p}</p>" for p in prose(n).split("\n\n"))
            + "</section></article>"
        )

    made = (
        ("Note", "Ann"),
        ("Preface", "\u2014F. H. C."),
        ("Translator\u2019s Introduction", "B."),
        ("Preface", "The Father."),
    )
    stories = split_anthology(
        put(tmp_path, "t.epub", epub({f"{n}.xhtml": page(article(n, *m)) for n, m in enumerate(made)}))
    )
    assert ["Foreword" in s.text for s in stories] == [False, False, False, True]
    assert [s.text.split()[0] for s in stories[:3]] == ["Opening0x0", "Opening1x0", "Opening2x0"]


def test_a_talk_inside_a_tale_is_no_play(tmp_path):
    talk = (
        '<table epub:type="z3998:drama">'
        + "".join(f"<tr><td>P.</td><td>{prose(n)}</td></tr>" for n in (7, 8))
        + "</table>"
    )
    told = "".join(f"<p>{p}</p>" for p in prose(0).split("\n\n"))
    made = [
        f'<article id="s{n}" epub:type="se:short-story"><h2 epub:type="title">{TITLES[n]}</h2>'
        f"{body}</article>"
        for n, body in enumerate((told + talk + "<p>He was dead.</p>", talk + talk, told))
    ]
    assert [
        s.title
        for s in split_anthology(
            put(tmp_path, "t.epub", epub({f"{n}.xhtml": page(m) for n, m in enumerate(made)}))
        )
    ] == [TITLES[0], TITLES[2]]


def test_talk_at_the_start_of_a_page_is_no_list_of_contents(tmp_path):
    talk = "".join(f"<p>\u201cWhat news, Maitre {n}?\u201d</p><p>She cried:</p>" for n in range(6))
    tales = "".join(
        f"<h2>{t}</h2>" + talk * (n == 0) + "".join(f"<p>{p}</p>" for p in prose(n).split("\n\n"))
        for n, t in enumerate(TITLES)
    )
    stories = split_anthology(put(tmp_path, "t.htm", f"<html><body><h1>Tales</h1>{tales}</body></html>"))
    assert [s.title for s in stories] == TITLES


def test_an_epub_whose_table_of_contents_is_of_no_use_is_read_by_its_headings(tmp_path):
    pages = {f"s{n}.xhtml": page(f"<h2>{t}</h2><p>{prose(n)}</p>") for n, t in enumerate(TITLES)}
    nav = page(
        "<nav><ol>"
        + "".join(f'<li><a href="s{n}.xhtml#p{n}">Page {n} of it</a></li>' for n in range(5))
        + "</ol></nav>"
    )
    raw = epub(
        {**pages, "nav.xhtml": nav},
        spine=list(pages),
        opf_extra='<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>',
    )
    assert [s.title for s in split_anthology(put(tmp_path, "t.epub", raw))] == TITLES


def test_a_number_above_the_title_is_no_title(tmp_path):
    made = {
        f"{n}.xhtml": page(
            f'<article id="s{n}" epub:type="se:short-story"><h3 epub:type="z3998:roman">{"I" * (n + 1)}</h3>'
            f'<p epub:type="title">{TITLES[n]}</p>'
            + "".join(f"<p>{p}</p>" for p in prose(n).split("\n\n"))
            + "</article>"
        )
        for n in range(3)
    }
    assert [s.title for s in split_anthology(put(tmp_path, "t.epub", epub(made)))] == TITLES[:3]


def test_any_damage_to_a_book_ends_in_stories_or_in_a_sentence():
    junk = [
        "",
        "",
        "CONTENTS",
        "I",
        "THE END",
        "[Illustration:",
        "]",
        "NOTES",
        "(1) x",
        "<h2>X</h2>",
        "<p>",
        "Note:",
        "_x",
    ]
    told = 0
    for seed in range(300):
        draw = random.Random(seed)
        lines = plain_book().split("\n")
        for _ in range(draw.randrange(1, 9)):
            k = draw.randrange(len(lines))
            if draw.random() < 0.4:
                del lines[k : k + draw.randrange(20)]
            else:
                lines[k:k] = draw.choices(junk, k=draw.randrange(6))
            lines = lines or [""]
        try:
            stories = _read("\n".join(lines).encode(), "book.txt").stories
            told += all(s.text for s in stories)
        except ValueError as sentence:
            assert "leave it out" in str(sentence) or "empty" in str(sentence)
    assert told > 100
