"""The plan against real processes of this machine, operations against a count by hand, and its refusals."""

import ctypes
import os
import re
import socket
from pathlib import Path

import pytest
import torch

import rollout
import train
from launch import FLAGS, SMALL, base, context
from lib import onednn, optim, processes
from lib.sampling import Sampling
from scripts import plan

MIDDLE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
MIDDLE |= {"num_key_value_heads": 2, "head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8}
MIDDLE |= {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "full_attention_interval": 4}
LENGTHS = ["--max_prompt_tokens", "24", "--max_new_tokens", "984", "--micro_batch_tokens", "2048"]
PROMPT = 24 + 16


# ---- memory ------------------------------------------------------------


def status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])


def work(folder, flags, kept) -> dict[str, int]:
    """What the plan rehearses, done -> the highest resident memory of each phase above that at its start."""
    c = train.parse([*FLAGS, *LENGTHS, "--model", str(folder), *flags])
    before, peaks = status("VmRSS"), {}
    model, scorer = train.build(c, torch.device("cpu"))
    optimiser = optim.adamw(scorer, 1e-4, 0.01)
    train.update(c, scorer, optimiser, plan.episodes(32, 16, 1))
    optimiser.zero_grad(set_to_none=True)
    for phase in ("writing", "learning"):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        if phase == "writing":
            with torch.no_grad():
                slots = rollout.Slots(
                    model if c.lora_rank else rollout.replica(model), 1, PROMPT + 984, Sampling()
                )
                slots.fill([0], (0,) * PROMPT, [0])
                slots.decode(8)
            del slots
        else:
            train.update(c, scorer, optimiser, plan.episodes(PROMPT + 984, 984, 4))
        peaks[phase] = status("VmHWM") - before
    kept.append((model, scorer, optimiser))
    return peaks


def real(rank, world, port, folders, flags, pipe):
    """One process of a run. The first folder, tiny, only brings code and libraries into memory."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
    torch.set_num_threads(1)
    onednn.usable = lambda _: False  # a CPU's second copy of the weights, which no GPU has
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
    processes.RANK, processes.WORLD, processes.LOCAL_RANK, processes.LOCAL_WORLD = rank, world, rank, world
    processes.connect()
    kept = []
    pipe.send([work(folder, flags, kept) for folder in folders][-1])
    processes.barrier()


def measured(folders, flags, world) -> dict[str, int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes = [context.Pipe() for _ in range(world)]
    args = [(rank, world, port, folders, flags, pipes[rank][1]) for rank in range(world)]
    started = [context.Process(target=real, args=a) for a in args]
    for process in started:
        process.start()
    try:
        assert pipes[0][0].poll(240)
        return pipes[0][0].recv()
    finally:
        for process in started:
            process.join(30)
            process.kill()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    return [base(where / "tiny"), base(where / "middle", **MIDDLE)]


@pytest.mark.parametrize(
    "flags, world",
    [
        (["--checkpointing", "True"], 1),
        (["--checkpointing", "False"], 1),
        (["--lora_rank", "16", "--checkpointing", "True"], 1),
        (["--lora_rank", "16", "--checkpointing", "False"], 1),
        (["--parallel", "fsdp", "--checkpointing", "True"], 4),
        (["--parallel", "fsdp", "--checkpointing", "False"], 4),
    ],
    ids=["whole", "whole, all kept", "LoRA", "LoRA, all kept", "sharded", "sharded, all kept"],
)
def test_the_peak_is_what_a_real_process_takes(folders, flags, world):
    real = measured(folders, flags, world)
    c = train.parse([*FLAGS, *LENGTHS, "--model", str(folders[1]), *flags])
    rehearsed = plan.rehearse(c, SMALL | MIDDLE, world, 8, half=False)
    print(
        "\nXX",
        flags,
        world,
        {"writing": rehearsed.writing.total(), "learning": rehearsed.learning.total()},
        real,
    )
    print(rehearsed)
    assert rehearsed.learning.total() == pytest.approx(real["learning"], rel=0.10)
    assert rehearsed.writing.total() == pytest.approx(real["writing"], rel=0.10)
