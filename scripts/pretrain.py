"""Next-token prediction on examples in chat form: how the demo's base learns to write, on a CPU.

    python -m scripts.pretrain --model out/base/new --data out/base/passages.jsonl --steps 1000

Whole conversations (request, story) are laid one after the other in rows of --length tokens, every token is
predicted, and the matrices inside the layers learn by Muon (Jordan et al. 2024; torch.optim.Muon), which
needs about half of the steps of AdamW; AdamW trains the rest. The learning rates rise for the first
twentieth of the steps and fall to 0 in the last half. It leaves out/<name>/model, which train.py takes as
--model. For supervised steps on GPUs and several processes see scripts.prefer --method sft.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import hri
import model as qwen
from lib.flags import exits_cleanly, opt, read


@dataclass
class Config:
    model: str = opt("out/base/new", "folder of the start")
    data: str = opt("out/base/passages.jsonl", "examples, each with a story")
    name: str = opt("passages", "the folder of the run, in out/")
    steps: int = opt(300, "optimiser steps", low=1)
    rows: int = opt(8, "rows per step", low=1)
    length: int = opt(640, "tokens per row", low=2)
    lr: float = opt(0.02, "Muon's learning rate, of the matrices in the layers", above=0)
    adam_lr: float = opt(4e-3, "AdamW's, of embeddings, norms, convolutions and gates", above=0)
    seed: int = opt(0, "order of the examples")
    out: str = opt("out", "folder of all runs")


def lay(conversations: list[list[int]], length: int) -> list[list[int]]:
    """Rows of at most length + 1 tokens: each conversation, whole, where the first row has room for it."""
    rows, open_rows = [], []
    for ids in conversations:
        row = next((row for row in open_rows if len(row) + len(ids) <= length + 1), None)
        if row is None:
            rows.append(row := [])
            open_rows = [*open_rows[-15:], row]
        row += ids[: length + 1]
    return rows


def batches(c: Config, tokenizer):
    """Endless batches of token ids [rows, length + 1]; the places that no conversation fills are -100."""
    told = [hri.reference_episode(e, tokenizer, False, c.length) for e in data.read_examples(c.data)]
    ids = [row.prompt_ids + row.completion_ids for row in told]
    rows = []
    for epoch in itertools.count():
        laid = lay([ids[i] for i in data.order(len(ids), epoch, c.seed)], c.length)
        random.Random(f"{c.seed}/{epoch}").shuffle(laid)
        rows += laid
        while len(rows) >= c.rows:
            batch, rows = rows[: c.rows], rows[c.rows :]
            yield torch.tensor([row + [-100] * (c.length + 1 - len(row)) for row in batch])


def optimisers(c: Config, model) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=c.lr, momentum=0.95, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=c.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def run(c: Config):
    tokenizer, model = data.load_tokenizer(c.model), qwen.load(c.model, torch.float32)
    optims = optimisers(c, model)
    bar = tqdm(range(c.steps), c.name, mininterval=2)
    for step, ids in zip(bar, batches(c, tokenizer)):
        share = min(1.0, (step + 1) / (0.05 * c.steps + 1), (c.steps - step) / (0.5 * c.steps))
        for optimiser, lr in zip(optims, (c.lr, c.adam_lr)):
            optimiser.param_groups[0]["lr"] = lr * share
            optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(ids[:, :-1].clamp(min=0)))
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optims:
            optimiser.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    qwen.save(model, Path(c.out, c.name, "model"))
    tokenizer.save(Path(c.out, c.name, "model"))


@exits_cleanly
def main(argv=None):
    torch.set_flush_denormal(True)  # before the first parallel operation
    run(read(Config, argv, __doc__))


if __name__ == "__main__":
    main()
