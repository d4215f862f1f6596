"""Memory, operations, hours and dollars of a run before it starts: no GPU, no weights, no network for the 9B.

The run is rehearsed: train.py's own set-up, two small updates, the sampler's decode steps and an update on
micro-batches of the longest rows run on fake tensors, as process 0 of N. Every storage is counted while it
lives, and the operations of every product. A deep model is rehearsed twice with few layers; memory and
operations are straight lines in their number. Hours are counted work divided by rates that you give.

    python -m scripts.plan                                                    # polaris-9b on 4 x A100-80GB
    python -m scripts.plan --gpus 1 --gpu_memory 141 --lora_rank 32 --bandwidth 4300 --tflops 800
    python -m scripts.plan --judge_price 1.25 10

Any flag of train.py may stand beside the plan's own. Exit code 1: the plan cannot fit, with what would help.
Left out: CUDA context, fragments and workspaces of kernels beyond --reserve, what CUDA graphs keep, the wait
for the last story of a step, the vision tower.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

import data
import judge as judging
import model as qwen
import rollout
import train
from data import Episode, Example
from lib import huggingface, optim, parallel, processes, sharding
from lib.flags import exits_cleanly, parser
from lib.rehearsal import rehearsal
from lib.sampling import Sampling

# Qwen/Qwen3.5-9B, text part of its released config.json.
# fmt: off
NINE_B = {
    "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}}
# fmt: on
KINDS = ("weights", "optimiser", "reference", "gradients", "replica", "activations", "gathered", "temporary")
FEW = 4  # layers: one period of three DeltaNet blocks and one of attention


# ---- the rehearsal ------------------------------------------------------------


@dataclass
class Memory:
    """What one process takes, in bytes by kind at the highest moment of each phase, and its work.

    writing: with one slot. slot: for each further one. learning: without replica and slots. flops: of an
    update, per token of the longest row. tokens: of the micro-batches rehearsed. waits: of the host for a
    device, in the second update and in a few decode steps (0 where the CPU serves as device).
    """

    writing: Counter
    slot: float
    learning: Counter
    flops: float
    tokens: int
    waits: tuple[int, int] = (0, 0)

    def line(self, other: Memory, layers: int, n: int, m: int) -> Memory:
        """The straight line through self with n layers and other with m layers, at `layers`."""

        def at(a, b):
            return a + (b - a) * (layers - n) / (m - n)

        def kinds(a, b):
            return Counter({kind: at(a[kind], b[kind]) for kind in a | b})

        writing, learning = kinds(self.writing, other.writing), kinds(self.learning, other.learning)
        return Memory(writing, at(self.slot, other.slot), learning, at(self.flops, other.flops), self.tokens)


@contextmanager
def as_on_a_gpu(half: bool):
    """The two kernels that a GPU has and the CPU's fake tensors would not choose: attention that keeps no
    T x T matrix, and the fused norm."""

    def attention(q, k, v, is_causal, enable_gqa):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]

    def norm(x, weight, eps):
        return torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight, eps)[0]

    with ExitStack() as stack:
        if half:
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
            stack.enter_context(patch.object(qwen, "rms_norm", norm))
        yield


def build(c: train.Config, hf_config: dict, half: bool, ledger, kind: str, device):
    """train.build without files: what it allocates is booked under `kind`."""
    with ExitStack() as stack:
        for module, name, result in (
            (huggingface, "fetch", lambda _: Path(".")),
            (huggingface, "read_config", lambda _: hf_config),
            (qwen, "read", lambda model, _: model),
            (processes, "need_memory", lambda *_: None),
            (processes, "choose_threads", lambda _: None),
        ):
            stack.enter_context(patch.object(module, name, result))
        with ledger.booking(kind):
            return train.build(c, device, half)


def episodes(tokens: int, completion: int, n: int) -> list[list[Episode]]:
    """One group of n rows of `tokens` tokens, of which `completion` are trained."""
    row = Episode(Example("", "", 1), [0] * (tokens - completion), [0] * completion, None, True, False, "")
    return [[replace(row, reward=1.0, advantage=1.0, sampler_logprobs=[0.0] * completion) for _ in range(n)]]


def keep_books(ledger, scorer, optimiser):
    """What a forward pass makes are activations; what stays after an update is what it is."""
    params = [p for p in scorer.parameters() if p.requires_grad]

    def before(*_):
        ledger.adopt("gradients", [p.grad for p in params if p.grad is not None])
        ledger.adopt("optimiser", [t for s in optimiser.state.values() for t in s.values()])
        ledger.kind = "activations"

    def after(*_):
        ledger.kind = "temporary"

    scorer.register_forward_pre_hook(before)
    scorer.register_forward_hook(after)
    return before


def write(c, model, half: bool, ledger, prompt: int) -> tuple[Counter, float, int]:
    """Refresh and decode -> (peak with one slot, bytes of each further one, waits of a few steps)."""
    with ledger.booking("replica"):
        writer = model if c.lora_rank else rollout.replica(model, torch.bfloat16 if half else None)
    sampling = Sampling(c.temperature, c.top_p, c.top_k, 0.0, c.repetition_penalty)
    for n in (1, 3):
        ledger.enter(f"writing {n}")
        with ledger.booking("slots"):
            slots = rollout.Slots(writer, n, prompt + c.max_new_tokens, sampling)
        with ledger.booking("temporary"):
            slots.fill(list(range(n)), tuple([0] * prompt), [0] * n)
            waits = ledger.waits
            slots.decode(rollout.CHECK_EVERY)
            waits = ledger.waits - waits
        del slots
    one, three = ledger.peaks["writing 1"], ledger.peaks["writing 3"]
    return one, (three.total() - one.total()) / 2, waits


def rehearse(c, hf_config: dict, world: int, node: int, half: bool = True, device: str = "cpu") -> Memory:
    """One process of `world` (`node` in a machine) from its start to its second update. half: what a GPU
    gets. device: the CPU serves where torch has no CUDA; its fake tensors are as large."""
    device = torch.device(device)
    prompt = c.max_prompt_tokens + 16  # words around it, see data.Tokenizer.chat
    longest = prompt + c.max_new_tokens
    rows = 2 * max(1, c.micro_batch_tokens // longest)  # two micro-batches: the second adds to gradients
    with rehearsal(world, min(world, node)) as ledger, as_on_a_gpu(half):
        is_ddp = parallel.choose(c.parallel, shard=half and not c.lora_rank)[0] == "ddp"
        c = replace(c, parallel="none" if is_ddp else c.parallel)
        model, scorer = build(c, hf_config, half, ledger, "weights", device)
        optimiser = optim.adamw(scorer, c.lr, c.weight_decay)
        reference = build(c, hf_config, half, ledger, "reference", device)[1] if c.kl else None
        if reference:
            sharding.freeze(reference)
        with ledger.booking("gathered"):  # DDP's buckets are as large as the gradients
            buckets = [torch.empty_like(p) for p in scorer.parameters() if p.requires_grad and is_ddp]
        settle = keep_books(ledger, scorer, optimiser)
        train.update(c, scorer, optimiser, episodes(32, 16, 1), reference)  # AdamW's state is made here
        settle()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            writing, slot, decoding = write(c, model, half, ledger, prompt)
        flops, waits = ledger.flops, ledger.waits
        ledger.enter("learning")
        train.update(c, scorer, optimiser, episodes(longest, c.max_new_tokens, rows), reference)
        flops = (ledger.flops - flops) / (rows * longest)
        waits = (ledger.waits - waits, decoding)
        del buckets
    return Memory(writing, slot, ledger.peaks["learning"], flops, rows // 2 * longest, waits)


def memory(c: train.Config, hf_config: dict, world: int, node: int, half: bool = True) -> Memory:
    """`rehearse`, for a deep model from two shallow ones."""
    if not deep(hf_config):
        return rehearse(c, hf_config, world, node, half)
    few, text = [], hf_config.get("text_config", hf_config)
    for n in (FEW, 2 * FEW):
        shallow = text | {"num_hidden_layers": n, "layer_types": text.get("layer_types", [])[:n]}
        shallow = hf_config | {"text_config": shallow} if text is not hf_config else shallow
        few.append(rehearse(c, shallow, world, node, half))
    return few[0].line(few[1], text["num_hidden_layers"], FEW, 2 * FEW)


@dataclass
class Fit:
    """A rehearsed run on one card: how many slots it opens, and its peaks with them, in bytes by kind."""

    slots: int
    writing: Counter
    learning: Counter
    peak: float
    fits: bool


def fit(c: train.Config, m: Memory, world: int, card: float) -> Fit:
    """Slots as rollout.plan_slots would open them on a card of `card` bytes."""
    stories = -(-c.prompts * c.group // world)
    before = m.writing.total() - m.slot
    slots = max(0, min(stories, c.slots or 64, int(0.9 * (card - before) // m.slot)))
    writing = m.writing + Counter(slots=(max(slots, 1) - 1) * m.slot)
    learning = Counter(m.learning)
    if c.keep_replica:
        learning += Counter({kind: writing[kind] for kind in ("replica", "slots")})
    peak = max(writing.total(), learning.total())
    return Fit(slots, writing, learning, peak, slots > 0 and peak <= card)


def advice(c: train.Config, a, hf_config: dict, m: Memory) -> str:
    """Single changes that would make the plan fit, up to three: each is rehearsed, none is guessed."""
    shortened = dict.fromkeys(("max_new_tokens", "micro_batch_tokens"), c.max_new_tokens // 2)
    tries = {" ".join(f"--{name} {n}" for name, n in shortened.items()): (shortened, a.gpus)}
    if not c.lora_rank:
        tries["--lora_rank 32"] = ({"lora_rank": 32, "parallel": "auto"}, a.gpus)
        tries |= {f"--gpus {n} (and --prompts a multiple)": ({}, n) for n in (2 * a.gpus, 4 * a.gpus)}
    tries |= {"--checkpointing True": ({"checkpointing": True}, a.gpus)} if not c.checkpointing else {}
    tries |= {"--keep_replica False": ({"keep_replica": False}, a.gpus)} if c.keep_replica else {}
    good = ["cards of twice the memory"] if fit(c, m, a.gpus, 2 * usable(a)).fits else []
    for name, (change, gpus) in tries.items():
        c2 = replace(c, **change)
        if len(good) < 3 and fit(c2, memory(c2, hf_config, gpus, a.gpus_per_node), gpus, usable(a)).fits:
            good.append(name)
    return "; or ".join(good) or "none of the usual knobs alone: a smaller model"


# ---- time and money ------------------------------------------------------------


def cache_bytes(config: qwen.ModelConfig, tokens: int) -> tuple[int, int]:
    """Of one story in bf16: (DeltaNet states and windows of any length, keys and values of `tokens`)."""
    start = rollout.slot_bytes(config, 0, 2)
    return start - 16 * config.vocab_size, rollout.slot_bytes(config, tokens, 2) - start


def work(c: train.Config, a, hf_config: dict, m: Memory, f: Fit, steps: int) -> dict:
    """Hours and dollars: counted work divided by the given rates."""
    config = qwen.ModelConfig.from_hf(hf_config)
    policy, human = c.prompts * c.group, c.prompts * (c.hri != "off")
    tokens, slots = (policy + human) * a.story_tokens, max(1, f.slots)
    # Decoding reads per step all weights once, each slot's states twice, its keys once, at half its length.
    weights = 2 * (sum(qwen.count(hf_config)) - config.vocab_size * config.hidden_size)
    weights += 2 * config.vocab_size * config.hidden_size * config.tie_word_embeddings
    state, keys = cache_bytes(config, a.story_tokens // 2)
    step_seconds = (weights + slots * (2 * state + keys)) / (a.bandwidth * 1e9 * a.decode_share)
    writing = policy / a.gpus / slots * a.story_tokens * step_seconds
    learned = tokens + (policy + human) * c.max_prompt_tokens / 2
    updating = m.flops * learned / a.gpus / (a.tflops * 1e12 * a.train_share)
    calls = steps * (policy + human) * c.judge_samples
    words = judging.pointwise_messages(judging.RUBRIC, "x" * 800, "x" * 4 * a.judged_tokens)
    prompt = sum(len(x["content"]) for x in words) / 4  # four letters per token
    judged = (calls * prompt, calls * a.verdict_tokens)
    hours = steps * (writing + updating) / 3600
    return {
        "tokens": steps * tokens,
        "decode": slots / step_seconds,
        "writing": writing,
        "updating": updating,
        "hours": hours,
        "calls": calls,
        "judged": judged,
        "judge_dollars": (judged[0] * a.judge_price[0] + judged[1] * a.judge_price[1]) / 1e6,
        "gpu_dollars": hours * a.gpus * a.gpu_price,
    }


# ---- the report ------------------------------------------------------------


def usable(a) -> float:
    return a.gpu_memory * 2**30 - a.reserve * 1e9


def table(f: Fit) -> list[str]:
    lines = [f"{'GB per GPU, at its highest while it':36}{'writes':>8}{'learns':>8}"]
    for kind in (*KINDS, "slots"):
        both = [peak[kind] / 1e9 for peak in (f.writing, f.learning)]
        if max(both) >= 0.05:
            lines.append(f"  {kind:34}" + "".join(f"{x:8.1f}" if x >= 0.05 else f"{'-':>8}" for x in both))
    return lines + [f"  {'all':34}{f.writing.total() / 1e9:8.1f}{f.learning.total() / 1e9:8.1f}"]


def serving(hf_config: dict) -> str:
    """Memory of the trained model behind a server; 4 bit takes about 4.5 bits per weight, scales included."""
    total = sum(qwen.count(hf_config))
    state, keys = cache_bytes(qwen.ModelConfig.from_hf(hf_config), 1000)
    weights = f"weights {2 * total / 1e9:.3g} GB in bf16, {4.5 / 8 * total / 1e9:.3g} GB at 4 bit"
    return f"served: {weights}; per story {state / 1e6:.3g} MB + {keys / 1e6:.3g} MB per thousand tokens"


def report(c: train.Config, a, hf_config: dict, m: Memory, f: Fit, steps: int) -> str:
    total, (frozen, trained) = sum(qwen.count(hf_config)), qwen.count(hf_config, c.lora_rank)
    kind = parallel.choose(c.parallel, shard=not c.lora_rank)[0] if a.gpus > 1 else "none"
    how = {"fsdp": "sharded", "hsdp": "sharded in each node"}.get(kind, "whole on each GPU")
    lines = [
        f"{c.model}: {(frozen or total) / 1e9:.2f} B parameters, {trained / 1e9:.2f} B trained; {a.gpus} x "
        f"{a.gpu_memory:g} GB, {how}",
        f"rehearsed on fake tensors, micro-batch of {m.tokens:,} tokens"
        + (f"; with {FEW} and {2 * FEW} layers, then a straight line" if deep(hf_config) else ""),
        "",
        *table(f),
        f"peak {f.peak / 1e9:.1f} GB of {usable(a) / 1e9:.1f}; {f.slots} slots of {m.slot / 1e6:.0f} MB",
        serving(hf_config),
    ]
    if not f.fits:
        return "\n".join([*lines, f"does not fit; what helps: {advice(c, a, hf_config, m)}"])
    w = work(c, a, hf_config, m, f, steps)
    gpu = f", {w['gpu_dollars']:.0f} dollars of GPU" if a.gpu_price else ""
    paid = f", {w['judge_dollars']:.0f} dollars" if any(a.judge_price) else "; give --judge_price IN OUT"
    lines += [
        "",
        f"{steps} steps, {w['tokens'] / 1e6:.1f} M completion tokens of {a.story_tokens:,} per story",
        f"  writing {w['writing']:.0f} s per step ({w['decode']:.0f} tokens/s per GPU at "
        f"{a.decode_share:.0%} of {a.bandwidth:g} GB/s)",
        f"  learning {w['updating']:.0f} s per step ({m.flops / 1e9:.1f} GFLOP counted per token, at "
        f"{a.train_share:.0%} of {a.tflops:g} TFLOP/s)",
        f"  {w['hours']:.1f} hours{gpu}",
        f"  {w['calls']:,} judge calls, {w['judged'][0] / 1e6:.1f} M tokens in, "
        f"{w['judged'][1] / 1e6:.1f} M out{paid}",
    ]
    return "\n".join(lines)


def deep(hf_config: dict) -> bool:
    return hf_config.get("text_config", hf_config)["num_hidden_layers"] > 2 * FEW


# ---- the command ------------------------------------------------------------


def model_config(name: str) -> dict:
    """config.json of a folder or hub id, its weights left where they are; the 9B's stands here."""
    if Path(name).exists():
        return huggingface.read_config(Path(name))
    is_9b = name == train.Config.model
    return NINE_B if is_9b else huggingface.read_config(huggingface.fetch(name, ["*.json"]))


def flags() -> argparse.ArgumentParser:
    form = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    p = parser(__doc__, epilog="All flags of train.py are understood as well.", **form)
    add = p.add_argument
    add("--gpus", type=int, default=4, help="processes in all, over all nodes")
    add("--gpus_per_node", type=int, default=8, help="--parallel hsdp shards over these")
    add("--gpu_memory", type=float, default=80, help="of one card, as its maker counts (GiB)")
    add("--reserve", type=float, default=2.0, help="GB per card for CUDA context, NCCL and fragments")
    add("--bandwidth", type=float, default=2040, help="GB/s of the card's memory")
    add("--tflops", type=float, default=312, help="bf16 matmul rate of the card")
    add("--decode_share", type=float, default=0.55, help="of the bandwidth that decoding reaches")
    add("--train_share", type=float, default=0.35, help="of the matmul rate that training reaches")
    add("--examples", type=int, default=1388, help="prompts of an epoch, where --data does not exist yet")
    add("--story_tokens", type=int, default=6000, help="completion tokens per story, thinking included")
    add("--judged_tokens", type=int, default=4000, help="tokens of a story as the judge reads it")
    add("--verdict_tokens", type=int, default=1500, help="tokens of the judge's answer")
    add("--gpu_price", type=float, default=0.0, help="dollars per GPU hour")
    price = {"type": float, "nargs": 2, "default": (0.0, 0.0)}
    add("--judge_price", **price, help="dollars per million tokens, in and out")
    return p


@exits_cleanly
def main(argv=None):
    a, rest = flags().parse_known_args(argv)
    c = train.parse(rest if "--preset" in " ".join(rest) else ["--preset", "polaris-9b", *rest])
    train.check(replace(c, judge="offline"), a.gpus)
    hf_config = model_config(c.model)
    examples = data.read_examples(c.data) if Path(c.data).exists() else []
    steps = c.steps if c.steps >= 0 else (len(examples) or a.examples) // c.prompts
    assumed = f"{c.data} does not exist yet: {a.examples:,} examples assumed, see --examples"
    print(data.describe(c.data, examples) if examples else assumed)
    m = memory(c, hf_config, a.gpus, a.gpus_per_node)
    f = fit(c, m, a.gpus, usable(a))
    print(report(c, a, hf_config, m, f, steps))
    return 0 if f.fits else 1


if __name__ == "__main__":
    sys.exit(main())
