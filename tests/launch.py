"""Runs train.py as real processes that can be killed, without paying Python's imports each time: a fork
server imports train once, and every process of a run is a fork of it, with the environment torchrun would
give."""

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from pathlib import Path

import torch

import model as qwen

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"model_type": "qwen3_5_text", "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SMALL |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
SMALL |= {"linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "full_attention_interval": 2}
SMALL |= {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}
SMALL |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
FLAGS = "--preset tiny --steps 3 --prompts 4 --group 3 --max_new_tokens 24 --lr 1e-3".split()
FLAGS += "--hri_warmup 1 --lr_warmup 0 --lr_decay False --micro_batch_tokens 300 --kl 0".split()
torch.set_num_threads(1)  # before any fork, and matrices this small only lose by waiting for a second thread

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train", "matplotlib.pyplot", "launch", "transformers", "judge_server"])
path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]  # where the server finds them
os.environ["PYTHONPATH"] = os.pathsep.join(path)


def base(folder: Path, seed=0, scale=4, **change) -> Path:
    """A random model with the demo's tokenizer. Larger weights than at a usual start, so that stories
    differ."""
    model = qwen.new(SMALL | change, seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= scale
    qwen.save(model, folder)
    for file in (ROOT / "stories/tiny-base").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_process(model, out: Path, monkeypatch):
    """For a fixture: yields a function that runs train.py here -> the folder. code: how it ends."""
    import train

    monkeypatch.setattr(train.metrics, "plot", lambda *_: None)

    def call(*args, run="tiny", code=0):
        try:
            train.main([*FLAGS, *f"--model {model} --out {out} --name {run}".split(), *map(str, args)])
            ended = 0
        except SystemExit as end:
            ended = end.code
        assert ended == code
        return out / run

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Run:
    """The processes of one `train.py`; `patch` is a function (picklable) that each calls with the module
    before main."""

    def __init__(self, *args, world=1, nodes=1, patch=None, log: Path):
        shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world // nodes}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.log, self.processes = log, []
        log.write_text("")
        for r in range(world):
            env = shared | {"RANK": r, "LOCAL_RANK": r % (world // nodes)} if world > 1 else {}
            what = (list(map(str, args)), env, patch, log)
            self.processes.append(context.Process(target=child, args=what))
            self.processes[-1].start()

    def wait(self, timeout=120):
        """Exit codes, in the order of ranks; a run that hangs is killed and fails."""
        for p in self.processes:
            p.join(timeout)
        hung = [p for p in self.processes if p.is_alive()]
        for p in hung:
            p.kill()
        assert not hung, f"{len(hung)} processes hang:\n{self.log.read_text()}"
        return [p.exitcode for p in self.processes]

    def ok(self, timeout=120):
        codes = self.wait(timeout)
        assert not any(codes), f"{codes}\n{self.log.read_text()}"
        return self


def child(args, env, patch, log):
    os.environ |= {k: str(v) for k, v in env.items()}
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    import train
    from lib import processes

    processes.RANK, processes.WORLD = env.get("RANK", 0), env.get("WORLD_SIZE", 1)
    processes.LOCAL_RANK, processes.LOCAL_WORLD = env.get("LOCAL_RANK", 0), env.get("LOCAL_WORLD_SIZE", 1)
    processes.MAIN = processes.RANK == 0
    if patch:
        patch(train)
    train.main(args)


def metrics(run: Path, drop=("seconds", "tokens_per_second")) -> list[dict]:
    """metrics.jsonl without the clock's figures."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(drop)} for line in lines]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a training state, by name, whatever the number of processes that wrote it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    described = FileSystemReader(checkpoint / "state").read_metadata().state_dict_metadata
    described = {k: m for k, m in described.items() if isinstance(m, TensorStorageMetadata)}
    tensors = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in described.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group exists is the point
        dcp.load(tensors, checkpoint_id=checkpoint / "state", no_dist=True)
    return tensors


def digest(checkpoint: Path) -> dict[str, str]:
    """Hash of each tensor of a training state."""
    raw = {k: v.reshape(-1).view(torch.uint8) for k, v in state(checkpoint).items() if v.numel()}
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in raw.items()}
