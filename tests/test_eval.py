"""Evaluation: statistics against independent computations, real kills, real servers, a real browser."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import eval as evaluation
import judge as judging
from launch import SMALL, base
from lib import endpoint, files, stats
from lib.form import strip_length
from lib.store import Store

ROOT = Path(__file__).resolve().parent.parent
TRAP = "</script><script>window.trapped = 1</script><img src=x onerror='window.trapped = 1'><b>bold</b>"
TINY = SMALL | {"linear_num_key_heads": 2, "max_position_embeddings": 4096, "eos_token_id": 4093}
TINY |= {"architectures": ["Qwen3_5ForCausalLM"]}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(seed) -> folder of a random model that loads in a second."""
    folder = tmp_path_factory.mktemp("models")

    def make(seed=0):
        path = folder / f"random-{seed}"
        return path if path.exists() else base(path, seed, scale=1, **TINY)

    return make


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small lose more to waiting for a second thread than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_judge(monkeypatch):
    for name in ("JUDGE_URL", "JUDGE_MODEL", "JUDGE_API_KEY", "ENDPOINT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def prompts(path, n=6, text=""):
    subjects = ["bell", "lamp", "river", "orchard", "ferry", "clock", "letter", "fox"]
    rows = [
        data.Example(f"p{i}", f"Write a story about a {subjects[i]}{text}. It should be 50 words long.", 50)
        for i in range(n)
    ]
    data.write_examples(path, rows)
    return path


def code(main, argv) -> int:
    """What a program ends with."""
    try:
        return main(argv) or 0
    except SystemExit as end:
        return end.code


def saved(out):
    return json.loads((out / "report.json").read_text())


# ---- what is asked


def test_the_length_in_a_prompt_is_replaced():
    asked = "A fox: write a story 1,200 words long."
    assert data.at_length(asked, 12000) == "A fox: write a story 12000 words long."
    assert data.at_length("A 50-word-long story", 80) == "A 80-word-long story"
    assert data.at_length("Tell me of 3 foxes", 80) == "Tell me of 3 foxes. It should be 80 words long."
    shipped = data.read_examples(ROOT / "stories" / "heldout.jsonl")
    todo = evaluation.requests_for(shipped, [100, 12000, 100], 5)
    assert len(todo) == 10 and len({e.uid for e in todo}) == 10
    assert len({strip_length(e.prompt) for e in todo}) == 5
    assert all(f"{e.target_words} words long" in e.prompt for e in todo)
    assert len(evaluation.requests_for(shipped, [], 0)) == 60
    assert len({strip_length(e.prompt) for e in shipped}) == 30


def test_thirds_lose_nothing_and_are_thirds():
    rng = random.Random(0)
    for _ in range(20):
        paragraphs = []
        for _ in range(rng.randint(8, 20)):
            words = [rng.choices("a ship sank and the crew sang".split(), k=rng.randint(3, 12))]
            words += [
                rng.choices("a ship sank and the crew sang".split(), k=9) for _ in range(rng.randint(1, 5))
            ]
            paragraphs.append(" ".join(" ".join(sentence).capitalize() + "." for sentence in words))
        story = "\n\n".join(paragraphs)
        parts = evaluation.thirds(story)
        if data.words(story) >= evaluation.THIRDS_FROM:
            assert "".join("".join(parts).split()) == "".join(story.split())
            assert all(abs(data.words(p) - data.words(story) / 3) <= 13 for p in parts)
    assert evaluation.thirds("word " * 500) == []


def test_length_score_by_hand():
    for (asked, wrote), score in {
        (100, 100): 100,
        (100, 250): 50,
        (100, 400): 0,
        (100, 900): 0,
        (100, 50): 50,
        (100, 30): 0,
        (100, 0): 0,
    }.items():
        assert evaluation.length_score(asked, wrote) == pytest.approx(max(0, score), abs=1e-9)
    assert evaluation.length_score(300, 200) == pytest.approx(75)


# ---- statistics against independent computations


def test_bootstrap_covers_95_percent_in_simulation():
    rng, hits, runs = np.random.default_rng(1), 0, 500
    for _ in range(runs):  # 60 prompts with an effect of their own
        rows = [{"unit": u, "target": 100, "quality": x} for u, x in enumerate(rng.normal(10, 5, 60))]
        low, high = stats.figures(rows, "quality", [("100", 99, 100)])["all"]["interval"]
        hits += low <= 10 <= high
    assert 0.925 <= hits / runs <= 0.975  # 95 % within 2.6 standard errors


def test_stories_of_one_prompt_are_one_observation():
    many = [{"unit": f"u{i}", "target": 100, "ratio": float(i % 2)} for i in range(10) for _ in range(50)]
    few = many[::50]
    assert stats.figures(many, "ratio", [("100", 0, 100)]) == stats.figures(few, "ratio", [("100", 0, 100)])
    alone = stats.figures(few[:1], "ratio", [("100", 0, 100)])["all"]
    assert alone == {"mean": 0.0, "interval": None, "prompts": 1}
    nothing = {"mean": None, "interval": None, "prompts": 0}
    assert stats.figures([], "ratio", [("100", 0, 100)])["all"] == nothing


def test_means_slopes_and_intervals_against_a_loop():
    rng = random.Random(3)
    rows = [
        {"unit": f"u{i}", "target": t, "quality": rng.gauss(-t / 100, 4) if rng.random() > 0.1 else None}
        for i in range(12)
        for t in (100, 200, 400, 800)
        for _ in range(2)
    ]
    buckets = stats.buckets_of([r["target"] for r in rows])
    found = stats.figures(rows, "quality", buckets)

    def once(units):
        picked = [r for u in units for r in rows if r["unit"] == u and r["quality"] is not None]
        means = [np.mean([r["quality"] for r in picked if r["target"] == t]) for t in (100, 200, 400, 800)]
        return [*means, np.mean([r["quality"] for r in picked]), np.polyfit(range(4), means, 1)[0]]

    units = sorted({r["unit"] for r in rows})
    labels = ["100", "200", "400", "800", "all", "slope"]
    assert [found[k]["mean"] for k in labels] == pytest.approx(once(units))
    loop = np.percentile([once([rng.choice(units) for _ in units]) for _ in range(1500)], [2.5, 97.5], axis=0)
    for k, low, high in zip(labels, *loop):
        assert found[k]["interval"] == pytest.approx([low, high], abs=0.12 * (high - low))


def test_differences_are_paired():
    rng = random.Random(1)
    hard = {u: rng.gauss(0, 20) for u in range(40)}
    a = [{"unit": u, "target": 100, "quality": h + rng.gauss(0, 1)} for u, h in hard.items()]
    b = [{"unit": u, "target": 100, "quality": h + 2 + rng.gauss(0, 1)} for u, h in hard.items()] + [
        {"unit": "only b", "target": 100, "quality": 99}
    ]
    buckets = [("100", 0, 100)]
    low, high = stats.figures(stats.differences(a, b, "quality"), "quality", buckets)["all"]["interval"]
    assert 1 < low < 2 < high < 3  # unpaired, the interval would be 12 wide
    wide = stats.figures(a, "quality", buckets)["all"]["interval"]
    assert wide[1] - wide[0] > 8


def test_buckets():
    assert [label for label, _, _ in stats.buckets_of([800, 100, 800])] == ["100", "800"]
    wide = stats.buckets_of(range(1000, 12001, 500))
    assert [label for label, _, _ in wide] == ["0-1,000", "1,000-4,000", "4,000-8,000", "8,000-12,000"]
    assert all(sum(low < t <= high for _, low, high in wide) == 1 for t in range(1000, 12001, 500))


def test_many_lengths_are_told_by_the_bands_of_the_papers_table():
    lengths = range(1500, 14001, 500)
    rows = [{"unit": u, "target": t, "quality": u - t / 1000} for u in range(5) for t in lengths]
    report = stats.sweep({"m": rows}, [], [r["target"] for r in rows])
    found, bands = report["figures"]["m"]["quality"], {"1,000-4,000": 2.75, "4,000-8,000": 6.25}
    bands |= {"8,000-12,000": 10.25, "12,000-14,000": 13.25}
    assert report["buckets"] == {label: 1000 * middle for label, middle in bands.items()}
    for label, middle in bands.items():
        assert found[label]["mean"] == pytest.approx(2 - middle)
    slope = -np.polyfit(range(4), list(bands.values()), 1)[0]
    assert found["slope"]["mean"] == pytest.approx(slope)
    assert found["slope"]["interval"] == pytest.approx([slope, slope])
    assert found["change"]["mean"] == pytest.approx(2.75 - 13.25)


def test_empty_stories_are_counted_and_break_nothing(tmp_path):
    server = Server(lambda body, number: "" if number % 2 else "<think>only a thought</think>\n")
    flags = f"--endpoint {server.url} --model mute "
    flags += f"--prompts {prompts(tmp_path / 'p.jsonl', 2)} --out {tmp_path / 'o'}"
    assert code(evaluation.main, flags.split()) == 0
    figures = {m: f["all"]["mean"] for m, f in saved(tmp_path / "o")["figures"]["mute"].items()}
    assert figures["empty"] == 1 and figures["written"] == figures["length_score"] == 0
    assert figures["early"] == 1
    assert figures["quality"] == judging.RUBRIC.empty("").score and figures["vendi"] is None
    assert figures["distance"] is None


# ---- what is kept


def kept(out) -> int:
    """How many stories an evaluation has written, over all its starts."""
    return Store(out / "log.sqlite", "").ledger.calls if (out / "log.sqlite").exists() else 0


def test_killed_anywhere_and_started_again_it_reports_the_same(checkpoint, tmp_path):
    file = prompts(tmp_path / "prompts.jsonl", 4)
    flags = f"--model {checkpoint()} --prompts {file} --lengths 20 40 --max_new_tokens 64".split()
    assert code(evaluation.main, [*flags, "--out", str(tmp_path / "quiet")]) == 0
    for attempt in range(5):  # on a busy machine it may be over before the signal comes
        out, seed = tmp_path / f"killed-{attempt}", time.time_ns()
        after = random.Random(seed).randint(1, 13)
        process = subprocess.Popen(
            [sys.executable, "eval.py", *flags, "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and kept(out) < after:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if kept(out) < 16:
            break
    assert process.returncode == -signal.SIGKILL and after <= kept(out) < 16, (seed, after)
    assert code(evaluation.main, [*flags, "--out", str(out)]) == 0
    assert kept(out) == 16  # each was written once
    assert saved(out) == saved(tmp_path / "quiet")
    assert (out / "stories/random-0.jsonl").read_bytes() == (
        tmp_path / "quiet/stories/random-0.jsonl"
    ).read_bytes()
    assert code(evaluation.main, [*flags, "--out", str(out)]) == 0 and kept(out) == 16


# ---- whole runs


def test_two_models_from_the_command_line(checkpoint, tmp_path, capsys):
    file = prompts(tmp_path / "prompts.jsonl", 3)
    out = tmp_path / "out"
    flags = f"--model {checkpoint(0)} {checkpoint(1)} --prompts {file} "
    flags += f"--lengths 20 60 --max_new_tokens 64 --out {out}"
    assert code(evaluation.main, flags.split()) == 0
    told = capsys.readouterr()
    assert "measures form, not quality" in told.err and "only 3 prompts" in told.out
    report = saved(out)
    assert report["models"] == ["random-0", "random-1"] and list(report["buckets"]) == ["20", "60"]
    stories = [json.loads(line) for line in (out / "stories/random-0.jsonl").read_text().splitlines()]
    assert len(stories) == 12
    by_hand = np.mean([data.words(s["story"]) / s["target_words"] for s in stories])
    assert report["figures"]["random-0"]["ratio"]["all"]["mean"] == pytest.approx(by_hand)
    low, high = judging.BANDS["short"].band(20)
    shares = [low <= data.words(s["story"]) <= high for s in stories if s["target_words"] == 20]
    assert report["figures"]["random-0"]["in_band"]["20"]["mean"] == pytest.approx(np.mean(shares))
    offline = judging.OfflineJudge()
    assert report["figures"]["random-0"]["quality"]["all"]["mean"] == pytest.approx(
        np.mean([offline.score(s["prompt"], s["story"]).score for s in stories])
    )
    [d] = report["differences"]
    of = [report["figures"][f"random-{i}"]["ratio"]["all"]["mean"] for i in (0, 1)]
    assert d["figures"]["ratio"]["all"]["mean"] == pytest.approx(of[1] - of[0])
    there = {p.name for p in out.iterdir()}
    assert {"report.html", "report.json", "quality.png", "ratio.png", "log.sqlite", "stories"} <= there
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def test_a_prompt_longer_than_the_model_reaches_is_cut_and_said(checkpoint, tmp_path, capsys, monkeypatch):
    def stream(model, prompts, *, max_new_tokens, **_):
        for i in range(len(prompts)):
            yield i, evaluation.rollout.Completion([5] * max_new_tokens, [], False), True

    monkeypatch.setattr(evaluation.rollout, "stream", stream)
    flags = f"--model {checkpoint()} --prompts {prompts(tmp_path / 'p.jsonl', 1)} "
    flags += f"--length 12000 --samples 1 --out {tmp_path / 'o'}"
    assert code(evaluation.main, flags.split()) == 0
    assert (
        "12,000 words would get up to 21,664 tokens, but the model has positions for 4,0"
        in capsys.readouterr().err
    )
    assert saved(tmp_path / "o")["figures"]["random-0"]["truncated"]["all"]["mean"] == 1


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "EMPTY"], "no config.json"),
        (["--endpoint", "http://127.0.0.1:9"], "needs --model NAME"),
        (["--model", "MODEL", "MODEL"], "two models are called random-0"),
        (["--model", "MODEL", "--samples", "0"], "at least 1"),
        (["--model", "MODEL", "--prompts", "no.jsonl"], "no.jsonl"),
        (["--model", "MODEL", "--prompts", "OTHER"], 'unknown key "question"'),
        (["--model", "MODEL", "--rubric", "eqbench_creative"], "needs a judge that reads"),
        (["--model", "MODEL", "--judge", "api"], "JUDGE_URL"),
        (["watch", "EMPTY"], "no "),
        (["watch", "EMPTY", "--steps", "3"], "metrics.jsonl"),
    ],
)
def test_bad_input_gets_one_sentence(checkpoint, tmp_path, capsys, flags, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.jsonl").write_text('{"question": "why?"}\n')
    paths = {"MODEL": str(checkpoint()), "EMPTY": str(tmp_path / "empty")}
    paths |= {"OTHER": str(tmp_path / "other.jsonl")}
    more = [] if flags[0] == "watch" else ["--out", str(tmp_path / "out")]
    assert code(evaluation.main, [paths.get(f, f) for f in flags] + more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- a model behind an endpoint


class Server:
    """An OpenAI-compatible server on loopback. reply(body, number) says what it answers: text or status."""

    def __init__(self, reply):
        self.seen, lock = [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append((body, dict(self.headers)))
                    said = reply(body, len(outer.seen))
                answer = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
                answer = json.dumps(said if isinstance(said, dict) else answer).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Patient(ThreadingHTTPServer):
            request_queue_size = 64  # the default of 5 resets connections that come together

        self.server = Patient(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_an_endpoint_that_stops_half_way_loses_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("ENDPOINT_API_KEY", "sk-very-secret")
    down, served = [False], []

    def reply(body, number):
        if down[0] and len(served) >= 5:
            return 503
        if number % 3 == 0:
            return 429  # busy now and then
        served.append(body["messages"][0]["content"])
        return f"<think>a plan</think>\n\nThe bell rang {number} times. Nobody came."

    server = Server(reply)
    file = prompts(tmp_path / "p.jsonl", 4)
    flags = f"--endpoint {server.url} --model org/big-27b --prompts {file}".split()
    flags += f"--out {tmp_path / 'o'} --in_flight 2 --top_k 20".split()
    down[0] = True
    assert code(evaluation.main, flags) == 2
    error = capsys.readouterr().err
    assert "gave no answer (http_503" in error and "start the same command again" in error
    assert not (tmp_path / "o/report.json").exists()
    assert kept(tmp_path / "o") == 5
    down[0] = False
    assert code(evaluation.main, flags) == 0
    assert len(served) == 8  # four prompts, two stories each, none asked twice
    body, headers = server.seen[0]
    assert headers["Authorization"] == "Bearer sk-very-secret" and body["model"] == "org/big-27b"
    assert body["top_k"] == 20 and body["min_p"] == 0 and body["repetition_penalty"] == 1
    assert len({b["seed"] for b, _ in server.seen}) == 8
    report = saved(tmp_path / "o")
    assert report["models"] == ["big-27b"]
    assert report["figures"]["big-27b"]["ratio"]["all"]["mean"] == pytest.approx(7 / 50)
    texts = [p for p in (tmp_path / "o").rglob("*.*") if p.suffix != ".png"]
    assert all("sk-very-secret" not in p.read_text(errors="replace") for p in texts)


def test_verdicts_that_fail_count_in_no_figure_and_are_asked_again(checkpoint, tmp_path, capsys, monkeypatch):
    broken = [True]

    def reply(body, number):
        if (
            broken[0]
            and "keeper" not in body["messages"][1]["content"]
            and "bell" in body["messages"][1]["content"]
        ):
            return "I would rather not."
        verdict = {}
        for d in judging.RUBRIC.dimensions:
            score = d.high if d.key[0] == "P" and d.key != "PENALTY" else d.low
            verdict[d.key] = {"why": "so", "quotes": [], "score": score}
        return json.dumps(verdict)

    server = Server(reply)
    flags = (
        f"--model {checkpoint()} --prompts {prompts(tmp_path / 'p.jsonl', 3)} --out {tmp_path / 'o'}".split()
    )
    flags += f"--max_new_tokens 60 --samples 1 --judge_url {server.url} --judge_model reader".split()
    assert code(evaluation.main, flags) == 0
    told = capsys.readouterr()
    quality = saved(tmp_path / "o")["figures"]["random-0"]["quality"]["all"]
    assert "1 texts got no verdict (bad_json" in told.err and "n=2" in told.out
    assert quality["mean"] == 100 and quality["prompts"] == 2
    assert "1 of 3 stories have no verdict" in saved(tmp_path / "o")["warnings"][1]
    broken[0] = False
    assert code(evaluation.main, flags) == 0
    assert saved(tmp_path / "o")["figures"]["random-0"]["quality"]["all"]["prompts"] == 3


# ---- several processes, other users, broken disks


def small(checkpoint, tmp_path, n=3):
    asked = f"--model {checkpoint()} --prompts {prompts(tmp_path / 'p.jsonl', n)}"
    return f"{asked} --lengths 20 40 --max_new_tokens 64".split()


def test_two_processes_write_the_same_stories_and_one_report(checkpoint, tmp_path):
    flags = small(checkpoint, tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2 eval.py".split()]
    two += [*flags, "--out", str(tmp_path / "two")]
    done = subprocess.run(two, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("words requested") == 1 and done.stderr.count("measures form") == 1
    )  # rank 0 alone speaks
    assert code(evaluation.main, [*flags, "--out", str(tmp_path / "one")]) == 0
    assert saved(tmp_path / "two") == saved(tmp_path / "one")
    assert (tmp_path / "two/stories/random-0.jsonl").read_bytes() == (
        tmp_path / "one/stories/random-0.jsonl"
    ).read_bytes()
    assert kept(tmp_path / "two") == 12
    assert code(evaluation.main, [*flags, "--out", str(tmp_path / "two")]) == 0  # goes on from both shares
    assert kept(tmp_path / "two") == 12


def test_a_folder_in_use_is_refused(checkpoint, tmp_path, capsys):
    flags = [*small(checkpoint, tmp_path), "--out", str(tmp_path / "o")]
    held = files.lock(tmp_path / "o")
    assert code(evaluation.main, flags) == 2
    error = capsys.readouterr().err
    assert error.count("another process is writing") == 1 and "Traceback" not in error
    assert not (tmp_path / "o").exists()
    held.close()
    assert code(evaluation.main, flags) == 0


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_out_that_cannot_be_is_one_sentence(checkpoint, tmp_path, capsys, where):
    (tmp_path / "file").write_text("mine")
    assert code(evaluation.main, [*small(checkpoint, tmp_path), "--out", str(tmp_path / where)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "choose another --out" in error[0]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("room", [1_000, 5_000, 20_000, 30_000])
def test_a_full_disk_is_one_sentence_and_the_next_start_goes_on(checkpoint, tmp_path, room):
    """No file may grow beyond `room` bytes: the store, the report or the page is cut, wherever that falls."""
    flags = [*small(checkpoint, tmp_path, 4), "--out", str(tmp_path / "o")]
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import eval; "
    limited += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY)); "
    limited += "eval.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", limited, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert "make room" in done.stderr.splitlines()[-1]
    assert not [p for p in (tmp_path / "o").rglob(".*") if p.is_file()]  # nothing half-written stays
    assert code(evaluation.main, flags) == 0
    assert kept(tmp_path / "o") == 16


def test_ctrl_c_keeps_what_was_written_and_says_how_to_go_on(checkpoint, tmp_path):
    flags = [*small(checkpoint, tmp_path, 6), "--out", str(tmp_path / "o")]
    flags += ["--samples", "20"]
    flags[flags.index("--max_new_tokens") + 1] = "2000"
    process = subprocess.Popen(
        [sys.executable, "eval.py", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not kept(tmp_path / "o"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"what was written is kept in {tmp_path / 'o'}: the same command goes on" in error
    assert "Traceback" not in error and kept(tmp_path / "o")


def test_an_evaluation_has_a_folder_of_its_own(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = f"--model {checkpoint()}".split()
    flags += f"--prompts {prompts(tmp_path / 'p.jsonl', 2)} --max_new_tokens 30".split()
    for lengths in (["20"], ["20", "40"]):
        assert code(evaluation.main, [*flags, "--lengths", *lengths]) == 0
    names = sorted(p.name for p in Path("out/eval").iterdir() if p.is_dir())
    assert names == ["20-40_random-0_p", "20_random-0_p"]
    capsys.readouterr()
    chosen = [*flags, "--lengths", "20", "--out", "mine"]
    assert code(evaluation.main, chosen) == 0 and code(evaluation.main, chosen) == 0
    assert "held a report" not in capsys.readouterr().out
    before = Path("mine/report.json").read_bytes()
    assert code(evaluation.main, [*chosen, "--samples", "3"]) == 0
    [told] = [
        line for line in capsys.readouterr().out.splitlines() if "held a report of other settings" in line
    ]
    [aside] = Path().glob("mine-until-*")
    assert told.startswith("mine ") and str(aside) in told and (aside / "report.json").read_bytes() == before
    assert kept(Path("mine")) == 6 and not list(aside.glob("log*"))  # what is written stays, to go on from


def test_prompts_that_are_none_say_so(checkpoint, tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text("\n")
    flags = f"--model {checkpoint()} --prompts {tmp_path / 'none.jsonl'} --out {tmp_path / 'o'}"
    assert code(evaluation.main, flags.split()) == 2
    assert "none.jsonl holds no examples" in capsys.readouterr().err and not (tmp_path / "o").exists()


# ---- what is asked of an endpoint, and what counts as its story


def answers(tmp_path, reply, *flags):
    """The stories of one prompt, and the bodies that were sent."""
    server = Server(reply)
    argv = f"--endpoint {server.url} --model m --prompts {prompts(tmp_path / 'p.jsonl', 1)}".split()
    argv += f"--samples 1 --out {tmp_path / 'o'}".split()
    ended = code(evaluation.main, [*argv, *flags])
    path = tmp_path / "o/stories/m.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return ended, rows, [body for body, _ in server.seen]


def completion(content, finish="stop", **message):
    return lambda body, number: {
        "choices": [{"message": {"content": content, **message}, "finish_reason": finish}]
    }


def test_all_sampling_is_sent_and_thinking_is_a_template_argument(tmp_path):
    ended, rows, [body] = answers(tmp_path, completion("A story."), "--thinking", "off")
    assert ended == 0 and [r["story"] for r in rows] == ["A story."]
    usual = {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {k: body[k] for k in evaluation.SAMPLING} == usual
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["repeat_penalty"] == 1 and {name: body[name] for name in evaluation.LLAMA} == evaluation.LLAMA


@pytest.mark.parametrize(
    "content, finish, thought, story",
    [
        ("<think>a plan that never", "length", None, ""),
        ("a plan without a mark", "length", None, ""),
        (None, "length", "a plan", ""),
        ("Once upon", "length", "a plan", "Once upon"),
        ("A plan.</think>Once.", "stop", None, "Once."),
        ("Once.", "stop", None, "Once."),
        ("Once \ud800 more.", "stop", None, "Once ? more."),  # half a surrogate pair
        ([{"type": "text", "text": "Once "}, {"type": "text", "text": "more."}], "stop", None, "Once more."),
    ],
)
def test_what_a_thinking_model_says(tmp_path, content, finish, thought, story):
    message = {} if thought is None else {"reasoning_content": thought}
    ended, [row], [body] = answers(tmp_path, completion(content, finish, **message), "--thinking", "on")
    assert ended == 0 and row["story"] == story and row["finished"] == (finish == "stop")
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


def test_no_content_is_not_a_story(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    ended, rows, _ = answers(tmp_path, completion(None))
    assert ended == 2 and not rows and "gave no answer (empty_answer" in capsys.readouterr().err


def test_both_writers_are_asked_the_same_by_default(checkpoint, tmp_path, monkeypatch):
    asked = {}

    def note(name):
        def write(writer, jobs, c, progress):
            asked[name] = [(j.row["prompt"], j.seed, j.tokens) for j in jobs]
            return iter([(job, "A story.", True, 3) for job in jobs])

        return write

    monkeypatch.setattr(evaluation, "write_local", note("local"))
    monkeypatch.setattr(evaluation, "write_endpoint", note("endpoint"))
    assert code(evaluation.main, ["--model", str(checkpoint()), "--out", str(tmp_path / "a")]) == 0
    flags = f"--model m --endpoint http://127.0.0.1:9 --out {tmp_path / 'b'}"
    assert code(evaluation.main, flags.split()) == 0
    assert asked["local"] == asked["endpoint"] and asked["local"]


def test_a_story_ends_at_every_end_token_of_its_model(checkpoint, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoint(), folder)
    tokenizer = data.load_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, tokenizer.end_id]}))
    seen = []
    stream = evaluation.rollout.stream
    monkeypatch.setattr(
        evaluation.rollout, "stream", lambda *a, **how: seen.append(set(how["stop_ids"])) or stream(*a, **how)
    )
    flags = f"--model {folder} --prompts {prompts(tmp_path / 'p.jsonl', 1)} "
    flags += f"--max_new_tokens 20 --out {tmp_path / 'o'}"
    assert code(evaluation.main, flags.split()) == 0
    assert seen == [{7, tokenizer.end_id, tokenizer.added["<|endoftext|>"]}]
