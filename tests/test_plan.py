"""The plan's figures against what a real small run allocates, and its refusals."""
import ctypes
import json
import os
import re

import pytest
import torch
from launch import FLAGS, base, context

import model as qwen
from lib import huggingface
import train
from scripts import plan

MIDDLE = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
              linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=64, linear_value_head_dim=64)


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def allocate(folder, lora, pipe):
    """What a real process holds after one update: resident memory, and its state tensors by kind."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back, so that what stays can be seen
    torch.set_num_threads(1)
    train.connect()
    kept = []
    for path in folder:  # the first one, tiny, only brings code and libraries into memory
        before = resident()
        c = train.parse([*FLAGS, "--model", str(path), "--lora_rank", str(lora)])
        policy, scorer = train.build(c, torch.device("cpu"))
        optimiser = torch.optim.AdamW(train.param_groups(scorer), lr=1e-4)
        train.update(scorer, optimiser, [train.Row(list(range(40)), 5, 1.0, True, None)], c, torch.device("cpu"))
        kept.append((policy, scorer, optimiser))
    after = resident()
    count = lambda tensors: sum(t.nbytes for t in tensors)
    pipe.send(dict(resident=after - before, weights=count(policy.parameters()), gradients=count(p.grad for p in policy.parameters() if p.grad is not None),
                   optimiser=count(t for s in optimiser.state.values() for t in s.values())))


@pytest.mark.parametrize("lora", [0, 16])
def test_states_match_what_a_small_run_allocates(tmp_path, lora):
    folder = base(tmp_path / "m", **MIDDLE)
    tiny = base(tmp_path / "tiny")
    mine, theirs = context.Pipe()
    process = context.Process(target=allocate, args=([tiny, folder], lora, theirs))
    process.start()
    assert mine.poll(120)
    real = mine.recv()
    process.join()
    c = train.parse([*FLAGS, "--lora_rank", str(lora)])
    planned = train.state_bytes(c, huggingface.read_config(folder), 1, on_gpu=False)
    for name in ("weights", "gradients", "optimiser"):
        assert planned[name] == pytest.approx(real[name], rel=0.01), name
    together = planned["weights"] + planned["gradients"] + planned["optimiser"]
    assert together > 50e6  # large beside what the allocator keeps
    assert together == pytest.approx(real["resident"], rel=0.10)


@pytest.mark.parametrize("kind", ["full_attention", "linear_attention"])
def test_activations_of_a_block_are_those_of_real_tensors(kind, monkeypatch):
    """The same count over real tensors, and their attention through the same stand-in: fake ones must not miss an allocation."""
    config = dict(base.__globals__["SMALL"], **MIDDLE)
    planned = plan.block_peak(json.dumps(config), kind, 256, 0)
    parsed = qwen.ModelConfig.from_hf(config)
    block = qwen.new(config, dtype=torch.bfloat16).layers[parsed.layer_types.index(kind)]
    monkeypatch.setattr(plan.F, "scaled_dot_product_attention", lambda q, k, v, **_: plan.FlashAttention.apply(q, k, v))
    rows = qwen.Rows([256], parsed, torch.device("cpu"))
    x = torch.zeros(256, parsed.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with plan.Peak() as peak:
        block(x, rows).backward(torch.zeros_like(x))
    assert planned == pytest.approx(peak.peak, rel=0.05)
    assert planned > 20 * x.nbytes  # a block keeps far more than its input


def test_peak_counts_by_hand():
    with plan.Peak() as peak:
        a = torch.empty(1000)      # 4 kB
        b = torch.empty(500)       # 6 kB in all
        del a
        c = b.view(5, 100)         # no memory of its own
        d = torch.empty(250)       # 3 kB
    assert peak.peak == 6000 and peak.now == 3000 and c.shape and d.shape


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Blocks counted at an eighth of the length."""
    honest = plan.block_peak
    monkeypatch.setattr(plan, "block_peak", lambda text, kind, tokens, rank: 8 * honest(text, kind, tokens // 8, rank) if tokens >= 4096
                        else honest(text, kind, tokens, rank))


@pytest.mark.parametrize("flags, code, peak", [
    ([], 0, (60, 80)), (["--gpu_memory", "40"], 1, (55, 80)), (["--gpus", "1", "--gpu_memory", "141", "--lora_rank", "32"], 0, (40, 60)),
    (["--gpus", "1", "--gpu_memory", "24", "--lora_rank", "32"], 1, (36, 45)), (["--gpus", "1"], 1, (150, 200))])
def test_plans_of_the_9b(flags, code, peak, capsys):
    assert plan.main(["--preset", "polaris-9b", *flags]) == code
    out = capsys.readouterr().out
    assert peak[0] < float(re.search(r"peak +([\d.]+) GB", out)[1]) < peak[1] and "8.95 B parameters" in out
    assert ("what helps" in out) == (code == 1)
    if not flags:  # arithmetic of the recipe: 173 steps of 8 prompts with 5 + 1 stories
        assert "173 steps" in out and "8,304 judge calls" in out
        assert float(re.search(r"weights +([\d.]+)", out)[1]) + float(re.search(r"AdamW +([\d.]+)", out)[1]) == pytest.approx(26.9, abs=0.1)


def test_every_advised_change_makes_the_plan_fit(capsys):
    flags = ["--preset", "polaris-9b", "--gpu_memory", "40"]
    assert plan.main(flags) == 1
    helps = capsys.readouterr().out.split("what helps: ")[1]
    assert "--lora_rank 32" in helps and "--gpus 16" in helps
    assert plan.main([*flags, "--gpus", "16", "--prompts", "16"]) == 0 and plan.main([*flags, "--gpus", "4", "--lora_rank", "32"]) == 1 - (
        "--lora_rank 32" in helps)


def test_price_and_time_are_the_given_rates(capsys):
    plan.main(["--preset", "polaris-9b", "--judge_price", "1", "10", "--verdict_tokens", "1000", "--gpu_price", "2"])
    a = capsys.readouterr().out
    plan.main(["--preset", "polaris-9b", "--judge_price", "2", "20", "--verdict_tokens", "1000", "--bandwidth", "4080", "--tflops", "624"])
    b = capsys.readouterr().out
    dollars, hours = (lambda text: float(re.search(r"out, (\d+) dollars", text)[1])), (lambda text: float(re.search(r"([\d.]+) hours", text)[1]))
    assert dollars(b) == pytest.approx(2 * dollars(a), rel=0.02) and hours(a) == pytest.approx(2 * hours(b), rel=0.03)
    assert re.search(r"hours, (\d+) dollars of GPU", a)


def test_bad_input_is_one_sentence(capsys, tmp_path):
    assert plan.main(["--model", "no/such"]) == 2 and "no/such" in capsys.readouterr().err
    assert plan.main(["--gpus", "3"]) == 2 and "does not divide over 3" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        plan.main(["--no_such_flag"])
    assert end.value.code == 2
