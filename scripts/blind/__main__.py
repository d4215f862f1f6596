"""A blinded human study of stories: pages for readers, a key for the researcher, statistics from both.

`make` draws pairs of stories that different models wrote to the same prompt, gives each annotator their own
random order and sides, and writes one HTML page per annotator. The page works from disk, without a server or
network, and names no model. `report` joins the downloaded answers with key.json: win rate, sign test,
agreement, ratings. The set-up (60 blinded pairs, two annotators, better or tie, 95 % bootstrap interval) is
that of the POLARIS human study; sets of several stories per prompt, rated for quality and diversity, are
those of Diverse Creative Writing.

    python -m scripts.blind make base.jsonl trained=out/eval/NAME/stories/MODEL.jsonl --annotators ann1 ann2
    python -m scripts.blind report --key out/blind/key.json answers-ann1.json answers-ann2.json

Input: JSON Lines with uid, prompt, target_words, story, as eval.py leaves them in stories/; several lines
with one uid make a set. Hand out only the .html files. Left out: different pairs for different annotators,
mixed-effects models, a correction for many model pairs. The hashes show which study an answer belongs to and
that it was not edited in passing. They do not stop a forger, who can compute them too.
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
    add = sub.add_argument
    more = "stories of one model, FILE or NAME=FILE; win rates are the earlier file's against the later"
    add("stories_files", nargs="+", metavar="FILE", help=more)
    add("--out", default="out/blind", help="folder for the pages and key.json (%(default)s)")
    add("--annotators", nargs="+", required=True, metavar="NAME", help="one page each")
    add("--pairs", type=int, default=60, help="pairs each annotator reads (%(default)s)")
    add("--stories", type=int, help="per side; 2 and more are rated too (default: all that there are)")
    add("--checks", type=int, default=3, help="attention checks beside the pairs (%(default)s)")
    add("--consent", metavar="FILE", help="a text that readers agree to before they begin (default: none)")
    add("--seed", type=int, default=0)
    sub = commands.add_parser("report", help="key.json and answers -> win rates, agreement, ratings")
    sub.set_defaults(run=report.run)
    add = sub.add_argument
    add("answers", nargs="+", metavar="ANSWERS", help="one downloaded file per annotator")
    add("--key", required=True)
    more = "the figures, and a page of them beside it (%(default)s)"
    add("--out", default="out/blind/report.json", help=more)
    args = p.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
