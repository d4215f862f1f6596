"""One module on several processes: whole on each (DDP), cut into shards (FSDP2), or both (HSDP)."""

from contextlib import nullcontext

import torch
from tqdm import tqdm

from lib import processes


class Scorer(torch.nn.Module):
    """Calls `model.token_logprobs` from forward(), where DDP's hooks run."""

    def __init__(self, model, autocast: bool):
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch, temperature):
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            return self.model.token_logprobs(batch, temperature)


def choose(parallel: str, shard: bool) -> tuple[str, int]:
    """What --parallel means here -> ("none" | "ddp" | "fsdp" | "hsdp", shards a module is cut into).
    shard: whether "auto" should cut it."""
    if parallel == "auto":
        parallel = "fsdp" if shard else "ddp" if processes.WORLD > 1 else "none"
    return parallel, {"fsdp": processes.WORLD, "hsdp": processes.LOCAL_WORLD}.get(parallel, 1)


def scorer_of(model, parallel: str, autocast: bool):
    """model (sharded already, where it is to be) -> the module whose backward pass sums over processes."""
    scorer = Scorer(model, autocast)
    if parallel != "ddp":
        return scorer
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(scorer, ids)


def accumulate(scorer, batches: list, what: str):
    """Yields each batch, for a backward pass while it is held: DDP sums gradients over processes once, in the
    last one. what: the name of a progress bar, for long updates."""
    for i, batch in enumerate(tqdm(batches, what, disable=not processes.MAIN, leave=False, delay=5)):
        last = i + 1 == len(batches)
        with nullcontext() if last or not hasattr(scorer, "no_sync") else scorer.no_sync():
            yield batch
