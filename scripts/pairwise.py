"""Which of two models reads better: each pair of stories judged in both orders, win rates and Elo.

    python -m scripts.pairwise out/eval/NAME/stories/base.jsonl out/eval/NAME/stories/trained.jsonl

Each pair is judged as in --judge_mode pair. Strengths are those of Bradley and Terry (1952), printed as Elo.
The judge is eval.py's: JUDGE_URL and JUDGE_MODEL, else the offline one, which measures form.
"""

import math
from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

import judge as judging
from lib import files, sets, stats
from lib.flags import exits_cleanly, parser
from lib.pages import estimate, markdown_table
from lib.stats import FEW

TIE = 0.0075  # share of all points within which two stories are equal: two points of story_quality


def vote(models: dict, judge) -> tuple[dict[str, np.ndarray], list]:
    """Every story of a model beside the story of the same number of each other model, in both orders ->
    ({prompt: wins [M, M]}, verdicts, None where one could not be had)."""
    asked, wins, verdicts = [], {}, []
    for (i, a), (j, b) in combinations(enumerate(models.values()), 2):
        for uid, entry in a.items():
            for one, two in zip(entry["stories"], b[uid]["stories"]):
                asked.append((entry["prompt"], i, j, judge.beside(entry["prompt"], one, two)))
    for prompt, i, j, future in tqdm(asked, desc="judging pairs", mininterval=1):
        verdict = future.result()
        verdicts.append(verdict)
        if verdict:  # half a comparison would carry the judge's liking for the first place
            unit = judging.strip_length(prompt)  # at several lengths, it is still one prompt
            wins_MM = wins.setdefault(unit, np.zeros((len(models), len(models))))
            won = np.mean([0.5 if abs(x) <= TIE else x > 0 for x in verdict.orders or [0]])
            wins_MM[i, j] += won
            wins_MM[j, i] += 1 - won
    return wins, verdicts


def pairwise(stories: list[str], judge) -> dict:
    """Elo per model and win rate per pair, with 95 % intervals that resample prompts."""
    models, _ = sets.read_sets(stories)
    labels, (by_prompt, verdicts) = list(models), vote(models, judge)
    if not by_prompt:
        raise ValueError("no pair was judged; check the judge")
    wins_UMM, elos, pairs = np.array(list(by_prompt.values())), {}, []
    drawn_RMM = np.tensordot(stats.draws(len(wins_UMM), 500), wins_UMM, 1)
    wins_RMM = np.vstack([wins_UMM.sum(0, keepdims=True), drawn_RMM])  # first the sample itself
    strengths_RM = np.array([stats.bradley_terry(wins_MM) for wins_MM in wins_RMM])
    elos_RM = 1000 + 400 / math.log(10) * strengths_RM  # 1000 for the mean; ten times as strong: 400 more
    for label, elo_R in zip(labels, elos_RM.T):
        elos[label] = {"elo": float(elo_R[0]), "interval": stats.interval(elo_R[1:])}
    for i, j in combinations(range(len(labels)), 2):
        games_R = wins_RMM[:, i, j] + wins_RMM[:, j, i]
        if games_R[0]:  # else no verdict was given for any of their pairs
            rate_R = wins_RMM[games_R > 0, i, j] / games_R[games_R > 0]
            pair = {"of": labels[i], "against": labels[j], "win_rate": float(rate_R[0])}
            pairs.append(pair | {"comparisons": int(games_R[0]), "interval": stats.interval(rate_R[1:])})
    flips = judging.verdict_metrics([v and v.to_dict() for v in verdicts]).get("judge/order_flip", 0.0)
    found = {"models": elos, "pairs": pairs, "prompts": len(wins_UMM), "failed": verdicts.count(None)}
    return found | {"order_flip": flips}


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("files", nargs="+", help="stories of one model each, as eval.py writes them, or NAME=FILE")
    p.add_argument("--out", type=Path, default=Path("out/pairwise.json"), help="default %(default)s")
    args = p.parse_args(argv)
    with closing(judging.make(judging.Flags(), cache=Path("out/pairwise.sqlite"))) as judge:
        result = pairwise(args.files, judge)
    said = f"{result['order_flip']:.0%} change their winner with the order"
    print(f"judged by {judge.name}\n{result['prompts']} prompts, each pair in both orders: {said}, ", end="")
    print(f"{result['failed']} without a verdict\n")
    elos = [[label, estimate(e["elo"], e["interval"], 0)] for label, e in result["models"].items()]
    print(markdown_table(["model", "Elo"], elos))
    won = [estimate(p["win_rate"], p["interval"], 3) for p in result["pairs"]]
    rates = [[p["of"], p["against"], w, p["comparisons"]] for p, w in zip(result["pairs"], won)]
    print(markdown_table(["model", "against", "wins", "comparisons"], rates))
    if result["prompts"] < FEW:
        print(f"note: intervals from fewer than {FEW} prompts are too narrow\n")
    files.write_json(args.out, result)
    print(args.out)


if __name__ == "__main__":
    main()
