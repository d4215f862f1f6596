"""What an evaluation looks like: tables in the terminal, pictures, one HTML page without server or network.

    python -m scripts.report out/eval/50-100_tiny-base_heldout  # eval.py runs this at its end

Nothing is measured here: report.json and stories/ of the folder hold everything that is shown.
"""

import csv
import json
from pathlib import Path

import data
import judge as judging
from lib import files
from lib.flags import exits_cleanly, parser
from lib.pages import chart, draw, estimate, markdown_table, point, table, write_page

METRICS = {  # name in report.json: (title, digits, what it means)
    "quality": ("quality", 1, "points of 100 that the judge gives the whole story"),
    "third_1": ("quality, beginning", 1, "the same of a story's first third, where it has 150 words"),
    "third_2": ("quality, middle", 1, "of its second third"),
    "third_3": ("quality, end", 1, "of its last third"),
    "decay": ("quality, end - beginning", 1, "below 0: stories get worse as they go on"),
    "written": ("words", 0, "words written"),
    "ratio": ("written / requested", 2, "words written by words asked for; 1 is what was asked"),
    "in_band": ("share in band", 2, "share of stories without a length penalty: the chart's grey band"),
    "length_score": ("length score", 1, "LongBench-Write's: 100 at the length asked, 0 at a third or at 4 x"),
    "early": ("stopped early", 2, "share that ended by itself below the band"),
    "truncated": ("truncated", 2, "share that was cut because it did not end"),
    "empty": ("empty", 2, "share without a word"),
    "repetition": ("repetition", 3, "penalty for repeated phrases and lines, 0 to 1.5"),
    "compression": ("compression ratio", 2, "bytes by compressed bytes; high: the text repeats itself"),
    "distinct_2": ("distinct-2", 3, "share of word pairs that occur once, over the stories of one request"),
    "distance": ("pairwise distance", 3, "how different two stories of one request are, 0 to 1"),
    "vendi": ("Vendi score", 2, "how many different stories those of one request are worth"),
}
HEADLINE = ("ratio", "in_band", "quality")


def title(metric: str, report: dict) -> str:
    return METRICS[metric][0].replace("quality", report["judged"])  # what measures form is not called quality


def show(figure: dict, digits: int, prompts: int | None = None) -> str:
    """The mean, its interval where there is one, and how many prompts where these are not the usual ones."""
    text, n = estimate(figure["mean"], figure["interval"], digits), figure["prompts"]
    return text if text == "-" or prompts in (None, n) else f"{text} n={n}"


def compared(report: dict) -> list[tuple[str, dict]]:
    """(name, figures) of each model, then of each difference."""
    pairs = [(f"{d['of']} minus {d['minus']}", d["figures"]) for d in report["differences"]]
    return [*report["figures"].items(), *pairs]


def sentences(report: dict) -> list[str]:
    """Of each model: how much of the longest length it writes, and how quality changes up to there."""
    at, told = sorted(report["buckets"].items(), key=lambda pair: pair[1]), []
    low, (last, high) = at[0][1], at[-1]
    where = f"At {high:,.0f} words" + (f", {high / low:.3g} x the shortest length" if len(at) > 1 else "")
    for label, f in report["figures"].items():
        ratio, quality, change = f["ratio"][last], f["quality"][last], f["quality"]["change"]
        text, edges = f"{where}, {label} writes {show(ratio, 2)} of what is asked", change["interval"]
        if quality["mean"] is not None:
            text += f", with a {report['judged']} of {show(quality, 1)}"
            if edges:
                way = "does not clearly change" if edges[0] <= 0 <= edges[1] else "changes"
                text += f"; it {way} against {low:,.0f} words ({show(change, 1)})"
        told.append(text + ".")
    return told


def write_csv(path: Path, report: dict):
    """report.json's figures, one line per model or difference, metric and length."""
    with files.atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "metric", "words requested", "mean", "low", "high", "prompts"])
        for label, by_metric in compared(report):
            for metric, columns in by_metric.items():
                for column, f in ((c, columns[c]) for c in report["columns"]):
                    edges = f["interval"] or ("", "")
                    rows.writerow([label, metric, column, f["mean"], *edges, f["prompts"]])


# ------------------------------------------------------------------------------------------------------------
# The page


def charts_of(report: dict) -> list[dict]:
    """Quality, and words written, against the length requested; a line per model."""
    at, judged, charts = report["buckets"], report["judged"].capitalize(), []
    log = max(at.values()) >= 8 * min(at.values())
    axis = {"x": "words requested", "log": log, "ticks": [[x, f"{x:,.0f}"] for x in at.values()]}
    names = {"quality": judged + ", not quality" * (judged == "Form"), "ratio": "Words written / requested"}
    level = {"reference": 1, "band": report["band"]}
    for metric, name in names.items():
        lines = {}
        for label, f in report["figures"].items():
            found = [(x, f[metric][bucket]) for bucket, x in at.items()]
            lines[label] = [point(x, y["mean"], y["interval"]) for x, y in found if y["mean"] is not None]
        charts.append(chart(metric, name, series=lines, **level if metric == "ratio" else {}, **axis))
    return [c for c in charts if c["series"]]


def tables_of(report: dict) -> list[dict]:
    """The headline at each length, then all figures of each model and of each difference of two."""
    columns, rows, tables = ["model", "words requested", *(title(m, report) for m in HEADLINE)], [], []
    for label, f in compared(report):
        for bucket in report["buckets"]:
            figures = [show(f[m][bucket], METRICS[m][1], f["ratio"][bucket]["prompts"]) for m in HEADLINE]
            rows.append([label, bucket, *figures])
    caption = "means over prompts [95 % bootstrap interval]"
    caption += "; differences are paired by request" * bool(report["differences"])
    tables.append(table("How long, how good", columns, rows, caption=caption))
    columns = ["words requested", *("slope per bucket" if c == "slope" else c for c in report["columns"])]
    for label, f in compared(report):
        n, rows, zero = {c: f["ratio"][c]["prompts"] for c in report["columns"]}, [], []
        for m in METRICS:
            if m in f and f[m]["all"]["mean"] is not None:
                cells = [show(f[m][c], METRICS[m][1] + (c == "slope"), n[c]) for c in n]
                if all(set(cell) <= set("0.[], ") for cell in cells):
                    zero.append(title(m, report))
                else:
                    rows.append([title(m, report), *cells])
        rows.append(["prompts", *map(str, n.values())])
        note = f"0 at every length: {', '.join(zero)}" if zero else ""
        tables.append(table(label, columns, rows, caption=note, fold="All figures"))
    return tables


def page_of(report: dict, stories: dict[str, list[dict]]) -> dict:
    """The data of lib/page.html: charts, tables, stories by request."""
    groups, rubric = {}, judging.load_rubric(report["settings"]["rubric"])
    for label, rows in stories.items():
        several = any(row["sample"] for row in rows)
        for row in rows:
            verdict, target, written = row["verdict"], row["target_words"], data.words(row["story"])
            facts = {report["judged"]: None if verdict is None else round(verdict["score"], 1)}
            facts |= {"words": written, "asked": target, "ended": "by itself" if row["finished"] else "cut"}
            name = f"{label}, story {row['sample'] + 1}" if several else label
            item = {"label": name, "text": row["story"], "facts": facts, "verdict": verdict}
            groups.setdefault((target, row["prompt"]), []).append(item)
    parts = [{"step": f"{t:,} words", "label": p, "items": rows} for (t, p), rows in sorted(groups.items())]
    words = [[title(m, report), meaning] for m, (*_, meaning) in METRICS.items()]
    words.append(["slope per bucket", "change from one length to the next, by least squares"])
    page = {"title": "How good, how long", "notes": report["notes"], "warnings": report["warnings"]}
    page |= {"lead": sentences(report), "charts": charts_of(report), "tables": tables_of(report)}
    reader = {"title": "The stories", "groups": parts, "titles": {d.key: d.title for d in rubric.dimensions}}
    return page | {"words": words, "reader": reader}


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("folder", type=Path, help="of an evaluation, under out/eval/")
    folder = p.parse_args(argv).folder
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"no {folder / 'report.json'}; give a folder that eval.py wrote")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    stories = {k: [row for _, row in files.read_lines(folder / f)] for k, f in report["stories"].items()}
    page = page_of(report, stories)
    for c in page["charts"]:
        draw(folder / f"{c['name']}.png", [c], dpi=200)
    write_csv(folder / "report.csv", report)
    write_page(folder / "report.html", page)
    first, told = page["tables"][0], [*page["lead"], *(f"note: {warning}" for warning in page["warnings"])]
    print(f"{first['title']}: {first['caption']}\n\n{markdown_table(first['columns'], first['rows'])}")
    print(*told, f"{folder}/report.html", sep="\n")


if __name__ == "__main__":
    main()
