"""Books -> stories -> requests -> examples: 1,400 prompt-story pairs from public-domain anthologies.

The published recipe (POLARIS, arXiv 2606.04095) withholds its stories; these come from books anyone may use.
fetch.py downloads, stories.py splits, choosing.py chooses, prompts.py writes requests.

    python -m scripts.anthologies fetch --out_dir out/books
    python -m scripts.anthologies split out/books/* --out split.jsonl      every story found
    python -m scripts.anthologies split mine.txt --explain                 what was taken for what in one book
    python -m scripts.anthologies build out/books/* --out out/stories.jsonl --max_words 4000 --limit 1400
    python -m scripts.anthologies prompts out/stories.jsonl --out asked.jsonl --url URL --model NAME
    python -m scripts.anthologies stats out/stories.jsonl --sample 5

`build` also writes OUT.report.txt: what was found and left out; `stats` prints it again. `make stories` runs
fetch, build and stats. Left out: judging whether a story is good; retellings in other words.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import FLAGGED, Example, read_examples, words, write_examples
from lib import flags
from lib.files import write_lines, write_text
from scripts.anthologies import fetch, prompts
from scripts.anthologies.choosing import book_id, choose, key
from scripts.anthologies.stories import Reading, Story, read_anthology
from scripts.anthologies.titles import one_line

QUARTILES = {"shortest": 0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "longest": 1}
ADVICE = """
Is a title missing or too many? List the titles in a file, one per line, then a tab and the author;
put - before what is not a story, and run the same command with --contents FILE."""


def read_all(args) -> tuple[list[Reading], list[str]]:
    """The books that hold stories as they were understood, and a sentence for each of the others."""
    books = [f for f in sorted(args.files) if not f.endswith((".tsv", ".md", ".contents"))]
    settled = {Path(f).stem: Path(f).read_text(encoding="utf-8-sig") for f in args.contents}
    for name in settled.keys() - {Path(book).stem for book in books}:
        raise ValueError(f"{name}.contents has no book's name: call it like its book")
    readings, problems = [], []
    for book in tqdm(books, desc="books", unit="book"):
        try:
            readings.append(read_anthology(book, settled.get(Path(book).stem, "")))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not readings:
        raise ValueError("no story found in these files: " + "; ".join(problems[:3] or ["none was given"]))
    return readings, problems


def split(args) -> None:
    readings, problems = read_all(args)
    stories = [s for reading in readings for s in reading.stories]
    if args.explain:
        for reading in readings:
            print(explain(reading))
    if args.out:
        names = ("title", "author", "credit", "source")
        write_lines(args.out, [{"story": s.text} | {n: getattr(s, n) for n in names} for s in stories])
    print(f"{len(stories)} stories from {len(readings)} books" + f" -> {args.out}" * bool(args.out))
    for problem in problems:
        print("no stories from", problem)


def explain(reading: Reading) -> str:
    """How one book was understood, for a user whose own book comes out wrong."""
    toc, stories, left = reading.toc, reading.stories, [s for s in reading.sections if s.why]
    listed = [(n, text) for n, text in enumerate(toc.lines) if text.strip()]
    out = [f"{reading.source}: {len(stories)} stories, told apart by {reading.how}"]
    out += [f"author of the whole book: {reading.author or 'not said'}", ""]
    out += [f"CONTENTS ({len(listed)} lines): title | author"]
    out += [f"  {text} | {toc.authors.get(n, '-')}" for n, text in listed]
    out += ["", f"HEADINGS ({len(reading.found)}): title | author | source line | what it was taken for"]
    for h in reading.found:
        taken = h.why or ("begins a section" if h in reading.starts else "a part, or weaker than the titles")
        out.append(f"  {one_line(h.title)} | {h.author or '-'} | {h.credit or '-'} | {taken}")
    out += ["", f"STORIES ({len(stories)}): words, title | author | source line | first and last words"]
    for s in stories:
        told = s.text.split()
        ends = f"{' '.join(told[:6])} ... {' '.join(told[-6:])}"
        out.append(f"  {len(told):6d}  {s.title} | {s.author or '-'} | {s.credit or '-'} | {ends}")
    out += ["", f"LEFT OUT ({len(left)}): words, title | why"]
    out += [f"  {len(s.text.split()):6d}  {s.title} | {s.why}" for s in left]
    return "\n".join(out) + "\n" + ADVICE


def build(args) -> None:
    readings, problems = read_all(args)
    stories = [s for reading in readings for s in reading.stories]
    train, test, why = choose(stories, args)
    left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(why.items()) if n) or "none"
    if not train:
        raise ValueError(f"none of the {len(stories)} stories found fits: {left_out}")
    seen_in = prompts.background([s.text for s in stories])
    report = [f"stories found: {len(stories)}", f"left out: {left_out}"]
    report += [f"no stories from {p}" for p in problems]
    for path, chosen in ((args.out, train), (args.test_out, test)):
        if path:
            write_examples(path, [_example(s, seen_in) for s in chosen])
            write_text(path + ".report.txt", "\n".join(report) + "\n")
            print(f"{len(chosen)} examples from {len({s.source for s in chosen})} books -> {path}")
    print("\n".join(report))


def _example(s: Story, seen_in: Counter) -> Example:
    target = prompts.round_words(words(s.text))
    prompt = prompts.offline_prompt(s.title, s.text, target, seen_in)
    uid, source = key(book_id(s.source), s.title, s.text), " | ".join((s.title, s.author, s.source))
    return Example(uid=uid, prompt=prompt, target_words=target, story=s.text, source=source)


def stats(args) -> None:
    examples = [e for e in read_examples(args.file) if e.story]
    if not examples:
        raise ValueError(f"{args.file} holds prompts but no stories; give a file that `build` wrote")
    lengths = sorted(words(e.story) for e in examples)
    books = Counter(e.source.split(" | ")[-1] for e in examples)
    print(f"{len(examples)} stories from {len(books)} books, {sum(lengths):,} words")
    at = {name: lengths[min(len(lengths) - 1, int(q * len(lengths)))] for name, q in QUARTILES.items()}
    print("words: " + ", ".join(f"{name} {n:,}" for name, n in at.items()))
    print(f"with words flagged as of their period: {sum(bool(FLAGGED.search(e.story)) for e in examples)}")
    report = Path(args.file + ".report.txt")
    unknown = "why stories were left out is not known: no report of `build` beside the file"
    print(report.read_text(encoding="utf-8").strip() if report.exists() else unknown)
    for book, n in sorted(books.items(), key=lambda item: (-item[1], item[0])):
        print(f"{n:5d}  {book}")
    for e in sorted(examples, key=lambda e: key(e.uid))[: args.sample]:
        asked = f"PROMPT: {e.prompt}\n\nREASONING: {e.reasoning or '-'}"
        print(f"\n{'=' * 100}\n{e.source}\n\n{asked}\n\n{e.story}")


def parser() -> argparse.ArgumentParser:
    top = flags.parser(__doc__)
    sub = top.add_subparsers(required=True, metavar="fetch | split | build | prompts | stats")
    fetch.add_arguments(sub.add_parser("fetch", help="download the catalogue's books from a mirror"))
    books = argparse.ArgumentParser(add_help=False)
    books.add_argument("files", nargs="+", help="txt, htm or epub")
    what = "titles (tab, author), one per line, that settle a book: BOOK.contents"
    books.add_argument("--contents", nargs="+", default=[], metavar="FILE", help=what)
    p = sub.add_parser("split", parents=[books], help="every story of the books, before any choosing")
    p.add_argument("--out", help="JSON Lines with story, title, author, credit, source")
    what = "print what was taken for contents, headings and stories, and why"
    p.add_argument("--explain", action="store_true", help=what)
    p.set_defaults(run=split)
    p = sub.add_parser("build", parents=[books], help="chosen stories with prompts, ready for training")
    p.add_argument("--out", required=True, help="examples for training (all of them, without --test_out)")
    p.add_argument("--test_out", help="keep whole anthologies back and write their examples here")
    share = "share of the books kept back (default 0.1): those stories/eval.jsonl asks about, then by seed"
    p.add_argument("--test_share", type=float, default=0.1, help=share)
    p.add_argument("--min_words", type=int, default=100, help="leave shorter stories out (default 100)")
    p.add_argument("--max_words", type=int, default=4000, help="leave longer stories out (default 4000)")
    p.add_argument("--per_anthology", type=int, default=25, help="most stories of one book (default 25)")
    p.add_argument("--limit", type=int, default=1400, help="most examples in a file (default 1400)")
    slurs = "leave out stories with slurs of their period"
    p.add_argument("--exclude_flagged", action="store_true", help=slurs)
    p.add_argument("--seed", type=int, default=0, help="which stories and test books are drawn (default 0)")
    p.set_defaults(run=build)
    prompts.add_arguments(sub.add_parser("prompts", help="have a model write the requests"))
    p = sub.add_parser("stats", help="counts, lengths, what was left out, samples")
    p.add_argument("file", help="examples that `build` wrote")
    p.add_argument("--sample", type=int, default=0, help="show so many examples whole")
    p.set_defaults(run=stats)
    return top


@flags.exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # `stats ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
