"""Write stories: many at once, one token at a time, each as if it stood alone.

A fixed number of slots decodes in step over static buffers. When a story ends, its slot takes the next prompt, so short
stories never wait for long ones (continuous batching, as in Orca, OSDI 2022). A prompt that several stories share is
read once and its state copied. The randomness of a story is a hash of (its seed, position, token), added as Gumbel noise
(Gumbel-max): the same story comes out whatever slot it sat in and whoever wrote beside it.

    completions = generate(model, [prompt_ids] * 8, max_new_tokens=400, seed=range(8), stop_ids=[tokenizer.end_id])
    python rollout.py --prompt "A lighthouse keeper finds a second moon" --words 120

Left out: beam search, speculative decoding, paged caches (a slot's keys are one block of the planned length).
"""
from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch

import data
from model import Linear, Qwen35, cast, load, named_tensors

EXTENT = 512     # tokens by which the part of the caches that a CUDA graph reads grows
CHECK_EVERY = 8  # steps between two looks at what was written: each look makes a GPU wait, each step past an end is wasted


@dataclass
class Completion:
    """One story as it was sampled. logprobs are those of the sampled tokens at the sampling temperature over the whole
    vocabulary, which is what `model.token_logprobs(..., temperature)` recomputes (greedy: at temperature 1)."""
    ids: list[int] = field(default_factory=list)          # a stop token that ended it is kept
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False                                # ended by a stop token; False: cut at max_new_tokens
    processed: list[float] | None = None                  # under the truncated or penalised distribution, where there was one


@dataclass
class Sampling:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and not above 1 (1 keeps every token)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or a positive count")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must be at least 0 (off) and below 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be positive (1 is off)")
        self.truncates = self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)
        self.penalises = self.repetition_penalty != 1


# ---------------------------------------------------------------------------------------------------------------------
# The replica: what generation runs on

def replica(model: Qwen35, dtype=None, compile: bool = False) -> Qwen35:
    """A copy of the model for generation only: fused projections, no gradients, one address a weight for good.

    dtype: of its weights (None: the model's own). compile: decode through torch.compile on a CPU (a GPU has its graphs);
    a minute or more at the first story. Under FSDP every rank must call it, as with `refresh`.
    """
    weight = model.embed_tokens.weight
    with torch.device("meta"):
        copy = Qwen35(model.config, fused=True)
    cast(copy, dtype or weight.dtype).requires_grad_(False)
    copy.to_empty(device=weight.device)
    copy.hf_config, copy.source, copy.prefix = model.hf_config, model.source, model.prefix
    copy.compiled = torch.compile(copy.blocks, dynamic=True) if compile and weight.device.type == "cpu" else None
    return refresh(copy, model)


@torch.no_grad()
def refresh(copy: Qwen35, model: Qwen35) -> Qwen35:
    """Copies the model's present weights into its replica, one parameter at a time: shards are gathered, LoRA merged.
    Under FSDP every rank must call it (gathering is collective); nothing after it waits for another rank."""
    for name, tensor in named_tensors(model):
        copy.place(name).copy_(tensor)
    return pack(copy)


def pack(copy: Qwen35) -> Qwen35:
    """On a CPU keeps each weight a second time, in oneDNN's blocked order, which a product with few rows reads up to 2.8 x
    faster than MKL reads plain rows. Elsewhere does nothing."""
    if copy.embed_tokens.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        linears = [module for module in copy.layers.modules() if isinstance(module, Linear)]
        for weight in [module.weight for module in linears] + [copy.head_weight()]:
            weight.packed = torch.ops.mkldnn._reorder_linear_weight(weight.data)
        for module in [copy, *linears]:
            module.packed = True
    return copy


# ---------------------------------------------------------------------------------------------------------------------
# Sampling

GOLDEN, MIX_1, MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def gumbel(keys_B, position_B, n: int):
    """Gumbel noise [B, n] fp32 that depends on (key, position, column) alone: splitmix64 as a counter-based generator."""
    x = position_B[:, None] * n + torch.arange(n, device=keys_B.device)
    x = (x + 1) * GOLDEN + keys_B[:, None]
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor  # the mask makes torch's arithmetic shift a logical one
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    u = (((x >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2 ** 53
    return -torch.log(-torch.log(u)).float()


def block_size(vocab: int) -> int:
    """The divisor of the vocabulary nearest above its root: 512 of 248,320 and 64 of 4,096."""
    return next(b for b in range(math.isqrt(vocab - 1) + 1, vocab + 1) if vocab % b == 0)


def draw(z_BV, noise):
    """Samples softmax(z) exactly, with noise for a block and for a token within it instead of one for each of V tokens.
    Returns token [B] and logsumexp [B], which the block sums give for nothing. noise: [B, V / b + b]."""
    B, V = z_BV.shape
    b = block_size(V)
    blocks = z_BV.view(B, V // b, b)
    lse = blocks.logsumexp(-1)
    block = (lse + noise[:, :V // b]).argmax(-1)
    within = blocks[torch.arange(B, device=z_BV.device), block] + noise[:, V // b:]
    return block * b + within.argmax(-1), lse.logsumexp(-1)


def truncate(z_BV, s: Sampling):
    """-inf for what top-k, top-p and min-p leave out, in Hugging Face's order; at least one token stays."""
    if s.top_k:
        top = z_BV.topk(min(s.top_k, z_BV.shape[-1])).values
        z_BV = z_BV.masked_fill(z_BV < top[:, -1:], -math.inf)
    if s.top_p < 1:
        top = top if s.top_k else z_BV.sort(descending=True).values
        p = top.softmax(-1)
        last = ((p.cumsum(-1) - p) < s.top_p).sum(-1, keepdim=True).clamp(min=1) - 1
        z_BV = z_BV.masked_fill(z_BV < top.gather(-1, last), -math.inf)
    if s.min_p:
        z_BV = z_BV.masked_fill(z_BV < z_BV.amax(-1, keepdim=True) + math.log(s.min_p), -math.inf)
    return z_BV


def pick(logits_BV, noise, s: Sampling, seen_BV=None):
    """One token a row -> token [B], its log-prob [B] at the temperature, and its log-prob [B] as really sampled."""
    heat = s.temperature or 1.0
    raw = logits_BV if heat == 1 else logits_BV / heat
    bent = raw
    if s.penalises:
        factor = torch.where(raw > 0, 1 / s.repetition_penalty, s.repetition_penalty)
        bent = torch.where(seen_BV, raw * factor, raw)
    if s.truncates:
        bent = truncate(bent, s)
    token, lse = draw(bent, noise) if s.temperature else (bent.argmax(-1), bent.logsumexp(-1))
    processed = bent.gather(-1, token[:, None])[:, 0] - lse
    logp = processed if bent is raw else raw.gather(-1, token[:, None])[:, 0] - raw.logsumexp(-1)
    return token, logp, processed


# ---------------------------------------------------------------------------------------------------------------------
# Slots

class Slots:
    """Static buffers for `n` stories written side by side. On a GPU one step is one CUDA graph, captured once for each
    extent (the part of the caches that attention reads, rounded up to EXTENT tokens)."""

    def __init__(self, model: Qwen35, n: int, max_len: int, sampling: Sampling):
        device, vocab = model.embed_tokens.weight.device, model.config.vocab_size
        zeros = lambda dtype, *shape: torch.zeros(*shape, dtype=dtype, device=device)
        self.model, self.sampling, self.device = model, sampling, device
        self.cache = model.new_cache(n, max_len)
        self.token, self.keys, self.written = (zeros(torch.long, n) for _ in range(3))  # written: tokens of each story so far
        self.logp, self.processed = zeros(torch.float32, n), zeros(torch.float32, n)
        self.noise = zeros(torch.float32, n, vocab // block_size(vocab) + block_size(vocab))
        self.seen = zeros(torch.bool, n, vocab) if sampling.penalises else None
        self.filled = [0] * n                # tokens in each slot's cache, known to the host
        self.prefilled = (None, None)        # the last prompt read, for its group's other members
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def fill(self, slots: list[int], prompt: tuple[int, ...], seeds: list[int]):
        """Starts stories in these slots, all from one prompt. Its last token is left for the first decode step."""
        if self.prefilled[0] != prompt:
            ids = torch.tensor([prompt[:-1] or [0]], device=self.device)
            one = self.model.new_cache(1, ids.shape[1])
            self.model(ids, torch.tensor([len(prompt) - 1], device=self.device), cache=one)
            self.prefilled = (prompt, one)
        at = torch.tensor(slots, device=self.device)
        self.cache.copy_rows(self.prefilled[1], torch.zeros_like(at), at)
        self.token[at], self.written[at] = prompt[-1], 0
        self.keys[at] = torch.tensor([key_of(s) for s in seeds], device=self.device)
        if self.seen is not None:
            self.seen[at] = False
            self.seen[at[:, None], torch.tensor(prompt, device=self.device)] = True
        for slot in slots:
            self.filled[slot] = len(prompt) - 1

    def empty(self, slot: int):
        # Nobody reads an empty slot; at length 0 it writes over itself and never beyond the buffer.
        self.filled[slot] = 0
        self.cache.lengths[slot] = 0

    def run(self, steps: int):
        """Decodes `steps` tokens in every slot -> ids, log-probs and processed log-probs, each a list [steps][n].
        Nothing waits for a GPU before the last line."""
        positions = (self.written[None] + torch.arange(steps, device=self.device)[:, None]).flatten()
        noise = gumbel(self.keys.repeat(steps), positions, self.noise.shape[1]).view(steps, *self.noise.shape)
        out = []
        for i in range(steps):
            self.noise.copy_(noise[i])
            extent = max(self.filled) + 1
            if self.device.type == "cuda":
                self.replay(min(-(-extent // EXTENT) * EXTENT, self.cache.max_len))
            else:
                self.step(extent)
            self.filled = [f + 1 for f in self.filled]
            out.append((self.token.clone(), self.logp.clone(), self.processed.clone()))
        self.written += steps
        return [torch.stack(x).tolist() for x in zip(*out)]

    def step(self, extent: int):
        """One token in every slot; attention reads the first `extent` places of the caches."""
        if self.seen is not None:
            self.seen.scatter_(1, self.token[:, None], True)
        self.cache.extent = max(extent - 1, 1)  # the model adds the token under way; 0 would mean a prefill
        hidden = self.model(self.token[:, None], cache=self.cache)
        picked = pick(self.model.logits(hidden[:, 0]).float(), self.noise, self.sampling, self.seen)
        for buffer, x in zip((self.token, self.logp, self.processed), picked):
            buffer.copy_(x)

    def replay(self, extent: int):
        """`step` as a CUDA graph. The first step at an extent runs as it is, which warms up every kernel; the second is
        captured (which computes nothing) and then replayed, as are all that follow."""
        if extent not in self.graphs:
            self.graphs[extent] = None
            return self.step(extent)
        if self.graphs[extent] is None:
            self.graphs[extent] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[extent], pool=self.pool):
                self.step(extent)
        self.graphs[extent].replay()


def key_of(seed: int) -> int:
    """Spreads a seed over 64 bits (signed), so that neighbouring seeds share nothing."""
    x = (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> shift)) * factor % (1 << 64)
    return x - (1 << 64) if x >> 63 else x


# ---------------------------------------------------------------------------------------------------------------------
# Memory, planned before anything starts

def slot_bytes(config, max_len: int, itemsize: int) -> int:
    """What one slot holds: keys and values of max_len tokens, conv windows, fp32 states, and its logits while sampling."""
    c = config
    full = sum(kind == "full_attention" for kind in c.layer_types)
    conv = 2 * c.linear_num_key_heads * c.linear_key_head_dim + c.linear_num_value_heads * c.linear_value_head_dim
    state = 4 * c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim
    return (full * 2 * max_len * c.num_key_value_heads * c.head_dim * itemsize
            + (len(c.layer_types) - full) * ((c.linear_conv_kernel_dim - 1) * conv * itemsize + state)
            + 4 * 4 * c.vocab_size)


def free_bytes(device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def plan_slots(model: Qwen35, stories: int, max_len: int, wanted: int | None) -> int:
    """How many slots to open. ValueError: not one fits, or fewer than asked for."""
    weight = model.embed_tokens.weight
    each = slot_bytes(model.config, max_len, weight.element_size())
    free = int(0.9 * free_bytes(weight.device))  # the rest is for activations of the prefill and for the allocator
    fits = free // each
    if fits < 1 or wanted is not None and min(wanted, stories) > fits:
        raise ValueError(f"{min(wanted or 1, stories)} slot(s) of {max_len:,} tokens need {min(wanted or 1, stories) * each / 1e9:.1f} GB "
                         f"and {free / 1e9:.1f} GB are free, room for {fits}; lower max_new_tokens, slots, or the replica's dtype")
    return min(stories, fits, wanted or 64)


# ---------------------------------------------------------------------------------------------------------------------
# Generate

@torch.inference_mode()
def stream(model: Qwen35, prompts_ids, *, max_new_tokens: int, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
           repetition_penalty=1.0, stop_ids=(), seed=0, slots: int | None = None, check_every: int = CHECK_EVERY):
    """As `generate`, but yields (index, its Completion so far, whether it ended) whenever stories have grown."""
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    prompts, stop, seeds = check_request(model, prompts_ids, max_new_tokens, stop_ids, seed, slots)
    if not prompts:
        return
    if not hasattr(model.layers[0].mlp, "gate_up_proj"):
        model = replica(model)
    elif not model.packed:
        pack(model)  # loaded as fused, not through `replica`
    max_len = max(map(len, prompts)) + max_new_tokens
    n = plan_slots(model, len(prompts), max_len, slots)
    decoder = Slots(model, n, max_len, sampling)
    stories = [Completion(processed=[] if sampling.truncates or sampling.penalises else None) for _ in prompts]
    first = {}
    queue = deque(sorted(range(len(prompts)), key=lambda i: first.setdefault(prompts[i], i)))  # a group stands together
    live = {}  # slot -> story
    while queue or live:
        vacant = [slot for slot in range(n) if slot not in live]
        while vacant and queue:
            prompt, group = prompts[queue[0]], []
            while vacant and queue and prompts[queue[0]] == prompt:
                group.append((vacant.pop(0), queue.popleft()))
            decoder.fill([slot for slot, _ in group], prompt, [seeds[i] for _, i in group])
            live |= dict(group)
        steps = min(check_every, min(max_new_tokens - len(stories[i].ids) for i in live.values()))
        ids, logps, processed = decoder.run(steps)
        for slot, i in list(live.items()):
            ended = extend(stories[i], i, [row[slot] for row in ids], [row[slot] for row in logps],
                           [row[slot] for row in processed], stop, max_new_tokens)
            if ended:
                del live[slot]
                decoder.empty(slot)
            yield i, stories[i], ended


def extend(story: Completion, index: int, ids, logps, processed, stop, max_new_tokens: int) -> bool:
    """Appends what belongs to the story, up to its stop token -> whether it ended."""
    if any(math.isnan(x) for x in logps):
        raise ValueError(f"the model gave NaN logits for prompt {index} after {len(story.ids)} tokens; its weights have diverged "
                         "or a dtype overflowed: load an earlier checkpoint")
    end = next((j + 1 for j, token in enumerate(ids) if token in stop), None)
    story.ids += ids[:end]
    story.logprobs += logps[:end]
    if story.processed is not None:
        story.processed += processed[:end]
    story.finished = end is not None
    return story.finished or len(story.ids) == max_new_tokens


def check_request(model, prompts_ids, max_new_tokens, stop_ids, seed, slots):
    """Everything that can be wrong with a request, said before anything is computed."""
    config = model.config
    prompts = [tuple(int(t) for t in p) for p in prompts_ids]
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; a story needs at least 1 token")
    if slots is not None and slots < 1:
        raise ValueError(f"slots is {slots}; at least 1 is needed (None plans them from memory)")
    for token in stop_ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"stop token {token} lies outside the vocabulary of {config.vocab_size}; it belongs to another tokenizer")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty; a story starts from at least 1 token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(f"prompt {i} holds token {min(prompt) if min(prompt) < 0 else max(prompt)}, outside the vocabulary "
                             f"of {config.vocab_size}; it belongs to another tokenizer")
        if len(prompt) + max_new_tokens > config.max_position_embeddings:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} more are asked for, but the model reaches "
                             f"{config.max_position_embeddings}; shorten the prompt or lower max_new_tokens")
    seeds = [seed * 1_000_003 + i for i in range(len(prompts))] if isinstance(seed, int) else [int(s) for s in seed]
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one a prompt, or a single number")
    return prompts, frozenset(stop_ids), seeds


def generate(model: Qwen35, prompts_ids, *, on_finish=None, **request) -> list[Completion]:
    """Stories for prompts (lists of token ids), in the order of the prompts; equal prompts are read once.

    model: a Qwen35, or better a `replica` of it (made anew for this call otherwise).
    max_new_tokens (required); temperature 1.0 (0: greedy); top_p 1.0, top_k 0, min_p 0.0, repetition_penalty 1.0 (all off);
    stop_ids: tokens that end a story and stay in it; seed: one a prompt, on which alone its story depends, or an int from which each gets its own;
    slots: how many are written at a time (None: what memory allows, at most 64);
    on_finish(index, completion) is called as each story ends, so that it can be judged while others are being written.
    No collective operation is used: ranks may have different prompts and end at different times.
    ValueError: an impossible request, too little memory for one slot, NaN logits.
    """
    stories = [None] * len(prompts_ids)
    for i, story, ended in stream(model, prompts_ids, **request):
        stories[i] = story
        if ended and on_finish is not None:
            on_finish(i, story)
    return stories


# ---------------------------------------------------------------------------------------------------------------------
# One story to the terminal

def newest_checkpoint() -> Path:
    """The checkpoint written last under out/, else the model that ships with the repository."""
    found = [p for p in Path("out").glob("*/checkpoints/step_*") if (p / "config.json").exists()]
    return max(found, key=lambda p: (p / "config.json").stat().st_mtime, default=Path(__file__).parent / "stories" / "tiny-base")


def thinks(model: Qwen35) -> bool:
    """Whether a checkpoint is meant to think first: what its config.json says under "thinking", else by size, since released
    models (hidden size 1024 and up) do and the tiny one never learned to."""
    return bool((model.hf_config or {}).get("thinking", model.config.hidden_size >= 1024))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write one story to the terminal, token by token.")
    parser.add_argument("--prompt", required=True, help="what the story is about")
    parser.add_argument("--words", type=int, help="how long it should be; added to the prompt as a sentence")
    parser.add_argument("--checkpoint", help="folder or hub id (default: newest under out/, else stories/tiny-base)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--min_p", type=float, default=0.05)
    parser.add_argument("--repetition_penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same story")
    parser.add_argument("--max_new_tokens", type=int, help="cut there (default: ample for --words)")
    parser.add_argument("--thinking", choices=("auto", "on", "off"), default="auto", help="auto: as the checkpoint was trained")
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)  # strong decays fill the delta rule with denormals, up to 12 x slower on a CPU
    try:
        write(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(args):
    if args.words is not None and args.words < 1:
        raise ValueError(f"--words is {args.words}; a story has at least 1 word")
    path = args.checkpoint or newest_checkpoint()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = data.load_tokenizer(path)
    model = load(path, torch.bfloat16 if device == "cuda" else torch.float32, device, fused=True)
    if device == "cpu" and model.config.hidden_size < 1024:
        torch.set_num_threads(1)  # one row of a small model gains nothing from more, and on a busy machine their waiting costs it 50 x
    thinking = thinks(model) if args.thinking == "auto" else args.thinking == "on"
    prompt = args.prompt.strip()
    if args.words:
        prompt += ("" if prompt.endswith((".", "!", "?")) else ".") + f" It should be {args.words} words long."
    limit = args.max_new_tokens or 3 * (args.words or 500) + (4096 if thinking else 64)
    print(f"{path}: {prompt}\n", file=sys.stderr)

    pending, text, done, start = [], "", 0, time.perf_counter()
    for _, story, ended in stream(model, [tokenizer.chat(prompt, thinking)], max_new_tokens=limit, check_every=1,
                                  temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, min_p=args.min_p,
                                  repetition_penalty=args.repetition_penalty, stop_ids=[tokenizer.end_id], seed=args.seed):
        pending += story.ids[done:]
        done = len(story.ids)
        piece = tokenizer.decode(pending)
        if piece.endswith("\ufffd") and not ended:
            continue  # a character may still lack its last bytes
        print(piece, end="", flush=True)
        text, pending = text + piece, []
    seconds = time.perf_counter() - start
    written = data.words(data.split_thinking(("<think>" if thinking else "") + text)[1])
    asked = f"{args.words} requested" if args.words else "no length requested"
    why = "the story ended by itself" if story.finished else f"cut at {limit} tokens"
    print(f"\n\n{written} words written, {asked}, {done / seconds:.0f} tokens/s, {why}")


if __name__ == "__main__":
    sys.exit(main())
