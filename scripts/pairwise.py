"""Which of two models reads better: each pair of stories judged in both orders, win rates and Elo.

    python -m scripts.pairwise out/eval/NAME/stories/base.jsonl out/eval/NAME/stories/trained.jsonl

Each pair is judged as in --judge_mode pair. Strengths are those of Bradley and Terry (1952), printed as Elo.
The judge is eval.py's: JUDGE_URL and JUDGE_MODEL, else the offline one, which measures form.
"""

from __future__ import annotations

import sys
from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

import judge as judging
from lib import files, sets, stats
from lib.flags import exits_cleanly, parser
from lib.sweep import FEW

TIE = 0.0075  # share of all points within which two stories are equal: two points of story_quality


def won(share: float) -> float:
    """1, 0.5 or 0 for the story that is `share` better."""
    return 0.5 if abs(share) <= TIE else float(share > 0)


def vote(models: dict, judge) -> tuple[dict[str, np.ndarray], list[float], int]:
    """Every story of a model beside the story of the same number of each other model, in both orders ->
    ({prompt: wins [M, M]}, what the story shown first got, comparisons without a verdict)."""
    asked, wins, first, failed = [], {}, [], 0
    for (i, a), (j, b) in combinations(enumerate(models.values()), 2):
        for uid, entry in a.items():
            unit = judging.strip_length(entry["prompt"])  # at several lengths, it is still one prompt
            for one, two in zip(entry["stories"], b[uid]["stories"]):
                asked.append((unit, i, j, judge.beside(entry["prompt"], one, two)))
    for unit, i, j, future in tqdm(asked, desc="judging pairs", mininterval=1):
        verdict = future.result()
        if verdict is None:
            failed += 1  # half a comparison would carry the judge's liking for the first place
            continue
        forth, back = map(won, verdict.orders or (0.0, 0.0))
        wins_MM = wins.setdefault(unit, np.zeros((len(models), len(models))))
        wins_MM[i, j] += (forth + back) / 2
        wins_MM[j, i] += 1 - (forth + back) / 2
        first += [forth, 1 - back]
    return wins, first, failed


def pairwise(stories: list[str], judge, seed: int = 0, resamples: int = 500) -> dict:
    """Elo per model and win rate per pair, with 95 % intervals that resample prompts."""
    models, _ = sets.read_sets(stories)
    labels, (by_prompt, first, failed) = list(models), vote(models, judge)
    if not by_prompt:
        raise ValueError("no pair was judged; check the judge")
    wins_UMM = np.array(list(by_prompt.values()))
    wins, drawn = wins_UMM.sum(0), np.tensordot(stats.draws(len(wins_UMM), resamples, seed), wins_UMM, 1)
    elos_RM, found, pairs = np.array([stats.elo(stats.bradley_terry(w)) for w in drawn]), {}, []
    for i, strength in enumerate(stats.elo(stats.bradley_terry(wins))):
        found[labels[i]] = {"elo": float(strength), "interval": stats.interval(elos_RM[:, i])}
    for i, j in combinations(range(len(labels)), 2):
        games = wins[i, j] + wins[j, i]
        if games:  # else no verdict was given for any of their pairs
            rates = [w[i, j] / (w[i, j] + w[j, i]) for w in drawn if w[i, j] + w[j, i]]
            pair = {"of": labels[i], "against": labels[j], "win_rate": float(wins[i, j] / games)}
            pairs.append(pair | {"comparisons": int(games), "interval": stats.interval(rates)})
    alike = [forth == 1 - back for forth, back in zip(first[::2], first[1::2])]
    found = {"models": found, "pairs": pairs, "prompts": len(wins_UMM), "failed": failed}
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
    p.add_argument("files", nargs="+", help="stories of one model each, as eval.py writes them, or NAME=FILE")
    p.add_argument("--out", type=Path, default=Path("out/pairwise.json"), help="default %(default)s")
    args = p.parse_args(argv)
    with closing(judging.make(judging.Flags(), cache=Path("out/pairwise.sqlite"))) as judge:
        result = pairwise(args.files, judge)
    print(f"judged by {judge.name}\n{show(result)}")
    files.write_json(args.out, result)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
