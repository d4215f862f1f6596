"""A page about a training run: curves, and the groups of any step, sorted by advantage.

    python eval.py watch out/tiny            # or: python -m scripts.watch out/tiny
    python eval.py watch out/tiny --steps 0 44

Reads config.json, metrics.jsonl and rollouts/ of the run and leaves report.html beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import data
from lib.flags import exits_cleanly
from lib.pages import chart, marked, point, write_page

WATCHED = {  # chart: metrics of train.py; any others get one chart each
    "Reward": ("reward/mean", "hri/reward"),
    "Quality / 100": ("reward/quality",),
    "Penalties": ("reward/length", "reward/repetition", "reward/blank"),
    "Human row: weight and weighted advantage": ("hri/weight", "hri/advantage"),
    "Deviation": ("deviation/mean",),
    "Length": ("length/ratio", "length/in_band", "truncated"),
    "Entropy": ("entropy",),
    "Loss": ("loss",),
    "Gradient norm": ("grad_norm",),
    "Sampler against trainer, per token": ("mismatch/mean", "mismatch/k3", "mismatch/clipped"),
    "Tokens per second": ("rollout/tokens_per_second", "train/tokens_per_second"),
    "Judge: failures": ("judge/failed",),
    "Judge: dollars": ("judge/dollars",),
    "Seconds per step": ("seconds",),
}
PAGE_BYTES = 40_000_000  # of stories; a browser opens more, but not on a phone


def read_metrics(path: Path) -> list[dict]:
    """The finished steps. FileNotFoundError, ValueError: this is not a training run, or not yet."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the folder of a training run, such as out/tiny")
    whole = path.read_bytes().rpartition(b"\n")[0]  # a running training may be half-way through its last line
    try:
        metrics = [m for m in map(json.loads, whole.splitlines()) if m.get("step", -1) >= 0]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} holds a line that is not a step of a training run") from None
    if not metrics:
        raise ValueError(f"{path} has no finished step yet; look again in a while")
    return metrics


def choose_steps(files: dict[int, Path], asked: list[int]) -> list[int]:
    """The steps whose stories are shown: those asked for, else as many as a page holds, ends kept."""
    if missing := sorted(set(asked) - set(files)):
        raise ValueError(
            f"there are no stories of step {missing[0]}; "
            f"there are those of steps {min(files, default='none')} to {max(files, default='none')}"
        )
    total = sum(path.stat().st_size for path in files.values())
    if asked or total <= PAGE_BYTES:
        return asked or sorted(files)
    keep, steps = max(2, int(len(files) * PAGE_BYTES / total)), sorted(files)
    return sorted({steps[round(i * (len(steps) - 1) / (keep - 1))] for i in range(keep)})


def run_charts(metrics: list[dict], form: bool) -> tuple[list[dict], list[str]]:
    """(charts of what moved, each series with its change from first to last steps; what never moved)."""
    curves = {}  # metric: its finite values by step
    for m in metrics:
        for name, value in m.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append(point(m["step"], value))
    still = [name for name, points in curves.items() if len({p["y"] for p in points}) == 1]
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
    return charts, [f"{name} {curves[name][0]['y']:.4g}" for name in still]


def groups_of(path: Path, step: int, form: bool) -> list[dict]:
    """The groups of one step, each sorted by advantage."""
    by_prompt, groups = {}, []
    for e in data.read_episodes(path):
        by_prompt.setdefault(e.example.uid, []).append(e)
    for episodes in by_prompt.values():
        items = []
        for i, e in sorted(enumerate(episodes, 1), key=lambda pair: -pair[1].advantage):
            parts = {"form" if k == "quality" and form else k: round(v, 3) for k, v in e.rewards.items()}
            facts = {
                "advantage": round(e.advantage, 3),
                "reward": None if e.reward is None else round(e.reward, 3),
                **parts,
                "ended": "by itself" if e.finished else "cut",
                "words": f"{data.words(e.story):,} of {e.example.target_words:,}",
            }
            items.append(marked("human" if e.is_human else f"policy, story {i}", e.story, facts, e.verdict))
        groups.append({"step": f"step {step}", "label": episodes[0].example.prompt, "items": items})
    return groups


def run_page(folder: Path, steps: list[int]) -> dict:
    """The data of a run's page: curves, and the groups of each step."""
    metrics = read_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    form = config.get("judge") == "offline"
    charts, still = run_charts(metrics, form)
    files = {int(p.stem.removeprefix("step_")): p for p in sorted((folder / "rollouts").glob("step_*.jsonl"))}
    shown = choose_steps(files, steps)
    groups = [group for step in shown for group in groups_of(files[step], step, form)]
    notes = [
        f"{len(metrics)} steps, {metrics[0]['step']} to {metrics[-1]['step']}; curves are running means over "
        "the steps in pale, figures the means of the first five steps → of the last five"
    ]
    if still:
        notes.append("the same at every step: " + ", ".join(still))
    if not steps and len(shown) < len(files):
        notes.append(
            f"stories of {len(shown)} of {len(files)} steps, to keep this page small; --steps N shows others"
        )
    return {
        "title": f"Run {folder.name}",
        "notes": notes,
        "warnings": [],
        "charts": charts,
        "tables": [],
        "reader": {"title": "Groups, sorted by advantage", "groups": groups},
    }


@exits_cleanly
def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="eval.py watch", description=__doc__.split("\n\n")[0])
    p.add_argument("run", type=Path, help="such as out/tiny")
    more = "whose stories to show (default: all that fit on a page)"
    p.add_argument("--steps", type=int, nargs="+", default=[], metavar="N", help=more)
    args = p.parse_args(argv)
    write_page(args.run / "report.html", run_page(args.run, args.steps))
    print(args.run / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
