"""Several runs in one picture: what a change of one flag did to reward, length, quality and deviation.

    python train.py --name with-hri && python train.py --name without-hri --hri off
    python -m scripts.curves out/with-hri out/without-hri --out out/curves.png

The curves are those of each run's own curves.png.
"""

from __future__ import annotations

from pathlib import Path

from lib.flags import exits_cleanly, parser
from lib.metrics import plot, read
from train import CURVES


@exits_cleanly
def main(argv=None):
    p = parser(__doc__, epilog=__doc__.split("\n\n")[1])
    p.add_argument("runs", nargs="+", type=Path, help="folders under out/")
    p.add_argument("--out", type=Path, default=Path("out/curves.png"), help="default %(default)s")
    args = p.parse_args(argv)
    plot({run.name: read(run / "metrics.jsonl") for run in args.runs}, args.out, CURVES)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
