"""Teach a small language model to write long stories: GRPO with a judge, human references, and deviation.

    for each step:
        sample    a group of stories for each of a few prompts, from the policy itself
        judge     each story by a rubric, while others are being written; subtract penalties for length, loops
        anchor    a story written by a person joins each group, judged alike        (POLARIS, 2606.04095)
        deviate   good stories that differ from their siblings count for more       (2503.17126)
        update    advantage-weighted log-likelihood, clipped, averaged over all tokens of the batch
        log, save

    python train.py                                              # no GPU: `tiny`, minutes on two CPU cores
    torchrun --nproc_per_node=4 train.py --data stories.jsonl    # GPUs: `polaris-9b`, needs JUDGE_URL
    python train.py --hri off --deviation 0                      # plain GRPO

GRPO is arXiv 2402.03300; clip-higher and the token mean are DAPO's (2503.14476); a truncated importance
weight corrects what sampler and trainer disagree on. Left out: value model, reward model, replay.
A run leaves out/<run>/: config.json, metrics.jsonl, rollouts/, checkpoints/, curves.png.
Shapes: [N] is one value per completion token of a micro-batch, its rows one after another.
"""

import importlib.util
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from tqdm import tqdm

import data
import deviation
import hri
import judge as judging
import model as qwen
import rollout
from data import Episode, Example
from lib import checkpoint, flags, huggingface, metrics, optim, packed, parallel, processes
from lib.checkpoint import Stop
from lib.flags import opt
from lib.processes import say
from lib.stats import jumped, mean

ROOT = Path(__file__).resolve().parent


@dataclass
class Config:
    """Every number of a run: POLARIS's defaults, changed by a preset, changed by flags of the same names."""

    preset: str = opt("", "polaris-9b | tiny; without it: polaris-9b where there is a GPU", "data")
    model: str = opt("Qwen/Qwen3.5-9B", "checkpoint folder or hub id of a Qwen3.5 model")
    data: str = opt("out/stories.jsonl", "JSON Lines of prompts and human stories")
    out: str = opt("out", "folder of all runs")
    name: str = opt("", "name of this run; empty: the name of the preset")
    seed: int = opt(0, "same seed and machine: same stories, same losses")
    steps: int = opt(-1, "GRPO steps; -1: one epoch, the last partial batch dropped", low=-1)
    max_prompt_tokens: int = opt(256, "longer prompts are left out, and counted at the start", low=1)

    prompts: int = opt(8, "prompts per step, over all processes", "group", low=1)
    group: int = opt(5, "policy stories per prompt, the reference not counted", low=2)
    max_new_tokens: int = opt(8192, "completion limit, thinking included; longer stories are cut", low=1)
    thinking: bool = opt(True, "open <think> for the model; False: a closed, empty one")
    temperature: float = opt(1.0, "of sampling, and of the log-probabilities that are trained", above=0)
    top_p: float = opt(0.95, "nucleus; changes the sampled distribution, see mismatch/*", above=0, high=1)
    top_k: int = opt(20, "0: off", low=0)
    repetition_penalty: float = opt(1.10, "1: off", above=0)
    slots: int = opt(0, "stories written at the same time on one device; 0: as many as fit", low=0)

    hri: Literal["polaris", "positive", "off"] = opt("polaris", "positive: never pushes away", "reward")
    hri_peak: float = opt(0.4, "weight of the reference's advantage after the warm-up", low=0)
    hri_warmup: int = opt(15, "steps over which that weight grows from 0", low=0)
    deviation: float = opt(0.0, "strength with which deviation weighs positive advantages", low=0, high=1)
    similarity: Literal["tfidf", "jaccard", "char3", "embedding"] = opt("tfidf", "what alike means")
    bands: Literal["paper", "short"] = opt("paper", "lengths without penalty; short: for 30 to 500 words")

    lr: float = opt(1e-6, "AdamW's learning rate", "loss", low=0)
    lr_warmup: int = opt(0, "steps over which lr rises first; the paper has none", low=0)
    lr_decay: bool = opt(False, "then linearly down to 0 at the last step; the paper keeps it constant")
    weight_decay: float = opt(0.01, "AdamW's weight decay", low=0)
    grad_clip: float = opt(1.0, "largest global norm of a gradient", above=0)
    clip_low: float = opt(0.20, "the ratio to the sampling policy is clipped at 1 - clip_low", low=0)
    clip_high: float = opt(0.28, "and at 1 + clip_high", low=0)
    loss_mean: Literal["token", "sequence", "constant"] = opt("token", "constant: over max_new_tokens")
    normalise_std: bool = opt(True, "divide a group's advantages by its standard deviation")
    updates_per_batch: int = opt(1, "optimiser steps per batch of stories; above 1 the clip matters", low=1)
    mismatch_cap: float = opt(2.0, "truncated importance weight between trainer and sampler; 0: none", low=0)
    kl: float = opt(0.0, "weight of the KL to the starting policy; 0: no reference model in memory", low=0)

    judge: Literal["api", "offline"] = opt("api", "offline measures form, for demos and tests", "judge")
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "default $JUDGE_URL; its key is JUDGE_API_KEY")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "default $JUDGE_MODEL")
    judge_mode: Literal["story", "pair", "group"] = opt("story", "alone, beside the reference, or ranked")
    judge_samples: int = opt(1, "verdicts averaged per story", low=1)
    judge_settings: dict[str, str] = opt({}, "of the calls: in_flight=32 budget=500 ..., see docs/judge.md")
    watch: dict[str, str] = opt({}, "second judge, never trained on: url=.. model=.. every=10; see docs")

    parallel: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = opt("auto", "fsdp for GPUs", "machine")
    lora_rank: int = opt(0, "0: train all weights; else LoRA of this rank on a bf16 base", low=0)
    lora_alpha: float = opt(32.0, "LoRA's scale is alpha / rank", above=0)
    checkpointing: bool = opt(True, "recompute each block in the backward pass")
    autocast: bool = opt(False, "bf16 products on fp32 weights where nothing is sharded: less exact")
    micro_batch_tokens: int = opt(16384, "padded tokens per forward and backward pass", low=1)
    keep_replica: bool = opt(False, "keep the sampling replica in memory during the update")

    save_every: int = opt(20, "steps between checkpoints; 0: only the last step saves", "saving", low=0)
    keep: int = opt(2, "checkpoints kept; 0: all", low=0)
    resume: str = opt("", "auto: the newest checkpoint of this run; or a checkpoint folder; empty: anew")
    push: str = opt("", "owner/name on the hub that gets the last checkpoint; a new one is private")
    wandb: bool = opt(False, "also log to wandb (pip install wandb)")


# On form the policy soon beats the reference, and a negative anchor would push it from good words: positive.
# Form cannot tell whether a sentence makes sense; the KL keeps the sentences of the base.
# fmt: off
PRESETS = {"polaris-9b": {}, "tiny": {
    "model": str(ROOT / "stories/tiny-base"), "data": str(ROOT / "stories/tiny.jsonl"), "judge": "offline",
    "thinking": False, "steps": 30, "prompts": 6, "group": 7, "max_new_tokens": 288, "temperature": 0.7,
    "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "bands": "short", "hri": "positive", "hri_warmup": 0,
    "deviation": 0.5, "lr": 4e-4, "lr_warmup": 6, "lr_decay": True, "kl": 0.1,
    "checkpointing": False, "micro_batch_tokens": 2048, "keep_replica": True, "save_every": 0}}
# fmt: on


def parse(argv=None, kind=Config, presets=PRESETS, about=__doc__):
    """Command line -> Config, or another program's `kind`. ValueError: a flag that cannot be read."""
    gpus = torch.cuda.device_count()
    auto = ("polaris-9b", f"{gpus} GPU(s) found") if gpus else ("tiny", "no GPU found, so this is the demo")
    c = flags.parse(kind, argv, about, presets, *auto)
    return replace(c, name=c.name or c.preset)


def check(c: Config, world: int):
    """Every impossible combination, before anything is loaded. ValueError: what, and the cure."""
    wrong = {
        f"--prompts {c.prompts} does not divide over {world} processes; use a multiple": c.prompts % world,
        f"--name {c.name}: a run is one folder; leave slashes out": c.name in ("", "..") or "/" in c.name,
        f"--out {c.out} is a file; name a folder": Path(c.out).is_file(),
        f"--parallel none would train {world} separate models; use ddp": c.parallel == "none" and world > 1,
        "LoRA does not shard its base; use --parallel ddp": c.lora_rank and c.parallel.endswith("sdp"),
        "--push needs a step whose checkpoint it can upload": c.push and not c.steps,
        "--wandb needs its package: pip install wandb": c.wandb and not importlib.util.find_spec("wandb"),
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(sentence)
    deviation.distances(["a"], c.similarity)  # ValueError: a missing package
    judging.check(c)  # ValueError: flags that no judge can follow
    if c.resume not in ("", "auto"):
        checkpoint.read_about(Path(c.resume))  # FileNotFoundError, ValueError: nothing to go on from


# ---- set up ------------------------------------------------------------


def prepare(c: Config, tokenizer) -> tuple[list[Example], dict[str, Episode]]:
    """Examples whose prompts fit, and reference rows of those with a story, by uid. ValueError: too few."""
    everything, most = data.read_examples(c.data), c.max_prompt_tokens
    examples = [e for e in everything if len(tokenizer.chat(e.prompt, c.thinking)) <= most + data.FRAME]
    if longer := len(everything) - len(examples):
        say(f"{longer} of {len(everything)} prompts exceed {most} tokens and are left out")
    if (n := len(examples)) < c.prompts:
        raise ValueError(f"{c.data} has {n} usable prompts, a step needs {c.prompts}; lower --prompts")
    told = [e for e in examples if e.story]
    references = {e.uid: hri.reference_episode(e, tokenizer, c.thinking, c.max_new_tokens) for e in told}
    if not references and c.hri != "off":
        raise ValueError(f"no example in {c.data} has a human story; add them, or pass --hri off")
    if c.judge_mode == "pair" and (alone := sum(not example.story for example in examples)):
        raise ValueError(f"--judge_mode pair: {alone} of {len(examples)} examples have no human story")
    targets, whole = [e.target_words for e in examples], [r for r in references.values() if r.finished]
    per_word = mean(len(r.completion_ids) / data.words(r.story) for r in whole) or 1.3
    say(judging.check_room(targets, per_word, c.max_new_tokens, judging.BANDS[c.bands]))
    return examples, references


def build(c: Config, device, half: bool | None = None):
    """The policy and its scorer, on all processes. half: bf16 products, frozen base (None: on GPUs)."""
    half = device.type == "cuda" if half is None else half
    kind, shards = parallel.choose(c.parallel, shard=half and not c.lora_rank)
    folder = huggingface.fetch(c.model)
    config = huggingface.read_config(folder)
    frozen, trained = qwen.count(config, c.lora_rank)
    need = optim.least_bytes(frozen, trained, shards, 2 if half else 4, c.keep_replica)
    processes.need_memory(need, device)
    processes.choose_threads(frozen + trained)
    pairs = (c.lora_rank, c.lora_alpha, c.seed)
    model = qwen.read(qwen.arrange(config, device, half, kind.endswith("sdp") and shards, pairs), folder)
    model.checkpointing = c.checkpointing
    return model, parallel.scorer_of(model, kind, c.autocast)


# ---- sample and judge ------------------------------------------------------------


def sample(c: Config, step, batch, references, replica, tokenizer, judge, stopping):
    """This process's groups of the step: policy rows, then the reference if there is one, all with rewards.

    batch: the step's examples. references: {uid: Episode}, empty where none joins. A story is judged while
    others are still being written. [] where a signal is in `stopping`."""
    mine = list(enumerate(batch))[processes.RANK :: processes.WORLD]
    groups = []
    for _, example in mine:
        ids = tokenizer.chat(example.prompt, c.thinking)
        groups.append([Episode(example, ids, [], None, False, False, "") for _ in range(c.group)])
        if example.uid in references:
            groups[-1].append(replace(references[example.uid]))  # a copy, to be judged anew
    policy = [row for group in groups for row in group if not row.is_human]
    asked = [judging.Asked(judge, c.judge_mode, group) for group in groups]
    # The seed of a story names its place in the run: any number of processes writes the same stories, and a
    # run that was killed writes them again, for which the judge's store has the verdicts.
    places = [f"{c.seed}/{step}/{p}/{g}" for p, _ in mine for g in range(c.group)]
    seeds = [random.Random(place).getrandbits(62) for place in places]
    how = ("thinking", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "slots")
    how = {name: getattr(c, name) for name in how}
    how["stop_ids"] = rollout.stop_ids(replica.source, tokenizer)
    for i in rollout.write_rows(replica, policy, tokenizer, seeds, stopping, **how):
        asked[i // c.group].finished(i % c.group)
    if stopping:
        return []
    judging.settle(asked, judging.BANDS[c.bands])
    return groups


def agree(c: Config, groups, judge, stopping):
    """All processes agree that the step can be trained. Stop: a signal, a spent budget, or a silent judge."""
    for wait in (0, 1, 2):
        time.sleep(wait)
        if wait:  # ask again; what was bought before comes from the judge's store
            asked = [judging.Asked(judge, c.judge_mode, group) for group in groups]
            judging.settle(asked, judging.BANDS[c.bands])
        if signals := processes.gather(stopping):
            raise Stop(f"{signals[0]} received")
        if processes.reduce(judge.out_of_budget):
            raise Stop("the judge's budget is spent")
        if processes.reduce(sum(row.reward is not None for g in groups for row in g if not row.is_human)):
            return
    raise Stop(f"the judge gave no verdict for a whole step, three times ({judge.last_error})")


# ---- advantage, loss, update ------------------------------------------------------------


def grpo_advantages(groups: list[list[Episode]], normalise_std: bool):
    """Sets the advantage of each policy row with a verdict: its reward, centred and scaled over these rows of
    its group. (2402.03300)

    A group that cannot rank its stories (fewer than two rewards, or all equal to 1e-6) gets no advantages:
    it teaches nothing, and its reference would be divided by a standard deviation of 0."""
    for group in groups:
        policy = [row for row in group if not row.is_human and row.reward is not None]
        rewards = [row.reward for row in policy]
        if len(rewards) > 1 and max(rewards) - min(rewards) > 1e-6:
            scale = stdev(rewards) + 1e-6 if normalise_std else 1.0
            for row in policy:
                row.advantage = (row.reward - fmean(rewards)) / scale


def policy_loss(c: Config, logp, old_logp, advantage, human, weight, count, sampler_logp, ref_logp=None):
    """The part of the batch's loss that one micro-batch adds -> (loss, sums of statistics, each a tensor).

    All tensors [N]. Each token adds
        -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) * w * weight / count,      r = exp(logp - old_logp),
    with w = min(exp(old_logp - sampler_logp), mismatch_cap), the truncated weight for what the sampler did
    differently. The policy did not sample the reference (`human`), so its tokens get no w and no clip: r =
    exp(logp - logp.detach()), which is 1 and has the gradient A * grad logp. count is that of the whole batch
    over all processes; weight is 1, or 1 / length for the mean over rows, or 0 for tokens that only fill a
    micro-batch. c.kl adds the k3 estimate of the divergence from ref_logp."""
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - c.clip_low, 1 + c.clip_high) * advantage
    trained = (weight > 0).float()
    sampled = trained * ~human
    gap = (old_logp - sampler_logp).detach() * sampled
    objective = torch.minimum(ratio * advantage, clipped)
    if c.mismatch_cap:
        objective = objective * gap.exp().clamp(max=c.mismatch_cap)
    objective = torch.where(human, (logp - logp.detach()).exp() * advantage, objective)
    drift = {}
    if c.kl:
        kl = (torch.expm1(ref_logp - logp) - (ref_logp - logp)) * sampled
        objective = objective - c.kl * kl
        drift = {"kl": kl.detach().sum()}
    loss = -(objective * weight).sum() / count
    return loss, drift | {
        "loss": loss.detach(),
        "nll": -(logp.detach() * trained).sum(),
        "tokens": trained.sum(),
        "sampled": sampled.sum(),
        "clip/share": ((ratio * advantage > clipped) * sampled).sum(),
        "mismatch/mean": gap.abs().sum(),
        "mismatch/k3": (torch.expm1(-gap) + gap).sum(),
        "mismatch/max": gap.abs().max(),
        "mismatch/clipped": (gap.exp() > (c.mismatch_cap or torch.inf)).sum(),
    }


# Statistics that are means over the batch's tokens: over all of them, or over those that were sampled.
MEANS = {"nll": "tokens", "entropy": "tokens", "clip/share": "sampled", "mismatch/mean": "sampled"}
MEANS |= {"mismatch/k3": "sampled", "mismatch/clipped": "sampled", "kl": "sampled"}
IDLE = Episode(Example("", "", 1), [0], [0], None, False, True, "", advantage=0.0)  # fills up, with weight 0


def batch_loss(c: Config, logp, old_logp, batch: list[Episode], count: float, ref_logp=None):
    """`policy_loss` of a micro-batch whose completion tokens have these log-probabilities [N]."""
    counts, device = [len(row.completion_ids) for row in batch], logp.device
    weight = [(row is not IDLE) / (n if c.loss_mean == "sequence" else 1) for row, n in zip(batch, counts)]
    rows = ([row.advantage for row in batch], [row.is_human for row in batch], weight)
    advantage, human, weight = (packed.per_token(values, counts, device) for values in rows)
    sampler = [x for row, n in zip(batch, counts) for x in row.sampler_logprobs or [0.0] * n]
    sampler = torch.tensor(sampler).to(device, non_blocking=True)
    return policy_loss(c, logp, old_logp, advantage, human, weight, count, sampler, ref_logp)


def update(c: Config, scorer, optimiser, groups: list[list[Episode]], reference=None) -> dict:
    """`c.updates_per_batch` optimiser steps on all processes' groups -> statistics of the last, or only
    {"loss": None}: nothing to do. DDP and FSDP average gradients over processes; the loss is divided by the
    count of all and multiplied by their number: the gradient is that of one sum over the whole batch."""
    began = time.time()
    rows = [row for group in groups for row in group if row.advantage is not None]
    tokens, n_rows = processes.reduce(sum(len(r.completion_ids) for r in rows)), processes.reduce(len(rows))
    if not tokens:
        return {"loss": None}
    count = {"token": tokens, "sequence": n_rows, "constant": n_rows * c.max_new_tokens}[c.loss_mean]
    chunks = packed.micro_batches(rows, c.micro_batch_tokens, data.length, IDLE)
    with torch.no_grad():
        refs = [reference(data.packed(batch), c.temperature)[0] if reference else None for batch in chunks]
    olds = [None] * len(chunks)
    for _ in range(c.updates_per_batch):
        optimiser.zero_grad(set_to_none=True)
        parts = []
        for i, batch in enumerate(parallel.accumulate(scorer, chunks, "  micro-batches")):
            logp, entropy = scorer(data.packed(batch), c.temperature)
            if olds[i] is None:
                olds[i] = logp.detach()  # the first pass over this batch: ratio 1 by construction
            loss, sums = batch_loss(c, logp, olds[i], batch, count, refs[i])
            (loss * processes.WORLD).backward()
            parts.append(sums | {"entropy": entropy.sum() * (batch[0] is not IDLE)})
        norm, stepped = optim.descend(optimiser, c.grad_clip)
    total = processes.totals(parts)
    stats = {name: total[name] / max(total[of], 1.0) for name, of in MEANS.items() if name in total}
    stats |= {"loss": total["loss"], "mismatch/max": total["mismatch/max"], "grad_norm": norm}
    return stats | {"stepped": stepped, "train/tokens_per_second": tokens / (time.time() - began)}


# ---- log and save ------------------------------------------------------------


def measure(groups: list[list[Episode]], seconds: float, weight: float) -> dict:
    """What a step's stories show, under names that never change. None: nothing to average."""
    policy = [row for group in groups for row in group if not row.is_human]
    people = [row for group in groups for row in group if row.is_human]
    return {
        **{f"reward/{name}": mean(r.rewards.get(name) for r in policy) for name in judging.PARTS},
        "reward/mean": mean(r.reward for r in policy),
        "hri/reward": mean(r.reward for r in people),
        "hri/weight": weight,
        "hri/advantage": mean(r.advantage for r in people),
        "deviation/mean": mean(r.rewards.get("deviation") for r in policy),
        "length/ratio": mean(data.words(r.story) / r.example.target_words for r in policy),
        "length/words": mean(data.words(r.story) for r in policy),
        "length/in_band": mean(float(r.rewards["length"] == 0) for r in policy if r.rewards),
        "judge/failed": sum(r.reward is None for r in policy + people),
        "groups/dropped": sum(all(r.advantage is None for r in group) for group in groups),
        "truncated": mean(float(not r.finished) for r in policy),
        "rollout/seconds": seconds,
        "rollout/tokens_per_second": sum(len(r.completion_ids) for r in policy) / seconds,
    }


def log_step(c: Config, log, watcher, bar, line: dict, groups: list[list[Episode]]) -> bool:
    """metrics.jsonl, rollouts/, bar, alarms -> whether sampler and trainer disagree as never before."""
    step, rows = line["step"], [row for group in groups for row in group]
    judged = [row for row in rows if row.rewards and not row.is_human]
    judged = [(row.example.prompt, row.story, 100 * row.rewards["quality"]) for row in judged]
    seen = judging.watch(watcher, judged) if step % int(c.watch.get("every", 10)) == 0 else {}
    log.write(line | judging.verdict_metrics([row.verdict for row in rows]) | seen)
    data.write_examples(log.path.with_name("rollouts") / f"step_{step:06d}.jsonl", rows)
    gaps = [m["mismatch/mean"] for m in log.metrics[-20:] if m.get("mismatch/mean") is not None]
    broken = bool(gaps) and jumped(gaps, start=0.1, times=20, least=1e-3)
    alarms = ["sampler and trainer disagree, see mismatch/mean: is the replica refreshed?"] if broken else []
    alarms += judging.alarms(log.metrics) if step % 10 == 9 else []
    alarms += data.best_and_worst(rows) if step % 10 == 0 or step + 1 == bar.total else []
    for text in alarms:
        bar.write(f"step {step}: {text}")
    bar.set_postfix({name: f"{line[of]:.3g}" for name, of in TOLD.items() if line[of] is not None})
    return broken


CURVES = {"reward/mean": "reward", "length/in_band": "share in length band", "reward/quality": "score / 100"}
CURVES |= {"reward/repetition": "repetition penalty", "hri/reward": "reward of the reference"}
CURVES |= {"deviation/mean": "deviation"}
TOLD = {"reward": "reward/mean", "in_band": "length/in_band", "words": "length/words"}


def save_checkpoint(c, model, optimiser, step: int, **facts):
    """out/<run>/checkpoints/step_N: a folder that transformers loads, and in state/ what --resume loads.
    facts: what its model card says beside settings and metrics."""
    with checkpoint.new(Path(c.out, c.name, "checkpoints"), step, c.keep) as partial:
        qwen.save(model, partial, torch.bfloat16, write=processes.MAIN)
        if processes.MAIN:
            log = Path(c.out, c.name, "metrics.jsonl")
            huggingface.write_card(partial, asdict(c), model.source, facts | {"steps": step}, log, TOLD)
            if c.lora_rank:
                qwen.save_adapter(model, partial / "adapter", c.model)
        checkpoint.save_state(partial, model, optimiser, {"step": step, "config": asdict(c)})


def start_or_resume(c, model, scorer, betas=(0.9, 0.999)):
    """-> optimiser, first step and log (on the main process) of a run that is new, or goes on from the
    checkpoint that --resume means. ValueError: that one belongs to another model, or the run is under way."""
    optimiser, start = optim.adamw(scorer, c.lr, c.weight_decay, betas), 0
    folder = Path(c.out, c.name)
    if at := checkpoint.open_run(folder, c.resume):
        about = checkpoint.read_about(at)
        start, was = about["step"], about["config"]
        if was["lora_rank"] != c.lora_rank:
            raise ValueError(f"{at} has --lora_rank {was['lora_rank']}, not {c.lora_rank}; make them equal")
        if c.lora_rank and c.model != was["model"] and Path(c.model, "trainer.json").exists():
            raise ValueError(f"--model {c.model} holds the LoRA pairs already; resume with {was['model']}")
        now = {k: v for k, v in asdict(c).items() if k not in ("resume", "steps")}
        if differs := [f"--{k} {v} (was {was[k]})" for k, v in now.items() if was.get(k, v) != v]:
            say(f"resuming with other settings: {', '.join(differs)}")
        checkpoint.load_state(at, model, optimiser)
    log = metrics.Log(folder, start, asdict(c), c.wandb) if processes.MAIN else None
    return optimiser, start, log


# ---- the run ------------------------------------------------------------


def run(c: Config):
    device, tokenizer = processes.connect(), data.load_tokenizer(c.model)
    processes.from_main(huggingface.check_push, c.push)
    examples, references = prepare(c, tokenizer)
    server = processes.from_main(judging.try_out, c) if c.steps else {}
    model, scorer = build(c, device)
    optimiser, start, log = start_or_resume(c, model, scorer)
    reference = build(c, device)[1].requires_grad_(False) if c.kl else None
    judge, watcher = judging.make(c, learned=server), judging.make_watch(c)
    folder, facts = Path(c.out, c.name), {"data": data.describe(c.data, examples), "judge": judge.name}
    steps = c.steps if c.steps >= 0 else len(examples) // c.prompts
    half = torch.bfloat16 if device.type == "cuda" else None  # GPUs sample from a copy of half the size
    stopping = processes.catch_signals()  # from here on there is a state worth saving
    replica, done, bad_updates, bad_samples, began = None, start, 0, 0, time.time()
    bar = tqdm(range(start, steps), c.name, steps, initial=start, disable=not processes.MAIN)
    try:
        for step in bar:
            # ---- sample, and judge finished stories while others are being written
            clock = time.time()
            batch = [examples[i] for i in data.batch(len(examples), step, c.prompts, c.seed)]
            replica = model if c.lora_rank else rollout.replica(model, half, last=replica)
            weight = hri.weight(step, c.hri_peak, c.hri_warmup) if c.hri != "off" else 0.0
            joining = references if weight else {}  # at weight 0 a verdict would be bought for nothing
            groups = sample(c, step, batch, joining, replica, tokenizer, judge, stopping)
            replica = replica if c.keep_replica else None  # the update needs its memory
            agree(c, groups, judge, stopping)
            seconds = time.time() - clock

            # ---- advantages
            grpo_advantages(groups, c.normalise_std)  # centred and scaled over the policy's rows
            hri.anchor(groups, weight, c.hri, c.normalise_std)  # delete this line: plain GRPO
            deviation.weigh(groups, c.deviation, c.similarity)  # delete this line: no deviation

            # ---- update
            optim.set_lr(optimiser, c.lr, step, steps, c.lr_warmup, c.lr_decay)
            stats = update(c, scorer, optimiser, groups, reference)
            optimiser.zero_grad(set_to_none=True)  # sampling needs their memory
            bad_updates = 0 if stats.pop("stepped", True) else bad_updates + 1
            done = step + 1

            # ---- log
            everyone = processes.gather(groups)
            if processes.MAIN:
                line = {"step": step, "seconds": time.time() - clock} | measure(everyone, seconds, weight)
                line |= stats | judge.metrics() | {"bad_updates": bad_updates}
                bad_samples = bad_samples + 1 if log_step(c, log, watcher, bar, line, everyone) else 0

            # ---- save
            if bad_updates == 3:
                raise Stop("gradients were NaN or infinite three times in a row, see grad_norm")
            if processes.reduce(bad_samples) == 3:
                raise Stop("sampler and trainer disagreed three times in a row, see mismatch/*")
            if done == steps or (c.save_every and done % c.save_every == 0):
                save_checkpoint(c, model, optimiser, done, **facts)
                if processes.MAIN:
                    metrics.plot({c.name: log.metrics}, folder / "curves.png", CURVES)
    except Stop as why:
        save_checkpoint(c, model, optimiser, done, **facts)
        bar.close()
        say(f"stopped at step {done}: {why}; the state is saved, --resume auto goes on", sys.stderr)
        raise SystemExit(1) from None
    finally:
        judge.close()
        bar.close()
    if processes.MAIN:
        say(f"{steps - start} steps in {time.time() - began:.0f} s{log.change(TOLD)}")
        say(f"wrote {folder}/: curves.png, metrics.jsonl, rollouts/, checkpoints/")
        say(huggingface.push(folder / "checkpoints", c.push))


@flags.exits_cleanly
def main(argv=None):
    c = parse(argv)
    check(c, processes.WORLD)
    run(c)


if __name__ == "__main__":
    main()
