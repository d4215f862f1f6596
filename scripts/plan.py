"""Memory, operations, hours and dollars of a run before it starts: no GPU, no weights, no network for the 9B.

The run is rehearsed: train.py's own set-up, two small updates, the sampler's decode steps and an update on
micro-batches of the longest rows run on fake tensors, as process 0 of N. Every storage is counted while it
lives, and the operations of every product. A deep model is rehearsed twice with few layers; memory and
operations are straight lines in their number. Hours are counted work divided by rates that you give.

    python -m scripts.plan                                                    # polaris-9b on 4 x A100-80GB
    python -m scripts.plan --gpus 1 --gpu_memory 141 --lora_rank 32 --bandwidth 4300 --tflops 800
    python -m scripts.plan --judge_price 1.25 10

All flags of train.py work beside the plan's own. Exit code 1: the plan cannot fit; it says what would help.
Left out: CUDA context, fragments and workspaces of kernels beyond --reserve, what CUDA graphs keep, the wait
for the last story of a step, the vision tower.
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


class Memory(NamedTuple):
    """What one process takes, in bytes by kind at the highest moment of each phase, and its work.

    writing: with one slot. slot: for each further one. learning: without replica and slots. flops: of an
    update, per token of the longest row. tokens: of the micro-batches rehearsed. waits: {phase: of the host
    for a device}. slots, fits: see `fit`.
    """

    writing: Counter
    slot: float
    learning: Counter
    flops: float
    tokens: int
    waits: Counter = Counter()
    slots: int = 1
    fits: bool = False


def line(few: Memory, twice: Memory, layers: int) -> Memory:
    """At `layers`, the straight line through a rehearsal of FEW layers and one of twice as many."""

    def at(a, b):
        if isinstance(a, Counter):
            return Counter({kind: at(a[kind], b[kind]) for kind in a | b})
        return a + (b - a) * (layers - FEW) / FEW

    return Memory(*map(at, few, twice))


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


def write(c, model, half: bool, ledger, prompt: int) -> tuple[Counter, float]:
    """Refresh and decode -> (peak with one slot, bytes of each further one)."""
    with ledger.booking("replica"):
        writer = model if c.lora_rank else rollout.replica(model, torch.bfloat16 if half else None)
    sampling = Sampling(c.temperature, c.top_p, c.top_k, 0.0, c.repetition_penalty)
    for n in (1, 3):
        ledger.enter(f"writing {n}")
        with ledger.booking("slots"):
            slots = rollout.Slots(writer, n, prompt + c.max_new_tokens, sampling)
        with ledger.booking("temporary"):
            for slot in range(n):
                slots.fill(slot, tuple([0] * prompt), slots.keys[slot])
            slots.decode(rollout.CHECK_EVERY)
        del slots
    one, three = ledger.peaks["writing 1"], ledger.peaks["writing 3"]
    return one, (three.total() - one.total()) / 2


def rehearse(c, hf_config: dict, world: int, node: int, half: bool = True, device: str = "cpu") -> Memory:
    """One process of `world` (`node` in a machine) from its start to its second update. half: what a GPU
    gets. device: the CPU serves where torch has no CUDA; its fake tensors are as large."""
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
        with ledger.booking("gathered"):  # DDP's buckets are as large as the gradients
            buckets = [torch.empty_like(p) for p in scorer.parameters() if p.requires_grad and is_ddp]
        settle = keep_books(ledger, scorer, optimiser)
        train.update(c, scorer, optimiser, episodes(32, 16, 1), reference)  # AdamW's state is made here
        settle()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            writing, slot = write(c, model, half, ledger, prompt)
        ledger.enter("learning")
        train.update(c, scorer, optimiser, episodes(longest, c.max_new_tokens, rows), reference)
        del buckets
    flops = ledger.flops["learning"] / (rows * longest)
    return Memory(writing, slot, ledger.peaks["learning"], flops, rows // 2 * longest, ledger.waits)


def deep(hf_config: dict) -> bool:
    return hf_config.get("text_config", hf_config)["num_hidden_layers"] > 2 * FEW


def memory(c: train.Config, hf_config: dict, world: int, node: int) -> Memory:
    """`rehearse`, for a deep model from two shallow ones."""
    if not deep(hf_config):
        return rehearse(c, hf_config, world, node)
    few, text = [], hf_config.get("text_config", hf_config)
    for n in (FEW, 2 * FEW):
        shallow = text | {"num_hidden_layers": n, "layer_types": text.get("layer_types", [])[:n]}
        few.append(rehearse(c, hf_config | {"text_config": shallow}, world, node))
    return line(*few, text["num_hidden_layers"])


def fit(c: train.Config, m: Memory, world: int, card: float) -> Memory:
    """The same with as many slots as rollout.plan_slots would open on a card of `card` bytes."""
    stories = -(-c.prompts * c.group // world)
    before = m.writing.total() - m.slot
    slots = max(0, min(stories, c.slots or 64, int(0.9 * (card - before) // m.slot)))
    writing = m.writing + Counter(slots=(max(slots, 1) - 1) * m.slot)
    learning = m.learning + Counter(replica=c.keep_replica * writing["replica"])
    fits = slots > 0 and max(writing.total(), learning.total()) <= card
    return m._replace(writing=writing, learning=learning, slots=slots, fits=fits)


def advice(c: train.Config, a, hf_config: dict, m: Memory) -> str:
    """Single changes that would make the plan fit, up to three: each is rehearsed, none is guessed."""
    shorter = c.max_new_tokens // 2
    changes = [{"max_new_tokens": shorter, "micro_batch_tokens": shorter}]
    if not c.lora_rank:
        changes += [{"lora_rank": 32, "parallel": "auto"}, {"gpus": 2 * a.gpus}, {"gpus": 4 * a.gpus}]
    changes += [{"checkpointing": True}, {"keep_replica": False}]
    good = ["cards of twice the memory"] if fit(c, m, a.gpus, 2 * a.card).fits else []
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


def cache_bytes(config: qwen.ModelConfig, tokens: int) -> tuple[int, int]:
    """Of one story in bf16: (DeltaNet states and windows of any length, keys and values of `tokens`)."""
    start = rollout.slot_bytes(config, 0, 2)
    return start - 16 * config.vocab_size, rollout.slot_bytes(config, tokens, 2) - start


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


def work(c: train.Config, a: Settings, hf_config: dict, m: Memory, steps: int):
    """Prints hours and dollars: counted work divided by the given rates."""
    config = qwen.ModelConfig.from_hf(hf_config)
    policy, human = c.prompts * c.group, c.prompts * (c.hri != "off")
    tokens = (policy + human) * a.story_tokens
    # Decoding reads all weights once per step, and each slot's states twice and half of its keys once.
    embedding = 2 * config.vocab_size * config.hidden_size
    weights = 2 * sum(qwen.count(hf_config)) - embedding * (not config.tie_word_embeddings)
    state, keys = cache_bytes(config, a.story_tokens // 2)
    bytes_per_second = a.bandwidth * 1e9 * a.decode_share
    decode = (weights + m.slots * (2 * state + keys)) / bytes_per_second  # seconds per step
    writing = policy / a.gpus / m.slots * a.story_tokens * decode
    learned = tokens + (policy + human) * c.max_prompt_tokens / 2
    learning = m.flops * learned / a.gpus / (a.tflops * 1e12 * a.train_share)
    print(f"\n{steps} steps, {steps * tokens / 1e6:.1f} M completion tokens of {a.story_tokens:,} per story")
    at = f"{m.slots / decode:.0f} tokens/s per GPU at {a.decode_share:.0%} of {a.bandwidth:g} GB/s"
    print(f"  writing {writing:.0f} s per step ({at})")
    at = f"{m.flops / 1e9:.1f} GFLOP counted per token, at {a.train_share:.0%} of {a.tflops:g} TFLOP/s"
    print(f"  learning {learning:.0f} s per step ({at})")
    hours, (calls, prompt) = steps * (writing + learning) / 3600, judging_of(c, a)
    paid = f", {hours * a.gpus * a.gpu_price:.0f} dollars of GPU" if a.gpu_price else ""
    print(f"  {hours:.1f} hours{paid}")
    read, told = (steps * calls * n / 1e6 for n in (prompt, a.verdict_tokens))  # millions of tokens
    dollars = read * a.judge_price[0] + told * a.judge_price[1]
    paid = f", {dollars:.0f} dollars" if any(a.judge_price) else "; give --judge_price IN OUT"
    print(f"  {steps * calls:,} judge calls, {read:.1f} M tokens in, {told:.1f} M out{paid}")


# ---- the report ------------------------------------------------------------


def serving(hf_config: dict) -> str:
    """Memory of the trained model behind a server; 4 bit takes about 4.5 bits per weight, scales included."""
    total = sum(qwen.count(hf_config))
    state, keys = cache_bytes(qwen.ModelConfig.from_hf(hf_config), 1000)
    weights = f"weights {2 * total / 1e9:.3g} GB in bf16, {4.5 / 8 * total / 1e9:.3g} GB at 4 bit"
    return f"served: {weights}; per story {state / 1e6:.3g} MB + {keys / 1e6:.3g} MB per thousand tokens"


def show(c: train.Config, a: Settings, hf_config: dict, m: Memory):
    """Prints what is trained, on what, and the memory by kind and phase."""
    frozen, trained = qwen.count(hf_config, c.lora_rank)
    kind = parallel.choose(c.parallel, shard=not c.lora_rank)[0] if a.gpus > 1 else "none"
    how = {"fsdp": "sharded", "hsdp": "sharded in each node"}.get(kind, "whole on each GPU")
    size = f"{(frozen or trained) / 1e9:.2f} B parameters, {trained / 1e9:.2f} B trained"
    print(f"{c.model}: {size}; {a.gpus} x {a.gpu_memory:g} GB, {how}")
    shallow = f"; with {FEW} and {2 * FEW} layers, then a straight line" if deep(hf_config) else ""
    print(f"rehearsed on fake tensors, micro-batch of {m.tokens:,.0f} tokens{shallow}\n")
    print(f"{'GB per GPU, at its highest while it':36}{'writes':>8}{'learns':>8}")
    for kind in KINDS:
        both = [peak[kind] / 1e9 for peak in (m.writing, m.learning)]
        if max(both) >= 0.05:
            print(f"  {kind:34}" + "".join(f"{x:8.1f}" if x >= 0.05 else f"{'-':>8}" for x in both))
    writing, learning = m.writing.total() / 1e9, m.learning.total() / 1e9
    print(f"  {'all':34}{writing:8.1f}{learning:8.1f}")
    peak = f"peak {max(writing, learning):.1f} GB of {a.card / 1e9:.1f}"
    print(f"{peak}; {m.slots} slots of {m.slot / 1e6:.0f} MB")
    print(serving(hf_config))


# ---- the command ------------------------------------------------------------


def read_flags(argv=None) -> tuple[Settings, list[str]]:
    """(the plan's own flags, what is left for train.py)"""
    line = parser(__doc__, epilog="All flags of train.py are understood as well.", allow_abbrev=False)
    add_fields(line, Settings, {})
    own, rest = line.parse_known_args(argv)
    return check_ranges(Settings(**vars(own))), rest


@exits_cleanly
def main(argv=None):
    a, rest = read_flags(argv)
    c = train.parse(rest if "--preset" in " ".join(rest) else ["--preset", "polaris-9b", *rest])
    train.check(replace(c, judge="offline"), a.gpus)
    here = c.model == train.Config.model and not Path(c.model).exists()  # no network for the 9B
    config = NINE_B if here else Path(huggingface.fetch(c.model, ["*.json"]), "config.json")
    hf_config = huggingface.read_json(config)
    examples = data.read_examples(c.data) if Path(c.data).exists() else []
    steps = c.steps if c.steps >= 0 else (len(examples) or a.examples) // c.prompts
    assumed = f"{c.data} does not exist yet: {a.examples:,} examples assumed, see --examples"
    print(data.describe(c.data, examples) if examples else assumed)
    one_slot = memory(c, hf_config, a.gpus, a.gpus_per_node)
    m = fit(c, one_slot, a.gpus, a.card)
    show(c, a, hf_config, m)
    if m.fits:
        work(c, a, hf_config, m, steps)
    else:
        print(f"does not fit; what helps: {advice(c, a, hf_config, one_slot)}")
    return 0 if m.fits else 1


if __name__ == "__main__":
    sys.exit(main())
