"""scripts/pretrain.py, fluency.py and before_after.py: what makes the demo's base, and what looks at it."""

import itertools
import json
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import launch
import model as qwen
from scripts import before_after, fluency, pretrain


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return launch.base(tmp_path_factory.mktemp("pretrain") / "base")


@pytest.fixture
def examples(tmp_path):
    told = [
        data.Example(f"e{i}", f"Tell of {i}. It should be 12 words long.", 12, "He came home. " * 4)
        for i in range(9)
    ]
    data.write_examples(tmp_path / "told.jsonl", told)
    return tmp_path / "told.jsonl"


def test_conversations_are_laid_whole_and_only_the_longest_is_cut():
    chance = random.Random(0)
    told = [[i] * chance.randint(1, 40) for i in range(1, 200)] + [[999] * 90]
    rows = pretrain.lay(told, 63)
    assert all(len(row) <= 64 for row in rows)
    found = {i: sum(row.count(i) for row in rows) for i in {ids[0] for ids in told}}
    assert found == {ids[0]: min(64, len(ids)) for ids in told}
    assert all(sum(i in row for row in rows) == 1 for i in found)  # no conversation is split over two rows
    assert sum(map(len, rows)) > 0.9 * 64 * len(rows)  # little is left empty


def run(monkeypatch, folder, start, examples, *more):
    monkeypatch.chdir(folder)
    flags = ["--model", start, "--data", examples, "--rows", 2, "--length", 64, "--name", "run", *more]
    pretrain.main(list(map(str, flags)))
    return qwen.load(folder / "out/run/model", torch.float32)


def test_the_loss_falls_and_a_run_goes_on_where_it_stopped(monkeypatch, tmp_path, start, examples, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    once = run(monkeypatch, whole, start, examples, "--steps", 6, "--save_every", 3)
    batches = pretrain.batches

    def killed(*args):
        yield from itertools.islice(batches(*args), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "batches", killed)
    with pytest.raises(SystemExit):
        run(monkeypatch, halves, start, examples, "--steps", 6, "--save_every", 3)
    assert torch.load(halves / "out/run/state.pt", weights_only=True)["step"] == 3
    monkeypatch.setattr(pretrain, "batches", batches)
    twice = run(monkeypatch, halves, start, examples, "--steps", 6, "--save_every", 3)
    for a, b in zip(once.parameters(), twice.parameters()):
        assert torch.equal(a, b)
    ids = torch.tensor([data.load_tokenizer(start).encode("He came home. He came home. He came home.")])
    losses = []
    for model in (qwen.load(start, torch.float32), once):
        logits = model.logits(model(ids[:, :-1]))
        losses.append(torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:]).item())
    assert losses[1] < losses[0] - 0.05


def test_bits_per_word_by_the_chain_rule(start):
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(start)
    text = "He came home. She was there."
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
    total = 0.0
    for n in range(1, len(ids)):  # one token at a time, from the text before it alone
        with torch.no_grad():
            total -= model(torch.tensor([ids[:n]])).logits[0, -1].log_softmax(-1)[ids[n]].item()
    assert fluency.bits_per_word(model, tokenizer, text) == pytest.approx(total / math.log(2) / 6, rel=1e-4)


def test_the_gap_is_what_the_order_of_the_words_is_worth(start, tmp_path, monkeypatch, capsys):
    stories = ["He came home. She was there.", "The sea was dark and the lamp was out.", "Not asked for."]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps({"story": story}) + "\n" for story in stories))
    asked = []
    monkeypatch.setattr(
        fluency, "bits_per_word", lambda model, _, text: asked.append(text) or len(asked) ** 2
    )
    fluency.main([str(tmp_path / "f.jsonl"), "--model", str(start), "--limit", "2"])
    cells = capsys.readouterr().out.strip().splitlines()[-1].strip("| ").split(" | ")
    assert asked[::2] == stories[:2]
    for text, shuffled in zip(asked[::2], asked[1::2]):
        assert shuffled != text and sorted(shuffled.split()) == sorted(text.split())
    assert cells[1] == "2" and cells[2].startswith("5.00 ± ") and cells[3].startswith("5.00 ± ")


@pytest.fixture
def go(start, tmp_path, monkeypatch):
    yield from launch.in_process(start, tmp_path, monkeypatch)


def test_a_run_is_shown_before_and_after(go, tmp_path, start, capsys):
    run = go("--steps", 1)
    capsys.readouterr()
    before_after.main([str(run)])
    said = capsys.readouterr().out
    asked = data.read_examples(before_after.train.ROOT / "stories/heldout.jsonl")
    assert [f"=== {asked[i].prompt}" in said for i in (0, 3, 4)] == [True] * 3
    table = [
        row.strip("| ").split(" | ") for row in said.splitlines() if row.startswith(("| before", "| after"))
    ]
    assert [row[:2] for row in table] == [[w, n] for n in ("50", "120", "50") for w in ("before", "after")]
    assert said.count("\n--- before\n") == said.count("\n--- after\n") == 3
    first = said.split("--- before\n")[1].split("\n\n--- after\n")[0]
    assert data.words(first) == int(table[0][2])
    with pytest.raises(SystemExit) as end:
        before_after.main([str(tmp_path)])
    assert end.value.code == 2 and "config.json" in capsys.readouterr().err
