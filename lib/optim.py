"""AdamW over whole and sharded parameters."""

import math

import torch

from lib.sharding import average_replicated, clip_gradients, is_sharded


def adamw(module, lr: float, weight_decay: float, betas=(0.9, 0.999)) -> torch.optim.AdamW:
    """Over what is trained, fused: one pass per group and no temporary copies. Sharded and whole parameters
    apart, since one fused step cannot mix them."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [[p for p in params if is_sharded(p) == sharded] for sharded in (True, False)]
    groups = [{"params": group} for group in groups if group]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def set_lr(optimiser, lr: float, step: int, steps: int, warmup: int, decay: bool):
    """lr of this step: risen to in `warmup` steps and, with `decay`, down to 0 after the last, linearly."""
    share = min(1.0, (step + 1) / max(1, warmup), 1 - step / steps if decay else 1.0)
    for group in optimiser.param_groups:
        group["lr"] = lr * share


def descend(optimiser, max_norm: float) -> tuple[float, bool]:
    """Clips the gradients and steps -> (their global L2 norm before, whether it was finite; else no step)."""
    params = [p for group in optimiser.param_groups for p in group["params"]]
    average_replicated(params)
    norm = clip_gradients(params, max_norm)
    if math.isfinite(norm):
        optimiser.step()
    return norm, math.isfinite(norm)


def least_bytes(frozen: int, trained: int, shards: int, itemsize: int, keep_replica: bool) -> float:
    """Bytes that one process needs before any activation: a cheap refusal of what cannot fit.

    Frozen parameters take `itemsize` bytes; trained ones 4, and as much for each of gradient and two moments.
    Where nothing is frozen a whole replica of `itemsize` writes, in place of the gradients or beside them.
    """
    gradients, replica = 4 * trained / shards, 0 if frozen else itemsize * trained
    together = gradients + replica if keep_replica else max(gradients, replica)
    return (itemsize * frozen + 12 * trained) / shards + together
