"""Evaluation of a model behind a real llama.cpp server (`make judge` installs it), and by it as a judge."""

import json

from test_judge_local import url  # noqa: F401  (the server, or a skip with its reason)

import data
import eval as evaluation


def test_stories_from_a_real_server(url, tmp_path):  # noqa: F811
    asked = [f"Write a story about a {s}. It should be 40 words long." for s in ("fox", "bell")]
    data.write_examples(tmp_path / "p.jsonl", [data.Example(f"p{i}", p, 40) for i, p in enumerate(asked)])
    flags = f"--endpoint {url} --model smollm2-135m --prompts {tmp_path / 'p.jsonl'}".split()
    flags += f"--out {tmp_path / 'o'} --max_new_tokens 80 --lengths 30 60 --in_flight 1".split()
    assert evaluation.main(flags) == 0
    report = json.loads((tmp_path / "o/report.json").read_text())
    written = report["figures"]["smollm2-135m"]["written"]["all"]
    assert written["prompts"] == 2 and 5 < written["mean"] < 80
    lines = (tmp_path / "o/stories/smollm2-135m.jsonl").read_text().splitlines()
    assert len({json.loads(line)["story"] for line in lines}) == 8  # two prompts, two lengths, two seeds
