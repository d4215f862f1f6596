"""The loop: its loss by hand, its checkpoints through kills, full disks and other settings, and every refusal
before it starts."""

import json
import math
import os
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import data
import judge as judging
import model as qwen
import train
from data import Episode, Example
from judge_server import Server, answer, say, status
from launch import FLAGS, ROOT, Run, base, context, digest, in_process, metrics, state
from lib import checkpoint, optim, processes
from lib.packed import micro_batches
from lib.parallel import Scorer


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def go(model, tmp_path, monkeypatch):
    yield from in_process(model, tmp_path / "out", monkeypatch)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


# ---- the loss


def loss_by_hand(c, logp, old, A, human, weight, count, sampler, ref):
    """Token by token in Python floats -> loss and d loss / d logp."""
    loss, grad = 0.0, []
    for t in range(len(logp)):
        if human[t]:
            value, slope = A[t], A[t]
        else:
            r = math.exp(logp[t] - old[t])
            clipped = min(max(r, 1 - c.clip_low), 1 + c.clip_high)
            value, slope = (r * A[t], r * A[t]) if r * A[t] <= clipped * A[t] else (clipped * A[t], 0.0)
            w = min(math.exp(old[t] - sampler[t]), c.mismatch_cap) if c.mismatch_cap else 1.0
            d = ref[t] - logp[t]
            value, slope = value * w - c.kl * (math.exp(d) - 1 - d), slope * w + c.kl * (math.exp(d) - 1)
        loss -= value * weight[t] / count
        grad.append(-slope * weight[t] / count)
    return loss, grad


@pytest.mark.parametrize("cap, kl, rows", [(0.0, 0.0, False), (2.0, 0.0, False), (1.2, 0.3, True)])
def test_policy_loss_by_hand(cap, kl, rows):
    torch.manual_seed(1)
    N = 40
    c = train.parse([*FLAGS, "--mismatch_cap", str(cap), "--kl", str(kl)])
    logp = (-3 * torch.rand(N, dtype=torch.float64)).requires_grad_()
    old, ref = (logp.detach() + 0.4 * torch.randn(N) for _ in range(2))
    sampler = old + 0.6 * torch.randn(N)
    A, human = torch.randn(N, dtype=torch.float64), torch.arange(N) % 4 == 3
    weight = (torch.rand(N) < 0.7).double() * (torch.rand(N, dtype=torch.float64) if rows else 1.0)
    loss, stats = train.policy_loss(c, logp, old, A, human, weight, 17.0, sampler, ref)
    loss.backward()
    lists = [x.tolist() for x in (logp.detach(), old, A, human, weight)]
    expected, grad = loss_by_hand(c, *lists, 17.0, sampler.tolist(), ref.tolist())
    # The reference counts with ratio 1 in the value, and its gradient is A * grad logp.
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(logp.grad, torch.tensor(grad, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    sampled = (weight > 0) & ~human
    gap = (old - sampler) * sampled
    assert stats["sampled"] == sampled.sum() and stats["tokens"] == (weight > 0).sum()
    assert stats["mismatch/mean"].item() == pytest.approx(gap.abs().sum().item())
    assert stats["mismatch/k3"].item() == pytest.approx(((torch.exp(-gap) - 1 + gap) * sampled).sum().item())
    assert stats["mismatch/clipped"] == (((gap.exp() > cap) & sampled).sum().item() if cap else 0)
    assert stats["mismatch/max"].item() == pytest.approx(gap.abs().max().item())


@pytest.mark.parametrize("normalise", [True, False])
def test_grpo_advantages_against_plain_floats(normalise):
    r = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(300):
        rewards = [r.choice([r.uniform(-2, 2), 0.25, None]) for _ in range(r.randint(1, 7))]
        group = [Episode(EXAMPLE, [1], [2], None, True, False, "", reward=x) for x in rewards]
        group.append(
            Episode(EXAMPLE, [1], [2], None, True, True, "", reward=9.0)
        )  # the reference enters no mean
        train.grpo_advantages([group], normalise)
        values = [x for x in rewards if x is not None]
        ranks = len(values) > 1 and max(values) - min(values) > 1e-6
        assert group[-1].advantage is None
        seen[ranks] += 1
        for row, x in zip(group, rewards):
            if not ranks or x is None:
                assert row.advantage is None  # such a row is not learned from
                continue
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) + 1e-6
            a = (x - mean) / (std if normalise else 1)
            assert row.advantage == pytest.approx(a, rel=1e-9, abs=1e-12)
    assert min(seen.values()) > 20  # both kinds of groups were met


EXAMPLE = Example("e", "Write a story, 20 words long.", 20)


def some_groups(n=7, seed=0):
    r = random.Random(seed)
    rows = []
    for i in range(n):
        start, length = r.randint(2, 9), r.randint(12, 60)
        ids, human = [r.randrange(4096) for _ in range(length)], i % 3 == 2
        logprobs = None if human else [-8.0] * (length - start)
        row = Episode(EXAMPLE, ids[:start], ids[start:], logprobs, True, human, "", reward=1.0)
        row.advantage = r.uniform(-2, 2)
        rows.append(row)
    return [rows[:4], rows[4:]]


@pytest.mark.parametrize("loss_mean", ["token", "sequence", "constant"])
def test_micro_batches_do_not_change_the_gradient(model, loss_mean):
    processes.connect()
    seen = []
    for budget in (60, 10_000):
        more = ["--micro_batch_tokens", str(budget), "--grad_clip", "1e9"]
        c = train.parse([*FLAGS, "--loss_mean", loss_mean, *more])
        policy = qwen.load(model, torch.float32)
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
        stats = train.update(c, Scorer(policy, False), optimiser, some_groups())
        seen.append(
            (stats["loss"], stats["grad_norm"], torch.cat([p.grad.flatten() for p in policy.parameters()]))
        )
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-6)
    assert seen[0][1] == pytest.approx(seen[1][1], rel=1e-5)
    assert (seen[0][2] - seen[1][2]).norm() < 1e-5 * seen[1][2].norm()


def test_micro_batches_hold_every_row_within_the_budget():
    processes.connect()
    rows = some_groups(30)[1]
    chunks = micro_batches(rows, 150, data.length, train.IDLE)
    assert sorted(map(id, (r for b in chunks for r in b))) == sorted(map(id, rows))
    assert all(len(b) == 1 or len(b) * max(map(data.length, b)) <= 150 for b in chunks)
    alone = micro_batches(rows, 1, data.length, train.IDLE)
    assert len(alone) == len(rows)  # a row longer than the budget trains alone


# ---- whole runs


def test_a_switch_shows_in_the_loss_of_an_early_step(go):
    steps = ["--steps", "2"]
    usual = metrics(go(*steps, run="usual"))
    no_human = metrics(go(*steps, "--hri", "off", run="no_human"))
    no_deviation = metrics(go(*steps, "--deviation", "0", run="no_deviation"))
    assert no_human[0]["loss"] == usual[0]["loss"]  # the weight of the human row is 0 at step 0
    assert abs(no_human[1]["loss"] - usual[1]["loss"]) > 1e-3 and no_human[1]["hri/reward"] is None
    assert abs(no_deviation[0]["loss"] - usual[0]["loss"]) > 1e-4
    assert usual[0]["mismatch/mean"] < 1e-5 and usual[0]["clip/share"] == 0.0
    for name in (
        "reward/quality",
        "reward/length",
        "reward/repetition",
        "reward/blank",
        "length/in_band",
        "entropy",
        "truncated",
    ):
        assert usual[1][name] is not None, name


def test_deviation_0_is_the_loop_without_its_line(go, monkeypatch):
    off = go("--deviation", "0", run="off")
    monkeypatch.setattr(train.deviation, "weigh", lambda *_: None)
    without = go("--deviation", "0.5", run="without")
    assert [m["loss"] for m in metrics(off)] == [m["loss"] for m in metrics(without)]
    assert digest(newest(off)) == digest(newest(without))  # weights and optimiser, bit for bit


def test_more_updates_a_batch_clip(go):
    once = metrics(go("--steps", "1", "--lr", "1e-2", run="once"))
    often = metrics(go("--steps", "1", "--lr", "1e-2", "--updates_per_batch", "3", run="often"))
    never = metrics(
        go(*"--steps 1 --lr 1e-2 --updates_per_batch 3 --clip_low 1 --clip_high 1e9".split(), run="never")
    )
    assert once[0]["clip/share"] == never[0]["clip/share"] == 0 and often[0]["clip/share"] > 0.01
    assert often[0]["grad_norm"] != never[0]["grad_norm"]


def test_kl_to_the_starting_policy_begins_at_zero(go):
    free, held = metrics(go("--steps", "2", run="free")), metrics(go("--steps", "2", "--kl", "5", run="held"))
    assert free[0]["loss"] == pytest.approx(held[0]["loss"], abs=1e-7)
    assert abs(free[1]["loss"] - held[1]["loss"]) > 1e-4


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
    assert [m["bad_updates"] for m in metrics(go(*flags, "--steps", 4, "--resume", "auto", run="always"))][
        -1
    ] == 0


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
    assert data.load_tokenizer(folder).encode("A keeper") == data.load_tokenizer(
        ROOT / "stories/tiny-base"
    ).encode("A keeper")


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


def when_story_is_finished(train, call, number):
    """Signal `number` to this process at the second story of the call-th step that samples."""
    honest, calls = train.rollout.write_rows, []

    def write_rows(*args, **kwargs):
        calls.append(1)
        for i in honest(*args, **kwargs):
            if i == 1 and len(calls) == call:
                os.kill(os.getpid(), number)
            yield i

    train.rollout.write_rows = write_rows


def kill_in_sampling(train):
    when_story_is_finished(train, 2, signal.SIGKILL)


def terminated_in_sampling(train):
    when_story_is_finished(train, 3, signal.SIGTERM)


def interrupted_in_sampling(train):
    when_story_is_finished(train, 3, signal.SIGINT)


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
    assert Run(*flags, patch=kill_in_sampling, log=tmp_path / "3").wait() == [-signal.SIGKILL]
    Run(*flags, log=tmp_path / "4").ok()
    same(whole, tmp_path / "tiny")
    left = sorted(p.name for p in (tmp_path / "tiny/checkpoints").iterdir())
    assert left == ["step_000002", "step_000004"]
    agree_with_transformers(newest(whole))


@pytest.mark.parametrize(
    "patch, name", [(terminated_in_sampling, "SIGTERM"), (interrupted_in_sampling, "Ctrl-C")]
)
def test_a_signal_saves_first_and_resumes_exactly(straight, tmp_path, patch, name):
    flags, whole = straight
    run = Run(*flags, "--out", tmp_path, patch=patch, log=tmp_path / "1")
    assert run.wait() == [1]
    said = run.log.read_text()
    assert f"{name} received; the state is saved" in said and "--resume auto goes on" in said
    assert newest(tmp_path / "tiny").name == "step_000002"
    Run(*flags, "--out", tmp_path, "--resume", newest(tmp_path / "tiny"), log=tmp_path / "2").ok()
    same(whole, tmp_path / "tiny")


def test_sigterm_before_the_first_update_resumes_exactly(straight, go, monkeypatch):
    flags, whole = straight
    honest = train.rollout.write_rows

    def write_rows(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **kwargs)

    monkeypatch.setattr(train.rollout, "write_rows", write_rows)
    run = go(*flags[len(FLAGS) + 2 :], code=1)
    assert newest(run).name == "step_000000"
    monkeypatch.setattr(train.rollout, "write_rows", honest)
    same(whole, go(*flags[len(FLAGS) + 2 :], "--resume", "auto"))


def save_for_ever(folder, out):
    processes.connect()
    c = train.parse([*FLAGS, "--model", str(folder), "--out", str(out), "--keep", "2", "--name", "tiny"])
    policy, scorer = train.build(c, torch.device("cpu"))
    optimiser = optim.adamw(scorer, 1e-3, 0.0)
    done = out / "tiny/checkpoints"
    checkpoint.open_run(out / "tiny", "auto")
    step = max([int(p.name[5:]) for p in done.glob("step_*")], default=0)
    (out / "ready").touch()
    for n in range(500):  # not for ever after all: it must not outlive a test that was killed
        step += 1 - n % 2  # every second save replaces the folder of the one before
        train.save_checkpoint(c, policy, optimiser, step)


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
        for saved in folder.glob("step_*"):
            qwen.load(saved, torch.float32)
            assert json.loads((saved / "trainer.json").read_text())["step"] == int(saved.name[5:])
            assert all(t.isfinite().all() for t in state(saved).values() if t.is_floating_point())
    assert interrupted >= 5  # the kills did hit saves
    processes.connect()  # and the last of them is taken up
    at = checkpoint.open_run(out / "tiny", "auto")
    assert int(at.name[5:]) == max(int(p.name[5:]) for p in folder.glob("step_*")) >= 1


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
    assert run.wait() == [2] and "could not save" in run.log.read_text()
    assert "Traceback" not in run.log.read_text()
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
    assert len(failed) == lines[0]["judge/failed"]
    assert all(e.advantage is None and e.verdict is None for e in failed)


def test_a_step_without_verdicts_is_retried_then_stops_and_goes_on(go, monkeypatch, capsys):
    monkeypatch.setattr(judging, "Judge", partial(judging.Judge, retries=0))
    monkeypatch.setattr(train.time, "sleep", lambda s: None)
    with Server(
        lambda body, n: verdict(5) if "Mara climbed" in json.dumps(body) else status(500)
    ) as server:  # its own check passes
        run = go(*JUDGE, "--judge_url", server.url, code=1)
        assert "no verdict for a whole step" in capsys.readouterr().err
    assert newest(run).name == "step_000000" and metrics(run) == []
    with Server(lambda body, n: verdict(5 + n % 5)) as server:
        run = go(*JUDGE, "--steps", 1, "--judge_url", server.url, "--resume", "auto")
    assert len(metrics(run)) == 1 and metrics(run)[0]["judge/failed"] == 0


# ---- bad input: exit code 2, one sentence, nothing written


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--preset", "huge"], "--preset: invalid choice: 'huge'"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "no/such"], "no/such"),
        (["--model", "nowhere"], "nowhere"),
        (["--group", "1"], "--group 1: must be at least 2"),
        (["--hri", "sometimes"], "--hri: invalid choice: 'sometimes'"),
        (["--deviation", "2"], "--deviation 2: must be at most 1"),
        (["--prompts", "999"], "needs 999"),
        (["--resume", "gone/step_000001"], "gone/step_000001"),
        (["--lora_rank", "4", "--parallel", "fsdp"], "--parallel ddp"),
        (["--judge", "api", "--judge_url", "", "--judge_model", ""], "JUDGE_URL"),
        (["--updates_per_batch", "0"], "--updates_per_batch 0: must be at least 1"),
        (["--judge", "api", "--judge_url", "http://127.0.0.1:9/v1", "--judge_model", "m"], "127.0.0.1:9"),
        (["--loss_mean", "median"], "median"),
        (["--temperature", "0"], "--temperature 0: must be above 0"),
        (["--top_p", "0"], "--top_p 0: must be above 0"),
        (["--lr", "nan"], "--lr nan: must be a finite number"),
        (["--hri_peak", "-1"], "--hri_peak -1: must be at least 0"),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--thinking", "perhaps"], "neither True nor False"),
        (["--name", "a/b"], "--name a/b: a run is one folder"),
        (["--similarity", "embeding"], "--similarity: invalid choice: 'embeding'"),
        (["--judge_settings", "budgett=5"], "there is no setting 'budgett'"),
        (["--judge_settings", "5"], "not of the form key=value"),
    ],
)
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
    assert (c.prompts, c.group, c.lr, c.clip_low, c.clip_high) == (8, 5, 1e-6, 0.20, 0.28)
    assert (c.hri_peak, c.hri_warmup, c.max_new_tokens, c.max_prompt_tokens) == (0.4, 15, 8192, 256)
    assert (c.top_p, c.top_k, c.repetition_penalty) == (0.95, 20, 1.10)
    with pytest.raises(ValueError, match="JUDGE_URL and JUDGE_MODEL"):
        train.check(c, 4)


def test_states_that_cannot_fit_are_refused_before_any_weight_is_read(tmp_path, monkeypatch, capsys):
    """A folder with the 70B-sized config and no weights at all."""
    folder = base(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 8192, "intermediate_size": 24576, "num_hidden_layers": 80}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main([*FLAGS, "--model", str(folder)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and "python -m scripts.plan" in err and "GB" in err
    assert not (tmp_path / "out").exists()


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
    trained = [k for k in before if k.startswith("model.") and before[k].is_floating_point()]
    moved = max((after[k] - before[k]).abs().max().item() for k in trained)
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
