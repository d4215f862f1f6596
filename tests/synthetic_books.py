"""Collections by many hands, made up: the forms that real ones have, drawn and combined by a seed.

`collection(seed)` gives a book as a text, an HTML page or an epub, the stories it holds, and the forms it
was drawn
from. The prose is made of common words; its first and last words are known. Each form is drawn apart from
the others.
"""

import html
import random
from dataclasses import dataclass, field

NAMES = """
Ann Author|John Q. Writer|E. M. Delafont|Captain S. P. Meeks|Sir Arthur Quill|Guy de Marsant|
Mary E. Wilkes|Anton Petrov|Ludwig van Hoorn|Mrs. Gaskin|O. Harry|Katharine Fuller Gerard|
Irving Cobbe|H. G. Dwyer|Edna Farmer|W. W. Jakobs|Ambrose Pearse|Elia Peaty|Leo N. Tolstrup|
Rabindra Tagor|J. Sheridan Fanu|Nathaniel Horne|Bret Hart|Selma Lagerson|Stacy Monier|Thomas Burk|
Fannie Hirst|M. R. Jamison|Dr. Felix Gray|Colonel Harris Dickson|Villiers de Lisle|Susan Glasser|
Burton Klein|Rose O'Neill|Benjamin Rosen, Jr.|Hugh Walpurgis
""".replace("\n", "").split("|")
TITLES = """
The Lamp in the Mill|A Basket of Eels|Salt and Candle|The Man Who Sold Fog|Rainbow Pete|Onnie|Tanks|
What Was It?|"Dey Ain't No Ghosts"|The Widow's Third Goose|Boys Will Be Boys|A Jury of Her Peers|
By the Sea|The Interval|None So Blind|Get Ready the Wreaths|Silas Marlow|The Ghost of Miser Brown|
In the Barn|Lazarus|From the Diary of a Clerk|Ching, Ching, Chinaman|The Knight's Move|
"A Certain Rich Man"|Compensation|The Bet|Mateo Falcon|My Nephew Joseph|Invisible Death|
The Last Lesson|How the Widow Won the Deacon|Told by the Fire|Dr. Heidegger's Trial|Jean Monet|
At the Gate|Hide and Seek|The Devil and Tom Wall|The Signal|A Shady Plot|The Outrage: A True Story|
Number Thirteen|The Stolen Mind|Vanka|A Call|Gideon|The Angel of the Odd
""".replace("\n", "").split("|")
WORDS = (
    "the river and a miller of stone who had walked to the old town where his daughter kept in her house "
    "that lantern "
    "which it was said to burn for him at night but they were not afraid of what the wind brought over "
    "the wall when "
    "all the doors were shut and no one spoke until morning came with rain"
).split(" ")
PLACES = [
    "The Atlantic Monthly",
    "The Something Review",
    "Harper's Magazine",
    "The Century Magazine",
    "Every Week",
]
KINDS = ["Strange", "Gripping", "Complete", "Thrilling"]

FORMS = {
    "file": ["txt", "txt", "txt", "htm", "epub"],
    "order": [
        "title, author", "title, by author", "one block", "author, title", "by author, title", "wide "
        "line", "dash",
        "dash, author first", "magazine", "italic", "dates",
    ],
    "case": ["loud", "mixed author", "mixed"],
    "credit": ["none", "none", "bracket", "from", "bracket from"],
    "note": ["none", "none", "plain", "headed", "dated"],
    "contents": ["none", "columns", "columns, author first", "page first", "by", "author below", "author "
    "above", "dotted"],
    "twice": [False, False, True],
    "teaser": [False, False, True],
    "chapters": ["none", "roman", "words", "titled"],
    "filler": ["none", "small", "large", "letters", "advertisement"],
    "serial": [False, False, True],
    "ends": ["none", "introduction", "lists", "both"],
}  # fmt: skip


@dataclass
class Piece:
    """One block: `rank` 1 begins a page, 2 stands apart, 3 follows closely, 0 is prose."""

    text: str
    rank: int = 0
    kind: str = ""


@dataclass
class Collection:
    name: str
    raw: str | bytes
    stories: list[tuple[str, str, str, str]]  # title, author, first word, last word
    forms: dict
    pieces: list[Piece] = field(default_factory=list)


def sentences(draw: random.Random, count: int, name: str = "") -> str:
    out = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randrange(6, 18))
        words[0] = words[0].capitalize()
        if name and draw.random() < 0.3:
            words[draw.randrange(1, len(words))] = name
        out.append(" ".join(words) + ".")
    text = " ".join(out)
    return f'"{text}" said the miller.' if draw.random() < 0.15 else text


def prose(draw: random.Random, tag: str, paragraphs: int) -> list[Piece]:
    body = [sentences(draw, draw.randrange(2, 6), "Martha") for _ in range(paragraphs)]
    body[0] = f"Opening{tag} " + body[0]
    body[-1] = body[-1] + f" So it was closing{tag}."
    out = []
    for n, text in enumerate(body):
        if n and draw.random() < 0.1:
            out.append(Piece("* * *", 0, "break"))
        out.append(Piece(text))
    return out


def heading(draw: random.Random, title: str, author: str, forms: dict) -> list[Piece]:
    loud, case = title.upper(), forms["case"]
    title = title if case == "mixed" else loud
    author = author.upper() if case == "loud" else author
    by = "BY " if case == "loud" else "By "
    order = forms["order"]
    if order == "title, author":
        return [Piece(title, 1), Piece(author, 3)]
    if order == "title, by author":
        return [Piece(title, 1), Piece(by + author, 3)]
    if order == "italic":
        return [Piece(title, 1), Piece(f"_{by}{author}_", 3)]
    if order == "dates":
        return [
            Piece(title, 1),
            Piece(f"{by}{author} ({draw.randrange(1800, 1860)}-{draw.randrange(1870, 1920)})", 3),
        ]
    if order == "by author, title":
        return [Piece(by + author, 1), Piece(title, 2)]
    if order == "one block":
        return [Piece(f"{title}\n{by}{author}", 1)]
    if order == "author, title":
        return [Piece(author, 1), Piece(title, 2)]
    if order == "wide line":
        return [Piece(f"{title}     {author}", 1)]
    if order == "dash":
        return [Piece(f"{title} -- {author}", 1)]
    if order == "dash, author first":
        return [Piece(f"{author}--{title}", 1)]
    return [
        Piece(f"A {draw.choice(KINDS)} Tale of the {draw.choice(['Sea', 'North', 'Mill'])} by {author}", 1),
        Piece(title, 2),
    ]


def apparatus(draw: random.Random, author: str, forms: dict) -> list[Piece]:
    """What is between heading and story: source, note on the author, teaser."""
    place, year, out = draw.choice(PLACES), draw.randrange(1880, 1930), []
    credit = {
        "bracket": f"({place}, {year})",
        "from": f"From _{place}_",
        "bracket from": f"(From {place}, {year})",
    }
    if forms["credit"] in credit:
        out.append(Piece(credit[forms["credit"]], 3))
    if forms["note"] != "none":
        surname = author.removesuffix(", Jr.").split(" ")[-1]
        born = f"{author} was born in {year - 40} in a mill town, went to the university, and published his "
        born += f"first stories in {year - 9}."
        more = f"{surname} is the author of several novels; the story printed here was written in {year}."
        if forms["note"] == "headed":
            out.append(Piece(author, 3))
        out += [Piece(f"{born} {more}" if draw.random() < 0.5 else born, 0, "note")]
        if forms["note"] == "dated":
            out.append(Piece(f"London, {year}.", 3, "note"))
    if forms["teaser"]:
        out.append(Piece(sentences(draw, draw.randrange(1, 3)).replace('"', ""), 2, "teaser"))
    return out


def chapters(draw: random.Random, tag: str, form: str) -> list[Piece]:
    names, parts = ["ONE", "TWO", "THREE"], []
    for n in range(3):
        mark = {"roman": "I" * (n + 1), "words": f"CHAPTER {names[n]}", "titled": f"CHAPTER {'I' * (n + 1)}"}[
            form
        ]
        parts.append(Piece(mark, 2))
        if form == "titled":
            parts.append(Piece(draw.choice(["The Challenge", "Into the Dark", "Intrigue", "Escape!"]), 3))
        part = prose(draw, f"{tag}p{n}", 5)
        if n == 0:
            part[0].text = part[0].text.replace(f"Opening{tag}p0", f"Opening{tag}")
        if n == 2:
            part[-1].text = part[-1].text.replace(f"closing{tag}p2", f"closing{tag}")
        parts += part
    return parts


def between(draw: random.Random, form: str) -> list[Piece]:
    """Fillers, letters and advertisements between stories."""
    if form == "none" or draw.random() < 0.4:
        return []
    if form == "small":
        return [Piece("A NEW VACUUM TUBE", 2), *[Piece(sentences(draw, 3)) for _ in range(2)]]
    if form == "large":
        return [Piece("The Moon and the Tides", 1), *[Piece(sentences(draw, 4)) for _ in range(3)]]
    if form == "letters":
        letters = [Piece(f"Dear Editor: {sentences(draw, 4)} --J. Reader, Ohio.") for _ in range(12)]
        return [Piece("The Readers' Corner", 1), *letters]
    return [
        Piece("SEND NO MONEY", 1),
        Piece("Only $2.98. Mail this coupon today and pay the postman on arrival. " + sentences(draw, 3)),
    ]


def contents(draw: random.Random, rows: list[tuple[str, str]], forms: dict) -> list[Piece]:
    form, lines = forms["contents"], []
    for n, (title, author) in enumerate(rows):
        page, title = 10 * n + 7, title if forms["case"] == "mixed" else title.upper()
        lines += {
            "columns": [f"{title:44}   {author:30}   {page}"],
            "columns, author first": [f"{author:30}   {title:44}   {page}"],
            "page first": [f"{page:3}   {title:44}   {author}"],
            "dotted": [f"{title}, by {author} " + ". " * 12 + str(page)],
            "by": [f"{title}. By {author}   {page}"],
            "author below": [f"{title} {' ' * 20} {page}", f"    _{author}_"],
            "author above": [author, f"    {title} {' ' * 20} {page}"],
        }[form]
    return [Piece("CONTENTS", 1), Piece("\n".join(lines), 2, "contents")]


def front_and_back(draw: random.Random, form: str) -> tuple[list[Piece], list[Piece]]:
    front, back = [], []
    if form in ("introduction", "both"):
        front = [
            Piece("INTRODUCTION", 1),
            *[Piece(sentences(draw, 5)) for _ in range(8)],
            Piece("E. J. O.", 3),
        ]
    if form in ("lists", "both"):
        for name in (
            "MAGAZINES PUBLISHING SHORT STORIES",
            "THE ROLL OF HONOR FOR 1917",
            "INDEX OF SHORT STORIES FOR 1917",
        ):
            back.append(Piece(name, 1))
            for _ in range(draw.randrange(12, 40)):
                author, title = draw.choice(NAMES), draw.choice(TITLES)
                back.append(
                    Piece(
                        f"{author.upper()}. {title}, {draw.choice(PLACES)}, Jan. {draw.randrange(1, 30)}, "
                        f"1917.",
                        0,
                    )
                )
    return front, back


def collection(seed: int) -> Collection:
    draw = random.Random(seed)
    forms = {name: draw.choice(choices) for name, choices in FORMS.items()}
    count = draw.randrange(5, 11)
    rows = list(zip(draw.sample(TITLES, count), draw.sample(NAMES, count)))
    serial = draw.randrange(count) if forms["serial"] else None
    front, back = front_and_back(draw, forms["ends"])
    pieces = [Piece("THE BOOK OF MANY STORIES", 1), Piece("EDITED BY A. COMPILER", 2)]
    pieces += contents(draw, rows, forms) if forms["contents"] != "none" else []
    pieces += front
    stories = []
    for n, (title, author) in enumerate(rows):
        tag = f"{seed}x{n}"
        if forms["twice"]:
            pieces.append(Piece(title if forms["case"] == "mixed" else title.upper(), 1))
        pieces += heading(draw, title, author, forms) + apparatus(draw, author, forms)
        chaptered = forms["chapters"] != "none" and draw.random() < 0.6
        body = (
            chapters(draw, tag, forms["chapters"]) if chaptered else prose(draw, tag, draw.randrange(12, 20))
        )
        if not chaptered:
            body[0].rank = 2
        pieces += body
        if n == serial:
            pieces.append(
                Piece(draw.choice(["(To be continued)", "_To be concluded in the February Number._"]), 3)
            )
        else:
            stories.append((title, author, f"Opening{tag}", f"closing{tag}."))
        pieces += between(draw, forms["filler"]) if n < count - 1 or forms["filler"] == "letters" else []
    raw = {"txt": as_text, "htm": as_html, "epub": as_epub}[forms["file"]](pieces + back)
    return Collection(f"book{seed}.{forms['file']}", raw, stories, forms, pieces + back)


# ------------------------------------------------------------------ three file types


def wrap(text: str) -> str:
    lines, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) > 70:
            lines.append(line)
            line = ""
        line = (line + " " + word).strip()
    return "\n".join([*lines, line])


def as_text(pieces: list[Piece]) -> str:
    out = []
    for p in pieces:
        text = p.text if p.rank == 1 or p.kind == "contents" or len(p.text) < 60 else wrap(p.text)
        out.append("\n" * {1: 5, 2: 3, 3: 2, 0: 2}[p.rank] + text)
    return (
        "The Project Gutenberg EBook of Many Stories, by Various\n\nTitle: Many Stories\n\nAuthor: "
        "Various\n\n"
        "*** START OF THIS PROJECT GUTENBERG EBOOK MANY STORIES ***\n" + "".join(out)
        + "\n\n\n\n\n*** END OF THIS PROJECT GUTENBERG EBOOK MANY STORIES ***\n"
    )  # fmt: skip


def as_markup(p: Piece) -> str:
    text = html.escape(p.text, quote=False).replace("\n", "<br/>").replace("     ", "&#160;&#160;&#160; ")
    if p.kind == "contents":
        rows = [[c.strip(" _") for c in line.split("   ") if c.strip()] for line in p.text.split("\n")]
        cells = ("".join(f"<td>{html.escape(c, quote=False)}</td>" for c in row) for row in rows)
        return "<table>" + "".join(f"<tr>{c}</tr>" for c in cells) + "</table>"
    if p.kind == "break":
        return "<hr/>"
    if p.kind == "teaser":
        return f"<p><i>{text}</i></p>"
    if p.rank and p.kind != "note" and len(p.text) < 200 and not p.text.startswith(("Opening", "(", "From")):
        tag = {1: "h2", 2: "h3", 3: "h4"}[p.rank]
        return f"<{tag}>{text}</{tag}>"
    text = text.replace("_", "")
    return f"<p>{text}</p>"


def as_html(pieces: list[Piece]) -> str:
    body = "\n".join(map(as_markup, pieces))
    return f"<html><head><title>Many Stories</title></head><body>{body}</body></html>"


def as_epub(pieces: list[Piece]) -> bytes:
    from test_anthologies import epub, page

    pages: list[list[Piece]] = []
    for p in pieces:
        if p.rank == 1 or not pages:
            pages.append([])
        pages[-1].append(p)
    return epub({f"p{n:03}.xhtml": page("".join(map(as_markup, part))) for n, part in enumerate(pages)})
