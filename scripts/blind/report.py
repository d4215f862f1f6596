"""Key and answers -> judgements -> win rates, sign test, agreement, ratings."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import median

from lib import files
from lib.pages import chart, estimate, markdown_table, point, table, write_page
from lib.stats import bootstrap, cohen, krippendorff, mean, sign_test
from lib.sweep import FEW
from scripts.blind.make import CHOICES, READING, by_length, digest

SCALES = ("quality", "diversity")
HANDED = "give the file that the page downloaded"


def read_json(path: str) -> dict:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: not JSON ({problem}); was the download cut short?") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; {HANDED}")
    return value


def read_key(path: str) -> dict:
    key = read_json(path)
    if key.get("study") != digest({k: v for k, v in key.items() if k != "study"}):
        more = "altered since it was made; restore the original key.json"
        raise ValueError(f"{path}: not a key of this program, or {more}")
    return key


def read_answers(path: str, key: dict) -> dict:
    """One annotator's file, checked: of this study and page, unaltered, answers that the page can give."""
    file = read_json(path)
    if not {"study", "annotator", "page", "answers", "sha256"} <= file.keys():
        raise ValueError(f"{path}: not an answers file; {HANDED}")
    if file["study"] != key["study"]:
        raise ValueError(f"{path}: answers of another study; use the key.json that was made with its page")
    if file["sha256"] != digest({k: v for k, v in file.items() if k != "sha256"}):
        more = "ask the annotator for the file as the page wrote it"
        raise ValueError(f"{path}: altered since it was downloaded; {more}")
    page = key["pages"].get(file["annotator"])
    if page is None or file["page"] != page["sha256"]:
        more = "is not the one made for this study; its texts differ"
        raise ValueError(f"{path}: the page of {file['annotator']!r} {more}")
    ids = [a["id"] for a in file["answers"]]
    if len(set(ids)) < len(ids) or not set(ids) <= page["items"].keys():
        raise ValueError(f"{path}: an answer is given twice or to a pair that the page does not hold")
    for a in file["answers"]:
        rated = all(r in range(1, 6) for r in a["ratings"].values())
        if a["choice"] not in CHOICES or type(a["ms"]) is not int or not rated:
            more = "has a choice, rating or time that the page cannot give"
            raise ValueError(f"{path}: the answer to {a['id']} {more}")
    return file


def unblind(file: dict, key: dict) -> list[dict]:
    """Answers -> judgements: score is 1, 0.5 or 0 for the first model of the pair, ratings go by model."""
    rows = []
    for a in file["answers"]:
        pair, item = key["pairs"][a["id"]], key["pages"][file["annotator"]]["items"][a["id"]]
        sides = dict(zip("AB", item["sides"]))
        winner, ratings = sides.get(a["choice"]), {}  # no winner: a tie
        for side, m in sides.items():
            given = {s: f"{side}_{s}" for s in SCALES}
            ratings[m] = {s: a["ratings"][name] for s, name in given.items() if name in a["ratings"]}
        row = {"annotator": file["annotator"], "pair": a["id"], **pair, "sides": sides, "ratings": ratings}
        row |= {"choice": a["choice"], "winner": winner, "reason": a["reason"], "seconds": a["ms"] / 1000}
        row["score"] = 0.5 if winner is None else float(winner == pair["models"][0])
        rows.append(row | {"check_passed": a["choice"] == item["expected"] if pair["check"] else None})
    return rows


def by_prompt(rows: list[dict], value) -> dict[str, list[float]]:
    groups = defaultdict(list)
    for row in rows:
        if (v := value(row)) is not None:
            groups[row["unit"]].append(v)
    return groups


def compare(rows: list[dict]) -> dict:
    """Figures of one pair of models; the sign test takes each prompt once, by the sum of its votes."""
    first, second = rows[0]["models"]
    scores = by_prompt(rows, lambda r: r["score"])
    votes = [sum(prompt) - len(prompt) / 2 for prompt in scores.values()]
    gaps = {}
    for s in SCALES:
        both = [r for r in rows if all(s in r["ratings"][m] for m in (first, second))]
        if values := by_prompt(both, lambda r, s=s: r["ratings"][first][s] - r["ratings"][second][s]):
            gaps[s] = bootstrap(values)
    won, lost = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    signs = {"prompts_won": won, "prompts_tied": votes.count(0), "prompts_lost": lost}
    signs |= {"p": sign_test(won, lost)}
    won, tied, lost = (sum(r["score"] == score for r in rows) for score in (1, 0.5, 0))
    found = {"judgements": len(rows), "won": won, "tied": tied, "lost": lost, "win_rate": bootstrap(scores)}
    return found | {"sign_test": signs, "rating_difference": gaps}


def rate(rows: list[dict]) -> dict:
    """{model: {scale: mean and interval}} of the sets' ratings, {} where pairs hold single stories."""
    result = defaultdict(dict)
    for model in sorted({m for r in rows for m in r["models"]}):
        for scale in SCALES:
            if values := by_prompt(rows, lambda r, m=model, s=scale: r["ratings"].get(m, {}).get(s)):
                result[model][scale] = bootstrap(values)
    return dict(result)


def agree(rows: list[dict]) -> dict:
    """Agreement on who won (by model, not by side) and on the ratings, where several annotators answered."""
    votes, rated = defaultdict(dict), {scale: defaultdict(list) for scale in SCALES}
    for r in rows:
        votes[r["pair"]][r["annotator"]] = r["score"]
        for model, ratings in r["ratings"].items():
            for scale, value in ratings.items():
                rated[scale][r["pair"], model].append(value)
    kappas = []
    for one, two in combinations(sorted({r["annotator"] for r in rows}), 2):
        both = [said for said in votes.values() if {one, two} <= said.keys()]
        kappa = cohen([said[one] for said in both], [said[two] for said in both])
        agreed = mean(said[one] == said[two] for said in both)
        kappas.append({"annotators": [one, two], "pairs": len(both), "kappa": kappa, "agreed": agreed})
    alphas = {s: krippendorff(list(v.values()), interval=True) for s, v in rated.items() if v}
    alpha = krippendorff([list(said.values()) for said in votes.values()])
    return {"cohen": kappas, "krippendorff_alpha": alpha, "krippendorff_alpha_ratings": alphas}


def describe(rows: list[dict], pairs: dict[str, dict]) -> dict:
    """How one annotator worked: share answered, checks passed, leaning to a side, time and speed."""
    real, checks = ([r for r in rows if r["check"] == check] for check in (False, True))
    asked = sum(pair["check"] for pair in pairs.values())
    sided = [r["choice"] for r in real if r["choice"] != "tie"]
    speeds = [60 * r["words"] / r["seconds"] for r in real if r["seconds"]]
    return {
        "answered": len(real),
        "of": len(pairs) - asked,
        "checks_passed": sum(r["check_passed"] for r in checks),
        "checks_answered": len(checks),
        "checks_of": asked,
        "chose_side_A": sided.count("A") / len(sided) if sided else None,
        "median_seconds": median(r["seconds"] for r in real) if real else None,
        "median_words_a_minute": median(speeds) if speeds else None,
    }


def report(key: dict, answers: list[dict]) -> dict:
    rows = [row for file in answers for row in unblind(file, key)]
    real = [row for row in rows if not row["check"]]
    if not real:
        raise ValueError("none of the files answers a single pair; nothing to report")
    annotators, comparisons = {}, []
    for name in (file["annotator"] for file in answers):
        annotators[name] = describe([r for r in rows if r["annotator"] == name], key["pairs"])
    for duel in combinations(key["models"], 2):
        if mine := [r for r in real if r["models"] == list(duel)]:
            lengths = {length: compare(part) for length, part in by_length(mine).items()}
            comparisons.append({"models": list(duel), **compare(mine), "by_length": lengths})
    result = {"study": key["study"], "annotators": annotators}
    result |= {"absent": sorted(key["pages"].keys() - annotators.keys()), "comparisons": comparisons}
    rated = {length: rate(part) for length, part in by_length(real).items()}
    result |= {"ratings": rate(real), "ratings_by_length": rated, "agreement": agree(real)}
    checks = [row for row in rows if row["check"]]
    return {**result, "warnings": warn(result), "judgements": real, "checks": checks}


def warn(result: dict) -> list[str]:
    """What a reader of the figures has to know first. Leave a file off the command line to leave it out."""
    notes = [f"no answers from {name}: the figures rest on the others" for name in result["absent"]]
    for name, a in result["annotators"].items():
        passed, checks, speed = a["checks_passed"], a["checks_answered"], a["median_words_a_minute"] or 0
        if a["answered"] < a["of"]:
            notes.append(f"{name} answered {a['answered']} of {a['of']} pairs; the rest is missing, not tied")
        if passed < checks:
            notes.append(f"{name} passed only {passed} of {checks} answered attention checks")
        if speed > 3 * READING:
            notes.append(f"{name} took {speed:.0f} words per minute (median): too fast to have read them")
    for c in result["comparisons"]:
        duel, win = " against ".join(c["models"]), c["win_rate"]
        if win["prompts"] < FEW:
            notes.append(f"{duel}: only {win['prompts']} prompts (n < {FEW}), intervals are rough")
        if win["interval"] and win["interval"][0] == win["interval"][1]:
            notes.append(f"{duel}: all prompts agree, so the interval has no width; read the sign test")
    return notes


def figure(f: dict, scale: float = 1.0) -> str:
    around = [scale * x for x in f["interval"]] if f["interval"] else None
    return estimate(scale * f["mean"], around, 1) + f", n = {f['prompts']}"


def show(page: dict) -> str:
    """The page's sentences, tables and warnings for the terminal."""
    tables = [t for t in page["tables"] if "fold" not in t]
    told = [f"{t['title']}\n\n{markdown_table(t['columns'], t['rows'])}" for t in tables]
    return "\n".join([*page["lead"], "", *told, *(f"warning: {note}" for note in page["warnings"])])


# ------------------------------------------------------------------------------------------------------------
# The page


def sentence(c: dict) -> str:
    """What the interval of a win rate supports."""
    first, second = c["models"]
    low, high = c["win_rate"]["interval"] or (0, 1)
    better = first if low > 0.5 else second if high < 0.5 else ""
    said = f"readers prefer {better}" if better else "no clear preference"
    return f"{first} against {second}, win rate in %: {figure(c['win_rate'], 100)} prompts; {said}."


def win_chart(c: dict) -> dict:
    """Win rate by requested length; 50 % is no preference."""
    name = f"{c['models'][0]} against {c['models'][1]}"
    series, names = {name: []}, list(c["by_length"])
    for i, figures in enumerate(c["by_length"].values()):
        around = [100 * x for x in figures["win_rate"]["interval"] or ()] or None
        series[name].append(point(i, 100 * figures["win_rate"]["mean"], around))
    ticks = [[i, label] for i, label in enumerate(names)]
    return chart(name, f"Win rate in %: {name}", "words requested", series, reference=50, ticks=ticks)


def page_of(result: dict) -> dict:
    """The data of lib/page.html: win rates with intervals, by length, agreement, how each reader worked."""
    wins = []
    for c in result["comparisons"]:
        for length, f in {"all": c, **c["by_length"]}.items():
            p, counts = f"{f['sign_test']['p']:.3g}", [f["won"], f["tied"], f["lost"]]
            wins.append([" against ".join(c["models"]), length, figure(f["win_rate"], 100), *counts, p])
    columns = ["models", "words requested", "win rate in %", "won", "tied", "lost", "sign test p"]
    tables = [table("Win rates", columns, wins, caption="[95 % interval over prompts]")]
    agreed = result["agreement"]
    rows = [["all readers, Krippendorff's alpha", "-", known(agreed["krippendorff_alpha"])]]
    for k in agreed["cohen"]:
        rows.append([f"{' and '.join(k['annotators'])}, Cohen's kappa", k["pairs"], known(k["kappa"])])
    for scale, alpha in agreed["krippendorff_alpha_ratings"].items():
        rows.append([f"{scale}, alpha of the ratings", "-", known(alpha)])
    tables.append(table("Agreement", ["who", "pairs", "agreement"], rows))
    if result["ratings"]:
        rows = [[m, *(figure(s[k]) if k in s else "-" for k in SCALES)] for m, s in result["ratings"].items()]
        tables.append(table("Ratings, 1 to 5", ["model", *SCALES], rows))
    rows = []
    for name, a in result["annotators"].items():
        pairs, checks = f"{a['answered']} of {a['of']}", f"{a['checks_passed']} of {a['checks_answered']}"
        speed = a["median_words_a_minute"]
        rows.append([name, pairs, checks, known(a["chose_side_A"]), f"{speed:.0f}" if speed else "-"])
    columns = ["reader", "pairs answered", "checks passed", "share that chose A", "words per minute"]
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
    page = Path(args.out).with_suffix(".html")
    files.write_json(args.out, result)
    write_page(page, page_of(result))
    print(f"{show(page_of(result))}\n{page}")
