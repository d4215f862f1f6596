"""Books -> stories -> prompts -> examples: 1,400 prompt-story pairs from public-domain anthologies, by one command.

The published recipe (POLARIS, arXiv 2606.04095) withholds its stories; these come from books anyone may use.
Splitting is in stories.py, choosing in choosing.py, requests in prompts.py, downloads in fetch.py. Here: the commands.

    python -m scripts.anthologies fetch --out_dir books --gutenberg https://a.mirror/gutenberg
    python -m scripts.anthologies split books/* --out split.jsonl          every story found, before any choosing
    python -m scripts.anthologies build books/* --out stories.jsonl --max_words 4000 --per_anthology 25 --limit 1400
    python -m scripts.anthologies prompts stories.jsonl --out asked.jsonl --url http://localhost:8080/v1 --model NAME
    python -m scripts.anthologies stats stories.jsonl --sample 5

Left out: judging whether a story is good; retellings in quite different words, which only a reader would recognise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import Example, read_examples, words, write_examples
from scripts.anthologies import fetch, prompts
from scripts.anthologies.choosing import book_id, choose, key
from scripts.anthologies.prompts import FLAGGED
from scripts.anthologies.stories import Story, split_anthology

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
        args.out,
        ({"story": s.text, "title": s.title, "author": s.author, "source": s.source} for s in stories),
    )
    print(f"{len(stories)} stories from {len({s.source for s in stories})} books -> {args.out}")
    _tell(problems)


def build(args) -> None:
    stories, problems = split_all(args.files)
    train, test, why = choose(stories, args)
    if not train:
        raise ValueError(
            f"none of the {len(stories)} stories found fits: "
            + ", ".join(f"{n} {r}" for r, n in why.items() if n)
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
        print(
            f"\n{'=' * 100}\n{e.source}\n\nPROMPT: {e.prompt}\n\nREASONING: {e.reasoning or '-'}\n\n{e.story}"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.anthologies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    p.add_argument(
        "--exclude_flagged", action="store_true", help="leave out stories with slurs of their period"
    )
    p.add_argument("--seed", type=int, default=0, help="which stories and test books are drawn (default 0)")
    p.set_defaults(run=build)
    prompts.add_arguments(
        sub.add_parser("prompts", help="have a model write the requests, or write them offline")
    )
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
