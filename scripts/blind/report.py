"""Key and answers -> judgements -> win rates, sign test, agreement."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import median

from lib import files
from lib.pages import estimate, markdown_table
from lib.stats import bootstrap, cohen, sign_test
from lib.sweep import FEW, buckets_of
from scripts.blind.make import READING


def read_json(path: str, needs: set[str]) -> dict:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: not JSON ({problem}); was the download cut short?") from None
    if not isinstance(value, dict) or not needs <= value.keys():
        more = "give key.json of `make`, and answers as the page downloaded them"
        raise ValueError(f"{path}: {', '.join(sorted(needs))} are not all in it; {more}")
    return value


def read_key(path: str) -> dict:
    key = read_json(path, {"study", "pairs", "pages", "models"})
    if key["study"] != files.key_of({k: v for k, v in key.items() if k != "study"}):
        raise ValueError(f"{path}: altered since it was made; restore the original key.json")
    return key


def read_answers(path: str, key: dict) -> dict:
    """One annotator's file, checked: of this study, with answers that the page can give."""
    file = read_json(path, {"study", "annotator", "answers"})
    if file["study"] != key["study"] or file["annotator"] not in key["pages"]:
        raise ValueError(f"{path}: answers of another study; use the key.json that was made with its page")
    ids = [a["id"] for a in file["answers"]]
    if len(set(ids)) < len(ids) or not set(ids) <= key["pairs"].keys():
        raise ValueError(f"{path}: an answer is given twice or to a pair that the page does not hold")
    for a in file["answers"]:
        if a["choice"] not in ("A", "tie", "B") or type(a["ms"]) is not int:
            more = "has a choice or time that the page cannot give"
            raise ValueError(f"{path}: the answer to {a['id']} {more}")
    return file


def unblind(file: dict, key: dict) -> list[dict]:
    """Answers -> judgements: score is 1, 0.5 or 0 for the first model of the pair."""
    rows = []
    for a in file["answers"]:
        pair, sides = key["pairs"][a["id"]], key["pages"][file["annotator"]][a["id"]]
        winner = dict(zip("AB", sides)).get(a["choice"])  # None: a tie
        row = {"annotator": file["annotator"], "pair": a["id"], **pair, "choice": a["choice"]}
        row |= {"winner": winner, "reason": a["reason"], "seconds": a["ms"] / 1000}
        rows.append(row | {"score": 0.5 if winner is None else float(winner == pair["models"][0])})
    return rows


def compare(rows: list[dict]) -> dict:
    """Figures of one pair of models; the sign test takes each prompt once, by the sum of its votes."""
    scores = defaultdict(list)
    for row in rows:
        scores[row["unit"]].append(row["score"])
    votes = [sum(prompt) - len(prompt) / 2 for prompt in scores.values()]
    won, lost = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    signs = {"prompts_won": won, "prompts_tied": len(votes) - won - lost, "prompts_lost": lost}
    found = {"judgements": len(rows)}
    for name, score in (("won", 1), ("tied", 0.5), ("lost", 0)):
        found[name] = sum(r["score"] == score for r in rows)
    return found | {"win_rate": bootstrap(scores), "sign_test": signs | {"p": sign_test(won, lost)}}


def agree(rows: list[dict]) -> list[dict]:
    """Cohen's kappa of each two annotators on who won, by model and not by side."""
    scores, kappas = defaultdict(dict), []
    for r in rows:
        scores[r["pair"]][r["annotator"]] = r["score"]
    for one, two in combinations(sorted({r["annotator"] for r in rows}), 2):
        both = [(said[one], said[two]) for said in scores.values() if {one, two} <= said.keys()]
        kappa = cohen([a for a, _ in both], [b for _, b in both])
        kappas.append({"annotators": [one, two], "pairs": len(both), "kappa": kappa})
    return kappas


def describe(rows: list[dict], asked: int) -> dict:
    """How one annotator worked: share answered, leaning to a side, speed."""
    sided = [r["choice"] for r in rows if r["choice"] != "tie"]
    speeds = [60 * r["words"] / r["seconds"] for r in rows if r["seconds"]]
    found = {"answered": len(rows), "of": asked}
    found["chose_side_A"] = sided.count("A") / len(sided) if sided else None
    return found | {"median_words_a_minute": median(speeds) if speeds else None}


def report(key: dict, answers: list[dict]) -> dict:
    by_reader = {file["annotator"]: unblind(file, key) for file in answers}
    rows = [row for own in by_reader.values() for row in own]
    if not rows:
        raise ValueError("none of the files answers a single pair; nothing to report")
    comparisons, buckets = [], buckets_of([row["target_words"] for row in rows])
    for duel in combinations(key["models"], 2):
        if mine := [r for r in rows if r["models"] == list(duel)]:
            parts = {k: [r for r in mine if low < r["target_words"] <= up] for k, low, up in buckets}
            lengths = {label: compare(part) for label, part in parts.items() if part}
            comparisons.append({"models": list(duel), **compare(mine), "by_length": lengths})
    result = {"study": key["study"], "comparisons": comparisons, "agreement": agree(rows)}
    result["annotators"] = {name: describe(own, len(key["pairs"])) for name, own in by_reader.items()}
    result["absent"] = sorted(key["pages"].keys() - by_reader.keys())
    return {**result, "warnings": warn(result), "judgements": rows}


def warn(result: dict) -> list[str]:
    """What a reader of the figures has to know first. Leave a file off the command line to leave it out."""
    notes = [f"no answers from {name}: the figures rest on the others" for name in result["absent"]]
    for name, a in result["annotators"].items():
        if a["answered"] < a["of"]:
            notes.append(f"{name} answered {a['answered']} of {a['of']} pairs; the rest is missing, not tied")
        if (speed := a["median_words_a_minute"] or 0) > 3 * READING:
            notes.append(f"{name} took {speed:.0f} words a minute (median): too fast to have read them")
    for c in result["comparisons"]:
        duel, win = " against ".join(c["models"]), c["win_rate"]
        if win["prompts"] < FEW:
            notes.append(f"{duel}: only {win['prompts']} prompts (n < {FEW}), intervals are rough")
        if win["interval"] and win["interval"][0] == win["interval"][1]:
            notes.append(f"{duel}: all prompts agree, so the interval has no width; read the sign test")
    return notes


def show(result: dict) -> str:
    """Tables of win rates with 95 % intervals over prompts, of agreement, and of how each reader worked."""
    wins, readers = [], []
    for c in result["comparisons"]:
        for size, f in {"all": c, **c["by_length"]}.items():
            rate = estimate(f["win_rate"]["mean"], f["win_rate"]["interval"], 3)
            counts = [f["win_rate"]["prompts"], f["won"], f["tied"], f["lost"], f["sign_test"]["p"]]
            wins.append([" against ".join(c["models"]), size, rate, *counts])
    agreed = [[" and ".join(k["annotators"]), k["pairs"], k["kappa"]] for k in result["agreement"]]
    for name, a in result["annotators"].items():
        speed = a["median_words_a_minute"]
        readers.append([name, f"{a['answered']} of {a['of']}", a["chose_side_A"], speed and round(speed)])
    head = ["models", "words requested", "win rate", "prompts", "won", "tied", "lost", "sign test p"]
    parts = [markdown_table(head, wins), markdown_table(["readers", "pairs", "Cohen's kappa"], agreed)]
    head = ["reader", "pairs answered", "share that chose A", "words per minute"]
    parts.append(markdown_table(head, readers))
    return "\n".join([*parts, *(f"note: {note}" for note in result["warnings"])])


def run(args: argparse.Namespace):
    key, answers = read_key(args.key), {}
    for path in args.answers:
        file = read_answers(path, key)
        name = file["annotator"]
        if name in answers:
            raise ValueError(f"{path}: a second file of annotator {name}; give each one's last file once")
        answers[name] = file
    result = report(key, list(answers.values()))
    files.write_json(args.out, result)
    print(f"{show(result)}\n{args.out}")
