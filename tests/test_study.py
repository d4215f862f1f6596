"""scripts/study.py: cells that are run once, kept apart by their settings, and claims no larger than the
figures."""

import hashlib
import json
import resource
import subprocess
from pathlib import Path

import pytest
import torch

import data
import launch
import model as qwen
from lib.files import lock
from lib.stats import student
from scripts import study

DOCS = Path(study.ROOT, "docs")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    launch.base(folder / "base", max_position_embeddings=512)
    examples = []
    for i in range(8):
        n = 10 + 2 * i
        prompt = f"Tell of subject {i}. It should be {n} words long."
        examples.append(data.Example(f"t{i}", prompt, n, "He came. " * (n // 2)))
    data.write_examples(folder / "train.jsonl", examples)
    flags = {
        "preset": "grid",
        "model": folder / "base",
        "data": folder / "train.jsonl",
        "out": folder / "out",
    }
    flags |= {"seeds": 1, "steps": 2, "lengths": [10, 20, 40], "limit": 2, "samples": 2, "jobs": 1}
    return flags | {"max_new_tokens": 24, "measure": "char3", "only": ["start", "hri", "dpo"]}


def line(flags, **change):
    parts = []
    for name, value in (flags | change).items():
        parts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return parts


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, *arguments):
    """The one sentence with which a command line ends."""
    with pytest.raises(SystemExit) as stop:
        study.main(list(arguments))
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert stop.value.code == 2 and said.count("error: ") == 1 and last.startswith("error: "), said
    return last


def test_a_study_runs_its_cells_once_and_reports_them(flags, monkeypatch, capsys):
    out, docs = flags["out"], digest(DOCS)
    for cell in ("collect:0", "start:0", "dpo:0"):  # as the study's own processes do
        study.main(line(flags, cell=cell))
    started, run = [], subprocess.run

    def counted(command, **how):
        started.append(command[-1])
        return run(command, **how)

    monkeypatch.setattr(subprocess, "run", counted)
    study.main(line(flags))
    assert started == ["hri:0"]  # the others were finished
    page = (out / "report.md").read_text()
    assert (out / "report.png").stat().st_size > 10_000
    table = page[page.index("| asked |") :].split("\n\n")[0].splitlines()
    named = [tuple(row.strip("| ").split(" | ")[:2]) for row in table[2:]]
    assert named == [(str(n), method) for n in (10, 20, 40) for method in ("start", "hri", "dpo")]
    assert "one seed, so no difference is claimed" in page and "cannot be told apart" not in page
    assert digest(DOCS) == docs  # only --page touches a page of the documentation

    result = json.loads((out / "dpo-0/result.json").read_text())
    rows = study.stories(study.parse(study.Config, line(flags), "", study.PRESETS, "demo"), result)
    assert len(rows) == 2 * 3 * 2 and {r["target_words"] for r in rows} == {10, 20, 40}
    for asked in (10, 20, 40):
        told = [data.words(r["story"]) / asked for r in rows if r["target_words"] == asked]
        assert study.figure_of(result, "ratio", asked) == pytest.approx(sum(told) / len(told))

    # `collect` takes no step: what it samples from is the start, bit for bit
    before, after = (
        qwen.load(p, torch.float32) for p in (flags["model"], out / "collect-0/checkpoints/step_000002")
    )
    for p, q in zip(before.parameters(), after.parameters()):
        assert torch.equal(p.to(torch.bfloat16), q.to(torch.bfloat16))

    # another study may not take these cells for its own
    assert "other evaluation settings" in refused(capsys, *line(flags, samples=3))
    assert "other training settings" in refused(capsys, *line(flags, only=["hri"], grpo_lr=0.5))


def test_a_page_keeps_what_is_around_the_marks(flags, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\nbefore\n{study.BEGIN}\nold\n{study.END}\nafter\n")
    study.main(line(flags, only=["start"], page=page, out=tmp_path / "out"))
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n") and text.endswith("\nafter\n")
    assert "\nold\n" not in text and "| 10 | start |" in text and not (tmp_path / "out/report.md").exists()
    page.write_text("no marks\n")
    assert "put them back" in refused(capsys, *line(flags, only=["start"], page=page, out=tmp_path / "two"))
    assert page.read_text() == "no marks\n" and not (tmp_path / "two").exists()


def test_the_demo_shows_means_over_seeds_and_three_stories(flags, tmp_path, capsys):
    demo = {k: flags[k] for k in ("model", "data", "samples", "max_new_tokens", "lengths")}
    demo |= {"preset": "demo", "seeds": 2, "steps": 10, "limit": 3, "out": tmp_path / "demo"}
    demo |= {"only": ["start", "both"], "prompts_per_step": 2, "group": 3}
    for seed in (0, 1):
        for name in ("start", "both"):
            study.main(line(demo, cell=f"{name}:{seed}"))
    study.main(line(demo))
    page = (tmp_path / "demo/report.md").read_text()
    cells = [json.loads((tmp_path / f"demo/both-{seed}/result.json").read_text()) for seed in (0, 1)]
    shown = study.show([study.figure_of(cell, "ratio", 20) for cell in cells])
    assert f"| 20 | both | {shown} |" in page
    prompts = [row for row in page.splitlines() if row.startswith(("**Tell", "**Write"))]
    assert len(prompts) == 3 and page.count("before (") == page.count("after (") == 3
    assert study.judging.strip_length(prompts[0]) == study.judging.strip_length(prompts[1])
    command = study.run_flags(study.parse(study.Config, line(demo), "", study.PRESETS, "demo"), "both", 1)
    flag = dict(zip(command[::2], command[1::2]))
    assert flag["--hri"] == "positive" and flag["--deviation"] == "0.5" and flag["--group"] == "3"


def test_a_cell_that_fails_is_named_and_what_is_finished_is_kept(flags, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(flags["model"]).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"damaged")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        study.main(line(flags, model=broken, out=out, only=["start"]))
    assert stop.value.code == 2 and "start-0 failed" in capsys.readouterr().err
    assert "damaged" in (out / "start-0.log").read_text()
    assert not (out / "start-0/result.json").exists()


def test_bad_requests_end_before_anything_is_run(flags, tmp_path, capsys):
    known = tmp_path / "known.jsonl"
    known.write_text(json.dumps({"prompt": "Tell of subject 3. It should be 900 words long."}) + "\n")
    cases = [({"samples": 1}, "at least 2"), ({"seeds": 0}, "at least 1")]
    cases += [({"measure": "tfidf"}, "invalid choice: 'tfidf'"), ({"model": tmp_path / "none"}, "none")]
    cases += [({"data": tmp_path / "none.jsonl"}, "scripts.anthologies build"), ({"steps": 0}, "at least 1")]
    cases += [({"prompts": known}, "are trained on"), ({"judge": "api"}, "JUDGE_URL")]
    for change, message in cases:
        assert message in refused(capsys, *line(flags, **change | {"out": tmp_path / "out"}))
    assert "choose some of start" in refused(capsys, "--only", "magic")
    assert not (tmp_path / "out").exists()


def test_a_second_study_a_file_in_the_way_and_a_full_disk_end_in_one_sentence(flags, tmp_path, capsys):
    with lock(tmp_path / "out"):
        assert "another process" in refused(capsys, *line(flags, only=["start"], out=tmp_path / "out"))
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, *line(flags, only=["start"], out=tmp_path / "file"))

    page = tmp_path / "page.md"
    page.write_text(f"{study.BEGIN}\nwhole\n{study.END}\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    cell = line(flags, only=["start"], out=tmp_path / "out")
    study.main([*cell, "--cell", "start:0"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # every write fails, as on a full disk
    try:
        said = refused(capsys, *cell, "--page", str(page))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said
    assert page.read_text() == f"{study.BEGIN}\nwhole\n{study.END}\n" and not list(tmp_path.glob(".page*"))


# ---- what is claimed ---------------------------------------------------------------------------------------


def cells(quality, ratio):
    """A cell per seed: two subjects, 0.1 apart, and what is measured of their stories."""
    seeds = [{"quality": q, "ratio": r, "in_band": 0.5, "target": 60} for q, r in zip(quality, ratio)]
    return [[{"unit": "a", **s}, {"unit": "b", **s, "quality": s["quality"] + 0.1}] for s in seeds]


def test_intervals_are_students():
    assert student([5.0]) == (5.0, None)
    mean, half = student([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5, rel=1e-4)  # t(0.975, 2) = 4.303, s = 1
    mean, half = student([0.0, 1.0] * 10)
    assert half == pytest.approx(2.093 * 0.51299 / 20**0.5, rel=2e-2)  # t(0.975, 19) = 2.093


def test_sentences_claim_what_the_paired_differences_support_and_no_more(monkeypatch):
    monkeypatch.setattr(study, "measured", lambda a, cell: cell)
    results = {"start": cells([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])}
    results |= {name: cells([0.31, 0.4, 0.5], [0.4, 0.6, 0.5]) for name in ("dpo", "ddpo")}
    dpo, ddpo = study.sentences(study.Config(lengths=[60]), results)
    # seeds differ by more than the methods, pairs do not
    assert (
        "quality at 60 +0.203 [+0.189, +0.218]" in dpo and "words" not in dpo
    )  # t(0.975, 2) s / sqrt(3) = 0.0143
    assert "2 of 3 cannot be told apart" in dpo and "Clear" not in ddpo and "3 of 3" in ddpo
    for cell in results["dpo"]:
        cell[1]["quality"] -= 0.3  # one subject of two gains, the other loses: clear over seeds alone
    assert "Clear" not in study.sentences(study.Config(lengths=[60]), results)[0]


def test_the_grid_names_every_run_that_was_asked_for():
    both = {(0, hri, d) for hri in (False, True) for d in (0, 0.5, 1)}
    assert set(study.GRPO.values()) == both | {(1, False, 0)}
    assert set(study.OFFLINE) == {"dpo", "ddpo", "orpo", "dorpo", "divpo"}
    assert {m for pair in study.COMPARED.split(",") for m in pair.split()} == set(study.METHODS)
