"""Key and answers -> judgements -> win rates, sign test, agreement."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import median

from lib import files
from lib.pages import chart, estimate, page_text, point, table, write_page
from lib.stats import bootstrap, cohen, krippendorff, sign_test
from lib.sweep import FEW, buckets_of
from scripts.blind.make import CHOICES, READING


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
        if a["choice"] not in CHOICES or type(a["ms"]) is not int:
            more = "has a choice or time that the page cannot give"
            raise ValueError(f"{path}: the answer to {a['id']} {more}")
    return file


def unblind(file: dict, key: dict) -> list[dict]:
    """Answers -> judgements: score is 1, 0.5 or 0 for the first model of the pair."""
    rows = []
    for a in file["answers"]:
        pair, item = key["pairs"][a["id"]], key["pages"][file["annotator"]][a["id"]]
        winner = dict(zip("AB", item["sides"])).get(a["choice"])  # None: a tie
        row = {"annotator": file["annotator"], "pair": a["id"]}
        row |= {k: pair[k] for k in ("uid", "unit", "target_words", "words", "models")}
        row |= {"choice": a["choice"], "winner": winner, "reason": a["reason"], "seconds": a["ms"] / 1000}
        row["score"] = 0.5 if winner is None else float(winner == pair["models"][0])
        rows.append(row | {"check_passed": a["choice"] == item["expected"] if pair["check"] else None})
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


def agree(rows: list[dict]) -> dict:
    """Agreement on who won (by model, not by side), where several annotators answered."""
    scores, kappas = defaultdict(dict), []
    for r in rows:
        scores[r["pair"]][r["annotator"]] = r["score"]
    for one, two in combinations(sorted({r["annotator"] for r in rows}), 2):
        both = [(said[one], said[two]) for said in scores.values() if {one, two} <= said.keys()]
        kappa = cohen([a for a, _ in both], [b for _, b in both])
        kappas.append({"annotators": [one, two], "pairs": len(both), "kappa": kappa})
    alpha = krippendorff([list(said.values()) for said in scores.values()])
    return {"cohen": kappas, "krippendorff_alpha": alpha}


def describe(rows: list[dict], pairs: dict[str, dict]) -> dict:
    """How one annotator worked: share answered, checks passed, leaning to a side, speed."""
    real, checks = ([r for r in rows if pairs[r["pair"]]["check"] == check] for check in (False, True))
    sided = [r["choice"] for r in real if r["choice"] != "tie"]
    speeds = [60 * r["words"] / r["seconds"] for r in real if r["seconds"]]
    return {
        "answered": len(real),
        "of": sum(not pair["check"] for pair in pairs.values()),
        "checks_passed": sum(r["check_passed"] for r in checks),
        "checks_answered": len(checks),
        "chose_side_A": sided.count("A") / len(sided) if sided else None,
        "median_words_a_minute": median(speeds) if speeds else None,
    }


def report(key: dict, answers: list[dict]) -> dict:
    rows = [row for file in answers for row in unblind(file, key)]
    real = [row for row in rows if row["check_passed"] is None]
    if not real:
        raise ValueError("none of the files answers a single pair; nothing to report")
    annotators = {}
    for name in (file["annotator"] for file in answers):
        annotators[name] = describe([r for r in rows if r["annotator"] == name], key["pairs"])
    comparisons, buckets = [], buckets_of([row["target_words"] for row in real])
    for duel in combinations(key["models"], 2):
        if mine := [r for r in real if r["models"] == list(duel)]:
            parts = {k: [r for r in mine if low < r["target_words"] <= up] for k, low, up in buckets}
            lengths = {label: compare(part) for label, part in parts.items() if part}
            comparisons.append({"models": list(duel), **compare(mine), "by_length": lengths})
    result = {"study": key["study"], "annotators": annotators, "comparisons": comparisons}
    result |= {"absent": sorted(key["pages"].keys() - annotators.keys()), "agreement": agree(real)}
    return {**result, "warnings": warn(result), "judgements": rows}


def warn(result: dict) -> list[str]:
    """What a reader of the figures has to know first. Leave a file off the command line to leave it out."""
    notes = [f"no answers from {name}: the figures rest on the others" for name in result["absent"]]
    for name, a in result["annotators"].items():
        passed, checks, speed = a["checks_passed"], a["checks_answered"], a["median_words_a_minute"] or 0
        if a["answered"] < a["of"]:
            of = f"{a['answered']} of {a['of']} pairs"
            notes.append(f"{name} answered {of}; the rest is missing, not tied")
        if passed < checks:
            notes.append(f"{name} passed only {passed} of {checks} answered attention checks")
        if speed > 3 * READING:
            notes.append(f"{name} took {speed:.0f} words a minute (median): too fast to have read them")
    for c in result["comparisons"]:
        duel, win = " against ".join(c["models"]), c["win_rate"]
        if win["prompts"] < FEW:
            notes.append(f"{duel}: only {win['prompts']} prompts (n < {FEW}), intervals are rough")
        if win["interval"] and win["interval"][0] == win["interval"][1]:
            notes.append(f"{duel}: all prompts agree, so the interval has no width; read the sign test")
    return notes


# ------------------------------------------------------------------------------------------------------------
# The page


def percent(f: dict) -> str:
    around = [100 * x for x in f["interval"]] if f["interval"] else None
    return estimate(100 * f["mean"], around, 1) + f", n = {f['prompts']}"


def sentence(c: dict) -> str:
    """What the interval of a win rate supports."""
    first, second = c["models"]
    low, high = c["win_rate"]["interval"] or (0, 1)
    better = first if low > 0.5 else second if high < 0.5 else ""
    said = f"readers prefer {better}" if better else "no clear preference"
    return f"{first} against {second}, win rate in %: {percent(c['win_rate'])} prompts; {said}."


def win_chart(c: dict) -> dict:
    """Win rate by requested length; 50 % is no preference."""
    name = " against ".join(c["models"])
    points = []
    for i, figures in enumerate(c["by_length"].values()):
        around = [100 * x for x in figures["win_rate"]["interval"] or ()] or None
        points.append(point(i, 100 * figures["win_rate"]["mean"], around))
    more = {"reference": 50, "ticks": [[i, label] for i, label in enumerate(c["by_length"])]}
    return chart(name, f"Win rate in %: {name}", "words requested", {name: points}, **more)


def page_of(result: dict) -> dict:
    """The data of lib/page.html: win rates with intervals, by length, agreement, how each reader worked."""
    wins = []
    for c in result["comparisons"]:
        for size, f in {"all": c, **c["by_length"]}.items():
            cells = [percent(f["win_rate"]), f["won"], f["tied"], f["lost"], f"{f['sign_test']['p']:.3g}"]
            wins.append([" against ".join(c["models"]), size, *cells])
    columns = ["models", "words requested", "win rate in %", "won", "tied", "lost", "sign test p"]
    tables = [table("Win rates", columns, wins, caption="[95 % interval over prompts]")]
    agreed = result["agreement"]
    rows = [["all readers, Krippendorff's alpha", "-", known(agreed["krippendorff_alpha"])]]
    for k in agreed["cohen"]:
        rows.append([f"{' and '.join(k['annotators'])}, Cohen's kappa", k["pairs"], known(k["kappa"])])
    tables.append(table("Agreement", ["who", "pairs", "agreement"], rows))
    rows = []
    for name, a in result["annotators"].items():
        pairs, checks = f"{a['answered']} of {a['of']}", f"{a['checks_passed']} of {a['checks_answered']}"
        speed = a["median_words_a_minute"]
        rows.append([name, pairs, checks, known(a["chose_side_A"]), f"{speed:.0f}" if speed else "-"])
    columns = ["reader", "pairs answered", "checks passed", "share that chose A", "words a minute"]
    tables.append(table("Readers", columns, rows))
    rows = [[j["annotator"], j["winner"] or "tie", j["reason"]] for j in result["judgements"] if j["reason"]]
    if rows:
        tables.append(table("What readers said", ["reader", "preferred", "why"], rows, fold="Reasons"))
    page = {"title": "Which stories readers prefer", "warnings": result["warnings"], "tables": tables}
    page |= {"lead": [sentence(c) for c in result["comparisons"]]}
    return page | {"charts": [win_chart(c) for c in result["comparisons"]]}


def known(x: float | None) -> str:
    return "undefined" if x is None else f"{x:.2f}"


def run(args: argparse.Namespace):
    key, answers = read_key(args.key), {}
    for path in args.answers:
        file = read_answers(path, key)
        name = file["annotator"]
        if name in answers:
            raise ValueError(f"{path}: a second file of annotator {name}; give each one's last file once")
        answers[name] = file
    result = report(key, list(answers.values()))
    page, path = page_of(result), Path(args.out).with_suffix(".html")
    files.write_json(args.out, result)
    write_page(path, page)
    print(f"{page_text(page)}\n\n{path}")
