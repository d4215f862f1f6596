"""Learn from stories that are already written and scored: DPO and ORPO, plain or weighted, DivPO and SFT.

    read      groups of scored responses to the same prompt: a run's rollouts/, or JSON Lines with scores
    pair      the better against the worse where the gap is wide enough, each response at most once
    weigh     a chosen story that differs from its siblings counts for more (ddpo, dorpo: 2503.17126)
    score     both stories of each pair under the starting model, once; two numbers per pair are kept
    train     pair by pair; beside it the margin chosen - rejected on prompts that are never trained

    python -m scripts.prefer --data out/tiny/rollouts --method ddpo
    torchrun --nproc_per_node=4 -m scripts.prefer --data votes.jsonl --method dorpo --model Qwen/Qwen3.5-9B

A JSON Lines file holds one response per line: {"prompt": ..., "story": ..., "score": 1.5}; "response" and
"upvotes" are other names, a score of null leaves the response out. Rollouts are trained as the tokens that
were sampled. DPO is arXiv 2305.18290, ORPO 2403.07691, DivPO 2501.18101. Left out: online pairs.
"""

import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import data
import deviation
import train
from data import Episode, Example
from lib import files, optim, parallel, processes
from lib.checkpoint import Stop
from lib.flags import exits_cleanly, opt
from lib.form import strip_length
from lib.packed import micro_batches
from lib.stats import mean

# What train.py has too, with its defaults, help and ranges.
SHARED = """preset model out seed thinking similarity lr lr_warmup lr_decay grad_clip temperature parallel
lora_rank lora_alpha checkpointing autocast micro_batch_tokens save_every keep resume wandb""".split()
IN_TRAIN = [(f.name, f.type, f) for f in fields(train.Config) if f.name in SHARED]


@dataclass
class Config(make_dataclass("Shared", IN_TRAIN)):
    name: str = opt("prefer", "name of this run", "preferences")
    method: Literal["dpo", "ddpo", "orpo", "dorpo", "divpo", "sft"] = opt("ddpo", "sft: the chosen alone")
    data: list[str] = opt([], "what to learn from: runs, their rollouts/ folders, JSON Lines files")
    held_out: float = opt(0.1, "share of prompts kept out of training", above=0, high=1)
    steps: int = opt(-1, "optimiser steps; -1: one epoch, the last partial batch dropped", low=-1)
    pairs: int = opt(16, "pairs per step, over all processes", low=1)
    max_tokens: int = opt(8448, "prompt and response; longer responses are left out and counted", low=1)
    min_gap: float = opt(0.05, "least difference of score in a pair, in units of the scores", low=0)
    pairs_per_prompt: int = opt(0, "0: as many as there are; 1 with divpo: as published", low=0)
    rho: float = opt(0.25, "divpo: how near the best or the worst, in shares of their gap", low=0, high=0.5)
    style: Literal["", "tfidf", "jaccard", "char3", "embedding"] = opt("", "a second similarity; empty: off")
    floor: float = opt(0.1, "least weight of a chosen story; there is no cap, as published", low=0, high=1)
    beta: float = opt(0.1, "dpo, ddpo, divpo: how far the policy may leave the start", above=0)
    lam: float = opt(0.25, "orpo, dorpo: weight of the odds ratio", above=0)
    weight_decay: float = opt(0.0, "AdamW's weight decay", low=0)
    test_every: int = opt(10, "steps between two looks at the held-out pairs, beside first and last", low=1)


TINY = {name: train.PRESETS["tiny"][name] for name in ("model", "thinking", "temperature", "checkpointing")}
TINY |= {"data": ["out/tiny/rollouts"], "steps": 40, "max_tokens": 1024, "lr": 1e-4, "save_every": 0}
PRESETS = {"polaris-9b": {}, "tiny": TINY | {"micro_batch_tokens": 4096}}


def as_trainer(c: Config) -> train.Config:
    """What the trainer's functions ask for: the fields it shares with this program."""
    shared = {name: getattr(c, name) for name in [*SHARED, "name", "steps"]}
    return train.Config(**shared, prompts=c.pairs, judge="offline")


def check(c: Config, world: int):
    """Every impossible combination, before anything is read. ValueError: one sentence on what to change."""
    if not c.data:
        raise ValueError("pass --data: a run, a rollouts/ folder or a JSON Lines file of scored responses")
    if c.pairs % world:
        raise ValueError(f"--pairs {c.pairs} does not divide over {world} processes; use a multiple")
    train.check(as_trainer(c), world)
    deviation.distances(["a"], c.style or c.similarity)  # ValueError: a missing package


# ---- read, pair, weigh ----------------------------------------------------------------------


@dataclass
class Pair:
    chosen: Episode
    rejected: Episode
    delta: float = 1.0  # weight of the chosen story
    ref: tuple[float, float] = (0.0, 0.0)  # log-probabilities of both under the starting model


IDLE = Pair(train.IDLE, train.IDLE, delta=0.0)  # fills a micro-batch


def length(pair: Pair) -> int:  # padded tokens of both
    return 2 * max(data.length(pair.chosen), data.length(pair.rejected))


def response_of(row: dict, where: str, tokenizer, c: Config) -> Episode:
    """One line of a rollout or of a JSON Lines file; reward None: it has no score. ValueError: a bad line."""
    scored = {"score", "upvotes"} & set(row)
    if "completion_ids" in row:
        response = data.episode(row, where)
        if not response.is_human and response.story not in tokenizer.decode(response.completion_ids):
            raise ValueError(f"{where}: another tokenizer wrote these tokens; pass the --model of that run")
        return response
    prompt, story = row.get("prompt"), row.get("story", row.get("response"))
    if not (isinstance(prompt, str) and prompt.strip() and isinstance(story, str) and scored):
        raise ValueError(f'{where}: needs "prompt", "story" (or "response") and "score" (or "upvotes")')
    score = row.get("score", row.get("upvotes"))
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise ValueError(f"{where}: the score is {json.dumps(score)}; it must be a finite number or null")
    prompt_ids, ids = tokenizer.chat(prompt, c.thinking), tokenizer.completion(story, thinking=c.thinking)
    return Episode(Example(where, prompt, 1), prompt_ids, ids, None, True, False, story, reward=score)


def read_groups(sources: list[str], tokenizer, c: Config) -> tuple[dict[str, list[Episode]], Counter]:
    """{prompt: responses that can be ranked, no two with the same text}, and what is left out, by reason."""
    groups, texts, left, paths = {}, set(), Counter(), []
    for source in sources:
        path = Path(source, "rollouts") if Path(source, "rollouts").is_dir() else Path(source)
        found = sorted(path.glob("[!.]*.jsonl")) if path.is_dir() else [path]  # unfinished steps are hidden
        if not found:
            raise FileNotFoundError(f"no *.jsonl in {path}; give the folder of a run or a JSON Lines file")
        paths += found
    for path in paths:
        for number, row in files.read_lines(path):
            response = response_of(row, f"{path} line {number}", tokenizer, c)
            prompt, story = response.example.prompt.strip(), response.story.strip()
            if response.reward is None:
                left["without a score"] += 1
            elif not story:
                left["empty"] += 1
            elif data.length(response) > c.max_tokens:
                left[f"longer than {c.max_tokens} tokens"] += 1
            elif (prompt, story) in texts:
                left["identical to an earlier one"] += 1
            else:
                texts.add((prompt, story))
                groups.setdefault(prompt, []).append(response)
    for prompt in [p for p, group in groups.items() if len({r.reward for r in group}) < 2]:
        left["scored like all others of the prompt"] += len(groups.pop(prompt))
    return groups, left


def split(groups: dict, share: float, seed: int) -> tuple[dict, dict]:
    """(train, test): whole prompts; those that differ only in the length they ask for stay together."""
    units = list(dict.fromkeys(map(strip_length, groups)))
    held = {units[i] for i in data.order(len(units), 0, seed)[: max(1, round(share * len(units)))]}
    test = {prompt: group for prompt, group in groups.items() if strip_length(prompt) in held}
    return {prompt: group for prompt, group in groups.items() if prompt not in test}, test


def by_gap(scores: list[float], min_gap: float) -> list[tuple[int, int]]:
    """Best with worst, second best with second worst, and so on while the gap is wide enough."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    pairs = list(zip(order, reversed(order)))[: len(order) // 2]
    return [(w, l) for w, l in pairs if scores[w] > scores[l] and scores[w] - scores[l] >= min_gap]


def by_divpo(scores: list[float], d: list[float], c: Config) -> list[tuple[int, int]]:
    """DivPO's pair, then that of the responses left, and so on (published: --pairs_per_prompt 1)."""
    left, pairs = list(range(len(scores))), []
    while found := deviation.divpo_pair([scores[i] for i in left], [d[i] for i in left], c.rho):
        w, l = (left[i] for i in found)
        pairs.append((w, l))
        left = [i for i in left if i not in (w, l)]
    return [(w, l) for w, l in pairs if scores[w] - scores[l] >= c.min_gap]


def make_pairs(groups: dict[str, list[Episode]], c: Config, method: str) -> list[Pair]:
    pairs = []
    for group in tqdm(groups.values(), desc="pairs", disable=not processes.MAIN, leave=False):
        scores, delta = [float(r.reward) for r in group], [1.0] * len(group)
        if method in ("ddpo", "dorpo", "divpo"):  # equal length: a short story shares less with any other
            texts = [r.story.strip() for r in group]
            delta_n, d_n = deviation.weights_of(texts, c.similarity, c.style, True, c.floor, math.inf)
            delta = delta if method == "divpo" else delta_n.tolist()
        chosen = by_divpo(scores, d_n.tolist(), c) if method == "divpo" else by_gap(scores, c.min_gap)
        for w, l in chosen[: c.pairs_per_prompt or None]:
            pairs.append(Pair(group[w], group[l], delta[w]))
    return pairs


def prepare(c: Config, tokenizer) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs). The latter are paired by gap, the same for every method.
    ValueError: nothing to train on."""
    groups, left = read_groups(c.data, tokenizer, c)
    groups, test = split(groups, c.held_out, c.seed)
    pairs, held_out = make_pairs(groups, c, c.method), make_pairs(test, c, "dpo")
    told = "responses left out: " + (", ".join(f"{n} {why}" for why, n in left.items()) or "none")
    found = f"{len(pairs)} pairs of {len(groups)} prompts to train on, {len(held_out)} held out"
    if len(pairs) < c.pairs or not held_out:
        cure = f"a step needs {c.pairs} and the margin 1: add responses, or lower --pairs or --min_gap"
        raise ValueError(f"{' '.join(c.data)} gives {found} ({told}), but {cure}")
    processes.say(f"{found}; {told}")
    return pairs, held_out


# ---- score and train ---------------------------------------------------------------------------------------

PER_TOKEN = ("orpo", "dorpo", "sft")  # methods of means over tokens, without a reference model


def logprobs(scorer, batch: list[Pair], c: Config):
    """-> log-probabilities [2, B] of the chosen and the rejected: sums over tokens, or of PER_TOKEN means."""
    rows = [p.chosen for p in batch] + [p.rejected for p in batch]
    logp, _ = scorer(data.packed(rows), c.temperature)
    parts = logp.split([len(r.completion_ids) for r in rows])
    return torch.stack([x.mean() if c.method in PER_TOKEN else x.sum() for x in parts]).view(2, -1)


def losses(c: Config, batch: list[Pair], chosen, rejected):
    """-> loss [B], before any mean."""
    delta_B = torch.tensor([p.delta for p in batch], device=chosen.device)
    if c.method == "sft":
        return -chosen
    if c.method in PER_TOKEN:
        return deviation.dorpo_loss(chosen, rejected, delta_B, c.lam)
    ref = torch.tensor([p.ref for p in batch], device=chosen.device).T
    return deviation.ddpo_loss(chosen, rejected, ref[0], ref[1], delta_B, c.beta)


@torch.no_grad()
def score(scorer, pairs: list[Pair], c: Config):
    """`logprobs` of all pairs [2, P] on the host; processes share the work."""
    mine = pairs[processes.RANK :: processes.WORLD]
    at, found = {id(pair): i for i, pair in enumerate(pairs)}, []
    batches = micro_batches(mine, c.micro_batch_tokens, length, IDLE)
    for batch in tqdm(batches, "log-probs", disable=not processes.MAIN, leave=False):
        values = logprobs(scorer, batch, c).T.tolist()
        found += [(at[id(pair)], v) for pair, v in zip(batch, values) if pair is not IDLE]
    return torch.tensor([v for _, v in sorted(processes.gather(found))]).T


def margins(now, before) -> dict:
    """Chosen minus rejected, how many rose since `before`, and the chosen alone, which may fall with both."""
    margin, was = now[0] - now[1], before[0] - before[1]
    found = {"margin": margin, "rose": (margin > was).float(), "chosen": now[0]}
    return {f"held_out/{name}": x.mean().item() for name, x in found.items()}


def update(scorer, optimiser, pairs: list[Pair], c: Config) -> dict:
    """One optimiser step on `pairs`, shared among processes; the loss is the mean over all of them."""
    began, parts = time.time(), []
    optimiser.zero_grad(set_to_none=True)
    batches = micro_batches(pairs[processes.RANK :: processes.WORLD], c.micro_batch_tokens, length, IDLE)
    for batch in parallel.accumulate(scorer, batches, "  micro-batches"):
        used = float(batch[0] is not IDLE)
        chosen, rejected = logprobs(scorer, batch, c)
        # Each pair is weighed before the one global mean; DDP and FSDP average gradients over ranks.
        loss = used * losses(c, batch, chosen, rejected).sum() / len(pairs)
        (loss * processes.WORLD).backward()
        margin = used * (chosen - rejected).detach().sum() / len(pairs)
        parts.append({"loss": loss.detach(), "margin": margin})
    norm, stepped = optim.descend(optimiser, c.grad_clip)
    speed = sum(data.length(p.chosen) + data.length(p.rejected) for p in pairs) / (time.time() - began)
    stats = {"grad_norm": norm, "stepped": stepped, "train/tokens_per_second": speed}
    return stats | {"delta/mean": mean(p.delta for p in pairs)} | processes.totals(parts)


def run(c: Config):
    device, tokenizer = processes.connect(), data.load_tokenizer(c.model)
    pairs, held_out = prepare(c, tokenizer)
    model, scorer = train.build(as_trainer(c), device)
    steps = c.steps if c.steps >= 0 else len(pairs) // c.pairs
    batches = [data.batch(len(pairs), step, c.pairs, c.seed) for step in range(steps)]
    before = score(scorer, held_out, c)  # under the starting model, as are the references
    if c.method not in PER_TOKEN:
        used = [pairs[i] for i in dict.fromkeys(i for batch in batches for i in batch)]
        for pair, values in zip(used, score(scorer, used, c).T.tolist()):
            pair.ref = tuple(values)

    # ---- train
    optimiser, start, log = train.start_or_resume(c, model, scorer)
    facts = {"method": c.method, "pairs": len(pairs)}
    stopping, bad_updates, done = processes.catch_signals(), 0, start
    bar = tqdm(range(start, steps + 1), c.name, disable=not processes.MAIN, dynamic_ncols=True)
    try:
        for step in bar:  # the last round only looks
            line = {"step": step}
            if step % c.test_every == 0 or step in (start, steps):
                line |= margins(score(scorer, held_out, c) if step else before, before)
            if step < steps:
                optim.set_lr(optimiser, c.lr, step, steps, c.lr_warmup, c.lr_decay)
                line |= update(scorer, optimiser, [pairs[i] for i in batches[step]], c)
                bad_updates = 0 if line.pop("stepped") else bad_updates + 1
                done = step + 1
            if processes.MAIN:
                log.write(line)
            bar.set_postfix({k: f"{line[k]:+.3f}" for k in ("loss", "held_out/margin") if k in line})
            if bad_updates == 3:
                raise Stop("gradients were NaN or infinite three times in a row; lower --lr")
            if (signals := processes.gather(stopping)) and step < steps:
                raise Stop(f"{signals[0]} received; --resume auto goes on")
            if step < steps and (done == steps or (c.save_every and done % c.save_every == 0)):
                train.save_checkpoint(c, model, optimiser, done, **facts)
    except Stop as why:
        train.save_checkpoint(c, model, optimiser, done, **facts)
        processes.say(f"stopped after {done} steps: {why}; the state is saved", sys.stderr)
        raise SystemExit(1) from None
    if processes.MAIN:
        first, last = (log.metrics[i]["held_out/margin"] for i in (0, -1))
        processes.say(f"held-out margin {first:+.4f} before, {last:+.4f} after; wrote {log.path.parent}/")


@exits_cleanly
def main(argv=None):
    c = train.parse(argv, Config, PRESETS, __doc__)
    check(c, processes.WORLD)
    run(c)


if __name__ == "__main__":
    main()
