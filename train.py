"""Teach a small language model to write long stories: GRPO with a judge, an injected human story, and deviation.

    for each step:
        sample    a group of stories for each of a few prompts, from the policy itself
        judge     each story by a rubric, while others are still being written; subtract penalties for length and loops
        anchor    a story written by a person joins each group, teacher-forced and judged alike   (POLARIS, 2606.04095)
        deviate   good stories that differ from their siblings count for more                     (2503.17126)
        update    advantage-weighted log-likelihood, clipped, averaged over all tokens of the batch
        log, save

    python train.py                                              # no GPU: the `tiny` preset, minutes on two CPU cores
    torchrun --nproc_per_node=4 train.py --data stories.jsonl    # GPUs: the `polaris-9b` preset, needs JUDGE_URL
    python train.py --hri off --deviation 0                      # plain GRPO

GRPO is arXiv 2402.03300; clip-higher and the token mean are DAPO's (2503.14476); the correction for what sampler and
trainer disagree on is a truncated importance weight. No value model, no reward model, no replay, one update a batch.
Everything a run leaves stands in out/<run>/: config.json, metrics.jsonl, rollouts/, checkpoints/, curves.png.
"""
from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from tqdm import tqdm

import data
import deviation
import hri
import judge as judging
import model as qwen
import rollout
from scripts.curves import plot

ROOT = Path(__file__).resolve().parent


def opt(default, help):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    """Every number of a run. The defaults are POLARIS's; PRESETS changes some; a flag of the same name wins."""
    preset: str = opt("auto", "polaris-9b | tiny | auto: polaris-9b where there are GPUs, tiny where there are none")
    # what is trained on what
    model: str = opt("Qwen/Qwen3.5-9B", "checkpoint folder or hub id of a Qwen3.5 model")
    data: str = opt("out/stories.jsonl", "JSON Lines of prompts and human stories (python -m scripts.anthologies build)")
    out: str = opt("out", "folder that holds all runs")
    name: str = opt("", "name of this run; empty: the preset's name")
    seed: int = opt(0, "same seed, same machine: same stories, same losses")
    steps: int = opt(-1, "GRPO steps; -1: one epoch, the last partial batch dropped")
    # a group
    prompts: int = opt(8, "prompts a step, over all processes")
    group: int = opt(5, "policy stories a prompt, the human one not counted")
    max_prompt_tokens: int = opt(256, "a longer prompt leaves the data, counted at start")
    max_new_tokens: int = opt(8192, "completion limit, thinking included; a story cut here is marked truncated")
    thinking: bool = opt(True, "open <think> for the model; False: a closed, empty one")
    temperature: float = opt(1.0, "of sampling, and of the log-probabilities that are trained")
    top_p: float = opt(0.95, "nucleus; bends the sampled distribution, see mismatch/*")
    top_k: int = opt(20, "0: off")
    min_p: float = opt(0.0, "0: off")
    repetition_penalty: float = opt(1.10, "1: off")
    slots: int = opt(0, "stories written at the same time on one device; 0: as many as fit")
    # human-reference injection
    hri: str = opt("polaris", "polaris | positive (never pushes away) | luffy (shaped by probability) | off")
    hri_peak: float = opt(0.4, "weight of the human row's advantage after the warm-up")
    hri_warmup: int = opt(15, "steps over which that weight grows from 0")
    # deviation
    deviation: float = opt(0.0, "strength in [0, 1] with which positive advantages are weighted by deviation; 0: off")
    similarity: str = opt("tfidf", "what alike means: tfidf | jaccard | char3 | embedding")
    # loss
    lr: float = opt(1e-6, "AdamW, constant")
    lr_warmup: int = opt(0, "steps over which lr rises first; the paper has none")
    lr_decay: bool = opt(False, "then linearly down to 0 at the last step; the paper keeps it constant")
    weight_decay: float = opt(0.01, "AdamW")
    grad_clip: float = opt(1.0, "global norm")
    clip_low: float = opt(0.20, "the ratio to the sampling policy is clipped at 1 - clip_low")
    clip_high: float = opt(0.28, "and at 1 + clip_high")
    loss_mean: str = opt("token", "token: over all tokens of the batch | sequence: of row means | constant: rows * max_new_tokens")
    normalise_std: bool = opt(True, "divide a group's advantages by its std")
    updates_per_batch: int = opt(1, "optimiser steps on one batch of stories; above 1 the clip begins to matter")
    mismatch_cap: float = opt(2.0, "truncated importance weight between trainer and sampler; 0: no correction")
    kl: float = opt(0.0, "weight of the KL to the starting policy; 0: off, no reference model in memory")
    # judge (the key comes from JUDGE_API_KEY alone)
    judge: str = opt("api", "api: any OpenAI-compatible endpoint | offline: measures form, for demos and tests")
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "for example https://api.openai.com/v1; default $JUDGE_URL")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "default $JUDGE_MODEL")
    judge_temperature: float = opt(0.2, "of the judge's answers; below 0: not sent, for models that refuse it")
    judge_top_p: float = opt(0.9, "below 0: not sent")
    judge_seed: int = opt(-1, "sent with each call; below 0: none")
    judge_reasoning_effort: str = opt("", "low, medium, high, where the judge knows it; empty: not sent")
    judge_samples: int = opt(1, "verdicts averaged per story")
    judge_groupwise: bool = opt(False, "one call ranks all stories of a group, the reward comes from the ranks")
    judge_in_flight: int = opt(32, "requests at the same time")
    judge_per_minute: list[float] = opt([0.0, 0.0], "most requests and most tokens a minute; 0: no limit")
    judge_timeouts: list[float] = opt([10.0, 120.0], "seconds to connect, and without a byte, before a call is tried again")
    judge_deadline: float = opt(300.0, "seconds for one story, retries included; then it has no verdict")
    judge_price: list[float] = opt([0.0, 0.0], "dollars per million prompt and completion tokens, for the ledger")
    judge_budget: float = opt(0.0, "dollars; the run saves its state and stops before it spends more; 0: no limit")
    watch_url: str = opt("", "a second judge that is never trained on (key: WATCH_API_KEY): its scores beside the reward, as watch/*")
    watch_model: str = opt("", "its model; best of another family than the judge's")
    watch_every: int = opt(10, "steps between two looks of the watch judge")
    length_low: list[float] = opt([0.15, 350, 1000], "T words asked for: the band begins at T - clamp(a T, b, c)")
    length_high: list[float] = opt([0.25, 600, 1500], "and ends at T + clamp(a T, b, c)")
    min_words: int = opt(150, "a story with fewer words counts as blank")
    # supervised warm start: the same update on human stories alone, each with advantage 1
    warm_start_steps: int = opt(0, "supervised steps before GRPO")
    warm_start_lr: float = opt(1e-5, "its peak, warmed up over the first twentieth and decayed linearly to 0")
    warm_start_rows: int = opt(32, "stories a supervised step")
    # memory and machines
    parallel: str = opt("auto", "none | ddp | fsdp | hsdp (sharded within a node) | auto: fsdp for full fine-tuning on GPUs, ddp else")
    lora_rank: int = opt(0, "0: train all weights; else LoRA of this rank on a bf16 base")
    lora_alpha: float = opt(32.0, "LoRA's scale is alpha / rank")
    checkpointing: bool = opt(True, "recompute each block in the backward pass")
    autocast: bool = opt(False, "bf16 matrix products on fp32 weights where nothing is sharded: faster, and less exact")
    compile: bool = opt(False, "torch.compile the blocks; minutes of start-up")
    micro_batch_tokens: int = opt(16384, "padded tokens of one forward and backward pass")
    keep_replica: bool = opt(False, "keep the sampling replica in memory during the update")
    # saving
    save_every: int = opt(20, "steps between checkpoints; the last step always saves")
    keep: int = opt(2, "checkpoints kept; 0: all")
    resume: str = opt("", "auto: the newest checkpoint of this run; or a checkpoint folder; empty: start anew")
    wandb: bool = opt(False, "also log to wandb, if it is installed")


TINY = dict(
    model=str(ROOT / "stories/tiny-base"), data=str(ROOT / "stories/tiny.jsonl"), judge="offline", thinking=False, steps=45,
    prompts=8, group=7, max_new_tokens=288, top_p=1.0, top_k=0, repetition_penalty=1.0, deviation=0.5,
    hri="positive", hri_warmup=0,  # on form the policy soon beats the person, and a negative anchor would push it away from good words
    lr=1.5e-3, lr_warmup=6, lr_decay=True, length_low=[0.15, 8, 1000], length_high=[0.25, 12, 1500], min_words=15, checkpointing=False, save_every=0,
    micro_batch_tokens=2048, keep_replica=True, warm_start_lr=1e-3)
PRESETS = {"polaris-9b": {}, "tiny": TINY}


def parse(args=None, kind=Config, presets=PRESETS, about=__doc__):
    """Command line -> Config: dataclass defaults, then the preset, then the flags. SystemExit(2): an unknown flag."""
    from transformers import HfArgumentParser
    parser = HfArgumentParser(kind, description=about.split("\n\n")[0], allow_abbrev=False)
    preset = parser.parse_known_args(args)[0].preset
    chosen = preset if preset != "auto" else "polaris-9b" if torch.cuda.is_available() else "tiny"
    if chosen not in presets:
        parser.error(f"--preset {preset}: choose one of {', '.join(presets)}, auto")
    parser.set_defaults(**presets[chosen])
    config, unknown = parser.parse_args_into_dataclasses(args, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown argument {unknown[0]}; --help lists the flags")
    if MAIN and preset == "auto":
        why = "no GPU found, so this is the demo; --preset polaris-9b is the paper's recipe" if chosen == "tiny" else \
              f"{torch.cuda.device_count()} GPU(s) found"
        print(f"preset {chosen}: {why}", flush=True)
    config.preset = chosen
    config.name = config.name or chosen
    return config


def check(c: Config, world: int):
    """Every impossible combination, before anything is loaded or written. ValueError: one sentence on what to change."""
    def need(good, sentence):
        if not good:
            raise ValueError(sentence)
    need(c.prompts % world == 0, f"--prompts {c.prompts} does not divide over {world} processes; use a multiple of {world}")
    need(c.group >= 2, f"--group {c.group}: a group needs at least 2 stories to be compared")
    need(c.hri in hri.MODES, f"--hri {c.hri}: choose one of {', '.join(hri.MODES)}")
    need(c.loss_mean in ("token", "sequence", "constant"), f"--loss_mean {c.loss_mean}: choose token, sequence or constant")
    need(c.parallel in ("auto", "none", "ddp", "fsdp", "hsdp"), f"--parallel {c.parallel}: choose none, ddp, fsdp, hsdp or auto")
    need(c.parallel != "none" or world == 1, f"--parallel none with {world} processes would train {world} separate models; use ddp or fsdp")
    need(not (c.lora_rank and c.parallel.endswith("sdp")), "LoRA does not shard its base; use --parallel ddp with --lora_rank")
    need(0 <= c.deviation <= 1, f"--deviation {c.deviation}: the strength lies between 0 and 1")
    need(c.temperature > 0, f"--temperature {c.temperature}: GRPO needs stories that differ, so a temperature above 0")
    need(0 < c.top_p <= 1, f"--top_p {c.top_p}: must lie in (0, 1]")
    need(not c.warm_start_steps or c.warm_start_rows >= world, f"--warm_start_rows {c.warm_start_rows}: at least one a process, {world}")
    need(c.updates_per_batch >= 1, f"--updates_per_batch {c.updates_per_batch}: at least 1")
    need(c.judge in ("api", "offline"), f"--judge {c.judge}: choose api or offline")
    need(c.judge == "offline" or c.steps == 0 or (c.judge_url and c.judge_model),
         f"the {c.preset} preset needs a judge: set JUDGE_URL and JUDGE_MODEL (and JUDGE_API_KEY) or --judge_url and "
         "--judge_model to an OpenAI-compatible endpoint, or pass --judge offline, which measures form, not quality")
    need(not c.judge_groupwise or c.judge_samples == 1, f"--judge_groupwise ranks a group once; leave --judge_samples {c.judge_samples} out")
    need(len(c.judge_price) == len(c.judge_per_minute) == len(c.judge_timeouts) == 2,
         "--judge_price, --judge_per_minute and --judge_timeouts take two numbers each")
    need(bool(c.watch_url) == bool(c.watch_model), "the watch judge needs both --watch_url and --watch_model")
    need(len(c.length_low) == 3 and len(c.length_high) == 3, "--length_low and --length_high take three numbers: share, least, most")


# ---------------------------------------------------------------------------------------------------------------------
# Processes

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets both
MAIN = RANK == 0
JOIN = timedelta(minutes=5)  # for all processes to appear


def connect() -> torch.device:
    """Joins the other processes (none without torchrun: then every collective is a no-op) -> this process's device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 inside the delta rule and the fp32 heads
    if not dist.is_initialized():
        try:
            store = next(dist.rendezvous("env://", timeout=JOIN))[0] if "WORLD_SIZE" in os.environ else dist.HashStore()
            # torchrun's store survives its restarts, and the addresses of the dead would still stand in it (torch 2.13).
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            # Much longer than the default: a process whose stories end early waits here for the others.
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=RANK, world_size=WORLD,
                                    timeout=timedelta(hours=2))
        except dist.DistError as error:
            raise ValueError(f"process {RANK} of {WORLD} could not reach the others at {os.environ.get('MASTER_ADDR')}:"
                             f"{os.environ.get('MASTER_PORT')} ({str(error).splitlines()[0]}); check that address, "
                             "the firewall, and that all nodes were started") from None
    return device


def reduce(x, op=dist.ReduceOp.SUM):
    """A number summed (or otherwise reduced) over all processes."""
    t = torch.tensor(float(x), dtype=torch.float64)
    dist.all_reduce(t, op)
    return t.item()


def gather(x) -> list:
    """The lists of all processes as one, in the order of ranks."""
    parts = [None] * WORLD
    dist.all_gather_object(parts, list(x))
    return [item for part in parts for item in part]


class Scorer(torch.nn.Module):
    """ids [B, T] -> (log-probabilities, entropy) [B, T-1]: what DDP wraps, since its hooks live in forward()."""

    def __init__(self, model, autocast=False):
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, ids, lengths, temperature):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.token_logprobs(ids, lengths, temperature, return_entropy=True)


def state_bytes(c: Config, hf_config: dict, shards: int, on_gpu: bool) -> dict[str, float]:
    """Bytes one process needs before any activation: weights, gradients, AdamW's moments, sampling replica, and their peak."""
    with torch.device("meta"):
        model = qwen.Qwen35(qwen.ModelConfig.from_hf(hf_config))
    n = trained = sum(p.numel() for p in model.parameters())
    if c.lora_rank:
        trained = sum(p.numel() for p in qwen.add_lora(model, c.lora_rank, c.lora_alpha))
    half = 2 if on_gpu else 4
    s = dict(weights=(half * n + 4 * trained if c.lora_rank else 4 * n) / shards, gradients=4 * trained / shards,
             optimiser=8 * trained / shards, replica=float(half * n))
    resident = s["weights"] + s["optimiser"]
    together = s["gradients"] + s["replica"] if c.keep_replica else max(s["gradients"], s["replica"])
    load = 4.0 * n if shards > 1 else 0.0  # each process reads the whole model before it keeps its shard
    return s | dict(load=load, peak=max(resident + together, load))


def build(c: Config, device):
    """The policy, and the module that scores tokens with it, placed on this machine's processes."""
    on_gpu = device.type == "cuda"
    parallel = c.parallel
    if parallel == "auto":
        parallel = "fsdp" if on_gpu and not c.lora_rank else "ddp" if WORLD > 1 else "none"
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # one process a node downloads, the others find it in the cache
        qwen.fetch(c.model)
    dist.barrier()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", WORLD))
    shards = {"fsdp": WORLD, "hsdp": local}.get(parallel, 1)
    states = state_bytes(c, qwen.read_config(qwen.fetch(c.model)), shards, on_gpu)
    free = rollout.free_bytes(device) / (1 if on_gpu else local)
    if states["peak"] > free:
        raise ValueError(f"weights, gradients, AdamW and replica need {states['peak'] / 1e9:.1f} GB a process, {free / 1e9:.1f} GB are free; "
                         "more processes with --parallel fsdp or --lora_rank 32 help; python -m scripts.plan tells how much")
    model = qwen.load(c.model, torch.bfloat16 if on_gpu and c.lora_rank else torch.float32, device)
    model.checkpointing = c.checkpointing
    if c.lora_rank:
        qwen.add_lora(model, c.lora_rank, c.lora_alpha, c.seed)
    if c.compile:
        for block in model.layers:
            block.compile()
    if parallel.endswith("sdp"):
        qwen.shard(model, on_gpu, shards)
    scorer = Scorer(model, c.autocast)
    if parallel == "ddp":
        scorer = torch.nn.parallel.DistributedDataParallel(scorer, device_ids=[device.index] if on_gpu else None)
    return model, scorer


# ---------------------------------------------------------------------------------------------------------------------
# Loss

def policy_loss(logp, old_logp, advantages, mask, token_count, *, clip_low=0.2, clip_high=0.28, is_human=None,
                shaped_human=False, sampler_logp=None, mismatch_cap=0.0, ref_logp=None, kl=0.0, row_weight=None):
    """The part of the batch's loss that one micro-batch adds -> (loss, sums of statistics).

    logp, old_logp, sampler_logp, ref_logp, mask: [B, T-1]; advantages, is_human, row_weight: [B]. Each token adds
        -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) * c / token_count,      r = exp(logp - old_logp),
    with c = min(exp(old_logp - sampler_logp), mismatch_cap), the truncated weight for what the sampler did differently.
    Nobody sampled the human rows, so they get no c and no clip: r = exp(logp - logp.detach()), whose gradient is
    A * grad logp (POLARIS), or pi / (pi + 0.1) (LUFFY, `shaped_human`). token_count is the count of trained tokens of
    the whole batch over all processes; row_weight [B] rescales it for the sequence mean. kl adds the k3 estimate.
    """
    human = torch.zeros_like(advantages, dtype=torch.bool) if is_human is None else is_human
    A, human = advantages[:, None], human[:, None]
    ratio = (logp - old_logp).exp()
    objective = torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)
    stats = dict(clipped=((ratio * A > ratio.clamp(1 - clip_low, 1 + clip_high) * A) & ~human).float())
    sampled = mask * ~human
    if sampler_logp is not None:
        gap = (old_logp - sampler_logp).detach() * sampled
        stats |= dict(gap=gap.abs(), k3=(torch.expm1(-gap) + gap), over=((gap.exp() > mismatch_cap) & (mismatch_cap > 0)).float())
        stats_max = gap.abs().max()
        if mismatch_cap:
            objective = objective * gap.exp().clamp(max=mismatch_cap)
    human_ratio = hri.shape(logp) if shaped_human else (logp - logp.detach()).exp()
    objective = torch.where(human, human_ratio * A, objective)
    if kl:
        objective = objective - kl * (torch.expm1(ref_logp - logp) - (ref_logp - logp)) * ~human
    weight = mask if row_weight is None else mask * row_weight[:, None]
    loss = -(objective * weight).sum() / token_count
    sums = {name: (x * sampled).sum().item() for name, x in stats.items()} | dict(sampled=sampled.sum().item())
    sums["nll"], sums["tokens"] = -(logp * mask).sum().item(), mask.sum().item()
    if sampler_logp is not None:
        sums["gap_max"] = stats_max.item()
    return loss, sums


@dataclass
class Row:
    """An episode as the update sees it."""
    ids: list[int]
    start: int                  # where the completion begins
    advantage: float
    is_human: bool
    sampler_logprobs: list[float] | None
    old: torch.Tensor | None = None    # log-probabilities of the first pass over this batch
    ref: torch.Tensor | None = None
    trained: bool = True

    @property
    def length(self):
        return len(self.ids)


def micro_batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Rows sorted by length, cut into batches of at most `budget` padded tokens: little padding, even memory."""
    batches = []
    for row in sorted(rows, key=lambda r: r.length):
        if batches and row.length * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def schedule(rows: list[Row], budget: int) -> list[list[Row]]:
    """Micro-batches of the trained rows, equal in number on all processes: under FSDP each forward pass is a meeting of
    all, so a process with fewer of them runs weightless ones."""
    batches = micro_batches([r for r in rows if r.trained], budget)
    shortest = min(rows, key=lambda r: r.length)
    idle = Row(shortest.ids, shortest.start, 0.0, True, None, trained=False)
    return batches + [[idle]] * (int(reduce(len(batches), dist.ReduceOp.MAX)) - len(batches))


def score_rows(scorer, batch, c, device):
    """One micro-batch through the model -> logp, entropy, mask (completion tokens), and `lift`, which lays any per-token
    list of the rows' completions under the same shape [B, T-1]."""
    lengths = torch.tensor([r.length for r in batch], device=device)
    T = int(lengths.max())
    ids = torch.zeros(len(batch), T, dtype=torch.long)
    mask = torch.zeros(len(batch), T - 1)
    for i, r in enumerate(batch):
        ids[i, :r.length] = torch.tensor(r.ids)
        mask[i, r.start - 1:r.length - 1] = float(r.trained)
    logp, entropy = scorer(ids.to(device), lengths, c.temperature)

    def lift(values):
        out = torch.zeros(len(batch), T - 1)
        for i, (r, v) in enumerate(zip(batch, values)):
            if v is not None:
                out[i, r.start - 1:r.length - 1] = torch.as_tensor(v)
        return out.to(device)
    return logp, entropy, mask.to(device), lift


def descend(optimiser, max_norm: float) -> tuple[float, bool]:
    """Clips the gradients and steps -> their norm before, and whether it was finite: if not, nothing moves."""
    params = [p for group in optimiser.param_groups for p in group["params"]]
    qwen.average_replicated(params)
    norm = qwen.clip_gradients(params, max_norm)
    if math.isfinite(norm):
        optimiser.step()
    return norm, math.isfinite(norm)


def update(scorer, optimiser, rows: list[Row], c: Config, device, reference=None) -> dict:
    """One optimiser step on `rows` (this process's share of the batch) -> statistics over all processes.

    Gradients of ranks are averaged by DDP and FSDP alike; the loss is divided by the global token count and multiplied
    by the world size, so that what arrives is the gradient of one sum over the whole batch. ZeroDivision cannot occur:
    a batch without trained tokens is skipped by the caller.
    """
    started = time.time()
    trained = [r for r in rows if r.trained]
    tokens = reduce(sum(r.length - r.start for r in trained))
    count_rows = reduce(len(trained))
    batches = schedule(rows, c.micro_batch_tokens)
    sums, loss_sum = {}, 0.0
    optimiser.zero_grad(set_to_none=True)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        hold = scorer.no_sync() if hasattr(scorer, "no_sync") and not last else nullcontext()
        with hold:
            logp, entropy, mask, lift = score_rows(scorer, batch, c, device)
            if batch[0].old is None:  # the first pass over this batch: ratio 1 by construction
                old = logp.detach()
                if c.updates_per_batch > 1:
                    for row, o in zip(batch, old):
                        row.old = o[row.start - 1:row.length - 1].cpu()
            else:
                old = lift([r.old for r in batch])
            sampler = lift([r.sampler_logprobs for r in batch]) if any(r.sampler_logprobs for r in batch) else None
            ref = lift([r.ref for r in batch]) if reference is not None else None
            lens = torch.tensor([float(r.length - r.start) for r in batch], device=device)
            weight, count = None, tokens
            if c.loss_mean == "sequence":
                weight, count = 1 / lens, count_rows
            if c.loss_mean == "constant":
                count = count_rows * c.max_new_tokens
            loss, part = policy_loss(
                logp, old, torch.tensor([r.advantage for r in batch], device=device), mask, count, clip_low=c.clip_low,
                clip_high=c.clip_high, is_human=torch.tensor([r.is_human for r in batch], device=device),
                shaped_human=c.hri == "luffy", sampler_logp=sampler, mismatch_cap=c.mismatch_cap, ref_logp=ref, kl=c.kl,
                row_weight=weight)
            (loss * WORLD).backward()
        part["entropy"] = (entropy * mask).sum().item()
        loss_sum += loss.item()
        for name, x in part.items():
            sums[name] = max(sums.get(name, 0.0), x) if name == "gap_max" else sums.get(name, 0.0) + x
    norm, stepped = descend(optimiser, c.grad_clip)
    total = {name: reduce(sums.get(name, 0.0)) for name in
             ("nll", "tokens", "entropy", "sampled", "gap", "k3", "over", "clipped")}
    sampled, tok = max(total["sampled"], 1.0), max(total["tokens"], 1.0)
    return {"loss": reduce(loss_sum), "grad_norm": norm, "stepped": stepped, "nll": total["nll"] / tok,
            "entropy": total["entropy"] / tok, "clip/share": total["clipped"] / sampled,
            "mismatch/mean": total["gap"] / sampled, "mismatch/k3": total["k3"] / sampled,
            "mismatch/max": reduce(sums.get("gap_max", 0.0), dist.ReduceOp.MAX),
            "mismatch/clipped": total["over"] / sampled, "train/tokens_per_second": tokens / (time.time() - started)}


# ---------------------------------------------------------------------------------------------------------------------
# One group: sample, judge

def make_judge(c: Config, cache=True):
    if c.judge == "offline":
        return judging.OfflineJudge()
    sent = lambda number: number if number >= 0 else None
    return judging.Judge(c.judge_url, c.judge_model, temperature=sent(c.judge_temperature), top_p=sent(c.judge_top_p), seed=sent(c.judge_seed),
                         reasoning_effort=c.judge_reasoning_effort or None, samples=c.judge_samples, in_flight=c.judge_in_flight,
                         per_minute=c.judge_per_minute, timeouts=c.judge_timeouts, deadline=c.judge_deadline, run=c.name,
                         cache=Path(c.out, "judge.sqlite") if cache else None, price=c.judge_price,
                         budget=c.judge_budget or None)


def watch(c: Config, episodes) -> dict:
    """watch/*: eight of the step's stories (over all processes) before a judge the policy never meets."""
    rows = [e for e in episodes if e.reward is not None and not e.is_human][::max(1, len(episodes) // 8)][:8]
    judge = judging.Judge(c.watch_url, c.watch_model, os.environ.get("WATCH_API_KEY", ""), cache=Path(c.out, "judge.sqlite"), run=c.name + "/watch")
    verdicts = [f.result() for f in [judge.submit(e.example.prompt, e.story) for e in rows]]
    judge.close()
    return judging.watch_metrics([100 * e.rewards["quality"] for e in rows], verdicts)


def bounds_of(c: Config) -> judging.LengthBounds:
    return judging.LengthBounds(*c.length_low, *c.length_high, blank_words=c.min_words)


def sample(c: Config, step: int, examples, humans, replica, tokenizer, judge, with_human: bool, stopping) -> list[data.Episode]:
    """This process's groups of `step`, each [group policy rows, then the human one where there is one], with verdicts.

    A story (or, group-wise, a group) goes to the judge the moment it is finished, while others are being written.
    Stop: `stopping` was filled.
    """
    batch = data.order(len(examples), step // (len(examples) // c.prompts), c.seed)
    at = step % (len(examples) // c.prompts) * c.prompts
    mine = list(enumerate(batch[at:at + c.prompts]))[RANK::WORLD]
    groups = []
    for _, e in mine:
        ids = tokenizer.chat(examples[e].prompt, c.thinking)
        rows = [data.Episode(examples[e], ids, [], None, False, False, "") for _ in range(c.group)]
        human = humans.get(examples[e].uid)
        groups.append(rows + ([human] if with_human and human else []))
    policy = [row for group in groups for row in group if not row.is_human]
    # A story's seed names its place in the run, not its process: any number of processes writes the same stories.
    seeds = [random.Random(f"{c.seed}/{step}/{p}/{g}").getrandbits(62) for p, _ in mine for g in range(c.group)]
    verdicts = {} if c.judge_groupwise else ask(c, judge, [row for group in groups for row in group if row.is_human])

    def on_finish(i, done):
        if stopping:
            raise Stop
        row = policy[i]
        row.completion_ids, row.sampler_logprobs, row.finished = done.ids, done.logprobs, done.finished
        text = tokenizer.decode(done.ids)
        row.story = data.split_thinking("<think>" + text if c.thinking else text)[1]
        group = groups[i // c.group]
        if not c.judge_groupwise or all(r.completion_ids for r in group):
            verdicts.update(ask(c, judge, group if c.judge_groupwise else [row]))

    rollout.generate(replica, [row.prompt_ids for row in policy], max_new_tokens=c.max_new_tokens, temperature=c.temperature,
                     top_p=c.top_p, top_k=c.top_k, min_p=c.min_p, repetition_penalty=c.repetition_penalty,
                     stop_ids=(tokenizer.end_id,), seed=seeds, slots=c.slots or None, on_finish=on_finish)
    episodes = [row for group in groups for row in group]
    await_verdicts(c, episodes, judge, verdicts)
    return episodes


def ask(c: Config, judge, rows) -> dict:
    """Sends finished stories to the judge, each alone or, group-wise, whole groups -> futures of verdicts, by id of the row."""
    if not c.judge_groupwise:
        return {id(row): judge.submit(row.example.prompt, row.story) for row in rows}
    return {id(row): verdict for group in split_groups(rows)
            for row, verdict in zip(group, judge.submit_group(group[0].example.prompt, [r.story for r in group]))}


def await_verdicts(c: Config, episodes, judge, verdicts=None):
    """Fills in verdicts and rewards as they arrive, asking for them unless `verdicts` (by id of the row) are under way.
    A judge that failed leaves None: no number stands for a failure."""
    verdicts = verdicts or ask(c, judge, episodes)
    for row in episodes:
        verdict = verdicts[id(row)].result()
        row.verdict = verdict.to_dict() if verdict else None
        row.rewards = judging.reward(verdict, row.story, row.example.target_words, bounds_of(c)) if verdict else {}
        row.reward = row.rewards.pop("total", None)


def split_groups(episodes) -> list[list[data.Episode]]:
    """Episodes in order -> groups: a new one begins where a policy row follows another example or a human row."""
    groups = []
    for row in episodes:
        if groups and groups[-1][-1].example.uid == row.example.uid and not groups[-1][-1].is_human:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def advantages(c: Config, groups, weight: float) -> list[bool]:
    """Rewards -> advantages, anchored by the human row and weighed by deviation; rows[..].advantage is filled in.
    Returns which groups are kept: one without two different rewards teaches nothing and is dropped."""
    G = max(len(group) for group in groups)
    nan = float("nan")
    rewards_PG = torch.tensor([[nan if r.reward is None else r.reward for r in g] + [nan] * (G - len(g)) for g in groups])
    human_PG = torch.tensor([[r.is_human for r in g] + [False] * (G - len(g)) for g in groups])
    adv_PG, kept_P = hri.group_advantages(rewards_PG, human_PG, weight, c.hri, c.normalise_std)               # anchor
    stories_PG = [[r.story for r in g] + [""] * (G - len(g)) for g in groups]
    delta_PG, d_PG = deviation.group_weights(stories_PG, rewards_PG.isfinite() & ~human_PG, c.similarity)
    adv_PG = deviation.weigh_advantages(adv_PG, delta_PG, c.deviation)                                         # deviate
    for group, adv_G, d_G in zip(groups, adv_PG.tolist(), d_PG.tolist()):
        for row, a, d in zip(group, adv_G, d_G):
            row.advantage = a
            if math.isfinite(d):
                row.rewards["deviation"] = d
    return kept_P.tolist()


def rows_of(episodes, kept_uids=None) -> list[Row]:
    return [Row(e.prompt_ids + e.completion_ids, len(e.prompt_ids), e.advantage, e.is_human,
                e.sampler_logprobs, trained=e.reward is not None and (kept_uids is None or e.example.uid in kept_uids))
            for e in episodes if e.completion_ids]


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: the training state (sharded, any number of processes) and a Hugging Face folder in one

# Names, not positions, so that another number of processes or another way to shard reads it.
STATE = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)


def save_checkpoint(c: Config, model, optimiser, step: int, tokenizer, state=True):
    """out/<run>/checkpoints/step_N: what transformers loads, and under state/ what `--resume` loads. It appears by rename."""
    folder = Path(c.out, c.name, "checkpoints")
    final, partial = folder / f"step_{step:06d}", folder / f".step_{step:06d}.saving"
    try:
        qwen.save(model, partial, torch.bfloat16, write=MAIN)
        if c.lora_rank and MAIN:
            qwen.save_adapter(model, partial / "adapter", c.model)
        dist.barrier()
        if state:
            fresh = not optimiser.state
            optimiser.zero_grad(set_to_none=True)
            weights, optim = get_state_dict(model, optimiser, options=STATE)
            for s in optimiser.state.values() if fresh else ():
                s["step"].zero_()  # asking for the state made one, and counted that as a step
            dcp.save({"model": weights, "optim": optim}, checkpoint_id=partial / "state")
        if MAIN:
            tokenizer.save(partial)
            (partial / "trainer.json").write_text(json.dumps({"step": step, "config": asdict(c)}, indent=1))
            qwen.replace_folder(partial, final)
    except (OSError, SafetensorError, CheckpointException) as error:
        clear(folder)
        raise ValueError(f"could not save {final} ({error}); the checkpoints before it are whole: make room, then --resume auto") from None
    if MAIN:
        for old in sorted(folder.glob("step_*"))[:-c.keep] if c.keep else []:
            old.rename(folder / f".{old.name}.pruned")  # out of sight first: a kill must not leave half a checkpoint
        clear(folder)
    dist.barrier()


def clear(folder: Path):
    """Removes what an interrupted save, or a finished one, left hidden between the checkpoints."""
    for rest in folder.glob(".*step_*") if MAIN else ():
        shutil.rmtree(rest, ignore_errors=True)


def load_checkpoint(c: Config, folder: Path, model, optimiser) -> int:
    """Training state of `folder` into model and optimiser -> the step to go on with."""
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint {folder}; --resume auto takes the newest one of this run")
    if not (folder / "state").exists():
        raise ValueError(f"{folder} holds weights but no training state; pass it as --model to start a new run from it")
    trainer = json.loads((folder / "trainer.json").read_text())
    was, now = trainer["config"], asdict(c)
    if was["lora_rank"] != c.lora_rank:
        raise ValueError(f"{folder} was trained with --lora_rank {was['lora_rank']}, this run has {c.lora_rank}; make them equal")
    differs = [f"--{k} {now[k]} (was {was.get(k)})" for k in now if k not in ("resume", "steps") and was.get(k) != now[k]]
    if differs and MAIN:
        print("resuming with other settings: " + ", ".join(differs), flush=True)
    weights, optim = get_state_dict(model, optimiser, options=STATE)
    try:
        dcp.load({"model": weights, "optim": optim}, checkpoint_id=folder / "state")
    except CheckpointException as error:
        raise ValueError(f"{folder} does not fit --model {c.model} ({next(iter(error.failures.values()))[0]}); it was trained "
                         f"from {was['model']}") from None
    set_state_dict(model, optimiser, model_state_dict=weights, optim_state_dict=optim, options=replace(STATE, strict=False))
    for group in optimiser.param_groups:  # flags win over what the checkpoint remembers
        group.update(lr=c.lr, weight_decay=c.weight_decay)
    return trainer["step"]


# ---------------------------------------------------------------------------------------------------------------------
# Log

def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def measure(c: Config, episodes, kept: list[bool], seconds: float, weight: float) -> dict:
    """What one step's stories (of all processes) show, under names that never change. None: nothing to average."""
    policy, human = [e for e in episodes if not e.is_human], [e for e in episodes if e.is_human]
    part = lambda rows, name: mean([r.rewards.get(name) for r in rows])
    ratio = [judging.count_words(e.story) / e.example.target_words for e in policy]
    return {
        "reward/mean": mean([e.reward for e in policy]), "reward/quality": part(policy, "quality"),
        "reward/length": part(policy, "length"), "reward/repetition": part(policy, "repetition"),
        "reward/blank": part(policy, "blank"), "hri/weight": weight, "hri/reward": mean([e.reward for e in human]),
        "hri/advantage": mean([e.advantage for e in human if e.reward is not None]), "deviation/mean": part(policy, "deviation"),
        "length/ratio": mean(ratio), "length/words": mean([judging.count_words(e.story) for e in policy]),
        "length/in_band": mean([float(e.rewards["length"] == 0) for e in policy if e.rewards]),
        "judge/failed": sum(e.reward is None for e in episodes), "groups/dropped": kept.count(False),
        "truncated": mean([float(not e.finished) for e in policy]),
        "rollout/tokens_per_second": sum(len(e.completion_ids) for e in policy) / seconds, "rollout/seconds": seconds}


class Log:
    """metrics.jsonl, a line a step, and wandb where asked for; a process that is not the main one logs nothing."""

    def __init__(self, c: Config, folder: Path, start: int):
        self.path, self.metrics, self.wandb = folder / "metrics.jsonl", [], None
        if MAIN:
            if self.path.exists():  # a resumed run goes on from its checkpoint: later lines are written again
                lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
                self.metrics = [m for m in lines if m["step"] < start]
            self.path.write_text("".join(json.dumps(m) + "\n" for m in self.metrics))
            if c.wandb:
                import wandb
                self.wandb = wandb.init(project="long-stories", name=c.name, config=asdict(c))

    def write(self, line: dict):
        if MAIN:
            self.metrics.append(line)
            with open(self.path, "a") as f:
                f.write(json.dumps(line) + "\n")
            if self.wandb:
                self.wandb.log(line)


# ---------------------------------------------------------------------------------------------------------------------
# The run

class Stop(Exception):
    """The run ends early with its state saved; the message says why and how to go on."""


def prepare(c: Config, tokenizer):
    """Examples whose prompts fit, and the human row of each that has a story. ValueError: nothing to train on."""
    examples = data.read_examples(c.data)
    fits = [e for e in examples if len(tokenizer.chat(e.prompt, c.thinking)) <= c.max_prompt_tokens + 16]
    if len(fits) < len(examples) and MAIN:
        print(f"{len(examples) - len(fits)} of {len(examples)} prompts are longer than {c.max_prompt_tokens} tokens and were left out")
    if len(fits) < c.prompts:
        raise ValueError(f"{c.data} holds {len(fits)} usable prompts, but a step needs {c.prompts}; add data or lower --prompts")
    humans = {e.uid: hri.reference_episode(e, tokenizer, c.thinking, c.max_new_tokens) for e in fits if e.story and e.story.strip()}
    if not humans and (c.hri != "off" or c.warm_start_steps):
        raise ValueError(f"no example in {c.data} has a human story; add them, or pass --hri off")
    return fits, humans


def warm_start(c: Config, scorer, humans, device):
    """Supervised steps on the human stories: the same update, every advantage 1, so its gradient is that of the NLL."""
    optimiser = torch.optim.AdamW(param_groups(scorer), lr=c.warm_start_lr, betas=(0.9, 0.95), weight_decay=c.weight_decay)
    stories = list(humans.values())
    bar = tqdm(range(c.warm_start_steps), desc="warm start", disable=not MAIN, mininterval=2)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = c.warm_start_lr * min((step + 1) / (0.05 * c.warm_start_steps + 1), 1 - step / c.warm_start_steps)
        picked = [stories[i] for i in pick(len(stories), step * c.warm_start_rows, c.warm_start_rows, c.seed)]
        rows = [Row(e.prompt_ids + e.completion_ids, len(e.prompt_ids), 1.0, True, None) for e in picked[RANK::WORLD]]
        stats = update(scorer, optimiser, rows, c, device)
        bar.set_postfix(nll=f"{stats['nll']:.3f}", tokens_per_second=f"{stats['train/tokens_per_second']:.0f}")
    return {"warm_start/nll": stats["nll"]}


def pick(n: int, start: int, count: int, seed: int) -> list[int]:
    """`count` indices from position `start` of an endless sequence of shuffled epochs."""
    orders = {epoch: data.order(n, epoch, seed) for epoch in range(start // n, (start + count - 1) // n + 1)}
    return [orders[i // n][i % n] for i in range(start, start + count)]


def param_groups(module):
    """Trained parameters; sharded and whole ones apart, since one fused optimiser step cannot mix them."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [[p for p in params if qwen.is_sharded(p)], [p for p in params if not qwen.is_sharded(p)]]
    return [{"params": group} for group in groups if group]


def open_run(c: Config, model, optimiser) -> tuple[Path, int]:
    """The run's folder, and the step it begins with: after `--resume` the checkpoint's, else 0."""
    folder, start = Path(c.out, c.name), 0
    if c.resume:
        for old in (folder / "checkpoints").glob(".step_*.old") if MAIN else ():
            if not (whole := old.with_name(old.name[1:-4])).exists():  # killed between the two renames that replace a folder
                old.rename(whole)
        dist.barrier()
        newest = sorted((folder / "checkpoints").glob("step_*"))
        at = Path(c.resume) if c.resume != "auto" else newest[-1] if newest else None
        start = load_checkpoint(c, at, model, optimiser) if at else 0
    elif folder.exists() and MAIN:  # an earlier run of this name is kept
        folder.rename(folder.with_name(f"{c.name}-until-{time.strftime('%Y%m%d-%H%M%S')}"))
    dist.barrier()
    if MAIN:
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(c), indent=1))
    dist.barrier()
    return folder, start


def run(c: Config):
    # ---- set up ------------------------------------------------------------------------------------------------------
    device = connect()
    tokenizer = data.load_tokenizer(c.model)
    examples, humans = prepare(c, tokenizer)
    if c.steps and c.judge == "api" and MAIN:
        with closing(make_judge(c, cache=False)) as first:  # its threads end with it
            first.check()
    model, scorer = build(c, device)
    optimiser = torch.optim.AdamW(param_groups(scorer), lr=c.lr, betas=(0.9, 0.999), weight_decay=c.weight_decay)
    folder, start = open_run(c, model, optimiser)
    judge = make_judge(c) if c.steps else judging.OfflineJudge()
    log = Log(c, folder, start)
    per_epoch = len(examples) // c.prompts
    steps = c.steps if c.steps >= 0 else per_epoch
    if c.warm_start_steps and not optimiser.state:  # not resumed
        log.write({"step": -1, **warm_start(c, scorer, humans, device)})
    stopping = []  # from here on there is a state worth saving
    signal.signal(signal.SIGTERM, lambda *_: stopping.append("SIGTERM"))
    reference = None
    if c.kl:
        reference = Scorer(build(c, device)[0]).requires_grad_(False)
    replica, bad_updates, began = None, 0, time.time()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=c.name, disable=not MAIN, dynamic_ncols=True)

    step = start
    try:
        for step in bar:
            # ---- sample, and judge what is finished --------------------------------------------------------------------
            clock = time.time()
            weight = hri.weight(step, c.hri_peak, c.hri_warmup) if c.hri != "off" else 0.0
            pending = folder / "rollouts" / f".step_{step:06d}.rank{RANK}of{WORLD}.jsonl"
            written = pending.exists()  # a killed run had written this step already: nothing is bought twice
            if reduce(not written):  # one process at least will sample; gathering the weights takes all of them
                replica = rollout.refresh(replica, model) if replica else rollout.replica(model, torch.bfloat16 if device.type == "cuda" else None)
            if written:
                episodes = data.read_episodes(pending)
                await_verdicts(c, [e for e in episodes if e.reward is None], judge)
            else:
                try:
                    episodes = sample(c, step, examples, humans, replica, tokenizer, judge, c.hri == "luffy" or weight > 0, stopping)
                except Stop:
                    episodes = []  # all processes meet and stop below
            if not c.keep_replica:
                replica = None
            if episodes:
                data.write_episodes(pending, episodes)
            for wait in (1, 2, 0):
                if reduce(len(stopping)):
                    raise Stop("SIGTERM received")
                if reduce(judge.out_of_budget):
                    raise Stop("the judge's budget is spent")
                if reduce(sum(e.reward is not None for e in episodes if not e.is_human)):
                    break
                if not wait:
                    raise Stop("the judge gave no verdict for a whole step, three times; when it answers again, go on with --resume auto")
                time.sleep(wait)
                await_verdicts(c, episodes, judge)
            seconds = time.time() - clock

            # ---- anchor, deviate ---------------------------------------------------------------------------------------
            groups = split_groups(episodes)
            kept = advantages(c, groups, weight)
            rows = rows_of(episodes, {g[0].example.uid for g, k in zip(groups, kept) if k})

            # ---- update ------------------------------------------------------------------------------------------------
            trained = reduce(sum(r.trained for r in rows))
            stats = {"loss": None}
            if trained:
                if reference is not None:
                    with torch.no_grad():
                        for batch in schedule(rows, c.micro_batch_tokens):
                            logp = score_rows(reference, batch, c, device)[0]
                            for row, x in zip(batch, logp):
                                row.ref = x[row.start - 1:row.length - 1].cpu()
                for group in optimiser.param_groups:
                    group["lr"] = c.lr * min(1.0, (step + 1) / max(1, c.lr_warmup), 1 - step / steps if c.lr_decay else 1.0)
                for _ in range(c.updates_per_batch):
                    stats = update(scorer, optimiser, rows, c, device, reference)
                bad_updates = 0 if stats.pop("stepped") else bad_updates + 1

            # ---- log ---------------------------------------------------------------------------------------------------
            everyone, all_kept = gather(episodes), gather(kept)
            if MAIN:
                line = {"step": step, **measure(c, everyone, all_kept, seconds, weight), **stats, "bad_updates": bad_updates,
                        **judge.metrics(), **judging.evidence_metrics([e.verdict for e in everyone]),
                        **(watch(c, everyone) if c.watch_url and step % c.watch_every == 0 else {}), "seconds": time.time() - clock}
                log.write(line)
                recent = [{k: v for k, v in m.items() if v is not None} for m in log.metrics[-20:]]
                for alarm in judging.alarms(recent) if step % 10 == 9 else ():
                    bar.write(f"step {step}: {alarm}")
                data.write_episodes(folder / "rollouts" / f"step_{step:06d}.jsonl", everyone)
                bar.set_postfix(reward=f"{line['reward/mean']:+.3f}", in_band=f"{line['length/in_band']:.2f}",
                                words=f"{line['length/words']:.0f}")
            pending.unlink()

            # ---- save --------------------------------------------------------------------------------------------------
            if bad_updates == 3:
                raise Stop("gradients were NaN or infinite three times in a row; look at grad_norm and mismatch/* in metrics.jsonl")
            if step + 1 == steps or (c.save_every and (step + 1) % c.save_every == 0):
                save_checkpoint(c, model, optimiser, step + 1, tokenizer)
                if MAIN:
                    plot([m for m in log.metrics if m["step"] >= 0], folder / "curves.png")
        if steps == start and c.warm_start_steps:
            save_checkpoint(c, model, optimiser, 0, tokenizer, state=False)
    except Stop as why:
        save_checkpoint(c, model, optimiser, step, tokenizer)
        if MAIN:
            bar.close()
            print(f"stopped at step {step}: {why}; the state is saved in {folder}/checkpoints", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        judge.close()
    if MAIN:
        bar.close()
        if log.metrics and steps > start:
            first, last = (mean([m.get("reward/mean") for m in part]) for part in (log.metrics[:5], log.metrics[-5:]))
            print(f"{steps - start} steps in {time.time() - began:.0f} s; mean reward {first:+.3f} in the first 5 steps, {last:+.3f} in the last 5")
        print(f"wrote {folder}/: curves.png, metrics.jsonl, rollouts/, checkpoints/ - python rollout.py --prompt ... reads the newest one")


def main(args=None):
    torch.set_flush_denormal(True)  # before the first parallel operation: strong decays make denormals, up to 12 x slower
    c = parse(args)
    try:
        check(c, WORLD)
        run(c)
    except (ValueError, FileNotFoundError) as error:
        if not MAIN:
            time.sleep(3)  # torchrun ends us meanwhile where the main process said the same
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
