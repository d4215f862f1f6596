"""The trainer as several processes (gloo): same losses and weights as one, no hang, one signal stops all,
torchrun restarts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from datetime import timedelta

import pytest

import train
from launch import FLAGS, ROOT, Run, base, metrics, state
from scripts import prefer

OFTEN = ["--micro_batch_tokens", "120"]  # so that processes differ in how many micro-batches they have


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    Run(*FLAGS, *OFTEN, "--model", model, "--out", out, log=out / "log").ok()
    return out / "tiny"


def check(run, alone):
    for one, many in zip(metrics(alone), metrics(run), strict=True):
        assert one.keys() == many.keys()
        names = "loss grad_norm reward/mean entropy nll hri/advantage deviation/mean length/words"
        for name in names.split():
            assert many[name] == pytest.approx(one[name], abs=1e-5), name
    a, b = (state(sorted((r / "checkpoints").glob("step_*"))[-1]) for r in (alone, run))
    assert a.keys() == b.keys()
    for name in a:
        if a[name].numel():
            assert (a[name] - b[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("parallel, world, nodes", [("ddp", 2, 1), ("fsdp", 4, 1), ("hsdp", 4, 2)])
def test_many_processes_train_as_one(model, alone, tmp_path, parallel, world, nodes):
    """Three steps: losses and weights within 1e-5. hsdp: two nodes of two, each holding the whole model
    between them."""
    flags = [*FLAGS, *OFTEN, "--model", model, "--out", tmp_path, "--parallel", parallel]
    Run(*flags, world=world, nodes=nodes, log=tmp_path / "log").ok()
    check(tmp_path / "tiny", alone)
    if parallel == "fsdp":  # its checkpoint resumes with one process, unsharded, and the other way round
        again = [*FLAGS, *OFTEN, "--model", model, "--steps", 4, "--resume", "auto"]
        Run(*again, "--out", tmp_path, log=tmp_path / "log").ok()
        shutil.copytree(alone, tmp_path / "other/tiny")
        Run(*again, "--out", tmp_path / "other", "--parallel", "fsdp", world=2, log=tmp_path / "log").ok()
        check(tmp_path / "tiny", tmp_path / "other/tiny")


def uneven(train):
    """Ranks write 1, 30 or 60 times as many tokens as others, and the slow one is late as well."""
    from lib import processes

    honest = train.rollout.write_rows

    def write_rows(*args, max_new_tokens, **kwargs):
        time.sleep(0.7 * (processes.RANK == 2))
        return honest(*args, max_new_tokens=[1, 30, 60, 2][processes.RANK], **kwargs)

    train.rollout.write_rows = write_rows


def test_uneven_stories_do_not_hang(model, tmp_path):
    flags = [*FLAGS, *OFTEN, *f"--model {model} --out {tmp_path} --parallel fsdp".split()]
    flags += "--steps 2 --kl 0.1 --updates_per_batch 2".split()
    Run(*flags, world=4, patch=uneven, log=tmp_path / "log").ok()
    assert [m["loss"] is not None for m in metrics(tmp_path / "tiny")] == [True, True]


def one_is_terminated(train):
    from lib import processes

    honest = train.sample

    def sample(c, step, *args):
        if processes.RANK == 1 and step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(c, step, *args)

    train.sample = sample


def test_a_signal_to_one_process_stops_all_and_resumes(model, alone, tmp_path):
    flags = [*FLAGS, *OFTEN, "--model", model, "--out", tmp_path]
    run = Run(*flags, world=2, patch=one_is_terminated, log=tmp_path / "log")
    assert run.wait() == [1, 1] and "SIGTERM received" in run.log.read_text()
    assert [p.name for p in (tmp_path / "tiny/checkpoints").iterdir()] == ["step_000001"]
    Run(*flags, "--resume", "auto", world=2, log=tmp_path / "log").ok()
    check(tmp_path / "tiny", alone)


def impatient(train):
    from lib import processes

    processes.JOIN = timedelta(seconds=2)


def test_unreachable_rendezvous_is_one_sentence(model, tmp_path):
    run = Run(
        *FLAGS, "--model", model, "--out", tmp_path / "out", world=2, patch=impatient, log=tmp_path / "log"
    )
    run.processes[0].kill()  # the process that the others would meet at
    assert run.wait()[1] == 2
    errors = [line for line in run.log.read_text().splitlines() if "error:" in line]
    assert len(errors) == 1 and re.search(
        r"process 1 of 2 could not reach the others at 127.0.0.1:\d+ .*check that address", errors[0]
    )
    assert not (tmp_path / "out").exists()


def test_torchrun_restarts_from_the_checkpoint_when_a_worker_is_killed(model, alone, tmp_path):
    """torchrun itself, four workers; one gets SIGKILL once the first checkpoint stands."""
    flags = [*FLAGS, *OFTEN, *f"--model {model} --out {tmp_path} --save_every 1 --keep 0".split()]
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=4 --max-restarts=2"
    command = [sys.executable, *torchrun.split(), ROOT / "train.py", *flags, "--resume", "auto"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [str(x) for x in command], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    first, until = tmp_path / "tiny/checkpoints/step_000001", time.time() + 300
    while not first.exists() and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) == 4, (tmp_path / "log").read_text()
    os.kill(int(children[2]), signal.SIGKILL)
    try:
        assert process.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert len([p for p in tmp_path.iterdir() if p.name.startswith("tiny")]) == 1  # gone on, not begun anew
    assert "(exitcode: -9) local_rank: 2" in (tmp_path / "log").read_text()
    check(tmp_path / "tiny", alone)


@pytest.mark.parametrize("config", [train.Config, prefer.Config])
def test_torchrun_leaves_every_flag_to_the_script(config):
    """torchrun reads what stands behind the script as well, and takes a flag that abbreviates one of its
    own."""
    from torch.distributed.run import parse_args

    for f in fields(config):
        assert parse_args(["train.py", f"--{f.name}", "1"]).training_script_args == [f"--{f.name}", "1"]
