"""Does a judge agree with another judge, or with people? Started as `python judge.py agree`.

    python judge.py agree a.jsonl b.jsonl              # two files of verdicts
    python judge.py agree --pairs pairs.jsonl          # a judge and people's preferences between two stories
    python judge.py agree --pairs report.json base=base.jsonl trained=trained.jsonl    # a study of ours

Pairs are JSON Lines with prompt, story_1, story_2 and preferred: "1", "2" or "tie". The judge is asked in
each mode: each story alone, both beside each other in both orders, both in one ranking. Accuracy is the share
of pairs in which it prefers what people preferred, half a point where it sees no difference, averaged over
prompts, which the intervals resample. People's ties are left out and counted. What was asked before comes
from the cache.

Left out: a judge's agreement with each annotator (scripts/blind has that of the annotators).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

import judge as judging
from lib import files, flags, pages, stats
from lib.endpoint import then

NEEDS = 'an object with prompt, story_1, story_2 and preferred ("1", "2" or "tie")'
LENGTHS = ("the longer preferred", "the shorter preferred", "of like length")
ALIKE = 1.25  # stories are of like length where the longer has at most so many times the words of the other
MODES = ("story", "pair", "group")

# ------------------------------------------------------------------------------------------------------------
# Two files of verdicts


def read_verdicts(path: str) -> dict[str, judging.Verdict | None]:
    needs = "files written by `python judge.py score FILE --out ...`"
    rows = {}
    for number, row in files.read_lines(path, needs):
        try:
            rows[row["uid"]] = row["verdict"] and judging.Verdict(**row["verdict"])
        except (KeyError, TypeError):
            raise ValueError(f"{path} line {number} holds no verdict; give {needs}") from None
    return rows


def agreement(a: dict, b: dict) -> str:
    """A table of two judges (or two runs of one) over the same stories, per dimension."""
    both = [(a[uid], b[uid]) for uid in a if a[uid] and b.get(uid)]
    if len(both) < 2:
        raise ValueError("the two files share fewer than two judged stories; their uids must match")
    rows = []
    for key in ["score", *both[0][0].scores]:
        pairs = [[v.score if key == "score" else v.scores.get(key) for v in pair] for pair in both]
        one, two = map(list, zip(*pairs))
        if None not in two:  # another rubric has other dimensions
            gaps = [q - p for p, q in pairs]
            distance = stats.mean(map(abs, gaps))
            rows.append([key, len(both), stats.rank_correlation(one, two), stats.mean(gaps), distance])
    head = ["dimension", "stories", "rank correlation", "mean B - A", "mean distance"]
    return pages.markdown_table(head, rows)


# ------------------------------------------------------------------------------------------------------------
# A judge and people


def read_pairs(path: str, stories: list[str]) -> list[dict]:
    """Rows of prompt, story_1, story_2, preferred. ValueError: which line, and why."""
    study = path.endswith(".json")
    rows = study_pairs(path, stories) if study else files.read_lines(path, NEEDS)
    return [checked(row, f"{path} {'judgement' if study else 'line'} {number}") for number, row in rows]


def checked(row: dict, where: str) -> dict:
    for key in ("prompt", "story_1", "story_2"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"{where} has no {key}; expected {NEEDS}")
    if row["story_1"].strip() == row["story_2"].strip():
        raise ValueError(f"{where}: the two stories are the same; remove the line")
    preferred = str(row.get("preferred"))
    if preferred not in ("1", "2", "tie"):
        raise ValueError(f'{where}: preferred is {preferred[:40]!r}, not "1", "2" or "tie"')
    return row | {"preferred": preferred}


def study_pairs(path: str, stories: list[str]):
    """The judgements of a blinded study (report.json of scripts/blind), with the stories of its models."""
    texts = {}
    for name, _, file in (story.partition("=") for story in stories):
        texts[name] = defaultdict(list)
        for _, row in files.read_lines(file, "prompt, uid and story"):
            texts[name][row["uid"]].append(row)
    for number, said in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["judgements"], 1):
        try:
            sides = [[texts[m][said["uid"]][i] for i in said["stories"][m]] for m in said["models"]]
        except (KeyError, IndexError) as missing:
            more = "add NAME=FILE for each model of the study"
            raise ValueError(f"{path}: no stories of {missing}; {more}") from None
        winner = "tie" if said["winner"] is None else str(1 + said["models"].index(said["winner"]))
        one, two = ("\n\n".join(row["story"] for row in side) for side in sides)  # of a set, all its stories
        prompt = sides[0][0]["prompt"]
        yield number, {"prompt": prompt, "story_1": one, "story_2": two, "preferred": winner}


def ask(judge, mode: str, row: dict):
    """Future of (how much better story 1 is, whether the winner changed with the order), or of None."""
    prompt, one, two = row["prompt"], row["story_1"], row["story_2"]
    if mode == "pair":
        pair = [judge.beside(prompt, one, two)]
        return then(pair, lambda v: v[0] and (v[0].score, v[0].orders[0] * v[0].orders[1] < 0))
    if mode == "group":
        both = judge.submit_group(prompt, [one, two])
    else:
        both = [judge.submit(prompt, one), judge.submit(prompt, two)]
    return then(both, lambda v: (v[0].score - v[1].score, None) if all(v) else None)


def kind_of(row: dict) -> str:
    """Which of LENGTHS: a judge that only counts words is right in the first and wrong in the second."""
    first, second = (judging.count_words(row[name]) for name in ("story_1", "story_2"))
    better, worse = (first, second) if row["preferred"] == "1" else (second, first)
    if max(better, worse) <= ALIKE * min(better, worse):
        return "of like length"
    return "the longer preferred" if better > worse else "the shorter preferred"


def accuracy(answered: list[tuple[dict, tuple]]) -> str:
    """Share of the pairs in which the judge prefers what people preferred, half a point for no difference."""
    by_prompt = defaultdict(list)
    for row, (gap, _) in answered:
        gap = gap if row["preferred"] == "1" else -gap
        by_prompt[judging.strip_length(row["prompt"])].append((gap > 0) + 0.5 * (gap == 0))
    found = stats.bootstrap(by_prompt)
    return pages.estimate(found["mean"], found["interval"], 2)


def with_people(args, judge, rows: list[dict]) -> str:
    decided = [row for row in rows if row["preferred"] != "tie"]
    if not decided:
        raise ValueError(f"{args.pairs} holds no pair in which people preferred a story")
    asked, table = {mode: [ask(judge, mode, row) for row in decided] for mode in args.modes}, []
    for mode, futures in asked.items():
        answers = [future.result() for future in tqdm(futures, desc=mode, disable=None)]
        found = [(row, answer) for row, answer in zip(decided, answers) if answer]
        cells = [f"{mode}, {len(found)} of {len(decided)} pairs", accuracy(found)]
        for kind in LENGTHS:
            part = [(row, answer) for row, answer in found if kind_of(row) == kind]
            cells.append(f"{accuracy(part)} (n={len(part)})")
        flips = stats.mean(flipped for _, (_, flipped) in found)
        table.append([*cells, "-" if flips is None else f"{flips:.0%}"])
    prompts = len({judging.strip_length(row["prompt"]) for row in decided})
    head = f"{judge.name}, rubric {judge.rubric.version}: {len(decided)} pairs of {prompts} prompts"
    ties, bill = f"{len(rows) - len(decided)} ties of people left out", judge.ledger
    names = ["mode", "accuracy", "longer preferred", "shorter preferred", "like length", "order flips"]
    cost = f"{bill.calls} calls, {bill.cached} answers from the cache, ${bill.dollars:.4f}"
    note = "In brackets: 95 % over prompts."
    return f"{head}; {ties}. {note}\n\n{pages.markdown_table(names, table)}\n{cost}\n"


# ------------------------------------------------------------------------------------------------------------


@flags.exits_cleanly
def main(argv: list[str] | None = None) -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("name", choices=["agree"])
    add("files", nargs="*", help="two files of verdicts; with a study's report, NAME=FILE per model")
    add("--pairs", help="JSON Lines of pairs, or report.json of a blinded study")
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--rubric", default="story_quality", help="a name in rubrics/ or a path [%(default)s]")
    add("--cache", default="out/judge.sqlite", help="answers already paid for [%(default)s]")
    add("--out", help="where to write the table")
    flags.add_fields(parser, judging.Flags, {})
    args = parser.parse_args(argv)
    if args.pairs:
        rows = read_pairs(args.pairs, args.files)  # before any judge is asked
        with closing(judging.make(args, judging.load_rubric(args.rubric), Path(args.cache))) as judge:
            judge.check()
            text = with_people(args, judge, rows)
    elif len(args.files) == 2:
        text = agreement(*map(read_verdicts, args.files))
    else:
        raise ValueError("agree needs two files of verdicts, or --pairs FILE")
    if args.out:
        files.write_text(args.out, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
