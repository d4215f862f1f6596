"""Before a judge is trusted: the probes and their bars, agreement with people, contradictions proved by
quotes."""

import json
import re
from pathlib import Path

import pytest

import eval as evaluation
import judge as judging
from judge_server import Server, quick, say  # noqa: F401
from lib.answers import Fault
from lib.rubric import proved
from scripts import calibrate

ROOT = Path(__file__).resolve().parent.parent
STORIES = [json.loads(line) for line in (ROOT / "stories/tiny.jsonl").read_text().splitlines()]
FIVE = " ".join(f"word{i}" for i in range(500))


def shown(body) -> list[str]:
    return re.findall(r"<<<STORY(?: \d)? \w+>>>\n(.*?)\n<<<END", body["messages"][1]["content"], re.S)


def judge_by(worth, rank="honest"):
    """A server whose judge knows what each story is worth, 0..100, in every mode."""

    def behave(body, number):
        stories, keys = shown(body), [d.key for d in judging.RUBRIC.dimensions]
        if len(stories) == 1:
            share = max(0.0, min(1.0, worth(stories[0]) / 100))
            points = {d.key: round(share * d.high) * (d.key[0] == "P") for d in judging.RUBRIC.dimensions}
            return say(json.dumps({key: {"why": "", "quotes": [], "score": points[key]} for key in keys}))
        if "Rank the" in body["messages"][0]["content"]:
            order = sorted(range(len(stories)), key=lambda i: -worth(stories[i]))
            return say(json.dumps({"why": "", "order": [i + 1 for i in order]}))
        better = 3 if rank == "first" else max(-3, min(3, round(worth(stories[0]) - worth(stories[1]))))
        mark = {"why": "", "quotes_1": [], "quotes_2": [], "better": better}
        return say(json.dumps(dict.fromkeys(keys, mark)))

    return behave


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def told(tmp_path, capsys):
    """told(behave, command...) -> exit code and output of the command before a judge that behaves so."""

    def run(behave, *argv, times=1):
        found = []
        with Server(behave) as server:
            flags = ["--judge_url", server.url, "--judge_model", "m", "--cache", str(tmp_path / "c.sqlite")]
            for _ in range(times):
                code = calibrate.main([*argv, *flags])
                found.append((code, capsys.readouterr().out, len(server.calls)))
        return found if times > 1 else found[0][:2]

    return run


def refused(argv, capsys) -> str:
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as end:
        calibrate.main(argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


# ---- probes


def verdicts_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| (passed|FAILED|not measured) \|", text, re.M))


def test_each_probe_has_a_line_and_a_failed_one_ends_with_1(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", STORIES[:12])
    code = calibrate.main(["calibrate", few, "--out", str(tmp_path / "t.md")])
    text = capsys.readouterr().out
    found = verdicts_of(text)
    assert set(found) == {"noise", "order", *calibrate.MOST_GAIN} and (tmp_path / "t.md").read_text() in text
    assert found["repeated"] == found["bribed"] == found["noise"] == found["order"] == "passed"
    assert code == ("FAILED" in found.values())


def test_a_sound_judge_passes_every_probe_and_a_bad_one_fails_its_own(tmp_path, told):
    few = write(tmp_path / "few.jsonl", STORIES[:8])
    worth = {row["story"]: 60 + 4 * i for i, row in enumerate(STORIES[:8])}

    def sound(story):  # knows the whole stories; whatever was altered is worth little
        return worth.get(story, 20)

    def bribed(story):
        return worth.get(story, 20) + (500 if calibrate.BRIBE.strip() in story else 0)

    def run(behave, *flags):
        code, text = told(behave, "calibrate", few, *flags)
        return code, verdicts_of(text)

    code, found = run(judge_by(sound))  # cannot know that a story answers another request: that probe fails
    assert {name for name, verdict in found.items() if verdict == "FAILED"} == {"foreign"} and code == 1
    _, found = run(judge_by(bribed), "--draws", "1")
    assert found["bribed"] == "FAILED" and found["noise"] == "not measured" and found["truncated"] == "passed"
    assert run(judge_by(sound, rank="first"))[1]["order"] == "FAILED"
    _, found = run(judge_by(lambda story: 50))
    assert set(found.values()) == {"FAILED", "passed"} and found["truncated"] == "FAILED"  # no spread at all


@pytest.mark.parametrize(
    "value, unit, most, verdict",
    [
        (-1.0, 2.0, -0.5, "passed"),
        (-0.9, 2.0, -0.5, "FAILED"),
        (None, 2.0, 0.1, "not measured"),
        (0.0, 0.0, 0.1, "FAILED"),
    ],
)
def test_probes_by_hand(value, unit, most, verdict):
    assert calibrate.probe("x", value, unit, most, "gain")[3] == verdict


def test_groups_are_ranked_where_asked(tmp_path, capsys):
    calibrate.main(["calibrate", write(tmp_path / "few.jsonl", STORIES[:4]), "--judge_mode", "group"])
    text = capsys.readouterr().out
    assert "| rank of whole: 100 first, 0 last | " in text
    assert "| rank correlation of two orders | 1.00 |" in text


# ---- agreement with people


def pairs(n=60, people=lambda i: "1"):
    """Pairs of a good and a poor story, the good one second in every other pair."""
    rows, other = [], {"1": "2", "2": "1", "tie": "tie"}
    for i in range(n):
        good = f"A good story number {i}. " + "It goes on. " * (i % 7)
        poor = f"A poor story number {i}. " + "It goes on. " * (i % 5)
        one, two, preferred = (poor, good, other[people(i)]) if i % 2 == 0 else (good, poor, people(i))
        prompt = f"Write of a lamp {i // 2}. It should be {50 + i} words long."
        rows.append({"prompt": prompt, "story_1": one, "story_2": two, "preferred": preferred})
    return rows


def table(text: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0].split(",")[0]: row for row in rows}


def test_agreement_with_people_in_each_mode_paid_once(tmp_path, told):
    said = pairs(people=lambda i: "tie" if i % 10 == 0 else "2" if i % 10 == 1 else "1")
    behave = judge_by(lambda story: 80 if "good" in story else 20)
    file = write(tmp_path / "p.jsonl", said)
    (_, first, calls), (_, again, later) = told(behave, "agree", "--pairs", file, times=2)
    found = table(first)
    assert later == calls + 1  # the check
    assert "54 pairs of 30 prompts; 6 ties of people left out" in first
    for mode in ("story", "pair", "group"):  # right in 24 of 30 prompts
        assert found[mode][1].startswith("0.80 [") and f"{mode}, 54 of 54 pairs" in first
    assert found["pair"][5] == "0%" and found["story"][5] == "-" and table(again) == found


def test_a_judge_that_counts_words_is_told_by_the_lengths(tmp_path, told):
    behave = judge_by(lambda story: len(story.split()), rank="first")
    asked = ["--pairs", write(tmp_path / "p.jsonl", pairs()), "--modes", "story", "pair"]
    found = table(told(behave, "agree", *asked)[1])
    assert found["story"][2].startswith("1.00 ") and found["story"][3].startswith("0.00 ")
    assert found["pair"][1].startswith("0.50") and found["pair"][5] == "100%"  # always the first: all flipped


def test_the_offline_judge_on_references_against_damaged_stories(tmp_path, capsys):
    rows = []
    for e in STORIES[:20]:
        damaged = e["story"][: len(e["story"]) // 3] * 3
        rows.append({"prompt": e["prompt"], "story_1": e["story"], "story_2": damaged, "preferred": 1})
    calibrate.main(["agree", "--pairs", write(tmp_path / "p.jsonl", rows)])
    assert table(capsys.readouterr().out)["pair"][1].startswith("1.00")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"story_2": ""}, "line 2 has no story_2"),
        ({"story_1": None}, "line 2 has no story_1"),
        ({"preferred": "left"}, "preferred is 'left'"),
        ({"preferred": None}, "preferred is 'None'"),
        ({"story_1": "same", "story_2": "same "}, "the two stories are the same"),
    ],
)
def test_bad_pairs_are_one_sentence_before_any_call(tmp_path, capsys, change, sentence):
    rows = pairs(3)
    rows[1] |= change
    nowhere = ["--judge_url", "http://127.0.0.1:9/v1", "--judge_model", "m"]
    argv = ["agree", "--pairs", write(tmp_path / "p.jsonl", rows), *nowhere]
    assert sentence in refused(argv, capsys)


def test_pairs_of_ties_alone_and_missing_files_are_refused(tmp_path, capsys):
    ties = write(tmp_path / "p.jsonl", pairs(3, lambda i: "tie"))
    for argv in (["--pairs", ties], ["one"], ["--pairs", "no.jsonl"]):
        refused(["agree", *argv], capsys)
    for argv in (["score"], ["calibrate", "a", "b"], ["score", ties, "--draws", "0"]):
        refused(argv, capsys)


# ---- contradictions


def test_a_contradiction_counts_only_with_two_quotes_that_stand_in_the_story():
    rubric = judging.load_rubric("consistency")
    story = f"Her coat was blue. {FIVE} He hung up her red coat. {FIVE} "
    story += "It was Tuesday. The day before, Tuesday, it rained."
    words = judging.count_words(story)

    def read(**quotes):
        answer = {}
        for d in rubric.dimensions:
            cited = quotes.get(d.key, [])
            answer[d.key] = {"why": "", "quotes": cited, "score": len(cited) // 2}
        return rubric.read(answer, story, "m")

    real, late = ["her coat was blue", "hung up her RED coat"], ["It was Tuesday", "The day before, Tuesday"]
    assert read().score == 0 and read().evidence is None
    both = read(N1=real, N3=late)
    assert both.scores["N1"] == both.scores["N3"] == 1 == both.evidence
    assert both.score == pytest.approx(2000 / words)
    assert read(N1=[real[0], "never written"]).score == 0
    assert read(N1=real + real).scores["N1"] == 1  # twice the same is one
    assert read(N1=[real[0], real[0]]).score == 0  # one passage does not contradict itself
    assert proved([*real, *late, "odd one"], story) == 2
    with pytest.raises(Fault):
        rubric.read({d.key: {"score": 11, "quotes": []} for d in rubric.dimensions}, story, "m")
    (system, _), schema, _ = judging.story_task(rubric, "Write.", story)
    assert schema["properties"]["N1"]["properties"]["quotes"]["maxItems"] == 20
    assert "two exact quotes" in system["content"]
    assert rubric.empty("m").score == 0 and rubric.mean([both, read()]).score == pytest.approx(1000 / words)


def test_eval_prints_contradictions_per_1000_words_by_requested_length(tmp_path, capsys):
    """A writer whose stories contradict themselves once at 100 words and twice at 200; the judge finds both,
    and claims one more with a quote that is in no story."""
    coat = ["her coat was blue", "hung up her red coat"]
    day = ["it was Tuesday", "the day before, Tuesday"]
    invented = ["the cat was called Tom", "the cat called Tim"]

    def writes(body, number):
        words = int(re.search(r"(\d+) words long", body["messages"][0]["content"])[1])
        quotes = coat if words == 100 else [*coat, *day]
        return say(". ".join([*quotes, " ".join(f"word{i}" for i in range(words - 4 * len(quotes)))]))

    def reads(body, number):
        [story] = shown(body)
        proofs = {"N1": [*coat, *invented], "N3": day if day[0] in story else []}
        answer = {}
        for d in judging.load_rubric("consistency").dimensions:
            quotes = proofs.get(d.key, [])
            answer[d.key] = {"why": "", "quotes": quotes, "score": len(quotes) // 2}
        return say(json.dumps(answer))

    asked = [{"uid": f"u{i}", "prompt": f"Write of a lamp {i}.", "target_words": 100} for i in range(3)]
    flags = ["--prompts", write(tmp_path / "asked.jsonl", asked), "--out", str(tmp_path / "e")]
    flags += ["--lengths", "100", "200", "--samples", "1", "--thirds", "off", "--limit", "0"]
    with Server(writes) as writer, Server(reads) as reader:
        flags += ["--endpoint", writer.url, "--model", "writer", "--rubric", "consistency"]
        evaluation.main([*flags, "--judge_url", reader.url, "--judge_model", "m"])
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "e/report.json").read_text())["figures"]["writer"]["quality"]
    lines = [json.loads(line) for line in (tmp_path / "e/stories/writer.jsonl").read_text().splitlines()]
    words = {x["target_words"]: judging.count_words(x["story"]) for x in lines}
    rates = {n: 1000 * count / words[n] for n, count in {100: 1, 200: 2}.items()}
    assert [figures[str(n)]["mean"] for n in rates] == pytest.approx(list(rates.values()))
    assert "contradictions per 1,000 words" in out
    printed = dict(re.findall(r"^\| writer \| (100|200) .* ([\d.]+) \[[\d., ]+\] \|$", out, re.M))
    assert printed == {str(n): f"{rate:.1f}" for n, rate in rates.items()}
    found = [x["verdict"] for x in lines]
    assert {(v["scores"]["N1"], v["scores"]["N3"]) for v in found} == {(1, 0), (1, 1)} and len(found) == 6
    assert {v["evidence"] for v in found} == {2 / 4, 4 / 6}  # the invented quotes count against the judge


def test_a_setting_that_is_none_is_one_sentence(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", STORIES[:4])
    sentence = r"error: there is no setting 'temprature'; .*\n"
    assert re.fullmatch(sentence, refused(["score", few, "--judge_settings", "temprature=1"], capsys))
