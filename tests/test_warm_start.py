"""The supervised warm start: its order, its gradient, what it leaves."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import data
import hri
import model as qwen
import train
from launch import FLAGS, base, metrics
from lib import processes
from lib.parallel import Scorer
from scripts import warm_start


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


def test_lowers_the_nll_and_saves_for_transformers(model, tmp_path):
    nll = {}
    for steps in (1, 12):
        flags = [
            *FLAGS,
            "--steps",
            str(steps),
            "--rows",
            "4",
            "--lr",
            "1e-2",
            "--max_new_tokens",
            "64",
            "--model",
            str(model),
        ]
        warm_start.main(
            [*flags, "--micro_batch_tokens", "1000", "--out", str(tmp_path), "--name", f"warm{steps}"]
        )
        lines = metrics(tmp_path / f"warm{steps}")
        assert [m["step"] for m in lines] == list(range(steps))
        nll[steps] = lines[-1]["nll"]
    assert nll[12] < nll[1] - 0.1
    AutoModelForCausalLM.from_pretrained(tmp_path / "warm12/checkpoints/step_000012")


def test_its_gradient_is_that_of_the_nll(model):
    processes.connect()
    tokenizer, policy = data.load_tokenizer(model), qwen.load(model, torch.float32)
    examples = data.read_examples(train.ROOT / "stories/tiny.jsonl")[:3]
    rows = [hri.reference_episode(e, tokenizer, False, 40) for e in examples]
    c = train.parse([*FLAGS, "--grad_clip", "1e9", "--temperature", "1"])
    for row in rows:
        row.reward, row.advantage = 0.0, 1.0
    train.update(
        c, Scorer(policy, False), torch.optim.SGD(policy.parameters(), lr=0.0), [[row] for row in rows]
    )
    ours = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        logits = policy.logits(policy(ids))[0, len(row.prompt_ids) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(
            logits, ids[0, len(row.prompt_ids) :], reduction="sum"
        )
        tokens += len(row.completion_ids)
    (total / tokens).backward()
    for name, p in policy.named_parameters():
        assert (ours[name] - p.grad).abs().max() < 1e-5 * max(1.0, p.grad.abs().max().item()), name


def test_refuses_more_rows_than_stories(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        warm_start.main([*FLAGS, "--rows", "999", "--model", str(model), "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and "--rows 999: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
