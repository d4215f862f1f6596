"""Side by side with transformers and TRL, in one run, on this machine: one table, each row ours / peer / ratio.

Pairs are interleaved (ours, peer, ours, peer, ...) and the ratio is the median over pairs, so that a machine that slows down
slows both. Before a row is timed, its answer is compared with the peer's; a row whose check fails is void. Denormal numbers
are flushed to zero on both sides: strong decays of the delta rule make them, and they cost the peer more than us.

    python -m scripts.bench                            # the table; about ten minutes on two quiet cores
    python -m scripts.bench --only decode_8 --pairs 9  # one row (also: memory, growth, profile)
    python -m scripts.bench --clock cpu --threads 1    # CPU time of one thread: for a machine that is shared
    python -m scripts.bench --plot docs/growth.png --doc docs/performance.md  # the figures of that page

TRL is optional (requirements-bench.txt). On a GPU, `--only gpu` measures the copy bandwidth and the matmul rate first, then
decoding and training of random weights at the 9B's and the 2B's shape as a share of them. Left out: vLLM and other servers.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

import data
import model as qwen
import rollout
from scripts.report import write_file

BASE = Path(__file__).resolve().parent.parent / "stories" / "tiny-base"
TINY = dict(model_type="qwen3_5_text", architectures=["Qwen3_5ForCausalLM"], vocab_size=4096, hidden_size=256,
            intermediate_size=768, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=32, linear_value_head_dim=32,
            linear_conv_kernel_dim=4, full_attention_interval=4, tie_word_embeddings=True, rms_norm_eps=1e-6,
            max_position_embeddings=32768, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5))
NINE_B = TINY | dict(vocab_size=248320, hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_attention_heads=16,
                     num_key_value_heads=4, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32,
                     linear_key_head_dim=128, linear_value_head_dim=128, tie_word_embeddings=False,
                     rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25))
TWO_B = NINE_B | dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=2,
                      linear_num_value_heads=16, tie_word_embeddings=True)
CLOCK = time.perf_counter
LINES = []  # what was printed, for --doc
BEGIN, END = "<!-- bench: the lines between these two comments are written by scripts/bench.py --doc -->", "<!-- bench: end -->"


def say(line):
    print(line, flush=True)
    LINES.append(line)


def seconds(work) -> float:
    start = CLOCK()
    work()
    return CLOCK() - start


def lively(hf, seed=0):
    """Random weights, larger than at initialisation, so that the next token depends on the text and greedy decoding moves."""
    model = qwen.new(hf, seed)
    for name, p in model.named_parameters():
        if p.dim() > 1 and "conv" not in name:
            p.data *= 3
    return model


class Pair:
    """The same weights as our model, its replica, and transformers' model. Made once, used by every row."""

    def __init__(self, hf=TINY):
        import transformers
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.ours, self.folder = lively(hf), Path(tempfile.mkdtemp()) / "model"
        qwen.save(self.ours, self.folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (self.folder / name).write_bytes((BASE / name).read_bytes())
        self.peer = transformers.Qwen3_5ForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.replica, self.compiled, self.checked = rollout.replica(self.ours), rollout.replica(self.ours, compile=True), {}

    def hf_generate(self, ids, mask, tokens, **kind):
        with torch.inference_mode():
            out = self.peer.eval().generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **kind)
        return out[:, ids.shape[1]:]


def random_ids(*shape, vocab=TINY["vocab_size"], seed=0):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Rows: each returns (ours, peer, what is wrong or None)

def forward(pair):
    ids = random_ids(1, 2048)
    with torch.no_grad():
        gap = (pair.ours.logits(pair.ours(ids)) - pair.peer(ids).logits).abs().max().item()

    def run(f):
        def work():
            with torch.no_grad():
                f()
        return work
    return (run(lambda: pair.ours.logits(pair.ours(ids))), run(lambda: pair.peer(ids, use_cache=False).logits),
            f"logits differ by {gap:.1e}" if not gap < 1e-4 else None)


def backward(pair):
    # Each side takes its natural loss of the same value: the mean log-probability of the tokens.
    ids = random_ids(1, 2048)

    def ours():
        pair.ours.zero_grad(set_to_none=True)
        (-pair.ours.token_logprobs(ids).mean()).backward()

    def peer():
        pair.peer.train().zero_grad(set_to_none=True)
        logits = pair.peer(ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    ours(), peer()
    theirs = {name.removeprefix("model."): p.grad for name, p in pair.peer.named_parameters()}
    gap = max(((p.grad - theirs[name]).norm() / theirs[name].norm()).item() for name, p in pair.ours.named_parameters())
    return ours, peer, f"gradients differ by {gap:.1e}" if not gap < 1e-3 else None


def delta(_):
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule as theirs
    g = torch.Generator().manual_seed(0)
    T, Hk, Hv, d = 2048, 16, 32, 128  # the 9B's shape
    q, k, v = (torch.randn(1, T, h, d, generator=g) for h in (Hk, Hk, Hv))
    decay, beta = -torch.rand(1, T, Hv, generator=g) * 0.5, torch.rand(1, T, Hv, generator=g)
    inputs = [x.requires_grad_() for x in (q, k, v, decay, beta)]
    out = {}

    def run(name, rule):
        for x in inputs:
            x.grad = None
        o = rule()
        o.square().sum().backward()
        out[name] = [o.detach()] + [x.grad for x in inputs]
    ours = lambda: run("ours", lambda: qwen.delta_chunked(qwen.l2norm(q) * d ** -0.5, qwen.l2norm(k), v, decay, beta)[0])
    peer = lambda: run("peer", lambda: theirs(q.repeat_interleave(2, 2), k.repeat_interleave(2, 2), v, g=decay, beta=beta,
                                              use_qk_l2norm_in_kernel=True)[0])
    ours(), peer()
    gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(out["ours"], out["peer"]))
    return ours, peer, f"output or gradients differ by {gap:.1e}" if not gap < 1e-3 else None


def logprob_work(kind: str):
    # 2,048 tokens over 32,768 words: as many logits as memory notices.
    g = torch.Generator().manual_seed(0)
    h, W = torch.randn(2048, 256, generator=g).requires_grad_(), (torch.randn(32768, 256, generator=g) * 0.05).requires_grad_()
    targets = torch.randint(0, 32768, (2048,), generator=g)
    if kind == "ours":
        logp = qwen.LogProbs.apply(h, W, targets, 1.0)[0]
    else:
        logits = h @ W.t()
        everything = logits.log_softmax(-1)
        logp = everything.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():  # both sides also give the entropy of each distribution
            -(everything.exp() * everything).sum(-1)
    logp.sum().backward()
    return logp.detach(), h.grad, W.grad


def logprobs(_):
    gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(logprob_work("ours"), logprob_work("naive")))
    return lambda: logprob_work("ours"), lambda: logprob_work("naive"), f"values or gradients differ by {gap:.1e}" if not gap < 1e-4 else None


def same_greedy(pair, model, lengths=(1, 7, 20, 33, 64, 65, 90, 128), tokens=256):
    """Greedy tokens of one batch of different prompts against transformers', left-padded -> what is wrong, or None."""
    prompts = [random_ids(n, seed=n).tolist() for n in lengths]
    width = max(lengths)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    theirs = pair.hf_generate(ids, mask, tokens, do_sample=False, eos_token_id=None).tolist()
    ours = [c.ids for c in rollout.generate(model, prompts, max_new_tokens=tokens, temperature=0)]
    wrong = sum(a != b for a, b in zip(ours, theirs))
    return f"{wrong} of {len(prompts)} greedy stories differ" if wrong else None


def decode(B: int, prompt=16, tokens=256, compiled=True):
    def row(pair):
        model = pair.compiled if compiled else pair.replica
        if compiled not in pair.checked:
            start = time.perf_counter()
            pair.checked[compiled] = same_greedy(pair, model)
            if compiled:
                say(f"(checked our compiled decode step; that took {time.perf_counter() - start:.0f} s with the compiling, not counted below)")
        ids = random_ids(1, prompt)
        ours = lambda: rollout.generate(model, ids.tolist() * B, max_new_tokens=tokens, slots=B)
        batch = ids.repeat(B, 1)
        return ours, lambda: pair.hf_generate(batch, torch.ones_like(batch), tokens, do_sample=True, top_k=0), pair.checked[compiled]
    return row


def prefill(pair):
    ids = random_ids(1, 4096)

    def ours():
        with torch.inference_mode():
            pair.replica(ids, cache=pair.replica.new_cache(1, 4096))

    def peer():
        with torch.inference_mode():
            pair.peer(ids, use_cache=True, logits_to_keep=1)
    with torch.inference_mode():
        a = pair.replica.logits(pair.replica(ids, cache=pair.replica.new_cache(1, 4096))[:, -1])
        gap = (a - pair.peer(ids, logits_to_keep=1).logits[:, -1]).abs().max().item()
    return ours, peer, f"last logits differ by {gap:.1e}" if not gap < 2e-4 else None


# ---------------------------------------------------------------------------------------------------------------------
# One whole GRPO step against TRL

STEP = dict(stories=8, tokens=256, lr=1e-4)
PROMPT = "Write a story about a lighthouse keeper who finds a second moon. It should be 150 words long."


def variety(texts) -> list[float]:
    return [len(set(t.split())) / max(len(t.split()), 1) for t in texts]


def grpo(pair):
    """8 stories of 256 tokens from one prompt, a reward, one AdamW step; fp32, no checkpointing, no KL, one update a batch."""
    import train
    from trl import GRPOConfig, GRPOTrainer
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from datasets import Dataset

    tokenizer = data.load_tokenizer(BASE)
    prompt, n, tokens = tokenizer.encode(PROMPT), STEP["stories"], STEP["tokens"]
    model = qwen.load(pair.folder, torch.float32)
    copy = rollout.replica(model)
    c = train.Config(model=str(pair.folder), judge="offline", group=n, max_new_tokens=tokens, checkpointing=False,
                     micro_batch_tokens=1 << 20, mismatch_cap=0.0, grad_clip=1.0)
    scorer, steps = train.Scorer(model), iter(range(10 ** 6))
    optimiser = torch.optim.AdamW(model.parameters(), lr=STEP["lr"], weight_decay=0.0)

    def ours():
        rollout.refresh(copy, model)
        done = rollout.generate(copy, [prompt] * n, max_new_tokens=tokens, seed=next(steps))
        reward = torch.tensor(variety([tokenizer.decode(s.ids) for s in done]))
        advantage = ((reward - reward.mean()) / (reward.std() + 1e-4)).tolist()
        train.update(scorer, optimiser, [train.Row(prompt + s.ids, len(prompt), a, False, s.logprobs) for s, a in zip(done, advantage)],
                     c, torch.device("cpu"))

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=n, num_generations=n, max_completion_length=tokens,
        max_steps=10 ** 6, learning_rate=STEP["lr"], lr_scheduler_type="constant", beta=0.0, temperature=1.0, top_p=1.0, top_k=0,
        bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, generation_kwargs=dict(min_new_tokens=tokens))

    lengths = []

    def rewards(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return variety(completions)
    trainer = GRPOTrainer(model=AutoModelForCausalLM.from_pretrained(pair.folder, dtype=torch.float32), reward_funcs=rewards, args=config,
                          train_dataset=Dataset.from_dict({"prompt": [PROMPT] * n}), processing_class=AutoTokenizer.from_pretrained(pair.folder))
    train.connect()  # our update sums over processes, though there is one
    turns = alternate(trainer, TrainerCallback)
    next(turns)  # both sides warm
    ids = random_ids(4, 64)
    with torch.no_grad():
        theirs = pair.peer(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        gap = (pair.ours.token_logprobs(ids) - theirs).abs().max().item()
    wrong = f"log-probs differ by {gap:.1e}" if not gap < 1e-4 else f"TRL wrote {set(lengths)} tokens" if set(lengths) != {tokens} else None
    ours()
    return ours, lambda: next(turns), wrong


def alternate(trainer, callback):
    """TRL's own loop, one optimiser step at each `next`: its thread waits between steps while the other side is timed."""
    import threading
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    failed = []

    class Turn(callback):
        def on_step_begin(self, *_, **__):
            go.acquire()

        def on_step_end(self, *_, **__):
            done.release()

    def work():
        try:
            trainer.train()
        except Exception as error:  # handed over to the main thread below
            failed.append(error)
            done.release()
    trainer.add_callback(Turn())
    threading.Thread(target=work, daemon=True).start()
    while True:
        go.release()
        done.acquire()
        if failed:
            raise failed[0]
        yield


# name: (what, setup, unit of ours and peer, bar, goal); "share" rows are better when small
ROWS = {
    "forward": ("forward, 1 x 2048", forward, None, None),
    "backward": ("forward + backward, 1 x 2048", backward, 1.2, 2.0),
    "delta": ("delta rule forward + backward, 9B shape, 2048", delta, 1.6, 3.0),
    "logprobs": ("log-probs of 2048 tokens over 32k words, time", logprobs, 1 / 1.8, 1 / 1.4),
    "decode_1": ("decode 256 tokens, B = 1", decode(1), None, None),
    "decode_8": ("decode 256 tokens, B = 8", decode(8), 2.5, 4.0),
    "decode_32": ("decode 256 tokens, B = 32", decode(32), 1.7, 3.0),
    "eager_8": ("decode 256 tokens, B = 8, our step not compiled", decode(8, compiled=False), None, None),
    "group": ("group of 8 from one 512-token prompt, 64 tokens", decode(8, 512, 64), 3.0, 6.0),
    "prefill": ("prefill of 4096", prefill, None, None),
    "grpo": ("one GRPO step, 8 stories x 256 tokens, against TRL", grpo, 1.5, 3.0),
}


def compare(name: str, pair, pairs: int) -> dict:
    what, setup, bar, goal = ROWS[name]
    try:
        ours, peer, wrong = setup(pair)
    except ImportError as error:
        return dict(row=name, what=what, skipped=f"{error.name} is not installed (pip install -r requirements-bench.txt)")
    if wrong:
        return dict(row=name, what=what, void=wrong)
    ours(), peer()
    times = [(seconds(ours), seconds(peer)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in times)
    return dict(row=name, what=what, ours=statistics.median(a for a, _ in times), peer=statistics.median(b for _, b in times),
                ratio=statistics.median(ratios), low=ratios[0], high=ratios[-1], bar=bar, goal=goal)


def show(r: dict):
    if "ratio" not in r:
        return say(f"{r['what']:52s} {'skipped: ' + r['skipped'] if 'skipped' in r else 'VOID: ' + r['void']}")
    bar = "" if r["bar"] is None else f"bar {r['bar']:.2f} {'met' if r['ratio'] >= r['bar'] else 'MISSED'}, goal {r['goal']:.2f}"
    say(f"{r['what']:52s} {r['ours'] * 1e3:10.1f} {r['peer'] * 1e3:10.1f} {r['ratio']:7.2f} x  ({r['low']:.2f} to {r['high']:.2f})  {bar}".rstrip())


# ---------------------------------------------------------------------------------------------------------------------
# Memory and growth

def high_water() -> int:
    # Not getrusage: that one inherits the peak of the process that started this one.
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def peak(work, *args):
    """Bytes by which a fresh process's peak exceeds what it held before `work`."""
    before = high_water()
    work(*args)
    return high_water() - before


def peak_logprobs(kind):
    torch.set_flush_denormal(True)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the matrix library's own buffers are there before we look
    return peak(logprob_work, kind)


def peak_decode(n, tokens):
    """Peak of decoding beside what `slot_bytes` calculated, for n slots of `tokens`."""
    model = rollout.replica(qwen.new(TINY))
    rollout.generate(model, [[1, 2]] * n, max_new_tokens=8, slots=n)
    used = peak(fill_slots, model, n, tokens)
    return used, n * rollout.slot_bytes(model.config, tokens, 4)


def fill_slots(model, n, tokens):
    with torch.inference_mode():
        slots = rollout.Slots(model, n, tokens, rollout.Sampling())
        for first, second in slots.cache.layers:  # touch every page, as a story of this length would
            first.fill_(0.0), second.fill_(0.0)
        slots.filled = [tokens - 9] * n
        slots.cache.lengths.fill_(tokens - 9)
        slots.run(8)


def memory() -> list[dict]:
    if not os.path.exists("/proc/self/status"):
        return say("memory: skipped, it reads /proc, which only Linux has") or []
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours, naive = pool.apply(peak_logprobs, ("ours",)), pool.apply(peak_logprobs, ("naive",))
        used, planned = pool.apply(peak_decode, (8, 17000))
    say(f"\nlog-prob peak memory: ours {ours / 1e6:.0f} MB, naive {naive / 1e6:.0f} MB, share {ours / naive:.2f} (bar 0.50, goal 0.30)")
    say(f"decoding in 8 slots of 17,000 tokens: peak {used / 1e6:.0f} MB measured, {planned / 1e6:.0f} MB calculated")
    return [dict(row="logprob_memory", ours=ours, peer=naive, share=ours / naive), dict(row="decode_memory", ours=used, calculated=planned)]


def growth(plot: str | None, contexts=(256, 1024, 4096, 16384), batches=(1, 8, 64), story=17000, window=64) -> list[dict]:
    """Time of a decode step by context and batch beside the bytes it reads, and one story of `story` tokens, written whole."""
    model, rows = rollout.replica(qwen.new(TINY)), []
    say("")
    weights = sum(p.nbytes for p in model.parameters())
    per_token = rollout.slot_bytes(model.config, 1, 4) - rollout.slot_bytes(model.config, 0, 4)
    states = sum(t.nbytes for kind, layer in zip(model.config.layer_types, model.new_cache(1, 1).layers)
                 for t in layer if kind != "full_attention")
    with torch.inference_mode():
        for B in batches:
            for context in contexts:
                slots = rollout.Slots(model, B, context + 2 * window, rollout.Sampling())
                slots.filled = [context] * B
                slots.cache.lengths.fill_(context)
                slots.run(4)
                each = min(seconds(lambda: slots.run(8)) / 8 for _ in range(window // 16))
                read = weights + B * (2 * states + per_token * context)
                rows.append(dict(row="growth", batch=B, context=context, ms=each * 1e3, cache_bytes=B * per_token * context, bytes=read))
                say(f"B = {B:2d}, context {context:6,d}: {each * 1e3:8.2f} ms a step, {each * 1e3 / B:7.3f} ms a token; "
                    f"reads {B * per_token * context / 1e6:8.1f} MB of cache, {read / 1e6:8.1f} MB in all ({read / each / 1e9:5.1f} GB/s)")
    marks, start = {}, CLOCK()
    for _, c, _ in rollout.stream(model, [[1, 2, 3]], max_new_tokens=story):
        marks[len(c.ids)] = CLOCK() - start
    at = {n: (marks[n + 256] - marks[n - 256]) / 512 * 1e3 for n in (1024, 4096, 16384)}
    say(f"one story of {len(c.ids):,} tokens in {marks[story]:.0f} s; " +
        ", ".join(f"at {n:,}: {ms:.2f} ms a token, {per_token * n / 1e6:.1f} MB of cache" for n, ms in at.items()))
    rows.append(dict(row="story", tokens=len(c.ids), seconds=marks[story], ms_at=at))
    if plot:
        draw(rows, plot)
    return rows


def draw(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    cells = [r for r in rows if r["row"] == "growth"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for B in sorted({r["batch"] for r in cells}):
        line = [r for r in cells if r["batch"] == B]
        left.plot([r["context"] for r in line], [r["ms"] for r in line], "o-", label=f"{B} rows")
    for context in sorted({r["context"] for r in cells}):
        line = [r for r in cells if r["context"] == context]
        right.plot([r["batch"] for r in line], [1e3 * r["batch"] / r["ms"] for r in line], "o-", label=f"{context:,} tokens")
    left.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="ms a decode step")
    right.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel="tokens a second")
    left.legend(), right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


FAMILIES = {"matrix products": ("mm", "linear_pointwise"), "triangular solves": ("solve_triangular",), "attention": ("scaled_dot",),
            "copies and fills": ("copy", "cat", "fill", "clone", "index", "zero", "scatter", "gather", "pad")}


def profile_steps(pair, B=8, tokens=64):
    """Where decoding and a training step spend CPU time, by kind of operator: in transformers, where all this began, and here."""
    from torch.profiler import ProfilerActivity, profile
    prompts, ids = random_ids(B, 16), random_ids(8, 256)

    def peer_step():
        logits = pair.peer.train()(ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for title, n, work in (
            (f"decode step, B = {B}, transformers", tokens, lambda: pair.hf_generate(prompts, torch.ones_like(prompts), tokens, do_sample=True, top_k=0)),
            (f"decode step, B = {B}, ours, eager", tokens, lambda: rollout.generate(pair.replica, prompts.tolist(), max_new_tokens=tokens)),
            ("training step, 8 x 256, transformers", 1, peer_step),
            ("training step, 8 x 256, ours", 1, lambda: (-pair.ours.token_logprobs(ids).mean()).backward())):
        work()
        alone = min(seconds(work) for _ in range(3)) / n
        with profile(activities=[ProfilerActivity.CPU]) as p:
            work()
        events, shares = p.key_averages(), {}
        for e in events:
            family = next((f for f, words in FAMILIES.items() if any(w in e.key for w in words)), "elementwise, reductions, bookkeeping")
            shares[family] = shares.get(family, 0) + e.self_cpu_time_total / sum(e.self_cpu_time_total for e in events)
        parts = ", ".join(f"{f} {100 * share:.0f} %" for f, share in sorted(shares.items(), key=lambda x: -x[1]))
        say(f"{title}: {alone * 1e3:.1f} ms, {sum(e.count for e in events) / n:,.0f} operator calls;\n    {parts}")


# ---------------------------------------------------------------------------------------------------------------------
# A GPU, as a share of its own limits

def timed(work, n=10) -> float:
    """Seconds of one call on the GPU, after one to warm up."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / n


@torch.no_grad()
def random_model(hf, dtype, fused=False, device="cuda"):
    with torch.device("meta"):
        model = qwen.Qwen35(qwen.ModelConfig.from_hf(hf), fused)
    qwen.cast(model, dtype).to_empty(device=device)
    for name, p in model.named_parameters():
        p.normal_(0, 0.02) if p.dim() > 1 else p.fill_(1.0 if "dt_bias" in name or "linear_attn.norm" in name else 0.0)
    return model


def gpu() -> list[dict]:
    a, b = (torch.empty(1 << 30, dtype=torch.int16, device="cuda") for _ in range(2))
    bandwidth = 2 * a.nbytes / timed(lambda: b.copy_(a))
    del a, b
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192 ** 3 / timed(lambda: x @ y)
    del x, y
    say(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s, bf16 matmul {rate / 1e12:.0f} TFLOP/s")
    rows = [dict(row="gpu_limits", bandwidth=bandwidth, matmul=rate)]
    rows += gpu_decode(bandwidth)
    rows += gpu_train("LoRA 9B", NINE_B, 32, rate)
    rows += gpu_train("full 2B", TWO_B, 0, rate)
    return rows


def gpu_decode(bandwidth) -> list[dict]:
    """Steps of a random 9B, caches filled to the context; the limit is weights and caches read once, states read and written."""
    model, rows = random_model(NINE_B, torch.bfloat16, fused=True).requires_grad_(False), []
    c = model.config
    weights = sum(p.nbytes for p in model.parameters()) - model.embed_tokens.weight.nbytes
    states = sum(kind != "full_attention" for kind in c.layer_types) * 4 * c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim
    per_token = rollout.slot_bytes(c, 1, 2) - rollout.slot_bytes(c, 0, 2)
    for B, context in ((1, 6144), (16, 6144), (64, 6144), (64, 16384)):
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            slots = rollout.Slots(model, B, context + 128, rollout.Sampling())
            slots.filled = [context] * B
            slots.cache.lengths.fill_(context)
            each = timed(lambda: slots.run(8), 8) / 8
        share = (weights + B * (2 * states + per_token * context)) / bandwidth / each
        say(f"decode 9B, B = {B:2d}, {context:6,d}: {each * 1e3:7.2f} ms a step, {B / each:8.0f} tokens/s, {100 * share:.0f} % of the limit, "
              f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        rows.append(dict(row="gpu_decode", batch=B, context=context, ms=each * 1e3, share=share, peak=torch.cuda.max_memory_allocated()))
        del slots
        torch.cuda.empty_cache()
    return rows


def gpu_train(name, hf, lora_rank, rate, tokens=6144) -> list[dict]:
    """Forward and backward of one 6k story with checkpointing. Full: 8 FLOP a weight and token; LoRA has no weight gradient
    for the base, which leaves 6."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = random_model(hf, torch.bfloat16 if lora_rank else torch.float32)
    model.checkpointing = True
    params = qwen.add_lora(model, lora_rank, 32.0) if lora_rank else list(model.parameters())
    optimiser = torch.optim.AdamW(params, lr=1e-6, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=not lora_rank):
            logp = model.token_logprobs(ids)
        (-logp.mean()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    each = timed(step, 3)
    weights = sum(p.numel() for n, p in model.named_parameters() if "lora" not in n) - (0 if model.lm_head is None else model.embed_tokens.weight.numel())
    share = (6 if lora_rank else 8) * weights * tokens / each / rate
    c = model.config
    shape = lambda h, d: torch.randn(1, tokens, h, d, device="cuda", requires_grad=True)
    q, k, v = (shape(c.linear_num_key_heads, c.linear_key_head_dim), shape(c.linear_num_key_heads, c.linear_key_head_dim),
               shape(c.linear_num_value_heads, c.linear_value_head_dim))
    g = -torch.rand(1, tokens, c.linear_num_value_heads, device="cuda")
    rule = lambda: qwen.delta_chunked(qwen.l2norm(q), qwen.l2norm(k), v, g, g.exp())[0]
    with torch.no_grad():
        once = timed(rule, 3)
    both = timed(lambda: rule().sum().backward(), 3)
    delta_share = sum(kind != "full_attention" for kind in c.layer_types) * (once + both) / each
    say(f"training step {name}, {tokens:,} tokens: {each:.2f} s, {100 * share:.0f} % of the matmul rate, the delta rule {100 * delta_share:.0f} % of it, "
          f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return [dict(row="gpu_train", name=name, seconds=each, share=share, delta=delta_share, peak=torch.cuda.max_memory_allocated())]


# ---------------------------------------------------------------------------------------------------------------------

def fill(page: Path):
    """Puts what was printed between the two comment lines of a page. ValueError: the page lacks them."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} lacks the two lines {BEGIN!r} and {END!r}; add them where the table belongs")
    head, _, rest = text.partition(BEGIN)
    table = "\n".join(["", "```", *LINES, "```", ""])
    write_file(page, head + BEGIN + table + END + rest.partition(END)[2])


EXTRA = ("memory", "growth", "profile", "gpu")


def main(argv=None):
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=(*ROWS, *EXTRA), metavar="NAME", help=f"of {', '.join((*ROWS, *EXTRA))}")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs a row (default 5)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of this process alone, for a shared machine")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides (default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--plot", metavar="FILE", help="draw the growth rows there (png)")
    parser.add_argument("--doc", metavar="FILE", help="also write what is printed into this page, between its two comment lines")
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.threads < 1:
        parser.error("--pairs and --threads must be at least 1")
    wanted = args.only or [*ROWS, "memory", "growth", "profile", *(["gpu"] if torch.cuda.is_available() else [])]
    if "gpu" in wanted and not torch.cuda.is_available():
        parser.error("gpu: no CUDA device here; the CPU rows need none")
    if args.plot:
        import matplotlib  # noqa: F401  missing, it is missed now and not after ten minutes
    # Before the first parallel operation: worker threads inherit it. It holds for our side and for the peer's.
    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    CLOCK = time.process_time if args.clock == "cpu" else time.perf_counter
    results, rows = [], [name for name in wanted if name in ROWS]
    if rows or "profile" in wanted:
        pair = Pair()
    if rows:
        size = sum(p.numel() for p in pair.ours.parameters()) / 1e6
        say(f"tiny Qwen3.5 ({size:.1f} M parameters, fp32), torch {torch.__version__}, {args.threads} thread(s), {args.clock} time,\n"
            f"denormals flushed on both sides, median of {args.pairs} interleaved pairs\n{'':52s} {'ours, ms':>10s} {'peer, ms':>10s} {'ratio':>9s}  (spread)")
    for name in rows:
        results.append(compare(name, pair, args.pairs))
        show(results[-1])
    if "memory" in wanted:
        results += memory()
    if "growth" in wanted:
        results += growth(args.plot)
    if "profile" in wanted:
        profile_steps(pair)
    if "gpu" in wanted:
        results += gpu()
    if args.json:
        write_file(Path(args.json), json.dumps(dict(torch=torch.__version__, threads=args.threads, clock=args.clock, rows=results), indent=1))
    if args.doc:
        fill(Path(args.doc))
    return 1 if any("void" in r for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
