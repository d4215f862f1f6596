"""Several runs in one picture: what a change of one flag did to reward, length, quality and deviation.

    python train.py --name with-hri && python train.py --name without-hri --hri off
    python -m scripts.curves out/with-hri out/without-hri --out curves.png
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import fmean

CURVES = (("reward/mean", "reward"), ("length/in_band", "share in length band"), ("reward/quality", "rubric score / 100"),
          ("reward/repetition", "repetition penalty"), ("hri/reward", "reward of the reference"), ("deviation/mean", "deviation"))


def plot(metrics, path: Path, curves=CURVES):
    """The curves of a run (its metrics), or of several ({name: metrics}), as one picture: each step, and a running mean."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    runs = metrics if isinstance(metrics, dict) else {"": metrics}
    fig, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for ax, (name, title) in zip(axes.flat, curves):
        for (label, lines), color in zip(runs.items(), ("#1f4e79", "#c0562c", "#4a7c3a", "#7a4a8a") * 9):
            points = [(m["step"], m[name]) for m in lines if m.get(name) is not None]
            if points:
                x, y = zip(*points)
                window = max(1, len(y) // 8)
                smooth = [fmean(y[max(0, i - window + 1):i + 1]) for i in range(len(y))]
                ax.plot(x, y, color=color, lw=1, alpha=0.35)
                ax.plot(x, smooth, color=color, lw=2, label=label)
        ax.set_title(title)
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    if len(runs) > 1:
        axes.flat[0].legend()
    temporary = path.with_name(f".{path.name}")
    fig.savefig(temporary, dpi=110)
    plt.close(fig)
    os.replace(temporary, path)


def read(run: Path) -> list[dict]:
    """GRPO steps of a run's metrics.jsonl. FileNotFoundError: no such run."""
    file = run / "metrics.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give the folder of a run, such as out/tiny")
    return [m for m in map(json.loads, file.read_text().splitlines()) if m["step"] >= 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders under out/")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="the picture (default %(default)s)")
    args = parser.parse_args()
    try:
        plot({run.name: read(run) for run in args.runs}, args.out)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
