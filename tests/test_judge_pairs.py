"""Judged beside the person's story: both orders, aggregation, signs of a bad judge, faults."""

import json
import random
import re
from fractions import Fraction
from types import SimpleNamespace

import pytest

import judge as judging
from judge import RUBRIC, Asked, Judge, OfflineJudge
from judge_server import STORY, Server, answer, quick, say, status  # noqa: F401
from lib.rubric import are_in

PROMPT = "Write about a keeper. The story should be 80 words long."
OTHER = "A bell rang in the fog. Nobody came. She rang it again."


def shown(body) -> tuple[str, str]:
    """The two stories of a call, in the order shown."""
    text = body["messages"][1]["content"]
    return tuple(re.search(rf"<<<STORY {n} \w+>>>\n(.*?)\n<<<END", text, re.S)[1] for n in (1, 2))


def marks(better, quotes=("", ""), change=None):
    """An answer that gives story 1 the same mark under every heading, or change(marks)."""
    found = {}
    for d in RUBRIC.dimensions:
        found[d.key] = {"why": "so", "quotes_1": [quotes[0]], "quotes_2": [quotes[1]], "better": better}
    if change:
        change(found)
    return say(json.dumps(found))


def ask(behave, story=STORY, other=OTHER, **options):
    """-> verdict, client, server; the check of stories alone gets a good verdict."""

    def both(body, n):
        return behave(body, n) if "STORY 2" in body["messages"][1]["content"] else say(answer())

    with Server(both) as server:
        client = Judge(server.url, "m", **{"deadline": 5, "retries": 1, **options})
        verdict = client.beside(PROMPT, story, other).result()
        client.close()
    return verdict, client, server


def prefers(value):
    """A judge with a known preference: marks by value(story 1) - value(story 2), with quotes that are
    there."""

    def behave(body, _):
        one, two = shown(body)
        better = max(-3, min(3, value(one) - value(two)))
        return marks(better, (" ".join(one.split()[:3]), " ".join(two.split()[:3])))

    return behave


# ---- aggregation and symmetry


def random_answer(chance):
    marks = {d.key: {"better": chance.randint(-3, 3)} for d in RUBRIC.dimensions}
    return RUBRIC.read_pair(marks, "", "")


def brute_force(answer) -> Fraction:
    names = "P1 P2 P3 P4 P5 P6 N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 BONUS PENALTY".split()
    points = dict(zip(names, (15, 20, 15, 15, 20, 15, 15, 20, 15, 15, 15, 20, 15, 8, 8, 20, 8, 8)))
    total = sum(Fraction(points[k]) * Fraction(answer["scores"][k]) for k in points)
    return total / (3 * sum(points.values()))


def test_aggregation_of_300_random_pairs_and_exact_symmetry():
    chance = random.Random(0)
    for _ in range(300):
        answers = [random_answer(chance) for _ in range(2 * chance.randint(1, 3))]
        verdict = RUBRIC.beside("m", answers)
        exact = [brute_force(a) * (1, -1)[i % 2] for i, a in enumerate(answers)]
        assert verdict.score == pytest.approx(100 * float(sum(exact) / len(exact)), abs=1e-9)
        assert verdict.orders[0] == pytest.approx(float(sum(exact[::2]) / len(exact[::2])), abs=1e-9)
        assert -100 <= verdict.score <= 100 and verdict.samples == len(answers) // 2
        swapped = [answers[i ^ 1] for i in range(len(answers))]  # the other story's point of view
        mirror = RUBRIC.beside("m", swapped)
        assert mirror.score == -verdict.score and mirror.scores == {k: -v for k, v in verdict.scores.items()}
        assert mirror.orders == [-verdict.orders[1], -verdict.orders[0]]


def test_a_pair_is_bought_in_both_orders_once_and_its_evidence_is_checked(tmp_path):
    with Server(prefers(lambda story: 2 * ("lamp" in story))) as server:
        client = Judge(server.url, "m", cache=tmp_path / "c.sqlite")
        verdicts = [client.beside(PROMPT, STORY, OTHER).result() for _ in range(3)]
        mirror = client.beside(PROMPT, OTHER, STORY).result()
        client.close()
    assert sorted(map(shown, server.calls)) == sorted([(STORY, OTHER), (OTHER, STORY)])
    assert verdicts[0] == verdicts[2] and verdicts[0].score == pytest.approx(200 / 3)
    assert verdicts[0].evidence == 1.0
    assert mirror.score == -verdicts[0].score and client.ledger.cached == 6
    assert verdicts[0].quotes["P1"] == ["It was late"] * 2  # of the story that is judged, from both orders
    assert "80 words" not in server.calls[0]["messages"][1]["content"]
    schema = server.calls[0]["response_format"]["json_schema"]["schema"]["properties"]["P1"]["properties"]
    assert schema["better"] == {"type": "integer", "minimum": -3, "maximum": 3}
    assert list(schema)[-1] == "better"


def test_invented_quotes_and_claims_without_any_count_against_the_judge():
    verdict, *_ = ask(lambda body, n: marks(1, ("it was late", "never written")))
    assert verdict.evidence is not None and 0 < verdict.evidence < 1
    verdict, *_ = ask(lambda body, n: marks(2))
    assert verdict.evidence == 0  # a difference without a quote
    verdict, *_ = ask(lambda body, n: marks(0))
    assert verdict.evidence is None and verdict.score == 0
    assert are_in("text", {"P1": []}, []) == [] and are_in("text", {"P1": []}, ["P1"]) == [False]


# ---- a person's story beside itself, empty stories, modes


def row(story, is_human=False):
    example = SimpleNamespace(prompt=PROMPT, target_words=80, story=OTHER)
    judged = {"verdict": None, "reward": None}
    return SimpleNamespace(story=story, is_human=is_human, example=example, completion_ids=[1], **judged)


def test_the_person_stands_at_zero_without_a_call_and_the_group_beside_them():
    group = [row("lamp one."), row("bell two."), row(""), row(OTHER, True)]
    with Server(prefers(lambda story: 3 * ("lamp" in story) - 3 * ("bell two" in story))) as server:
        client = Judge(server.url, "m")
        judging.settle([Asked(client, "pair", group)], judging.BANDS["short"])
        client.close()
    assert [r.rewards["quality"] for r in group] == [1.0, -1.0, -1.0, 0.0] and len(server.calls) == 4
    assert all(-2 <= r.reward <= 2 for r in group) and group[3].verdict["orders"] is None
    found = judging.verdict_metrics([r.verdict for r in group])
    assert found["judge/win_rate"] == pytest.approx(1 / 3) and found["judge/order_flip"] == 0


def test_the_offline_judge_in_pair_mode_is_symmetric():
    offline = OfflineJudge()
    one, two = offline.beside(PROMPT, STORY, OTHER).result(), offline.beside(PROMPT, OTHER, STORY).result()
    assert one.score == -two.score != 0 and one.orders[0] == one.orders[1]
    mine, other = (offline.score(PROMPT, story).scores for story in (STORY, OTHER))
    good = {"BONUS", *(f"P{i}" for i in range(1, 7))}
    ahead = sum((mine[k] - other[k]) * (1 if k in good else -1) for k in mine)
    assert one.score == pytest.approx(100 * ahead / (100 + 151 + 8 + 8))  # strengths, faults, bonus, penalty
    assert offline.beside(PROMPT, STORY, STORY).result().score == 0


# ---- a bad judge


def test_always_first_gives_zero_to_all_and_the_alarm():
    group = [row(f"Story {i} of the lamp.") for i in range(5)] + [row(OTHER, True)]
    with Server(lambda *_: marks(3)) as server:
        client = Judge(server.url, "m")
        judging.settle([Asked(client, "pair", group)], judging.BANDS["short"])
        client.close()
    assert [r.rewards["quality"] for r in group] == [0.0] * 6
    found = judging.verdict_metrics([r.verdict for r in group])
    assert found["judge/order_flip"] == 1 and found["judge/win_rate"] == 0.5
    [alarm] = judging.alarms([found] * 3)
    assert "changes its winner with the order in 100% of pairs" in alarm
    assert judging.alarms([{"judge/order_flip": 0.39}] * 20) == []


def test_a_known_preference_over_60_pairs_is_recovered_and_no_fault_becomes_a_number():
    chance = random.Random(1)
    worth = {f"Story {i} of the lamp.": i % 7 for i in range(61)}
    person, *stories = worth
    faults = [status(500), say("no json"), say(None, refusal="no"), marks(7)]
    faults.append(say(json.dumps({"P1": {"better": 1}})))

    def behave(body, _):
        return chance.choice(faults) if hostile and chance.random() < 0.3 else prefers(worth.get)(body, 0)

    for hostile in (False, True):
        with Server(behave) as server:
            client = Judge(server.url, "m", retries=2)
            verdicts = [f.result() for f in [client.beside(PROMPT, story, person) for story in stories]]
            client.close()
        right = {story: 100 / 3 * max(-3, min(3, worth[story] - worth[person])) for story in stories}
        got = {story: v.score for story, v in zip(stories, verdicts) if v}
        assert got == pytest.approx({story: right[story] for story in got})
        assert len(got) == 60 if not hostile else 20 < len(got) < 60
        assert (client.counts["none"] > 0) == hostile


@pytest.mark.parametrize(
    "broken",
    [
        say("no"),
        marks(4),
        marks(True),
        marks("much"),
        marks(1, change=lambda m: m.pop("N3")),
        marks(1, change=lambda m: m["P1"].update(quotes_2="x")),
    ],
)
def test_one_order_alone_is_no_verdict(broken):
    verdict, client, _ = ask(lambda body, n: broken if shown(body)[0] == OTHER else marks(1))
    assert verdict is None and client.counts["none"] == 1


def test_samples_average_and_a_sample_with_one_order_is_left_out():
    calls = []

    def behave(body, _):
        calls.append(shown(body)[0])
        mine = calls.count(calls[-1])
        if calls[-1] == OTHER and mine in (2, 3):
            return say("no json")  # the second sample's other order, asked twice
        return marks(3) if calls[-1] == STORY else marks(-1)

    verdict, *_ = ask(behave, samples=2, in_flight=1)
    assert verdict.samples == 1 and verdict.score == pytest.approx(100 * (3 / 3 + 1 / 3) / 2)
