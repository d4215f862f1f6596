"""Books -> stories -> prompts -> examples: the training set, rebuilt by one command from books anyone may use.

    python -m scripts.anthologies split FILES... --out split.jsonl             every story found, before any choosing
    python -m scripts.anthologies build FILES... --out stories.jsonl           chosen stories with offline prompts

Splitting stands in scripts/headings.py.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from data import Example
from scripts.headings import Story, split_anthology

__all__ = ["Story", "split_anthology"]


def count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def split_all(files) -> tuple[list[Story], list[str]]:
    """Stories of all books, and a sentence for each book that gave none."""
    stories, problems = [], []
    for path in files:
        if Path(path).suffix in (".tsv", ".md", ".json"):
            continue
        try:
            stories += split_anthology(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return stories, problems


def round_words(n: int) -> int:
    """As a person would ask: 137 -> 140, 1,234 -> 1,200, 3,870 -> 3,900."""
    step = 10 if n < 300 else 50 if n < 1000 else 100
    return max(step, round(n / step) * step)


def prompt_for(story: Story) -> str:
    names = Counter(re.findall(r"(?<=[a-z,] )([A-Z][a-z]{2,})\b", story.text))
    people = [n for n, c in names.most_common(3) if c > 1]
    about = f" about {' and '.join(people[:2])}" if people else ""
    n = round_words(count_words(story.text))
    return f'Write a story called "{story.title.strip(" .").title()}"{about}. It should be {n:,} words long.'.replace(",", "")


def write_lines(path, rows) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, path)


def build(args) -> None:
    stories, problems = split_all(args.files)
    fit = [s for s in stories if args.min_words <= count_words(s.text) <= args.max_words]
    rng = random.Random(args.seed)
    rng.shuffle(fit)
    per, chosen = Counter(), []
    for s in fit:
        if per[s.source] < args.per_anthology and len(chosen) < args.limit:
            per[s.source] += 1
            chosen.append(s)
    examples = [Example(uid=hashlib.sha256((s.source + s.title + s.text).encode()).hexdigest()[:16], prompt=prompt_for(s),
                        target_words=round_words(count_words(s.text)), story=s.text,
                        source=f"{s.title} | {s.author} | {s.source}") for s in chosen]
    write_lines(args.out, map(asdict, examples))
    print(f"{len(examples)} examples from {len(per)} books -> {args.out}; {len(problems)} books gave none")
    for p in problems:
        print("  left out:", p)


def split(args) -> None:
    stories, problems = split_all(args.files)
    write_lines(args.out, ({"story": s.text, "title": s.title, "author": s.author, "source": s.source} for s in stories))
    print(f"{len(stories)} stories -> {args.out}")
    for p in problems:
        print("  left out:", p)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    for name, run in (("split", split), ("build", build)):
        p = sub.add_parser(name)
        p.add_argument("files", nargs="+")
        p.add_argument("--out", required=True)
        p.set_defaults(run=run)
        if name == "build":
            p.add_argument("--min_words", type=int, default=100)
            p.add_argument("--max_words", type=int, default=4000)
            p.add_argument("--per_anthology", type=int, default=25)
            p.add_argument("--limit", type=int, default=1400)
            p.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
