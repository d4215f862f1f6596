"""Other benchmarks: strengths and spans against brute force, both orders of a pair, an over-trained model."""

import itertools
import json
import math
import random
import re
from contextlib import closing

import numpy as np
import pytest
import torch
from test_eval import ROOT, TINY, Server, checkpoint, code, no_judge, one_thread, saved  # noqa: F401

import data
import judge as judging
import model as qwen
from lib import stats
from lib.packed import Packed
from scripts import benchmarks, memorised, pairwise

# ---- Bradley-Terry


def test_bradley_terry_against_gradient_ascent():
    rng = np.random.default_rng(0)
    for M in (2, 3, 6):
        wins = rng.integers(0, 12, (M, M)) * (1.0 - np.eye(M))
        theta = torch.zeros(M, dtype=torch.float64, requires_grad=True)
        full = torch.tensor(wins + 0.5 * (1 - np.eye(M)))
        step = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss():
            step.zero_grad()
            value = -(full * torch.nn.functional.logsigmoid(theta[:, None] - theta[None])).sum()
            value.backward()
            return value

        step.step(loss)
        by_hand = (theta - theta.mean()).detach().numpy()
        assert stats.bradley_terry(wins) == pytest.approx(by_hand, abs=1e-5)
    half = math.log(3) / 2
    assert stats.bradley_terry(np.array([[0, 3.0], [1.0, 0]]), prior=0) == pytest.approx([half, -half])
    assert np.isfinite(stats.bradley_terry(np.array([[0, 9.0], [0, 0]]))).all()


def sets(folder, **stories):
    """A file of twelve stories per model."""
    files = []
    for name, text in stories.items():
        rows = []
        for i in range(12):
            prompt = f"Write of a lamp {i}. It should be 50 words long."
            rows.append({"uid": f"u{i}", "prompt": prompt, "target_words": 50, "story": text(i)})
        files.append(folder / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


GOOD = 'Mara took the lamp from the window, but the sea was dark. "Wait," she said. '
GOOD += "He ran to the door and never came back. She wept, and lit it again."


def test_offline_pairs_and_ties(tmp_path):
    poor = "the the of and lamp lamp lamp"
    files = sets(tmp_path, good=lambda i: GOOD, same=lambda i: GOOD, poor=lambda i: poor)
    result = pairwise.pairwise(list(map(str, files)), judging.OfflineJudge())
    rates = {(p["of"], p["against"]): p["win_rate"] for p in result["pairs"]}
    assert rates == {("good", "same"): 0.5, ("good", "poor"): 1.0, ("same", "poor"): 1.0}
    strengths = {k: v["elo"] for k, v in result["models"].items()}
    assert strengths["good"] == pytest.approx(strengths["same"])
    assert strengths["good"] > strengths["poor"] + 200
    two = pairwise.pairwise([str(files[0]), str(files[2])], judging.OfflineJudge())["models"]
    apart = two["good"]["elo"] - two["poor"]["elo"]  # 12 wins to 0, and half a win each beforehand
    assert apart == pytest.approx(400 * math.log10(12.5 / 0.5))
    assert two["good"]["elo"] == pytest.approx(1000 + apart / 2)
    assert result["order_flip"] == 0 and result["prompts"] == 12
    for file in files:  # the same six prompts at two lengths
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["prompt"] = f"Write of a lamp {i % 6}. It should be {(50, 90)[i // 6]} words long."
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    again = pairwise.pairwise(list(map(str, files)), judging.OfflineJudge())
    assert again["prompts"] == 6 and [p["comparisons"] for p in again["pairs"]] == [12, 12, 12]


def test_a_judge_that_likes_the_first_place_gives_a_tie(tmp_path):
    """Every story is preferred where it stands first: both orders cancel, and the report says why."""

    def reply(body, number):
        text = body["messages"][-1]["content"]
        first = text.split("STORY 1")[1].split("STORY 2")[0]
        if "lamp 11" in text:
            return "no json"
        better = 3 if "lamp 0" not in text or "poem" in first else -3
        mark = {"why": "so", "quotes_1": [], "quotes_2": [], "better": better}
        return json.dumps({d.key: mark for d in judging.RUBRIC.dimensions})

    files = sets(tmp_path, plain=lambda i: f"A lamp {i}.", poem=lambda i: f"A poem of lamp {i}.")
    with closing(judging.Judge(Server(reply).url, "reader", api_key="", retries=2)) as judge:
        result = pairwise.pairwise(list(map(str, files)), judge)
    [pair] = result["pairs"]
    assert pair["comparisons"] == 11 and result["failed"] == 1
    assert pair["win_rate"] == pytest.approx(5 / 11)  # ten ties and one loss
    assert result["order_flip"] == pytest.approx(10 / 11)


def test_models_with_other_prompts_are_refused(tmp_path, capsys):
    one, two = sets(tmp_path, one=lambda i: "A.", two=lambda i: "B.")
    for files, change, sentence in [
        ([one, two], lambda text: text.replace("lamp 3", "door 3"), "u3: one and two differ in its prompt"),
        ([one], str, "two models or more"),
        ([one, two], lambda text: '{"uid": "u0"}\n', "two.jsonl line 1: 'prompt' is missing"),
    ]:
        two.write_text(change(two.read_text()))
        assert code(pairwise.main, list(map(str, files))) == 2 and sentence in capsys.readouterr().err


# ---- prompt files of other benchmarks


def checks(tag):
    """Five criteria of WritingBench."""
    bands = {"1-2": "a", "3-4": "b", "5-6": "c", "7-8": "d", "9-10": "e"}
    return [{"name": f"{tag} {n}", "criteria_description": "d", **bands} for n in "ABCDE"]


def test_prompt_files(tmp_path):
    def read(name, text):
        (tmp_path / "f").write_text(text)
        return benchmarks.read_benchmark(name, tmp_path / "f")

    rows = [{"prompt": f"Write {n} words.", "type": "Fiction", "length": n} for n in (2000, 500)]
    examples, _ = read("longbench-write", "\n".join(map(json.dumps, rows)))
    assert [e.target_words for e in examples] == [2000, 500]
    seeds = {"seed_modifiers": ["Rain.", "Snow."]}
    eq = {"1": {"category": "Fiction", "writing_prompt": "A bar. <SEED> Write 1000 words.", **seeds}}
    assert read("eqbench-creative", json.dumps(eq, indent=1))[0][0].prompt == "A bar. Rain. Write 1000 words."
    rows, art = [], "Literature & Arts"
    for domain, lang in itertools.product((art, "Finance & Business"), ("en", "zh")):
        row = {"index": 1, "domain1": domain, "lang": lang, "query": f"{domain} {lang}"}
        rows.append(row | {"checklist": checks("x")})
    examples, criteria = read("writingbench-d4", "\n".join(map(json.dumps, rows)))
    assert [e.prompt for e in examples] == [f"{art} en"] and criteria[f"{art} en"] == checks("x")
    for name, text, sentence in [
        ("longbench-write", '{"prompt": "x"}', '"length" is None'),
        ("longbench-write", '{"query": "x"}', 'entry 1: no "prompt"'),
        ("writingbench-d4", json.dumps(rows[2]), "holds no prompt"),
        ("longbench-write", "[1]", "line 1: a list, not an object"),
        ("eqbench-creative", "[1", "is not JSON"),
        ("eqbench-creative", "[1]", 'entry 1: no "writing_prompt"'),
    ]:
        with pytest.raises(ValueError, match=sentence):
            read(name, text)


def test_writingbench_grades_by_each_querys_criteria(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    rows = []
    for i, word in enumerate(("fox", "bell")):
        row = {"index": i, "domain1": "Literature & Arts", "lang": "en", "query": f"Write about a {word}."}
        rows.append(row | {"checklist": checks(word)})
    (tmp_path / "wb.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def reply(body, number):
        system = body["messages"][0]["content"]
        keys = ["P1", "P2", "P3", "P4", "P5"]
        score = 10 if "fox A" in system else 5 if "bell A" in system else 1
        if "fox A" in system or "bell A" in system:
            assert ("a fox" in body["messages"][1]["content"]) == ("fox A" in system)
        return json.dumps({k: {"why": "w", "quotes": [], "score": score} for k in keys})

    asked = f"writingbench-d4 {tmp_path}/wb.jsonl --max_new_tokens 30 --samples 1"
    how = f"--model {checkpoint()} --out {tmp_path}/o --judge_url {Server(reply).url} --judge_model reader"
    benchmarks.main(f"{asked} {how}".split())
    assert saved(tmp_path / "o")["figures"]["random-0"]["quality"]["all"]["mean"] == pytest.approx(75)
    assert "writingbench-d4 75.0" in capsys.readouterr().out


# ---- memorisation


def test_spans_against_all_pairs():
    rng = random.Random(0)

    def brute(ids, story):
        best = 0
        for i in range(len(ids)):
            for j in range(len(story)):
                n = 0
                while i + n < len(ids) and j + n < len(story) and ids[i + n] == story[j + n]:
                    n += 1
                best = max(best, n)
        return best

    for _ in range(60):
        stories = [[rng.randint(0, 30) for _ in range(rng.randint(0, 90))] for _ in range(3)]
        a = rng.choice([s for s in stories if len(s) > 4] or [[1] * 9])
        cut = sorted(rng.sample(range(len(a) + 1), 2))
        around = [rng.randint(0, 30) for _ in range(40)]
        texts = [around[:20] + a[cut[0] : cut[1]] + around[20:], around, []]
        for ids, (n, at) in zip(texts, memorised.longest_spans(texts, stories)):
            truth = max(brute(ids, s) for s in stories)
            assert n == (truth if truth >= memorised.K else 0)
            assert n == 0 or any(ids[at : at + n] == s[j : j + n] for s in stories for j in range(len(s)))
    stories = [list(range(50)), list(range(20, 40)), [7] * 30]  # the last has one gram at many places
    assert [n for n, _ in memorised.longest_spans(stories, stories)] == [50, 20, 30]
    assert [n for n, _ in memorised.longest_spans(stories, stories, [0, 1, 2])] == [20, 20, 0]


def test_an_overtrained_model_is_found_out_and_another_is_cleared():
    torch.manual_seed(0)
    tokenizer = data.load_tokenizer(ROOT / "stories" / "tiny-base")
    examples = data.read_examples(ROOT / "stories" / "tiny.jsonl")
    examples = [e for e in examples if 80 <= e.target_words <= 120][:3]
    model = qwen.new({**TINY, "hidden_size": 96, "intermediate_size": 192}, 0)
    rows = [tokenizer.chat(e.prompt, False) + tokenizer.completion(e.story) for e in examples]
    batch = Packed(rows)
    rows, found = memorised.memorised(model, tokenizer, examples, (tokenizer.end_id,), tokens=120)
    assert not found and all(row[-1] == 0 for row in rows)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * min(1, step / 10) * (1 - step / 160)
        loss = -model.token_logprobs(batch)[0].mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if loss < 0.01:
            break
    rows, found = memorised.memorised(model, tokenizer, examples, (tokenizer.end_id,), tokens=120)
    (_, *alone), (_, *after_50), *_, (_, *between) = rows
    assert alone[0] == alone[3] == 3 and after_50[2] > 50, (loss.item(), rows)
    lengths = [int(re.search(r": (\d+) tokens: ", text)[1]) for text in found]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == max(row[3] for row in rows[:-1])
    told = " ".join(" ".join(e.story for e in examples).split())
    assert found[0].partition(" tokens: ")[2].strip()[:40] in told
    assert between[2] < 20
    with pytest.raises(ValueError, match="human story"):
        memorised.memorised(model, tokenizer, [data.Example("a", "b", 1)])
