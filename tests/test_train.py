"""The loop: its loss by hand, its checkpoints through kills, full disks and other settings, and every refusal before it starts."""
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from launch import FLAGS, ROOT, SMALL, Run, base, context, digest, metrics, state
from transformers import AutoModelForCausalLM

import data
import hri
import judge as judging
import model as qwen
import train
from judge_server import Server, answer, say, status


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def go(model, tmp_path, monkeypatch):
    """Runs train.py's main in this process -> the run's folder; its last exit code stands in go.code."""
    monkeypatch.setattr(train, "plot", lambda *_: None)
    def call(*args, run="tiny", code=0):
        try:
            train.main([*FLAGS, "--model", str(model), "--out", str(tmp_path / "out"), "--name", run, *map(str, args)])
        except SystemExit as end:
            assert end.code == code
        else:
            assert code == 0
        return tmp_path / "out" / run
    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


# ---- the loss

def loss_by_hand(logp, old, A, mask, count, low, high, human, shaped, sampler, cap, ref, kl, row_weight):
    """Token by token in python floats -> loss and d loss / d logp."""
    loss, grad = 0.0, [[0.0] * len(logp[0]) for _ in logp]
    for b in range(len(logp)):
        for t in range(len(logp[0])):
            weight = mask[b][t] * (row_weight[b] if row_weight else 1) / count
            if human[b]:
                p = math.exp(logp[b][t])
                value, slope = (p / (p + 0.1) * A[b], 0.1 * p / (p + 0.1) ** 2 * A[b]) if shaped else (A[b], A[b])
            else:
                r = math.exp(logp[b][t] - old[b][t])
                clipped = min(max(r, 1 - low), 1 + high)
                value, slope = (r * A[b], r * A[b]) if r * A[b] <= clipped * A[b] else (clipped * A[b], 0.0)
                c = min(math.exp(old[b][t] - sampler[b][t]), cap) if cap else 1.0
                d = ref[b][t] - logp[b][t]
                value, slope = value * c - kl * (math.exp(d) - 1 - d), slope * c + kl * (math.exp(d) - 1)
            loss -= weight * value
            grad[b][t] = -weight * slope
    return loss, grad


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("cap, kl, rows", [(0.0, 0.0, False), (2.0, 0.0, False), (1.2, 0.3, True)])
def test_policy_loss_by_hand(shaped, cap, kl, rows):
    torch.manual_seed(1)
    B, T = 4, 9
    logp = (-3 * torch.rand(B, T, dtype=torch.float64)).requires_grad_()
    old, sampler, ref = (logp.detach() + 0.4 * torch.randn(B, T) for _ in range(3))
    sampler = old + 0.6 * torch.randn(B, T)
    A, human = torch.tensor([1.3, -0.7, 0.4, -2.0], dtype=torch.float64), torch.tensor([False, False, True, True])
    mask = (torch.rand(B, T) < 0.7).double()
    weight = torch.rand(B, dtype=torch.float64) if rows else None
    loss, stats = train.policy_loss(logp, old, A, mask, 17.0, is_human=human, shaped_human=shaped, sampler_logp=sampler,
                                    mismatch_cap=cap, ref_logp=ref, kl=kl, row_weight=weight)
    loss.backward()
    lists = [x.tolist() for x in (logp.detach(), old, A, mask)]
    expected, grad = loss_by_hand(*lists, 17.0, 0.2, 0.28, human.tolist(), shaped, sampler.tolist(), cap, ref.tolist(), kl,
                                  weight.tolist() if rows else None)
    # The POLARIS row counts with ratio 1 in the value, and its gradient is A * grad logp.
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(logp.grad, torch.tensor(grad, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    sampled = mask * ~human[:, None]
    gap = ((old - sampler) * sampled)
    assert stats["sampled"] == sampled.sum() and stats["tokens"] == mask.sum()
    assert stats["gap"] == pytest.approx(gap.abs().sum().item())
    assert stats["k3"] == pytest.approx(((torch.exp(-gap) - 1 + gap) * sampled).sum().item())
    assert stats["over"] == (((gap.exp() > cap) & (sampled > 0)).sum().item() if cap else 0)
    assert stats["gap_max"] == pytest.approx(gap.abs().max().item())


def some_rows(n=7, seed=0):
    r = random.Random(seed)
    rows = []
    for i in range(n):
        start, length = r.randint(2, 9), r.randint(12, 60)
        rows.append(train.Row([r.randrange(4096) for _ in range(length)], start, r.uniform(-2, 2), i % 3 == 2,
                              None if i % 3 == 2 else [-8.0] * (length - start)))
    return rows


@pytest.mark.parametrize("loss_mean", ["token", "sequence", "constant"])
def test_micro_batches_do_not_change_the_gradient(model, loss_mean, monkeypatch):
    train.connect()
    seen = []
    for budget in (60, 10_000):
        c = train.parse([*FLAGS, "--loss_mean", loss_mean, "--micro_batch_tokens", str(budget), "--grad_clip", "1e9"])
        policy = qwen.load(model, torch.float32)
        optimiser = torch.optim.SGD(train.param_groups(policy), lr=0.0)
        stats = train.update(train.Scorer(policy), optimiser, some_rows(), c, torch.device("cpu"))
        seen.append((stats["loss"], stats["grad_norm"], torch.cat([p.grad.flatten() for p in policy.parameters()])))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-6) and seen[0][1] == pytest.approx(seen[1][1], rel=1e-5)
    assert (seen[0][2] - seen[1][2]).norm() < 1e-5 * seen[1][2].norm()


def test_micro_batches_hold_every_row_within_the_budget():
    rows = some_rows(30)
    batches = train.micro_batches(rows, 150)
    assert sorted(map(id, (r for b in batches for r in b))) == sorted(map(id, rows))
    assert all(len(b) == 1 or len(b) * max(r.length for r in b) <= 150 for b in batches)
    assert len(train.micro_batches(rows, 1)) == 30  # a row longer than the budget still trains, alone


# ---- whole runs

def test_a_switch_shows_in_the_loss_of_an_early_step(go):
    steps = ["--steps", "2"]
    usual = metrics(go(*steps, run="usual"))
    no_human = metrics(go(*steps, "--hri", "off", run="no_human"))
    no_deviation = metrics(go(*steps, "--deviation", "0", run="no_deviation"))
    assert no_human[0]["loss"] == usual[0]["loss"]       # the weight of the human row is 0 at step 0
    assert abs(no_human[1]["loss"] - usual[1]["loss"]) > 1e-3 and no_human[1]["hri/reward"] is None
    assert abs(no_deviation[0]["loss"] - usual[0]["loss"]) > 1e-4
    assert usual[0]["mismatch/mean"] < 1e-5 and usual[0]["clip/share"] == 0.0
    for name in ("reward/quality", "reward/length", "reward/repetition", "reward/blank", "length/in_band", "entropy", "truncated"):
        assert usual[1][name] is not None, name


def test_deviation_0_is_the_loop_without_its_line(go, monkeypatch):
    off = go("--deviation", "0", run="off")
    monkeypatch.setattr(train.deviation, "weigh_advantages", lambda advantages, *_: advantages)
    without = go("--deviation", "0.5", run="without")
    assert [m["loss"] for m in metrics(off)] == [m["loss"] for m in metrics(without)]
    assert digest(newest(off)) == digest(newest(without))  # weights and optimiser, bit for bit


def test_more_updates_a_batch_clip(go):
    once = metrics(go("--steps", "1", "--lr", "1e-2", run="once"))
    often = metrics(go("--steps", "1", "--lr", "1e-2", "--updates_per_batch", "3", run="often"))
    never = metrics(go("--steps", "1", "--lr", "1e-2", "--updates_per_batch", "3", "--clip_low", "1", "--clip_high", "1e9", run="never"))
    assert once[0]["clip/share"] == never[0]["clip/share"] == 0 and often[0]["clip/share"] > 0.01
    assert often[0]["grad_norm"] != never[0]["grad_norm"]


def test_kl_to_the_starting_policy_begins_at_zero(go):
    free, held = metrics(go("--steps", "2", run="free")), metrics(go("--steps", "2", "--kl", "5", run="held"))
    assert free[0]["loss"] == pytest.approx(held[0]["loss"], abs=1e-7)
    assert abs(free[1]["loss"] - held[1]["loss"]) > 1e-4


def test_warm_start_lowers_the_nll_and_saves_for_transformers(go):
    flags = ["--steps", "0", "--warm_start_rows", "4", "--warm_start_lr", "1e-2", "--max_new_tokens", "64", "--micro_batch_tokens", "1000"]
    nll = [metrics(go(*flags, "--warm_start_steps", n, run=f"warm{n}"))[0]["warm_start/nll"] for n in (1, 12)]
    assert nll[1] < nll[0] - 0.1
    AutoModelForCausalLM.from_pretrained(newest(go(*flags, "--warm_start_steps", 1)))


def test_nan_gradients_are_skipped_counted_and_stop_the_run_at_three(go, monkeypatch, capsys):
    honest, calls = train.policy_loss, []
    def broken(at):
        def loss(*args, **kwargs):
            calls.append(1)
            value, stats = honest(*args, **kwargs)
            return value * (math.nan if len(calls) in at else 1.0), stats
        return loss
    flags = ["--micro_batch_tokens", "100000"]  # one micro-batch: one call an update
    monkeypatch.setattr(train, "policy_loss", broken({2}))
    assert [m["bad_updates"] for m in metrics(go(*flags, run="once"))] == [0, 1, 0]
    calls.clear()
    monkeypatch.setattr(train, "policy_loss", broken(set(range(1, 99))))
    run = go(*flags, "--steps", 9, run="always", code=1)
    assert [m["bad_updates"] for m in metrics(run)] == [1, 2, 3]
    assert "three times in a row" in capsys.readouterr().err
    saved = state(newest(run))
    assert all(t.isfinite().all() for t in saved.values() if t.is_floating_point())
    monkeypatch.setattr(train, "policy_loss", honest)
    assert [m["bad_updates"] for m in metrics(go(*flags, "--steps", 4, "--resume", "auto", run="always"))][-1] == 0


def test_lora_run_saves_merged_and_adapter_and_resumes_exactly(go):
    flags = ["--lora_rank", 4, "--lora_alpha", 8, "--save_every", 1, "--keep", 0]
    straight = go(*flags, run="straight")
    go(*flags, "--steps", 2, run="halves")
    halves = go(*flags, "--resume", "auto", run="halves")
    a, b = newest(straight), newest(halves)
    assert digest(a) == digest(b) and metrics(straight) == metrics(halves)
    assert not any("mlp.up_proj.weight" in name for name in state(a))  # the frozen base is not saved twice
    config = json.loads((a / "adapter/adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8
    agree_with_transformers(a)


def agree_with_transformers(folder):
    ids = torch.randint(0, 4096, (1, 50))
    ours = qwen.load(folder, torch.float32)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        assert (ours.logits(ours(ids)) - theirs).abs().max() < 1e-4 and theirs.std() > 0.1
    assert data.load_tokenizer(folder).encode("A keeper") == data.load_tokenizer(ROOT / "stories/tiny-base").encode("A keeper")


# ---- kills

def killed(train, name, number):
    """SIGKILL at the n-th call of train.<name>, after it has done a part of its work."""
    honest, calls = getattr(train, name), []
    def wrapper(*args, **kwargs):
        calls.append(1)
        result = honest(*args, **kwargs)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(train, name, wrapper)


def kill_in_update(train, number=3):
    killed(train, "policy_loss", number)


def kill_in_sampling(train):
    honest = train.rollout.generate
    def generate(*args, on_finish, **kwargs):
        def finish(i, done):
            on_finish(i, done)
            if i == 1 and generate.calls == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        generate.calls += 1
        return honest(*args, on_finish=finish, **kwargs)
    generate.calls = 0
    train.rollout.generate = generate


def no_sampling_at_first(train):
    honest, calls = train.sample, []
    def sample(c, step, *args):
        assert step != 2, "stories of step 2 were written before the kill and must not be bought twice"
        return honest(c, step, *args)
    train.sample = sample


def terminated_in_sampling(train):
    honest = train.rollout.generate
    def generate(*args, on_finish, **kwargs):
        def finish(i, done):
            if i == 1 and generate.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            on_finish(i, done)
        generate.calls += 1
        return honest(*args, on_finish=finish, **kwargs)
    generate.calls = 0
    train.rollout.generate = generate


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """Four steps without a break."""
    out = tmp_path_factory.mktemp("straight")
    flags = [*FLAGS, "--model", model, "--steps", 4, "--save_every", 2, "--micro_batch_tokens", 100000]
    Run(*flags, "--out", out, log=out / "log").ok()
    return flags, out / "tiny"


def same(a: Path, b: Path):
    assert digest(newest(a)) == digest(newest(b))
    assert metrics(a) == metrics(b)


def test_killed_in_update_and_in_sampling_goes_on_as_if_nothing_had_been(straight, tmp_path):
    flags, whole = straight
    flags = [*flags, "--out", tmp_path, "--resume", "auto"]  # auto without a checkpoint yet starts anew
    assert Run(*flags, patch=kill_in_update, log=tmp_path / "1").wait() == [-signal.SIGKILL]
    assert [p.name for p in (tmp_path / "tiny/checkpoints").iterdir()] == ["step_000002"]
    Run(*flags, "--steps", 3, "--save_every", 9, patch=no_sampling_at_first, log=tmp_path / "2").ok()
    shutil.rmtree(tmp_path / "tiny/checkpoints/step_000003")
    assert Run(*flags, patch=kill_in_sampling, log=tmp_path / "3").wait() == [-signal.SIGKILL]
    Run(*flags, log=tmp_path / "4").ok()
    same(whole, tmp_path / "tiny")
    assert [p.name for p in sorted((tmp_path / "tiny/checkpoints").iterdir())] == ["step_000002", "step_000004"]
    agree_with_transformers(newest(whole))


def test_sigterm_saves_first_and_resumes_exactly(straight, tmp_path):
    flags, whole = straight
    run = Run(*flags, "--out", tmp_path, patch=terminated_in_sampling, log=tmp_path / "1")
    assert run.wait() == [1] and "SIGTERM received; the state is saved" in run.log.read_text()
    assert newest(tmp_path / "tiny").name == "step_000002"
    Run(*flags, "--out", tmp_path, "--resume", newest(tmp_path / "tiny"), log=tmp_path / "2").ok()
    same(whole, tmp_path / "tiny")


def test_sigterm_before_the_first_update_resumes_exactly(straight, go, monkeypatch):
    flags, whole = straight
    honest = train.rollout.generate
    def generate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **kwargs)
    monkeypatch.setattr(train.rollout, "generate", generate)
    run = go(*flags[len(FLAGS) + 2:], code=1)
    assert newest(run).name == "step_000000"
    monkeypatch.setattr(train.rollout, "generate", honest)
    same(whole, go(*flags[len(FLAGS) + 2:], "--resume", "auto"))


def save_for_ever(folder, out):
    train.connect()
    c = train.parse([*FLAGS, "--model", str(folder), "--out", str(out), "--keep", "2"])
    policy, scorer = train.build(c, torch.device("cpu"))
    optimiser = torch.optim.AdamW(train.param_groups(scorer), lr=1e-3)
    tokenizer, done = data.load_tokenizer(folder), out / "tiny/checkpoints"
    train.open_run(train.replace(c, resume="auto"), policy, optimiser)
    step = max([int(p.name[5:]) for p in done.glob("step_*")], default=0)
    (out / "ready").touch()
    for n in range(500):  # not for ever after all: it must not outlive a test that was killed
        step += 1 - n % 2  # every second save goes over the folder of the one before
        train.save_checkpoint(c, policy, optimiser, step, tokenizer)


def test_twenty_kills_during_saves_leave_only_checkpoints_that_load(model, tmp_path):
    r, out, interrupted = random.Random(0), tmp_path / "out", 0
    out.mkdir()
    folder = out / "tiny/checkpoints"
    for kill in range(20):
        process = context.Process(target=save_for_ever, args=(model, out))
        process.start()
        while process.is_alive() and not (out / "ready").exists():
            time.sleep(0.002)
        began = time.time()
        while process.is_alive() and not list(folder.glob("step_*")):
            time.sleep(0.002)
        if kill == 0:
            seconds = time.time() - began  # of one save, on this machine
        time.sleep(r.uniform(0, 1.5 * seconds))
        assert process.is_alive()
        process.kill()
        process.join()
        (out / "ready").unlink()
        interrupted += bool(list(folder.glob(".*")))
        for checkpoint in folder.glob("step_*"):
            qwen.load(checkpoint, torch.float32)
            assert json.loads((checkpoint / "trainer.json").read_text())["step"] == int(checkpoint.name[5:])
            assert all(t.isfinite().all() for t in state(checkpoint).values() if t.is_floating_point())
    assert interrupted >= 5  # the kills did hit saves
    train.connect()  # and what stands there at the end is taken up
    c = train.parse([*FLAGS, "--model", str(model), "--out", str(out), "--resume", "auto"])
    policy, scorer = train.build(c, torch.device("cpu"))
    start = train.open_run(c, policy, torch.optim.AdamW(train.param_groups(scorer)))[1]
    assert start == max(int(p.name[5:]) for p in folder.glob("step_*")) >= 1


def no_room(train):
    """From the second save on no file may grow beyond 60 kB, as on a full disk."""
    honest, calls = train.save_checkpoint, []
    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        honest(*args, **kwargs)
    train.save_checkpoint = save


def test_full_disk_while_saving_keeps_the_old_checkpoint(straight, tmp_path):
    flags, whole = straight
    run = Run(*flags, "--out", tmp_path, patch=no_room, log=tmp_path / "log")
    assert run.wait() == [2] and "could not save" in run.log.read_text() and "Traceback" not in run.log.read_text()
    assert [p.name for p in (tmp_path / "tiny/checkpoints").iterdir()] == ["step_000002"]
    assert digest(newest(tmp_path / "tiny")) == digest(whole / "checkpoints/step_000002")
    Run(*flags, "--out", tmp_path, "--resume", "auto", log=tmp_path / "log").ok()
    same(whole, tmp_path / "tiny")


# ---- the judge fails

JUDGE = ["--judge", "api", "--judge_model", "m", "--steps", "2", "--hri", "off"]


def verdict(score):
    def change(v):
        for d, part in v.items():
            part["score"] = score if d.startswith("P") and d[1:].isdigit() else 0
    return say(answer(change))


def test_a_story_without_a_verdict_leaves_its_group(go, monkeypatch):
    monkeypatch.setattr(judging, "Judge", partial(judging.Judge, retries=0))
    with Server(lambda body, n: status(500) if n > 2 and n % 7 == 0 else verdict(5 + n % 5)) as server:
        run = go(*JUDGE, "--judge_url", server.url)
    lines = metrics(run)
    assert all(0 < m["judge/failed"] < 12 and m["loss"] is not None for m in lines)
    rows = data.read_episodes(run / "rollouts/step_000000.jsonl")
    failed = [e for e in rows if e.reward is None]
    assert len(failed) == lines[0]["judge/failed"] and all(e.advantage == 0 and e.verdict is None for e in failed)
    assert sum(r.trained for r in train.rows_of(rows)) == len(rows) - len(failed)


def test_a_step_without_verdicts_is_retried_then_stops_with_its_stories_kept(go, monkeypatch, capsys):
    monkeypatch.setattr(judging, "Judge", partial(judging.Judge, retries=0))
    monkeypatch.setattr(train.time, "sleep", lambda s: None)
    with Server(lambda body, n: verdict(5) if "Mara climbed" in json.dumps(body) else status(500)) as server:  # its own check passes
        run = go(*JUDGE, "--judge_url", server.url, code=1)
        assert "no verdict for a whole step" in capsys.readouterr().err
    assert newest(run).name == "step_000000" and metrics(run) == []
    written = len(list((run / "rollouts").glob(".step_000000*")))
    assert written == 1
    def refuse(*args, **kwargs):
        raise AssertionError("the stories of step 0 were written already")
    monkeypatch.setattr(train, "sample", refuse)
    with Server(lambda body, n: verdict(5 + n % 5)) as server:
        run = go(*JUDGE, "--steps", 1, "--judge_url", server.url, "--resume", "auto")
    assert len(metrics(run)) == 1 and metrics(run)[0]["judge/failed"] == 0


# ---- bad input: exit code 2, one sentence, nothing written

@pytest.mark.parametrize("args, sentence", [
    (["--no_such_flag", "1"], "no_such_flag"), (["--preset", "huge"], "--preset huge"), (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--model", "no/such"], "no/such"), (["--model", "nowhere"], "nowhere"), (["--group", "1"], "--group 1"),
    (["--hri", "sometimes"], "--hri sometimes"), (["--deviation", "2"], "--deviation 2"), (["--prompts", "999"], "needs 999"),
    (["--resume", "gone/step_000001"], "gone/step_000001"), (["--lora_rank", "4", "--parallel", "fsdp"], "--parallel ddp"),
    (["--judge", "api", "--judge_url", "", "--judge_model", ""], "JUDGE_URL"), (["--updates_per_batch", "0"], "--updates_per_batch 0"),
    (["--judge", "api", "--judge_url", "http://127.0.0.1:9/v1", "--judge_model", "m"], "127.0.0.1:9"),
    (["--loss_mean", "median"], "median"), (["--temperature", "0"], "--temperature 0"), (["--top_p", "0"], "--top_p 0")])
def test_refuses_in_one_sentence_and_writes_nothing(model, tmp_path, monkeypatch, capsys, args, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "Judge", partial(judging.Judge, retries=0))
    with pytest.raises(SystemExit) as end:
        train.main([*FLAGS, "--model", str(model), *args])
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert end.value.code == 2 and sentence in last and "error: " in last and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_world_size_must_divide_the_batch():
    with pytest.raises(ValueError, match="--prompts 4 does not divide over 3 processes"):
        train.check(train.parse(FLAGS), 3)
    with pytest.raises(ValueError, match="separate models"):
        train.check(train.parse([*FLAGS, "--parallel", "none"]), 2)
    train.check(train.parse(FLAGS), 4)


def test_polaris_preset_has_the_papers_numbers_and_wants_a_judge(monkeypatch):
    c = train.parse(["--preset", "polaris-9b", "--judge_url", "", "--judge_model", ""])
    assert (c.prompts, c.group, c.lr, c.clip_low, c.clip_high, c.hri_peak, c.hri_warmup) == (8, 5, 1e-6, 0.20, 0.28, 0.4, 15)
    assert (c.max_new_tokens, c.max_prompt_tokens, c.top_p, c.top_k, c.repetition_penalty) == (8192, 256, 0.95, 20, 1.10)
    with pytest.raises(ValueError, match="JUDGE_URL and JUDGE_MODEL"):
        train.check(c, 4)


def test_states_that_cannot_fit_are_refused_before_any_weight_is_read(tmp_path, monkeypatch, capsys):
    """A folder with the 70B-sized config and no weights at all."""
    folder = base(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= dict(hidden_size=8192, intermediate_size=24576, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main([*FLAGS, "--model", str(folder)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and "python -m scripts.plan" in err and "GB" in err and not (tmp_path / "out").exists()


def test_resume_says_what_differs(go, tmp_path, capsys, model):
    run = go("--steps", 1)
    go("--lora_rank", 4, "--resume", "auto", code=2)
    assert "--lora_rank 0" in capsys.readouterr().err
    other = base(tmp_path / "wider", intermediate_size=80)
    go("--model", other, "--resume", "auto", code=2)
    err = capsys.readouterr().err
    assert "does not fit" in err and "Size mismatch" in err and "Traceback" not in err
    go("--lr", "1e-9", "--steps", 2, "--resume", "auto")
    assert "--lr 1e-09 (was 0.001)" in capsys.readouterr().out
    before, after = state(run / "checkpoints/step_000001"), state(run / "checkpoints/step_000002")
    moved = max((after[k] - before[k]).abs().max().item() for k in before if k.startswith("model.") and before[k].is_floating_point())
    assert 0 < moved < 1e-6  # the flag is what counts, not the rate in the checkpoint
    (run / "checkpoints/step_000002/state").rename(tmp_path / "state")
    go("--resume", "auto", code=2)
    assert "no training state" in capsys.readouterr().err


def test_an_earlier_run_of_the_same_name_is_kept(go):
    run = go("--steps", 1)
    before = metrics(run)
    go("--steps", 1, "--seed", 1)
    kept = [p for p in run.parent.iterdir() if p.name.startswith("tiny-until-")]
    assert len(kept) == 1 and metrics(kept[0]) == before and metrics(run) != before
