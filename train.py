"""Teach a small language model to write long stories: GRPO with a judge, a human reference per group, and deviation.

    for each step:
        sample    a group of stories for each of a few prompts, from the policy itself
        judge     each story by a rubric, while others are being written; subtract penalties for length and loops
        anchor    a story written by a person joins each group, teacher-forced and judged alike  (POLARIS, 2606.04095)
        deviate   good stories that differ from their siblings count for more                    (2503.17126)
        update    advantage-weighted log-likelihood, clipped, averaged over all tokens of the batch
        log, save

    python train.py                                              # no GPU: the `tiny` preset, minutes on two CPU cores
    torchrun --nproc_per_node=4 train.py --data stories.jsonl    # GPUs: the `polaris-9b` preset, needs JUDGE_URL
    python train.py --hri off --deviation 0                      # plain GRPO

GRPO is arXiv 2402.03300; clip-higher and the token mean are DAPO's (2503.14476); a truncated importance weight corrects
what sampler and trainer disagree on. Left out: value model, reward model, replay. A run leaves out/<run>/: config.json,
metrics.jsonl, rollouts/, checkpoints/, curves.png. [N] is one value per completion token of a micro-batch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from tqdm import tqdm

import data
import deviation
import hri
import judge as judging
import model as qwen
import rollout
from data import Episode, Example
from lib import checkpoint, files, flags, optim, parallel, processes
from lib.batches import equal_count, micro_batches, per_token
from lib.flags import opt
from lib.lora import add_lora
from lib.metrics import Log, plot
from lib.processes import say
from lib.stats import jumped, mean

ROOT = Path(__file__).resolve().parent


@dataclass
class Config:
    """Every number of a run. The defaults are POLARIS's; a preset changes some; a flag of the same name wins."""

    preset: str = opt("auto", "polaris-9b | tiny | auto: polaris-9b where there is a GPU, else tiny", "data")
    model: str = opt("Qwen/Qwen3.5-9B", "checkpoint folder or hub id of a Qwen3.5 model")
    data: str = opt(
        "out/stories.jsonl", "JSON Lines of prompts and human stories (scripts.anthologies build)"
    )
    out: str = opt("out", "folder of all runs")
    name: str = opt("", "name of this run; empty: the name of the preset")
    seed: int = opt(0, "same seed and machine: same stories, same losses")
    steps: int = opt(-1, "GRPO steps; -1: one epoch, the last partial batch dropped", low=-1)
    max_prompt_tokens: int = opt(256, "longer prompts are left out, and counted at the start", low=1)

    prompts: int = opt(8, "prompts per step, over all processes", "group", low=1)
    group: int = opt(5, "policy stories per prompt, the reference not counted", low=2)
    max_new_tokens: int = opt(
        8192, "completion limit, thinking included; a story cut here is truncated", low=1
    )
    thinking: bool = opt(True, "open <think> for the model; False: a closed, empty one")
    temperature: float = opt(1.0, "of sampling, and of the log-probabilities that are trained", above=0)
    top_p: float = opt(0.95, "nucleus; changes the sampled distribution, see mismatch/*", above=0, high=1)
    top_k: int = opt(20, "0: off", low=0)
    repetition_penalty: float = opt(1.10, "1: off", above=0)
    slots: int = opt(0, "stories written at the same time on one device; 0: as many as fit", low=0)

    hri: str = opt(
        "polaris",
        "polaris | positive (never pushes away from the reference) | off",
        "reward",
        choices=hri.MODES,
    )
    hri_peak: float = opt(0.4, "weight of the reference's advantage after the warm-up", low=0)
    hri_warmup: int = opt(15, "steps over which that weight grows from 0", low=0)
    deviation: float = opt(0.0, "strength with which deviation weighs positive advantages", low=0, high=1)
    similarity: str = opt("tfidf", "what alike means: tfidf | jaccard | char3 | embedding")
    bands: str = opt(
        "paper",
        "lengths without penalty: paper (stories of 1k words and up) | short (30 to 500)",
        choices=tuple(judging.BANDS),
    )

    lr: float = opt(1e-6, "AdamW's learning rate", "loss", low=0)
    lr_warmup: int = opt(0, "steps over which lr rises first; the paper has none", low=0)
    lr_decay: bool = opt(False, "then linearly down to 0 at the last step; the paper keeps it constant")
    weight_decay: float = opt(0.01, "AdamW's weight decay", low=0)
    grad_clip: float = opt(1.0, "largest global norm of a gradient", above=0)
    clip_low: float = opt(0.20, "the ratio to the sampling policy is clipped at 1 - clip_low", low=0)
    clip_high: float = opt(0.28, "and at 1 + clip_high", low=0)
    loss_mean: str = opt(
        "token",
        "over all tokens (token), of row means (sequence), / max_new_tokens (constant)",
        choices=("token", "sequence", "constant"),
    )
    normalise_std: bool = opt(True, "divide a group's advantages by its standard deviation")
    updates_per_batch: int = opt(1, "optimiser steps per batch of stories; above 1 the clip matters", low=1)
    mismatch_cap: float = opt(2.0, "truncated importance weight between trainer and sampler; 0: none", low=0)
    kl: float = opt(0.0, "weight of the KL to the starting policy; 0: no reference model in memory", low=0)

    judge: str = opt(
        "api",
        "api: an OpenAI-compatible endpoint | offline: measures form, for demos",
        "judge",
        choices=("api", "offline"),
    )
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "default $JUDGE_URL; the key: JUDGE_API_KEY alone")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "default $JUDGE_MODEL")
    judge_mode: str = opt(
        "story", "story: each story alone | group: one call ranks a group", choices=("story", "group")
    )
    judge_samples: int = opt(1, "verdicts averaged per story", low=1)
    judge_settings: dict[str, str] = opt({}, "of the calls; docs/judge.md lists the keys")
    watch_url: str = opt("", "a second judge, never trained on (key: WATCH_API_KEY): watch/* in the metrics")
    watch_model: str = opt("", "its model; best of another family than the judge's")
    watch_every: int = opt(10, "steps between two looks of the watch judge", low=1)

    parallel: str = opt(
        "auto",
        "none | ddp | fsdp | hsdp | auto: fsdp for full training on GPUs",
        "machine",
        choices=("auto", "none", "ddp", "fsdp", "hsdp"),
    )
    lora_rank: int = opt(0, "0: train all weights; else LoRA of this rank on a bf16 base", low=0)
    lora_alpha: float = opt(32.0, "LoRA's scale is alpha / rank", above=0)
    checkpointing: bool = opt(True, "recompute each block in the backward pass")
    autocast: bool = opt(False, "bf16 products on fp32 weights where nothing is sharded: faster, less exact")
    compile: bool = opt(False, "torch.compile the blocks; minutes of start-up")
    micro_batch_tokens: int = opt(16384, "padded tokens per forward and backward pass", low=1)
    keep_replica: bool = opt(False, "keep the sampling replica in memory during the update")

    save_every: int = opt(20, "steps between checkpoints; 0: only the last step saves", "saving", low=0)
    keep: int = opt(2, "checkpoints kept; 0: all", low=0)
    resume: str = opt(
        "", "auto: the newest checkpoint of this run; or a checkpoint folder; empty: start anew"
    )
    wandb: bool = opt(False, "also log to wandb (pip install wandb)")


# On form the policy soon beats the reference, and a negative anchor would push it away from good words: `positive`.
TINY = {
    "model": str(ROOT / "stories/tiny-base"), "data": str(ROOT / "stories/tiny.jsonl"), "judge": "offline", "steps": 45,
    "thinking": False, "prompts": 8, "group": 7, "max_new_tokens": 288, "top_p": 1.0, "top_k": 0, "bands": "short",
    "repetition_penalty": 1.0, "deviation": 0.5, "hri": "positive", "hri_warmup": 0, "lr": 1.5e-3, "lr_warmup": 6,
    "lr_decay": True, "checkpointing": False, "save_every": 0, "micro_batch_tokens": 2048, "keep_replica": True}  # fmt: skip
PRESETS = {"polaris-9b": {}, "tiny": TINY}


def parse(argv=None) -> Config:
    """Command line -> Config. SystemExit(2): an unknown flag or preset."""
    auto = "polaris-9b" if torch.cuda.is_available() else "tiny"
    c = flags.parse(Config, PRESETS, __doc__, argv, auto)
    return replace(c, name=c.name or c.preset)


def check(c: Config, world: int):
    """Every impossible combination, before anything is loaded or written. ValueError: one sentence on what to change."""
    flags.check_ranges(c)

    def need(good, sentence):
        if not good:
            raise ValueError(sentence)

    alone = f"--parallel none with {world} processes would train {world} separate models; use ddp or fsdp"
    need(
        c.prompts % world == 0,
        f"--prompts {c.prompts} does not divide over {world} processes; use a multiple of {world}",
    )
    need(
        c.name not in ("", ".", "..") and "/" not in c.name,
        f"--name {c.name}: a run is one folder; leave slashes out",
    )
    need(Path(c.out).is_dir() or not Path(c.out).exists(), f"--out {c.out} is a file; name a folder")
    need(c.parallel != "none" or world == 1, alone)
    need(
        not (c.lora_rank and c.parallel.endswith("sdp")),
        "LoRA does not shard its base; use --parallel ddp with it",
    )
    need(not c.wandb or importlib.util.find_spec("wandb"), "--wandb needs its package: pip install wandb")
    deviation.distances(["a"], c.similarity)  # ValueError: an unknown name or a missing package
    judging.check(c)  # ValueError: flags that no judge can follow


# ---- set up ----------------------------------------------------------------------------------------------------------


def prepare(c: Config, tokenizer) -> tuple[list[Example], dict[str, Episode]]:
    """Examples whose prompts fit, and the reference row of each that has a story, by uid. ValueError: too few."""
    examples = data.read_examples(c.data)
    template = 16  # tokens that chat adds to a prompt
    fits = [
        e for e in examples if len(tokenizer.chat(e.prompt, c.thinking)) <= c.max_prompt_tokens + template
    ]
    if len(fits) < len(examples):
        say(
            f"{len(examples) - len(fits)} of {len(examples)} prompts exceed {c.max_prompt_tokens} tokens and are left out"
        )
    if len(fits) < c.prompts:
        raise ValueError(
            f"{c.data} has {len(fits)} usable prompts, a step needs {c.prompts}; add data or lower --prompts"
        )
    references = {
        e.uid: hri.reference_episode(e, tokenizer, c.thinking, c.max_new_tokens) for e in fits if e.story
    }
    if not references and c.hri != "off":
        raise ValueError(f"no example in {c.data} has a human story; add them, or pass --hri off")
    per_word = (
        mean(len(r.completion_ids) / data.words(r.story) for r in references.values() if r.finished) or 1.3
    )
    least = [judging.bounds(c.bands).band(e.target_words)[0] * per_word for e in fits]
    if long := sum(tokens > c.max_new_tokens for tokens in least):
        told = f"{long} of {len(fits)} requests need more than --max_new_tokens {c.max_new_tokens} (up to {max(least):.0f})"
        if long == len(fits):
            raise ValueError(f"{told}; raise it, or use shorter requests")
        say(f"note: {told}; their stories are cut")
    return fits, references


def build(c: Config, device):
    """The policy, and the module that scores tokens with it, placed on this machine's processes."""
    on_gpu = device.type == "cuda"
    kind, shards = parallel.choose(c.parallel, shard=on_gpu and not c.lora_rank)
    if processes.LOCAL_RANK == 0:  # one process per node downloads, the others find the files in the cache
        qwen.fetch(c.model)
    processes.barrier()
    need = state_bytes(c, qwen.read_config(qwen.fetch(c.model)), shards, on_gpu)["peak"]
    processes.need_memory(need, device, "more processes with --parallel fsdp or --lora_rank 32 help")
    model = qwen.load(c.model, torch.bfloat16 if on_gpu and c.lora_rank else torch.float32, device)
    if not on_gpu:
        processes.choose_threads(sum(p.numel() for p in model.parameters()))
    model.checkpointing = c.checkpointing
    if c.lora_rank:
        add_lora(model, c.lora_rank, c.lora_alpha, c.seed)
    if c.compile:
        for block in model.layers:
            block.compile()
    if kind.endswith("sdp"):
        qwen.shard(model, on_gpu, shards)
    return model, parallel.scorer_of(model, kind, c.autocast)


def state_bytes(c: Config, hf_config: dict, shards: int, on_gpu: bool) -> dict[str, float]:
    """Bytes of weights, gradients, AdamW, replica and their peak that one process needs before any activation."""
    with torch.device("meta"):
        model = qwen.Qwen35(qwen.ModelConfig.from_hf(hf_config))
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in add_lora(model, c.lora_rank, 1)) if c.lora_rank else total
    return optim.state_bytes(total, trained, shards, c.lora_rank > 0, 2 if on_gpu else 4, c.keep_replica)


# ---- sample and judge ------------------------------------------------------------------------------------------------


class Stop(Exception):
    """The run ends early with its state saved; the message says why."""


SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def sample(
    c: Config, step, batch, examples, references, replica, tokenizer, judge, stopping
) -> list[list[Episode]]:
    """This process's groups of the step: policy rows, then the reference where there is one, with their rewards.

    batch: indices of the step's examples. references: {uid: Episode}, empty where none joins. A story goes to the
    judge when it is finished, while others are still being written. A signal (`stopping`) ends it early.
    """
    mine = list(enumerate(batch))[processes.RANK :: processes.WORLD]
    groups = []
    for _, e in mine:
        example, ids = examples[e], tokenizer.chat(examples[e].prompt, c.thinking)
        rows = [Episode(example, ids, [], None, False, False, "") for _ in range(c.group)]
        groups.append(rows + [replace(references[example.uid])] * (example.uid in references))
    policy = [row for group in groups for row in group if not row.is_human]
    asked = [judging.Asked(judge, c.judge_mode, group) for group in groups]
    # The seed of a story names its place in the run, not its process: any number of processes writes the same ones.
    seeds = [
        random.Random(f"{c.seed}/{step}/{p}/{g}").getrandbits(62) for p, _ in mine for g in range(c.group)
    ]
    stories = rollout.stream(
        replica, [row.prompt_ids for row in policy], seed=seeds, slots=c.slots or None,
        stop_ids=rollout.stop_ids(c.model, tokenizer), **{name: getattr(c, name) for name in SAMPLING})  # fmt: skip
    bar = tqdm(total=len(policy), desc="  stories", disable=not processes.MAIN, leave=False, mininterval=1)
    for i, done, ended in stories:
        if stopping:
            break  # all processes meet and stop
        if ended:
            row = policy[i]
            row.completion_ids, row.sampler_logprobs, row.finished = done.ids, done.logprobs, done.finished
            text = tokenizer.decode(done.ids)
            row.story = data.split_thinking("<think>" + text if c.thinking else text)[1]
            asked[i // c.group].finished(i % c.group)
            bar.update()
    bar.close()
    for verdicts in [] if stopping else asked:
        verdicts.settle(judging.bounds(c.bands))
    return groups


def stories_of_a_killed_step(c: Config, pending: Path, settings: dict, judge) -> list[list[Episode]] | None:
    """What a killed run wrote for this step, so that nothing is bought twice; None where there is nothing that fits."""
    lines, differs = files.kept(pending, settings)
    if differs:
        say(f"stories of a killed step depend on other settings ({', '.join(differs)}) and are written again")
    if lines is None:
        return None
    groups = [[data.episode(row, str(pending)) for row in line["group"]] for line in lines]
    judge_again(c, judge, groups)
    return groups


def judge_again(c: Config, judge, groups):
    """Asks for the verdicts that are missing; what was bought before comes from the judge's store."""
    for verdicts in [judging.Asked(judge, c.judge_mode, group) for group in groups]:
        verdicts.settle(judging.bounds(c.bands))


def meet(c: Config, groups, judge, stopping):
    """All processes agree that the step can be trained. Stop: a signal, a spent budget, or a judge that is silent."""
    for wait in (1, 2, 0):
        if signals := processes.gather(stopping):
            raise Stop(f"{signals[0]} received")
        if processes.reduce(judge.out_of_budget):
            raise Stop("the judge's budget is spent")
        if processes.reduce(sum(row.reward is not None for g in groups for row in g if not row.is_human)):
            return
        if not wait:
            raise Stop(f"the judge gave no verdict for a whole step, three times ({judge.last_error})")
        time.sleep(wait)
        judge_again(c, judge, groups)


FREE = set("preset out name steps slots keep_replica bands save_every keep resume wandb".split())


def story_settings(c: Config, origin: str) -> dict:
    """What the stories of a step depend on: those of a killed step are used again only where all of it is equal."""
    settings = {k: v for k, v in asdict(c).items() if k not in FREE and not k.startswith(("judge", "watch"))}
    return settings | {
        "last step": c.lr_decay and c.steps,
        "origin": origin,
        "data file": files.digest(c.data),
    }


# ---- advantage and loss ----------------------------------------------------------------------------------------------


def grpo_advantages(groups: list[list[Episode]], normalise_std: bool) -> list[list[Episode]]:
    """Sets each policy row's advantage: its reward, centred and scaled over the policy rows of its group (2402.03300).

    Rows without a verdict enter no mean and get 0. -> the groups that can rank their stories: two rewards or more,
    not all equal (1e-6). The others teach nothing and leave the batch; without that rule a reference beside
    equal stories would be divided by a standard deviation of 0.
    """
    ranked = []
    for group in groups:
        policy = [row for row in group if not row.is_human and row.reward is not None]
        rewards = [row.reward for row in policy]
        if len(rewards) < 2 or max(rewards) - min(rewards) <= 1e-6:
            continue
        center, scale = fmean(rewards), stdev(rewards) + 1e-6 if normalise_std else 1.0
        for row in policy:
            row.advantage = (row.reward - center) / scale
        ranked.append(group)
    return ranked


def policy_loss(
    logp,
    old_logp,
    advantage,
    human,
    weight,
    count,
    *,
    clip_low,
    clip_high,
    sampler_logp,
    mismatch_cap,
    ref_logp=None,
    kl=0.0,
):
    """The part of the batch's loss that one micro-batch adds -> (loss, sums of statistics, each a tensor).

    All tensors [N]. Each token adds
        -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) * c * weight / count,      r = exp(logp - old_logp),
    with c = min(exp(old_logp - sampler_logp), mismatch_cap), the truncated weight for what the sampler did
    differently. The policy did not sample the reference (`human`), so its tokens get no c and no clip:
    r = exp(logp - logp.detach()), which is 1 and has the gradient A * grad logp. count is that of the whole batch
    over all processes; weight is 1, or 1 / length for the mean over rows, or 0 for tokens that only fill a
    micro-batch. kl adds the k3 estimate of the divergence from ref_logp.
    """
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    trained = (weight > 0).float()
    sampled = trained * ~human
    gap = (old_logp - sampler_logp).detach() * sampled
    objective = torch.minimum(ratio * advantage, clipped)
    if mismatch_cap:
        objective = objective * gap.exp().clamp(max=mismatch_cap)
    objective = torch.where(human, (logp - logp.detach()).exp() * advantage, objective)
    if kl:
        objective = objective - kl * (torch.expm1(ref_logp - logp) - (ref_logp - logp)) * ~human
    loss = -(objective * weight).sum() / count
    sums = {
        "loss": loss.detach(), "nll": -(logp.detach() * trained).sum(), "tokens": trained.sum(), "sampled": sampled.sum(),
        "clipped": ((ratio * advantage > clipped) * sampled).sum(), "gap": gap.abs().sum(),
        "k3": (torch.expm1(-gap) + gap).sum(), "over": ((gap.exp() > mismatch_cap) & (mismatch_cap > 0)).sum()}  # fmt: skip
    return loss, sums | {"gap_max": gap.abs().max()}


# ---- update ----------------------------------------------------------------------------------------------------------

IDLE = Episode(Example("", "", 1), [0], [0], None, False, True, "")  # fills a micro-batch with weight 0


def length(row: Episode) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def score(scorer, batch: list[Episode], temperature: float):
    """One micro-batch through the model -> (log-probabilities, entropies) [N] of its completion tokens."""
    rows, starts = [r.prompt_ids + r.completion_ids for r in batch], [len(r.prompt_ids) for r in batch]
    return scorer(qwen.Packed(rows, starts), temperature)


def batch_loss(logp, old, batch: list[Episode], count: float, c: Config, ref=None):
    """`policy_loss` of a micro-batch whose completion tokens have these log-probabilities [N]."""
    counts, device = [len(row.completion_ids) for row in batch], logp.device
    share = [
        0.0 if row is IDLE else 1 / n if c.loss_mean == "sequence" else 1.0 for row, n in zip(batch, counts)
    ]
    sampler = [x for row, n in zip(batch, counts) for x in row.sampler_logprobs or [0.0] * n]
    return policy_loss(
        logp, old, per_token([row.advantage for row in batch], counts, device),
        per_token([row.is_human for row in batch], counts, device), per_token(share, counts, device), count,
        sampler_logp=torch.tensor(sampler).to(device, non_blocking=True), ref_logp=ref, kl=c.kl, clip_low=c.clip_low,
        clip_high=c.clip_high, mismatch_cap=c.mismatch_cap)  # fmt: skip


def update(scorer, optimiser, groups: list[list[Episode]], c: Config, reference=None) -> dict:
    """`c.updates_per_batch` optimiser steps on this process's groups -> statistics of the last one over all processes.

    DDP and FSDP average gradients over ranks; the loss is divided by the global count and multiplied by the world
    size, so that the gradient is that of one sum over the whole batch. {"loss": None}: no row anywhere to learn from.
    """
    began = time.time()
    rows = [row for group in groups for row in group if row.reward is not None and row.completion_ids]
    tokens, n_rows = processes.reduce(sum(len(r.completion_ids) for r in rows)), processes.reduce(len(rows))
    if not tokens:
        return {"loss": None}
    count = {"token": tokens, "sequence": n_rows, "constant": n_rows * c.max_new_tokens}[c.loss_mean]
    batches = equal_count(micro_batches(rows, c.micro_batch_tokens, length), IDLE)
    with torch.no_grad():
        refs = [score(reference, b, c.temperature)[0] if reference else None for b in batches]
    olds = [None] * len(batches)
    for _ in range(c.updates_per_batch):
        optimiser.zero_grad(set_to_none=True)
        total, worst = {}, []
        for i, batch in enumerate(
            tqdm(batches, "  micro-batches", disable=not processes.MAIN, leave=False, delay=5)
        ):
            last = i + 1 == len(batches)  # DDP sums gradients over processes once, at the last
            with nullcontext() if last or not hasattr(scorer, "no_sync") else scorer.no_sync():
                logp, entropy = score(scorer, batch, c.temperature)
                olds[i] = (
                    logp.detach() if olds[i] is None else olds[i]
                )  # the first pass: ratio 1 by construction
                loss, sums = batch_loss(logp, olds[i], batch, count, c, refs[i])
                (loss * processes.WORLD).backward()
            worst.append(sums.pop("gap_max"))
            sums["entropy"] = entropy.sum() if batch[0] is not IDLE else 0 * entropy.sum()
            total = {name: total.get(name, 0) + x.double() for name, x in sums.items()}
        norm, stepped = optim.descend(optimiser, c.grad_clip)
    total, worst = processes.reduce_all(total), processes.reduce(torch.stack(worst).max(), processes.MAX)
    sampled = max(total["sampled"], 1.0)
    return {
        "loss": total["loss"], "grad_norm": norm, "stepped": stepped, "nll": total["nll"] / total["tokens"],
        "entropy": total["entropy"] / total["tokens"], "clip/share": total["clipped"] / sampled,
        "mismatch/mean": total["gap"] / sampled, "mismatch/k3": total["k3"] / sampled, "mismatch/max": worst,
        "mismatch/clipped": total["over"] / sampled,
        "train/tokens_per_second": tokens / (time.time() - began)}  # fmt: skip


# ---- log and save ----------------------------------------------------------------------------------------------------


def measure(groups: list[list[Episode]], seconds: float, weight: float) -> dict:
    """What one step's stories (of all processes) show, under names that never change. None: nothing to average."""
    policy = [row for group in groups for row in group if not row.is_human]
    people = [row for group in groups for row in group if row.is_human]
    parts = {
        name: mean(r.rewards.get(name) for r in policy)
        for name in ("quality", "length", "repetition", "blank")
    }
    return {
        "reward/mean": mean(r.reward for r in policy), **{f"reward/{name}": x for name, x in parts.items()},
        "hri/weight": weight, "hri/reward": mean(r.reward for r in people),
        "hri/advantage": mean(r.advantage for r in people if r.reward is not None),
        "deviation/mean": mean(r.rewards.get("deviation") for r in policy),
        "length/ratio": mean(data.words(r.story) / r.example.target_words for r in policy),
        "length/words": mean(data.words(r.story) for r in policy),
        "length/in_band": mean(float(r.rewards["length"] == 0) for r in policy if r.rewards),
        "judge/failed": sum(r.reward is None for r in policy + people),
        "truncated": mean(float(not r.finished) for r in policy), "rollout/seconds": seconds,
        "rollout/tokens_per_second": sum(len(r.completion_ids) for r in policy) / seconds}  # fmt: skip


CURVES = {
    "reward/mean": "reward", "length/in_band": "share in length band", "reward/quality": "rubric score / 100",
    "reward/repetition": "repetition penalty", "hri/reward": "reward of the reference", "deviation/mean": "deviation"}  # fmt: skip


def save_checkpoint(c: Config, model, optimiser, tokenizer, step: int, position: int):
    """out/<run>/checkpoints/step_N: a folder that transformers loads, and under state/ what --resume loads."""
    with checkpoint.new(Path(c.out, c.name, "checkpoints"), step, c.keep) as partial:
        qwen.save(model, partial, torch.bfloat16, write=processes.MAIN)
        if c.lora_rank and processes.MAIN:
            qwen.save_adapter(model, partial / "adapter", c.model)
        processes.barrier()
        checkpoint.save_state(partial / "state", model, optimiser)
        if processes.MAIN:
            tokenizer.save(partial)
            files.write_json(
                partial / "trainer.json", {"step": step, "position": position, "config": asdict(c)}
            )


def load_checkpoint(c: Config, folder: Path, model, optimiser) -> tuple[int, int]:
    """Training state of `folder` into model and optimiser -> (step, position in the data) to go on from."""
    trainer = checkpoint.read_trainer(folder)
    was, now = trainer["config"], asdict(c)
    if was["lora_rank"] != c.lora_rank:
        raise ValueError(
            f"{folder} has --lora_rank {was['lora_rank']}, this run {c.lora_rank}; make them equal"
        )
    if c.lora_rank and c.model != was["model"] and Path(c.model, "trainer.json").exists():
        raise ValueError(
            f"--model {c.model} already holds what LoRA learned; resume with --model {was['model']}"
        )
    differs = [k for k in now if k not in ("resume", "steps") and was.get(k, now[k]) != now[k]]
    if differs:
        say("resuming with other settings: " + ", ".join(f"--{k} {now[k]} (was {was[k]})" for k in differs))
    checkpoint.load_state(folder / "state", model, optimiser)
    position = trainer.get("position", trainer["step"] * was.get("prompts", 0))
    return trainer["step"], position if c.data == was["data"] else 0  # a place in another file means nothing


def look(watcher, groups) -> dict:
    """judge/evidence of all verdicts, and watch/* where the watch judge looks at this step."""
    rows = [row for group in groups for row in group]
    judged = [
        (r.example.prompt, r.story, 100 * r.rewards["quality"]) for r in rows if r.rewards and not r.is_human
    ]
    return judging.evidence_metrics([row.verdict for row in rows]) | judging.watch(watcher, judged)


def log_step(c: Config, log, folder: Path, bar, line: dict, groups: list[list[Episode]]) -> bool:
    """metrics.jsonl, rollouts/, the progress bar and its alarms -> whether sampler and trainer disagree as never before."""
    log.write(line)
    data.write_episodes(
        folder / f"rollouts/step_{line['step']:06d}.jsonl", [row for group in groups for row in group]
    )
    recent = log.recent(20)
    broken = jumped(
        [m["mismatch/mean"] for m in recent if "mismatch/mean" in m], start=0.1, times=20, least=1e-3
    )
    alarms = ["sampler and trainer disagree, see mismatch/mean: is the replica refreshed?"] if broken else []
    for text in alarms + (judging.alarms(recent) if line["step"] % 10 == 9 else []):
        bar.write(f"step {line['step']}: {text}")
    shown = {"reward": "reward/mean", "in_band": "length/in_band", "words": "length/words"}
    bar.set_postfix({name: f"{line[of]:.3g}" for name, of in shown.items() if line[of] is not None})
    return broken


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(c: Config):
    # ---- set up
    device = processes.connect()
    tokenizer = data.load_tokenizer(c.model)
    examples, references = prepare(c, tokenizer)
    learned = processes.from_main(judging.try_out, c) if c.steps else {}
    model, scorer = build(c, device)
    optimiser = optim.adamw(scorer, c.lr, c.weight_decay)
    folder, start, position = Path(c.out, c.name), 0, 0
    if at := checkpoint.open_run(folder, c.resume):
        start, position = load_checkpoint(c, at, model, optimiser)
    settings = story_settings(c, str(at or "") if c.resume != "auto" else "")
    judge, watcher = judging.make(c, learned=learned), judging.make_watch(c)
    stopping = processes.catch_signals()  # from here on there is a state worth saving
    if processes.MAIN:
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "config.json", asdict(c))
        log = Log(folder / "metrics.jsonl", start, {"name": c.name, "config": asdict(c)} if c.wandb else None)
    processes.barrier()
    steps = c.steps if c.steps >= 0 else len(examples) // c.prompts
    reference = build(c, device)[1].requires_grad_(False) if c.kl else None
    replica, step, bad_updates, bad_samples, began = None, start, 0, 0, time.time()
    bar = tqdm(
        range(start, steps),
        c.name,
        initial=start,
        total=steps,
        disable=not processes.MAIN,
        dynamic_ncols=True,
    )
    try:
        for step in bar:
            # ---- sample, and judge finished stories while others are being written
            clock = time.time()
            batch, after = data.next_batch(len(examples), position, c.prompts, c.seed)
            weight = hri.weight(step, c.hri_peak, c.hri_warmup) if c.hri != "off" else 0.0
            pending = folder / f"rollouts/.step_{step:06d}.rank{processes.RANK}of{processes.WORLD}.jsonl"
            groups = stories_of_a_killed_step(c, pending, settings, judge)
            if processes.reduce(
                groups is None
            ):  # some process samples; gathering the weights takes all of them
                half = torch.bfloat16 if device.type == "cuda" else None
                replica = rollout.refresh(replica, model) if replica else rollout.replica(model, half)
            if groups is None:
                joining = references if weight else {}
                groups = sample(c, step, batch, examples, joining, replica, tokenizer, judge, stopping)
                files.keep(pending, settings, [{"group": [asdict(row) for row in group]} for group in groups])
            if not c.keep_replica:
                replica = None
            meet(c, groups, judge, stopping)
            seconds = time.time() - clock

            # ---- advantages
            ranked = grpo_advantages(groups, c.normalise_std)  # centred and scaled over the policy's rows
            hri.anchor(ranked, weight, c.hri, c.normalise_std)  # delete this line: plain GRPO
            deviation.weigh(groups, c.deviation, c.similarity)  # delete this line: no deviation

            # ---- update
            optim.set_lr(
                optimiser, c.lr * min((step + 1) / max(1, c.lr_warmup), 1 - step / steps if c.lr_decay else 1)
            )
            stats = update(scorer, optimiser, ranked, c, reference)
            bad_updates = 0 if stats.pop("stepped", True) else bad_updates + 1
            position = after

            # ---- log
            everyone, dropped = processes.gather(groups), processes.reduce(len(groups) - len(ranked))
            if processes.MAIN:
                line = {
                    "step": step,
                    **measure(everyone, seconds, weight),
                    "groups/dropped": dropped,
                    **stats,
                }
                line |= {
                    "bad_updates": bad_updates,
                    **judge.metrics(),
                    **look(watcher if step % c.watch_every == 0 else None, everyone),
                }
                broken = log_step(c, log, folder, bar, line | {"seconds": time.time() - clock}, everyone)
                bad_samples = bad_samples + 1 if broken else 0
            pending.unlink()

            # ---- save
            if bad_updates == 3:
                raise Stop(
                    "gradients were NaN or infinite three times in a row; look at grad_norm and mismatch/*"
                )
            if processes.reduce(bad_samples) == 3:
                raise Stop("sampler and trainer disagreed three times in a row; look at mismatch/*")
            if step + 1 == steps or (c.save_every and (step + 1) % c.save_every == 0):
                save_checkpoint(c, model, optimiser, tokenizer, step + 1, position)
                if processes.MAIN:
                    plot({c.name: log.metrics}, folder / "curves.png", CURVES)
    except Stop as why:
        save_checkpoint(c, model, optimiser, tokenizer, step, position)
        say(
            f"stopped at step {step}: {why}; the state is saved in {folder}/checkpoints, --resume auto goes on",
            sys.stderr,
        )
        raise SystemExit(1) from None
    finally:
        judge.close()
        bar.close()
    if processes.MAIN:
        first, last = (
            mean(m.get("reward/mean") for m in part) for part in (log.metrics[:5], log.metrics[-5:])
        )
        say(f"{steps - start} steps in {time.time() - began:.0f} s; mean reward {first:+.3f} in the first 5, {last:+.3f} "
            f"in the last 5\nwrote {folder}/: curves.png, metrics.jsonl, rollouts/, checkpoints/; rollout.py writes with them")  # fmt: skip


@flags.exits_cleanly
def main(argv=None):
    torch.set_flush_denormal(
        True
    )  # before the first parallel operation: strong decays make denormals, 12 x slower
    c = parse(argv)
    if processes.MAIN and "--preset" not in " ".join(argv or sys.argv):
        why = (
            f"{torch.cuda.device_count()} GPU(s) found"
            if c.preset != "tiny"
            else "no GPU found, so this is the demo; "
        )
        say(f"preset {c.preset}: {why}" + "--preset polaris-9b is the paper's recipe" * (c.preset == "tiny"))
    try:
        check(c, processes.WORLD)
        run(c)
    except (ValueError, OSError):
        if not processes.MAIN:
            time.sleep(3)  # torchrun ends this process meanwhile where the main one says the same
        raise
    finally:
        processes.disconnect()


if __name__ == "__main__":
    main()
