"""Memory, time and money of a run before it starts: no GPU, no weights, no network for the 9B.

Parameters and training states are counted on torch's meta device from train.py's own functions. Activations are counted
there too: one block of each kind runs forward and backward on fake tensors, while every allocation and release
is added up. Slots come from rollout.py's formula. Time is work divided by rates that you give; nothing here is measured.

    python -m scripts.plan --preset polaris-9b                                  # 4 x A100-80GB
    python -m scripts.plan --preset polaris-9b --gpus 1 --gpu_memory 141 --lora_rank 32 --bandwidth 4300 --tflops 800
    python -m scripts.plan --preset polaris-9b --judge_price 1.25 10

Any flag of train.py may stand beside the plan's own. Exit code 1: the plan cannot fit, with what would help.
Left out: the CUDA context and fragmentation beyond --reserve, the wait for the last story of a step, the vision tower.
"""
from __future__ import annotations

import argparse
import json
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import judge as judging
import model as qwen
import rollout
import train
from lib import huggingface, lora
from lib.logprobs import LOGIT_CHUNK

# Qwen/Qwen3.5-9B, text part of its released config.json.
NINE_B = dict(
    model_type="qwen3_5_text", vocab_size=248320, hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_attention_heads=16,
    num_key_value_heads=4, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
    linear_conv_kernel_dim=4, full_attention_interval=4, rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=262144,
    rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25))


# ---------------------------------------------------------------------------------------------------------------------
# Memory

class Peak(TorchDispatchMode):
    """Adds up the bytes of every tensor that is made and released inside -> .peak. Works without storage (meta device)."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.add(x.untyped_storage())
        return out

    def add(self, storage):
        key = storage._cdata
        if key not in self.live:
            self.live[key] = weakref.ref(storage, lambda _, key=key, n=storage.nbytes(): self.release(key, n))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def release(self, key, nbytes):
        del self.live[key]
        self.now -= nbytes


class FlashAttention(torch.autograd.Function):
    """What the fused kernel on a GPU keeps: q, k, v and the output, never the T x T probabilities."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@cache
def block_peak(hf_config: str, kind: str, tokens: int, lora_rank: int) -> float:
    """Bytes that forward and backward of one block take at their highest, beyond its weights and its input (bf16)."""
    config = qwen.ModelConfig.from_hf(json.loads(hf_config))
    with FakeTensorMode():  # tensors of a CPU without storage: autocast, which the blocks ask about, has no meta device
        holder = torch.nn.Module()
        holder.layers = torch.nn.ModuleList([qwen.Block(config, config.layer_types.index(kind), fused=False)])
        qwen.cast(holder, torch.bfloat16)
        if lora_rank:
            lora.add_lora(holder, lora_rank, 1.0)
        rows = qwen.Rows([tokens], config, torch.device("cpu"))
        x = torch.zeros(tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        attend, F.scaled_dot_product_attention = F.scaled_dot_product_attention, lambda q, k, v, **_: FlashAttention.apply(q, k, v)
        try:
            with Peak() as peak:
                holder.layers[0](x, rows).backward(torch.zeros_like(x))
        finally:
            F.scaled_dot_product_attention = attend
    return peak.peak


def line(f, tokens: int) -> float:
    """f(tokens) of a function that is linear in tokens once they outweigh its constants, from two values that cost seconds."""
    a, b = f(4096), f(8192)
    return a + (b - a) * (tokens - 4096) / 4096


def activation_bytes(hf_config: dict, tokens: int, c: train.Config, sharded: bool) -> dict[str, float]:
    """Bytes one micro-batch of `tokens` takes on top of the states: kept inputs, one block at work, the head, FSDP's buffers."""
    config, text = qwen.ModelConfig.from_hf(hf_config), json.dumps(hf_config)
    V, D, L = config.vocab_size, config.hidden_size, len(config.layer_types)
    blocks = {kind: line(lambda t, kind=kind: block_peak(text, kind, t, c.lora_rank), tokens) for kind in sorted(set(config.layer_types))}
    kept = 2 * tokens * D * L if c.checkpointing else 0
    working = max(blocks.values()) if c.checkpointing else sum(blocks[k] for k in config.layer_types)
    # The head: hidden states and their gradient, a chunk of logits three times over (logits, their exp, bf16), and fp32 dW.
    frozen = bool(c.lora_rank)
    head = 4 * tokens * D + LOGIT_CHUNK * V * (4 + 4 + 2) + (0 if frozen else V * D * (4 + 2))
    gathered = 0.0
    if sharded:  # embedding and head whole in bf16, two blocks in flight, gradients of the first in bf16 and of one block in fp32
        with torch.device("meta"):
            block = max(sum(p.numel() for p in qwen.Block(config, config.layer_types.index(k), False).parameters()) for k in blocks)
        roots = V * D * (1 if config.tie_word_embeddings else 2)
        gathered = 2 * roots + 2 * 2 * block + max(2 * roots + 4 * roots, 6 * block)
    return {"kept inputs": kept, "one block": working, "head": head, "gathered": gathered,
            "peak": kept + gathered + max(working, head)}


def memory(c: train.Config, hf_config: dict, world: int, card: float, node: int = 8) -> dict:
    """Everything in bytes for one GPU of `card` bytes, `node` of them in a machine; `micro_batch` and `slots` are the largest that fit (0: none)."""
    config = qwen.ModelConfig.from_hf(hf_config)
    sharded = not c.lora_rank and c.parallel in ("auto", "fsdp", "hsdp")
    shards = 1 if not sharded else min(world, node) if c.parallel == "hsdp" else world
    states = train.state_bytes(c, hf_config, shards, on_gpu=True)
    longest = c.max_prompt_tokens + 16 + c.max_new_tokens
    half, one = (activation_bytes(hf_config, t, c, sharded) for t in (longest // 2, longest))
    update = states["weights"] + states["optimiser"] + states["gradients"] + (states["replica"] if c.keep_replica else 0)
    micro_batch = 10**9  # two straight lines in tokens, one while a block works, one while the head does
    for part in ("one block", "head"):
        at_half, at_one = (x["kept inputs"] + x["gathered"] + x[part] for x in (half, one))
        slope = (at_one - at_half) / (longest - longest // 2)
        micro_batch = min(micro_batch, int(longest + (card - update - at_one) / slope))
    micro_batch = micro_batch if micro_batch >= longest else 0
    writing = states["weights"] + states["optimiser"] + states["replica"]
    slot = rollout.slot_bytes(config, longest, 2)
    stories = -(-c.prompts * c.group // world)
    slots = max(0, min(int((0.9 * (card - writing)) // slot), stories))
    tokens = min(max(c.micro_batch_tokens, longest), micro_batch) if micro_batch else longest
    now = activation_bytes(hf_config, tokens, c, sharded)
    return dict(config=config, states=states, longest=longest, activations=now, update=update, writing=writing, slot=slot, slots=slots, shards=shards,
                micro_batch=micro_batch, tokens=tokens, peak=max(update + now["peak"], writing + max(1, slots) * slot, states["load"]),
                sharded=sharded, fits=micro_batch > 0 and slots > 0 and states["load"] <= card)


def advice(c: train.Config, hf_config: dict, world: int, card: float, node: int) -> str:
    """Which single change would make the plan fit: each is tried, none is guessed."""
    tries = {f"--gpus {2 * world} (then --prompts must divide by it)": (c, 2 * world, card),
             f"--gpus {4 * world} (then --prompts must divide by it)": (c, 4 * world, card),
             "--lora_rank 32": (replace(c, lora_rank=32), world, card),
             f"--max_new_tokens {c.max_new_tokens // 2}": (replace(c, max_new_tokens=c.max_new_tokens // 2), world, card),
             "--checkpointing True": (replace(c, checkpointing=True), world, card), "--keep_replica False": (replace(c, keep_replica=False), world, card),
             "cards of twice the memory": (c, world, 2 * card)}
    good = [name for name, (changed, gpus, room) in tries.items() if memory(changed, hf_config, gpus, room, node)["fits"]]
    return "; or ".join(good) or "none of the usual knobs alone: a smaller model"


# ---------------------------------------------------------------------------------------------------------------------
# Time and money

def work(c: train.Config, a, m: dict, steps: int, world: int) -> dict:
    """Hours and dollars from the given rates; every figure is arithmetic on them."""
    config = m["config"]
    with torch.device("meta"):
        model = qwen.Qwen35(config)
        n = sum(p.numel() for p in model.parameters()) - model.embed_tokens.weight.numel() * (not config.tie_word_embeddings)
    policy, human = c.prompts * c.group, c.prompts * (c.hri != "off")
    tokens = (policy + human) * a.story_tokens
    slots = max(1, m["slots"])
    # Decoding reads all weights once a step and each slot's states twice and its keys once, at half of the final length.
    state = rollout.slot_bytes(config, 0, 2) - 16 * config.vocab_size
    keys = rollout.slot_bytes(config, a.story_tokens // 2, 2) - rollout.slot_bytes(config, 0, 2)
    step_seconds = (2 * n + slots * (2 * state + keys)) / (a.bandwidth * 1e9 * a.decode_share)
    writing = policy / world / slots * a.story_tokens * step_seconds
    flops = (6 if c.lora_rank else 8 if c.checkpointing else 6) * n
    updating = flops * (tokens + (policy + human) * c.max_prompt_tokens / 2) / world / (a.tflops * 1e12 * a.train_share)
    calls = steps * (policy + human) * c.judge_samples
    words = judging.pointwise_messages(judging.RUBRIC, "x" * 800, "x" * 4 * a.judged_tokens)
    prompt = sum(len(x["content"]) for x in words) / 4   # four letters a token
    money = calls * (prompt * c.judge_price[0] + a.verdict_tokens * c.judge_price[1]) / 1e6
    hours = steps * (writing + updating) / 3600
    return dict(steps=steps, tokens=steps * tokens, decode=slots / step_seconds, writing=writing, updating=updating, hours=hours, calls=calls,
                judge_prompt=calls * prompt, judge_completion=calls * a.verdict_tokens, judge_dollars=money, gpu_dollars=hours * world * a.gpu_price)


def report(c: train.Config, a, m: dict, w: dict, world: int, card: float, hf_config: dict) -> str:
    gb = lambda x: f"{x / 1e9:8.1f} GB"
    s, act = m["states"], m["activations"]
    trained = s["gradients"] / 4 * m["shards"]
    lines = [f"{c.model}: {s['replica'] / 2e9:.2f} B parameters, {trained / 1e9:.2f} B trained; {world} x {a.gpu_memory:g} GB, "
             f"{'sharded' if m['sharded'] else 'whole on each GPU'}; calculated, not measured", "",
             "a GPU, all the time", f"  weights          {gb(s['weights'])}", f"  AdamW            {gb(s['optimiser'])}",
             "while it writes", f"  bf16 replica     {gb(s['replica'])}", f"  {m['slots']:3d} slots        {gb(m['slots'] * m['slot'])}   "
             f"{m['slot'] / 1e6:.0f} MB each: {m['longest']:,} tokens of keys, states, logits",
             "while it learns", f"  gradients        {gb(s['gradients'])}", f"  kept inputs      {gb(act['kept inputs'])}   micro-batch of {m['tokens']:,} tokens",
             f"  one block        {gb(act['one block'])}", f"  head             {gb(act['head'])}   or the block, whichever is larger: logits in chunks of {LOGIT_CHUNK}",
             f"  gathered         {gb(act['gathered'])}   what FSDP holds whole for a moment: embedding, head, two blocks, their gradients",
             "while it loads", f"  fp32 weights     {gb(s['load'])}   whole, then cut into shards" if m["sharded"] else "  nothing more", f"peak               {gb(m['peak'])}   of {card / 1e9:.1f} usable"]
    if not m["fits"]:
        return "\n".join(lines + ["", f"does not fit; what helps: {advice(c, hf_config, world, card, a.gpus_per_node)}"])
    return "\n".join(lines + [
        f"fits                 micro-batches up to {m['micro_batch']:,} tokens (--micro_batch_tokens), {m['slots']} slots a GPU", "",
        f"{w['steps']} steps, {w['tokens'] / 1e6:.1f} M completion tokens of {a.story_tokens:,} a story",
        f"  writing {w['writing']:.0f} s a step ({w['decode']:.0f} tokens/s a GPU at {a.decode_share:.0%} of {a.bandwidth:g} GB/s), "
        f"learning {w['updating']:.0f} s ({a.train_share:.0%} of {a.tflops:g} TFLOP/s)",
        f"  {w['hours']:.1f} hours" + (f", {w['gpu_dollars']:.0f} dollars of GPU" if a.gpu_price else ""),
        f"  {w['calls']:,} judge calls, {w['judge_prompt'] / 1e6:.1f} M tokens in, {w['judge_completion'] / 1e6:.1f} M out"
        + (f", {w['judge_dollars']:.0f} dollars" if any(c.judge_price) else "; give --judge_price IN OUT for dollars")])


# ---------------------------------------------------------------------------------------------------------------------

def model_config(name: str) -> dict:
    """config.json of a folder or hub id, its weights left where they are; the 9B's stands here."""
    if Path(name).exists():
        return huggingface.read_config(Path(name))
    if name == "Qwen/Qwen3.5-9B":
        return NINE_B
    from huggingface_hub import hf_hub_download
    try:
        return json.loads(Path(hf_hub_download(name, "config.json")).read_text())
    except Exception as error:
        raise FileNotFoundError(f"{name} is no local folder, and the hub gave no config.json ({type(error).__name__}); "
                                "check the name and the network") from None


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="All flags of train.py are understood as well.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("--gpus", type=int, default=4, help="processes in all, over all nodes")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="--parallel hsdp shards over these")
    parser.add_argument("--gpu_memory", type=float, default=80, help="of one card, as its maker counts (GiB)")
    parser.add_argument("--reserve", type=float, default=2.0, help="GB a card for the CUDA context, NCCL and fragments")
    parser.add_argument("--bandwidth", type=float, default=2040, help="GB/s of the card's memory")
    parser.add_argument("--tflops", type=float, default=312, help="bf16 matmul rate of the card")
    parser.add_argument("--decode_share", type=float, default=0.55, help="of the bandwidth that decoding reaches")
    parser.add_argument("--train_share", type=float, default=0.35, help="of the matmul rate that training reaches")
    parser.add_argument("--examples", type=int, default=1388, help="prompts of an epoch, where --data does not exist yet")
    parser.add_argument("--story_tokens", type=int, default=6000, help="completion tokens of a story, thinking included")
    parser.add_argument("--judged_tokens", type=int, default=4000, help="tokens of a story without thinking, as the judge reads it")
    parser.add_argument("--verdict_tokens", type=int, default=1500, help="tokens the judge answers a story with")
    parser.add_argument("--gpu_price", type=float, default=0.0, help="dollars a GPU hour")
    a, rest = parser.parse_known_args(args)
    if "--preset" not in " ".join(rest):
        rest = ["--preset", "polaris-9b", *rest]
    c = train.parse(rest)
    card = a.gpu_memory * 2**30 - a.reserve * 1e9
    try:
        train.check(replace(c, judge="offline"), a.gpus)
        examples = sum(1 for line in open(c.data) if line.strip()) if Path(c.data).exists() else a.examples
        steps = c.steps if c.steps >= 0 else examples // c.prompts
        hf_config = model_config(c.model)
        m = memory(c, hf_config, a.gpus, card, a.gpus_per_node)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(c, a, m, work(c, a, m, steps, a.gpus), a.gpus, card, hf_config))
    return 0 if m["fits"] else 1


if __name__ == "__main__":
    sys.exit(main())
