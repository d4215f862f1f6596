"""The line to a model: what counts as an answer, what is sent, and that no part of a key is ever shown."""

import json
import multiprocessing
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

from judge import Judge
from judge_server import STORY, Server, answer, quick, say, status  # noqa: F401
from lib.answers import SCHEMA_MODES, Fault, find_json, read_completion, scrubber
from lib.endpoint import Endpoint, settings
from lib.store import Store

ROOT = Path(__file__).resolve().parent.parent
PROMPT, KEY = "Write about a keeper.", "sk-proj/Abc+0123456789-defghijklmnop=="
OK = say(answer())


# ---- what counts as an answer


def read(body: dict):
    completion = read_completion(json.dumps(body).encode())
    completion.check(whole=True)
    return find_json(completion.text)


@pytest.mark.parametrize(
    "case",
    [json.loads(line) for line in (ROOT / "tests/judge_answers.jsonl").read_text().splitlines()],
    ids=lambda case: case["why"][:40],
)
def test_answers_that_servers_gave(case):
    if case["right"] != "fault":
        assert read(case["body"]) == case["right"]
        return
    with pytest.raises(Fault) as fault:
        read(case["body"])
    if "reasoning_content" in json.dumps(case["body"]):
        assert "reasoning_content" in str(fault.value) and "--reasoning-parser" in str(fault.value)


ONE = '{"a": 1}'


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{ONE}</think>{ONE}",
        f'{{"a": 5}} no, wait</think>\n{ONE}',
        f"<think>a {{ draft</think> ```json\n{ONE}\n```",
        f'<think>one</think><think>two {{"a": 9}}</think>{ONE}',
        f"{{x}} {{}} {{ y: 2 }} {ONE} {{z",
        f"[{ONE}]",
        f'so "{{" it is: {ONE}',
        f'half {{"a": </think>{ONE}',
        f'{ONE} <think>and {{"a": 2}}',
    ],
)
def test_one_object_is_found_among_words_and_thoughts(text):
    assert find_json(text) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no braces",
        "{x}",
        "[1, 2]",
        '{"a": 1',
        f"{ONE}, or rather {ONE}",
        f"<think>{ONE}",
        '{"a": {"b": 1, "b": 2}}',
        '{"a": 1, "a": 1}',
        f'{ONE} {{"b": oops}}',
        '{"a":' * 5000 + "1",
    ],
)
def test_a_doubtful_answer_is_a_fault(text):
    with pytest.raises(Fault, match="bad_json"):
        find_json(text)


def test_a_quotation_may_hold_the_marks_of_thinking():
    quoted = {"why": 'he wrote "</think>" and <think> {"x": 1}'}
    assert find_json("Here: " + json.dumps(quoted)) == quoted


@pytest.mark.parametrize(
    "content, text",
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([], ""),
        ("x", "x"),
        (None, ""),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "b"}], "b"),
    ],
)
def test_content_in_parts_is_joined(content, text):
    body = {"choices": [{"message": {"content": content}, "finish_reason": "length"}]}
    assert read_completion(json.dumps(body).encode()).text == text


@pytest.mark.parametrize("content", [7, {"text": "a"}, True, [{"type": "text", "text": 3}]])
def test_content_of_another_kind_is_not_an_answer(content):
    with pytest.raises(Fault, match="not_an_answer"):
        read_completion(json.dumps({"choices": [{"message": {"content": content}}]}).encode())


# ---- the key


def parts_of(key: str, text: str, size: int = 8) -> list[str]:
    """Every part of the key of `size` characters that the text holds, by looking for each."""
    parts = [key[i : i + size] for i in range(len(key) - size + 1)]
    return [part for part in parts if part.lower() in text.lower()]


def test_no_part_of_a_key_survives_the_scrubber():
    chance, letters = random.Random(0), string.ascii_letters + string.digits + "-_+/="
    for _ in range(300):
        key = "".join(chance.choices(letters, k=chance.choice([1, 5, 8, 9, 20, 51])))
        at = sorted(chance.sample(range(len(key) + 1), 2)) if len(key) > 1 else [0, 1]
        more = chance.choice(["", ".", key.upper(), key[::-1], key * 2])
        text = f"Incorrect key: {key[at[0] : at[1]]}{more} end"
        clean = scrubber(key)(text)
        assert not parts_of(key, clean) if len(key) >= 8 else key not in clean.replace("[key]", "")
        assert clean.startswith("Incorrect key: ") and clean.endswith(" end") or len(key) < 8
    assert scrubber("")("as it was") == "as it was" and scrubber(KEY)("as it was") == "as it was"


@pytest.mark.parametrize(
    "behave",
    [
        # cut in the middle of the key
        status(401, b"x" * 150 + f" Incorrect API key provided: {KEY}. ".encode() * 3),
        status(401, f"bad key {KEY[:20]}****".encode()),
        status(400, json.dumps({"key": KEY}).replace("/", "\\/").encode()),
        status(307, Location=f"http://other.host/{KEY}"),
        status(200, f"<html>{KEY}".encode()),
        status(503, KEY.encode(), Retry_After=KEY),
        say(None, refusal=f"not for {KEY}"),
        say(f"the key {KEY} is good"),
        say(answer(lambda v: v["P1"].update(score=KEY))),
        say(answer(lambda v: v["P1"].update(why=f"signed {KEY}", quotes=[KEY]))),
    ],
)
def test_an_echoed_key_reaches_no_output_log_or_file(behave, tmp_path, caplog, capfd):
    with Server(lambda *_: behave) as server:
        client = Judge(server.url, "m", KEY, cache=tmp_path / "c.sqlite", retries=1)
        verdict, told = client.submit(PROMPT, STORY).result(), ""
        try:
            client.check()
        except ValueError as error:
            told = str(error)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        client.close()
    seen = [*capfd.readouterr(), caplog.text, told, client.last_error, repr(vars(client)), repr(verdict)]
    kept = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
    assert not parts_of(KEY, "".join(seen)) and not parts_of(KEY, kept)
    assert verdict is not None or client.last_error


# ---- the form that is asked for


def modes_asked(server) -> list[str]:
    return [body["response_format"]["type"] if "response_format" in body else "text" for body in server.calls]


def test_a_story_that_is_refused_with_400_says_nothing_about_the_schema_mode():
    """The first story meets 400, with and without a check before: the run keeps its schema mode."""

    def behave(body, _):
        return status(400, b"flagged") if "flagged" in body["messages"][1]["content"] else OK

    for checked in (True, False):
        with Server(behave) as server:
            client = Judge(server.url, "m", retries=1)
            if checked:
                client.check()
            assert (
                client.submit(PROMPT, "a flagged story").result() is None and client.counts["http_400"] == 1
            )
            assert client.submit(PROMPT, STORY).result() and client.schema_mode == SCHEMA_MODES[0]
            assert set(modes_asked(server)) == {"json_schema"} and len(server.calls) == 2 + checked
            client.close()


def test_a_check_that_fails_in_every_mode_leaves_the_mode_as_it_was():
    ill = [True]
    with Server(lambda *_: status(400, b"no such model") if ill[0] else OK) as server:
        client = Judge(server.url, "m")
        with pytest.raises(ValueError, match="no such model"):
            client.check()
        assert modes_asked(server) == ["json_schema"] * 2 + ["json_object"] * 2 + ["text"]
        ill[0] = False
        assert client.submit(PROMPT, STORY).result() and modes_asked(server)[-1] == "json_schema"
        client.close()


def test_what_a_check_learned_serves_another_endpoint():
    def behave(body, _):
        if "max_tokens" in body:
            return status(400, b"use max_completion_tokens")
        return status(400, b"no response_format") if "response_format" in body else OK

    with Server(behave) as server:
        first, second = Judge(server.url, "m"), Judge(server.url, "m")
        learned = first.check()
        vars(second).update(learned)
        before = len(server.calls)
        assert second.submit(PROMPT, STORY).result() and len(server.calls) == before + 1
        first.close(), second.close()


def test_many_calls_under_way_all_learn_the_newer_token_field():
    def behave(body, _):
        old = status(400, b"Unsupported: use 'max_completion_tokens'")
        return OK if "max_completion_tokens" in body else old

    with Server(behave, latency=0.1) as server:
        client = Judge(server.url, "m", in_flight=8)
        assert all(f.result() for f in [client.submit(PROMPT, f"{STORY} {i}") for i in range(16)])
        client.close()


# ---- plain text


def ask_text(server, params=None, spare=(), **how):
    line = Endpoint(server.url, "m", temperature=None, top_p=None, max_tokens=None, **{"retries": 1, **how})
    try:
        return line.complete([{"role": "user", "content": "Write."}], params or {}, spare).result(), line
    finally:
        line.close()


def test_a_plain_completion_with_its_thought_and_its_tokens():
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "rained."}]
    params = {"temperature": 0.8, "seed": 3, "chat_template_kwargs": {"enable_thinking": False}}
    with Server(lambda *_: say(parts, reasoning="a plan")) as server:
        done, line = ask_text(server, params)
    assert (done.text, done.finish, done.tokens, done.thought) == ("It rained.", "stop", 500, "a plan")
    body = server.calls[0]
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and body["seed"] == 3
    assert "response_format" not in body and "top_p" not in body and line.ledger.calls == 1


@pytest.mark.parametrize(
    "behave, reason",
    [
        (say(None), "empty_answer"),
        (say(None, reasoning_content="the story"), "empty_answer"),
        (say("", reasoning="the story"), "empty_answer"),
        (say("", finish="content_filter"), "refusal"),
        (status(503), "http_503"),
        (status(404), "http_404"),
    ],
)
def test_a_null_answer_that_ended_is_a_fault_in_plain_text_too(behave, reason):
    with Server(lambda *_: behave) as server:
        done, line = ask_text(server)
    assert done is None and line.counts[reason] and line.last_error.startswith(reason)


@pytest.mark.parametrize("content", [None, "", "<think>and then"])
def test_a_text_that_was_cut_is_an_answer(content):
    with Server(lambda *_: say(content, finish="length", reasoning_content="hm")) as server:
        done, _ = ask_text(server)
    assert done.finish == "length" and done.text == (content or "")


def test_a_server_that_does_not_know_a_parameter_is_spared_it_once_for_all():
    def behave(body, _):
        refusal = status(400, b"Unrecognized request argument supplied: top_k")
        return refusal if "top_k" in body else say("Well.")

    with Server(behave, latency=0.05) as server:
        line = Endpoint(server.url, "m", in_flight=4)
        params = {"top_k": -1, "min_p": 0.0}
        asked = [[{"role": "user", "content": f"{i}"}] for i in range(8)]
        texts = [line.complete(messages, params, ("top_k", "min_p")) for messages in asked]
        assert all(f.result().text == "Well." for f in texts) and len(server.calls) <= 12
        assert line.complete(asked[0], {"top_k": 20}).result() is None  # asked for in earnest
        line.close()


# ---- settings


def test_settings_are_read_from_text_and_reach_the_wire():
    text = "temperature=0.5 top_p=none seed=7 reasoning_effort=low in_flight=3 max_tokens=99 retries=1 "
    text += "per_minute=60000,9e9 timeouts=5,60 deadline=90 price=2,20 budget=50"
    text = dict(pair.split("=") for pair in text.split())
    how = settings(text)
    assert how.price == (2.0, 20.0) and how.top_p is None and how.seed == 7 and settings(vars(how)) == how
    with Server(lambda *_: OK) as server:
        client = Judge(server.url, "m", **text)
        assert client.submit(PROMPT, STORY).result()
        client.close()
    body = server.calls[0]
    sent = {"temperature": 0.5, "seed": 7, "reasoning_effort": "low", "max_tokens": 99}
    assert {key: body[key] for key in sent} == sent
    assert "top_p" not in body
    assert client.ledger.dollars == pytest.approx(0.012) and client.budget == 50
    assert client.how.timeouts == (5, 60)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"temprature": "1"}, "temprature.*the settings are temperature, top_p"),
        ({"price": "2"}, "price=2: needs two numbers"),
        ({"in_flight": "2.5"}, "a whole number"),
        ({"deadline": "soon"}, "deadline=soon"),
        ({"seed": "-1"}, "not below 0"),
        ({"temperature": "nan"}, "temperature=nan"),
        ({"in_flight": ""}, "needs a value"),
        ({"per_minute": "1,2,3"}, "two numbers"),
        ({"in_flight": "0"}, "at least 1"),
        ({"deadline": 0}, "above 0"),
        ({"timeouts": "0,5"}, "above 0"),
        ({"top_p": "1.5"}, "top_p"),
        ({"budget": "5"}, "price=IN,OUT"),
        ({"price": (1, -2)}, "not below 0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(values, words):
    with pytest.raises(ValueError, match=words):
        Judge("http://x/v1", "m", **values)


# ---- a disk that takes nothing more

FULL = """
import json, resource, sys
sys.path.insert(0, {root!r})
from lib.flags import exits_cleanly
from judge import Judge

@exits_cleanly
def main(argv=None):
    client = Judge({url!r}, "m", cache={cache!r}, in_flight=2)
    client.submit("a prompt", "the first story").result()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # from here on a write fails
    print(client.submit("a prompt", "the second story").result())

main()
"""


def test_a_full_disk_under_the_cache_is_one_sentence_and_exit_code_2(tmp_path):
    with Server(lambda *_: OK) as server:
        code = FULL.format(root=str(ROOT), url=server.url, cache=str(tmp_path / "c.sqlite"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert re.match(r"error: the cache of answers .*c\.sqlite cannot be used \(.*\); make room", done.stderr)


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError)):
        Judge("http://x/v1", "m", cache=tmp_path / "file" / "c.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(ValueError, match="cannot be used"):
        Judge("http://x/v1", "m", cache=tmp_path / "folder.sqlite")


def open_and_write(folder, together, wrong):
    for i in range(30):
        together.wait()
        try:
            Store(folder / f"{i}.sqlite", "run").record(
                "m", (1, 1), 0.0, str(multiprocessing.current_process()), 1
            )
        except ValueError as error:
            wrong.put(str(error))


def test_processes_that_make_one_cache_at_the_same_moment_wait_for_each_other(tmp_path):
    fork = multiprocessing.get_context("fork")
    together, wrong = fork.Barrier(4), fork.SimpleQueue()
    those = [fork.Process(target=open_and_write, args=(tmp_path, together, wrong)) for _ in range(4)]
    for process in those:
        process.start()
    for process in those:
        process.join()
    assert wrong.empty(), wrong.get()
    assert [Store(tmp_path / f"{i}.sqlite", "run").ledger.calls for i in range(30)] == [4] * 30
