"""Memory, operations, hours and dollars of a run before it starts: no GPU, no weights, no network for the 9B.

The run is rehearsed: train.py's own set-up, two small updates, the sampler's decode steps and an update on
micro-batches of the longest rows run on fake tensors, as process 0 of N. Every storage is counted while it
lives, and the operations of every product. A deep model is rehearsed twice with few layers; memory and
operations are straight lines in their number. Hours are counted work divided by rates that you give.

    python -m scripts.plan --judge_price 1.25 10                              # polaris-9b on 4 x A100-80GB
    python -m scripts.plan --gpus 1 --gpu_memory 141 --lora_rank 32 --bandwidth 4300 --tflops 800

All flags of train.py work beside the plan's own. Exit code 1: the plan cannot fit; it says what would help.
Left out: what kernels and CUDA graphs take beyond --reserve, the wait for the last story of a step.
"""

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F

import data
import judge as judging
import model as qwen
import rollout
import train
from data import FRAME, Episode, Example
from lib import huggingface, optim, parallel, processes
from lib.flags import add_fields, check_ranges, exits_cleanly, opt, parser
from lib.rehearsal import rehearsal
from lib.sampling import Sampling

NINE_B = Path(__file__).with_name("qwen3.5-9b.json")  # text part of the released config.json
KINDS = ("weights", "optimiser", "reference", "gradients", "replica")
KINDS += ("activations", "gathered", "temporary", "slots")
FEW = 4  # layers: one period of three DeltaNet blocks and one of attention


@dataclass
class Settings:
    """The plan's own flags."""

    gpus: int = opt(4, "processes in all, over all nodes", low=1)
    gpus_per_node: int = opt(8, "--parallel hsdp shards over these", low=1)
    gpu_memory: float = opt(80.0, "of one card, as its maker counts (GiB)", above=0)
    reserve: float = opt(2.0, "GB per card for CUDA context, NCCL and fragments", low=0)
    bandwidth: float = opt(2040.0, "GB/s of the card's memory", above=0)
    tflops: float = opt(312.0, "bf16 matmul rate of the card", above=0)
    decode_share: float = opt(0.55, "of the bandwidth that decoding reaches", above=0)
    train_share: float = opt(0.35, "of the matmul rate that training reaches", above=0)
    examples: int = opt(1388, "prompts of an epoch, where --data does not exist yet", low=1)
    story_tokens: int = opt(6000, "completion tokens per story, thinking included", low=1)
    judged_tokens: int = opt(4000, "tokens of a story as the judge reads it", low=0)
    verdict_tokens: int = opt(1500, "tokens of the judge's answer", low=0)
    gpu_price: float = opt(0.0, "dollars per GPU hour", low=0)
    judge_price: list[float] = opt([0.0, 0.0], "dollars per million tokens, in and out")

    @property
    def card(self) -> float:
        """Bytes of one card that a run may take."""
        return self.gpu_memory * 2**30 - self.reserve * 1e9


# ---- the rehearsal ------------------------------------------------------------


@contextmanager
def as_on_a_gpu():
    """The two kernels that a GPU has and the CPU's fake tensors would not choose: attention that keeps no
    T x T matrix, and the fused norm."""

    def attention(q, k, v, is_causal, enable_gqa):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]

    def norm(x, weight, eps):
        return torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight, eps)[0]

    with patch.object(F, "scaled_dot_product_attention", attention), patch.object(qwen, "rms_norm", norm):
        yield


def build(c: train.Config, hf_config: dict, half: bool, ledger, kind: str, device):
    """train.build without files: what it allocates is booked under `kind`."""
    files = patch.multiple(huggingface, fetch=lambda _: Path("."), read_config=lambda _: hf_config)
    weights = patch.object(qwen, "read", lambda model, _: model)
    machine = patch.multiple(processes, need_memory=lambda *_: None, choose_threads=lambda _: None)
    with files, weights, machine, ledger.booking(kind):
        return train.build(c, device, half)


def episodes(tokens: int, completion: int, n: int) -> list[list[Episode]]:
    """One group of n rows of `tokens` tokens, of which `completion` are trained."""
    row = Episode(Example("", "", 1), [0] * (tokens - completion), [0] * completion, None, True, False, "")
    return [[replace(row, reward=1.0, advantage=1.0, sampler_logprobs=[0.0] * completion) for _ in range(n)]]


def write(c, model, half: bool, ledger, prompt: int):
    """Refreshes and decodes, in phases "writing 1" with one slot and "writing 3" with three."""
    with ledger.booking("replica"):
        writer = model if c.lora_rank else rollout.replica(model, torch.bfloat16 if half else None)
    sampling = Sampling(c.temperature, c.top_p, c.top_k, 0.0, c.repetition_penalty)
    for n in (1, 3):
        ledger.enter(f"writing {n}")
        with ledger.booking("slots"):
            slots = rollout.Slots(writer, n, prompt + c.max_new_tokens, sampling)
        for slot in range(n):
            slots.fill(slot, tuple([0] * prompt), slots.keys[slot])
        slots.decode(rollout.CHECK_EVERY)
        del slots


def rehearse(c, hf_config: dict, world: int, node: int, half: bool = True, device: str = "cpu") -> dict:
    """One process of `world` (`node` in a machine) from its start to its second update -> {phase: Counter of
    bytes by kind at its highest moment}, and under "work" the `flops` per token of the longest row and the
    `tokens` of a micro-batch, under "waits" by phase those of the host for a device. half: what a GPU gets.
    device: the CPU serves where torch has no CUDA; its fake tensors are as large."""
    device, prompt = torch.device(device), c.max_prompt_tokens + FRAME
    longest = prompt + c.max_new_tokens
    rows = 2 * max(1, c.micro_batch_tokens // longest)  # two micro-batches: the second adds to gradients
    with rehearsal(world, min(world, node)) as ledger, as_on_a_gpu() if half else nullcontext():
        is_ddp = parallel.choose(c.parallel, shard=half and not c.lora_rank)[0] == "ddp"
        c = replace(c, parallel="none" if is_ddp else c.parallel)
        model, scorer = build(c, hf_config, half, ledger, "weights", device)
        optimiser = optim.adamw(scorer, c.lr, c.weight_decay)
        reference = None
        if c.kl:
            reference = build(c, hf_config, half, ledger, "reference", device)[1].requires_grad_(False)
        trained = [p for p in scorer.parameters() if p.requires_grad]
        with ledger.booking("gathered"):  # DDP's buckets are as large as the gradients
            buckets = [torch.empty_like(p) for p in trained if is_ddp]
        forward = ledger.booking("activations")(scorer.forward)

        def after_earlier_ones(*args):  # what their backward passes left are gradients
            ledger.adopt("gradients", [p.grad for p in trained if p.grad is not None])
            return forward(*args)

        scorer.forward = after_earlier_ones
        train.update(c, scorer, optimiser, episodes(32, 16, 1), reference)  # AdamW's state is made here
        ledger.adopt("optimiser", [t for state in optimiser.state.values() for t in state.values()])
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            write(c, model, half, ledger, prompt)
        ledger.enter("learning")
        train.update(c, scorer, optimiser, episodes(longest, c.max_new_tokens, rows), reference)
        del buckets
    work = Counter(flops=ledger.flops["learning"] / (rows * longest), tokens=rows // 2 * longest)
    return ledger.peaks | {"work": work, "waits": ledger.waits}


def memory(c: train.Config, hf_config: dict, world: int, node: int) -> dict[str, Counter]:
    """`rehearse`; for a deep model the straight line through one of FEW layers and one of twice as many."""
    ends, text = [], hf_config.get("text_config", hf_config)
    if text["num_hidden_layers"] <= 2 * FEW:
        return rehearse(c, hf_config, world, node)
    for n in (FEW, 2 * FEW):
        shallow = text | {"num_hidden_layers": n, "layer_types": text.get("layer_types", [])[:n]}
        ends.append(rehearse(c, hf_config | {"text_config": shallow}, world, node))
    beyond = text["num_hidden_layers"] / FEW - 1

    def line(a: Counter, b: Counter) -> Counter:
        return Counter({kind: a[kind] + (b[kind] - a[kind]) * beyond for kind in a | b})

    return {name: line(ends[0][name], ends[1][name]) for name in ends[0]}


class Memory(NamedTuple):
    """What one process takes at the highest moment of each phase, in bytes by kind, with `slots` slots of
    `slot` bytes each."""

    writing: Counter
    learning: Counter
    slots: int
    slot: float
    fits: bool


def fit(c: train.Config, rehearsed: dict[str, Counter], world: int, card: float) -> Memory:
    """With as many slots as rollout.plan_slots would open on a card of `card` bytes."""
    one, three = rehearsed["writing 1"], rehearsed["writing 3"]
    slot = (three.total() - one.total()) / 2
    stories = -(-c.prompts * c.group // world)
    slots = max(0, min(stories, c.slots or 64, int(0.9 * (card - one.total() + slot) // slot)))
    writing = one + Counter(slots=(max(slots, 1) - 1) * slot)
    learning = rehearsed["learning"] + Counter(replica=c.keep_replica * one["replica"])
    fits = slots > 0 and max(writing.total(), learning.total()) <= card
    return Memory(writing, learning, slots, slot, fits)


def advice(c: train.Config, a, hf_config: dict, rehearsed: dict) -> str:
    """Single changes that would make the plan fit, up to three: each is rehearsed, none is guessed."""
    shorter = c.max_new_tokens // 2
    changes = [{"max_new_tokens": shorter, "micro_batch_tokens": shorter}]
    if not c.lora_rank:
        changes += [{"lora_rank": 32, "parallel": "auto"}, {"gpus": 2 * a.gpus}, {"gpus": 4 * a.gpus}]
    changes += [{"checkpointing": True}, {"keep_replica": False}]
    good = ["cards of twice the memory"] if fit(c, rehearsed, a.gpus, 2 * a.card).fits else []
    for change in changes:
        gpus = change.pop("gpus", a.gpus)
        c2 = replace(c, **change)
        changed = [f"--{name} {value}" for name, value in change.items() if getattr(c, name) != value]
        changed += [f"--gpus {gpus} (and --prompts a multiple)"] * (gpus != a.gpus)
        if not changed or len(good) == 3:
            continue
        if fit(c2, memory(c2, hf_config, gpus, a.gpus_per_node), gpus, a.card).fits:
            good.append(" ".join(changed))
    return "; or ".join(good) or "none of the usual knobs alone: a smaller model"


# ---- time and money ------------------------------------------------------------


def judging_of(c: train.Config, a: Settings) -> tuple[int, float]:
    """(calls of the judge per step, tokens of the prompt of one call, at four letters per token)."""
    rubric, request, story = judging.RUBRIC, "x" * 800, "x" * 4 * a.judged_tokens
    policy, human = c.prompts * c.group, c.prompts * (c.hri != "off")
    if c.judge_mode == "pair":  # in both orders; nothing is asked about the person's story
        calls, task = 2 * policy * c.judge_samples, judging.pair_task(rubric, request, story, story)
    elif c.judge_mode == "group":  # one ranking of all stories of a group
        stories = [story] * ((policy + human) // c.prompts)
        calls, task = c.prompts, judging.rank_task(rubric, request, stories)
    else:
        calls, task = (policy + human) * c.judge_samples, judging.story_task(rubric, request, story)
    return calls, sum(len(message["content"]) for message in task[0]) / 4


def work(c: train.Config, a: Settings, hf_config: dict, slots: int, flops: float, steps: int):
    """Prints hours and dollars: counted work divided by the given rates. flops: of an update, per token."""
    config = qwen.ModelConfig.from_hf(hf_config)
    policy, human = c.prompts * c.group, c.prompts * (c.hri != "off")
    tokens = (policy + human) * a.story_tokens
    # Decoding reads all weights once per step, and each slot's states twice and half of its keys once.
    embedding = 2 * config.vocab_size * config.hidden_size
    weights = 2 * sum(qwen.count(hf_config)) - embedding * (not config.tie_word_embeddings)
    state, keys = qwen.cache_bytes(config, a.story_tokens // 2, torch.bfloat16)
    bytes_per_second = a.bandwidth * 1e9 * a.decode_share
    decode = (weights + slots * (2 * state + keys)) / bytes_per_second  # seconds per step
    writing = policy / a.gpus / slots * a.story_tokens * decode
    learned = tokens + (policy + human) * c.max_prompt_tokens / 2
    learning = flops * learned / a.gpus / (a.tflops * 1e12 * a.train_share)
    print(f"\n{steps} steps, {steps * tokens / 1e6:.1f} M completion tokens of {a.story_tokens:,} per story")
    at = f"{slots / decode:.0f} tokens/s per GPU at {a.decode_share:.0%} of {a.bandwidth:g} GB/s"
    print(f"  writing {writing:.0f} s per step ({at})")
    at = f"{flops / 1e9:.1f} GFLOP counted per token, at {a.train_share:.0%} of {a.tflops:g} TFLOP/s"
    print(f"  learning {learning:.0f} s per step ({at})")
    hours, (calls, prompt) = steps * (writing + learning) / 3600, judging_of(c, a)
    paid = f", {hours * a.gpus * a.gpu_price:.0f} dollars of GPU" if a.gpu_price else ""
    print(f"  {hours:.1f} hours{paid}")
    read, told = (steps * calls * n / 1e6 for n in (prompt, a.verdict_tokens))  # millions of tokens
    dollars = read * a.judge_price[0] + told * a.judge_price[1]
    paid = f", {dollars:.0f} dollars" if any(a.judge_price) else "; give --judge_price IN OUT"
    print(f"  {steps * calls:,} judge calls, {read:.1f} M tokens in, {told:.1f} M out{paid}")


# ---- the report ------------------------------------------------------------


def show(c: train.Config, a: Settings, hf_config: dict, m: Memory, tokens: int):
    """Prints what is trained, on what, the memory by kind and phase, and that of serving the result."""
    (frozen, trained), config = qwen.count(hf_config, c.lora_rank), qwen.ModelConfig.from_hf(hf_config)
    total = frozen or trained  # LoRA adds nothing once it is merged
    kind = parallel.choose(c.parallel, shard=not c.lora_rank)[0] if a.gpus > 1 else "none"
    how = {"fsdp": "sharded", "hsdp": "sharded in each node"}.get(kind, "whole on each GPU")
    size = f"{total / 1e9:.2f} B parameters, {trained / 1e9:.2f} B trained"
    print(f"{c.model}: {size}; {a.gpus} x {a.gpu_memory:g} GB, {how}")
    deep = len(config.layer_types) > 2 * FEW
    shallow = f"; with {FEW} and {2 * FEW} layers, then a straight line" if deep else ""
    print(f"rehearsed on fake tensors, micro-batch of {tokens:,.0f} tokens{shallow}\n")
    print(f"{'GB per GPU, at its highest while it':36}{'writes':>8}{'learns':>8}")
    for kind in KINDS:
        both = [peak[kind] / 1e9 for peak in (m.writing, m.learning)]
        if max(both) >= 0.05:
            print(f"  {kind:34}" + "".join(f"{x:8.1f}" if x >= 0.05 else f"{'-':>8}" for x in both))
    writing, learning = m.writing.total() / 1e9, m.learning.total() / 1e9
    print(f"  {'all':34}{writing:8.1f}{learning:8.1f}")
    peak = f"peak {max(writing, learning):.1f} GB of {a.card / 1e9:.1f}"
    print(f"{peak}; {m.slots} slots of {m.slot / 1e6:.0f} MB")
    state, keys = qwen.cache_bytes(config, 1000, torch.bfloat16)
    weights = f"weights {2 * total / 1e9:.3g} GB in bf16, {4.5 / 8 * total / 1e9:.3g} GB at 4 bit"
    print(f"served: {weights}; per story {state / 1e6:.3g} MB + {keys / 1e6:.3g} MB per thousand tokens")


# ---- the command ------------------------------------------------------------


@exits_cleanly
def main(argv=None):
    line = parser(__doc__, epilog="All flags of train.py are understood as well.", allow_abbrev=False)
    add_fields(line, Settings, {})
    own, rest = line.parse_known_args(argv)
    a = check_ranges(Settings(**vars(own)))
    c = train.parse(rest if "--preset" in " ".join(rest) else ["--preset", "polaris-9b", *rest])
    train.check(replace(c, judge="offline"), a.gpus)
    here = c.model == train.Config.model and not Path(c.model).exists()  # no network for the 9B
    config = NINE_B if here else Path(huggingface.fetch(c.model, ["*.json"]), "config.json")
    hf_config = huggingface.read_json(config)
    examples = data.read_examples(c.data) if Path(c.data).exists() else []
    steps = c.steps if c.steps >= 0 else (len(examples) or a.examples) // c.prompts
    assumed = f"{c.data} does not exist yet: {a.examples:,} examples assumed, see --examples"
    print(data.describe(c.data, examples) if examples else assumed)
    rehearsed = memory(c, hf_config, a.gpus, a.gpus_per_node)
    m = fit(c, rehearsed, a.gpus, a.card)
    show(c, a, hf_config, m, rehearsed["work"]["tokens"])
    if m.fits:
        work(c, a, hf_config, m.slots, rehearsed["work"]["flops"], steps)
    else:
        print(f"does not fit; what helps: {advice(c, a, hf_config, rehearsed)}")
    return 0 if m.fits else 1


if __name__ == "__main__":
    sys.exit(main())
