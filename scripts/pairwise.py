"""Which of two models reads better: each pair of stories judged in both orders, win rates and Elo.

    python -m scripts.pairwise out/eval/NAME/stories/base.jsonl out/eval/NAME/stories/trained.jsonl

Strengths are those of Bradley and Terry (1952), printed as Elo. The judge is eval.py's: JUDGE_URL and
JUDGE_MODEL, else the offline one, which measures form.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

import judge as judging
from lib import files, stats
from lib.answers import Fault, closed, fenced
from lib.endpoint import known
from lib.flags import exits_cleanly, parser
from lib.sweep import FEW

TIE = 2.0  # points of the offline judge within which two stories are equal


def pair_task(rubric: judging.Rubric, prompt: str, first: str, second: str):
    """Messages, schema and reader of one comparison. The reader gives 1, 0.5 or 0 for the first story."""
    standards = []
    for d in rubric.dimensions:
        standards.append(f"{'Fault' if d.key[0] == 'N' else 'Strength'}: {d.title} ({d.high:g})")
    task = (
        "Two stories answer one request. Decide which is the better story by these standards, or that "
        "neither is. Neither their order nor their length is a reason. Answer with one JSON object and "
        'nothing else: {"why": "...", "better": "1" | "2" | "tie"}.'
    )
    schema = closed({"why": {"type": "string"}, "better": {"type": "string", "enum": ["1", "2", "tie"]}})

    def read(answer: dict) -> dict:
        said = str(answer.get("better"))
        if said not in ("1", "2", "tie"):
            raise Fault("schema", "ask", "better is not 1, 2 or tie")
        return {"first": {"1": 1.0, "tie": 0.5, "2": 0.0}[said], "why": str(answer.get("why", ""))}

    texts = fenced({"REQUEST": judging.strip_length(prompt), "STORY 1": first, "STORY 2": second})
    system = "\n".join([task, "", *standards])
    return [{"role": "system", "content": system}, {"role": "user", "content": texts}], schema, read


def compare(judge, prompt: str, first: str, second: str) -> Future:
    """Future of {"first": 1, 0.5 or 0 for the story shown first}, or of None."""
    if isinstance(judge, judging.OfflineJudge):
        gap = judge.score(prompt, first).score - judge.score(prompt, second).score
        return known({"first": 0.5 if abs(gap) <= TIE else float(gap > 0)})
    # A question of its own kind goes the judge's way: its cache, its limits, its retries.
    return judge.ask("pairwise", 0, prompt, [first, second], *pair_task(judge.rubric, prompt, first, second))


def read_sets(paths: list[Path]) -> dict[str, dict[str, list[dict]]]:
    """{model: {uid: its stories}}. ValueError: another schema, two files of one name, other prompts."""
    sets = {}
    for path in paths:
        if path.stem in sets:
            raise ValueError(f"two files are named {path.stem}; a model is called by its file's name")
        by_uid = sets[path.stem] = {}
        for number, row in files.read_lines(path, "stories as eval.py writes them to stories/"):
            if not {"uid", "prompt", "story"} <= row.keys():
                raise ValueError(f"{path} line {number}: no uid, prompt and story; give files of stories/")
            by_uid.setdefault(row["uid"], []).append({"prompt": row["prompt"], "story": row["story"]})
    if len(sets) < 2:
        raise ValueError("give the stories of two models or more")
    asked = {k: {uid: rows[0]["prompt"] for uid, rows in by_uid.items()} for k, by_uid in sets.items()}
    first, *others = sets
    for name in others:
        if asked[name] != asked[first]:
            more = "give both the same --prompts and --lengths"
            raise ValueError(f"{first} and {name} answered different prompts; {more}")
    return sets


def tally(votes: list[dict], labels: list[str], draws_U: np.ndarray | None = None) -> np.ndarray:
    """wins [M, M] of votes {a, b, score of a, unit}; draws_U: how often each unit, a prompt, counts."""
    at, wins_MM = {label: i for i, label in enumerate(labels)}, np.zeros((len(labels), len(labels)))
    units = {u: i for i, u in enumerate(dict.fromkeys(v["unit"] for v in votes))}
    for v in votes:
        w = 1.0 if draws_U is None else draws_U[units[v["unit"]]]
        wins_MM[at[v["a"]], at[v["b"]]] += w * v["score"]
        wins_MM[at[v["b"]], at[v["a"]]] += w * (1 - v["score"])
    return wins_MM


def vote(sets: dict, judge) -> tuple[list[dict], list[float], int]:
    """Every story of a model against the story of the same number of each other model, in both orders ->
    (votes, what the story shown first got, comparisons without a verdict)."""
    asked, votes, first, failed = [], [], [], 0
    for a, b in combinations(sets, 2):
        for uid in sets[a]:
            for x, y in zip(sets[a][uid], sets[b][uid]):
                prompt, one, two = x["prompt"], x["story"], y["story"]
                unit = judging.strip_length(prompt)  # asked for at several lengths, it is still one prompt
                both = compare(judge, prompt, one, two), compare(judge, prompt, two, one)
                asked.append(({"a": a, "b": b, "unit": unit}, *both))
    for pair, forth, back in tqdm(asked, desc="judging pairs", mininterval=1):
        forth, back = forth.result(), back.result()
        if forth is None or back is None:
            failed += 1  # half a comparison would carry the judge's liking for the first place
            continue
        votes.append(pair | {"score": (forth["first"] + 1 - back["first"]) / 2})
        first += [forth["first"], back["first"]]
    return votes, first, failed


def pairwise(paths: list[Path], judge, seed: int = 0, resamples: int = 500) -> dict:
    """Elo per model and win rate per pair, with 95 % intervals that resample prompts."""
    sets = read_sets(paths)
    labels, (votes, first, failed) = list(sets), vote(sets, judge)
    if not votes:
        raise ValueError("no pair was judged; check the judge")
    units, wins = len({v["unit"] for v in votes}), tally(votes, labels)
    drawn = [tally(votes, labels, draw_U) for draw_U in stats.draws(units, resamples, seed)]
    elos_RM = np.array([stats.elo(stats.bradley_terry(w)) for w in drawn])
    models = {}
    for i, strength in enumerate(stats.elo(stats.bradley_terry(wins))):
        models[labels[i]] = {"elo": float(strength), "interval": stats.interval(elos_RM[:, i])}
    pairs = []
    for i, j in combinations(range(len(labels)), 2):
        games = wins[i, j] + wins[j, i]
        if games:  # else no verdict was given for any of their pairs
            rates = [w[i, j] / (w[i, j] + w[j, i]) for w in drawn if w[i, j] + w[j, i]]
            pair = {"of": labels[i], "against": labels[j], "win_rate": float(wins[i, j] / games)}
            pairs.append(pair | {"comparisons": int(games), "interval": stats.interval(rates)})
    alike = [forth == 1 - back for forth, back in zip(first[::2], first[1::2])]
    found = {"models": models, "pairs": pairs, "prompts": units, "failed": failed}
    return found | {"first_place": float(np.mean(first)), "same_in_both_orders": float(np.mean(alike))}


def show(result: dict) -> str:
    same, first = f"{result['same_in_both_orders']:.0%}", f"{result['first_place']:.0%}"
    lines = [
        f"{result['prompts']} prompts, each pair in both orders: {same} decided alike, the first place won "
        f"{first}, {result['failed']} without a verdict"
    ]
    for label, e in result["models"].items():
        low, high = e["interval"]
        lines.append(f"  {label}: Elo {e['elo']:.0f} [{low:.0f}, {high:.0f}]")
    for pair in result["pairs"]:
        low, high = pair["interval"]
        rate = f"wins {pair['win_rate']:.1%} [{low:.1%}, {high:.1%}] of {pair['comparisons']}"
        lines.append(f"  {pair['of']} against {pair['against']}: {rate}")
    if result["prompts"] < FEW:
        lines.append(f"note: intervals from fewer than {FEW} prompts are too narrow")
    return "\n".join(lines)


@exits_cleanly
def main(argv=None) -> int:
    p = parser(__doc__)
    p.add_argument("files", type=Path, nargs="+", help="stories of one model each, as eval.py writes them")
    p.add_argument("--out", type=Path, default=Path("out/pairwise.json"), help="default %(default)s")
    args = p.parse_args(argv)
    judge = judging.make(judging.Flags(), cache=Path("out/pairwise.sqlite"))
    try:
        result = pairwise(args.files, judge)
    finally:
        judge.close()
    print(f"judged by {judge.name}\n{show(result)}")
    files.write_json(args.out, result)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
