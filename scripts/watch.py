"""A page about training runs: curves, what their settings differ in, the groups of any step by advantage.

    python eval.py watch out/tiny  # or: python -m scripts.watch out/tiny
    python eval.py watch out/with-hri out/without-hri --steps 0 44
    python eval.py watch out/tiny --follow  # served on this machine alone, new steps appear

Reads config.json, metrics.jsonl and rollouts/ of each run and leaves report.html in the first run's folder;
of several runs also runs.png, with the curves of each run's own curves.png in one picture.
"""

import math
from pathlib import Path
from statistics import fmean

import data
import judge as judging
from lib import files, metrics
from lib.flags import exits_cleanly, parser
from lib.huggingface import read_json
from lib.pages import chart, point, serve, table, write_page
from train import CURVES

FIRST = {
    "reward/mean": "Reward",
    "length/in_band": "Share in the length band",
    "reward/quality": "Quality / 100",
    "judge/failed": "Failed verdicts",
}
# The part of a metric's name before the slash: the heading under which it is folded.
GROUPS = {"reward": "Reward and its parts", "length": "Length", "truncated": "Length", "hri": "Reference row"}
GROUPS |= {"deviation": "Deviation", "judge": "Judge", "watch": "Watch judge", "seconds": "Speed"}
GROUPS |= {"mismatch": "Sampler against trainer", "rollout": "Speed", "train": "Speed"}
PAGE_BYTES = 20_000_000  # of stories; a browser opens more, but not on a phone


def read_run(folder: Path) -> tuple[list[dict], dict]:
    """(finished steps, config). FileNotFoundError, ValueError: this is not a training run, or not yet."""
    if not (steps := metrics.read(folder / "metrics.jsonl")):
        raise ValueError(f"{folder / 'metrics.jsonl'} has no finished step yet; look again in a while")
    return steps, read_json(folder / "config.json")


def curves_of(runs: dict[str, tuple]) -> dict[str, dict[str, list]]:
    """{metric: {run: points}} of what is a finite number; FIRST comes first."""
    curves = {name: {} for name in FIRST}
    for run, (steps, _) in runs.items():
        for m in steps:
            for name, value in m.items():
                if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                    curves.setdefault(name, {}).setdefault(run, []).append(point(m["step"], value))
    return {name: series for name, series in curves.items() if series}


def charts_of(curves: dict, titles: dict[str, str]) -> list[dict]:
    """One chart per metric, the first four unfolded."""
    charts = []
    for name, series in curves.items():
        group = None if name in FIRST else GROUPS.get(name.partition("/")[0], "Update")
        exact = name == "judge/failed"  # counts are not smoothed
        charts.append(chart(name, titles.get(name, name), "step", series, group=group, exact=exact))
    return charts


def cards_of(curves: dict, titles: dict[str, str]) -> list[dict]:
    """The four figures that matter first: means of the first and last five steps where there are ten."""
    cards = []
    for name in (name for name in titles if name in curves):
        values = []
        for run, points in curves[name].items():
            y = [p["y"] for p in points]
            if name == "judge/failed":
                text, more = f"{sum(y):,.0f}", f"in {len(y)} steps"
            elif len(y) < 10:
                text, more = f"{y[-1]:.3g}", f"step {points[-1]['x']}"
            else:
                text, more = f"{fmean(y[-5:]):.3g}", f"from {fmean(y[:5]):.3g}"
            values.append({"name": run, "text": text, "more": more})
        cards.append({"title": titles[name], "values": values})
    return cards


def settings_tables(runs: dict[str, tuple]) -> list[dict]:
    """The configs: what differs is shown, the rest folded."""
    names = dict.fromkeys(name for _, config in runs.values() for name in config)
    rows = [[name, *(str(config.get(name, "-")) for _, config in runs.values())] for name in names]
    differs = [row for row in rows if row[0] != "name" and len(set(row[1:])) > 1]
    shown = [table("How the runs differ", ["setting", *runs], differs)] if differs else []
    return [*shown, table("config.json", ["setting", *runs], rows, fold="Settings")]


def choose_steps(stories: dict[int, Path], asked: list[int]) -> list[int]:
    """The steps whose stories are shown: those asked for, else as many as a page holds, ends kept."""
    if missing := sorted(set(asked) - set(stories)):
        there = f"{min(stories, default='none')} to {max(stories, default='none')}"
        raise ValueError(f"there are no stories of step {missing[0]}; there are those of steps {there}")
    steps, size = sorted(stories), sum(path.stat().st_size for path in stories.values())
    every = max(1, -(-size // PAGE_BYTES))
    return asked or sorted({*steps[::every], *steps[-1:]})


def groups_of(path: Path, step: str, quality: str) -> list[dict]:
    """The groups of one step, each sorted by advantage. quality: what the judge measures."""
    by_prompt, groups = {}, []
    for e in data.read_episodes(path):
        by_prompt.setdefault(e.example.uid, []).append(e)
    for episodes in by_prompt.values():
        items = []
        for i, e in sorted(enumerate(episodes, 1), key=lambda pair: -(pair[1].advantage or 0.0)):
            facts = {"advantage": e.advantage, "reward": e.reward, **e.rewards}
            facts = {k.replace("quality", quality): v and round(v, 3) for k, v in facts.items()}
            facts |= {"words": data.words(e.story), "asked": e.example.target_words}
            facts["ended"] = "by itself" if e.finished else "cut"
            label = reference(e.example) if e.is_human else f"policy, story {i}"
            items.append({"label": label, "text": e.story, "facts": facts, "verdict": e.verdict})
        groups.append({"step": step, "label": episodes[0].example.prompt, "items": items})
    return groups


def reference(example: data.Example) -> str:
    """The reference row; its writer where the data name a title, a person and a book."""
    parts = example.source.split(" | ")
    return f"reference, human: {parts[1]}" if len(parts) == 3 and parts[1] else "reference"


def page_of(folders: list[Path], asked: list[int]) -> dict:
    """The data of lib/page.html for one run or several."""
    runs = {folder.name: read_run(folder) for folder in folders}
    curves, titles = curves_of(runs), dict(FIRST)
    measured = {k: "form" if c.get("judge") == "offline" else "quality" for k, (_, c) in runs.items()}
    if "quality" not in measured.values():
        titles["reward/quality"] = "Form, not quality / 100"  # what the offline judge measures
    notes = [f"{k}: {len(m)} steps, {m[0]['step']} to {m[-1]['step']}" for k, (m, _) in runs.items()]
    if max(len(m) for m, _ in runs.values()) >= 10:
        notes.append("large figures: means of the last five steps, from those of the first five")
    groups, tables = [], settings_tables(runs)
    for folder in folders:
        stories = {int(p.stem[5:]): p for p in (folder / "rollouts").glob("step_*.jsonl")}
        shown = choose_steps(stories, asked)
        for step in shown:
            where = f"step {step}" if len(folders) == 1 else f"{folder.name}, step {step}"
            groups += groups_of(stories[step], where, measured[folder.name])
        if not asked and len(shown) < len(stories):
            few = f"stories of {len(shown)} of {len(stories)} steps of {folder.name}"
            notes.append(f"{few}, to keep this page small; --steps N shows others")
    dimensions = {d.key: d.title for d in judging.RUBRIC.dimensions}
    reader = {"title": "Groups, sorted by advantage", "groups": groups, "titles": dimensions}
    about = {"title": "Run " + " and ".join(runs), "notes": notes, "controls": True, "reader": reader}
    charts = charts_of(curves, titles)
    return about | {"cards": cards_of(curves, titles), "charts": charts, "tables": tables}


def follow(folders: list[Path], asked: list[int], port: int):
    """Serves the page on loopback until Ctrl-C. What a run has not written yet is waited for."""

    def stamp() -> str:
        parts = [folder / name for folder in folders for name in ("metrics.jsonl", "config.json")]
        return files.key_of([p.stat().st_size if p.exists() else 0 for p in parts])

    def make() -> dict:
        try:
            return page_of(folders, asked)
        except (ValueError, OSError) as error:
            title = "Run " + " and ".join(folder.name for folder in folders)
            return {"title": title, "notes": ["waiting"], "warnings": [str(error)]}

    with serve(stamp, make, port) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (this machine alone; Ctrl-C ends)", flush=True)
        server.serve_forever()


@exits_cleanly
def main(argv=None):
    p = parser(__doc__, "watch")
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="such as out/tiny")
    more = "whose stories to show (default: all that fit on a page)"
    p.add_argument("--steps", type=int, nargs="+", default=[], metavar="N", help=more)
    p.add_argument("--follow", action="store_true", help="serve the page on 127.0.0.1 while training goes on")
    p.add_argument("--port", type=int, default=6006, help="of --follow; 0: any (%(default)s)")
    args = p.parse_args(argv)
    if len({run.name for run in args.runs}) < len(args.runs):
        raise ValueError("two runs have one name; a run goes by the name of its folder")
    if args.follow:
        follow(args.runs, args.steps, args.port)
    else:
        page, picture = args.runs[0] / "report.html", args.runs[0] / "runs.png"
        write_page(page, page_of(args.runs, args.steps))
        print(page)
        if len(args.runs) > 1:
            metrics.plot({run.name: read_run(run)[0] for run in args.runs}, picture, CURVES)
            print(picture)


if __name__ == "__main__":
    main()
