"""Rows of token ids without padding, laid out on the host before anything is sent to a device."""

from __future__ import annotations

from itertools import accumulate

import torch


class Packed:
    """Rows of token ids one after another.

    rows: B lists of ids, N in all. starts [B]: the first position of each row whose log-probability is asked
    for (None: 1, so all that have a token before them). counts [B]: how many these are per row, M in all. ids
    [N], sources [M] (positions in ids whose output predicts a target), targets [M]: tensors on the host.
    ValueError: no rows, or a start outside of its row.
    """

    def __init__(self, rows: list[list[int]], starts: list[int] | None = None):
        starts = [1] * len(rows) if starts is None else starts
        if not rows or len(starts) != len(rows):
            raise ValueError(f"a batch of {len(rows)} rows has {len(starts)} starts; give one for each row")
        for i, (row, start) in enumerate(zip(rows, starts)):
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
