"""Does the demo learn what it says it learns? Three seeds of `python train.py`, measured in the open.

For each seed: reward, share of stories in the length band, share of real words and repetition, over the first and the
last five steps. Then, on held-out subjects crossed with two lengths whose bands do not overlap, the share of stories in
band before and after: a writer that ignores the number cannot exceed 0.5 over both lengths together.

    python -m scripts.demo                       # three runs, minutes each; tables and ten stories go to docs/demo.md
    python -m scripts.demo --seeds 0 --steps 5   # a look at the machinery

What is measured is form. Nothing here says that a story is good.
"""
from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import torch

import data
import judge
import model as qwen
import rollout
import train

ROOT = Path(__file__).resolve().parent.parent
WORDS = judge.OfflineJudge().words
READING = "## What this says, and what it does not"  # from here on the page is written by hand, and stays


def real_words(story: str) -> float | None:
    """Share of lower-case words that stand in several of the hundred books (names are left out: no list knows them)."""
    words = re.findall(r"\b[a-z]+(?:'[a-z]+)?\b", story)
    return sum(w in WORDS or w.removesuffix("'s") in WORDS for w in words) / len(words) if words else None


def mean(values) -> float:
    return statistics.fmean(v for v in values if v is not None)


def window(run: Path, steps: list[int]) -> dict:
    """Means over the policy's stories of some steps, from the rollouts that the run wrote."""
    rows = [e for s in steps for e in data.read_episodes(run / "rollouts" / f"step_{s:06d}.jsonl") if not e.is_human]
    return {"reward": mean(e.reward for e in rows), "in band": mean(float(e.rewards["length"] == 0) for e in rows),
            "quality (form)": mean(e.rewards["quality"] for e in rows), "real words": mean(real_words(e.story) for e in rows),
            "repetition": mean(e.rewards["repetition"] for e in rows), "words / asked": mean(
                judge.count_words(e.story) / e.example.target_words for e in rows)}


def held_out(checkpoint: Path, examples, c: train.Config, seed: int) -> list[tuple[data.Example, str]]:
    """One story a held-out prompt, sampled as in training."""
    tokenizer = data.load_tokenizer(checkpoint)
    done = rollout.generate(qwen.load(checkpoint, torch.float32, fused=True), [tokenizer.chat(e.prompt, c.thinking) for e in examples],
                            max_new_tokens=c.max_new_tokens, temperature=c.temperature, stop_ids=(tokenizer.end_id,), seed=seed)
    return [(e, tokenizer.decode(d.ids).strip()) for e, d in zip(examples, done)]


def in_band(pairs, bounds) -> tuple[float, float]:
    """Share of stories in the band of their own request, and its standard error (of a proportion)."""
    hits = [judge.length_penalty(judge.count_words(story), e.target_words, bounds) == 0 for e, story in pairs]
    p = statistics.fmean(hits)
    return p, (p * (1 - p) / len(hits)) ** 0.5


def table(head: list[str], rows: list[list]) -> str:
    cells = [head] + [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], ["---"] * len(head), *cells[1:]]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Writes docs/demo.md (--doc) and out/demo-seed-*/.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="GRPO steps (default: the tiny preset's)")
    parser.add_argument("--doc", default=str(ROOT / "docs" / "demo.md"), help="where the tables go")
    parser.add_argument("--keep", action="store_true", help="measure runs that are already there instead of training them again")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="-- and further flags of train.py, for trying things")
    a = parser.parse_args()
    extra = [x for x in a.rest if x != "--"] + (["--steps", str(a.steps)] if a.steps else [])
    torch.set_flush_denormal(True)
    runs = []
    for seed in a.seeds:
        flags = ["--preset", "tiny", "--seed", str(seed), "--name", f"demo-seed-{seed}", *extra]
        c = train.parse(flags)
        run = Path(c.out, c.name)
        if not (a.keep and (run / "curves.png").exists()):
            train.main(flags)
        runs.append((seed, run, c))
    bounds = train.bounds_of(c)
    n = c.steps
    edge = min(5, max(1, n // 2))

    text = ["# What the demo learns\n", f"Made by `python -m scripts.demo` ({n} steps a run, {c.prompts} prompts x {c.group} stories a step). "
            "Everything here is form: the offline judge counts, it does not read.\n", "## Training: first and last five steps\n"]
    rows = []
    for seed, run, _ in runs:
        first, last = window(run, list(range(edge))), window(run, list(range(n - edge, n)))
        rows += [[seed, "first", *first.values()], [seed, "last", *last.values()],
                 [seed, "difference", *[last[k] - first[k] for k in first]]]
    head = ["seed", "steps", *first]
    text.append(table(head, rows))
    gains = [row[2] for row in rows if row[1] == "difference"]
    text.append(f"Mean reward gain over {len(gains)} seeds: {statistics.fmean(gains):+.3f} (least {min(gains):+.3f}).\n")

    text.append("## Held-out subjects, two lengths whose bands do not overlap\n")
    examples = data.read_examples(ROOT / "stories" / "heldout.jsonl") * 2   # each request twice, with different seeds
    bands = {t: bounds.band(t) for t in sorted({e.target_words for e in examples})}
    text.append(f"{len(examples)} stories a row; " + "; ".join(f"{t} words asked: {lo:.0f} to {hi:.0f}" for t, (lo, hi) in bands.items())
                + ". A writer that ignores the number cannot exceed 0.5.\n")
    rows, shown = [], {}
    for name, checkpoint in [("before", Path(c.model))] + [(f"after, seed {s}", sorted((r / "checkpoints").glob("step_*"))[-1]) for s, r, _ in runs]:
        pairs = shown[name] = held_out(checkpoint, examples, c, seed=7)
        p, se = in_band(pairs, bounds)
        per = [in_band([x for x in pairs if x[0].target_words == t], bounds)[0] for t in bands]
        words = [mean(judge.count_words(s) for e, s in pairs if e.target_words == t) for t in bands]
        rows.append([name, f"{p:.3f} ± {se:.3f}", *per, *words, mean(real_words(s) for _, s in pairs),
                     mean(judge.repetition_penalty(s) for _, s in pairs)])
    text.append(table(["model", "in band", *[f"in band at {t}" for t in bands], *[f"mean words at {t}" for t in bands],
                       "real words", "repetition"], rows))
    text.append("## Five stories, before and after\n\nUnchosen: the first five held-out requests, one seed.\n")
    after = f"after, seed {runs[0][0]}"
    for (e, before), (_, then) in list(zip(shown["before"], shown[after]))[:5]:
        text.append(f"**{e.prompt}**\n")
        for name, story in (("before", before), ("after", then)):
            text.append(f"{name} ({judge.count_words(story)} words)\n\n" + "\n".join("> " + line for line in story.splitlines()) + "\n")
    print("\n".join(text))
    page = Path(a.doc)
    page.parent.mkdir(exist_ok=True)
    old = page.read_text() if page.exists() else ""
    page.write_text("\n".join(text) + ("\n" + READING + old.partition(READING)[2] if READING in old else ""))
    print(f"wrote {a.doc}", file=sys.stderr)


if __name__ == "__main__":
    main()
