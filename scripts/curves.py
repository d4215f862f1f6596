"""Several runs in one picture: what a change of one flag did to reward, length, quality and deviation.

    python train.py --run with-hri && python train.py --run without-hri --hri off
    python -m scripts.curves out/with-hri out/without-hri --out curves.png
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import train


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
        train.plot({run.name: read(run) for run in args.runs}, args.out)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
