"""One module on several processes: whole on each (DDP), cut into shards (FSDP2), or both (HSDP)."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
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


def shard(module, blocks, device=None, *, bf16: bool, shards: int, whole: tuple[str, ...] = (), methods=()):
    """Shards `module` in place over `shards` processes, each of its `blocks` gathered and freed as one group.
    device: for a module on the meta device, which gets shards there whose values are yet to be written (see
    `write`), so that no process ever holds all of it.

    Masters keep their dtype (fp32 for training), products run in bf16 where asked, gradients are reduced in
    fp32. With fewer shards than processes, each `shards` neighbours hold the whole module between them
    (HSDP). whole: endings of the names of parameters that stay whole on every process, because mixed
    precision would round them; `optim.descend` averages their gradients. methods: besides `forward`.
    """
    replicas = dist.get_world_size() // shards
    device = torch.device(device or next(module.parameters()).device)
    mesh = dist.init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    mesh = mesh if replicas > 1 else mesh["shard"]
    policy = MixedPrecisionPolicy()
    if bf16:  # inputs are not cast: token ids stay integers, tables of positions stay fp32
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    how = {"mesh": mesh, "mp_policy": policy}
    how["ignored_params"] = {p for name, p in module.named_parameters() if name.endswith(whole)}
    for part in (*blocks, module):
        fully_shard(part, **how, reshard_after_forward=True)  # also where no backward pass follows
    for name in methods:
        register_fsdp_forward_method(module, name)
    materialise(module, device)


def materialise(module, device):
    """Gives each parameter on the meta device memory on `device`, whose values are yet to be written.
    nn.Module.to_empty does not work on fake tensors."""
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            if p.is_meta:
                setattr(part, name, torch.nn.Parameter(torch.empty_like(p, device=device), p.requires_grad))


@torch.no_grad()
def write(place, tensor):
    """Copies a whole tensor into `place`; into a sharded one, each process copies what is its own."""
    if is_sharded(place):
        # src_data_rank=None: everyone has the tensor (a view of a file), so nothing is sent.
        tensor = distribute_tensor(tensor, place.device_mesh, place.placements, src_data_rank=None).to_local()
        place = place.to_local()
    place.copy_(tensor)


def is_sharded(tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor):
    """The tensor as it is, or gathered from its shards: then every process must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor
