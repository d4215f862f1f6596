"""What a program can see of a story's form, as the points of rubrics/story_quality.md: what the offline judge measures.

Whole sentences and their shapes, loops, words of the request, people who act, things named, real words. No quality: a dull
story in good form beats a fine one in bad form. Words addressed to a judge are cut out, then marked down.
Left out: meaning.
"""
import re
import statistics

DETERMINERS = frozenset("a an the my your his its our their this these every some no".split())
JOINERS = frozenset("and but or of to in on at for with from by into over under through as because if when while".split())
PRONOUNS = frozenset("i he she it we they you me him her us them who".split())
PEOPLE = PRONOUNS - {"it"} | frozenset("man woman boy girl child mother father sister brother wife husband friend".split())
SENSES = frozenset("""saw heard felt smelled tasted touched cold warm hot wet dry dark bright red blue green white black grey
    yellow gold silver salt smoke rain snow wind sun moon stars fire water stone wood iron glass bread milk tea coat boots
    hands eyes face door window table lamp bell road river sea field garden house kitchen roof stairs bird dog horse cat
    tree leaves grass boat letter clock key box rope knife basket candle""".split())
FEELINGS = frozenset("""but though yet still never only again alone afraid glad sorry sad happy angry proud ashamed love
    loved hope wished missed laughed cried smiled wept quiet silence remembered forgot waited promised""".split())
ACTS = frozenset("""said asked took gave went came ran walked turned looked opened closed put held carried found left told
    kept made began stood sat called wanted knew thought tried pulled pushed brought lifted""".split())
TO_THE_JUDGE = re.compile(
    r"\b(?:(?:ignore|disregard|forget|override) (?:all|any|the|every|previous|your|these)\b[^.!?]{0,40}?"
    r"(?:instruction|rule|criteri|prompt|rubric)|(?:give|award|assign)\b[^.!?]{0,30}?(?:full|top|maximum|highest|perfect)"
    r" (?:marks|points|score|rating)|full marks|maximum score|the rubric|language model|(?:grade|rate|score) this)"
    r"[^.!?]*[.!?]*", re.I)
REQUEST_WORDS = frozenset("write story short about words long word tell that with from must should which where have make".split())


def _between(value: float, low: float, high: float) -> float:
    return max(0.0, min(1.0, (value - low) / (high - low)))


def _grams(text: str) -> set[tuple]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], words[3:]))


def measure(prompt: str, story: str, real_words: frozenset[str] | None) -> dict[str, float]:
    """Points for each dimension of the rubric, in its range. prompt: without its length. real_words: lower case; None: not checked."""
    # Words to the judge are no part of the story: the rest is measured as if they were not there, then marked down.
    text, bribes = TO_THE_JUDGE.subn(" ", story)
    sentences = re.split(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+", text.strip())
    sentences = [s for s in sentences if re.search(r"\w", s)] or [""]
    tokens = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[^\w\s]|\d+", text.lower())
    words = [t for t in tokens if t[0].isalpha()] or ["?"]
    n, distinct = len(words), set(words)
    lengths = [len(s.split()) for s in sentences]

    # What breaks a text: loops, unknown words, words that do not join, an end in the middle.
    grams = list(zip(words, words[1:], words[2:]))
    loops = 1 - len(set(grams)) / max(1, len(grams))
    doubled = sum(a == b for a, b in zip(words, words[1:])) / n
    plain = re.findall(r"(?<![\w'’])[a-z]+(?![\w'’])", text)    # names begin with a capital and stand in no list
    unreal = sum(w not in real_words for w in plain) / max(1, len(plain)) if real_words else 0.0
    capitals = len(re.findall(r"\b[A-Z]", text)) / n
    unjoined = sum(a in DETERMINERS and (b in DETERMINERS or b in JOINERS or b in PRONOUNS or not b[0].isalnum())
                   or a in JOINERS and b in ".,!?;" for a, b in zip(tokens, tokens[1:])) / n
    finished = bool(re.search(r"[.!?…][\"'”’)]*$", text.rstrip())) and 1 < lengths[-1] < 40
    lower_starts = sum(bool(re.match(r"\W*[a-z]", s)) for s in sentences) / len(sentences)
    ragged = sum(k < 3 or k > 45 for k in lengths) / len(lengths)
    odd_marks = len(re.findall(r"[,;:.!?]{2,}|\s[,.;:!?]|[^\w\s.,;:!?'\"“”‘’—–…()-]", text)) / n

    # What carries one: the request's words (each once), people who act, things, turns, several shapes of sentence.
    asked = {w[:5] for w in re.findall(r"[a-z]{4,}", prompt.lower())} - {w[:5] for w in REQUEST_WORDS}
    stems = [w[:5] for w in words]
    used = len(asked & set(stems)) / max(1, min(3, len(asked)))
    stuffed = _between(sum(s in asked for s in stems) / n, 0.15, 0.4)
    copied = len(_grams(prompt) & _grams(text)) / max(1, len(_grams(text)))
    per = max(1.0, n / 40)                                   # the same density for long and short stories
    named = len(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    people = _between(len(distinct & PEOPLE) + min(named, 3), 0, 4)
    acts, things, feelings = (_between(len(distinct & kind) / per ** 0.7, 0, most)
                              for kind, most in ((ACTS, 3), (SENSES, 4), (FEELINGS, 2)))
    spread = statistics.pstdev(lengths) / (sum(lengths) / len(lengths) or 1)
    openers = len({s.split()[0].lower() for s in sentences if s}) / len(sentences)
    richness = _between(len(distinct) / n ** 0.85, 0.75, 1.25)
    quotes = len(re.findall(r"[\"“”]", text))
    speech = quotes >= 2 and quotes % 2 == 0

    # Strengths count only as far as the text holds together: word lists, loops and crumbs of text earn little.
    shouted, stolen = _between(capitals, 0.3, 0.6), _between(copied, 0.1, 0.6)
    sound = _between(n, 4, 32) * _between(len(sentences), 0, 3) * (0.3 if bribes else 1.0)
    for flaw in (_between(loops, 0.1, 0.6), _between(unreal, 0.02, 0.35), _between(unjoined, 0.01, 0.1), shouted, stuffed, stolen):
        sound *= 1 - flaw
    breakdown = max(0.5 * (1 - finished), _between(loops, 0.1, 0.5), _between(doubled, 0, 0.1), 1 - _between(n, 4, 24))
    return {k: float(v) for k, v in {
        "P1": 15 * sound * min(1.0, used), "P2": 20 * sound * (0.6 * finished + 0.4 * _between(len(sentences), 1, 5)),
        "P3": 15 * sound * (people + acts) / 2, "P4": 15 * sound * (_between(spread, 0.1, 0.4) + openers) / 2,
        "P5": 20 * sound * (things + richness) / 2, "P6": 15 * sound * (0.8 * feelings + 0.2 * speech),
        "N1": 15 * max(bool(bribes), stolen, stuffed), "N2": 20 * _between(unjoined, 0.0, 0.12),
        "N3": 15 * (1 - richness) * 0.5, "N4": 15 * ragged, "N5": 15 * _between(loops, 0.02, 0.4),
        "N6": 20 * breakdown,
        "N7": 15 * 0.5 * (quotes % 2), "N8": 8 * max(_between(odd_marks, 0, 0.1), lower_starts, shouted),
        "N9": 8 * (1 - openers) * _between(len(sentences), 1, 4),
        "N10": 20 * _between(unreal, 0.02, 0.3), "BONUS": 0, "PENALTY": 8 * bool(bribes)}.items()}
