"""What a program can see of a text's form: which words follow which, in what order its sentences come,
whether it keeps to the request, and what breaks it. It knows nothing of meaning. Also here: the one count of
words that every length in this project means."""

import re
import statistics
import zlib
from types import SimpleNamespace

DETERMINERS = frozenset("a an the my your his its our their this these every some no".split())
JOINERS = frozenset(
    "and but or of to in on at for with from by into over under through as because if".split()
)
PRONOUNS = frozenset("i he she it we they you me him her us them who".split())
REQUEST = frozenset("write story short about words long word tell that with from must should make".split())


def words(text: str) -> int:
    """How long a text is: runs of word characters."""
    return len(re.findall(r"\w+", text))


def strip_length(prompt: str) -> str:
    """The request without its length, which the rule measures better: the sentence goes, or, where it asks
    for more, its clause."""
    clause = re.compile(
        r"[\s,]*\(?\b(?:(?:that|which) (?:is|are) |at )?(?:about |around |roughly |approximately |exactly )?"
        r"\d[\d,]*(?:[\s-]words?[\s-](?:long|in length)|-word)\b\)?",
        re.I,
    )
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+", prompt.strip()):
        rest, found = clause.subn("", sentence)
        if not found or words(rest) > 5:
            kept.append(rest if found else sentence)
    return " ".join(kept).strip() or prompt


def between(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, linear between them."""
    return max(0.0, min(1.0, (value - low) / (high - low)))


def fours(found: list[str]) -> list[tuple]:
    return list(zip(found, found[1:], found[2:], found[3:]))


def repeats(text: str) -> tuple[float, float, float]:
    """(share of 4-grams that repeat an earlier one, share that does so within 64 positions, share of lines
    that repeat an earlier one). Tokens are lower-cased words and single punctuation marks."""
    last_seen, again, near = {}, 0, 0
    grams = fours(re.findall(r"\w+|[^\w\s]", text.lower()))
    for position, gram in enumerate(grams):
        if gram in last_seen:
            again += 1
            near += position - last_seen[gram] <= 64
        last_seen[gram] = position
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated_lines = 1 - len(set(lines)) / len(lines) if lines else 0.0
    return (again / len(grams), near / len(grams), repeated_lines) if grams else (0.0, 0.0, repeated_lines)


def sentences(text: str) -> list[str]:
    found = re.split(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+", text.strip())
    return [s for s in found if re.search(r"\w", s)] or [""]


# ---- which words follow which ------------------------------------------------------------------------------


def place(gram: tuple, size: int) -> int:
    """The bit of a run in a table of `size` bytes."""
    return zlib.crc32(" ".join(gram).encode()) % (8 * size)


class Grams:
    """A set of short runs of tokens, kept as one bit each: crc32 says which. A run that is not in the set is
    taken for one that is as often as bits are set (`full`)."""

    def __init__(self, bits: bytes):
        self.bits, self.full = bits, int.from_bytes(bits, "little").bit_count() / (8 * len(bits))

    @staticmethod
    def of(grams, size: int) -> "Grams":
        """size: bytes of the table."""
        bits = bytearray(size)
        for gram in grams:
            at = place(gram, size)
            bits[at >> 3] |= 1 << (at & 7)
        return Grams(bytes(bits))

    def __contains__(self, gram: tuple) -> bool:
        at = place(gram, len(self.bits))
        return bool(self.bits[at >> 3] >> (at & 7) & 1)


EARLY, LATE = "<", ">"  # first token of a run: the rest tends to come early, or late, in a story
MARKS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[.!?,;:]")


def tokens(text: str) -> list[str]:
    """Lower-case words, "," and "." for every mark that ends a clause or a sentence; names become "#"."""
    found = ["."]
    for mark in MARKS.findall(text):
        if mark in ".!?;:":
            found += ["."] * (found[-1] != ".")
        else:
            name = mark[0].isupper() and found[-1] != "." and not re.match(r"I\b", mark)
            found.append("#" if name else mark.lower().replace("’", "'"))
    return found


def runs(found: list[str]) -> tuple[list[tuple], list[tuple]]:
    """(pairs, triples) of neighbouring tokens."""
    return list(zip(found, found[1:])), list(zip(found, found[1:], found[2:]))


# ---- what is measured --------------------------------------------------------------------------------------


def measure(text: str, request: str, real_words: frozenset[str], grams: Grams) -> SimpleNamespace:
    """The form of a text that answers a request. real_words: in lower case. grams: runs of words that other
    texts have."""
    parts, found = sentences(text), tokens(text)
    listed = [t for t in found if t[0].isalpha() or t == "#"] or ["?"]
    lengths, n, triples = [len(s.split()) for s in parts], len(listed), runs(listed)[1]
    odd_marks = re.findall(r"[,;:.!?]{2,}|\s[,.;:!?]|[^\w\s.,;:!?'\"“”‘’—–…()-]", text)
    asked, used = asked_for(request), stems(text)
    third = -(-len(used) // 3) or 1
    thirds = [set(used[at : at + third]) for at in range(0, len(used), third)]
    # Known pairs and triples, less what chance would find.
    shares = [sum(run in grams for run in some) / max(1, len(some)) for some in runs(found)]
    pairs_known, triples_known = ((share - grams.full) / (1 - grams.full) for share in shares)
    ours, theirs = (set(fours(re.findall(r"\w+", part.lower()))) for part in (text, request))
    return SimpleNamespace(
        words=n,
        sentences=len(parts),
        quotes=len(re.findall(r"[\"“”]", text)),  # quotation marks
        finished=bool(re.search(r"[.!?…][\"'”’)]*$", text.rstrip())) and 1 < lengths[-1] < 40,
        familiar=between(pairs_known, 0.5, 0.85) * between(triples_known, 0.1, 0.5),
        order=_order(parts, request, grams),
        people=between(len(set(listed) & PRONOUNS) + min(listed.count("#"), 3), 0, 4),
        spread=statistics.pstdev(lengths) / (sum(lengths) / len(lengths) or 1),  # as a share of their mean
        openers=len({s.split()[0].lower() for s in parts if s}) / len(parts),  # begin with another word
        richness=between(len(set(listed)) / n**0.85, 0.75, 1.25),  # different words
        # What breaks a text, as shares of its words, sentences or runs.
        loops=1 - len(set(triples)) / max(1, len(triples)),
        doubled=sum(a == b != "#" for a, b in zip(listed, listed[1:])) / n,
        unreal=1 - share_real(text, real_words),
        capitals=len(re.findall(r"\b[A-Z]", text)) / n,
        unjoined=sum(_cannot_join(a, b) for a, b in zip(found, found[1:])) / n,  # "the and", "of."
        odd_marks=len(odd_marks) / n,
        lower_starts=sum(bool(re.match(r"\W*[a-z]", s)) for s in parts) / len(parts),
        ragged=sum(k < 3 or k > 45 for k in lengths) / len(lengths),
        # Whether it keeps to the request.
        used=len(asked & set(used)) / max(1, min(3, len(asked))),  # the request's words, each once
        kept=sum(bool(part & asked) for part in thirds) / max(1, len(thirds)),  # thirds that have some
        stuffed=between(sum(s in asked for s in used) / max(1, len(used)), 0.2, 0.4),  # 1: they fill it
        copied=len(ours & theirs) / max(1, len(ours)),  # 4-grams taken from the request
    )


def share_real(text: str, listed: frozenset[str]) -> float:
    """Share of the words in small letters that the list has; names have a capital and are in no list."""
    plain = re.findall(r"(?<![\w'’])[a-z]+(?![\w'’])", text)
    return sum(w in listed for w in plain) / len(plain) if plain else 1.0


def _cannot_join(a: str, b: str) -> bool:
    if a in DETERMINERS:
        return b in DETERMINERS or b in JOINERS or b in PRONOUNS or b in ".,"
    return a in JOINERS and b in ".,"


def _order(parts: list[str], request: str, grams: Grams) -> float:
    """0..1: early words come early and late ones late, things are introduced before they are known, and the
    first sentence begins: it names what was asked for."""
    trend, seen, last = 0.0, 0, max(1, len(parts) - 1)
    for k, part in enumerate(parts):
        some = tokens(part)
        for run in [(t,) for t in some] + runs(some)[0]:
            sign = ((LATE, *run) in grams) - ((EARLY, *run) in grams)
            trend, seen = trend + sign * (2 * k / last - 1), seen + abs(sign)
    flat, new, known = re.findall(r"[a-z]+", " ".join(parts).lower()), {}, {}
    for at, (a, b) in enumerate(zip(flat, flat[1:])):
        (new if a in ("a", "an") else known if a == "the" else {}).setdefault(b, at)
    introduced = [new[thing] < known[thing] for thing in new if thing in known]
    begins = not re.match(r"\W*(He|She|They|It|But|And|Then|So|Him|Her)\b|\"", parts[0])
    named = len(set(stems(parts[0])) & asked_for(request)) / max(1, min(2, len(asked_for(request))))
    told = 2 * trend / max(1, seen) + 0.5 * sum(2 * x - 1 for x in introduced[:3])
    return between(told + 0.6 * begins + 0.6 * min(1.0, named), 0.2, 2.2)


def stems(text: str) -> list[str]:
    return [w[:5] for w in re.findall(r"[a-z]+", text.lower())]


def asked_for(request: str) -> set[str]:
    """Stems of the words that a request is about."""
    return {w[:5] for w in re.findall(r"[a-z]{4,}", request.lower())} - {w[:5] for w in REQUEST}


# ---- points ------------------------------------------------------------------------------------------------

# Not part of the text: the rest is measured as if such words were not there, then marked down.
TO_THE_GRADER = re.compile(
    r"\b(?:(?:ignore|disregard|forget|override) (?:all|any|the|every|previous|your|these)\b[^.!?]{0,40}?"
    r"(?:instruction|rule|criteri|prompt|rubric)"
    r"|(?:give|award|assign)\b[^.!?]{0,30}?(?:full|top|maximum|highest|perfect) (?:marks|points|score|rating)"
    r"|full marks|maximum score|the rubric|language model|(?:grade|rate|score) this)[^.!?]*[.!?]*",
    re.I,
)


def grade(text: str, request: str, real_words: frozenset[str], grams: Grams) -> dict[str, float]:
    """The form of a text as points of rubrics/story_quality.md, each in its range. Words addressed to a
    grader are cut out first."""
    rest, bribes = TO_THE_GRADER.subn(" ", text)
    f, bribed = measure(rest, request, real_words, grams), bool(bribes)
    # Strengths count only as far as the text holds together: lists, loops and crumbs of text earn little.
    shouted, stolen = between(f.capitals, 0.3, 0.6), between(f.copied, 0.1, 0.6)
    sound = between(f.words, 4, 24) * between(f.sentences, 0, 3) * (0.3 if bribed else 1.0)
    sound *= f.familiar * (0.4 + 0.6 * min(1.0, f.used)) * (0.5 + 0.5 * f.kept)
    unreal, unjoined = between(f.unreal, 0.02, 0.35), between(f.unjoined, 0.01, 0.1)
    for flaw in (between(f.loops, 0.1, 0.6), unreal, unjoined, shouted, f.stuffed, stolen):
        sound *= 1 - flaw
    cut_off, crumb = 0.5 * (1 - f.finished), 1 - between(f.words, 4, 24)
    speech = f.quotes >= 2 and f.quotes % 2 == 0
    points = {
        "P1": 15 * sound,
        "P2": 20 * sound * (0.4 * f.finished + 0.6 * f.order),
        "P3": 15 * sound * f.people,
        "P4": 15 * sound * (between(f.spread, 0.1, 0.4) + f.openers) / 2,
        "P5": 20 * sound * f.richness,
        "P6": 15 * sound * (0.8 * f.order + 0.2 * speech),
        "N1": 15 * max(bribed, stolen, f.stuffed),
        "N2": 20 * max(between(f.unjoined, 0.0, 0.12), 1 - f.familiar),
        "N3": 15 * (1 - f.richness) * 0.5,
        "N4": 15 * f.ragged,
        "N5": 15 * between(f.loops, 0.02, 0.4),
        "N6": 20 * max(cut_off, between(f.loops, 0.1, 0.5), between(f.doubled, 0, 0.1), crumb),
        "N7": 15 * 0.5 * max(f.quotes % 2, 1 - f.order),
        "N8": 8 * max(between(f.odd_marks, 0, 0.1), f.lower_starts, shouted),
        "N9": 8 * (1 - f.openers) * between(f.sentences, 1, 4),
        "N10": 20 * between(f.unreal, 0.02, 0.3),
        "BONUS": 0,
        "PENALTY": 8 * bribed,
    }
    return {key: float(value) for key, value in points.items()}
