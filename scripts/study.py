"""What does each part of the recipe buy? Runs with the same start, seeds and budget, measured alike.

    python -m scripts.study                       # the demo: three seeds of `python train.py`, minutes each
    python -m scripts.study --preset grid         # 13 methods, 39 runs, one to two hours on two cores
    python -m scripts.study --preset gpu          # the grid with Qwen3.5-0.8B, long stories, a real judge

Methods: `start` trains nothing, `recipe` is the training preset as it is, `grpo-5` and `grpo-6` have 5 or 6
policy stories per prompt (6 is the row count of `hri`), `-d0.5` and `-d1` add deviation of that strength;
the others (see scripts/prefer.py) learn offline from as many stories of the start, scored by the same reward.
A cell is one method with one seed: it trains in a process of its own, then `eval.py` lets it write for
prompts that no run has seen. Finished cells are kept. The report goes to report.md in --out, or with --page
docs/study.md between the two marks of that page.
Left out: tuning each method (one learning rate per family), human readers, significance beyond seeds.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import data
import deviation
import eval as evaluation
import judge as judging
import train
from lib import huggingface
from lib.files import lock, read_lines, replace_between, write_json, write_text
from lib.flags import check_ranges, exits_cleanly, opt, parse
from lib.form import strip_length
from lib.pages import figure, markdown_table, save_figure
from lib.stats import mean, student
from scripts import prefer

ROOT = Path(__file__).resolve().parent.parent
GRPO = {  # policy stories per prompt, HRI, deviation
    "grpo-5": (5, "off", 0),
    "grpo-6": (6, "off", 0),
    "grpo-5-d0.5": (5, "off", 0.5),
    "grpo-5-d1": (5, "off", 1),
    "hri": (5, "polaris", 0),
    "hri-d0.5": (5, "polaris", 0.5),
    "hri-d1": (5, "polaris", 1),
}
OFFLINE = ("dpo", "ddpo", "orpo", "dorpo", "divpo")
METHODS = ("start", "recipe", *GRPO, *OFFLINE)
# Each method and what it is compared with.
COMPARED = """recipe start, grpo-5 start, grpo-6 grpo-5, hri grpo-5, hri grpo-6, grpo-5-d0.5 grpo-5,
grpo-5-d1 grpo-5, hri-d0.5 hri, hri-d1 hri, dpo start, ddpo dpo, orpo start, dorpo orpo, divpo dpo,
ddpo divpo"""
TOLD = ("quality", "in band", "in band, beyond", "diversity")  # what the sentences compare
MEASURES = (*TOLD, "words / asked", "words / asked, beyond")
PROMPTS, GROUP = 4, 5  # per step of the grid: 20 stories, or 10 pairs of them


@dataclass
class Config:
    preset: str = opt("auto", "demo | grid (small) | gpu (the grid at 0.8B)")
    only: list[str] = opt(["start", *GRPO, *OFFLINE], "the methods to run")
    seeds: int = opt(3, "seeds 0, 1, ...", low=1)
    jobs: int = opt(0, "cells at the same time; 0: one per GPU, without GPUs one per core", low=0)
    out: str = opt("", "folder of the study, one folder per cell in it; empty: out/study-PRESET")
    page: str = opt("", "the page for the report, such as docs/study.md; empty: report.md in --out")
    model: str = opt(str(ROOT / "stories/tiny-base"), "the start of every run", "training")
    data: str = opt("out/real.jsonl", "prompts and references to train on")
    train_preset: str = opt("tiny", "preset of train.py and scripts.prefer")
    steps: int = opt(
        24, "steps of 20 stories (GRPO) or 10 pairs (offline); -1: as the training preset", low=-1
    )
    max_new_tokens: int = opt(352, "limit of a story in training", low=1)
    grpo_lr: float = opt(1e-3, "learning rate of GRPO")
    offline_lr: float = opt(1e-4, "learning rate of the offline methods")
    prompts: str = opt(str(ROOT / "stories/heldout.jsonl"), "prompts that no run trains on", "evaluation")
    limit: int = opt(20, "how many of them; 0: all")
    lengths: list[int] = opt([60, 120], "lengths inside the trained ones, in words")
    beyond: int = opt(250, "a length beyond them; 0: none")
    samples: int = opt(3, "stories per prompt and length", low=2)
    judge: Literal["offline", "api"] = opt("offline", "api: JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY")
    measure: Literal["jaccard", "char3", "embedding"] = opt("embedding", "similarity for diversity")
    cell: str = opt("", "METHOD:SEED: this cell alone; the study starts its own processes this way")


DEMO = {"only": ["start", "recipe"], "data": str(ROOT / "stories/tiny.jsonl"), "steps": -1, "limit": 0}
DEMO |= {"max_new_tokens": 288, "lengths": [50, 120], "beyond": 0, "samples": 2, "measure": "char3"}
GPU = {"model": "Qwen/Qwen3.5-0.8B", "data": "out/stories.jsonl", "prompts": "out/heldout.jsonl", "limit": 30}
GPU |= {"train_preset": "polaris-9b", "steps": 100, "max_new_tokens": 8192, "judge": "api", "samples": 4}
GPU |= {"grpo_lr": 1e-6, "offline_lr": 1e-6, "lengths": [1000, 3000], "beyond": 8000}
PRESETS = {"demo": DEMO, "grid": {}, "gpu": GPU}


def read_flags(argv) -> Config:
    a = parse(Config, PRESETS, __doc__, argv, "demo", "the shortest study")
    a.out = a.out or f"out/study-{a.preset}"
    return a


def check(a: Config):
    """ValueError or FileNotFoundError, before an hour is spent."""
    check_ranges(a)
    if not set(a.only) <= set(METHODS):
        raise ValueError(f"--only {' '.join(a.only)}: choose some of {', '.join(METHODS)}")
    if not (a.lengths and a.steps):
        raise ValueError("--lengths needs a length, and --steps at least 1 (or -1)")
    if not Path(a.data).is_file():
        how = f"make it with python -m scripts.anthologies build BOOKS... --out {a.data}"
        raise FileNotFoundError(f"no {a.data}; {how}, or pass --data stories/tiny.jsonl")
    trained = data.read_examples(a.data)
    longest = max(e.target_words for e in trained)
    if a.beyond and a.beyond <= longest:
        raise ValueError(f"--beyond {a.beyond} is not beyond: {a.data} asks for up to {longest} words")
    asked = {strip_length(e.prompt) for e in trained}
    both = [e.uid for e in data.read_examples(a.prompts) if strip_length(e.prompt) in asked]
    if both:
        raise ValueError(f"{len(both)} prompts of {a.prompts}, such as {both[0]}, are trained on in {a.data}")
    deviation.distances(["a"], a.measure)
    replace_between(page_of(a)[1], BEGIN, END, "")  # a page without the marks is refused now
    huggingface.read_config(huggingface.fetch(a.model))
    if a.judge == "api" and not (os.environ.get("JUDGE_URL") and os.environ.get("JUDGE_MODEL")):
        raise ValueError("--judge api needs JUDGE_URL and JUDGE_MODEL; --judge offline measures form")


# ---- one cell: train one method with one seed, then let it write -------------------------------------------


def run_flags(a: Config, name: str, seed: int) -> list[str]:
    """The command line that trains a cell. `collect` has learning rate 0, so it samples from the start."""
    flags = {"preset": a.train_preset, "model": a.model, "out": a.out, "name": f"{name}-{seed}", "seed": seed}
    flags |= {"keep": 1, "resume": "auto"} | ({} if a.steps < 0 else {"steps": a.steps})
    if name in OFFLINE:
        flags |= {"data": f"{a.out}/collect-{seed}", "method": name, "lr": a.offline_lr}
        flags |= {"pairs": PROMPTS * GROUP // 2}
    else:
        flags |= {"data": a.data, "judge": a.judge, "max_new_tokens": a.max_new_tokens}
    if name in GRPO or name == "collect":
        group, hri, strength = GRPO.get(name, (GROUP, "off", 0))
        flags |= {"prompts": PROMPTS, "group": group, "hri": hri, "hri_warmup": min(15, max(a.steps, 0) // 3)}
        flags |= {"deviation": strength, "similarity": "tfidf", "lr": a.grpo_lr if name in GRPO else 0}
    return [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]


def questions(a: Config, seed: int) -> dict:
    """The settings of eval.py that measure a cell; stories are sampled as in training."""
    c = train.Config(**train.PRESETS[a.train_preset])
    asked = {"prompts": a.prompts, "limit": a.limit, "samples": a.samples, "seed": seed, "judge": a.judge}
    asked |= {"lengths": [*a.lengths, *([a.beyond] if a.beyond else [])], "bands": c.bands, "thirds": "off"}
    asked |= {"similarity": a.measure, "thinking": "on" if c.thinking else "off"}
    return asked | {k: getattr(c, k) for k in ("temperature", "top_p", "top_k", "repetition_penalty")}


def settings(a: Config, name: str, seed: int) -> dict:
    """What a cell must have been run with to count in this study."""
    run = [] if name == "start" else run_flags(a, name, seed)
    return {"training": run, "evaluation": questions(a, seed)}


def finished(a: Config, name: str, seed: int) -> dict | None:
    """The result of a cell, or None. ValueError: it belongs to another study."""
    folder = Path(a.out, f"{name}-{seed}")
    if (folder / "settings.json").exists():
        was, now = json.loads((folder / "settings.json").read_text()), settings(a, name, seed)
        differs = " and ".join(k for k in now if was.get(k) != now[k])
        if differs:  # begun or finished: neither may go on as something else
            raise ValueError(f"{folder} was run with other {differs} settings; choose another --out")
    return json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else None


def run_cell(a: Config, name: str, seed: int):
    folder = Path(a.out, f"{name}-{seed}")
    write_json(folder / "settings.json", settings(a, name, seed))
    if name in OFFLINE:
        prefer.main(run_flags(a, name, seed))
    elif name != "start":
        train.main(run_flags(a, name, seed))
    result = {"method": name, "seed": seed}
    if name != "collect":
        checkpoint = a.model if name == "start" else sorted((folder / "checkpoints").glob("step_*"))[-1]
        asked = {"model": [str(checkpoint)], "out": str(folder / "eval"), **questions(a, seed)}
        result |= summary(a, evaluation.evaluate(evaluation.Settings(**asked)))
    write_json(folder / "result.json", result)


def summary(a: Config, report: dict) -> dict:
    """A cell's figures from the report of eval.py: inside the trained lengths, and at the one beyond them."""
    found = report["figures"][report["models"][0]]

    def at(metric, lengths):
        return mean([found[metric][f"{n:,}"]["mean"] for n in lengths])

    beyond = [a.beyond] if a.beyond else []
    parts = {"quality": ("quality", a.lengths), "diversity": ("distance", a.lengths)}
    parts |= {"in band": ("in_band", a.lengths), "in band, beyond": ("in_band", beyond)}
    parts |= {"words / asked": ("ratio", a.lengths), "words / asked, beyond": ("ratio", beyond)}
    return {name: at(*part) for name, part in parts.items()} | {"report": report}


# ---- all cells ---------------------------------------------------------------------------------------------


def run_cells(a: Config, argv: list[str]):
    """Every cell that is not finished, in a process of its own: one that fails does not stop the others."""
    seeds, gpus = range(a.seeds), torch.cuda.device_count()
    jobs = a.jobs or gpus or os.cpu_count()
    collected = [("collect", s) for s in seeds if set(a.only) & set(OFFLINE)]
    slots, failed = queue.SimpleQueue(), []
    for slot in range(jobs):
        slots.put(slot)

    def one(cell):
        slot, (name, seed) = slots.get(), cell
        place = {"CUDA_VISIBLE_DEVICES": str(slot % gpus)} if gpus else {}
        place |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(max(1, os.cpu_count() // jobs))}
        command = [sys.executable, "-m", "scripts.study", *argv, "--cell", f"{name}:{seed}"]
        with open(Path(a.out, f"{name}-{seed}.log"), "w") as log:
            done = subprocess.run(command, env=os.environ | place, stdout=log, stderr=subprocess.STDOUT)
        slots.put(slot)
        if done.returncode:
            failed.append(f"{name}-{seed}")
        bar.update()

    for cells in (collected, [(m, s) for s in seeds for m in a.only]):
        todo = [cell for cell in cells if finished(a, *cell) is None]
        there = len(cells) - len(todo)
        with tqdm(total=len(cells), initial=there, desc="cells") as bar, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
        if failed:
            raise ValueError(f"{', '.join(sorted(failed))} failed: see {a.out}/*.log, then start again")


# ---- what it shows -----------------------------------------------------------------------------------------

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
TRAINED = {"reward/mean": "reward", "length/in_band": "in band", "reward/quality": "quality (form)"}
TRAINED |= {"reward/repetition": "repetition", "length/ratio": "words / asked"}


def show(values: list[float | None]) -> str | None:
    average, half = (None, None) if None in values else student(values)
    return average if half is None else f"{average:.3f} ± {half:.3f}"


def sentences(results: dict[str, list[dict]]) -> list[str]:
    """For each pair of methods what the paired differences over seeds support, and no more."""
    told = []
    for name, base in (pair.split() for pair in COMPARED.split(",")):
        bases = {c["seed"]: c for c in results.get(base, [])}
        pairs = [(c, bases[c["seed"]]) for c in results.get(name, []) if c["seed"] in bases]
        if len(pairs) == 1:
            told.append(f"- **{name} against {base}**: one seed, so no difference is claimed.")
        if len(pairs) < 2:
            continue
        found = {"Clear": [], "Cannot be told apart": []}
        for key in (k for k in TOLD if pairs[0][0][k] is not None):
            average, half = student([c[key] - b[key] for c, b in pairs])
            text = f"{key} {average:+.3f} [{average - half:+.3f}, {average + half:+.3f}]"
            found["Clear" if abs(average) > half else "Cannot be told apart"].append(text)
        parts = [f"{what}: {'; '.join(texts)}." for what, texts in found.items() if texts]
        told.append(" ".join([f"- **{name} against {base}**, {len(pairs)} seeds.", *parts]))
    return told


def draw(results: dict[str, list[dict]], path: Path, measure: str):
    """Quality against diversity, one point per method with its intervals over seeds."""
    fig, ((ax,),) = figure(size=(8, 6))
    for name, cells in results.items():
        (x, dx), (y, dy) = (student([c[k] for c in cells]) for k in ("diversity", "quality"))
        colour = "#b5542a" if name in OFFLINE else "#1f4e79" if "hri" in name else "#5f9e6e"
        ax.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", color=colour, lw=0.6, capsize=2)
        ax.annotate(name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9, color=colour)
    ax.set_xlabel(f"diversity: mean distance between stories of one prompt ({measure}, not trained on)")
    ax.set_ylabel("quality by the judge (offline judge: form)")
    save_figure(fig, path)


def training_table(a: Config, seeds: list[int]) -> str:
    """Means of the first and the last five steps of each seed."""
    rows = []
    for seed in seeds:
        lines = [m for _, m in read_lines(Path(a.out, f"recipe-{seed}", "metrics.jsonl")) if m["step"] >= 0]
        edge = min(5, max(1, len(lines) // 2))
        first = [mean([m[k] for m in lines[:edge]]) for k in TRAINED]
        last = [mean([m[k] for m in lines[-edge:]]) for k in TRAINED]
        gain = [y - x for x, y in zip(first, last)]
        rows += [[seed, "first", *first], [seed, "last", *last], [seed, "difference", *gain]]
    return markdown_table(["seed", "steps", *TRAINED.values()], rows)


def real_words(story: str) -> float | None:
    """Share of lower-case words that several of the hundred books hold (no list knows the names)."""
    known, words = judging.OfflineJudge().words, re.findall(r"\b[a-z]+(?:'[a-z]+)?\b", story)
    return sum(w in known or w.removesuffix("'s") in known for w in words) / len(words) if words else None


def stories(a: Config, cell: dict) -> list[dict]:
    """What a cell wrote in its evaluation, all lengths of a subject together."""
    folder, report = Path(a.out, f"{cell['method']}-{cell['seed']}", "eval"), cell["report"]
    file = folder / report["stories"][report["models"][0]]
    rows = [row for _, row in read_lines(file)]
    subjects = list(dict.fromkeys(strip_length(row["prompt"]) for row in rows))
    return sorted(rows, key=lambda row: subjects.index(strip_length(row["prompt"])))


def held_out_table(a: Config, cells: list[dict]) -> str:
    rows = []
    for c in cells:
        found = c["report"]["figures"][c["report"]["models"][0]]
        share, (low, high) = (
            found["in_band"]["all"]["mean"],
            found["in_band"]["all"]["interval"] or (0.0, 0.0),
        )
        error = (high - low) / 3.92  # a 95 % interval is 2 x 1.96 standard errors wide
        at = [found[k][f"{n:,}"]["mean"] for k in ("in_band", "written") for n in a.lengths]
        known = mean([real_words(row["story"]) for row in stories(a, c)])
        rows.append([f"{c['method']}, seed {c['seed']}", f"{share:.3f} ± {error:.3f}", *at, known])
    asked = [f"{what} at {n}" for what in ("in band", "words") for n in a.lengths]
    return markdown_table(["model", "in band", *asked, "real words"], rows)


def five_stories(a: Config, before: dict, after: dict) -> list[str]:
    shown, rows = [], list(zip(stories(a, before), stories(a, after)))
    for first, then in rows[:: a.samples][:5]:
        shown.append(f"**{first['prompt']}**\n")
        for name, story in (("before", first["story"]), ("after", then["story"])):
            quoted = "\n".join(f"> {line}" for line in story.splitlines())
            shown.append(f"{name} ({data.words(story)} words)\n\n{quoted}\n")
    return shown


def demo_part(a: Config, results: dict[str, list[dict]]) -> list[str]:
    before, after = results["start"], results["recipe"]
    bands = [f"{n} words: {n * low:.0f} to {n * high:.0f}" for n, low, high in before[0]["report"]["band"]]
    return [
        "\n## Training: first and last five steps\n",
        training_table(a, [c["seed"] for c in after]),
        f"## Held-out subjects, each seed\n\nBands: {'; '.join(bands)}. Where two bands do not overlap, a "
        "writer that ignores the number cannot exceed 0.5. ±: one standard error over prompts.\n",
        held_out_table(a, [*before, *after]),
        "## Five stories, before and after\n\nUnchosen: the first five requests, seed 0.\n",
        *five_stories(a, before[0], after[0]),
    ]


def page_of(a: Config) -> tuple[Path, str]:
    page = Path(a.page or Path(a.out, "report.md"))
    return page, page.read_text() if page.exists() else f"# What each part buys\n\n{BEGIN}\n{END}\n"


def report(a: Config, argv: list[str]):
    results = {m: [r for s in range(a.seeds) if (r := finished(a, m, s))] for m in METHODS if m in a.only}
    cells = [c for part in results.values() for c in part]
    needed = [k for k in TOLD if a.beyond or "beyond" not in k]
    if empty := [f"{c['method']}-{c['seed']}" for c in cells if None in [c[k] for k in needed]]:
        raise ValueError(f"{', '.join(empty)}: empty stories, or no verdict; see the stories in {a.out}")
    rows = [[name, *(show([c[k] for c in part]) for k in MEASURES)] for name, part in results.items()]
    text = [
        f"Made by `{' '.join(['python -m scripts.study', *argv])}`: {a.seeds} seed(s), judge: {a.judge}.\n",
        markdown_table(["method", *MEASURES], rows),
        "Mean ± half a 95 % interval over seeds (Student's t). Quality: 0 to 100. In band: share of stories "
        f"with a length in the band. Diversity: 1 - {a.measure} similarity; training uses tf-idf.\n",
        *sentences(results),
        "\nBrackets: 95 % intervals of the paired difference over seeds; one in twenty is clear by chance.\n",
        *dict.fromkeys(f"- {w.partition(': ')[2] or w}" for c in cells for w in c["report"]["warnings"]),
    ]
    page, old = page_of(a)
    if {"start", "recipe"} <= set(results):
        text += demo_part(a, results)
    else:
        draw(results, page.with_suffix(".png"), a.measure)
        text.insert(1, f"![quality against diversity]({page.with_suffix('.png').name})\n")
    write_text(page, replace_between(old, BEGIN, END, "\n".join(text)))
    print("\n".join(text), f"\nwrote {page}")


@exits_cleanly
def main(argv=None):
    argv = [str(x) for x in (sys.argv[1:] if argv is None else argv)]
    torch.set_flush_denormal(True)
    a = read_flags(argv)
    check(a)
    if a.cell:
        name, _, seed = a.cell.partition(":")
        run_cell(a, name, int(seed))
        return
    Path(a.out).mkdir(parents=True, exist_ok=True)
    with lock(Path(a.out)):
        run_cells(a, argv)
        report(a, argv)


if __name__ == "__main__":
    main()
