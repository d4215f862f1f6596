"""A blinded human study of stories: pages for readers, a key for the researcher, statistics from both.

`make` draws pairs of stories that different models wrote to the same prompt, gives each annotator their own
random order and sides, and writes one HTML page per annotator. The page works from disk, without a server or
network, and names no model. `report` joins the downloaded answers with key.json: win rate, sign test,
agreement. The set-up (60 blinded pairs, two annotators, better or tie, 95 % bootstrap interval) is that of
the POLARIS human study.

    python -m scripts.blind make base.jsonl trained=out/eval/NAME/stories/MODEL.jsonl --annotators ann1 ann2
    python -m scripts.blind report --key out/blind/key.json answers-ann1.json answers-ann2.json

Input: JSON Lines with uid, prompt, target_words, story, as eval.py leaves them in stories/; of several lines
with one uid the last counts. Hand out only the .html files. Left out: sets of stories and their ratings,
attention checks, different pairs for different annotators, a correction for many model pairs.
"""

from __future__ import annotations

from lib.flags import exits_cleanly, parser
from scripts.blind import make, report


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    commands = p.add_subparsers(required=True)
    sub = commands.add_parser("make", help="stories of models -> a page per annotator and key.json")
    sub.set_defaults(run=make.make)
    more = "stories of one model, FILE or NAME=FILE; win rates are the earlier file's against the later"
    sub.add_argument("stories", nargs="+", metavar="FILE", help=more)
    sub.add_argument("--out", default="out/blind", help="folder for the pages and key.json (%(default)s)")
    sub.add_argument("--annotators", nargs="+", required=True, metavar="NAME", help="one page each")
    sub.add_argument("--pairs", type=int, default=60, help="pairs each annotator reads (%(default)s)")
    sub.add_argument("--seed", type=int, default=0)
    sub = commands.add_parser("report", help="key.json and answers -> win rates, agreement")
    sub.set_defaults(run=report.run)
    sub.add_argument("answers", nargs="+", metavar="ANSWERS", help="one downloaded file per annotator")
    sub.add_argument("--key", required=True)
    sub.add_argument("--out", default="out/blind/report.json", help="the figures (%(default)s)")
    args = p.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
