"""Books -> stories -> requests -> examples: 1,400 prompt-story pairs from public-domain anthologies.

The published recipe (POLARIS, arXiv 2606.04095) withholds its stories; these come from books anyone may use.
fetch.py downloads, stories.py splits, choosing.py chooses, offline.py and prompts.py write requests.

    python -m scripts.anthologies fetch --out_dir out/books
    python -m scripts.anthologies split out/books/* --out split.jsonl      every story found
    python -m scripts.anthologies split mine.txt --explain                 what was taken for what in one book
    python -m scripts.anthologies build out/books/* --out out/stories.jsonl --max_words 4000 --limit 1400
    python -m scripts.anthologies prompts out/stories.jsonl --out asked.jsonl --url URL --model NAME
    python -m scripts.anthologies stats out/stories.jsonl --sample 5

`build` also writes OUT.report.txt: what was found and left out; `stats` prints it again. `make stories` runs
fetch, build and stats. Left out: judging whether a story is good; retellings in other words.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import Example, read_examples, words, write_examples
from lib import flags
from lib.files import write_lines, write_text
from lib.pages import figure, save_figure
from lib.text import FLAGGED
from scripts.anthologies import fetch, offline, prompts
from scripts.anthologies.choosing import book_id, choose, key
from scripts.anthologies.explain import explain
from scripts.anthologies.stories import Story, read_anthology, split_anthology

QUARTILES = {"shortest": 0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "longest": 1}


def books_of(files) -> list[str]:
    return [f for f in sorted(map(str, files)) if not f.endswith((".tsv", ".md", ".contents", ".part"))]


def contents_files(args) -> dict[str, str]:
    """{book: contents that a reader wrote}. With several books the file has its book's name."""
    found, books = {}, books_of(args.files)
    for file in args.contents or []:
        mine = [b for b in books if len(books) == 1 or Path(b).stem == Path(file).stem]
        if not mine:
            example = f"{Path(books[0]).stem}.contents"
            raise ValueError(f"{file} has no book's name: call it like its book, such as {example}")
        found[mine[0]] = Path(file).read_text(encoding="utf-8-sig")
    return found


def split_all(args) -> tuple[list[Story], list[str]]:
    """Stories of all books, and a sentence for each book that gave none."""
    stories, problems, settled = [], [], contents_files(args)
    for path in tqdm(books_of(args.files), desc="books", unit="book"):
        try:
            stories += split_anthology(path, settled.get(path, ""))
        except FileNotFoundError:
            problems.append(f"{path}: no such file; check the path")
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not stories:
        raise ValueError("no story found in these files: " + "; ".join(problems[:3] or ["none was given"]))
    return stories, problems


def split(args) -> None:
    if not args.out and not args.explain:
        raise ValueError("give --out FILE, or --explain to look at one book")
    if args.explain:
        books = books_of(args.files)
        if len(books) != 1:
            raise ValueError(f"--explain takes one book, not {len(books)}")
        print(explain(read_anthology(books[0], contents_files(args).get(books[0], "")), books[0]))
    if args.out:
        stories, problems = split_all(args)
        names = ("title", "author", "credit", "source")
        write_lines(args.out, [{"story": s.text} | {n: getattr(s, n) for n in names} for s in stories])
        print(f"{len(stories)} stories from {len({s.source for s in stories})} books -> {args.out}")
        for p in problems:
            print("no stories from", p)


def build(args) -> None:
    stories, problems = split_all(args)
    train, test, why = choose(stories, args)
    left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(why.items()) if n) or "none"
    if not train:
        raise ValueError(f"none of the {len(stories)} stories found fits: {left_out}")
    seen_in = offline.background([s.text for s in stories])
    report = [f"stories found: {len(stories)}", f"left out: {left_out}"]
    report += [f"no stories from {p}" for p in problems]
    for path, chosen in ((args.out, train), (args.test_out, test)):
        if path:
            write_examples(path, [_example(s, seen_in) for s in chosen])
            write_text(path + ".report.txt", "\n".join(report) + "\n")
            print(f"{len(chosen)} examples from {len({s.source for s in chosen})} books -> {path}")
    print("\n".join(report))


def _example(s: Story, seen_in: Counter) -> Example:
    target = offline.round_words(words(s.text))
    prompt = offline.offline_prompt(s.title, s.text, target, seen_in)
    uid, source = key(book_id(s.source), s.title, s.text), " | ".join((s.title, s.author, s.source))
    return Example(uid=uid, prompt=prompt, target_words=target, story=s.text, source=source)


def stats(args) -> None:
    examples = [e for e in read_examples(args.file) if e.story]
    if not examples:
        raise ValueError(f"{args.file} holds prompts but no stories; give a file that `build` wrote")
    lengths = sorted(words(e.story) for e in examples)
    books = Counter(e.source.split(" | ")[-1] for e in examples)
    title = f"{len(examples)} stories from {len(books)} books"
    print(f"{title}, {sum(lengths):,} words")
    at = {name: lengths[min(len(lengths) - 1, int(q * len(lengths)))] for name, q in QUARTILES.items()}
    print("words: " + ", ".join(f"{name} {n:,}" for name, n in at.items()))
    print(f"with words flagged as of their period: {sum(bool(FLAGGED.search(e.story)) for e in examples)}")
    report = Path(args.file + ".report.txt")
    unknown = "why stories were left out is not known: no report of `build` beside the file"
    print(report.read_text(encoding="utf-8").strip() if report.exists() else unknown)
    for book, n in sorted(books.items(), key=lambda item: (-item[1], item[0])):
        print(f"{n:5d}  {book}")
    picture = args.plot or str(Path(args.file).with_suffix(".png"))
    fig, axes = figure(size=(7, 3.5))
    axes[0][0].hist(lengths, bins=40)
    axes[0][0].set(xlabel="words", ylabel="stories", title=title)
    save_figure(fig, picture)
    print("histogram ->", picture)
    for e in sorted(examples, key=lambda e: key(str(args.seed), e.uid))[: args.sample]:
        asked = f"PROMPT: {e.prompt}\n\nREASONING: {e.reasoning or '-'}"
        print(f"\n{'=' * 100}\n{e.source}\n\n{asked}\n\n{e.story}")


def _books_command(sub, name: str, run, about: str):
    p = sub.add_parser(name, help=about)
    p.add_argument("files", nargs="+", help="txt, htm or epub")
    form = "titles (tab, author), one per line, that settle a book: BOOK.contents"
    p.add_argument("--contents", nargs="+", metavar="FILE", help=form)
    p.set_defaults(run=run)
    return p


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog=flags.called(), description=__doc__, formatter_class=form)
    sub = top.add_subparsers(required=True, metavar="fetch | split | build | prompts | stats")
    fetch.add_arguments(sub.add_parser("fetch", help="download the catalogue's books from a mirror"))
    p = _books_command(sub, "split", split, "every story of the books, before any choosing")
    p.add_argument("--out", help="JSON Lines with story, title, author, credit, source")
    what = "print what was taken for contents, headings and stories, and why"
    p.add_argument("--explain", action="store_true", help=what)
    p = _books_command(sub, "build", build, "chosen stories with prompts, ready for training")
    p.add_argument("--out", required=True, help="examples for training (all of them, without --test_out)")
    p.add_argument("--test_out", help="keep whole anthologies back and write their examples here")
    share = "share of the books kept back (default 0.1): those stories/eval.jsonl asks about, then by seed"
    p.add_argument("--test_share", type=float, default=0.1, help=share)
    p.add_argument("--min_words", type=int, default=100, help="leave shorter stories out (default 100)")
    p.add_argument("--max_words", type=int, default=4000, help="leave longer stories out (default 4000)")
    p.add_argument("--per_anthology", type=int, default=25, help="most stories of one book (default 25)")
    p.add_argument("--limit", type=int, default=1400, help="most examples in a file (default 1400)")
    p.add_argument(
        "--exclude_flagged", action="store_true", help="leave out stories with slurs of their period"
    )
    p.add_argument("--seed", type=int, default=0, help="which stories and test books are drawn (default 0)")
    about = "have a model write the requests, or write them offline"
    prompts.add_arguments(sub.add_parser("prompts", help=about))
    p = sub.add_parser("stats", help="counts, lengths, what was left out, a histogram, samples")
    p.add_argument("file", help="examples that `build` wrote")
    p.add_argument("--sample", type=int, default=0, help="show so many examples whole")
    p.add_argument("--plot", help="where the histogram goes (default: beside the file)")
    p.add_argument("--seed", type=int, default=0, help="which examples --sample draws (default 0)")
    p.set_defaults(run=stats)
    return top


def main(argv: list[str] | None = None) -> None:
    top = parser()
    args = top.parse_args(argv)
    try:
        _check(top, args)
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
