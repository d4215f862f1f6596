"""Rows of token ids as micro-batches and as tensors: laid out on the host, then sent to a device at once."""

from itertools import accumulate

import torch

from lib import processes


def micro_batches(rows: list, budget: int, length, idle) -> list[list]:
    """Rows sorted by length(row), cut into batches of at most `budget` padded tokens: little padding, even
    memory. A row longer than the budget is a batch of its own.

    Under FSDP a forward pass needs every process, so all get the same number of batches: one with fewer of
    them gets batches of the one row `idle` besides."""
    batches = []
    for row in sorted(rows, key=length):
        if batches and length(row) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    most = int(processes.reduce(len(batches), processes.MAX))
    return batches + [[idle]] * (most - len(batches))


class Packed:
    """Rows of token ids one after another.

    rows: B lists of ids, N in all. starts [B]: the first position of each row whose log-probability is asked
    for (None: 1, so all that have a token before them). counts [B]: how many these are per row, M in all. ids
    [N], sources [M] (positions in ids whose output predicts a target), targets [M]: tensors on the host.
    ValueError: a start outside of its row.
    """

    def __init__(self, rows: list[list[int]], starts: list[int] | None = None):
        starts = [1] * len(rows) if starts is None else starts
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if not 1 <= start <= len(row):
                raise ValueError(f"row {i} of {len(row)} tokens starts at {start}; a start lies in 1..length")
        self.lengths = [len(row) for row in rows]
        self.counts = [len(row) - start for row, start in zip(rows, starts)]
        self.ids = torch.tensor([token for row in rows for token in row])
        spans = zip(accumulate(self.lengths), self.counts)
        self.sources = torch.cat([torch.arange(end - count - 1, end - 1) for end, count in spans])
        self.targets = self.ids[self.sources + 1]


def send(tensor, device):
    """A tensor of the host on its way to `device`; the host does not wait (CUDA: from pinned memory)."""
    real = type(tensor) is torch.Tensor  # fake tensors (a rehearsal without a GPU) have no memory to pin
    if device.type == "cuda" and real and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def per_token(values: list, counts: list[int], device) -> torch.Tensor:
    """One value per row, repeated for each of its counts[row] tokens -> [sum(counts)]; sent once."""
    return send(torch.tensor([x for x, n in zip(values, counts) for _ in range(n)]), device)
