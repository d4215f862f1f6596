"""Before a judge is trusted: the probes and their bars, agreement with people, contradictions proved by
quotes."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import judge as judging
from judge_server import Server, say
from lib.answers import Fault
from lib.rubric import proved
from scripts import agree, calibrate

ROOT = Path(__file__).resolve().parent.parent
STORIES = [json.loads(line) for line in (ROOT / "stories/tiny.jsonl").read_text().splitlines()]
FIVE = " ".join(f"word{i}" for i in range(500))


@pytest.fixture(autouse=True)
def no_judge(monkeypatch):
    for name in ("JUDGE_URL", "JUDGE_MODEL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def shown(body) -> list[str]:
    return re.findall(r"<<<STORY(?: \d)? \w+>>>\n(.*?)\n<<<END", body["messages"][1]["content"], re.S)


def judge_by(worth, rank="honest"):
    """A server whose judge knows what each story is worth, 0..100, in every mode."""

    def behave(body, number):
        stories = shown(body)
        if len(stories) == 1:
            share = max(0.0, min(1.0, worth(stories[0]) / 100))
            entry = {
                d.key: round(share * d.high) if d.key[0] == "P" else 0 for d in judging.RUBRIC.dimensions
            }
            return say(
                json.dumps({key: {"why": "", "quotes": [], "score": points} for key, points in entry.items()})
            )
        if "Rank the" in body["messages"][0]["content"]:
            order = sorted(range(len(stories)), key=lambda i: -worth(stories[i]))
            return say(json.dumps({"why": "", "order": [i + 1 for i in order]}))
        better = 3 if rank == "first" else max(-3, min(3, round(worth(stories[0]) - worth(stories[1]))))
        mark = {"why": "", "quotes_1": [], "quotes_2": [], "better": better}
        return say(json.dumps({d.key: mark for d in judging.RUBRIC.dimensions}))

    return behave


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- probes


def verdicts_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| (passed|FAILED|not measured) \|$", text, re.M))


def test_each_probe_has_a_line_and_a_failed_one_ends_with_1(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", STORIES[:12])
    code = calibrate.main(["calibrate", few, "--out", str(tmp_path / "t.md")])
    text = capsys.readouterr().out
    found = verdicts_of(text)
    assert set(found) == {"noise", "order", *calibrate.VERSIONS} and (tmp_path / "t.md").read_text() in text
    assert found["repeated"] == found["bribed"] == found["noise"] == found["order"] == "passed"
    assert found["shuffled"] == "FAILED" and code == 1  # the offline judge is blind to meaning, and says so


def test_a_sound_judge_passes_every_probe_and_a_bad_one_fails_its_own(tmp_path, capsys):
    rows, chance = STORIES[:8], random.Random(0)
    few = write(tmp_path / "few.jsonl", rows)
    worth = {row["story"]: 60 + 4 * i for i, row in enumerate(rows)}

    def sound(story):  # knows the whole stories; whatever was altered is worth little
        return worth.get(story, 20)

    def foreign(story):  # cannot know that a story answers another request: that probe must fail
        return worth.get(story, 20) + (500 if calibrate.BRIBE.strip() in story else 0)

    def run(behave, *flags):
        with Server(behave) as server:
            code = calibrate.main(
                [
                    "calibrate",
                    few,
                    "--judge_url",
                    server.url,
                    "--judge_model",
                    "m",
                    "--cache",
                    str(tmp_path / f"{chance.random()}"),
                    *flags,
                ]
            )
        return code, verdicts_of(capsys.readouterr().out)

    code, found = run(judge_by(sound))
    assert {name for name, verdict in found.items() if verdict == "FAILED"} == {"foreign"} and code == 1
    code, found = run(judge_by(foreign), "--draws", "1")
    assert found["bribed"] == "FAILED" and found["noise"] == "not measured" and found["truncated"] == "passed"
    code, found = run(judge_by(sound, rank="first"))
    assert found["order"] == "FAILED"
    code, found = run(judge_by(lambda story: 50))
    assert set(found.values()) == {"FAILED", "passed"} and found["truncated"] == "FAILED"  # no spread at all


def test_probes_by_hand():
    assert (
        calibrate.probe("x", -1.0, 2.0, -0.5, "gain")[3] == "passed"
        and calibrate.probe("x", -0.9, 2.0, -0.5, "gain")[3] == "FAILED"
    )
    assert (
        calibrate.probe("x", None, 2.0, 0.1, "gain")[3] == "not measured"
        and calibrate.probe("x", 0.0, 0.0, 0.1, "gain")[3] == "FAILED"
    )


def test_groups_are_ranked_where_asked(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", STORIES[:4])
    calibrate.main(["calibrate", few, "--judge_mode", "group"])
    text = capsys.readouterr().out
    assert "| whole | 4 |" in text and "| rank correlation of two orders | 1.00 |" in text


# ---- agreement with people


def pairs(n=60, people=lambda i: "1"):
    rows = []
    for i in range(n):
        one, two = (
            f"A good story number {i}. " + "It goes on. " * (i % 7),
            f"A poor story number {i}. " + "It goes on. " * (i % 5),
        )
        stories, preferred = (
            ([one, two], people(i)) if i % 2 else ([two, one], {"1": "2", "2": "1"}.get(people(i), people(i)))
        )
        rows.append(
            {
                "prompt": f"Write of a lamp {i // 2}. It should be {50 + i} words long.",
                "story_1": stories[0],
                "story_2": stories[1],
                "preferred": preferred,
            }
        )
    return rows


def table(text: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return {row[0].split(",")[0]: row for row in rows}


def test_agreement_with_people_in_each_mode_paid_once(tmp_path, capsys):
    file = write(
        tmp_path / "p.jsonl", pairs(people=lambda i: "tie" if i % 10 == 0 else "2" if i % 10 == 1 else "1")
    )
    worth = lambda story: 80 if "good" in story else 20  # noqa: E731
    with Server(judge_by(worth)) as server:
        flags = [
            "agree",
            "--pairs",
            file,
            "--judge_url",
            server.url,
            "--judge_model",
            "m",
            "--cache",
            str(tmp_path / "c.sqlite"),
        ]
        agree.main(flags)
        first, calls = capsys.readouterr().out, len(server.calls)
        agree.main(flags)
        again = capsys.readouterr().out
        assert len(server.calls) == calls + 1  # the check
    found = table(first)
    assert "54 pairs of 30 prompts; 6 ties of people left out" in first
    for mode in ("story", "pair", "group"):
        assert (
            found[mode][1].startswith("0.80 [") and f"{mode}, 54 of 54 pairs" in first
        )  # right in 24 of 30 prompts
    assert found["pair"][5] == "0%" and found["story"][5] == "-" and table(again) == found


def test_a_judge_that_counts_words_is_told_by_the_lengths(tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", list(pairs(people=lambda i: "1")))
    with Server(judge_by(lambda story: len(story.split()), rank="first")) as server:
        agree.main(
            [
                "agree",
                "--pairs",
                file,
                "--judge_url",
                server.url,
                "--judge_model",
                "m",
                "--cache",
                str(tmp_path / "c.sqlite"),
                "--modes",
                "story",
                "pair",
            ]
        )
    found = table(capsys.readouterr().out)
    assert found["story"][2].startswith("1.00 ") and found["story"][3].startswith("0.00 ")
    assert (
        found["pair"][1].startswith("0.50") and found["pair"][5] == "100%"
    )  # always the first: no difference, all flipped


def test_the_offline_judge_on_references_against_damaged_stories(tmp_path, capsys):
    rows = [
        {
            "prompt": e["prompt"],
            "story_1": e["story"],
            "story_2": e["story"][: len(e["story"]) // 3] * 3,
            "preferred": 1,
        }
        for e in STORIES[:20]
    ]
    agree.main(["agree", "--pairs", write(tmp_path / "p.jsonl", rows)])
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
    with pytest.raises(SystemExit) as end:
        agree.main(
            [
                "agree",
                "--pairs",
                write(tmp_path / "p.jsonl", rows),
                "--judge_url",
                "http://127.0.0.1:9/v1",
                "--judge_model",
                "m",
            ]
        )
    error = capsys.readouterr().err
    assert (
        end.value.code == 2 and sentence in error and error.startswith("error: ") and error.count("\n") == 1
    )


def test_pairs_of_ties_alone_and_missing_files_are_refused(tmp_path, capsys):
    for argv in (
        ["agree", "--pairs", write(tmp_path / "p.jsonl", pairs(3, lambda i: "tie"))],
        ["agree", "one"],
        ["agree", "--pairs", "no.jsonl"],
    ):
        with pytest.raises(SystemExit) as end:
            agree.main(argv)
        assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_a_blinded_study_feeds_it_directly(tmp_path, capsys):
    files = {}
    for name in ("base", "trained"):
        rows = [
            {"uid": f"u{i}", "prompt": f"Write of a lamp {i}.", "story": f"A {name} story {i}."}
            for i in range(4)
        ]
        files[name] = write(tmp_path / f"{name}.jsonl", rows)
    said = [
        {"uid": f"u{i}", "models": ["base", "trained"], "winner": ["trained", "base", None, "trained"][i]}
        for i in range(4)
    ]
    (tmp_path / "report.json").write_text(json.dumps({"judgements": said}))
    stories = [f"{name}={file}" for name, file in files.items()]
    rows = agree.read_pairs(str(tmp_path / "report.json"), stories)
    assert [row["preferred"] for row in rows] == ["2", "1", "tie", "2"] and rows[0][
        "story_2"
    ] == "A trained story 0."
    with pytest.raises(ValueError, match="no stories of 'trained'"):
        agree.read_pairs(str(tmp_path / "report.json"), stories[:1])


# ---- contradictions


def test_a_contradiction_counts_only_with_two_quotes_that_stand_in_the_story():
    rubric = judging.load_rubric("consistency")
    story = f"Her coat was blue. {FIVE} He hung up her red coat. {FIVE} "
    story += "It was Tuesday. The day before, Tuesday, it rained."
    words = judging.count_words(story)

    def read(**quotes):
        answer = {
            d.key: {"why": "", "quotes": quotes.get(d.key, []), "score": len(quotes.get(d.key, [])) // 2}
            for d in rubric.dimensions
        }
        return rubric.read(answer, story, "m")

    real, late = ["her coat was blue", "hung up her RED coat"], ["It was Tuesday", "The day before, Tuesday"]
    assert read().score == 0 and read().evidence is None
    both = read(N1=real, N3=late)
    assert (
        both.scores["N1"] == both.scores["N3"] == 1
        and both.score == pytest.approx(2000 / words)
        and both.evidence == 1
    )
    assert (
        read(N1=[real[0], "never written"]).score == 0 and read(N1=real + real).scores["N1"] == 1
    )  # twice the same is one
    assert read(N1=[real[0], real[0]]).score == 0  # one passage does not contradict itself
    assert proved([*real, *late, "odd one"], story) == 2
    with pytest.raises(Fault):
        rubric.read({d.key: {"score": 11, "quotes": []} for d in rubric.dimensions}, story, "m")
    schema = rubric.schema()["properties"]["N1"]["properties"]
    assert schema["quotes"]["maxItems"] == 20 and "two exact quotes" in rubric.instructions()
    assert rubric.empty("m").score == 0 and rubric.mean([both, read()]).score == pytest.approx(1000 / words)


def test_the_commands_of_judge_py(tmp_path):
    few = write(tmp_path / "few.jsonl", STORIES[:4])
    done = subprocess.run(
        [sys.executable, str(ROOT / "judge.py"), "calibrate", few], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "| padded |" in done.stdout, done.stderr
    done = subprocess.run(
        [sys.executable, str(ROOT / "judge.py"), "score", few, "--judge_settings", "temprature=1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and re.fullmatch(
        r"error: --judge_settings: there is no setting 'temprature'; .*\n", done.stderr
    )
