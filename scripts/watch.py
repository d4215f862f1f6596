"""A page about training runs: curves, what their settings differ in, the groups of any step by advantage.

    python eval.py watch out/tiny  # or: python -m scripts.watch out/tiny
    python eval.py watch out/with-hri out/without-hri --steps 0 44
    python eval.py watch out/tiny --follow  # served on this machine alone, new steps appear

Reads config.json, metrics.jsonl and rollouts/ of each run and leaves report.html in the first run's folder;
of several runs also runs.png, with the curves of each run's own curves.png in one picture.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean

import data
import judge as judging
from lib import files, metrics
from lib.flags import exits_cleanly, parser
from lib.huggingface import read_json
from lib.pages import chart, page_html, table, write_page
from train import CURVES

FIRST = {
    "reward/mean": "Reward",
    "length/in_band": "Share in the length band",
    "reward/quality": "Quality / 100",
    "judge/failed": "Failed verdicts",
}
PAGE_BYTES = 20_000_000  # of stories; a browser opens more, but not on a phone


def read_run(folder: Path) -> tuple[list[dict], dict]:
    """(finished steps, config). FileNotFoundError, ValueError: this is not a training run, or not yet."""
    if not (steps := metrics.read(folder / "metrics.jsonl")):
        raise ValueError(f"{folder / 'metrics.jsonl'} has no finished step yet; look again in a while")
    return steps, read_json(folder / "config.json")


def value(run: str, points: list[dict], count: bool) -> dict:
    """What a card says of a run: a sum of counts, or the means of the first and last five of ten steps."""
    y = [p["y"] for p in points]
    if count:
        text, more = f"{sum(y):,.0f}", f"in {len(y)} steps"
    elif len(y) < 10:
        text, more = f"{y[-1]:.3g}", f"step {points[-1]['x']}"
    else:
        text, more = f"{fmean(y[-5:]):.3g}", f"from {fmean(y[:5]):.3g}"
    return {"name": run, "text": text, "more": more}


def figures_of(runs: dict[str, tuple], titles: dict[str, str]) -> dict:
    """A chart per metric; those in `titles` have a card and come first, the others are folded by the part of
    their name before the slash."""
    curves, cards, charts = metrics.curves({k: steps for k, (steps, _) in runs.items()}), [], []
    for name in dict.fromkeys([*titles, *curves]):
        series, count = curves.get(name, {}), name == "judge/failed"  # counts are not smoothed
        if series:
            group = None if name in titles else name.rpartition("/")[0] or "update"
            title = titles.get(name, name)
            charts.append(chart(name, title, "step", series, group=group, exact=count))
        if series and name in titles:
            cards.append({"title": title, "values": [value(run, p, count) for run, p in series.items()]})
    return {"cards": cards, "charts": charts}


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
        items, source = [], episodes[0].example.source.split(" | ")
        # A person wrote it where the data name a title, an author and a book.
        reference = f"reference, human: {source[1]}" if len(source) == 3 and source[1] else "reference"
        for i, e in sorted(enumerate(episodes, 1), key=lambda pair: -(pair[1].advantage or 0.0)):
            facts = {"advantage": e.advantage, "reward": e.reward, **e.rewards}
            facts = {k.replace("quality", quality): v and round(v, 3) for k, v in facts.items()}
            facts |= {"words": data.words(e.story), "asked": e.example.target_words}
            facts["ended"] = "by itself" if e.finished else "cut"
            label = reference if e.is_human else f"policy, story {i}"
            items.append({"label": label, "text": e.story, "facts": facts, "verdict": e.verdict})
        groups.append({"step": step, "label": episodes[0].example.prompt, "items": items})
    return groups


def page_of(folders: list[Path], asked: list[int]) -> dict:
    """The data of lib/page.html for one run or several."""
    runs = {folder.name: read_run(folder) for folder in folders}
    titles, notes, groups = dict(FIRST), [], []
    if all(config.get("judge") == "offline" for _, config in runs.values()):
        titles["reward/quality"] = "Form, not quality / 100"  # what the offline judge measures
    for folder, (steps, config) in zip(folders, runs.values()):
        stories = {int(p.stem[5:]): p for p in (folder / "rollouts").glob("step_*.jsonl")}
        shown = choose_steps(stories, asked)
        judged = "form" if config.get("judge") == "offline" else "quality"
        told = f"{folder.name}: {len(steps)} steps, {steps[0]['step']} to {steps[-1]['step']}"
        few = f", with stories of {len(shown)}; --steps N shows others"
        notes.append(told + few * (len(shown) < len(stories)))
        for step in shown:
            where = f"step {step}" if len(folders) == 1 else f"{folder.name}, step {step}"
            groups += groups_of(stories[step], where, judged)
    if max(len(steps) for steps, _ in runs.values()) >= 10:
        notes.append("large figures: means of the last five steps, from those of the first five")
    settings = dict.fromkeys(name for _, config in runs.values() for name in config)
    rows = [[name, *(str(config.get(name, "-")) for _, config in runs.values())] for name in settings]
    tables = [table("config.json", ["setting", *runs], rows, fold="Settings")]
    if differs := [row for row in rows if row[0] != "name" and len(set(row[1:])) > 1]:
        tables.insert(0, table("How the runs differ", ["setting", *runs], differs))
    dimensions = {d.key: d.title for d in judging.RUBRIC.dimensions}
    reader = {"title": "Groups, sorted by advantage", "groups": groups, "titles": dimensions}
    about = {"title": "Run " + " and ".join(runs), "notes": notes, "controls": True, "reader": reader}
    return about | {"tables": tables} | figures_of(runs, titles)


def follow(folders: list[Path], asked: list[int], port: int):
    """Serves the page on loopback until Ctrl-C; what a run has not written yet is waited for. The open page
    asks for /data?seen=STAMP and gets its data anew, or 204."""
    logs = [folder / "metrics.jsonl" for folder in folders]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            here = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
            stamp = files.key_of([log.stat().st_size if log.exists() else 0 for log in logs])
            path, _, seen = self.path.partition("?seen=")
            if self.headers.get("Host", "") not in here:  # a name of another site that points to this machine
                self.send_error(403)
            elif path not in ("/", "/data"):
                self.send_error(404)
            elif seen == stamp:  # nothing is new
                self.send_response(204)
                self.end_headers()
            else:
                try:
                    page = page_of(folders, asked)
                except (ValueError, OSError) as error:
                    page = {"title": "Waiting", "warnings": [str(error)]}
                page["stamp"], kind = stamp, "text/html" if path == "/" else "application/json"
                text = page_html(page, served=True) if path == "/" else json.dumps(page, allow_nan=False)
                self.send_response(200)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.end_headers()
                self.wfile.write(text.encode("utf-8", "replace"))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
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
