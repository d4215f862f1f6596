"""Learn from stories that are already written and scored: DPO and ORPO, plain or weighted by deviation, DivPO
and SFT.

    read      groups of scored responses to the same prompt: a run's rollouts/, or any JSON Lines with scores
    or up-votes pair      the better against the worse where the gap is wide enough, each response at most
    once weigh     a chosen story that differs from its siblings counts for more (ddpo, dorpo: Chung et al.,
    2503.17126) score     both stories of each pair under the starting model, once; only two numbers per pair
    are kept train     pair by pair; before, during and after, the margin chosen - rejected on prompts that
    are never trained

    python -m scripts.prefer --data out/tiny/rollouts --method ddpo
    torchrun --nproc_per_node=4 -m scripts.prefer --data votes.jsonl --method dorpo --model Qwen/Qwen3.5-9B

A JSON Lines file holds one response per line: {"prompt": ..., "story": ..., "score": 1.5}; "response" and
"upvotes" are other names of "story" and "score", further keys are ignored, a score of null leaves the
response out. Rollouts are trained as the tokens that were sampled, human rows too. DPO is arXiv 2305.18290,
ORPO 2403.07691, DivPO 2501.18101. Model, LoRA, sharding, checkpoint and log are the trainer's. Left out:
reward models, online pairs, other losses. [B] is one value per pair of a micro-batch."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from tqdm import tqdm

import data
import deviation
import judge as judging
import model as qwen
import train
from data import Episode, Example
from lib import checkpoint, files, optim, processes
from lib.batches import equal_count, micro_batches
from lib.flags import check_ranges, exits_cleanly, opt, parse
from lib.metrics import Log, plot
from lib.processes import say
from lib.stats import mean

METHODS = ("dpo", "ddpo", "orpo", "dorpo", "divpo", "sft")
IN_TRAIN = {f.name: f for f in fields(train.Config)}


def same(name: str):
    """A field as train.py has it: default, help and range."""
    return field(default=IN_TRAIN[name].default, metadata=IN_TRAIN[name].metadata)


@dataclass
class Config:
    """Every number of a run; a flag of the same name wins over the preset, which wins over the default."""

    preset: str = same("preset")
    method: str = opt(
        "ddpo", "the loss; ddpo and dorpo weigh by deviation, sft trains the chosen alone", choices=METHODS
    )
    model: str = same("model")
    data: list[str] = opt([], "what to learn from: runs, their rollouts/ folders, JSON Lines files")
    test: list[str] = opt([], "the same for held-out pairs; empty: --held_out of the prompts of --data")
    held_out: float = opt(
        0.1, "share of prompts kept out of training, whatever length they ask for", above=0, high=1
    )
    out: str = same("out")
    name: str = opt("prefer", "name of this run")
    seed: int = opt(0, "of the split, the order of pairs and LoRA")
    steps: int = opt(-1, "optimiser steps; -1: one epoch, the last partial batch dropped", low=-1)
    thinking: bool = opt(
        True, "layout of a JSON Lines response: with an empty thought (True) or a closed one"
    )
    max_tokens: int = opt(8448, "prompt and response; longer responses are left out and counted", low=1)

    min_gap: float = opt(
        0.05, "least difference of score in a pair, in the units of the scores", "pairs", low=0
    )
    pairs_per_prompt: int = opt(0, "0: as many as there are; 1 with divpo: as published", low=0)
    rho: float = opt(0.25, "divpo: how near the best or the worst a candidate must be", low=0, high=0.5)
    pool: str = opt("range", "divpo: near in score or in rank", choices=("range", "rank"))
    similarity: str = same("similarity")
    style: str = opt("", "a second similarity, joined to the first by the geometric mean; empty: off")
    floor: float = opt(0.1, "least weight of a chosen story; there is no cap, as published", low=0, high=1)

    beta: float = opt(0.1, "dpo, ddpo, divpo: how far the policy may leave the reference", "loss", above=0)
    lam: float = opt(0.25, "orpo, dorpo: weight of the odds ratio", above=0)
    pairs: int = opt(16, "pairs per step, over all processes", low=1)
    lr: float = same("lr")
    weight_decay: float = opt(0.0, "AdamW's weight decay", low=0)
    grad_clip: float = same("grad_clip")
    temperature: float = opt(1.0, "of the log-probabilities; that of the sampling, for rollouts", above=0)

    parallel: str = same("parallel")
    lora_rank: int = same("lora_rank")
    lora_alpha: float = same("lora_alpha")
    checkpointing: bool = same("checkpointing")
    autocast: bool = same("autocast")
    compile: bool = same("compile")
    micro_batch_tokens: int = opt(16896, "padded tokens per pass, both stories of a pair together", low=1)
    test_every: int = opt(10, "steps between two looks at the held-out pairs, besides first and last", low=1)
    save_every: int = opt(100, "steps between checkpoints; 0: only the last", low=0)
    keep: int = same("keep")
    resume: str = same("resume")
    wandb: bool = same("wandb")


TINY = {
    "model": train.TINY["model"],
    "data": ["out/tiny/rollouts"],
    "thinking": False,
    "max_tokens": 1024,
    "steps": 40,
}
TINY |= {"lr": 1e-4, "checkpointing": False, "micro_batch_tokens": 4096, "save_every": 0}
PRESETS = {"polaris-9b": {}, "tiny": TINY}


def check(c: Config, world: int):
    """Every impossible combination, before anything is read. ValueError: one sentence on what to change."""
    check_ranges(c)
    if not c.data:
        raise ValueError(
            "nothing to learn from: pass --data with a run, a rollouts/ folder or a JSON Lines file"
        )
    if c.pairs % world:
        raise ValueError(
            f"--pairs {c.pairs} does not divide over {world} processes; use a multiple of {world}"
        )
    if c.parallel not in ("auto", "none", "ddp", "fsdp") or (c.parallel == "none" and world > 1):
        raise ValueError(f"--parallel {c.parallel} with {world} processes: choose ddp, fsdp or auto")
    if c.lora_rank and c.parallel == "fsdp":
        raise ValueError("LoRA does not shard its base; use --parallel ddp with --lora_rank")
    for name in filter(None, (c.similarity, c.style)):
        deviation.distances(
            ["a"], name
        )  # an unknown name or a missing package is known now, not after an hour


# ---- read: groups of scored responses ----------------------------------------------------------------------


@dataclass
class Pair:
    chosen: Episode
    rejected: Episode
    delta: float = 1.0  # the weight of the chosen story
    gap: float = 0.0  # difference of score
    ref: tuple[float, float] = (0.0, 0.0)  # log-probabilities of both under the starting model


IDLE = Pair(train.IDLE, train.IDLE, delta=0.0)  # fills a micro-batch


def length(pair: Pair) -> int:
    """Padded tokens of both."""
    return 2 * max(train.length(pair.chosen), train.length(pair.rejected))


def files_of(source: str) -> list[Path]:
    path = Path(source)
    if not path.is_dir():
        return [path]
    path = path / "rollouts" if (path / "rollouts").is_dir() else path
    found = sorted(path.glob("[!.]*.jsonl"))  # a step that is being written has a hidden name
    if not found:
        raise FileNotFoundError(
            f"no *.jsonl in {path}; give the folder of a run, its rollouts/, or a JSON Lines file"
        )
    return found


def response_of(row: dict, where: str, tokenizer, c: Config) -> Episode:
    """One line of a rollout or of a JSON Lines file; reward None: it has no score. ValueError: a bad line."""
    if "completion_ids" in row:
        response = data.episode(row, where)
        if not response.is_human and response.story not in tokenizer.decode(response.completion_ids):
            raise ValueError(
                f"{where}: the tokens do not spell the story; pass the --model of the run that wrote them"
            )
        return response
    prompt, story = row.get("prompt"), row.get("story", row.get("response"))
    texts = isinstance(prompt, str) and prompt.strip() and isinstance(story, str)
    if not texts or not {"score", "upvotes"} & set(row):
        needs = '"prompt", "story" (or "response") and "score" (or "upvotes"), the first two as text'
        raise ValueError(f"{where}: a response needs {needs}")
    score = row.get("score", row.get("upvotes"))
    number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    if score is not None and not number:
        raise ValueError(f"{where}: the score is {json.dumps(score)}; it must be a finite number or null")
    prompt_ids, ids = tokenizer.chat(prompt, c.thinking), tokenizer.completion(story, thinking=c.thinking)
    return Episode(Example(where, prompt, 1), prompt_ids, ids, None, True, False, story, reward=score)


def read_groups(sources: list[str], tokenizer, c: Config) -> tuple[dict[str, list[Episode]], Counter]:
    """{prompt: its responses, no two with the same text} and what was left out, by reason. Only groups that
    can be ranked."""
    groups, texts, left = {}, set(), Counter()
    for path in (path for source in sources for path in files_of(source)):
        for number, row in files.read_lines(path):
            response = response_of(row, f"{path} line {number}", tokenizer, c)
            prompt, story = response.example.prompt.strip(), response.story.strip()
            if response.reward is None:
                left["without a score"] += 1
            elif not story:
                left["empty"] += 1
            elif train.length(response) > c.max_tokens:
                left[f"longer than {c.max_tokens} tokens"] += 1
            elif (prompt, story) in texts:
                left["identical to an earlier one"] += 1
            else:
                texts.add((prompt, story))
                groups.setdefault(prompt, []).append(response)
    for prompt, group in list(groups.items()):
        if len({r.reward for r in group}) < 2:
            why = "alone with its prompt" if len(group) == 1 else "scored like all its siblings"
            left[why] += len(groups.pop(prompt))
    return groups, left


def split(groups: dict, share: float, seed: int) -> tuple[dict, dict]:
    """(train, test): whole prompts, and those that differ only in the length they ask for on the same
    side."""
    units = list(dict.fromkeys(map(judging.strip_length, groups)))
    order = data.order(len(units), 0, seed)
    held = {units[i] for i in order[: max(1, round(share * len(units)))]}
    test = {prompt: group for prompt, group in groups.items() if judging.strip_length(prompt) in held}
    return {prompt: group for prompt, group in groups.items() if prompt not in test}, test


# ---- pair and weigh ----------------------------------------------------------------------------------------


def by_gap(scores: list[float], min_gap: float) -> list[tuple[int, int]]:
    """Best with worst, second best with second worst, and so on while the gap is wide enough: each response
    once."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    pairs = list(zip(order, reversed(order)))[: len(order) // 2]
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
            pairs.append(Pair(group[w], group[l], delta[w], scores[w] - scores[l]))
    return pairs


def prepare(c: Config, tokenizer) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs). The held-out ones are paired by gap for every method, so that methods
    are compared on the same pairs. ValueError: nothing to train on, or a prompt on both sides."""
    groups, left = read_groups(c.data, tokenizer, c)
    if c.test:
        test, left_test = read_groups(c.test, tokenizer, c)
        left += left_test
        trained = set(map(judging.strip_length, groups))
        both = [prompt for prompt in test if judging.strip_length(prompt) in trained]
        if both:
            raise ValueError(f"{len(both)} prompts of --test are also in --data, such as {both[0][:60]!r}")
    else:
        groups, test = split(groups, c.held_out, c.seed)
    pairs, held_out = make_pairs(groups, c, c.method), make_pairs(test, c, "dpo")
    told = "responses left out: " + (", ".join(f"{n} {why}" for why, n in left.items()) or "none")
    found = (
        f"{len(pairs)} pairs of {len(groups)} prompts to train on, {len(held_out)} of {len(test)} held out"
    )
    if len(pairs) < c.pairs or not held_out:
        raise ValueError(
            f"{' '.join(c.data)} gives {found}, but a step needs {c.pairs} and the margin at least 1 ({told}); "
            "add responses, or lower --pairs or --min_gap"
        )
    say(f"{found}; {told}")
    return pairs, held_out


# ---- score and train ---------------------------------------------------------------------------------------


def batches_of(pairs: list[Pair], c: Config) -> list[list[Pair]]:
    """Micro-batches, as many on every process."""
    return equal_count(micro_batches(pairs, c.micro_batch_tokens, length), IDLE)


def logprobs(scorer, batch: list[Pair], c: Config):
    """-> sums [2, B] and token means [2, B] of the log-probabilities of the chosen and the rejected
    responses."""
    rows = [p.chosen for p in batch] + [p.rejected for p in batch]
    logp, _ = train.score(scorer, rows, c.temperature)
    parts = logp.split([len(r.completion_ids) for r in rows])
    return torch.stack([x.sum() for x in parts]).view(2, -1), torch.stack([x.mean() for x in parts]).view(
        2, -1
    )


def losses(c: Config, batch: list[Pair], sums, means):
    """-> loss [B], before any mean."""
    delta_B = torch.tensor([p.delta for p in batch], device=sums.device)
    if c.method == "sft":
        return -means[0] * (delta_B > 0)
    if c.method in ("orpo", "dorpo"):
        return deviation.dorpo_loss(means[0], means[1], delta_B, c.lam)
    ref = torch.tensor([p.ref for p in batch], device=sums.device).T
    return deviation.ddpo_loss(sums[0], sums[1], ref[0], ref[1], delta_B, c.beta)


@torch.no_grad()
def score(scorer, pairs: list[Pair], c: Config) -> list[list[float]]:
    """Every pair's sums and means [chosen, rejected, chosen, rejected], in order, the work shared among
    processes."""
    mine = range(len(pairs))[processes.RANK :: processes.WORLD]
    at, rows = {id(pairs[i]): i for i in mine}, []
    bar = tqdm(total=len(mine), desc="log-probs", disable=not processes.MAIN, leave=False)
    for batch in batches_of([pairs[i] for i in mine], c):
        values = torch.cat(logprobs(scorer, batch, c)).T.tolist()
        rows += [(at[id(p)], v) for p, v in zip(batch, values) if p is not IDLE]
        bar.update(len(batch))
    bar.close()
    return [v for _, v in sorted(processes.gather(rows))]


def margins(values: list[list[float]], before: list[list[float]], c: Config) -> dict:
    """Chosen minus rejected: in sums as DPO sees it, per token as ORPO and SFT do; `margin` is the method's
    own."""
    sums, means = [v[0] - v[1] for v in values], [v[2] - v[3] for v in values]
    own = 2 if c.method in ("orpo", "dorpo", "sft") else 0
    rose = [v[own] - v[own + 1] > b[own] - b[own + 1] for v, b in zip(values, before)]
    return {
        "held_out/margin": mean(means if own else sums),
        "held_out/margin_sum": mean(sums),
        "held_out/margin_token": mean(means),
        "held_out/rose": mean([float(r) for r in rose]),
        "held_out/chosen_token": mean([v[2] for v in values]),
        "held_out/pairs": len(values),
    }


def update(scorer, optimiser, pairs: list[Pair], c: Config) -> dict:
    """One optimiser step on this process's share of the batch; the loss is the mean over the pairs of all
    processes."""
    started, total = time.time(), {"loss": torch.zeros(()), "margin_sum": torch.zeros(())}
    optimiser.zero_grad(set_to_none=True)
    batches = batches_of(pairs, c)
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        with nullcontext() if last or not hasattr(scorer, "no_sync") else scorer.no_sync():
            sums, means = logprobs(scorer, batch, c)
            # Ranks' gradients are averaged, hence the world size; each pair is weighed before the one global
            # mean.
            used = float(batch[0] is not IDLE)
            loss = used * losses(c, batch, sums, means).sum() / c.pairs
            (loss * processes.WORLD).backward()
        total["loss"] = total["loss"] + loss.detach()
        total["margin_sum"] = total["margin_sum"] + used * (sums[0] - sums[1]).detach().sum() / c.pairs
    norm, stepped = optim.descend(optimiser, c.grad_clip)
    total["delta/mean"] = torch.tensor(sum(p.delta for p in pairs) / c.pairs)
    total["gap/mean"] = torch.tensor(sum(p.gap for p in pairs) / c.pairs)
    total["tokens"] = torch.tensor(
        float(sum(train.length(p.chosen) + train.length(p.rejected) for p in pairs))
    )
    total = processes.reduce_all(total)
    speed = total.pop("tokens") / (time.time() - started)
    return {**total, "grad_norm": norm, "stepped": stepped, "train/tokens_per_second": speed}


def batch_of(pairs: list[Pair], step: int, c: Config) -> list[Pair]:
    """The pairs of a step over all processes: shuffled epochs, the last partial batch of each left out."""
    per_epoch = len(pairs) // c.pairs
    position = step // per_epoch * len(pairs) + step % per_epoch * c.pairs
    return [pairs[i] for i in data.next_batch(len(pairs), position, c.pairs, c.seed)[0]]


CURVES = {
    "held_out/margin": "held-out margin, as the loss sees it",
    "held_out/margin_token": "held-out margin per token",
    "held_out/rose": "share of held-out margins that rose",
    "held_out/chosen_token": "held-out log p of the chosen, per token",
    "loss": "loss",
    "grad_norm": "gradient norm",
}


def start_run(c: Config, model, optimiser) -> tuple[Path, int, Log | None]:
    """-> the run's folder, the step to begin with, and on the main process its log."""
    folder, start, log = Path(c.out, c.name), 0, None
    if at := checkpoint.open_run(folder, c.resume):
        start, _ = train.load_checkpoint(c, at, model, optimiser)
    if processes.MAIN:
        files.write_json(folder / "config.json", asdict(c))
        told = {"name": c.name, "config": asdict(c)} if c.wandb else None
        log = Log(folder / "metrics.jsonl", start, told)
    processes.barrier()
    return folder, start, log


def run(c: Config):
    # ---- read, pair, weigh
    processes.connect()
    tokenizer = data.load_tokenizer(c.model)
    hf_config = qwen.read_config(qwen.fetch(c.model))
    c.max_tokens = min(c.max_tokens, qwen.ModelConfig.from_hf(hf_config).max_position_embeddings)
    pairs, held_out = prepare(c, tokenizer)

    # ---- score under the starting model: all that is kept of the reference
    shared = {f.name: getattr(c, f.name) for f in fields(c) if f.name in IN_TRAIN and f.name != "data"}
    model, scorer = train.build(train.Config(**shared), processes.connect())
    steps = c.steps if c.steps >= 0 else len(pairs) // c.pairs
    before = score(scorer, held_out, c)
    if c.method in ("dpo", "ddpo", "divpo"):
        used = {id(pair): pair for step in range(steps) for pair in batch_of(pairs, step, c)}.values()
        for pair, values in zip(used, score(scorer, list(used), c)):
            pair.ref = (values[0], values[1])

    # ---- train
    optimiser = optim.adamw(scorer, c.lr, c.weight_decay)
    folder, start, log = start_run(c, model, optimiser)
    stopping, bad_updates, began, step = processes.catch_signals(), 0, time.time(), start
    bar = tqdm(
        range(start, steps + 1), f"{c.name} ({c.method})", disable=not processes.MAIN, dynamic_ncols=True
    )
    try:
        for step in bar:  # `step` updates are done; the last round only looks
            line = {"step": step}
            if step % c.test_every == 0 or step in (start, steps):
                line |= margins(score(scorer, held_out, c) if step else before, before, c)
            if step < steps:
                mine = batch_of(pairs, step, c)[processes.RANK :: processes.WORLD]
                line |= update(scorer, optimiser, mine, c)
                bad_updates = 0 if line.pop("stepped") else bad_updates + 1
            if processes.MAIN:
                log.write(line)
            bar.set_postfix(
                {k: f"{line[k]:+.3f}" for k in ("loss", "held_out/margin") if k in line}, refresh=False
            )
            if bad_updates == 3:
                raise train.Stop("gradients were NaN or infinite three times in a row; lower --lr")
            signals = processes.gather(stopping)
            if signals and step < steps:
                step += 1
                raise train.Stop(f"{signals[0]} received; --resume auto goes on")
            if step + 1 == steps or (step < steps and c.save_every and (step + 1) % c.save_every == 0):
                train.save_checkpoint(c, model, optimiser, tokenizer, step + 1, 0)
    except train.Stop as why:
        train.save_checkpoint(c, model, optimiser, tokenizer, step, 0)
        say(f"stopped after {step} steps: {why}; the state is saved in {folder}/checkpoints", sys.stderr)
        raise SystemExit(1) from None
    if processes.MAIN:
        plot({c.name: log.metrics}, folder / "curves.png", CURVES)
        first, *_, last = [m for m in log.metrics if "held_out/margin" in m] * 2
        say(
            f"{steps - start} steps in {time.time() - began:.0f} s; held-out margin {first['held_out/margin']:+.4f} "
            f"before, {last['held_out/margin']:+.4f} after; it rose in {100 * last['held_out/rose']:.0f} % of "
            f"{len(held_out)} pairs\nwrote {folder}/: curves.png, metrics.jsonl, checkpoints/"
        )


def read_flags(argv=None) -> Config:
    return parse(Config, PRESETS, __doc__, argv, "polaris-9b" if torch.cuda.is_available() else "tiny")


@exits_cleanly
def main(argv=None):
    torch.set_flush_denormal(True)
    c = read_flags(argv)
    try:
        check(c, processes.WORLD)
        run(c)
    finally:
        processes.disconnect()


if __name__ == "__main__":
    main()
