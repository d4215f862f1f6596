"""scripts/bench: rows that are checked before they are timed, and void where an answer differs."""

import importlib
import re

import pytest
import torch

from lib import processes
from scripts.bench import peers

bench = importlib.import_module("scripts.bench.__main__")  # the package runs as `python -m scripts.bench`


@pytest.fixture(scope="module")
def pair():
    return peers.Pair()


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        bench.main(list(map(str, arguments)))
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("error: ")
    return last


def test_a_row_goes_to_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--only", "prefill", "--pairs", "1", "--threads", "1"]) == 0
    row = (tmp_path / "out/bench/bench.md").read_text().splitlines()[4]
    ours, peer, ratio = map(
        float, re.fullmatch(r"prefill of 4096 +(\S+) +(\S+) +(\S+) x  \(.*\)", row).groups()
    )
    assert ratio == pytest.approx(peer / ours, abs=0.01)


def test_the_rows_agree_with_their_peers(pair):
    for name in ("forward", "backward", "logprobs", "prefill"):
        _, _, wrong = bench.ROWS[name][1](pair)
        assert wrong is None, (name, wrong)
    assert peers.same_greedy(pair, pair.replica, tokens=24) is None
    gap = re.search(r"differ by at most (\S+) ", peers.agreement(pair))[1]
    assert 0 < float(gap) < 1e-4


def test_memory_is_what_the_numbers_say():
    processes.connect()  # as the row of a GRPO step does, which comes before
    log_probs, decoding = peers.memory()
    ours, naive = map(int, re.findall(r"(\d+) MB", log_probs))
    assert ours < 0.5 * naive and naive > 3 * 2048 * 32768 * 4 / 1e6  # logits, their softmax, its gradient
    counted, calculated = map(int, re.findall(r"(\d+) MB", decoding))
    assert counted == pytest.approx(calculated, rel=0.1)


def test_a_row_with_another_answer_is_void(pair, tmp_path, monkeypatch):
    weight = pair.ours.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        line = bench.compare("forward", pair, 1, bench.time.perf_counter)
    finally:
        with torch.no_grad():
            weight.div_(1.01)
    assert "VOID: answers differ by" in line
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "measure", lambda *_: [line])
    assert bench.main([]) == 1


def test_what_is_not_installed_is_skipped_and_says_so(pair, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    line = bench.compare("grpo", pair, 1, bench.time.perf_counter)
    assert "skipped: " in line and "requirements-bench.txt" in line


def test_bad_requests_end_in_one_sentence(tmp_path, capsys):
    out = tmp_path / "out"
    assert "choose some of" in refused(capsys, "--only", "magic", "--out", out)
    assert "at least 1" in refused(capsys, "--pairs", 0, "--out", out)
    if not torch.cuda.is_available():
        assert "no CUDA device" in refused(capsys, "--only", "gpu", "--out", out)
    assert not out.exists()
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, "--only", "agreement", "--out", tmp_path / "file")
