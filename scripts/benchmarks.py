"""More questions about a writer than eval.py asks: other benchmarks, which of two models reads better, what was memorised.

    python -m scripts.benchmarks run longbench-write longbench_write_en.jsonl --model out/run/checkpoints/step_000173
    python -m scripts.benchmarks pairwise out/eval/stories/base.jsonl out/eval/stories/trained.jsonl
    python -m scripts.benchmarks memorised --model out/run/checkpoints/step_000173 --stories out/stories.jsonl

`run` reads a benchmark's own prompt file (which keeps its own licence; none is shipped), grades with the rubric of that name
and passes all other flags to eval.py. `pairwise` judges each pair in both orders and fits Bradley-Terry strengths (1952),
printed as Elo. `memorised` lets a model go on from the prompts, and from the first tokens, of the stories it was trained on,
which is what human-reference injection may make it copy. Judges as in eval.py: JUDGE_URL and JUDGE_MODEL, else offline.
Left out: the benchmarks' own judges, leaderboards, several chapters, Glicko.
"""
from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
from concurrent.futures import Future
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import eval as evaluation
import judge as judging
import model as qwen
import rollout

# ---------------------------------------------------------------------------------------------------------------------
# Other benchmarks, from their prompt files

BENCHMARKS = {  # name: (rubric, key of the prompt, key of its length)
    "story-quality": ("story_quality", "prompt", "target_word_count"),
    "longbench-write": ("longbench_write", "prompt", "length"),
    "eqbench-creative": ("eqbench_creative", "writing_prompt", None),
    "eqbench-longform": ("eqbench_longform", "writing_prompt", None),
    "writingbench-d4": ("writingbench", "query", None)}


def read_benchmark(name: str, path: Path, words: int) -> tuple[list[data.Example], dict[str, list[dict]]]:
    """Prompts of a benchmark's file (JSON object or list, or JSON Lines), and WritingBench's criteria by prompt.

    `words`: what is held to be asked where a prompt names no length. ValueError: another schema, named with its line."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; download the prompts of {name} and give their path")
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
        if isinstance(whole, dict):
            whole = list(whole.values()) if all(isinstance(v, dict) for v in whole.values()) else [whole]
        rows = whole if isinstance(whole, list) else [whole]
    except ValueError:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path} is neither JSON nor JSON Lines ({error})") from None
    _, prompt_key, length_key = BENCHMARKS[name]
    examples, criteria = [], {}
    for number, row in enumerate(rows, 1):
        prompt = row.get(prompt_key) or row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'{path}, entry {number}: no "{prompt_key}"; this is not a prompt file of {name}')
        if name == "writingbench-d4":
            if "literature" not in str(row.get("domain1", "")).lower() or row.get("lang", "en") != "en":
                continue  # D4 is literature and art, in English
            if not isinstance(row.get("checklist"), list):
                raise ValueError(f'{path}, entry {number}: no "checklist", the criteria WritingBench grades by')
            criteria[prompt] = row["checklist"]
        length = row.get(length_key) if length_key else None
        if length_key and not isinstance(length, int):
            raise ValueError(f'{path}, entry {number}: "{length_key}" is {length!r}, not a number of words')
        # EQ-Bench varies a prompt by seeds; the first of them, so that a prompt stays one prompt.
        seed = (row.get("seed_modifiers") or [""])[0]
        examples.append(data.Example(f"{name}-{number}", prompt.replace("<SEED>", seed), length or words, source=name))
    if not examples:
        raise ValueError(f"{path} holds no prompt of {name}")
    return examples, criteria


class PerPrompt:
    """A judge whose rubric depends on the prompt: WritingBench writes five criteria for each query."""

    def __init__(self, judge, rubrics: dict[str, judging.Rubric]):
        self.judge, self.rubrics, self.name, self.rubric = judge, rubrics, judge.name, judge.rubric
        self.check, self.close = judge.check, judge.close

    def submit(self, prompt: str, story: str) -> Future:
        view = copy.copy(self.judge)  # the same workers, bill and cache
        view.rubric = next(r for p, r in self.rubrics.items() if prompt.startswith(p))
        return view.submit(prompt, story)

    @property
    def last_error(self):
        return self.judge.last_error


def run(name: str, path: Path, words: int, rest: list[str]) -> dict:
    examples, criteria = read_benchmark(name, path, words)
    args = evaluation.parser().parse_args(rest)
    args.rubric, args.thirds = BENCHMARKS[name][0], "off"
    if args.out == Path("out/eval"):
        args.out = Path("out") / name
    args.prompts = args.prompts or str(path)
    judge = None
    if criteria:
        judge = PerPrompt(evaluation.make_judge(args),
                          {p: judging.load_rubric(args.rubric, criteria=c) for p, c in criteria.items()})
    report = evaluation.evaluate(args, examples, judge)
    evaluation.print_report(report)
    for label, by_metric in report["figures"].items():
        quality, length = by_metric["quality"]["all"]["mean"], by_metric["length_score"]["all"]["mean"]
        if quality is None:
            continue
        print(f"{label}: {name} {quality:.1f}" + (f", length score {length:.1f}, mean of both {(quality + length) / 2:.1f}"
                                                  if name == "longbench-write" else ""))
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Pairwise: which of two stories is better, asked in both orders

TIE = 2.0  # points of the offline judge within which two stories are equal


def pair_task(rubric: judging.Rubric, prompt: str, first: str, second: str):
    """Messages, schema and reader of one comparison. The reader gives 1, 0.5 or 0 for the first story."""
    standards = "\n".join(f"{'Fault' if d.key[0] == 'N' else 'Strength'}: {d.title} ({d.high:g})" for d in rubric.dimensions)
    task = ("Two stories answer one request. Decide which is the better story by these standards, or that neither is. Neither "
            "their order nor their length is a reason. Answer with one JSON object and nothing else: "
            '{"why": "...", "better": "1" | "2" | "tie"}.')
    schema = {"type": "object", "additionalProperties": False, "required": ["why", "better"], "properties": {
        "why": {"type": "string"}, "better": {"type": "string", "enum": ["1", "2", "tie"]}}}

    def read(answer: dict) -> dict:
        if (said := str(answer.get("better"))) not in ("1", "2", "tie"):
            raise judging.Fault("schema", "ask", "better is not 1, 2 or tie")
        return {"first": {"1": 1.0, "tie": 0.5, "2": 0.0}[said], "why": str(answer.get("why", ""))}
    fenced = judging.fenced({"REQUEST": judging.strip_length(prompt), "STORY 1": first, "STORY 2": second})
    return [{"role": "system", "content": f"{task}\n\n{standards}"}, {"role": "user", "content": fenced}], schema, read


def compare(judge, prompt: str, first: str, second: str) -> Future:
    """Future of {"first": 1, 0.5 or 0 for the story shown first}, or of None."""
    if isinstance(judge, judging.OfflineJudge):
        future = Future()
        gap = judge.score(prompt, first).score - judge.score(prompt, second).score
        future.set_result({"first": 0.5 if abs(gap) <= TIE else float(gap > 0)})
        return future
    # A question of its own kind goes the judge's way: its cache, its limits, its retries.
    return judge.ask("pairwise", 0, prompt, [first, second], *pair_task(judge.rubric, prompt, first, second))


def read_sets(files: list[Path]) -> dict[str, dict[str, list[dict]]]:
    """{model: {uid: its stories}}. ValueError: another schema, two files of one name, models that answered other prompts."""
    sets = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; eval.py writes stories to out/eval/stories/")
        if file.stem in sets:
            raise ValueError(f"two files are named {file.stem}; a model is called by its file's name")
        by_uid = sets[file.stem] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                by_uid.setdefault(row["uid"], []).append({"prompt": row["prompt"], "story": row["story"]})
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file} line {number}: no uid, prompt and story; give files of out/eval/stories/") from None
    if len(sets) < 2:
        raise ValueError("give the stories of two models or more")
    first, *others = sets
    asked = {name: {uid: rows[0]["prompt"] for uid, rows in by_uid.items()} for name, by_uid in sets.items()}
    for name in others:
        if asked[name] != asked[first]:
            raise ValueError(f"{first} and {name} answered different prompts; give both the same --prompts and --lengths")
    return sets


def bradley_terry(wins: np.ndarray, prior: float = 0.5, steps: int = 10_000) -> np.ndarray:
    """Log strengths [M], mean 0, from wins[i, j] = how often i beat j, ties as half a win each.

    `prior`: wins that every pair is given both ways, so that a model that always won has a finite strength."""
    wins = wins + prior * (1 - np.eye(len(wins)))
    games, p = wins + wins.T, np.ones(len(wins))
    for _ in range(steps):  # minorise and maximise: monotone, no step size
        new = wins.sum(1) / (games / (p[:, None] + p[None])).sum(1)
        new /= np.exp(np.log(new).mean())
        done, p = np.abs(np.log(new / p)).max() < 1e-10, new
        if done:
            break
    return np.log(p)


def elo(strengths: np.ndarray) -> np.ndarray:
    return 1000 + 400 / math.log(10) * strengths


def tally(votes: list[dict], labels: list[str], draws: np.ndarray | None = None) -> np.ndarray:
    """wins [M, M] of votes {a, b, score of a, unit}; `draws`: how often each unit, a prompt, counts."""
    at, wins = {label: i for i, label in enumerate(labels)}, np.zeros((len(labels), len(labels)))
    units = {u: i for i, u in enumerate(dict.fromkeys(v["unit"] for v in votes))}
    for v in votes:
        w = 1.0 if draws is None else draws[units[v["unit"]]]
        wins[at[v["a"]], at[v["b"]]] += w * v["score"]
        wins[at[v["b"]], at[v["a"]]] += w * (1 - v["score"])
    return wins


def pairwise(files: list[Path], judge, seed: int = 0, resamples: int = 500) -> dict:
    """Every story of a model against the story of the same number of each other model, in both orders."""
    sets, asked = read_sets(files), []
    labels = list(sets)
    for a, b in combinations(labels, 2):
        for uid in sets[a]:
            for x, y in zip(sets[a][uid], sets[b][uid]):
                # Asked for at several lengths, it is still one prompt.
                asked.append((a, b, judging.strip_length(x["prompt"]), compare(judge, x["prompt"], x["story"], y["story"]),
                              compare(judge, x["prompt"], y["story"], x["story"])))
    votes, first, consistent, failed = [], [], [], 0
    for a, b, unit, forth, back in tqdm(asked, desc="judging pairs", mininterval=1):
        forth, back = forth.result(), back.result()
        if forth is None or back is None:
            failed += 1  # half a comparison would carry the judge's liking for the first place
            continue
        forth, back = forth["first"], back["first"]
        votes.append({"a": a, "b": b, "unit": unit, "score": (forth + 1 - back) / 2})
        first += [forth, back]
        consistent.append(forth == 1 - back)
    if not votes:
        raise ValueError("no pair was judged; check the judge")
    units = list(dict.fromkeys(v["unit"] for v in votes))
    rng, wins = np.random.default_rng(seed), tally(votes, labels)
    drawn = [tally(votes, labels, rng.multinomial(len(units), [1 / len(units)] * len(units))) for _ in range(resamples)]
    spread = np.percentile([elo(bradley_terry(w)) for w in drawn], [2.5, 97.5], axis=0)
    result = {"models": {label: {"elo": float(e), "interval": [float(lo), float(hi)]}
                         for label, e, lo, hi in zip(labels, elo(bradley_terry(wins)), *spread)},
              "pairs": [], "prompts": len(units), "failed": failed,
              "first_place": float(np.mean(first)), "same_in_both_orders": float(np.mean(consistent))}
    for i, j in combinations(range(len(labels)), 2):
        games = wins[i, j] + wins[j, i]
        if games:  # else no verdict was given for any of their pairs
            rates = [w[i, j] / (w[i, j] + w[j, i]) for w in drawn if w[i, j] + w[j, i]]
            result["pairs"].append({
                "of": labels[i], "against": labels[j], "win_rate": float(wins[i, j] / games), "comparisons": int(games),
                "interval": [float(x) for x in np.percentile(rates, [2.5, 97.5])]})
    return result


def print_pairwise(result: dict):
    print(f"{result['prompts']} prompts, each pair in both orders: {result['same_in_both_orders']:.0%} decided alike, "
          f"the first place won {result['first_place']:.0%}, {result['failed']} without a verdict")
    for label, e in result["models"].items():
        print(f"  {label}: Elo {e['elo']:.0f} [{e['interval'][0]:.0f}, {e['interval'][1]:.0f}]")
    for pair in result["pairs"]:
        print(f"  {pair['of']} against {pair['against']}: wins {pair['win_rate']:.1%} [{pair['interval'][0]:.1%}, "
              f"{pair['interval'][1]:.1%}] of {pair['comparisons']}")
    if result["prompts"] < evaluation.FEW:
        print(f"note: intervals from fewer than {evaluation.FEW} prompts are too narrow")


# ---------------------------------------------------------------------------------------------------------------------
# What was memorised: longest spans that a model's words share with the stories it was trained on

def index_of(stories: list[list[int]], k: int) -> dict[tuple, list[tuple[int, int]]]:
    """k-grams at every k-th position: a common span of 2k - 1 tokens or more holds one of them, at a k-th of the memory."""
    found = {}
    for s, ids in enumerate(stories):
        for at in range(0, len(ids) - k + 1, k):
            found.setdefault(tuple(ids[at:at + k]), []).append((s, at))
    return found


def longest_span(ids: list[int], stories: list[list[int]], index: dict, k: int, skip: int | None = None) -> tuple[int, int]:
    """(tokens, where in ids) of the longest run that a story has too, `skip` left out; below 2k - 1 it may be missed."""
    best = (0, 0)
    for i in range(len(ids) - k + 1):
        for s, at in index.get(tuple(ids[i:i + k]), ()):
            if s == skip:
                continue
            story, low, high = stories[s], 0, k
            while low < min(i, at) and ids[i - low - 1] == story[at - low - 1]:
                low += 1
            while i + high < len(ids) and at + high < len(story) and ids[i + high] == story[at + high]:
                high += 1
            best = max(best, (low + high, i - low), key=lambda b: b[0])
    return best


def memorised(model, tokenizer, examples: list[data.Example], prefixes=(0, 50, 100, 200), limit: int = 64, tokens: int = 256,
              threshold: int = 50, temperature: float = 0.0, seed: int = 0, k: int = 8) -> dict:
    """Continuations of `limit` stories from their prompts plus their first `prefixes` tokens, against all stories."""
    with_story = [e for e in examples if e.story and e.story.strip()]
    if not with_story:
        raise ValueError("none of the examples has a human story; give the file the model was trained on")
    stories = [tokenizer.encode(e.story.strip()) for e in with_story]
    index = index_of(stories, k)
    picked = random.Random(seed).sample(range(len(stories)), min(limit, len(stories)))
    result = {"stories": len(stories), "asked": len(picked), "threshold": threshold, "exact_from": 2 * k - 1,
              "prefixes": {}, "found": []}
    # Authors share phrases too: what spans do the human stories have in common with one another?
    chance = [longest_span(stories[s], stories, index, k, skip=s)[0] for s in picked]
    result["between_stories"] = {"median": float(np.median(chance)), "longest": max(chance)}
    for prefix in prefixes:
        asked = [s for s in picked if len(stories[s]) > prefix]
        # No thinking, even of a model that thinks: what is asked is how the story itself goes on.
        prompts = [tokenizer.chat(with_story[s].prompt, False) + stories[s][:prefix] for s in asked]
        written = rollout.generate(model, prompts, max_new_tokens=tokens, stop_ids=[tokenizer.end_id],
                                   temperature=temperature, seed=seed)
        spans = [longest_span(w.ids, stories, index, k) for w in written]
        lengths = [n for n, _ in spans]
        result["prefixes"][prefix] = {
            "stories": len(asked), "median": float(np.median(lengths)) if asked else None,
            "longest": max(lengths, default=0), "over_threshold": sum(n > threshold for n in lengths)}
        result["found"] += [{"uid": with_story[s].uid, "prefix": prefix, "tokens": n,
                             "text": tokenizer.decode(w.ids[at:at + n])} for s, w, (n, at) in zip(asked, written, spans) if n > threshold]
    result["found"].sort(key=lambda f: -f["tokens"])
    return result


def audit(args) -> dict:
    folder = qwen.fetch(args.model or rollout.newest_checkpoint())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = qwen.load(folder, torch.bfloat16 if device == "cuda" else torch.float32, device, fused=True)
    result = memorised(model, data.load_tokenizer(folder), data.read_examples(args.stories), limit=args.limit,
                       tokens=args.tokens, threshold=args.threshold, temperature=args.temperature)
    print(f"{folder}: continuations of {result['asked']} of {result['stories']} stories; "
          "longest span shared with any of them, in tokens")
    def tokens(n):
        return "-" if n is None else f"{n:g}" if n >= result["exact_from"] else f"under {result['exact_from']}"
    for prefix, r in result["prefixes"].items():
        print(f"  prompt + {prefix:>3} tokens: median {tokens(r['median'])}, longest {tokens(r['longest'])}, "
              f"over {result['threshold']}: {r['over_threshold']} of {r['stories']}")
    chance = result["between_stories"]
    print(f"  (two human stories share: median {tokens(chance['median'])}, longest {tokens(chance['longest'])})")
    for f in result["found"][:5]:
        print(f"  {f['uid']}, after {f['prefix']}: {f['tokens']} tokens: {' '.join(f['text'].split())[:160]}")
    return result


# ---------------------------------------------------------------------------------------------------------------------

def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m scripts.benchmarks", description=__doc__.split("\n\n")[0])
    sub = p.add_subparsers(dest="what", required=True)
    r = sub.add_parser("run", help="another benchmark's prompts; all further flags are eval.py's")
    r.add_argument("name", choices=tuple(BENCHMARKS))
    r.add_argument("file", type=Path)
    r.add_argument("--words", type=int, default=1000,
                   help="length that counts as asked where the benchmark names none (%(default)s)")
    w = sub.add_parser("pairwise", help="win rate and Elo between files of stories")
    w.add_argument("files", type=Path, nargs="+")
    m = sub.add_parser("memorised", help="what a model copies from the stories it was trained on")
    m.add_argument("--model", help="checkpoint folder or hub id (default: newest under out/, else stories/tiny-base)")
    m.add_argument("--stories", required=True, help="the file it was trained on")
    m.add_argument("--limit", type=int, default=64, help="stories asked for (%(default)s)")
    m.add_argument("--tokens", type=int, default=256, help="how far a continuation goes (%(default)s)")
    m.add_argument("--threshold", type=int, default=50, help="a longer span is called memorised (%(default)s)")
    m.add_argument("--temperature", type=float, default=0.0, help="0: what the model thinks most likely (default)")
    for q in (w, m):
        q.add_argument("--out", type=Path, help="where the result goes as JSON (default: out/WHAT.json)")
    args, rest = p.parse_known_args(argv)
    if rest and args.what != "run":
        p.error(f"unrecognized arguments: {' '.join(rest)}")
    torch.set_flush_denormal(True)
    try:
        if args.what == "run":
            run(args.name, args.file, args.words, rest)
            return 0
        if args.what == "memorised":
            result = audit(args)
        else:
            judge = evaluation.make_judge(evaluation.parser().parse_args([]))
            try:
                result = pairwise(args.files, judge)
            finally:
                judge.close()
            print(evaluation.describe(judge))
            print_pairwise(result)
        path = args.out or Path("out") / f"{args.what}.json"
        evaluation.write_file(path, json.dumps(result, indent=1, ensure_ascii=False))
        print(path)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
