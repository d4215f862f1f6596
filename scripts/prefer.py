"""Learn from stories that were already written and scored: DPO and ORPO, plain or weighted by deviation, DivPO and SFT.

    read      groups of scored responses to the same prompt: a run's rollouts/, or any JSON Lines with scores or up-votes
    pair      the better against the worse where the gap is wide enough, each response at most once
    weigh     a chosen story that differs from its siblings counts for more (ddpo, dorpo: Chung et al., 2503.17126)
    score     both stories of each pair under the starting model, once; only two numbers a pair are kept of it
    train     pair by pair; before, during and after, the margin chosen - rejected on prompts that are never trained

    python -m scripts.prefer --data out/tiny/rollouts --method ddpo
    torchrun --nproc_per_node=4 -m scripts.prefer --data votes.jsonl --method dorpo --model Qwen/Qwen3.5-9B

A JSON Lines file holds one response a line: {"prompt": ..., "story": ..., "score": 1.5}; "response" stands for "story"
and "upvotes" for "score", other keys are ignored, a score of null leaves the response out. Rollouts are trained as the
tokens that were sampled, human rows too. DPO is arXiv 2305.18290, ORPO 2403.07691, DivPO 2501.18101.
Model, LoRA, sharding, checkpoint and log are train.py's. Left out: reward models, online pairs, other preference losses.
"""
from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import deviation
import judge as judging
import model as qwen
import train
from scripts.curves import plot
from train import MAIN, RANK, ROOT, WORLD, opt

METHODS = ("dpo", "ddpo", "orpo", "dorpo", "divpo", "sft")


@dataclass
class Config:
    """Every number of a run; a flag of the same name wins over the preset, which wins over the default."""
    preset: str = opt("auto", "polaris-9b | tiny | auto: polaris-9b where there are GPUs, tiny where there are none")
    method: str = opt("ddpo", "dpo | ddpo (weighted by deviation) | orpo | dorpo (weighted) | divpo (diverse pairs) | sft (the chosen alone)")
    model: str = opt("Qwen/Qwen3.5-9B", "checkpoint folder or hub id of a Qwen3.5 model; it is also the reference")
    data: list[str] = opt([], "what to learn from: runs, their rollouts/ folders, JSON Lines files")
    test: list[str] = opt([], "the same for held-out pairs; empty: --held_out of the prompts of --data")
    held_out: float = opt(0.1, "share of the prompts kept out of training, requests that differ in length alone together")
    out: str = opt("out", "folder that holds all runs")
    name: str = opt("prefer", "name of this run")
    seed: int = opt(0, "of the split, the order of pairs and LoRA")
    steps: int = opt(-1, "optimiser steps; -1: one epoch, the last partial batch dropped")
    thinking: bool = opt(True, "how a JSON Lines response is laid out: True with an empty thought, False with a closed one")
    max_tokens: int = opt(8448, "prompt and response; a longer response is left out and counted")
    # pairs
    min_gap: float = opt(0.05, "least difference of score in a pair, in the units of the scores")
    pairs_per_prompt: int = opt(0, "0: as many as there are; 1 with divpo: as published")
    rho: float = opt(0.25, "divpo: how near the best or the worst a candidate must be")
    pool: str = opt("range", "divpo: near in score (range) or in rank (rank)")
    similarity: str = opt("tfidf", "what alike means: tfidf | jaccard | char3 | embedding")
    style: str = opt("", "a second similarity, joined to the first by the geometric mean; empty: off")
    floor: float = opt(0.1, "least weight of a chosen story; there is no cap, as published")
    # loss
    beta: float = opt(0.1, "dpo, ddpo, divpo: how far the policy may leave the reference")
    lam: float = opt(0.25, "orpo, dorpo: weight of the odds ratio")
    pairs: int = opt(16, "pairs a step, over all processes")
    lr: float = opt(1e-6, "AdamW, constant")
    weight_decay: float = opt(0.0, "AdamW")
    grad_clip: float = opt(1.0, "global norm")
    # as in train.py
    temperature: float = opt(1.0, "of the log-probabilities; that of the sampling, for rollouts")
    parallel: str = opt("auto", "none | ddp | fsdp | auto: fsdp for full fine-tuning on GPUs, ddp else")
    lora_rank: int = opt(0, "0: train all weights; else LoRA of this rank on a bf16 base")
    lora_alpha: float = opt(32.0, "LoRA's scale is alpha / rank")
    checkpointing: bool = opt(True, "recompute each block in the backward pass")
    autocast: bool = opt(False, "bf16 matrix products on fp32 weights where nothing is sharded")
    compile: bool = opt(False, "torch.compile the blocks; minutes of start-up")
    micro_batch_tokens: int = opt(16896, "padded tokens of one forward and backward pass, both stories of a pair together")
    test_every: int = opt(10, "steps between two looks at the held-out pairs; the first and the last are always taken")
    save_every: int = opt(100, "steps between checkpoints; 0: only the last")
    keep: int = opt(2, "checkpoints kept; 0: all")
    resume: str = opt("", "auto: the newest checkpoint of this run; or a checkpoint folder; empty: start anew")
    wandb: bool = opt(False, "also log to wandb, if it is installed")


PRESETS = {"polaris-9b": {}, "tiny": dict(
    model=str(ROOT / "stories/tiny-base"), data=["out/tiny/rollouts"], thinking=False, max_tokens=1024, steps=40, lr=1e-4,
    checkpointing=False, micro_batch_tokens=4096, save_every=0)}


def check(c: Config):
    """Every impossible combination, before anything is read. ValueError: one sentence on what to change."""
    def need(good, sentence):
        if not good:
            raise ValueError(sentence)
    need(c.method in METHODS, f"--method {c.method}: choose one of {', '.join(METHODS)}")
    need(c.data, "nothing to learn from: pass --data with a run, a rollouts/ folder or a JSON Lines file of scored responses")
    need(c.pairs >= 1 and c.pairs % WORLD == 0, f"--pairs {c.pairs} does not divide over {WORLD} processes; use a multiple of {WORLD}")
    need(c.test or 0 < c.held_out < 1, f"--held_out {c.held_out}: give a share between 0 and 1, or --test files")
    need(c.min_gap >= 0, f"--min_gap {c.min_gap}: a pair needs a better response, so at least 0")
    need(c.beta > 0 and c.lam > 0, f"--beta {c.beta} and --lam {c.lam} must be above 0: at 0 nothing is preferred")
    need(0 <= c.floor <= 1, f"--floor {c.floor}: must lie in [0, 1], since the mean weight is 1")
    need(c.test_every >= 1, f"--test_every {c.test_every}: at least 1")
    need(c.parallel in ("auto", "none", "ddp", "fsdp"), f"--parallel {c.parallel}: choose none, ddp, fsdp or auto")
    need(c.parallel != "none" or WORLD == 1, f"--parallel none with {WORLD} processes would train {WORLD} separate models; use ddp or fsdp")
    need(not (c.lora_rank and c.parallel == "fsdp"), "LoRA does not shard its base; use --parallel ddp with --lora_rank")
    for name in filter(None, (c.similarity, c.style)):
        deviation.distances(["a"], name)  # an unknown name or a missing package is a matter for now, not for after an hour
    deviation.divpo_pairs([], [], c.rho, c.pool)


# ---------------------------------------------------------------------------------------------------------------------
# Read: groups of scored responses

@dataclass
class Response:
    story: str       # without thinking, for its deviation
    score: float
    row: train.Row   # its tokens


@dataclass
class Pair:
    chosen: train.Row
    rejected: train.Row
    delta: float = 1.0                      # the weight of the chosen story
    gap: float = 0.0                        # difference of score
    ref: tuple[float, float] | None = None  # log-probabilities of both under the starting model

    @property
    def length(self):                       # padded tokens, for train.micro_batches
        return 2 * max(self.chosen.length, self.rejected.length)


def files_of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        path = path / "rollouts" if (path / "rollouts").is_dir() else path
        files = sorted(path.glob("[!.]*.jsonl"))  # a step that is being written has a hidden name
        if files:
            return files
        raise FileNotFoundError(f"no *.jsonl in {path}; give a run's folder, its rollouts/, or a JSON Lines file of scored responses")
    return [path]


def responses_of(path: Path, tokenizer, c: Config):
    """(prompt, Response or None where there is no score) of each line of a rollout or JSON Lines file. ValueError: a bad line."""
    for number, line in data._read_lines(path):
        where = f"{path} line {number}"
        if "completion_ids" in line:
            ids, prompt, story, score = line["prompt_ids"] + line["completion_ids"], line["example"]["prompt"], line["story"], line["reward"]
            start = len(line["prompt_ids"])
            if not line["is_human"] and story not in tokenizer.decode(line["completion_ids"]):
                raise ValueError(f"{where}: the tokens do not spell the story, so another tokenizer wrote them; pass --model that belongs to this run")
        else:
            prompt, story = line.get("prompt"), line.get("story", line.get("response"))
            score = line.get("score", line.get("upvotes"))
            if not isinstance(prompt, str) or not prompt.strip() or not isinstance(story, str) or not {"score", "upvotes"} & set(line):
                raise ValueError(f'{where}: a response needs "prompt", "story" (or "response") and "score" (or "upvotes"), the first two as text')
            prompt_ids = tokenizer.chat(prompt, c.thinking)
            ids, start = prompt_ids + tokenizer.completion(story, thinking=c.thinking), len(prompt_ids)
        if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score)):
            raise ValueError(f"{where}: the score is {json.dumps(score)}; it must be a finite number, or null where there is none")
        row = train.Row(ids, start, 0.0, False, None)
        yield prompt.strip(), None if score is None else Response(story.strip(), float(score), row)


def read_groups(sources: list[str], tokenizer, c: Config) -> tuple[dict[str, list[Response]], Counter]:
    """{prompt: its responses, no two with the same text} and what was left out, by reason. Only groups that can be ranked."""
    groups, texts, left = {}, set(), Counter()
    for source in sources:
        for path in files_of(source):
            for prompt, response in responses_of(path, tokenizer, c):
                if response is None:
                    left["without a score"] += 1
                elif not response.story:
                    left["empty"] += 1
                elif response.row.length > c.max_tokens:
                    left[f"longer than {c.max_tokens} tokens"] += 1
                elif (prompt, response.story) in texts:
                    left["identical to an earlier one"] += 1
                else:
                    texts.add((prompt, response.story))
                    groups.setdefault(prompt, []).append(response)
    for prompt, group in list(groups.items()):
        if len({r.score for r in group}) < 2:
            left["alone with its prompt" if len(group) == 1 else "scored like all its siblings"] += len(groups.pop(prompt))
    return groups, left


def split(groups: dict, share: float, seed: int) -> tuple[dict, dict]:
    """(train, test): whole prompts, and those that differ in the length asked for alone on the same side."""
    units = list(dict.fromkeys(map(judging.strip_length, groups)))
    order = data.order(len(units), 0, seed)
    held = {units[i] for i in order[:max(1, round(share * len(units)))]}
    test = {prompt: group for prompt, group in groups.items() if judging.strip_length(prompt) in held}
    return {prompt: group for prompt, group in groups.items() if prompt not in test}, test


# ---------------------------------------------------------------------------------------------------------------------
# Pair and weigh

def by_gap(scores: list[float], min_gap: float) -> list[tuple[int, int]]:
    """Best with worst, second best with second worst, and so on while the gap is wide enough: each response once."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    pairs = list(zip(order, reversed(order)))[:len(order) // 2]
    return [(w, l) for w, l in pairs if scores[w] > scores[l] and scores[w] - scores[l] >= min_gap]


def by_divpo(scores: list[float], d: list[float], c: Config) -> list[tuple[int, int]]:
    """DivPO's pair, then that of the responses that are left, and so on. Published is the first alone
    (--pairs_per_prompt 1); with all of them DivPO learns from as many pairs as the others do."""
    left, pairs = list(range(len(scores))), []
    while found := deviation.divpo_pairs([scores[i] for i in left], [d[i] for i in left], c.rho, c.pool):
        w, l = (left[i] for i in found[0])
        pairs.append((w, l))
        left = [i for i in left if i not in (w, l)]
    return [(w, l) for w, l in pairs if scores[w] - scores[l] >= c.min_gap]


def make_pairs(groups: dict[str, list[Response]], c: Config, method: str) -> list[Pair]:
    pairs = []
    for group in tqdm(groups.values(), desc="pairs", disable=not MAIN, leave=False):
        scores, delta_n, d_n = [r.score for r in group], [1.0] * len(group), None
        if method in ("ddpo", "dorpo", "divpo"):  # equal length: a short story shares less with any other
            delta_n, d_n = deviation.weights_of([r.story for r in group], c.similarity, c.style, equal_length=True,
                                                floor=c.floor, cap=math.inf)
            delta_n, d_n = delta_n.tolist() if method != "divpo" else [1.0] * len(group), d_n.tolist()
        chosen = by_divpo(scores, d_n, c) if method == "divpo" else by_gap(scores, c.min_gap)
        pairs += [Pair(group[w].row, group[l].row, delta_n[w], scores[w] - scores[l])
                  for w, l in chosen[:c.pairs_per_prompt or None]]
    return pairs


def prepare(c: Config, tokenizer) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs). The held-out ones are paired by gap for every method, so that methods are compared
    on the same ones. ValueError: nothing to train on, or a prompt on both sides."""
    groups, left = read_groups(c.data, tokenizer, c)
    if c.test:
        test, left_test = read_groups(c.test, tokenizer, c)
        left += left_test
        both = [p for p in test if judging.strip_length(p) in set(map(judging.strip_length, groups))]
        if both:
            raise ValueError(f"{len(both)} prompts of --test stand in --data as well, such as {both[0][:60]!r}; take them out of one of them")
    else:
        groups, test = split(groups, c.held_out, c.seed)
    pairs, held_out = make_pairs(groups, c, c.method), make_pairs(test, c, "dpo")
    told = ", ".join(f"{n} {why}" for why, n in left.items()) or "none"
    if len(pairs) < c.pairs or not held_out:
        raise ValueError(f"{' '.join(c.data)} gives {len(pairs)} pairs to train on and {len(held_out)} held-out ones, but a step needs {c.pairs} "
                         f"and the margin at least 1 (responses left out: {told}); add responses, or lower --pairs or --min_gap")
    if MAIN:
        print(f"{len(pairs)} pairs of {len(groups)} prompts to train on, {len(held_out)} pairs of {len(test)} held out; responses left out: {told}")
    return pairs, held_out


# ---------------------------------------------------------------------------------------------------------------------
# Score and train

def batches_of(pairs: list[Pair], spare: Pair, c: Config) -> list[tuple[list[Pair], float]]:
    """(micro-batch, weight): a process with fewer of them runs weightless ones, since under FSDP each is a meeting of all."""
    batches = [(batch, 1.0) for batch in train.micro_batches(pairs, c.micro_batch_tokens)]
    return batches + [([spare], 0.0)] * (int(train.reduce(len(batches), dist.ReduceOp.MAX)) - len(batches))


def logprobs(scorer, batch: list[Pair], c: Config, device):
    """-> sums [2, B] and token means [2, B] of the log-probabilities of the chosen and the rejected responses."""
    rows = [p.chosen for p in batch] + [p.rejected for p in batch]
    logp, _, mask, _ = train.score_rows(scorer, rows, c, device)
    sums = (logp * mask).sum(1)
    return sums.view(2, -1), (sums / mask.sum(1)).view(2, -1)


def losses(c: Config, batch: list[Pair], sums, means):
    """-> loss_B, before any mean."""
    delta_B = torch.tensor([p.delta for p in batch], device=sums.device)
    if c.method == "sft":
        return -means[0]
    if c.method in ("orpo", "dorpo"):
        return deviation.dorpo_loss(means[0], means[1], delta_B, c.lam)
    ref = torch.tensor([p.ref for p in batch], device=sums.device).T
    return deviation.ddpo_loss(sums[0], sums[1], ref[0], ref[1], delta_B, c.beta)


@torch.no_grad()
def score(scorer, pairs: list[Pair], c: Config, device) -> list[list[float]]:
    """Every pair's sums and means [chosen, rejected, chosen, rejected], in order, the work shared among processes."""
    mine = list(range(len(pairs)))[RANK::WORLD]
    at, rows = {id(pairs[i]): i for i in mine}, []
    bar = tqdm(total=len(mine), desc="log-probs", disable=not MAIN, leave=False)
    for batch, weight in batches_of([pairs[i] for i in mine], pairs[0], c):
        values = torch.cat(logprobs(scorer, batch, c, device)).T.tolist()
        if weight:
            rows += [(at[id(p)], v) for p, v in zip(batch, values)]
        bar.update(len(batch))
    bar.close()
    return [v for _, v in sorted(train.gather(rows))]


def margins(values: list[list[float]], before: list[list[float]], c: Config) -> dict:
    """Chosen minus rejected: in sums as DPO sees it, a token as ORPO and SFT do; `margin` is the method's own of the two."""
    sums, means = [v[0] - v[1] for v in values], [v[2] - v[3] for v in values]
    own = 2 if c.method in ("orpo", "dorpo", "sft") else 0
    rose = [v[own] - v[own + 1] > b[own] - b[own + 1] for v, b in zip(values, before)]
    return {"held_out/margin": train.mean(means if own else sums), "held_out/margin_sum": train.mean(sums),
            "held_out/margin_token": train.mean(means), "held_out/rose": train.mean([float(r) for r in rose]),
            "held_out/chosen_token": train.mean([v[2] for v in values]), "held_out/pairs": len(values)}


def update(scorer, optimiser, pairs: list[Pair], c: Config, device) -> dict:
    """One optimiser step on this process's share of the batch; the loss is the mean over the pairs of all processes."""
    started, loss_sum, margin, tokens = time.time(), 0.0, 0.0, sum(p.chosen.length + p.rejected.length for p in pairs)
    optimiser.zero_grad(set_to_none=True)
    batches = batches_of(pairs, min(pairs, key=lambda p: p.length), c)
    for i, (batch, weight) in enumerate(batches):
        # Gradients of ranks are averaged, hence the world size; each pair is weighed before the one global mean.
        with scorer.no_sync() if hasattr(scorer, "no_sync") and i < len(batches) - 1 else nullcontext():
            sums, means = logprobs(scorer, batch, c, device)
            loss = weight * losses(c, batch, sums, means).sum() / c.pairs
            (loss * WORLD).backward()
        loss_sum += loss.item()
        margin += weight * (sums[0] - sums[1]).sum().item()
    norm, stepped = train.descend(optimiser, c.grad_clip)
    return {"loss": train.reduce(loss_sum), "margin_sum": train.reduce(margin) / c.pairs, "grad_norm": norm, "stepped": stepped,
            "delta/mean": train.reduce(sum(p.delta for p in pairs)) / c.pairs, "gap/mean": train.reduce(sum(p.gap for p in pairs)) / c.pairs,
            "train/tokens_per_second": train.reduce(tokens) / (time.time() - started)}


CURVES = (("held_out/margin", "held-out margin, as the loss sees it"), ("held_out/margin_token", "held-out margin a token"),
          ("held_out/rose", "share of held-out margins that rose"), ("held_out/chosen_token", "held-out log p of the chosen, a token"),
          ("loss", "loss"), ("grad_norm", "gradient norm"))


def run(c: Config):
    # ---- read, pair, weigh -------------------------------------------------------------------------------------------
    device = train.connect()
    tokenizer = data.load_tokenizer(c.model)
    reach = qwen.ModelConfig.from_hf(qwen.read_config(qwen.fetch(c.model))).max_position_embeddings
    c.max_tokens = min(c.max_tokens, reach)
    pairs, held_out = prepare(c, tokenizer)

    # ---- score under the starting model: all that is kept of the reference ---------------------------------------------
    shared = {f.name for f in fields(train.Config)} & {f.name for f in fields(c)}
    model, scorer = train.build(train.Config(**{name: getattr(c, name) for name in shared}), device)
    steps = c.steps if c.steps >= 0 else len(pairs) // c.pairs
    before = score(scorer, held_out, c, device)
    if c.method in ("dpo", "ddpo", "divpo"):
        used = [pairs[i] for i in sorted(set(train.pick(len(pairs), 0, steps * c.pairs, c.seed)))]
        for pair, values in zip(used, score(scorer, used, c, device) if used else ()):
            pair.ref = (values[0], values[1])

    # ---- train -------------------------------------------------------------------------------------------------------
    optimiser = torch.optim.AdamW(train.param_groups(scorer), lr=c.lr, betas=(0.9, 0.999), weight_decay=c.weight_decay)
    folder, start = train.open_run(c, model, optimiser)
    log = train.Log(c, folder, start)
    stopping, bad_updates, began = [], 0, time.time()
    signal.signal(signal.SIGTERM, lambda *_: stopping.append("SIGTERM"))
    bar = tqdm(range(start, steps + 1), initial=start, total=steps + 1, desc=f"{c.name} ({c.method})", disable=not MAIN, dynamic_ncols=True)
    step = start
    try:
        for step in bar:  # `step` updates are done; the last round only looks
            line = {"step": step}
            if step % c.test_every == 0 or step in (start, steps):
                line |= margins(score(scorer, held_out, c, device) if step else before, before, c)
            if step < steps:
                batch = [pairs[i] for i in train.pick(len(pairs), step * c.pairs, c.pairs, c.seed)]
                line |= update(scorer, optimiser, batch[RANK::WORLD], c, device)
                bad_updates = 0 if line.pop("stepped") else bad_updates + 1
            log.write(line)
            bar.set_postfix({k: f"{line[k]:+.3f}" for k in ("loss", "held_out/margin") if k in line}, refresh=False)
            if bad_updates == 3:
                raise train.Stop("gradients were NaN or infinite three times in a row; lower --lr, or look at grad_norm in metrics.jsonl")
            if train.reduce(len(stopping)) and step < steps:
                step += 1
                raise train.Stop("SIGTERM received; go on with --resume auto")
            if step + 1 == steps or (step < steps and c.save_every and (step + 1) % c.save_every == 0):
                train.save_checkpoint(c, model, optimiser, step + 1, tokenizer)
    except train.Stop as why:
        train.save_checkpoint(c, model, optimiser, step, tokenizer)
        if MAIN:
            print(f"\nstopped after {step} steps: {why}; the state is saved in {folder}/checkpoints", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    if MAIN:
        plot(log.metrics, folder / "curves.png", CURVES)
        seen = [m for m in log.metrics if "held_out/margin" in m]
        print(f"{steps - start} steps in {time.time() - began:.0f} s; held-out margin {seen[0]['held_out/margin']:+.4f} before, "
              f"{seen[-1]['held_out/margin']:+.4f} after; it rose in {100 * seen[-1]['held_out/rose']:.0f} % of {len(held_out)} pairs")
        print(f"wrote {folder}/: curves.png, metrics.jsonl, checkpoints/ - python rollout.py --prompt ... reads the newest one")


def main(args=None):
    torch.set_flush_denormal(True)
    c = train.parse(args, Config, PRESETS, __doc__)
    try:
        check(c)
        run(c)
    except (ValueError, FileNotFoundError) as error:
        if MAIN:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
