"""The processes of one run: which one this is, how all of them meet, their threads and their memory."""

import os
import signal
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets both
LOCAL_RANK, LOCAL_WORLD = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", WORLD))
MAIN = RANK == 0
JOIN = timedelta(minutes=5)  # for all processes to appear
MAX = dist.ReduceOp.MAX
ENDING = ExitStack()  # what a program gives back when it ends, see flags.exits_cleanly


def pick_device() -> torch.device:
    """The device of this process: its own GPU where there is one, set up for every program alike. To be
    called before the first parallel operation: threads inherit what is set here."""
    torch.set_flush_denormal(True)  # strong decays make denormals, which are up to 12 x slower on a CPU
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", LOCAL_RANK)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32 inside the delta rule and the fp32 heads
    return device


def connect() -> torch.device:
    """Joins the other processes (without torchrun there are none) -> the device of this one.
    ValueError: the others do not answer within JOIN."""
    device = pick_device()
    if dist.is_initialized():
        return device
    ENDING.callback(lambda: dist.is_initialized() and dist.destroy_process_group())
    try:
        alone = "WORLD_SIZE" not in os.environ
        store = dist.HashStore() if alone else next(dist.rendezvous("env://", timeout=JOIN))[0]
        # torchrun's store survives its restarts and still holds the addresses of dead processes (torch 2.13).
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # The limit is far above the default: a process whose stories end early waits for the others.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=RANK, world_size=WORLD, timeout=timedelta(hours=2))
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"process {RANK} of {WORLD} could not reach the others at {where}"
        cure = "check that address, the firewall, and that all nodes run"
        raise ValueError(f"{what} ({str(error).splitlines()[0]}); {cure}") from None
    return device


def say(text: str, file=None):
    """Prints on the main process alone."""
    if MAIN and text:
        print(text, file=file, flush=True)


def reduce(x, op=dist.ReduceOp.SUM) -> float:
    """A number summed (or otherwise reduced) over all processes."""
    t = torch.tensor(float(x), dtype=torch.float64)
    dist.all_reduce(t, op)
    return t.item()


def totals(parts: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Sums by name (the largest, where a name ends in "max") over `parts` and over all processes, after one
    wait for the device. All parts of all processes have the same names."""
    columns = {name: [part[name].double() for part in parts] for name in parts[0]}
    mine = [torch.stack(xs).amax() if name.endswith("max") else sum(xs) for name, xs in columns.items()]
    values = zip(columns, torch.stack(mine).tolist())
    return {name: reduce(x, MAX) if name.endswith("max") else reduce(x) for name, x in values}


def from_main(function, *args):
    """function(*args), called on the main process alone; every process gets its result."""
    box = [function(*args) if MAIN else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(items) -> list:
    """The lists of all processes as one list, in the order of ranks."""
    if WORLD == 1:
        return list(items)
    parts = [None] * WORLD
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def catch_signals() -> list[str]:
    """-> a list that gets "SIGTERM" or "Ctrl-C" when one arrives: the program ends in its own time."""
    caught = []
    signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
    signal.signal(signal.SIGINT, lambda *_: caught.append("Ctrl-C"))
    return caught


def choose_threads(parameters: int):
    """Sets torch's threads of this process on a CPU. A small model gets two, or what OMP_NUM_THREADS says: 1
    is faster where other work runs, since threads wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // LOCAL_WORLD)
    if parameters < 100_000_000:
        said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # "4,2": of nested regions, as OpenMP
        threads = min(threads, int(said or 2))
    if not torch.cuda.is_available():
        torch.set_num_threads(threads)


def need_memory(need: float, device: torch.device):
    """ValueError: fewer than `need` bytes are free for this process."""
    free = free_bytes(device) / (1 if device.type == "cuda" else LOCAL_WORLD)
    if need > free:
        what = f"weights, gradients, optimiser and replica need {need / 1e9:.1f} GB per process"
        cure = "more processes with --parallel fsdp or --lora_rank 32 help; see python -m scripts.plan"
        raise ValueError(f"{what}, {free / 1e9:.1f} GB are free; {cure}")


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on `device`, in bytes."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = meminfo.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
