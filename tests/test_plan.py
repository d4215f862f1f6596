"""The plan against real processes of this machine, operations against a count by hand, and its refusals."""

import ctypes
import json
import os
import re
from pathlib import Path

import pytest
import torch

import model as qwen
import rollout
import train
from launch import FLAGS, SMALL, base, context, free_port
from lib import onednn, optim, processes
from lib.rehearsal import rehearsal
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
                slots.fill(0, (0,) * PROMPT, slots.keys[0])
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
    torch.distributed.barrier()


def measured(folders, flags, world) -> dict[str, int]:
    port, pipes = free_port(), [context.Pipe() for _ in range(world)]
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


slow = pytest.mark.skipif(
    not os.environ.get("SLOW"), reason="more of the same, a minute each: SLOW=1 runs it"
)


@pytest.mark.parametrize(
    "flags, world",
    [
        pytest.param(["--checkpointing", "True"], 1, id="whole"),
        pytest.param(["--checkpointing", "False"], 1, id="whole, all kept"),
        pytest.param(["--lora_rank", "16", "--checkpointing", "True"], 1, id="LoRA"),
        pytest.param(["--lora_rank", "16", "--checkpointing", "False"], 1, id="LoRA, all kept", marks=slow),
        pytest.param(["--parallel", "fsdp", "--checkpointing", "True"], 4, id="sharded"),
        pytest.param(
            ["--parallel", "fsdp", "--checkpointing", "False"], 4, id="sharded, all kept", marks=slow
        ),
    ],
)
def test_the_peak_is_what_a_real_process_takes(folders, flags, world):
    real = measured(folders, flags, world)
    c = train.parse([*FLAGS, *LENGTHS, "--model", str(folders[1]), *flags])
    rehearsed = plan.rehearse(c, SMALL | MIDDLE, world, 8, half=False)
    assert rehearsed["learning"].total() == pytest.approx(real["learning"], rel=0.10)
    assert rehearsed["writing 1"].total() == pytest.approx(real["writing"], rel=0.10)


def test_the_ledger_counts_storages_by_hand():
    with rehearsal() as ledger:
        a = torch.empty(1000)  # 4 kB
        with ledger.booking("b"):
            b = torch.empty(500)  # 6 kB in all
        del a
        c = b.view(5, 100)  # no memory of its own
        d = torch.empty(250, device="meta")  # none at all
        e = torch.empty(250)  # 3 kB
        ledger.adopt("e", [e])
        assert ledger.peaks["set-up"].total() == 6000 and ledger.peaks["set-up"]["b"] == 2000
        assert ledger.held.total() == 3000 and ledger.held["e"] == 1000 and c.shape and d.shape
        e.untyped_storage().resize_(0)
        assert ledger.held.total() == 2000


def test_few_layers_and_a_straight_line_are_the_whole():
    """A model of 12 layers, rehearsed as it is and from 4 and 8."""
    config = SMALL | MIDDLE | {"num_hidden_layers": 12}
    for flags, world in ((["--lora_rank", "16"], 1), ([], 4))[: 2 if os.environ.get("SLOW") else 1]:
        lengths = ["--max_new_tokens", "200", "--micro_batch_tokens", "512"]
        c = train.parse([*FLAGS, *LENGTHS, *lengths, "--checkpointing", "True", *flags])
        line, whole = plan.memory(c, config, world, 8), plan.rehearse(c, config, world, 8)
        for phase in ("writing 1", "writing 3", "learning"):
            kinds, real = line[phase], whole[phase]
            assert kinds.total() == pytest.approx(real.total(), rel=0.02), (flags, phase)
            for kind in real:
                assert kinds[kind] == pytest.approx(real[kind], rel=0.1, abs=1e6), (flags, phase, kind)
        slot, real = (ends["writing 3"].total() - ends["writing 1"].total() for ends in (line, whole))
        assert slot == pytest.approx(real, rel=0.01)
        assert line["work"] == pytest.approx(whole["work"], rel=0.01)


def test_serving_memory_of_the_9b_by_hand():
    """Weights of every matrix of the released config; per story 24 DeltaNet and 8 attention layers."""
    mlp, norms, head = 3 * 4096 * 12288, 2 * 4096, 248320 * 4096
    conv = 2 * 16 * 128 + 32 * 128  # channels: keys, queries, values
    delta = 4096 * (conv + 32 * 128 + 2 * 32) + 4 * conv + 2 * 32 + 128 + 32 * 128 * 4096
    attention = 4096 * (2 * 16 + 2 * 4) * 256 + 2 * 256 + 16 * 256 * 4096
    total = 2 * head + 32 * (mlp + norms) + 24 * delta + 8 * attention + 4096
    state = 24 * (32 * 128 * 128 * 4 + 3 * conv * 2)
    keys = 8 * 2 * 4 * 256 * 2 * 1000
    released = json.loads(plan.NINE_B.read_text())
    assert qwen.cache_bytes(qwen.ModelConfig.from_hf(released), 1000, torch.bfloat16) == (state, keys)
    assert (state, keys) == (51_511_296, 32_768_000)
    assert (2 * total, round(total * 4.5 / 8)) == (17_907_606_528, 5_036_514_336)


# ---- operations ------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 3])
def test_operations_of_a_block_are_those_counted_by_hand(index):
    c, T = qwen.ModelConfig.from_hf(SMALL | MIDDLE), 640
    with rehearsal() as ledger, plan.as_on_a_gpu():
        model = qwen.empty(c, torch.bfloat16, "cpu")
        x = torch.zeros(T, c.hidden_size, dtype=torch.bfloat16)
        with torch.no_grad():
            model.layers[index](x, qwen.Rows([T], c, torch.device("cpu")))
    D, products = c.hidden_size, 3 * c.hidden_size * c.intermediate_size
    if index == 3:
        H, Hkv, hd = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        products += D * (2 * H + 2 * Hkv) * hd + H * hd * D  # queries with gates, keys, values, output
        inside = 2 * T * H * hd  # q k^T and p v
    else:
        Hk, Hv, dk, dv = 4, 8, 64, 64
        products += D * (2 * Hk * dk + Hv * dv) + D * Hv * dv + 2 * D * Hv + Hv * dv * D
        C = 64  # tokens per chunk
        inside = Hk * 2 * C * dk  # k k^T and q k^T
        inside += Hv * (C * (dv + dk) / 2 + dk * dk + dk * dv + dk * dk * dv / C + 2 * dk * dv + C * dv)
    assert ledger.flops.total() == pytest.approx(2 * T * (products + inside), rel=1e-6)


# ---- the command ------------------------------------------------------------

CALM = {"writing 1": plan.Counter(weights=1e9), "writing 3": plan.Counter(weights=1e9, slots=2e8)}
CALM |= {"learning": plan.Counter(weights=1e9), "work": plan.Counter(flops=6e10, tokens=1300)}
SHORT = ["--max_new_tokens", "1000", "--micro_batch_tokens", "1300", "--story_tokens", "900"]


@pytest.mark.parametrize(
    "flags, code, peak",
    [
        (["--gpu_memory", "80"], 0, (40, 55)),
        (["--gpus", "1", "--gpu_memory", "40", "--lora_rank", "32"], 0, (20, 40)),
        (["--gpus", "1", "--gpu_memory", "16", "--lora_rank", "32"], 1, (20, 30)),
    ],
)
def test_plans_of_the_9b(flags, code, peak, capsys):
    assert plan.main([*SHORT, *flags]) == code
    out = capsys.readouterr().out
    assert peak[0] < float(re.search(r"peak ([\d.]+) GB", out)[1]) < peak[1] and "8.95 B parameters" in out
    assert "served: weights 17.9 GB in bf16, 5.04 GB at 4 bit; per story 51.5 MB + 32.8 MB" in out
    assert ("what helps" in out) == (code == 1) and "with 4 and 8 layers, then a straight line" in out
    if code:
        assert "--gpus 2" not in out and "cards of twice the memory" in out
    if "--lora_rank" not in flags:  # the recipe: 173 steps of 8 prompts with 5 + 1 stories, 26.9 GB of states
        assert "173 steps" in out and "8,304 judge calls" in out
        weights, optimiser = (
            float(re.search(rf"{name} +([\d.]+)", out)[1]) for name in ("weights", "optimiser")
        )
        assert weights + optimiser == pytest.approx(26.9, abs=0.11)
    elif not code:
        assert "replica" not in out  # LoRA decodes from its own base


def test_the_data_file_and_its_examples_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "memory", lambda *_: CALM)
    rows = [{"prompt": f"{i}: 50 words long.", "target_words": 50, "story": "s"} for i in range(24)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan.main(["--data", str(tmp_path / "mine.jsonl")])
    out = capsys.readouterr().out
    assert "mine.jsonl, 24 examples of 50 to 50 words, 24 with a reference story" in out
    assert "\n3 steps" in out
    plan.main(["--data", "no/such.jsonl", "--examples", "80"])
    out = capsys.readouterr().out
    assert "no/such.jsonl does not exist yet: 80 examples assumed" in out and "\n10 steps" in out


def test_price_and_time_are_the_given_rates(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "memory", lambda *_: CALM)
    plan.main(["--judge_price", "1", "10", "--verdict_tokens", "1000", "--gpu_price", "2"])
    a = capsys.readouterr().out
    plan.main(
        ["--judge_price", "2", "20", "--verdict_tokens", "1000", "--bandwidth", "4080", "--tflops", "624"]
    )
    b = capsys.readouterr().out
    dollars = [float(re.search(r"out, (\d+) dollars", text)[1]) for text in (a, b)]
    hours = [float(re.search(r"([\d.]+) hours", text)[1]) for text in (a, b)]
    assert dollars[1] == pytest.approx(2 * dollars[0], rel=0.02)
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.03)
    assert re.search(r"hours, (\d+) dollars of GPU", a)
    learning = float(re.search(r"learning (\d+) s", a)[1])  # 48 rows of 6,000 tokens and half their prompts
    assert learning == pytest.approx(6e10 * 48 * (6000 + 128) / 4 / (312e12 * 0.35), rel=0.02)


@pytest.mark.parametrize(
    "flags, calls, stories",
    [
        ("", 48, 1),  # 8 prompts x (5 stories + the person's)
        ("--judge_samples 3", 144, 1),
        ("--hri off", 40, 1),
        ("--judge_mode pair", 80, 2),  # 8 x 5 stories in both orders, nothing for the person's
        ("--judge_mode pair --judge_samples 2 --hri off", 160, 2),
        ("--judge_mode group", 8, 6),
        ("--judge_mode group --hri off", 8, 5),
    ],
)
def test_calls_and_dollars_of_the_judge_in_each_mode(flags, calls, stories, capsys):
    a = plan.Settings(judge_price=[2.0, 10.0], verdict_tokens=100)
    c, prompts = train.parse(["--preset", "polaris-9b", *flags.split()]), []
    for a.judged_tokens in (0, 4000):
        assert plan.judging_of(c, a)[0] == calls
        prompts.append(plan.judging_of(c, a)[1])
    assert prompts[1] - prompts[0] == 4000 * stories and 500 < prompts[0] < 9000  # the rubric, the request
    plan.work(c, a, json.loads(plan.NINE_B.read_text()), slots=8, flops=6e10, steps=1000)
    told = capsys.readouterr().out
    assert f"  {1000 * calls:,} judge calls" in told
    dollars = 1000 * calls * (2 * prompts[1] + 10 * 100) / 1e6
    assert float(re.search(r"out, (\d+) dollars", told)[1]) == pytest.approx(dollars, abs=0.5)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--model", "no/such"], "no/such"),
        (["--gpus", "3"], "does not divide over 3"),
        (["--lora_rank", "8", "--parallel", "fsdp"], "LoRA does not shard"),
        (["--no_such_flag"], "no_such_flag"),
    ],
)
def test_bad_input_is_one_sentence(flags, said, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(flags)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_an_unknown_model_config_is_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"}))
    with pytest.raises(SystemExit) as end:
        plan.main(["--model", str(tmp_path)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and "model_type 'llama'" in err and err.count("error:") == 1
