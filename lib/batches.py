"""Rows of different lengths as micro-batches, and what is said per row laid out per token."""

from __future__ import annotations

import torch

from lib import processes
from lib.packed import send


def micro_batches(rows: list, budget: int, length) -> list[list]:
    """Rows sorted by length(row), cut into batches of at most `budget` padded tokens: little padding, even
    memory. A row longer than the budget is a batch of its own."""
    batches = []
    for row in sorted(rows, key=length):
        if batches and length(row) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def equal_count(batches: list[list], idle) -> list[list]:
    """The same number of batches on all processes: under FSDP a forward pass needs every process, so a
    process with fewer of them gets batches of the one row `idle`."""
    most = int(processes.reduce(len(batches), processes.MAX))
    return batches + [[idle]] * (most - len(batches))


def per_token(values: list, counts: list[int], device) -> torch.Tensor:
    """One value per row, repeated for each of its counts[row] tokens -> [sum(counts)]; sent once."""
    return send(torch.tensor([x for x, n in zip(values, counts) for _ in range(n)]), device)
