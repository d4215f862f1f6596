"""The loop with a judge over HTTP: every flag reaches the wire, groups are ranked in one call, judging
overlaps with writing."""

import json
import os
import re
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

import data
import train
from judge_server import Server, answer, reset, say, status
from launch import FLAGS, Run, base, metrics
from lib.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "m")


def judged_by(server, model, folder) -> list[str]:
    judge = f"--judge api --judge_url {server.url} --judge_model m"
    return f"--model {model} --out {folder} --name r --hri_warmup 0 {judge}".split()


def go(model, folder, server, *flags):
    """Runs train.py's main in this process, judged by `server` -> (metrics, folder of the run)."""
    train.main([*FLAGS, *judged_by(server, model, folder), *" ".join(map(str, flags)).split()])
    return [json.loads(line) for line in (folder / "r/metrics.jsonl").read_text().splitlines()], folder / "r"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(train.metrics, "plot", lambda *_: None)
    monkeypatch.setattr(train.processes, "catch_signals", list)


def graded(body, number):
    """A verdict that differs from call to call, so that no group is dropped."""
    return say(answer(lambda v: v["P1"].update(score=number % 15)))


def test_every_judge_flag_reaches_the_wire_or_the_client(model, tmp_path, monkeypatch):
    made = []

    def make(*args, kind=train.judging.Judge, **options):
        made.append(kind(*args, **options))
        return made[-1]

    monkeypatch.setattr(train.judging, "Judge", make)
    settings = "temperature=0.5 top_p=none seed=7 reasoning_effort=low in_flight=3 deadline=90 "
    settings += "budget=50 per_minute=6e4,6e9 timeouts=5,60 price=2,20"
    with Server(graded) as server:
        few = "--steps 1 --prompts 1 --judge_samples 2"
        lines, _ = go(model, tmp_path, server, few, "--judge_settings", settings)
        calls = server.calls[1:]  # the first is the check
    for c in calls:
        assert c["temperature"] == 0.5 and "top_p" not in c and c["seed"] in (7, 8)
        assert c["reasoning_effort"] == "low"
    assert len(calls) == 2 * 4  # three stories and the human one, two verdicts each
    assert lines[0]["judge/dollars"] == pytest.approx(0.012 * lines[0]["judge/calls"])
    judge, how = made[-1], made[-1].how
    assert how.deadline == 90 and how.timeouts == (5, 60) and how.budget == 50
    assert how.per_minute == (6e4, 6e9)
    assert how.in_flight == 3 and judge.samples == 2


def test_group_wise_one_call_ranks_a_group_and_the_reward_comes_from_its_ranks(model, tmp_path):
    def behave(body, number):
        shown = body["messages"][1]["content"].count("<<<STORY ")
        ranking = say(json.dumps({"why": "", "order": list(range(shown, 0, -1))}))
        return ranking if shown > 1 else graded(body, number)

    with Server(behave) as server:
        lines, run = go(model, tmp_path, server, "--steps", 2, "--judge_mode", "group")
        ranked = [body for body in server.calls if "Rank the 4 stories" in body["messages"][0]["content"]]
    assert len(ranked) == 2 * 4 == len(server.calls) - 1  # two steps of four groups, and the check
    assert all(m["judge/failed"] == 0 and m["loss"] is not None for m in lines)
    rows = data.read_episodes(run / "rollouts/step_000000.jsonl")
    for at in range(0, len(rows), 4):
        group = rows[at : at + 4]
        assert len({r.example.uid for r in group}) == 1
        assert sorted(round(100 * r.rewards["quality"]) for r in group) == [0, 33, 67, 100]


def test_a_ranking_that_fails_leaves_the_whole_group_without_a_reward(model, tmp_path):
    def behave(body, number):
        ranking = say(json.dumps({"why": "", "order": [1, 2, 3, 4] if number % 3 else [1, 1, 2, 3]}))
        return ranking if "Rank the" in body["messages"][0]["content"] else graded(body, number)

    with Server(behave) as server:
        flags = "--steps 1 --judge_mode group --judge_settings in_flight=1"
        lines, run = go(model, tmp_path, server, flags)
    failed = [r.reward is None for r in data.read_episodes(run / "rollouts/step_000000.jsonl")]
    assert sum(failed) == lines[0]["judge/failed"]
    assert all(len(set(failed[i : i + 4])) == 1 for i in range(0, 16, 4))


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--judge_settings budgte=5", "there is no setting 'budgte'"),
        ("--judge_settings budget=5", "price=IN,OUT"),
        ("--judge_mode group --judge_samples 2", "ranks a group once"),
    ],
)
def test_what_no_judge_can_follow_is_one_sentence_before_any_work(model, tmp_path, capsys, flags, sentence):
    with Server(graded) as server, pytest.raises(SystemExit) as end:
        go(model, tmp_path / "out", server, flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and error.startswith("error: ") and sentence in error
    assert not (tmp_path / "out").exists() and not server.calls


def test_the_schema_mode_that_the_check_finds_serves_the_whole_run(model, tmp_path):
    """A server that takes a JSON object with a schema, and refuses the first story besides."""

    def behave(body, number):
        if "schema" not in body.get("response_format", {}):
            return status(400, b"unknown response_format")
        return status(400, b"flagged") if number == 4 else graded(body, number)

    with Server(behave) as server:
        lines, _ = go(model, tmp_path, server, "--steps", 2)
    asked = ["schema" in body.get("response_format", {}) for body in server.calls]
    assert asked[:3] == [False, False, True] and all(asked[2:])
    assert [m["judge/failed"] for m in lines] == [1, 0]


def beside(better):
    """Behaviour: which of two stories is better, by better(story 1, story 2) in -3..3; the check gets a
    verdict."""

    def behave(body, number):
        shown = re.findall(r"<<<STORY \d \w+>>>\n(.*?)\n<<<END", body["messages"][1]["content"], re.S)
        if not shown:
            return graded(body, number)
        mark = {"why": "", "quotes_1": [], "quotes_2": [], "better": better(*shown)}
        return say(json.dumps({d.key: mark for d in train.judging.RUBRIC.dimensions}))

    return behave


def test_pair_mode_judges_each_story_beside_the_person_whose_row_needs_no_call(model, tmp_path):
    people = {e.story for e in data.read_examples(train.ROOT / "stories/tiny.jsonl")}
    with Server(beside(lambda one, two: 3 if one in people else -3 if two in people else 0)) as server:
        lines, run = go(model, tmp_path, server, "--steps", 2, "--judge_mode", "pair")
    assert len(server.calls) == 1 + 2 * 2 * 12  # two orders of twelve stories in two steps, and the check
    rows = data.read_episodes(run / "rollouts/step_000001.jsonl")
    assert {r.rewards["quality"] for r in rows if r.is_human} == {0.0}
    assert {r.rewards["quality"] for r in rows if not r.is_human} == {-1.0}
    assert [(m["judge/win_rate"], m["judge/order_flip"], m["judge/failed"]) for m in lines] == [(0, 0, 0)] * 2


def test_pair_mode_needs_no_reference_in_the_group_but_one_in_each_example(model, tmp_path, capsys):
    with Server(beside(lambda one, two: 3)) as server:
        lines, run = go(model, tmp_path, server, "--steps", 1, "--judge_mode", "pair", "--hri", "off")
    assert lines[0]["judge/order_flip"] == 1 and lines[0]["judge/win_rate"] == 0.5  # always the first
    assert all(r.rewards["quality"] == 0 for r in data.read_episodes(run / "rollouts/step_000000.jsonl"))
    told = data.read_examples(train.ROOT / "stories/tiny.jsonl")
    some = [e if i % 3 else replace(e, story=None) for i, e in enumerate(told)]
    data.write_examples(tmp_path / "some.jsonl", some)
    with Server(graded) as server, pytest.raises(SystemExit) as end:
        go(model, tmp_path / "out", server, "--judge_mode", "pair", "--data", tmp_path / "some.jsonl")
    assert end.value.code == 2 and not server.calls and not (tmp_path / "out").exists()
    assert "--judge_mode pair: 80 of 240 examples" in capsys.readouterr().err


def union(spans):
    """Seconds covered by at least one of the spans."""
    total, end = 0.0, 0.0
    for a, b in sorted(spans):
        total, end = total + max(0.0, b - max(a, end)), max(end, b)
    return total


# SLOW=1 measures the preset itself with its own model for docs/judge.md; without it a random model writes two
# stories at a time.
DELAY, STEPS, SIZE = 0.2, 2, "--slots 2 --judge_settings in_flight=2"
if os.environ.get("SLOW"):
    DELAY, STEPS, SIZE = 1.0, 3, "--prompts 8 --group 7 --max_new_tokens 288 --micro_batch_tokens 4096"
    SIZE += " --judge_settings in_flight=8"


def test_judging_overlaps_with_writing(model, tmp_path, monkeypatch, capsys):
    """A step takes less than writing its stories and judging them one after the other."""
    spans = {"writing": [], "judging": [], "both": []}

    def timed(name, function):
        def call(*args, **options):
            began = time.monotonic()
            try:
                return function(*args, **options)
            finally:
                spans[name].append((began, time.monotonic()))

        return call

    def write(*args, write_rows=train.rollout.write_rows, **options):
        began = time.monotonic()
        for i in write_rows(*args, **options):
            time.sleep(0 if os.environ.get("SLOW") else 0.1)  # a random model is too fast to be met at it
            yield i
        spans["writing"].append((began, time.monotonic()))

    monkeypatch.setattr(train.rollout, "write_rows", write)
    monkeypatch.setattr(train.judging.Judge, "_exchange", timed("judging", train.judging.Judge._exchange))
    monkeypatch.setattr(train, "sample", timed("both", train.sample))
    with Server(graded, latency=DELAY) as server:
        writer = train.ROOT / "stories/tiny-base" if os.environ.get("SLOW") else model
        lines, _ = go(writer, tmp_path, server, "--steps", STEPS, SIZE)
    rows = []
    for line, write, (began, end) in zip(lines, spans["writing"], spans["both"]):
        calls = [(a, b) for a, b in spans["judging"] if began <= a < end]
        rows.append((union([write]), union(calls), end - began))
        writing, judging, both = rows[-1]
        told = f"writing {writing:.1f} s + judge busy {judging:.1f} s, both together {both:.1f} s"
        more = f"rollout/seconds {line['rollout/seconds']:.1f}, seconds {line['seconds']:.1f}"
        with capsys.disabled():
            print(f"\nstep {line['step']}: {len(calls)} calls; {told}; {more}")
    assert len(rows) == STEPS
    assert all(writing + judging - both > 0.25 * min(writing, judging) for writing, judging, both in rows)


def test_killed_in_a_step_and_resumed_no_verdict_is_bought_twice(model, tmp_path):
    """The server's own count. It answers the check, the first step and six stories of the second, then
    nothing until the kill."""
    sold, killed = Counter(), threading.Event()

    def behave(body, number):
        def reply(handler):
            if number > 1 + 16 + 6 and not killed.is_set():
                killed.wait(60)
                return reset(handler)  # its client is dead: nothing was delivered, nothing is charged
            unmarked = re.sub(r"[0-9a-f]{16}", "", body["messages"][1]["content"])  # the mark of the call
            sold[unmarked] += 1
            graded(body, number)(handler)
            return None

        return reply

    with Server(behave) as server:
        flags = [
            *FLAGS,
            *judged_by(server, model, tmp_path),
            *"--steps 2 --save_every 1 --resume auto".split(),
        ]
        first = Run(*flags, log=tmp_path / "log")
        deadline, stored = time.monotonic() + 120, Store(tmp_path / "judge.sqlite", "").db
        # 22 verdicts stored, and all calls of the second step at the server: none of them may turn up after
        # the kill.
        count = "SELECT COUNT(*) FROM verdicts"
        while stored.execute(count).fetchone()[0] < 16 + 6 or len(server.calls) < 1 + 16 + 16:
            assert time.monotonic() < deadline and first.processes[0].is_alive(), first.log.read_text()
            time.sleep(0.05)
        first.processes[0].kill()
        first.wait()
        killed.set()
        assert sum(sold.values()) == 1 + 16 + 6 and len(metrics(tmp_path / "r")) == 1
        Run(*flags, log=tmp_path / "log").ok()
    check = next(text for text in sold if "Mara climbed" in text)
    assert sold.pop(check) == 2  # one small call a start, which is never answered from the store
    assert len(sold) == 32 and set(sold.values()) == {1} and len(metrics(tmp_path / "r")) == 2


def test_a_held_out_judge_is_logged_beside_the_reward_and_never_trained_on(model, tmp_path):
    nothing = say(answer(lambda v: [part.update(score=0) for part in v.values()]))
    with Server(graded) as server, Server(lambda *_: nothing) as other:
        watch = f"--watch url={other.url} model=w every=2"
        lines, run = go(model, tmp_path, server, "--steps", 3, watch)
    assert [("watch/gap" in line) for line in lines] == [True, False, True]
    rows = [r for r in data.read_episodes(run / "rollouts/step_000000.jsonl") if not r.is_human]
    assert lines[0]["watch/score"] == 0 and lines[0]["watch/failed"] == 0
    average = sum(r.verdict["score"] for r in rows) / len(rows)
    assert abs(lines[0]["watch/gap"] - average) < 15  # of a sample: eight of twelve stories
    assert all(r.verdict["judge"] == "m" for r in rows)


def test_a_spent_budget_ends_the_run_with_its_state_saved_and_more_money_goes_on(model, tmp_path, capsys):
    money = ["--steps", 3, "--judge_settings", "price=2,20", "in_flight=1"]  # $0.012 a call, 16 calls a step
    with Server(graded) as server:
        with pytest.raises(SystemExit) as end:
            go(model, tmp_path, server, *money, "budget=0.3")
        assert end.value.code == 1 and "the judge's budget is spent" in capsys.readouterr().err
        spent = 0.012 * (len(server.calls) - 1)  # the check is free of the ledger
        assert 0.192 < spent <= 0.3 and list((tmp_path / "r/checkpoints").glob("step_*"))
        lines, _ = go(model, tmp_path, server, *money, "budget=5", "--resume", "auto")
        assert len(lines) == 3 and lines[-1]["judge/dollars"] == pytest.approx(0.012 * 48)
        assert len(server.calls) == 48 + 2
