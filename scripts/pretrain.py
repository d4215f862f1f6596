"""Next-token prediction on examples in chat form: how the demo's base learns to write, on a CPU.

    python -m scripts.pretrain --model out/books/checkpoints/step_000300 --data out/base/stories.jsonl \\
        --steps 1150 --name tales

Whole conversations (request, story) are laid one after the other in rows of --length tokens, every token is
predicted, and the matrices inside the layers learn by Muon (Jordan et al. 2024; torch.optim.Muon), which
needs about half of the steps of AdamW; AdamW trains the rest. The learning rates rise for the first
twentieth of the steps and fall to 0 in the last half. For GPUs and several processes see scripts.warm_start.

It leaves out/<name>/model, a folder that train.py takes as --model. Started again after a stop, it goes on.
"""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import model as qwen
from lib.files import atomic, lock
from lib.flags import exits_cleanly, opt, parse


@dataclass
class Config:
    model: str = opt("out/base/new", "folder of the start")
    data: str = opt("out/base/passages.jsonl", "examples with stories")
    name: str = opt("books", "the folder of the run, in out/")
    steps: int = opt(300, "optimiser steps", low=1)
    rows: int = opt(8, "rows per step", low=1)
    length: int = opt(640, "tokens per row", low=2)
    lr: float = opt(0.02, "Muon's learning rate, of the matrices in the layers", above=0)
    adam_lr: float = opt(4e-3, "AdamW's, of embeddings, norms, convolutions and gates", above=0)
    save_every: int = opt(100, "steps between two saves", low=1)
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
    told = data.read_examples(c.data)
    ids = [tokenizer.chat(e.prompt, False) + tokenizer.completion(e.story) for e in told]
    rows = []
    for epoch in itertools.count():
        laid = lay([ids[i] for i in data.order(len(ids), epoch, c.seed)], c.length)
        random.Random(f"{c.seed}/{epoch}").shuffle(laid)
        rows += laid
        while len(rows) >= c.rows:
            batch, rows = rows[: c.rows], rows[c.rows :]
            yield torch.tensor([row + [-100] * (c.length + 1 - len(row)) for row in batch])


def run(c: Config):
    folder = Path(c.out, c.name)
    state = folder / "state.pt"
    at = torch.load(state, weights_only=True) if state.exists() else {"step": 0}
    start = str(folder / "model") if at["step"] else c.model
    tokenizer, model = data.load_tokenizer(start), qwen.load(start, torch.float32)
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p not in set(matrices)]
    muon = torch.optim.Muon(matrices, lr=c.lr, momentum=0.95, weight_decay=0.01)
    optims = [muon, torch.optim.AdamW(others, lr=c.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]
    for optimiser, was in zip(optims, at.get("optimisers", [])):
        optimiser.load_state_dict(was)
    bar = tqdm(range(c.steps), c.name, mininterval=2)
    for step, ids in zip(bar, batches(c, tokenizer)):
        if step < at["step"]:
            continue
        share = min(1.0, (step + 1) / (0.05 * c.steps + 1), (c.steps - step) / (0.5 * c.steps))
        for optimiser, lr in zip(optims, (c.lr, c.adam_lr)):
            optimiser.param_groups[0]["lr"] = lr * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(ids[:, :-1].clamp(min=0)))
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optims:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % c.save_every == 0 or step + 1 == c.steps:
            qwen.save(model, folder / "model")  # with the tokenizer of its source
            with atomic(state) as partial:
                torch.save({"step": step + 1, "optimisers": [o.state_dict() for o in optims]}, partial)


@exits_cleanly
def main(argv=None):
    torch.set_flush_denormal(True)  # before the first parallel operation
    c = parse(Config, argv, __doc__)
    with lock(Path(c.out, c.name)):
        run(c)


if __name__ == "__main__":
    main()
