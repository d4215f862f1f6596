"""What an evaluation looks like: tables in the terminal, pictures, one HTML page without server or network.

    python -m scripts.report out/eval/50-100_tiny-base  # eval.py runs this at its end; it makes them anew

Nothing is measured here: report.json and stories/ of the folder hold everything that is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import data
from lib import files
from lib.flags import exits_cleanly
from lib.pages import chart, draw_chart, estimate, marked, point, text_table, write_page

METRICS = {  # name in report.json: (title, digits)
    "quality": ("quality", 1),
    "third_1": ("quality, beginning", 1),
    "third_2": ("quality, middle", 1),
    "third_3": ("quality, end", 1),
    "decay": ("quality, end - beginning", 1),
    "written": ("words", 0),
    "ratio": ("written / requested", 2),
    "in_band": ("share in band", 2),
    "length_score": ("length score", 1),
    "early": ("stopped early", 2),
    "truncated": ("truncated", 2),
    "empty": ("empty", 2),
    "repetition": ("repetition", 3),
    "compression": ("compression ratio", 2),
    "distinct_2": ("distinct-2", 3),
    "distance": ("pairwise distance", 3),
    "vendi": ("Vendi score", 2),
}
HEADLINE = ("ratio", "in_band", "quality")


def title(metric: str, report: dict) -> str:
    return METRICS[metric][0].replace("quality", report["judged"])  # what measures form is not called quality


def show(figure: dict, digits: int, prompts: int) -> str:
    """The mean, its interval where there is one, and the number of prompts where it is not `prompts`."""
    text = estimate(figure["mean"], figure["interval"], digits)
    return text if text == "-" or figure["prompts"] == prompts else f"{text} n={figure['prompts']}"


def rows_of(report: dict, by_metric: dict, metrics) -> list[list[str]]:
    """One row per metric, one column per bucket; a slope has one more digit. The last row counts prompts."""
    n = {c: by_metric["ratio"][c]["prompts"] for c in report["columns"]}
    rows = []
    for m in metrics:
        if by_metric[m]["all"]["mean"] is not None:
            cells = [show(by_metric[m][c], METRICS[m][1] + (c == "slope"), n[c]) for c in n]
            rows.append([title(m, report), *cells])
    return [*rows, ["prompts", *map(str, n.values())]]


def print_report(report: dict):
    """The headline of each model and of each difference, one line per length; the page has the rest."""
    tables = list(report["figures"].items())
    for d in report["differences"]:
        tables.append((f"{d['of']} minus {d['minus']}, paired by request", d["figures"]))
    for label, by_metric in tables:
        head, *rows, prompts = [
            ["words requested", *report["columns"]],
            *rows_of(report, by_metric, HEADLINE),
        ]
        print(f"\n{label}\n{text_table(list(zip(head, prompts, *rows)))}")
    print("\nin brackets: 95 % bootstrap intervals over prompts")
    for warning in report["warnings"]:
        print(f"note: {warning}")


# ------------------------------------------------------------------------------------------------------------
# The page


def charts_of(report: dict) -> list[dict]:
    figures, at, judged = report["figures"], report["buckets"], report["judged"].capitalize()
    axis = {
        "x": "words requested",
        "log": max(at.values()) >= 8 * min(at.values()),
        "ticks": [[x, f"{x:,.0f}"] for x in at.values()],
    }

    def points(pairs):
        return [point(x, f["mean"], f["interval"]) for x, f in pairs if f["mean"] is not None]

    def by_length(metric):
        return {k: points((x, f[metric][bucket]) for bucket, x in at.items()) for k, f in figures.items()}

    within = {k: points((i, f[f"third_{i}"]["all"]) for i in (1, 2, 3)) for k, f in figures.items()}
    parts = {"x": "third of the story", "ticks": [[1, "beginning"], [2, "middle"], [3, "end"]]}
    level = {"reference": 1, "band": report["band"]}
    charts = [
        chart("quality", judged + ", not quality" * (judged == "Form"), series=by_length("quality"), **axis),
        chart("ratio", "Words written / requested", series=by_length("ratio"), **level, **axis),
        chart("thirds", f"{judged} within a story", series=within, **parts),
    ]
    return [c for c in charts if c["series"]]


def page_of(report: dict, stories: dict[str, list[dict]]) -> dict:
    """The data of lib/page.html: charts, tables, stories by request."""
    slope = "slope per bucket"
    columns = ["words requested", *(slope if c == "slope" else c for c in report["columns"])]
    caption, tables = "means over prompts [95 % bootstrap interval]", []
    for label, f in report["figures"].items():
        rows = rows_of(report, f, METRICS)
        tables.append({"title": label, "caption": caption, "columns": columns, "rows": rows})
    for d in report["differences"]:
        heading, rows = f"{d['of']} minus {d['minus']}", rows_of(report, d["figures"], d["figures"])
        tables.append({"title": heading, "caption": "paired by request", "columns": columns, "rows": rows})
    groups = {}
    for label, rows in stories.items():
        for row in rows:
            verdict, target = row["verdict"], row["target_words"]
            facts = {
                report["judged"]: None if verdict is None else round(verdict["score"], 1),
                "ended": "by itself" if row["finished"] else "cut",
                "words": f"{data.words(row['story']):,} of {target:,}",
            }
            several = any(r["sample"] for r in rows)
            name = f"{label}, story {row['sample'] + 1}" if several else label
            item = marked(name, row["story"], facts, verdict)
            groups.setdefault((target, row["prompt"]), []).append(item)
    groups = [
        {"step": f"{t:,} words", "label": p, "items": items} for (t, p), items in sorted(groups.items())
    ]
    return {
        "title": "How good, how long",
        "notes": report["notes"],
        "warnings": report["warnings"],
        "tables": tables,
        "charts": charts_of(report),
        "reader": {"title": "The stories", "groups": groups},
    }


@exits_cleanly
def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__.split("\n\n")[0])
    p.add_argument("folder", type=Path, help="of an evaluation, under out/eval/")
    folder = p.parse_args(argv).folder
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"no {folder / 'report.json'}; give a folder that eval.py wrote")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    stories = {k: [row for _, row in files.read_lines(folder / f)] for k, f in report["stories"].items()}
    page = page_of(report, stories)
    for c in page["charts"]:
        draw_chart(folder / f"{c['name']}.png", c)
    write_page(folder / "report.html", page)
    print_report(report)
    print(f"\n{folder}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
