"""AdamW over whole and sharded parameters."""

from __future__ import annotations

import math

import torch

from lib.sharding import average_replicated, clip_gradients, is_sharded


def adamw(module, lr: float, weight_decay: float, betas=(0.9, 0.999)) -> torch.optim.AdamW:
    """Over what is trained; sharded and whole parameters apart, since one fused step cannot mix them."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [[p for p in params if is_sharded(p) == sharded] for sharded in (True, False)]
    groups = [{"params": group} for group in groups if group]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)


def set_lr(optimiser, lr: float):
    for group in optimiser.param_groups:
        group["lr"] = lr


def descend(optimiser, max_norm: float) -> tuple[float, bool]:
    """Clips the gradients and steps -> (their global L2 norm before, whether it was finite: if not, nothing
    moves)."""
    params = [p for group in optimiser.param_groups for p in group["params"]]
    average_replicated(params)
    norm = clip_gradients(params, max_norm)
    if math.isfinite(norm):
        optimiser.step()
    return norm, math.isfinite(norm)


def state_bytes(
    total: int, trained: int, shards: int, lora: bool, half: int, keep_replica: bool
) -> dict[str, float]:
    """Bytes that one process needs before any activation, and their peak, for `total` parameters of which
    `trained` learn: fp32 weights, gradients and two moments over `shards` processes, and a whole replica of
    `half` bytes each."""
    weights = half * total + 4 * trained if lora else 4 * total
    s = {"weights": weights / shards, "gradients": 4 * trained / shards, "optimiser": 8 * trained / shards}
    s |= {"replica": float(half * total), "load": 4.0 * total if shards > 1 else 0.0}
    together = s["gradients"] + s["replica"] if keep_replica else max(s["gradients"], s["replica"])
    return s | {"peak": max(s["weights"] + s["optimiser"] + together, s["load"])}
