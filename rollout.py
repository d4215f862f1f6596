"""Write stories: many at once, one token at a time, each as if it were alone.

A fixed number of slots decodes in step over static buffers. When a story ends, its slot takes the next
prompt, so short stories never wait for long ones (continuous batching, as in Orca, OSDI 2022). A prompt that
several stories share is read once and its state copied. The randomness of a story is a hash of (its seed,
position, token), added as Gumbel noise (Gumbel-max): the same story comes out whatever slot it is written in
and whatever is written beside it.

    stop = stop_ids(folder, tokenizer)
    stories = generate(model, [prompt_ids] * 8, max_new_tokens=400, seed=range(8), stop_ids=stop)
    python rollout.py --prompt "A lighthouse keeper finds a second moon" --words 120

Dimensions: n slots, one row each.
Left out: beam search, speculative decoding, paged caches (a slot's keys are one block of the planned length).
"""

import math
import sys
import time
from collections import deque
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
from tqdm import tqdm

import data
import model as qwen
from lib import huggingface, lora, onednn, processes
from lib.flags import exits_cleanly, opt, parse
from lib.packed import send
from lib.processes import free_bytes
from lib.sampling import Sampling, check_request, gumbel, keys_of, noise_size, pick
from model import ModelConfig, Qwen35, cache_bytes

EXTENT = 512  # tokens by which the part of the caches that a CUDA graph reads grows
CHECK_EVERY = 8  # steps between looks at the tokens: a look makes a GPU wait, a step past an end is wasted


@dataclass
class Completion:
    """One story as it was sampled. logprobs are those of the sampled tokens at the sampling temperature over
    the whole vocabulary, which `model.token_logprobs` recomputes at that temperature (greedy: at 1)."""

    ids: list[int] = field(default_factory=list)  # a stop token that ended it is kept
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False  # ended by a stop token; False: cut at max_new_tokens


# ---- the replica: what generation runs on ------------------------------------------


@torch.no_grad()
def replica(model: Qwen35, dtype=None, compile: bool = False, last: Qwen35 | None = None) -> Qwen35:
    """A copy of the model for generation only: shards gathered, LoRA merged, no gradients.

    dtype: of its weights (None: the model's own). compile: decode through torch.compile on a CPU (a GPU has
    its graphs); a minute or more at the first story. last: an earlier replica, which gets the present
    weights. Where the model is sharded every process must call it (gathering is collective).
    """
    weight, copy = model.embed_tokens.weight, last
    if copy is None:
        copy = fuse(qwen.empty(model.config, dtype or weight.dtype, weight.device).requires_grad_(False))
        copy.hf_config, copy.source, copy.prefix = model.hf_config, model.source, model.prefix
        if compile and weight.device.type == "cpu":
            copy.compiled = torch.compile(copy.blocks, dynamic=True)
    places = dict(copy.named_parameters())
    for name, tensor in lora.merged_tensors(model, lambda name: places[name].dtype):
        places[name].copy_(tensor)
    return pack(copy)


def fuse(model: Qwen35) -> Qwen35:
    """Makes projections of the same input one product, which is faster for the few rows of decoding: their
    weights lie side by side, and each keeps its name, as a view."""
    for module in [m for m in model.modules() if hasattr(m, "projections")]:
        parts = [getattr(module, name).weight for name in module.projections]
        module.fused = qwen.Linear(1, 1, device="meta")
        module.fused.weight = nn.Parameter(torch.cat(parts), requires_grad=False)
        views = module.fused.weight.data.split([len(part) for part in parts])
        for name, view in zip(module.projections, views):
            place = nn.Module()
            place.weight = nn.Parameter(view, requires_grad=False)
            setattr(module, name, place)
    return model


def pack(model: Qwen35) -> Qwen35:
    """Lets a model that is not trained multiply by weights in oneDNN's order, on a CPU that can."""
    if onednn.usable(model.embed_tokens.weight):
        model.lm_head = model.lm_head or onednn.PackedLinear(model.embed_tokens.weight)
        onednn.pack(model)
    return model


# ---- slots -------------------------------------------------------------------------


class Slots:
    """Static buffers for `n` stories written side by side. On a GPU one step is one CUDA graph, captured once
    for each extent (the part of the caches that attention reads, rounded up to EXTENT tokens)."""

    def __init__(self, model: Qwen35, n: int, max_len: int, sampling: Sampling):
        device, vocab = model.embed_tokens.weight.device, model.config.vocab_size
        self.model, self.sampling, self.device, self.n = model, sampling, device, n
        self.cache = model.new_cache(n, max_len)
        self.token, self.keys = (torch.zeros(n, dtype=torch.long, device=device) for _ in range(2))
        self.written = torch.zeros(n, dtype=torch.long, device=device)  # tokens of each story so far
        self.logp = torch.zeros(n, device=device)
        self.seen = torch.zeros(n, vocab, dtype=torch.bool, device=device) if sampling.penalises else None
        self.filled = [0] * n  # tokens in each slot's cache, known to the host
        self.prefilled = (None, None)  # the last prompt read, for its group's other members
        self.graphs, self.stream, self.pool = {}, None, None  # see `replay`

    def fill(self, slot: int, prompt: tuple[int, ...], key):
        """Starts a story in this slot, with its key of `keys_of`. The first step reads the last token."""
        ids = send(torch.tensor(prompt), self.device)
        if self.prefilled[0] != prompt:
            one = self.model.new_cache(1, len(prompt) - 1)
            if len(prompt) > 1:  # the state before a single token is the empty one
                self.model(ids[None, :-1], cache=one)
            self.prefilled = (prompt, one)
        self.cache.copy_row(self.prefilled[1], slot)
        self.token[slot].fill_(prompt[-1])  # `token[slot] = ...` would make the host wait for a GPU
        self.written[slot].fill_(0)
        self.keys[slot] = key
        if self.seen is not None:
            self.seen[slot].fill_(False).index_fill_(0, ids, True)
        self.filled[slot] = len(prompt) - 1

    def empty(self, slot: int):
        # An empty slot decodes on unread; at length 0 it writes over itself and never beyond the buffer.
        self.filled[slot] = 0
        self.cache.lengths[slot].fill_(0)

    def run(self, steps: int):
        """Decodes `steps` tokens in every slot -> ids and log-probs [n][steps]: the one wait for a GPU."""
        return [x.tolist() for x in self.decode(steps)]

    def decode(self, steps: int):
        """As `run`, with the results still on their device [n, steps]."""
        out = []
        for _ in range(steps):
            extent = max(self.filled) + 1
            if self.device.type == "cuda":
                self.replay(min(-(-extent // EXTENT) * EXTENT, self.cache.max_len))
            else:
                self.step(extent)
            self.filled = [f + 1 for f in self.filled]
            out.append((self.token.clone(), self.logp.clone()))
        return [torch.stack(x, 1) for x in zip(*out)]

    def step(self, extent: int):
        """One token in every slot; attention reads the first `extent` places of the caches."""
        if self.seen is not None:
            self.seen.scatter_(1, self.token[:, None], True)
        self.cache.extent = max(extent - 1, 1)  # the model adds the token under way; 0 would mean a prefill
        hidden = self.model(self.token[:, None], cache=self.cache)
        logits = self.model.logits(hidden[:, 0]).float()
        noise = gumbel(self.keys, self.written, noise_size(logits.shape[1]))
        token, logp = pick(logits, noise, self.sampling, self.seen)
        self.token.copy_(token)
        self.logp.copy_(logp)
        self.written += 1

    def replay(self, extent: int):
        """`step` as a CUDA graph. The first step at an extent runs as it is, which warms up every kernel on
        the stream of the capture; the second is captured (computing nothing), then replayed like the rest."""
        if not self.graphs:
            self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        if extent not in self.graphs:
            self.graphs[extent] = None
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(extent)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graphs[extent] is None:
            self.graphs[extent] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[extent], pool=self.pool, stream=self.stream):
                self.step(extent)
        self.graphs[extent].replay()


def plan_slots(model: Qwen35, stories: int, max_len: int, wanted: int) -> int:
    """How many slots to open. ValueError: not one fits, or fewer than asked for."""
    weight = model.embed_tokens.weight
    each = sum(cache_bytes(model.config, max_len, weight.dtype)) + 16 * model.config.vocab_size  # and logits
    free = int(0.9 * free_bytes(weight.device))  # the rest is for the prefill and for the allocator
    fits, least = free // each, min(wanted or 1, stories)
    if least > fits:
        need = f"{least} slot(s) of {max_len:,} tokens need {least * each / 1e9:.1f} GB"
        cure = "lower max_new_tokens, slots, or the replica's dtype"
        raise ValueError(f"{need} and {free / 1e9:.1f} GB are free, room for {fits}; {cure}")
    return min(stories, fits, wanted or 64)


# ---- generate ----------------------------------------------------------------------


@torch.inference_mode()
def stream(model, prompts, *, max_new_tokens, stop_ids=(), seed=0, slots=0, every=CHECK_EVERY, **sampling):
    """As `generate`, but yields (index, its Completion so far, whether it ended) whenever stories grow: after
    `every` tokens."""
    if not prompts:
        return
    prompts, seeds = check_request(model.config, prompts, max_new_tokens, seed)
    max_len = max(map(len, prompts)) + max_new_tokens
    decoder = Slots(model, plan_slots(model, len(prompts), max_len, slots), max_len, Sampling(**sampling))
    stories, keys = [Completion() for _ in prompts], send(keys_of(seeds), decoder.device)
    first = {}  # prompt -> its first index: stories that share a prompt are written together
    queue = deque(sorted(range(len(prompts)), key=lambda i: first.setdefault(prompts[i], i)))
    live = {}  # slot -> story
    while queue or live:
        for slot in range(decoder.n):
            if queue and slot not in live:
                live[slot] = i = queue.popleft()
                decoder.fill(slot, prompts[i], keys[i])
        room = min(max_new_tokens - len(stories[i].ids) for i in live.values())
        ids, logps = decoder.run(min(every, room))
        for slot, i in list(live.items()):
            extend(stories[i], i, ids[slot], logps[slot], stop_ids)
            ended = stories[i].finished or len(stories[i].ids) == max_new_tokens
            if ended:
                del live[slot]
                decoder.empty(slot)
            yield i, stories[i], ended


def extend(story: Completion, index: int, ids: list[int], logps: list[float], stop_ids):
    """Appends what belongs to the story, up to its stop token."""
    if any(math.isnan(x) for x in logps):
        where = f"the model gave NaN logits for prompt {index} after {len(story.ids)} tokens"
        why = "its weights have diverged or a dtype overflowed"
        raise ValueError(f"{where}; {why}: load an earlier checkpoint")
    end = next((j + 1 for j, token in enumerate(ids) if token in stop_ids), None)
    story.ids += ids[:end]
    story.logprobs += logps[:end]
    story.finished = end is not None


def generate(model: Qwen35, prompts, **request) -> list[Completion]:
    """Stories for prompts (lists of token ids), in the order of the prompts; equal prompts are read once.

    model: a Qwen35, or better a `replica` of it. max_new_tokens: required. temperature 1.0 (0: greedy), top_p
    1.0, top_k 0, min_p 0.0, repetition_penalty 1.0: the last four are off. stop_ids: tokens that end a story
    and stay in it. seed: one per prompt, on which alone its story depends, or an int from which each gets its
    own. slots: stories written at the same time (0: what memory allows, at most 64).

    No collective operation is used: processes may have different prompts and end at different times.
    ValueError: an impossible request, too little memory for one slot, NaN logits.
    """
    stories = [None] * len(prompts)
    for i, story, _ in stream(model, prompts, **request):
        stories[i] = story
    return stories


def write_rows(model, rows, tokenizer, seeds, stopping, *, thinking: bool, slots: int, **how):
    """Writes the completions of `rows` (Episodes with prompt_ids) into them; yields the index of each
    finished one. seeds: one per row. stopping: a list; what is in it ends this. how: as for `stream`."""
    prompts = [row.prompt_ids for row in rows]
    with tqdm(None, "  stories", len(rows), leave=False, mininterval=1, disable=not processes.MAIN) as bar:
        for i, done, ended in stream(model, prompts, seed=seeds, slots=slots, **how):
            if stopping:
                return
            if ended:
                row = rows[i]
                row.story = story_of(tokenizer.decode(done.ids), thinking)
                row.completion_ids, row.sampler_logprobs = done.ids, done.logprobs
                row.finished = done.finished
                bar.update()
                yield i


def story_of(text: str, thinking: bool) -> str:
    """What follows the thought. The prompt opened <think>: a story whose thought never closed is empty."""
    return data.without_thinking("<think>" * thinking + text)


def stop_ids(folder, tokenizer) -> tuple[int, ...]:
    """Every token that ends a story of this model: the tokenizer's <|im_end|> and <|endoftext|>, and what
    generation_config.json in `folder` names, where there is one. ValueError: that file is damaged."""
    found = [tokenizer.end_id, tokenizer.added["<|endoftext|>"]]
    path = Path(folder, "generation_config.json")
    named = huggingface.read_json(path).get("eos_token_id") if path.exists() else None
    found += named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys(found))


# ---- one story to the terminal -----------------------------------------------------


def newest_checkpoint() -> Path:
    """The checkpoint written last under out/, else the model that ships with the repository."""
    configs = Path("out").glob("*/checkpoints/step_*/config.json")
    newest = max(configs, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else Path(__file__).parent / "stories" / "tiny-base"


def thinks(config: ModelConfig) -> bool:
    """Whether a model thinks first: released ones do (hidden size 1024 and up), tiny ones never learned."""
    return config.hidden_size >= 1024


def open_writer(path, thinking: str = "auto"):
    """A checkpoint on this process's device -> (model, tokenizer, whether it thinks first), to write with."""
    device, tokenizer = processes.pick_device(), data.load_tokenizer(path)
    model = qwen.load(path, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    processes.choose_threads(sum(p.numel() for p in model.parameters()))
    pack(fuse(model.requires_grad_(False)))
    return model, tokenizer, thinks(model.config) if thinking == "auto" else thinking == "on"


@dataclass
class Settings(Sampling):
    prompt: str = opt("", "what the story is about", "story")
    words: int = opt(0, "how long it should be; added to the prompt as a sentence, 0: nothing", low=0)
    checkpoint: str = opt("", "folder or hub id; empty: newest under out/, else stories/tiny-base")
    seed: int = opt(0, "the same seed writes the same story")
    max_new_tokens: int = opt(0, "cut there; 0: ample for --words", low=0)
    thinking: Literal["auto", "on", "off"] = opt("auto", "auto: as the checkpoint was trained")
    temperature: float = opt(0.7, "0 is greedy", "sampling", low=0)
    min_p: float = opt(0.05, "least share of the likeliest token's probability; 0: off", low=0, high=1)


@exits_cleanly
def main(argv=None):
    a = parse(Settings, argv, "Write one story to the terminal, token by token.")
    if not a.prompt:
        raise ValueError("nothing to write about: pass --prompt")
    path = a.checkpoint or newest_checkpoint()
    model, tokenizer, thinking = open_writer(path, a.thinking)
    prompt = data.at_length(a.prompt, a.words) if a.words else a.prompt.strip()
    print(f"{path}\n{prompt}\n", file=sys.stderr)
    limit = a.max_new_tokens or 3 * (a.words or 500) + (4096 if thinking else 64)
    request = {f.name: getattr(a, f.name) for f in fields(Sampling)}
    request |= {"seed": a.seed, "max_new_tokens": limit, "every": 1}
    request["stop_ids"] = stop_ids(model.source, tokenizer)
    shown, start = 0, time.perf_counter()  # tokens
    for _, story, ended in stream(model, [tokenizer.chat(prompt, thinking)], **request):
        piece = tokenizer.decode(story.ids[shown:])
        if ended or not piece.endswith("\ufffd"):  # else a character still lacks its last bytes
            print(piece, end="", flush=True)
            shown = len(story.ids)
    seconds = time.perf_counter() - start
    written = data.words(story_of(tokenizer.decode(story.ids), thinking))
    asked = f"{a.words} requested" if a.words else "no length requested"
    why = "the story ended by itself" if story.finished else f"cut at {limit} tokens"
    print(f"\n\n{written} words written, {asked}, {len(story.ids) / seconds:.0f} tokens/s, {why}")


if __name__ == "__main__":
    sys.exit(main())
