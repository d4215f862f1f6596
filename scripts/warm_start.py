"""Supervised warm start: a model learns the reference stories of a data file, before any judge is asked.

It is the trainer's own update on groups that hold one reference each, with advantage 1: its gradient is that
of the negative log-likelihood. The learning rate rises for the first twentieth of the steps, then falls to 0.

    python -m scripts.warm_start --preset tiny --model out/base/new --data out/base/passages.jsonl \\
        --steps 300 --rows 32 --lr 2e-3 --autocast True --max_new_tokens 1024 --name books
    torchrun --nproc_per_node=4 -m scripts.warm_start --data out/stories.jsonl --steps 100 --lr 1e-5

All flags of train.py work; those of sampling, reward and judge change nothing here. It leaves out/<name>/
like a training run: metrics.jsonl and a checkpoint, which train.py takes as --model.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import data
import train
from lib import checkpoint, flags, huggingface, metrics, optim, processes
from lib.flags import opt


@dataclass
class Config(train.Config):
    steps: int = opt(100, "optimiser steps", low=1)
    rows: int = opt(32, "reference stories per step, over all processes", low=1)


def parse(argv=None) -> Config:
    presets = {
        name: {k: v for k, v in preset.items() if k != "steps"} for name, preset in train.PRESETS.items()
    }
    auto = ("polaris-9b", "GPUs found") if torch.cuda.is_available() else ("tiny", "no GPU found")
    c = flags.parse(Config, presets, __doc__, argv, *auto)
    return replace(c, name=c.name or "warm-start", judge="offline", hri="positive", prompts=processes.WORLD)


def pick(n: int, start: int, count: int, seed: int) -> list[int]:
    """`count` indices from position `start` of an endless sequence of shuffled epochs of n."""
    epochs = range(start // n, (start + count - 1) // n + 1)
    endless = [i for epoch in epochs for i in data.order(n, epoch, seed)]
    return endless[start % n : start % n + count]


def run(c: Config):
    device, tokenizer = processes.connect(), data.load_tokenizer(c.model)
    processes.from_main(huggingface.check_push, c.push)
    examples, references = train.prepare(c, tokenizer)
    stories, facts = list(references.values()), {"data": data.describe(c.data, examples)}
    model, scorer = train.build(c, device)
    optimiser = optim.adamw(scorer, c.lr, c.weight_decay, betas=(0.9, 0.95))
    folder = Path(c.out, c.name)
    at = checkpoint.open_run(folder, c.resume)
    start = train.load_checkpoint(c, at, model, optimiser)[0] if at else 0
    log = metrics.Log(folder, start, asdict(c), c.wandb) if processes.MAIN else None
    left = range(start, c.steps)
    bar = tqdm(left, c.name, c.steps, initial=start, disable=not processes.MAIN, mininterval=2)
    for step in bar:
        clock = time.time()
        optim.set_lr(optimiser, c.lr * min((step + 1) / (0.05 * c.steps + 1), 1 - step / c.steps))
        mine = pick(len(stories), step * c.rows, c.rows, c.seed)[processes.RANK :: processes.WORLD]
        stats = train.update(
            c, scorer, optimiser, [[replace(stories[i], reward=0.0, advantage=1.0)] for i in mine]
        )
        if processes.MAIN:
            kept = ("nll", "grad_norm", "entropy", "train/tokens_per_second")
            log.write(
                {"step": step} | {name: stats[name] for name in kept} | {"seconds": time.time() - clock}
            )
        bar.set_postfix(
            nll=f"{stats['nll']:.3f}", tokens_per_second=f"{stats['train/tokens_per_second']:.0f}"
        )
        if step + 1 == c.steps or (c.save_every and (step + 1) % c.save_every == 0):
            train.save_checkpoint(c, model, optimiser, tokenizer, step + 1, 0, **facts)
    if processes.MAIN:
        print(f"wrote {folder}/checkpoints/step_{c.steps:06d}; train.py --model takes it")
        processes.say(huggingface.push(folder / "checkpoints", c.push))


@flags.exits_cleanly
def main(argv=None):
    torch.set_flush_denormal(True)  # before the first parallel operation
    c = parse(argv)
    try:
        train.check(c, processes.WORLD)
        if c.rows < processes.WORLD:
            raise ValueError(f"--rows {c.rows}: at least one per process, so {processes.WORLD}")
        run(c)
    finally:
        processes.disconnect()
        checkpoint.release()


if __name__ == "__main__":
    main()
