"""What an evaluation or a training run looks like: tables in the terminal, PNGs for a paper, and one HTML page without a
server or a network (its markup, style and script are scripts/report.html), where two stories can be read side by side.

Nothing is measured here. `python eval.py` calls this with what report.json holds; `python eval.py watch out/tiny` calls
`watch`, which reads the metrics.jsonl and rollouts/ of a run and leaves report.html beside them.
"""
from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import re
from pathlib import Path

import data

TEMPLATE = Path(__file__).with_suffix(".html")
COLOURS = ("#2f6f9f", "#c05a2e", "#4d8a3d", "#8a4f9e", "#a8892c", "#3b8f8c", "#b0476b", "#6b6b6b")
METRICS = {  # name in report.json: (title, digits)
    "quality": ("quality", 1), "third_1": ("quality, beginning", 1), "third_2": ("quality, middle", 1),
    "third_3": ("quality, end", 1), "decay": ("quality, end - beginning", 1),
    "written": ("words", 0), "ratio": ("written / requested", 2), "in_band": ("share in band", 2),
    "length_score": ("length score", 1), "early": ("stopped early", 2), "truncated": ("truncated", 2), "empty": ("empty", 2),
    "repetition": ("repetition", 3), "compression": ("compression ratio", 2), "distinct_2": ("distinct-2", 3),
    "distance": ("pairwise distance", 3), "vendi": ("Vendi score", 2)}
HEADLINE = ("ratio", "in_band", "quality")


def write_file(path: Path, text: str):
    """All of it or nothing, whenever it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------------------
# Figures as text

def title(metric: str, report: dict) -> str:
    return METRICS[metric][0].replace("quality", report["judged"])  # what measures form is not called quality


def show(figure: dict, digits: int, prompts: int) -> str:
    """The mean, its interval where there is one, and the number of prompts where it is not `prompts`."""
    if figure["mean"] is None:
        return "-"
    # + 0.0: no -0.00
    mean, *interval = (f"{round(x, digits) + 0.0:,.{digits}f}" for x in (figure["mean"], *(figure["interval"] or ())))
    return (mean + (f" [{', '.join(interval)}]" if interval else "")
            + (f" n={figure['prompts']}" if figure["prompts"] != prompts else ""))


def rows_of(report: dict, by_metric: dict, metrics) -> list[list[str]]:
    """A row a metric, a column a bucket; a slope has a digit more. The last row is the number of prompts."""
    n = {c: by_metric["ratio"][c]["prompts"] for c in report["columns"]}
    rows = [[title(m, report), *(show(by_metric[m][c], METRICS[m][1] + (c == "slope"), n[c]) for c in n)]
            for m in metrics if by_metric[m]["all"]["mean"] is not None]
    return [*rows, ["prompts", *map(str, n.values())]]


def print_report(report: dict):
    """The headline of each model and of each difference, a line a length; the page has the rest."""
    compared = [(f"{d['of']} minus {d['minus']}, paired by request", d["figures"]) for d in report["differences"]]
    for label, by_metric in [*report["figures"].items(), *compared]:
        table = [["words requested", *report["columns"]], *rows_of(report, by_metric, HEADLINE)]
        lines = list(zip(*(table[i] for i in (0, -1, *range(1, len(table) - 1)))))
        widths = [max(map(len, column)) for column in zip(*lines)]
        print(f"\n{label}", *("  ".join(cell.rjust(w) for cell, w in zip(line, widths)) for line in lines), sep="\n")
    print("\nin brackets: 95 % bootstrap intervals over prompts", *(f"note: {w}" for w in report["warnings"]), sep="\n")


# ---------------------------------------------------------------------------------------------------------------------
# The page of an evaluation

def write_page(path: Path, page: dict):
    """scripts/report.html with the page's data inside, as JSON in which no tag can begin; its script shows text as text."""
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    blob = json.dumps(page, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    write_file(path, template.replace("__SCRIPT_HASH__", f"sha256-{digest}", 1).replace("__DATA__", blob, 1))


def story_item(label: str, story: str, target: int, facts: dict, verdict: dict | None) -> dict:
    """A story for the page's reader: numbers beside it, and what the verdict cites, to be marked in the text."""
    verdict = verdict or {}
    why = verdict.get("why", {})
    return {"label": label, "text": story, "facts": facts | {"words": f"{data.words(story):,} of {target:,}"},
            "quotes": [{"text": quote, "key": key, "why": why.get(key, "")}
                       for key, quotes in verdict.get("quotes", {}).items() for quote in quotes],
            "scores": [[key, value, why.get(key, "")] for key, value in verdict.get("scores", {}).items()]}


def chart(name: str, heading: str, x: str, series: dict[str, list[tuple]], **more) -> dict:
    """series: {label: [(x, y, low, high)]}; more: band [[x, low, high]], reference (a level), log (the x axis), ticks [[x, text]]."""
    return {"name": name, "title": heading, "x": x, **more, "series": [
        {"name": label, "points": [dict(zip(("x", "y", "low", "high"), p)) for p in points]}
        for label, points in series.items() if points]}


def points(figures: list[tuple[float, dict]]) -> list[tuple]:
    return [(x, f["mean"], *(f["interval"] or (None, None))) for x, f in figures if f["mean"] is not None]


def report_page(report: dict, stories: dict[str, list[dict]]) -> dict:
    """The data of a page: charts, tables, stories by request. Shapes: as scripts/report.html reads them."""
    figures, at = report["figures"], report["buckets"]
    judged = report["judged"].capitalize()
    axis = {"x": "words requested", "log": max(at.values()) >= 8 * min(at.values()),
            "ticks": [[x, f"{x:,.0f}"] for x in at.values()]}

    def by_length(metric):
        return {label: points([(x, f[metric][bucket]) for bucket, x in at.items()]) for label, f in figures.items()}
    within = {label: points([(i, f[f"third_{i}"]["all"]) for i in (1, 2, 3)]) for label, f in figures.items()}
    charts = [chart("quality", judged + ", not quality" * (judged == "Form"), series=by_length("quality"), **axis),
              chart("ratio", "Words written / requested", series=by_length("ratio"), reference=1, band=report["band"], **axis),
              chart("thirds", f"{judged} within a story", "third of the story", within,
                    ticks=[[1, "beginning"], [2, "middle"], [3, "end"]])]
    columns = ["words requested", *("slope a bucket" if c == "slope" else c for c in report["columns"])]
    tables = [{"title": label, "caption": "means over prompts [95 % bootstrap interval]", "columns": columns,
               "rows": rows_of(report, f, METRICS)} for label, f in figures.items()]
    tables += [{"title": f"{d['of']} minus {d['minus']}", "caption": "paired by request", "columns": columns,
                "rows": rows_of(report, d["figures"], d["figures"])} for d in report["differences"]]
    groups = {}
    for label, rows in stories.items():
        for row in rows:
            verdict = row["verdicts"][0]
            facts = {report["judged"]: None if verdict is None else round(verdict["score"], 1),
                     "ended": "by itself" if row["finished"] else "cut"}
            name = label if not any(r["sample"] for r in rows) else f"{label}, story {row['sample'] + 1}"
            groups.setdefault((row["target_words"], row["prompt"]), []).append(
                story_item(name, row["story"], row["target_words"], facts, verdict))
    groups = [{"step": f"{target:,} words", "label": prompt, "items": items} for (target, prompt), items in sorted(groups.items())]
    return {"title": "How good, how long", "notes": report["notes"], "warnings": report["warnings"], "tables": tables,
            "charts": [c for c in charts if c["series"]], "reader": {"title": "The stories", "groups": groups}}


def write_pngs(folder: Path, charts: list[dict]):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    for c in charts:
        fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
        for colour, series in zip(COLOURS * 9, c["series"]):
            x, y = ([p[k] for p in series["points"]] for k in "xy")
            ax.plot(x, y, "o-", ms=3, color=colour, label=series["name"])
            low, high = ([p["y"] if p[k] is None else p[k] for p in series["points"]] for k in ("low", "high"))
            ax.fill_between(x, low, high, color=colour, alpha=.15, lw=0)
        if c.get("band"):
            ax.fill_between(*zip(*c["band"]), color="#888", alpha=.12, lw=0, label="band without a penalty")
        if c.get("log"):
            ax.set_xscale("log")
        ax.set_xticks(*zip(*c["ticks"]))
        ax.minorticks_off()
        ax.set(xlabel=c["x"], title=c["title"])
        ax.grid(alpha=.25)
        ax.legend(fontsize=8)
        fig.savefig(folder / f".{c['name']}.png", dpi=200)
        os.replace(folder / f".{c['name']}.png", folder / f"{c['name']}.png")
        plt.close(fig)


# ---------------------------------------------------------------------------------------------------------------------
# The page of a training run

WATCHED = {  # chart: metrics of train.py; any others get a chart each
    "Reward": ("reward/mean", "hri/reward"), "Quality / 100": ("reward/quality",),
    "Penalties": ("reward/length", "reward/repetition", "reward/blank"),
    "Human row: weight and weighted advantage": ("hri/weight", "hri/advantage"), "Deviation": ("deviation/mean",),
    "Length": ("length/ratio", "length/in_band", "truncated"), "Entropy": ("entropy",), "Loss": ("loss",),
    "Gradient norm": ("grad_norm",),
    "Sampler against trainer, per token": ("mismatch/mean", "mismatch/k3", "mismatch/clipped"),
    "Tokens per second": ("rollout/tokens_per_second", "train/tokens_per_second"),
    "Judge: failures": ("judge/failed",), "Judge: dollars": ("judge/dollars",), "Seconds a step": ("seconds",)}
PAGE_BYTES = 40_000_000  # of stories; a browser opens more, but not on a phone


def read_metrics(path: Path) -> list[dict]:
    """The finished steps. FileNotFoundError, ValueError: this is no training run, or not yet."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the folder of a training run, such as out/tiny")
    whole = path.read_bytes().rpartition(b"\n")[0]  # a running training may be half-way through its last line
    try:
        metrics = [m for m in map(json.loads, whole.splitlines()) if m.get("step", -1) >= 0]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} holds a line that is no step of a training run") from None
    if not metrics:
        raise ValueError(f"{path} has no finished step yet; look again in a while")
    return metrics


def choose_steps(files: dict[int, Path], asked: list[int]) -> list[int]:
    """The steps whose stories are shown: those asked for, else as many as fit on a page, first and last kept."""
    if missing := sorted(set(asked) - set(files)):
        raise ValueError(f"there are no stories of step {missing[0]}; "
                         f"there are those of steps {min(files, default='none')} to {max(files, default='none')}")
    total = sum(path.stat().st_size for path in files.values())
    if asked or total <= PAGE_BYTES:
        return asked or sorted(files)
    keep, steps = max(2, int(len(files) * PAGE_BYTES / total)), sorted(files)
    return sorted({steps[round(i * (len(steps) - 1) / (keep - 1))] for i in range(keep)})


def run_charts(metrics: list[dict], form: bool) -> tuple[list[dict], list[str]]:
    """(charts of what moved, each series with its change from first to last steps; what never moved, with its value)."""
    curves = {}  # metric: its finite values by step
    for m in metrics:
        for name, value in m.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((m["step"], value, None, None))
    still = [name for name, points in curves.items() if len({p[1] for p in points}) == 1]
    together = {name for names in WATCHED.values() for name in names}
    charts = []
    for heading, names in [*WATCHED.items(), *((name, (name,)) for name in curves if name not in together)]:
        if any(name in curves and name not in still for name in names):
            heading = "Form, not quality / 100" if form and names == ("reward/quality",) else heading
            charts.append(chart(heading, heading, "step", {name: curves.get(name) for name in names}))
            for series in charts[-1]["series"]:
                y = [p["y"] for p in series["points"]]
                ends = (sum(part) / len(part) for part in (y[:5], y[-5:]))
                series["change"] = " → ".join(f"{e:,.0f}" if abs(e) >= 1000 else f"{e:.3g}" for e in ends)
    return charts, [f"{name} {curves[name][0][1]:.4g}" for name in still]


def run_page(folder: Path, steps: list[int]) -> dict:
    """The data of a run's page: curves, and the groups of each step, sorted by advantage."""
    metrics = read_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    form = config.get("judge") == "offline"
    charts, still = run_charts(metrics, form)
    files = {int(p.stem.removeprefix("step_")): p for p in sorted((folder / "rollouts").glob("step_*.jsonl"))}
    shown = choose_steps(files, steps)
    groups, quality = [], "form" if form else "quality"
    for step in shown:
        by_prompt = {}
        for e in data.read_episodes(files[step]):
            by_prompt.setdefault(e.example.uid, []).append(e)
        for episodes in by_prompt.values():
            items = []
            for i, e in sorted(enumerate(episodes, 1), key=lambda pair: -pair[1].advantage):
                facts = {"advantage": round(e.advantage, 3), "reward": None if e.reward is None else round(e.reward, 3),
                         **{quality if name == "quality" else name: round(value, 3) for name, value in e.rewards.items()},
                         "ended": "by itself" if e.finished else "cut"}
                label = "human" if e.is_human else f"policy, story {i}"
                items.append(story_item(label, e.story, e.example.target_words, facts, e.verdict))
            groups.append({"step": f"step {step}", "label": episodes[0].example.prompt, "items": items})
    notes = [f"{len(metrics)} steps, {metrics[0]['step']} to {metrics[-1]['step']}; curves are running means over the steps in "
             "pale, figures the means of the first five steps → of the last five"]
    if still:
        notes.append("the same at every step: " + ", ".join(still))
    if not steps and len(shown) < len(files):
        notes.append(f"stories of {len(shown)} of {len(files)} steps, to keep this page small; --steps N shows others")
    return {"title": f"Run {folder.name}", "notes": notes, "warnings": [], "charts": charts,
            "tables": [], "reader": {"title": "Groups, sorted by advantage", "groups": groups}}


def watch(argv: list[str]):
    p = argparse.ArgumentParser(prog="eval.py watch",
                                description="A page about a training run: curves, and the groups of any step.")
    p.add_argument("run", type=Path, help="such as out/tiny")
    p.add_argument("--steps", type=int, nargs="+", default=[], metavar="N",
                   help="whose stories to show (default: all that fit on a page)")
    args = p.parse_args(argv)
    write_page(args.run / "report.html", run_page(args.run, args.steps))
    print(args.run / "report.html")
