"""A plain request for a story, made offline of its own title, names, places and keywords.

The same story gives the same request each time. It ends in "N words long", and never uses a word that is
flagged as a slur. Used by __main__.py and prompts.py. Left out: understanding the story.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter

from data import words
from lib.text import FLAGGED

NOT_ASKED = re.compile(
    rf"(?i){FLAGGED.pattern}|\b(negr\w+|savages?|jew(s|ess|esses)?|heathens?|cannibals?|gyps(y|ies))\b"
)
NOT_NAMES = frozenset("""
    i o oh ah mr mrs miss ms dr sir madam lord lady god heaven christmas sunday monday tuesday wednesday
    thursday friday saturday january february march april may june july august september october november
    december english french german russian american indian chinese japanese italian spanish yes no the and
    but then well what why how when where there here this that they she he it you we his her my your our
    their one two three old little poor good great dear never now so if as at in on majesty excellency
    highness providence spring summer autumn fall winter bible virgin christ jesus
""".split())  # fmt: skip
# nouns that are not worth asking for
VAGUE = frozenset("""
    something anything nothing everything somebody anybody nobody everybody someone anyone everyone none
    another same whit bit bits deal lot lots couple plenty trifle shade touch turn stuff affairs while bunch
    series share size period benefit change line look kinds sorts half back backs beginning bend body bottom
    case course day days end ends edge fact first gross half hand hands head heart heap idea kind last
    latter lot manner matter middle moment more most name number other others part parts place piece point
    rest same second side sides sight sort thing things time times top tops truth two use way ways while
    whole word words world year years affair ages sake sense instant remains west east north south one ones
    few many pair right trace life fault reason desire view wish sound moments minute minutes hour hours
    little man men woman women people feet foot eye eyes face air person own
""".split())  # fmt: skip
RANKS = (
    r"(?:Mr|Mrs|Miss|Mme|Mlle|Madame|Monsieur|Herr|Frau|Dr|Sir|Lady|Lord|King|Queen|Prince|Princess|"
    r"Father|Brother|Sister|Captain|Colonel|Uncle|Aunt|Old|Little|Saint|St)\.?"
)
PROPER = r"[A-Z][a-z\u00df-\u00ff]{2,}"
NAME = re.compile(rf"(?<=[a-z,;] )((?:{RANKS} )?{PROPER}(?:[ -]{PROPER}){{0,3}}(?:-[a-z]+)?)\b")
ACT = (
    r"(?:said|was|had|did|could|would|went|came|saw|took|gave|knew|thought|felt|stood|sat|ran|told|made|got|"
    r"\w+ed)"
)
SPEECH = re.compile(r"(?m)(?:(?<=\s)|(?<=\u2014|-)|^)[\"\u201c\u2018'](?=[A-Z])")  # speech begins here
QUOTED = re.compile(
    r"\u201c[^\u201d]*\u201d|\"[^\"]*\"|(?<!\w)[\u2018'](?=[A-Z])[^\n]*?[,.!?-][\u2019'](?!\w)"
)
BEFORE_NOUN = r"\b(?:the|a|an|his|her|their|its|my|our)\s+([a-z]{3,})"
SURELY = r"of|was|were|in|to|that|with|had|is|who|which|on|at|for|from"  # no adjective comes before these
AFTER_NOUN = rf"(?=[,.;:!?]|\s+(?:{SURELY}|and|but|as|or|he|she|they|would|could)\b)"
THING = re.compile(BEFORE_NOUN + AFTER_NOUN)
SURE = re.compile(BEFORE_NOUN + rf"(?=[.;:!?]|\s+(?:{SURELY})\b)")
SMALL = {"a", "an", "and", "at", "but", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"}
LENGTHS = ("The story should be {} words long.", "It should be {} words long.", "Make it {} words long.")
UNTITLED = ("Write a {kind}.", "Please write me a {kind}.", "I would like to read a {kind}.")
TITLED = (
    "Write a {kind} called \u201c{title}\u201d.",
    "Please write me a {kind} with the title \u201c{title}\u201d.",
    "I would like to read a {kind} named \u201c{title}\u201d.",
    "I need a {kind} for the title \u201c{title}\u201d.",
)
PEOPLE = ("It should be about {}.", "{} should be in it.", "The main characters are {}.")
PLACES = ("Set it in {}.", "It takes place in {}.", "The setting is {}.")
KEYWORDS = ("Work in {}.", "Please include {}.", "Make use of {}.", "I want {} in it.")
FIRST_PERSON = ("Tell it in the first person.", "I would like a narrator who says \u201cI\u201d.")


def round_words(n: int) -> int:
    """A word count as a person would ask for it: 137 -> 140, 512 -> 500, 1,234 -> 1,200, 10,321 -> 10,500."""
    step = 10 if n < 300 else 50 if n < 1000 else 100 if n < 10000 else 500
    return max(step, round(n / step) * step)


def background(texts: list[str]) -> Counter:
    """In how many stories each thing is named; key None: how many stories there are."""
    seen = Counter(w for t in texts for w in set(THING.findall(t)))
    seen[None] = len(texts)
    return seen


def cast(text: str) -> tuple[list[str], list[str]]:
    """Names of people and names of places, the most frequent first.

    A person does something somewhere in the story; a place is mostly what follows in, at, to, from, and does
    nothing. What is neither for certain (a people, a feast, a language) is left out. Names with an article
    keep it.
    """
    text, length, count = " ".join(text.split()), words(text), Counter()
    for name in NAME.findall(text):
        first, last = name.split()[0].lower(), name.split()[-1].lower()
        if last not in NOT_NAMES and (first not in NOT_NAMES or re.match(RANKS + " ", name)):
            count[name] += 1
    people, places = [], []
    for name, n in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:20]:
        known = [p.removeprefix("the ") for p in people + places]
        halves = any(p in name or name in p or f"{p} {name}" in text or f"{name} {p}" in text for p in known)
        if n < 2 or halves or NOT_ASKED.search(name):
            continue
        quarters = {4 * m.start() // len(text) for m in re.finditer(rf"\b{re.escape(name)}\b", text)}
        if len(quarters) < (3 if length > 800 else 2):  # spoken of in passing
            continue
        kind, shown = _person_or_place(text, name, n, length)
        if kind:
            (people if kind == "person" else places).append(shown)
    return people, places


def _person_or_place(text: str, name: str, n: int, length: int) -> tuple[str, str]:
    """("person", "place" or "", the name with its article) of a name that comes `n` times."""

    def seen(pattern: str, name: str = name) -> int:
        return len(re.findall(pattern.format(re.escape(name)), text))

    common = seen(r"\b{}\b", name.lower())
    shown = f"the {name}" if seen(r"\b(?:[Tt]he|[Aa]n?) {}\b") > 0.4 * seen(r"\b{}\b") else name
    if common >= n or re.fullmatch(RANKS, name) and (shown == name or name in ("Old", "Little", "Saint")):
        return "", name
    within = seen(r"\b(?i:in|at|near|into|through) (?:the )?{}\b(?!['\u2019-]| [A-Z])")
    around = within + seen(r"\b(?i:from|to|of|towards?) (?:the )?{}\b(?!['\u2019-]| [A-Z])")
    acts = seen(r"\b{},? " + ACT + r"\b") + seen(r"\b(?:said|asked|cried|replied|answered) (?:the )?{}\b")
    set_there = within >= max(2, 0.3 * n, length / 1000)  # not named in passing
    if set_there and around > 0.5 * n and acts <= 0.2 * n and not common and not name.startswith("St."):
        return "place", shown
    return "person" if acts >= 0.1 * n and within <= 0.12 * n and around <= 0.5 * n else "", shown


def things(text: str, seen_in: Counter) -> list[str]:
    """What this story speaks of and others do not, as one would ask for it: a lantern, tools, the snow."""
    count, sure, total = Counter(THING.findall(text)), Counter(SURE.findall(text)), max(1, seen_in[None])
    weight, shown = {}, {}
    for w, n in count.items():
        if n < 2 or 3 * sure[w] < n or w in NOT_NAMES or w in VAGUE or NOT_ASKED.fullmatch(w):
            continue
        article = re.search(rf"\b(an?) {w}" + AFTER_NOUN, text)
        plural = w.endswith("s") and not w.endswith(("ss", "us", "is"))
        shown[w] = w if plural else f"{article[1]} {w}" if article else f"the {w}"
        weight[w] = n / (1 + 40 * seen_in[w] / total) / (1 if article else 2 if plural else 3)
    found: list[str] = []
    for w in sorted(weight, key=lambda w: (-weight[w], w)):
        if not any(w[:5] == o[:5] or w.rstrip("s") == o.rstrip("s") for o in found):  # one of bird and birds
            found.append(w)
    return [shown[w] for w in found]


def offline_prompt(title: str, text: str, target: int, seen_in: Counter) -> str:
    """A request made of the story's title, names, places and keywords; the same story gives the same one."""
    rng = random.Random(hashlib.sha256((title + "\0" + text).encode()).hexdigest())
    people, places = cast(text)
    keywords = [w for w in things(text, seen_in) if w.split()[-1] not in title.lower()]
    keywords = keywords[: rng.choice((2, 3, 3, 4))]
    no_title = re.fullmatch(r"[IVXLCDM\d.\W]+", title) or NOT_ASKED.search(title)  # a number is not a title
    form, kind = rng.choice(UNTITLED if no_title else TITLED), "short story" if target < 1500 else "story"
    parts = [form.format(kind=kind, title=_title(title))]
    people = people[: rng.choice((1, 2, 3))]
    if people:
        form, who = rng.choice(PEOPLE if len(people) > 1 else PEOPLE[:2]), _and(people)
        parts.append(form.format(who[:1].upper() + who[1:] if form.startswith("{}") else who))
    if places:
        parts.append(rng.choice(PLACES).format(_and(places[: rng.choice((1, 2))])))
    if keywords:
        parts.append(rng.choice(KEYWORDS).format(_and(keywords)))
    spoken = len(SPEECH.findall(text)) * 100 / max(1, words(text))
    bare = QUOTED.sub("", text)
    if len(re.findall(r"\bI\b", bare)) * 60 > words(bare):
        parts.append(rng.choice(FIRST_PERSON))
    if rng.random() < 0.5 and (spoken > 2.5 or spoken < 0.3):
        parts.append("Give it plenty of dialogue." if spoken > 2.5 else "Keep dialogue to a minimum.")
    return " ".join([*parts, ending(target, rng)])


def ending(target: int, rng: random.Random) -> str:
    return rng.choice(LENGTHS).format(target)


def _title(title: str) -> str:
    """A title as one writes it in running text: no capitals throughout, no quotation marks, no stop."""
    title = re.sub(r"^[\"\u201c](.*?)\.?[\"\u201d]$", r"\1", " ".join(title.split())).strip(" .,")
    title = re.sub(r"[\"\u201c](.*?)[\"\u201d]", "\u2018\\1\u2019", title)
    loud = title.isupper() or sum(c.isupper() for c in title) >= 0.6 * sum(c.isalpha() for c in title)

    def word(match: re.Match) -> str:
        w, before = match[0], match.string[: match.start()].strip(" \u2018")
        begins = not before or before[-1] in ":;"
        if w.lower() in SMALL and not begins:
            return w.lower()
        if not loud:
            return w
        prefix, first, rest = re.fullmatch(r"(Mc|Mac(?=[A-Z])|O['\u2019])?(\w)(.*)", w).groups("")
        return prefix + first.upper() + rest.lower()

    return re.sub(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", word, title)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
