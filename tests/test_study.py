"""scripts/study.py: cells that are run once, kept apart by their settings, and sentences that claim no more than the figures."""
import json
import subprocess
from pathlib import Path

import pytest
import torch

import data
import launch
import model as qwen
from scripts import study


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    launch.base(folder / "base", max_position_embeddings=512)
    data.write_examples(folder / "train.jsonl", [data.Example(f"t{i}", f"Tell of subject {i}. It should be {n} words long.", n, "He came. " * (n // 2))
                                                 for i in range(8) for n in [10 + 2 * i]])
    return ["--model", folder / "base", "--data", folder / "train.jsonl", "--out", folder / "out", "--doc", folder / "study.md", "--seeds", 1,
            "--steps", 2, "--lengths", 10, 20, "--beyond", 40, "--eval_prompts", 2, "--samples", 2, "--max_new_tokens", 24, "--measure", "char3",
            "--only", "start", "hri", "dpo", "--jobs", 1]


def text(flags, **change):
    flags = list(map(str, flags))
    for name, value in change.items():
        at = flags.index(f"--{name}") + 1
        end = next((i for i in range(at, len(flags)) if flags[i].startswith("--")), len(flags))
        flags[at:end] = value if isinstance(value, list) else [str(value)]
    return flags


def test_a_study_runs_its_cells_once_and_reports_them(flags, tmp_path, monkeypatch, capsys):
    flags = text(flags)
    a = study.parse(flags)
    for cell in ("collect:0", "start:0", "dpo:0"):  # as the study's own processes do
        assert study.main([*flags, "--cell", cell]) == 0
    started, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: started.append(command[-1]) or run(command, **how))
    assert study.main(flags) == 0
    assert started == ["hri:0"]  # the others were finished
    page = a.doc.read_text()
    assert page.count(study.BEGIN) == page.count(study.END) == 1 and a.doc.with_suffix(".png").stat().st_size > 10_000
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")] == ["| method", "| start", "| hri", "| dpo"]
    assert "One seed, so no difference is claimed" in page and "Cannot be told apart" not in page

    result = json.loads((a.out / "dpo-0/result.json").read_text())
    rows = [json.loads(line) for line in (a.out / "dpo-0/stories.jsonl").read_text().splitlines()]
    assert len(rows) == result["stories"] == 2 * 3 * 2 and {r["target"] for r in rows} == {10, 20, 40}
    inside = [r for r in rows if r["target"] != 40]
    assert result["quality"] == pytest.approx(sum(r["quality"] for r in inside) / len(inside))
    assert result["inside"] == pytest.approx(sum(r["in_band"] for r in inside) / len(inside))
    assert result["words_beyond"] == pytest.approx(sum(r["words"] / 40 for r in rows if r["target"] == 40) / 4)

    # `collect` took no step: what it sampled from is the start, bit for bit
    before, after = (qwen.load(p, torch.float32) for p in (a.model, a.out / "collect-0/checkpoints/step_000002"))
    assert all(torch.equal(p.to(torch.bfloat16), q.to(torch.bfloat16)) for p, q in zip(before.parameters(), after.parameters()))

    # what stands around the markers stays, and a second report replaces the first
    a.doc.write_text("# Mine\n\nbefore\n" + page[page.index(study.BEGIN):] + "\nafter\n")
    assert study.main(flags) == 0 and started == ["hri:0"]
    assert a.doc.read_text().startswith("# Mine\n\nbefore\n") and a.doc.read_text().endswith("\nafter\n")
    a.doc.write_text("no place\n")
    assert study.main(flags) == 2 and "must hold the line" in capsys.readouterr().err

    # another study may not take these cells for its own
    assert study.main(text(flags, samples=3)) == 2
    assert "was run with other settings (samples)" in capsys.readouterr().err


def test_a_cell_that_fails_is_named_and_what_is_finished_is_kept(flags, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(study.parse(text(flags)).model).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    flags = text(flags, model=broken, out=tmp_path / "out", only=["start"])
    (broken / "model.safetensors").write_bytes(b"damaged")
    assert study.main(flags) == 2
    said = capsys.readouterr().err
    assert "start-0 failed" in said and "damaged" in (tmp_path / "out/start-0.log").read_text()
    assert not (tmp_path / "out/start-0/result.json").exists()


def test_bad_requests_end_before_anything_is_run(flags, tmp_path, capsys):
    known = tmp_path / "known.jsonl"
    known.write_text(json.dumps({"prompt": "Tell of subject 3. It should be 900 words long."}) + "\n")
    for change, message in (({"beyond": 20}, "is not beyond"), ({"samples": 1}, "at least 2"), ({"seeds": 0}, "at least 1"), ({"measure": "tfidf"}, "trained with it"),
                            ({"data": tmp_path / "none.jsonl"}, "scripts.anthologies build"), ({"model": tmp_path / "none"}, "none")):
        assert study.main([*text(flags, **change), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert study.main([*text(flags), "--prompts", str(known)]) == 2 and "are trained on" in capsys.readouterr().err
    assert study.main([*text(flags), "--judge", "api", "--out", str(tmp_path / "out")]) == 2 and "JUDGE_URL" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        study.main(["--only", "magic"])
    assert stop.value.code == 2


# ---- what is claimed ------------------------------------------------------------------------------------------------

def cells(quality, diversity):
    return [dict(seed=s, quality=q, inside=0.5, beyond=0.1, diversity=d) for s, (q, d) in enumerate(zip(quality, diversity))]


def test_intervals_are_students(tmp_path):
    assert study.interval([5.0]) == (5.0, None)
    mean, half = study.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3 ** 0.5, rel=1e-4)  # t(0.975, 2) = 4.303, s = 1
    mean, half = study.interval([0.0, 1.0] * 10)
    assert half == pytest.approx(2.093 * 0.51299 / 20 ** 0.5, rel=2e-2)       # t(0.975, 19) = 2.093


def test_sentences_claim_what_the_paired_differences_support_and_no_more():
    results = {"start": cells([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]), "dpo": cells([0.31, 0.4, 0.5], [0.4, 0.6, 0.5]), "ddpo": cells([0.31, 0.4, 0.5], [0.4, 0.6, 0.5])}
    dpo, ddpo = study.sentences(results)
    clear, unclear = dpo.split("Cannot be told apart:")
    assert "quality +0.203" in clear and "diversity" in unclear  # seeds differ by more than the methods, pairs do not
    assert "Cannot be told apart: quality +0.000" in ddpo and "in band" in ddpo


def test_the_grid_names_every_run_that_was_asked_for():
    assert {(g, h, d) for g, h, d in study.GRPO.values()} >= {(5, h, d) for h in ("off", "polaris") for d in (0, 0.5, 1)} | {(6, "off", 0)}
    assert set(study.OFFLINE) == {"dpo", "ddpo", "orpo", "dorpo", "divpo"}
    assert all(name in study.METHODS and base in study.METHODS for name, base, _ in study.COMPARED)
