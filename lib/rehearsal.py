"""A program rehearsed on fake tensors as rank 0 of N processes: every operation is dispatched, none computed.

Shapes, dtypes and devices are those of a real run, so a tensor on the wrong device, or a shape that depends
on data, raises. Meanwhile the ledger adds up the storages that live (memory by kind), the times the host
reads a value back (each is a wait for a GPU), and the floating point operations of matrix products. Not seen:
speed, workspaces inside kernels, fragmentation, and whatever a CUDA graph keeps.
"""

import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lib import processes

aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """What happens to the tensors inside.

    kind: the name under which new storages are booked; None: they are not. peaks: {phase: Counter of bytes by
    kind}, each at the moment of that phase at which most is held. waits, flops: {phase: number} of values the
    host read from a device, and of operations of products.
    """

    def __init__(self):
        super().__init__()
        self.live, self.held, self.peaks = {}, Counter(), {}
        self.kind, self.phase, self.waits, self.flops = "temporary", "set-up", Counter(), Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # what happens to its local tensors comes here by itself
        kwargs = kwargs or {}
        if op is aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            return self.wait(args[0])
        out = op(*args, **kwargs)
        if op in (aten._to_copy.default, aten.copy_.default):  # between host and device: does the host wait?
            source = args[0] if op is aten._to_copy.default else args[1]
            at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            self.waits[self.phase] += out.device.type != source.device.type and not at_once
        if op.overloadpacket in flop_registry:
            self.flops[self.phase] += flop_registry[op.overloadpacket](*args, **kwargs, out_val=out)
        if op.overloadpacket is aten.linalg_solve_triangular:
            self.flops[self.phase] += out.numel() * args[0].shape[-1]
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and not x.is_meta and self.kind:
                self.book(x.untyped_storage())
        return out

    def wait(self, x):
        """The host reads x: counted where x is on a device, and answered with ones."""
        self.waits[self.phase] += x.device.type != "cpu"
        return np.ones(tuple(x.shape), float if x.dtype.is_floating_point else int).tolist()

    def book(self, storage):
        """Counts a storage from now until it is released; again, where its size has changed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.live[key] = [weakref.ref(storage, lambda _: self.release(key)), 0, self.kind]
        entry = self.live[key]
        if size != entry[1]:
            entry[2] = entry[2] if entry[1] else self.kind
            self.held[entry[2]] += size - entry[1]
            entry[1] = size
            self.look()

    def release(self, key):
        _, size, kind = self.live.pop(key)
        self.held[kind] -= size

    def look(self):
        peak = self.peaks.get(self.phase)
        if peak is None or self.held.total() > peak.total():
            self.peaks[self.phase] = Counter(self.held)

    def adopt(self, kind: str, tensors):
        """Books these tensors (of a sharded one, what is here) under another kind."""
        for x in tensors:
            x = x.to_local() if isinstance(x, DTensor) else x
            entry = self.live.get(x.untyped_storage()._cdata)
            if entry and entry[2] != kind:
                self.held[entry[2]] -= entry[1]
                self.held[kind] += entry[1]
                entry[2] = kind

    @contextmanager  # and a decorator: what a function makes is booked under `kind`
    def booking(self, kind: str | None):
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def enter(self, phase: str):
        self.phase = phase
        self.look()


@contextmanager
def rehearsal(world: int = 1, local_world: int | None = None):
    """Yields a Ledger; inside, tensors are fake and this process is rank 0 of `world`, of which `local_world`
    are on its node. Collectives return at once. Sums over processes are those of equal processes."""
    ledger = Ledger()
    ranks = {"RANK": 0, "WORLD": world, "LOCAL_RANK": 0, "LOCAL_WORLD": local_world or world, "MAIN": False}
    resize, mesh = torch.UntypedStorage.resize_, dist.init_device_mesh

    def reduce(x, op=dist.ReduceOp.SUM):
        return float(x) if op == processes.MAX else float(x) * world

    def resized(storage, size):  # FSDP frees what it gathered by resizing it to nothing
        resize(storage, size)
        ledger.book(storage)

    def real_mesh(*args, **kwargs):  # a mesh holds the numbers of ranks, not pretended ones
        with unset_fake_temporarily():
            return mesh(*args, **kwargs)

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.multiple(processes, reduce=reduce, **ranks))
            stack.enter_context(patch.object(torch.UntypedStorage, "resize_", resized))
            stack.enter_context(patch.object(dist, "init_device_mesh", real_mesh))
            stack.enter_context(patch.object(FakeTensor, "tolist", lambda x: ledger.wait(x)))
            for name in ("unshard", "wait_for_unshard", "post_backward"):
                booked = ledger.booking("gathered")(getattr(FSDPParamGroup, name))
                stack.enter_context(patch.object(FSDPParamGroup, name, booked))
            # DTensor asks tensors of the global size for shapes, which on a GPU are none that take memory.
            asks = ShardingPropagator._propagate_tensor_meta_non_cached
            stack.enter_context(patch.object(ShardingPropagator, asks.__name__, ledger.booking(None)(asks)))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(ledger)
            yield ledger
    finally:
        dist.destroy_process_group()
