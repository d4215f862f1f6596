"""Books -> stories -> prompts -> examples: 1,400 prompt-story pairs from public-domain anthologies, by one command.

The published recipe (POLARIS, arXiv 2606.04095) withholds its stories; these come from books anyone may use.
Splitting stands in scripts/stories.py, prompts in scripts/prompts.py. Here: getting the books, choosing the stories
(length, language, one copy of each tale, a cap per book so that no author dominates, train and test apart), a look.

    python -m scripts.anthologies fetch --out_dir books --gutenberg https://a.mirror/gutenberg
    python -m scripts.anthologies split books/* --out split.jsonl          every story found, before any choosing
    python -m scripts.anthologies build books/* --out stories.jsonl --max_words 4000 --per_anthology 25 --limit 1400
    python -m scripts.anthologies prompts stories.jsonl --out asked.jsonl --url http://localhost:8080/v1 --model NAME
    python -m scripts.anthologies stats stories.jsonl --sample 5

Left out: judging whether a story is good; retellings in quite different words, which only a reader would recognise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import Example, read_examples, words, write_examples
from scripts import fetch, prompts
from scripts.prompts import FLAGGED
from scripts.stories import Story, split_anthology

__all__ = ["Story", "split_anthology"]

EVALUATION = Path(__file__).resolve().parent.parent / "stories" / "eval.jsonl"

RUN = 50  # words in a row that two stories may not share; see `shared_runs`
SAME_TALE = 0.4  # cosine of rare words above which stories of two books are versions of one tale. In the catalogue's
# books all 28 pairs above 0.42 are (Vanka and Vanka, Red Etin and Red Ettin); chance begins near 0.38
ENGLISH = re.compile(
    r"\b(the|and|of|to|a|in|that|he|was|it|his|with|as|had|for|on|at|but|her|she|i|you|not|they|be|him)\b", re.I
)


# ------------------------------------------------------------------ choosing


def key(*parts: str) -> str:
    """A name and an order that depend on content alone, so that a book more changes nothing about the others."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def book_id(source: str) -> str:
    """What a book is called whatever its file is called: Project Gutenberg's number, else the name without its ending."""
    number = re.match(r"pg\d+", source)
    return number[0] if number else Path(source).stem


def asked_for() -> set[str]:
    """The books from whose stories requests of stories/eval.jsonl were made: never in training when books are held out."""
    sources = (e.source for e in read_examples(EVALUATION) if e.source.startswith("made from a story: "))
    return {book_id(source.split(" | ")[-1]) for source in sources}


def title_key(title: str) -> str:
    return re.sub(r"\W|^(the|a|an)\b", "", title.casefold().strip())


def shared_runs(texts: list[str], run: int = RUN) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of texts that share words in a row.

    Every text is cut into blocks of `run` words; wherever such a block stands in another text, the two share it.
    Any common run of 2 * run - 1 words holds a whole block, so runs of 99 words and more are found for certain.
    """
    ids, base = {}, np.uint64(0x9E3779B97F4A7C15)  # odd, so powers have inverses modulo 2^64
    inverse = np.uint64(pow(int(base), -1, 1 << 64))
    longest = max((len(re.findall(r"\w+", t)) for t in texts), default=0)
    up = np.cumprod(np.r_[np.uint64(1), np.full(longest, base, np.uint64)])
    down = np.cumprod(np.r_[np.uint64(1), np.full(longest, inverse, np.uint64)])
    hashes = []
    for text in texts:
        tokens = re.findall(r"\w+", text.casefold())
        for t in tokens:
            if t not in ids:
                ids[t] = int(key(t), 16)
        values = np.array([ids[t] for t in tokens], dtype=np.uint64)
        total = np.r_[np.uint64(0), np.cumsum(values * up[: len(values)])]
        hashes.append(
            (total[run:] - total[:-run]) * down[: max(0, len(total) - run)]
            if len(values) >= run
            else np.zeros(0, np.uint64)
        )
    owners: dict[int, list[int]] = {}
    for n, h in enumerate(hashes):
        for block in h[::run].tolist():
            owners.setdefault(block, []).append(n)
    blocks = np.array(sorted(owners), dtype=np.uint64)
    pairs = set()
    for n, h in enumerate(hashes):
        at = np.minimum(np.searchsorted(blocks, h), len(blocks) - 1)
        for block in h[blocks[at] == h].tolist():
            pairs.update((min(n, o), max(n, o)) for o in owners[block] if o != n)
    return pairs


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
    """Stories for training, stories of held-out anthologies, and how many were left out for which reason."""
    why, fit = Counter(), []
    for s in stories:
        n = words(s.text)
        if n < args.min_words:
            why[f"shorter than {args.min_words} words"] += 1
        elif n > args.max_words:
            why[f"longer than {args.max_words} words"] += 1
        elif len(ENGLISH.findall(s.text)) < 0.22 * len(s.text.split()):
            why["not English"] += 1
        elif args.exclude_flagged and FLAGGED.search(s.text):
            why["flagged words"] += 1
        else:
            fit.append(s)
    # test anthologies come first, so that of two copies the held-out one stays and training loses it
    held: set[str] = set()
    if args.test_out:
        first, books = asked_for(), sorted({s.source for s in fit})
        books.sort(key=lambda b: (book_id(b) not in first, key(str(args.seed), book_id(b))))
        held = set(books[: max(round(args.test_share * len(books)), sum(book_id(b) in first for b in books))])
    fit.sort(key=lambda s: (s.source not in held, key(str(args.seed), book_id(s.source), s.title, s.text)))
    texts, gone = [s.text for s in fit], set()
    copies = shared_runs(texts) | {(a, b) for a, b in same_tales(texts) if fit[a].source != fit[b].source}
    titles: dict[str, list[int]] = {}
    for n, s in enumerate(fit):
        titles.setdefault(title_key(s.title), []).append(n)
    namesakes = {
        (a, b)
        for group in titles.values()
        for a in group
        for b in group
        if a < b and fit[a].source in held and fit[b].source not in held
    }
    for pairs, reason in ((copies, "a copy of a story already in"), (namesakes, "the title of a test story")):
        for a, b in sorted(pairs):
            if a not in gone and b not in gone:
                gone.add(b)
                why[reason] += 1
    left = [s for n, s in enumerate(fit) if n not in gone]
    train = _cap([s for s in left if s.source not in held], args.per_anthology, args.limit, why)
    return train, _cap([s for s in left if s.source in held], args.per_anthology, args.limit, why), why


def _cap(stories: list[Story], per_anthology: int, limit: int, why: Counter) -> list[Story]:
    """At most `per_anthology` of each book and `limit` in all, the books in turn, so that small books keep theirs."""
    rank, turns = Counter(), []
    for s in stories:
        turns.append((rank[s.source], s))
        rank[s.source] += 1
    within = [(turn, s) for turn, s in turns if turn < per_anthology]
    why[f"more than {per_anthology} of its book"] += len(turns) - len(within)
    within.sort(key=lambda item: item[0])
    why["beyond the limit"] += max(0, len(within) - limit)
    return [s for _, s in within[:limit]]


# ------------------------------------------------------------------ commands


def split_all(files) -> tuple[list[Story], list[str]]:
    """Stories of all books, and a sentence for each book that gave none."""
    stories, problems = [], []
    for path in tqdm(
        [f for f in sorted(map(str, files)) if not f.endswith((".tsv", ".md"))], desc="books", unit="book"
    ):
        try:
            stories += split_anthology(path)
        except FileNotFoundError:
            problems.append(f"{path}: no such file; check the path")
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not stories:
        raise ValueError("no story found in these files: " + "; ".join(problems[:3] or ["none was given"]))
    return stories, problems


def write_json_lines(path: str, rows) -> None:
    part = Path(path).with_name(Path(path).name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(part, path)


def split(args) -> None:
    stories, problems = split_all(args.files)
    write_json_lines(
        args.out, ({"story": s.text, "title": s.title, "author": s.author, "source": s.source} for s in stories)
    )
    print(f"{len(stories)} stories from {len({s.source for s in stories})} books -> {args.out}")
    _tell(problems)


def build(args) -> None:
    stories, problems = split_all(args.files)
    train, test, why = choose(stories, args)
    if not train:
        raise ValueError(
            f"none of the {len(stories)} stories found fits: " + ", ".join(f"{n} {r}" for r, n in why.items() if n)
        )
    seen_in = prompts.background([s.text for s in stories])
    report = {
        "stories found": len(stories),
        "left out": {r: n for r, n in sorted(why.items()) if n},
        "books without stories": problems,
    }
    for path, chosen in ((args.out, train), (args.test_out, test)):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_examples(path, [_example(s, seen_in) for s in chosen])
            write_json_lines(path + ".report.json", [report])
            print(f"{len(chosen)} examples from {len({s.source for s in chosen})} books -> {path}")
    print("left out:", ", ".join(f"{n} {r}" for r, n in sorted(why.items()) if n) or "none")
    _tell(problems)


def _example(s: Story, seen_in: Counter) -> Example:
    target = prompts.round_words(words(s.text))
    return Example(
        uid=key(book_id(s.source), s.title, s.text),
        prompt=prompts.offline_prompt(s.title, s.text, target, seen_in),
        target_words=target,
        story=s.text,
        source=" | ".join((s.title, s.author, s.source)),
    )


def _tell(problems: list[str]) -> None:
    for p in problems:
        print("no stories from", p)


def stats(args) -> None:
    import matplotlib

    matplotlib.use("Agg")  # a picture in a file; no screen is needed
    import matplotlib.pyplot as plt

    examples = [e for e in read_examples(args.file) if e.story]
    if not examples:
        raise ValueError(f"{args.file} holds prompts but no stories; give a file that `build` wrote")
    lengths = sorted(words(e.story) for e in examples)
    books = Counter(e.source.split(" | ")[-1] for e in examples)
    print(f"{len(examples)} stories from {len(books)} books, {sum(lengths):,} words")
    print(
        "words: "
        + ", ".join(
            f"{name} {lengths[min(len(lengths) - 1, int(q * len(lengths)))]:,}"
            for name, q in (
                ("shortest", 0),
                ("10 %", 0.1),
                ("25 %", 0.25),
                ("median", 0.5),
                ("75 %", 0.75),
                ("90 %", 0.9),
                ("longest", 1),
            )
        )
    )
    print(f"with words flagged as of their period: {sum(bool(FLAGGED.search(e.story)) for e in examples)}")
    report = Path(args.file + ".report.json")
    if report.exists():
        for name, value in json.loads(report.read_text(encoding="utf-8")).items():
            print(
                f"{name}: {value if not isinstance(value, dict) else ', '.join(f'{n} {r}' for r, n in value.items())}"
            )
    else:
        print("why stories were left out is not known: no report of `build` beside the file")
    for book, n in sorted(books.items(), key=lambda item: (-item[1], item[0])):
        print(f"{n:5d}  {book}")
    picture = args.plot or str(Path(args.file).with_suffix(".png"))
    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    ax.hist(lengths, bins=40)
    ax.set(xlabel="words", ylabel="stories", title=f"{len(lengths)} stories from {len(books)} books")
    fig.savefig(picture + ".part", format="png", dpi=120)
    os.replace(picture + ".part", picture)
    print("histogram ->", picture)
    for e in sorted(examples, key=lambda e: key(str(args.seed), e.uid))[: args.sample]:
        print(f"\n{'=' * 100}\n{e.source}\n\nPROMPT: {e.prompt}\n\nREASONING: {e.reasoning or '-'}\n\n{e.story}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.anthologies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(required=True, metavar="fetch | split | build | prompts | stats")
    fetch.add_arguments(sub.add_parser("fetch", help="download the catalogue's books from a mirror you name"))
    p = sub.add_parser("split", help="every story of the books, before any choosing")
    p.add_argument("files", nargs="+", help="txt, htm or epub")
    p.add_argument("--out", required=True, help="JSON Lines with story, title, author, source")
    p.set_defaults(run=split)
    p = sub.add_parser("build", help="chosen stories with prompts, ready for training")
    p.add_argument("files", nargs="+", help="txt, htm or epub")
    p.add_argument("--out", required=True, help="examples for training (all of them, without --test_out)")
    p.add_argument("--test_out", help="hold whole anthologies out and write their examples here")
    p.add_argument(
        "--test_share",
        type=float,
        default=0.1,
        help="share of the anthologies held out (default 0.1): those that stories/eval.jsonl asks about, then by seed",
    )
    p.add_argument("--min_words", type=int, default=100, help="leave shorter stories out (default 100)")
    p.add_argument("--max_words", type=int, default=4000, help="leave longer stories out (default 4000)")
    p.add_argument("--per_anthology", type=int, default=25, help="most stories of one book (default 25)")
    p.add_argument("--limit", type=int, default=1400, help="most examples in a file (default 1400)")
    p.add_argument("--exclude_flagged", action="store_true", help="leave out stories with slurs of their period")
    p.add_argument("--seed", type=int, default=0, help="which stories and test books are drawn (default 0)")
    p.set_defaults(run=build)
    prompts.add_arguments(sub.add_parser("prompts", help="have a model write the requests, or write them offline"))
    p = sub.add_parser("stats", help="counts, lengths, what was left out, a histogram, samples")
    p.add_argument("file", help="examples that `build` wrote")
    p.add_argument("--sample", type=int, default=0, help="show so many examples whole")
    p.add_argument("--plot", help="where the histogram goes (default: beside the file)")
    p.add_argument("--seed", type=int, default=0, help="which examples --sample draws (default 0)")
    p.set_defaults(run=stats)
    args = parser.parse_args(argv)
    try:
        _check(parser, args)
        args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `stats ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped by hand; nothing half-written is left", file=sys.stderr)
        sys.exit(130)


def _check(parser, args) -> None:
    for name in ("min_words", "max_words", "per_anthology", "limit"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be at least 1")
    if getattr(args, "min_words", 0) > getattr(args, "max_words", 1):
        parser.error(f"--min_words {args.min_words} is more than --max_words {args.max_words}")
    if not 0 < getattr(args, "test_share", 0.5) < 1:
        parser.error("--test_share must lie between 0 and 1")


if __name__ == "__main__":
    main()
