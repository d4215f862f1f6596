"""Write stories: many at once, one token at a time, each as if it were alone.

A fixed number of slots decodes in step over static buffers. When a story ends, its slot takes the next
prompt, so short stories never wait for long ones (continuous batching, as in Orca, OSDI 2022). A prompt that
several stories share is read once and its state copied. The randomness of a story is a hash of (its seed,
position, token), added as Gumbel noise (Gumbel-max): the same story comes out whatever slot it is written in
and whatever is written beside it.

    stop = stop_ids(folder, tokenizer)
    stories = generate(model, [prompt_ids] * 8, max_new_tokens=400, seed=range(8), stop_ids=stop)
    python rollout.py --prompt "A lighthouse keeper finds a second moon" --words 120
    python rollout.py --chat

Dimensions: n slots, one row each.
Left out: beam search, speculative decoding, paged caches (a slot's keys are one block of the planned length).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

import data
import model as qwen
from lib import huggingface, lora, onednn, processes
from lib.flags import exits_cleanly
from lib.packed import send
from lib.processes import free_bytes
from lib.sampling import Sampling, block_size, check_request, gumbel, keys_of, pick
from model import Qwen35, slot_bytes

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


def replica(model: Qwen35, dtype=None, compile: bool = False, last: Qwen35 | None = None) -> Qwen35:
    """A copy of the model for generation only: fused projections, no gradients, lasting addresses of weights.

    dtype: of its weights (None: the model's own). compile: decode through torch.compile on a CPU (a GPU has
    its graphs); a minute or more at the first story. last: an earlier replica, refreshed instead. Where the
    model is sharded every process must call it, as with `refresh`.
    """
    if last:
        return refresh(last, model)
    weight = model.embed_tokens.weight
    copy = qwen.empty(model.config, dtype or weight.dtype, weight.device, fused=True).requires_grad_(False)
    copy.hf_config, copy.source, copy.prefix = model.hf_config, model.source, model.prefix
    if compile and weight.device.type == "cpu":
        copy.compiled = torch.compile(copy.blocks, dynamic=True)
    return refresh(copy, model)


@torch.no_grad()
def refresh(copy: Qwen35, model: Qwen35) -> Qwen35:
    """Copies the model's present weights into its replica, one parameter at a time: shards gathered, LoRA
    merged. Where the model is sharded every process must call it (gathering is collective)."""
    for name, tensor in lora.merged_tensors(model, lambda name: copy.place(name).dtype):
        copy.place(name).copy_(tensor)
    return pack(copy)


def pack(copy: Qwen35) -> Qwen35:
    """Lets a replica multiply by weights in oneDNN's order, on a CPU that can; elsewhere a no-op."""
    if onednn.usable(copy.embed_tokens.weight):
        if copy.lm_head is None:
            copy.lm_head = onednn.PackedLinear(copy.embed_tokens.weight)
        onednn.pack(copy)
    return copy


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
        self.noise = torch.zeros(n, vocab // block_size(vocab) + block_size(vocab), device=device)
        self.seen = torch.zeros(n, vocab, dtype=torch.bool, device=device) if sampling.penalises else None
        self.filled = [0] * n  # tokens in each slot's cache, known to the host
        self.prefilled = (None, None)  # the last prompt read, for its group's other members
        self.asked = None  # the request they were planned for (see `slots_of`)
        self.graphs, self.stream, self.pool = {}, None, None  # see `replay`

    def reset(self):
        """All slots empty, nothing read: the weights may have changed."""
        self.filled, self.prefilled = [0] * self.n, (None, None)
        self.cache.lengths.zero_()

    def fill(self, slots: list[int], prompt: tuple[int, ...], seeds: list[int]):
        """Starts stories in these slots, all from one prompt. The first decode step reads its last token."""
        ids = send(torch.tensor(prompt), self.device)
        if self.prefilled[0] != prompt:
            one = self.model.new_cache(1, len(prompt) - 1)
            if len(prompt) > 1:  # the state before a single token is the empty one
                self.model(ids[None, :-1], cache=one)
            self.prefilled = (prompt, one)
        at = send(torch.tensor(slots), self.device)
        self.cache.copy_rows(self.prefilled[1], torch.zeros_like(at), at)
        self.token[at], self.written[at] = prompt[-1], 0
        self.keys[at] = send(keys_of(seeds), self.device)
        if self.seen is not None:
            self.seen[at] = False
            self.seen[at[:, None], ids] = True
        for slot in slots:
            self.filled[slot] = len(prompt) - 1

    def empty(self, slot: int):
        # An empty slot decodes on unread; at length 0 it writes over itself and never beyond the buffer.
        self.filled[slot] = 0
        self.cache.lengths[slot] = 0

    def run(self, steps: int):
        """Decodes `steps` tokens in every slot -> ids and log-probs [n][steps]: the one wait for a GPU."""
        return [x.tolist() for x in self.decode(steps)]

    def decode(self, steps: int):
        """As `run`, with the results still on their device [n, steps]."""
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
            out.append((self.token.clone(), self.logp.clone()))
        self.written += steps
        return [torch.stack(x, 1) for x in zip(*out)]

    def step(self, extent: int):
        """One token in every slot; attention reads the first `extent` places of the caches."""
        if self.seen is not None:
            self.seen.scatter_(1, self.token[:, None], True)
        self.cache.extent = max(extent - 1, 1)  # the model adds the token under way; 0 would mean a prefill
        hidden = self.model(self.token[:, None], cache=self.cache)
        token, logp = pick(self.model.logits(hidden[:, 0]).float(), self.noise, self.sampling, self.seen)
        self.token.copy_(token)
        self.logp.copy_(logp)

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


def plan_slots(model: Qwen35, stories: int, max_len: int, wanted: int | None) -> int:
    """How many slots to open. ValueError: not one fits, or fewer than asked for."""
    weight = model.embed_tokens.weight
    each = slot_bytes(model.config, max_len, weight.element_size())
    free = int(0.9 * free_bytes(weight.device))  # the rest is for the prefill and for the allocator
    fits, least = free // each, min(wanted or 1, stories)
    if least > fits:
        need = f"{least} slot(s) of {max_len:,} tokens need {least * each / 1e9:.1f} GB"
        cure = "lower max_new_tokens, slots, or the replica's dtype"
        raise ValueError(f"{need} and {free / 1e9:.1f} GB are free, room for {fits}; {cure}")
    return min(stories, fits, wanted or 64)


def slots_of(model: Qwen35, stories: int, max_len: int, wanted: int | None, sampling: Sampling) -> Slots:
    """What the model's last call decoded with, where it serves this one too, with its graphs; else new Slots.
    The model lets go of them meanwhile, so that two calls at once never share any."""
    old, model.slots = model.slots, None
    if old and old.asked == (stories, wanted, sampling) and old.cache.max_len >= max_len:
        old.reset()
        return old
    del old  # before memory for the new ones is planned
    new = Slots(model, plan_slots(model, stories, max_len, wanted), max_len, sampling)
    new.asked = (stories, wanted, sampling)
    return new


# ---- generate ----------------------------------------------------------------------


@torch.inference_mode()
def stream(model, prompts, *, max_new_tokens, stop_ids=(), seed=0, slots=None, keep_slots=False,
           check_every=CHECK_EVERY, **sampling):  # fmt: skip
    """As `generate`, but yields (index, its Completion so far, whether it ended) whenever stories grow."""
    sampling = Sampling(**sampling)
    prompts, stop, seeds = check_request(model.config, prompts, max_new_tokens, stop_ids, seed, slots)
    if not prompts:
        return
    if not model.fused and not lora.has_pairs(model):
        model = replica(model)
    elif model.fused and not isinstance(model.lm_head, onednn.PackedLinear):
        pack(model)  # loaded as fused, not through `replica`
    decoder = slots_of(model, len(prompts), max(map(len, prompts)) + max_new_tokens, slots, sampling)
    stories = [Completion() for _ in prompts]
    first = {}  # prompt -> its first index: stories that share a prompt are written together
    queue = deque(sorted(range(len(prompts)), key=lambda i: first.setdefault(prompts[i], i)))
    live = {}  # slot -> story
    while queue or live:
        vacant = [slot for slot in range(decoder.n) if slot not in live]
        while vacant and queue:
            prompt, group = prompts[queue[0]], []
            while vacant and queue and prompts[queue[0]] == prompt:
                group.append((vacant.pop(0), queue.popleft()))
            decoder.fill([slot for slot, _ in group], prompt, [seeds[i] for _, i in group])
            live |= dict(group)
        room = min(max_new_tokens - len(stories[i].ids) for i in live.values())
        ids, logps = decoder.run(min(check_every, room))
        for slot, i in list(live.items()):
            extend(stories[i], i, ids[slot], logps[slot], stop)
            ended = stories[i].finished or len(stories[i].ids) == max_new_tokens
            if ended:
                del live[slot]
                decoder.empty(slot)
            yield i, stories[i], ended
    model.slots = decoder if keep_slots else None


def extend(story: Completion, index: int, ids: list[int], logps: list[float], stop):
    """Appends what belongs to the story, up to its stop token."""
    if any(math.isnan(x) for x in logps):
        where = f"the model gave NaN logits for prompt {index} after {len(story.ids)} tokens"
        why = "its weights have diverged or a dtype overflowed"
        raise ValueError(f"{where}; {why}: load an earlier checkpoint")
    end = next((j + 1 for j, token in enumerate(ids) if token in stop), None)
    story.ids += ids[:end]
    story.logprobs += logps[:end]
    story.finished = end is not None


def generate(model: Qwen35, prompts, **request) -> list[Completion]:
    """Stories for prompts (lists of token ids), in the order of the prompts; equal prompts are read once.

    model: a Qwen35, or better a `replica` of it (otherwise one is made for this call). max_new_tokens:
    required. temperature 1.0 (0: greedy), top_p 1.0, top_k 0, min_p 0.0, repetition_penalty 1.0: the last
    four are off. stop_ids: tokens that end a story and stay in it. seed: one per prompt, on which alone its
    story depends, or an int from which each gets its own. slots: stories written at the same time (None: what
    memory allows, at most 64), kept with their graphs for the next call where keep_slots.

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
        for i, done, ended in stream(model, prompts, seed=seeds, slots=slots or None, **how):
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
    found = [tokenizer.end_id, tokenizer.token("<|endoftext|>")]
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


def thinks(model: Qwen35) -> bool:
    """Whether a checkpoint is meant to think first: what its config.json says under "thinking", else by size,
    since released models (hidden size 1024 and up) do and the tiny one never learned to."""
    return bool((model.hf_config or {}).get("thinking", model.config.hidden_size >= 1024))


def open_writer(path, thinking: str = "auto"):
    """A checkpoint on this process's device -> (model, tokenizer, whether it thinks first), to write with."""
    device, tokenizer = processes.pick_device(), data.load_tokenizer(path)
    model = qwen.load(path, torch.bfloat16 if device.type == "cuda" else torch.float32, device, fused=True)
    processes.choose_threads(sum(p.numel() for p in model.parameters()))
    return model, tokenizer, thinks(model) if thinking == "auto" else thinking == "on"


@exits_cleanly
def main(argv=None):
    parser = argparse.ArgumentParser(description="Write one story to the terminal, token by token.")
    flag = parser.add_argument
    flag("--prompt", help="what the story is about")
    flag("--chat", action="store_true", help="ask for a prompt and a length, write it, ask for the next")
    flag("--words", type=int, help="how long it should be; added to the prompt as a sentence")
    flag("--checkpoint", help="folder or hub id (default: newest under out/, else stories/tiny-base)")
    flag("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    flag("--top_p", type=float, default=1.0)
    flag("--top_k", type=int, default=0)
    flag("--min_p", type=float, default=0.05)
    flag("--repetition_penalty", type=float, default=1.0)
    flag("--seed", type=int, default=0, help="the same seed writes the same story")
    flag("--max_new_tokens", type=int, help="cut there (default: ample for --words)")
    thinking = {"default": "auto", "help": "auto: as the checkpoint was trained"}
    flag("--thinking", choices=("auto", "on", "off"), **thinking)
    args = parser.parse_args(argv)
    if not args.prompt and not args.chat:
        parser.error("nothing to write about: pass --prompt or --chat")
    path = args.checkpoint or newest_checkpoint()
    writer = open_writer(path, args.thinking)
    print(path, file=sys.stderr)
    if args.prompt:
        write(*writer, args, args.prompt, args.words)
    while args.chat and (prompt := ask("\nprompt (empty: the end): ")):
        words = ask("words (empty: no length requested): ")
        write(*writer, args, prompt, int(words) if words else None)
        args.seed += 1


def ask(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""


def write(model, tokenizer, thinking: bool, args, prompt: str, words: int | None):
    if words is not None and words < 1:
        raise ValueError(f"--words is {words}; a story has at least 1 word")
    prompt = data.at_length(prompt, words) if words else prompt.strip()
    limit = args.max_new_tokens or 3 * (words or 500) + (4096 if thinking else 64)
    print(f"{prompt}\n", file=sys.stderr)

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    request = {name: getattr(args, name) for name in names}
    request |= {"max_new_tokens": limit, "check_every": 1, "stop_ids": stop_ids(model.source, tokenizer)}
    pending, text, done, start = [], "", 0, time.perf_counter()
    for _, story, ended in stream(model, [tokenizer.chat(prompt, thinking)], **request):
        pending += story.ids[done:]
        done = len(story.ids)
        piece = tokenizer.decode(pending)
        if piece.endswith("\ufffd") and not ended:
            continue  # a character may still lack its last bytes
        print(piece, end="", flush=True)
        text, pending = text + piece, []
    seconds = time.perf_counter() - start
    written = data.words(story_of(text, thinking))
    asked = f"{words} requested" if words else "no length requested"
    why = "the story ended by itself" if story.finished else f"cut at {limit} tokens"
    print(f"\n\n{written} words written, {asked}, {done / seconds:.0f} tokens/s, {why}")


if __name__ == "__main__":
    sys.exit(main())
