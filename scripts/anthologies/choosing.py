"""Which stories become examples: length, language, one copy of each tale, a cap per book, train and test.

Left out: judging whether a story is good; retellings in quite different words.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data import FLAGGED, read_examples, words
from scripts.anthologies.stories import Story

EVALUATION = Path(__file__).resolve().parents[2] / "stories" / "eval.jsonl"
RUN = 50  # words in a row that two stories may not share; see `shared_runs`
# cosine of rare words above which stories of two books are versions of one tale. In the catalogue's books all
# 28 pairs above 0.42 are (Vanka and Vanka, Red Etin and Red Ettin); chance begins near 0.38
SAME_TALE = 0.4
ENGLISH = re.compile(
    r"(?i)\b(the|and|of|to|a|in|that|he|was|it|his|with|as|had|for|on|at|but|her|she|i|you|not|they|be|him)\b"
)


def key(*parts: str) -> str:
    """A name and an order that depend on content alone, so that one more book does not change the others'."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def book_id(source: str) -> str:
    """What a book is called whatever its file is called: Project Gutenberg's number, else the file's stem."""
    number = re.match(r"pg\d+", source)
    return number[0] if number else Path(source).stem


def asked_for() -> set[str]:
    """The books from whose stories requests of stories/eval.jsonl were made: the first to be held out."""
    sources = (e.source for e in read_examples(EVALUATION) if e.source.startswith("made from a story: "))
    return {book_id(source.split(" | ")[-1]) for source in sources}


def title_key(title: str) -> str:
    return re.sub(r"\W|^(the|a|an)\b", "", title.casefold().strip())


def shared_runs(texts: list[str], run: int = RUN) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of texts that share words in a row.

    Every text is cut into blocks of `run` words; wherever such a block is in another text, the two share it.
    Any common run of 2 * run - 1 words holds a whole block, so runs of 99 words are always found.
    """
    ids: dict[str, int] = {}
    told = [[ids.setdefault(w, len(ids)) for w in re.findall(r"\w+", t.casefold())] for t in texts]
    owners: dict[tuple, list[int]] = {}
    for n, text in enumerate(told):
        for i in range(0, len(text) - run + 1, run):
            owners.setdefault(tuple(text[i : i + run]), []).append(n)
    openings, pairs = {block[:8] for block in owners}, set()
    for n, text in enumerate(told):
        for i, opening in enumerate(zip(*(text[k:] for k in range(8)))):
            if opening in openings:  # rarely by chance
                for o in owners.get(tuple(text[i : i + run]), []):
                    pairs.add((min(n, o), max(n, o)))
    return {(a, b) for a, b in pairs if a != b}


def same_tales(texts: list[str], threshold: float = SAME_TALE, width: int = 4096) -> set[tuple[int, int]]:
    """Pairs of texts told with the same rare words (hashed tf-idf, cosine): two translations of one tale."""
    counts = [Counter(re.findall(r"[^\W\d_]{3,}", t.casefold())) for t in texts]
    seen = Counter(w for c in counts for w in c)
    column = {w: int(key(w), 16) % width for w in seen}
    matrix = np.zeros((len(texts), width), np.float32)
    for row, c in zip(matrix, counts):
        for w, n in sorted(c.items()):
            if seen[w] < 0.2 * len(texts) + 2:
                row[column[w]] += (1 + np.log(n)) * np.log(len(texts) / seen[w])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(texts), 512):
        near = matrix[start : start + 512] @ matrix.T
        pairs.update((start + int(a), int(b)) for a, b in zip(*np.nonzero(near > threshold)) if start + a < b)
    return pairs


def choose(stories: list[Story], args) -> tuple[list[Story], list[Story], Counter]:
    """Stories for training, stories of held-out anthologies, and how many were left out for which reason.

    ValueError: `--test_out` asks for a book to be kept back and none can be."""
    reasons = [_unfit(s, args) for s in stories]
    fit, why = [s for s, reason in zip(stories, reasons) if not reason], Counter(filter(None, reasons))
    held = hold_out(fit, args) if args.test_out and fit else set()
    # test anthologies come first, so that of two copies the held-out one stays and training loses it
    fit.sort(key=lambda s: (s.source not in held, key(str(args.seed), book_id(s.source), s.title, s.text)))
    gone = _copies(fit, held, why)
    left = [s for n, s in enumerate(fit) if n not in gone]
    train = _cap([s for s in left if s.source not in held], args, why)
    test = _cap([s for s in left if s.source in held], args, why)
    if held and not train:
        what = "nothing is left for training beside the book kept back"
        raise ValueError(f"{what}: give more books, or drop --test_out")
    return train, test, why


def _unfit(s: Story, args) -> str:
    n = words(s.text)
    if n < args.min_words:
        return f"shorter than {args.min_words} words"
    if n > args.max_words:
        return f"longer than {args.max_words} words"
    if len(ENGLISH.findall(s.text)) < 0.22 * len(s.text.split()):
        return "not English"
    return "flagged words" if args.exclude_flagged and FLAGGED.search(s.text) else ""


def hold_out(fit: list[Story], args) -> set[str]:
    """The books kept back: those that the evaluation asks about, then by seed; at least one, never all."""
    first, books = asked_for(), sorted({s.source for s in fit})
    asked = sum(book_id(b) in first for b in books)
    if len(books) < 2:
        what = f"only {books[0]} has stories that fit, so no book can be kept back"
        raise ValueError(f"{what}: add one, or drop --test_out")
    if asked == len(books):
        what = "stories/eval.jsonl asks about every book given, so none may be trained on"
        raise ValueError(f"{what}: add another book")
    books.sort(key=lambda b: (book_id(b) not in first, key(str(args.seed), book_id(b))))
    return set(books[: min(len(books) - 1, max(1, asked, round(args.test_share * len(books))))])


def _copies(fit: list[Story], held: set[str], why: Counter) -> set[int]:
    """Which stories go: copies of one that stays, and those in training that have a test story's title."""
    texts, gone = [s.text for s in fit], set()
    copies = shared_runs(texts) | {(a, b) for a, b in same_tales(texts) if fit[a].source != fit[b].source}
    for a, b in sorted(copies):
        if a not in gone and b not in gone:
            gone.add(b)
            why["a copy of a story already in"] += 1
    tests = {title_key(s.title) for n, s in enumerate(fit) if s.source in held and n not in gone}
    for n, s in enumerate(fit):
        if s.source not in held and n not in gone and title_key(s.title) in tests:
            gone.add(n)
            why["the title of a test story"] += 1
    return gone


def _cap(stories: list[Story], args, why: Counter) -> list[Story]:
    """At most `--per_anthology` of each book and `--limit` in all; the books take turns."""
    rank, within = Counter(), []
    for s in stories:
        if rank[s.source] < args.per_anthology:
            within.append((rank[s.source], s))
        rank[s.source] += 1
    why[f"more than {args.per_anthology} of its book"] += len(stories) - len(within)
    why["beyond the limit"] += max(0, len(within) - args.limit)
    within.sort(key=lambda item: item[0])
    return [s for _, s in within[: args.limit]]
