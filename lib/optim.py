"""AdamW over whole and sharded parameters."""

import math

import torch
import torch.distributed as dist

from lib.parallel import is_sharded, whole


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
    """Clips the gradients to a global L2 norm of at most max_norm, and steps -> (the norm before, whether it
    was finite; else no step). To read it is the one wait for the device in an update."""
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    alone, sharded = ([g for g in grads if is_sharded(g) == is_part] for is_part in (False, True))
    for grad in alone if sharded else []:  # FSDP leaves them as each process has them, see `parallel.shard`
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    squares = [sum(g.float().square().sum() for g in part) for part in (alone, sharded)]
    norm = float(squares[0] + whole(squares[1])) ** 0.5
    if norm > max_norm:
        for grad in grads:
            grad.mul_(max_norm / (norm + 1e-6))
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
