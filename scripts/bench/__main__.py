"""Side by side with transformers and TRL on this machine: one table, each row ours / peer / ratio.

Pairs are interleaved (ours, peer, ours, ...) and the ratio is the median over pairs, so that a machine that
slows down slows both. A row whose answer differs from the peer's is void. See docs/performance.md.

    python -m scripts.bench                            # the table, into out/bench/; ten minutes, quiet cores
    python -m scripts.bench --only decode_8 --pairs 9  # one row (also: agreement, memory, growth, gpu)
    python -m scripts.bench --clock cpu --threads 1    # CPU time of one thread: for a machine that is shared

On a GPU the copy bandwidth and the rate of matrix products are measured first; decoding and training of
random weights are then shares of them. Left out: vLLM and other servers. Dimensions: B rows, T tokens.
"""

import itertools
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from timeit import repeat, timeit
from typing import Literal

import torch
from torch.utils.benchmark import Timer

import model as qwen
import rollout
from lib.files import write_text
from lib.flags import exits_cleanly, opt, parse
from lib.optim import adamw
from lib.packed import Packed
from lib.pages import chart, draw, point
from lib.parallel import Scorer
from scripts.bench import peers
from scripts.bench.peers import NINE_B, TINY, slots_at

TWO_B = NINE_B | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24}
TWO_B |= {"num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16}
TWO_B |= {"tie_word_embeddings": True}
STORY = 17000  # tokens: a story of 12,000 words
CUDA = torch.device("cuda")
COLLECT = "import gc; gc.enable()"  # as in a real run: timeit turns the garbage collector off


# ---- growth ------------------------------------------------------------------------------------------------


def weights_read(hf: dict) -> int:
    """Weights that take part in a product: all but a table of embeddings beside a head of its own."""
    c = qwen.ModelConfig.from_hf(hf)
    return sum(qwen.count(hf)) - c.vocab_size * c.hidden_size * (not c.tie_word_embeddings)


def step_bytes(hf: dict, B: int, context: int, dtype) -> tuple[int, int]:
    """(bytes of keys and values, bytes in all) that a decode step reads and writes: weights and keys once,
    states and windows of the DeltaNet layers twice."""
    states, keys = qwen.cache_bytes(qwen.ModelConfig.from_hf(hf), context, dtype)
    return B * keys, dtype.itemsize * weights_read(hf) + B * (keys + 2 * states)


def step_time(model, B: int, context: int, clock) -> float:
    """Seconds of a decode step, of four times eight the fastest."""
    with torch.inference_mode():
        slots = slots_at(model, B, context, 128)
        slots.run(4)
        return min(repeat(lambda: slots.run(8), COLLECT, clock, repeat=4, number=1)) / 8


def growth(clock, picture: Path):
    """Yields the time of decode steps by context and batch beside the bytes they read, and of one story."""
    model, series = rollout.replica(qwen.new(TINY)), {}
    contexts = (256, 1024, 4096, 16384)
    for B, context in itertools.product((1, 8, 64), contexts):
        each = step_time(model, B, context, clock)
        series.setdefault(f"B = {B}", []).append(point(context, 1e3 * each))
        cache, read = step_bytes(TINY, B, context, torch.float32)
        reads = f"reads {cache / 1e6:8.1f} MB of cache, {read / 1e6:8.1f} MB in all"
        line = f"B = {B:2d}, context {context:6,d}: {each * 1e3:8.2f} ms per step; {reads}"
        yield f"{line} ({read / each / 1e9:5.1f} GB/s)"
    ticks = [[n, f"{n:,}"] for n in contexts]
    draw(picture, [chart("", "ms per decode step", "context (tokens)", series, log=True, ticks=ticks)])
    start = clock()
    rollout.generate(model, [[1, 2, 3]], max_new_tokens=STORY)
    yield f"one story of {STORY:,} tokens in {clock() - start:.0f} s"


# ---- a GPU, as a share of its own limits -------------------------------------------------------------------


def timed(work, n: int) -> float:
    """Seconds of one call, after two to warm up; torch's own timer waits for the GPU."""
    return Timer("work()", globals={"work": work}).timeit(n).mean


def randomised(model):
    for p in model.parameters():
        p.data.normal_(0, 0.02)
    return model


def limits() -> tuple[float, float]:
    """Bytes that the GPU copies per second, and operations of its bf16 products."""
    a, b = (torch.empty(1 << 30, dtype=torch.int16, device="cuda") for _ in range(2))
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * a.nbytes / timed(lambda: b.copy_(a), 10), 2 * 8192**3 / timed(lambda: x @ y, 10)


def gpu():
    """Yields what this GPU can do at most, and what share of that decoding (a random 9B with full caches) and
    training reach."""
    bandwidth, rate = limits()
    line = f"copy {bandwidth / 1e12:.2f} TB/s, bf16 matmul {rate / 1e12:.0f} TFLOP/s"
    yield f"{torch.cuda.get_device_name()}: {line}"
    model = randomised(qwen.empty(qwen.ModelConfig.from_hf(NINE_B), torch.bfloat16, CUDA))
    for B, context, bar in ((1, 6144, 60), (16, 6144, 60), (64, 6144, 55), (64, 16384, 50)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        each = step_time(model, B, context, time.perf_counter)
        share = step_bytes(NINE_B, B, context, torch.bfloat16)[1] / bandwidth / each
        speed = f"{each * 1e3:7.2f} ms per step, {B / each:8.0f} tokens/s, {100 * share:.0f} % of the limit"
        most = torch.cuda.max_memory_allocated()
        yield f"decode 9B, B = {B:2d}, {context:6,d}: {speed} (bar {bar}), peak {most / 1e9:.1f} GB"
    del model
    yield gpu_train("LoRA 9B", NINE_B, 32, rate)
    yield gpu_train("full 2B", TWO_B, 0, rate)


def gpu_train(name: str, hf: dict, lora_rank: int, rate: float, tokens: int = 6144) -> str:
    """Forward and backward of one 6k story with checkpointing. Full: 8 FLOP per weight and token; LoRA has no
    gradient of the base's weights, which leaves 6."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = randomised(qwen.arrange(hf, CUDA, True, 0, (lora_rank, 32.0, 0)))
    model.checkpointing = True
    scorer, optimiser = Scorer(model, autocast=not lora_rank), adamw(model, 1e-6, 0.0)
    row = torch.randint(0, model.config.vocab_size, (tokens,)).tolist()

    def step():
        (-scorer(Packed([row]), 1.0)[0].mean()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    each = timed(step, 3)
    share = (6 if lora_rank else 8) * weights_read(hf) * tokens / each / rate
    line = f"training step {name}, {tokens:,} tokens: {each:.2f} s, {100 * share:.0f} % of the matmul rate "
    return line + f"(bar 35), peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"


# ---- the table ---------------------------------------------------------------------------------------------

# name: (what, setup, bar, goal)
ROWS = {
    "forward": ("forward, 1 x 2048", peers.forward, None, None),
    "backward": ("forward + backward, 1 x 2048", peers.backward, 1.2, 2.0),
    "delta": ("delta rule forward + backward, 9B shape, 2048", peers.delta_rule, 1.6, 3.0),
    "logprobs": ("log-probs of 2048 tokens over 32k words, time", peers.logprobs, 1 / 1.8, 1 / 1.4),
    "decode_1": ("decode 256 tokens, B = 1", peers.decode(1), None, None),
    "decode_8": ("decode 256 tokens, B = 8", peers.decode(8), 2.5, 4.0),
    "decode_32": ("decode 256 tokens, B = 32", peers.decode(32), 1.7, 3.0),
    "eager_8": ("decode 256 tokens, B = 8, not compiled", peers.decode(8, compiled=False), None, None),
    "group": ("group of 8 from one 512-token prompt, 64 tokens", peers.decode(8, 512, 64), 3.0, 6.0),
    "prefill": ("prefill of 4096", peers.prefill, None, None),
    "grpo": ("one GRPO step, 8 stories x 256 tokens, against TRL", peers.grpo, 1.5, 3.0),
}
ALL = (*ROWS, "agreement", "memory", "growth", "gpu")


def compare(name: str, pair, pairs: int, clock) -> str:
    """A line of the table."""
    what, setup, bar, goal = ROWS[name]
    try:
        ours, peer, wrong = setup(pair)
    except ImportError as error:
        return f"{what:52s} skipped: {error.name} is not installed (pip install -r requirements-bench.txt)"
    if wrong:
        return f"{what:52s} VOID: {wrong}"
    ours()
    peer()
    times = [[timeit(work, COLLECT, clock, number=1) for work in (ours, peer)] for _ in range(pairs)]
    a, b = (statistics.median(side) for side in zip(*times))
    ratios = sorted(theirs / own for own, theirs in times)
    ratio = statistics.median(ratios)
    told = "" if bar is None else f"bar {bar:.2f} {'met' if ratio >= bar else 'MISSED'}, goal {goal:.2f}"
    spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"{what:52s} {a * 1e3:10.1f} {b * 1e3:10.1f} {ratio:7.2f} x  {spread}  {told}".rstrip()


@dataclass
class Settings:
    only: list[str] = opt([], f"some of {', '.join(ALL)}; default: all, gpu where there is one")
    pairs: int = opt(5, "interleaved pairs per row", low=1)
    clock: Literal["wall", "cpu"] = opt("wall", "cpu: time of this process alone, for a shared machine")
    threads: int = opt(os.cpu_count() or 1, "of both sides", low=1)
    out: str = opt("out/bench", "folder of bench.md and growth.png")


def measure(a: Settings, wanted: list[str]):
    """Yields the lines of the report as they come."""
    clock = time.process_time if a.clock == "cpu" else time.perf_counter
    pair = peers.Pair()
    size = f"{sum(p.numel() for p in pair.ours.parameters()) / 1e6:.1f} M parameters"
    yield f"tiny Qwen3.5 ({size}, fp32), torch {torch.__version__}, {a.threads} thread(s),"
    yield f"{a.clock} time, denormals flushed on both sides, median of {a.pairs} interleaved pairs"
    yield f"{'':52s} {'ours, ms':>10s} {'peer, ms':>10s} {'ratio':>9s}  (spread)"
    for name in wanted:
        if name in ROWS:
            yield compare(name, pair, a.pairs, clock)
        elif name == "agreement":
            yield peers.agreement(pair)
        elif name == "memory":
            yield from peers.memory()
        elif name == "growth":
            yield from growth(clock, Path(a.out, "growth.png"))
        else:
            yield from gpu()


@exits_cleanly
def main(argv=None) -> int:
    a = parse(Settings, argv, __doc__)
    if not set(a.only) <= set(ALL):
        raise ValueError(f"--only {' '.join(a.only)}: choose some of {', '.join(ALL)}")
    has_gpu = torch.cuda.is_available()
    if "gpu" in a.only and not has_gpu:
        raise ValueError("--only gpu: there is no CUDA device here; the other rows need none")
    torch.set_flush_denormal(True)  # on our side and on the peer's: threads inherit it
    torch.set_num_threads(a.threads)
    Path(a.out).mkdir(parents=True, exist_ok=True)
    lines = []
    for line in measure(a, a.only or [row for row in ALL if row != "gpu" or has_gpu]):
        print(line, flush=True)
        lines.append(line)
    write_text(Path(a.out, "bench.md"), "```\n" + "\n".join(lines) + "\n```\n")
    return 1 if any(" VOID: " in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
