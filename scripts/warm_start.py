"""Supervised warm start: a model learns the reference stories of a data file, before any judge is asked.

It is the trainer's own update on groups that hold one reference each, with advantage 1: its gradient is that
of the negative log-likelihood. The learning rate rises for the first twentieth of the steps, then falls to 0.

    torchrun --nproc_per_node=4 -m scripts.warm_start --data out/stories.jsonl --steps 100 --lr 1e-5

All flags of train.py work; those of sampling, reward and judge change nothing here. It leaves out/<name>/
like a training run: metrics.jsonl and a checkpoint, which train.py takes as --model.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

import data
import train
from lib import huggingface, optim, processes
from lib.flags import exits_cleanly, opt


@dataclass
class Config(train.Config):
    name: str = opt("warm-start", "name of this run")
    steps: int = opt(100, "optimiser steps", low=1)
    rows: int = opt(32, "reference stories per step, over all processes", low=1)


PRESETS = {name: preset | {"steps": 100} for name, preset in train.PRESETS.items()}
LOGGED = ("nll", "grad_norm", "entropy", "train/tokens_per_second")


def run(c: Config):
    device, tokenizer = processes.connect(), data.load_tokenizer(c.model)
    processes.from_main(huggingface.check_push, c.push)
    examples, references = train.prepare(c, tokenizer)
    stories = [replace(row, reward=0.0, advantage=1.0) for row in references.values()]
    if c.rows > len(stories):
        raise ValueError(f"--rows {c.rows}: {c.data} has only {len(stories)} stories that fit; lower it")
    model, scorer = train.build(c, device)
    optimiser, start, log = train.start_or_resume(c, model, scorer, betas=(0.9, 0.95))
    folder, about = Path(c.out, c.name, "checkpoints"), data.describe(c.data, examples)
    bar = tqdm(range(start, c.steps), c.name, c.steps, initial=start, disable=not processes.MAIN)
    for step in bar:
        clock = time.time()
        optim.set_lr(optimiser, c.lr, step, c.steps, 0.05 * c.steps + 1, decay=True)
        batch = data.batch(len(stories), step, c.rows, c.seed)[processes.RANK :: processes.WORLD]
        stats = train.update(c, scorer, optimiser, [[stories[i]] for i in batch])
        if processes.MAIN:
            kept = {name: stats[name] for name in LOGGED} | {"seconds": time.time() - clock}
            log.write({"step": step} | kept)
        bar.set_postfix(nll=f"{stats['nll']:.3f}", tokens_per_second=f"{stats[LOGGED[-1]]:.0f}")
        if step + 1 == c.steps or (c.save_every and (step + 1) % c.save_every == 0):
            train.save_checkpoint(c, model, optimiser, step + 1, data=about)
    processes.say(f"wrote {folder}/step_{c.steps:06d}; train.py --model takes it")
    if processes.MAIN:
        processes.say(huggingface.push(folder, c.push))


@exits_cleanly
def main(argv=None):
    c = train.parse(argv, Config, PRESETS, __doc__)
    c = replace(c, judge="offline", hri="positive", kl=0.0, temperature=1.0, prompts=processes.WORLD)
    train.check(c, processes.WORLD)
    run(c)


if __name__ == "__main__":
    main()
