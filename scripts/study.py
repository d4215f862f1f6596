"""What does each part of the recipe buy? Runs with the same start, seeds and budget, measured alike.

    python -m scripts.study                       # the demo: trained up to 160 words, tested up to 480
    python -m scripts.study --preset grid         # 13 methods, 39 runs, one to two hours on two cores
    python -m scripts.study --preset gpu          # the grid with Qwen3.5-0.8B, long stories, a real judge

`start` trains nothing; GRPO's methods stand in GRPO below; those of scripts/prefer.py learn offline from as
many stories of the start, scored by the same reward. A cell is one method with one seed: it trains in a
process of its own, then `eval.py` has it write for prompts that no run has seen. Finished cells are kept. The
report goes to report.md in --out, or with --page docs/study.md between the two marks of that page; its
picture is beside it.

Left out: tuning each method (one learning rate per family), human readers, significance beyond seeds.
"""

import itertools
import json
import os
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
from lib.flags import exits_cleanly, opt, parse
from lib.form import share_real, strip_length
from lib.pages import chart, draw, markdown_table, point
from lib.stats import differences, mean, student
from scripts import prefer

ROOT, TINY = train.ROOT, train.PRESETS["tiny"]
GRPO = {  # policy stories beside those of a group, is there a reference, strength of deviation
    "grpo": (0, False, 0),
    "grpo+1": (1, False, 0),
    "hri": (0, True, 0),
    "deviation": (0, False, 0.5),
    "both": (0, True, 0.5),
    "deviation-1": (0, False, 1),
    "both-1": (0, True, 1),
}
OFFLINE = ("dpo", "ddpo", "orpo", "dorpo", "divpo")
METHODS = ("start", *GRPO, *OFFLINE)
# Each method and what it is compared with.
COMPARED = """grpo start, hri start, deviation start, both start, grpo+1 grpo, hri grpo, hri grpo+1,
deviation grpo, both grpo, both hri, deviation-1 grpo, both-1 hri, dpo start, ddpo dpo, orpo start,
dorpo orpo, divpo dpo, ddpo divpo"""
# Of eval.py's report: what the table shows of each length, and (the first three) what the sentences compare.
MEASURES = {"ratio": "words / asked", "in_band": "in band", "quality": "quality"}
MEASURES |= {"decay": "last - first third", "distance": "diversity", "repetition": "repetition"}


@dataclass
class Config:
    preset: str = opt("", "demo | grid (small) | gpu (the grid at 0.8B)")
    only: list[str] = opt(list(METHODS), "which methods")
    seeds: int = opt(3, "seeds 0, 1, ...", low=1)
    jobs: int = opt(0, "cells at the same time; 0: one per GPU, without GPUs one per core", low=0)
    out: str = opt("", "folder of the study, one folder per cell in it; empty: out/study-PRESET")
    page: str = opt("", "the page for the report, such as docs/study.md; empty: report.md in --out")
    model: str = opt(str(ROOT / "stories/tiny-base"), "the start of every run", "training")
    data: str = opt("out/real.jsonl", "prompts and references to train on")
    train_preset: str = opt("tiny", "preset of train.py and scripts.prefer")
    steps: int = opt(24, "of 20 stories (GRPO) or 10 pairs (offline); -1: as the training preset", low=-1)
    prompts_per_step: int = opt(4, "prompts of a step", low=1)
    group: int = opt(5, "policy stories per prompt, the reference not counted", low=2)
    hri: Literal["polaris", "positive"] = opt("polaris", "the mode of the methods with a reference")
    max_new_tokens: int = opt(352, "limit of a story in training", low=1)
    grpo_lr: float = opt(1e-3, "learning rate of GRPO")
    offline_lr: float = opt(1e-4, "learning rate of the offline methods")
    prompts: str = opt(str(ROOT / "stories/heldout.jsonl"), "prompts that no run trains on", "evaluation")
    limit: int = opt(20, "how many of them; 0: all")
    lengths: list[int] = opt([60, 120, 250], "asked for, in words: within the trained lengths, and beyond")
    samples: int = opt(3, "stories per prompt and length", low=2)
    judge: Literal["offline", "api"] = opt("offline", "api: JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY")
    measure: Literal["jaccard", "char3", "embedding"] = opt("embedding", "similarity for diversity")
    cell: str = opt("", "METHOD:SEED: this cell alone; the study starts its own processes this way")

    def __post_init__(self):
        self.out = self.out or f"out/study-{self.preset}"


DEMO = {"only": ["start", "grpo", "hri", "deviation", "both"], "data": str(ROOT / "stories/tiny.jsonl")}
DEMO |= {"seeds": 5, "steps": -1, "prompts_per_step": 6, "group": 7, "hri": "positive", "limit": 0}
DEMO |= {"grpo_lr": TINY["lr"], "max_new_tokens": TINY["max_new_tokens"], "measure": "char3", "samples": 2}
DEMO |= {"lengths": [50, 120, 160, 320, 480]}
GPU = {"model": "Qwen/Qwen3.5-0.8B", "data": "out/stories.jsonl", "prompts": "out/held_out.jsonl"}
GPU |= {"train_preset": "polaris-9b", "steps": 100, "max_new_tokens": 8192, "judge": "api", "samples": 4}
GPU |= {"grpo_lr": 1e-6, "offline_lr": 1e-6, "lengths": [1000, 3000, 8000], "limit": 30}
PRESETS = {"demo": DEMO, "grid": {}, "gpu": GPU}


def check(a: Config):
    """ValueError or FileNotFoundError, before an hour is spent."""
    if not set(a.only) <= set(METHODS):
        raise ValueError(f"--only {' '.join(a.only)}: choose some of {', '.join(METHODS)}")
    if not (a.lengths and a.steps):
        raise ValueError("--lengths needs a length, and --steps at least 1 (or -1)")
    if not Path(a.data).is_file():
        how = f"make it with python -m scripts.anthologies build BOOKS... --out {a.data}"
        raise FileNotFoundError(f"no {a.data}; {how}, or pass --data stories/tiny.jsonl")
    trained = data.read_examples(a.data)
    asked = {strip_length(e.prompt) for e in trained}
    both = [e.uid for e in data.read_examples(a.prompts) if strip_length(e.prompt) in asked]
    if both:
        raise ValueError(f"{len(both)} prompts of {a.prompts}, such as {both[0]}, are trained on in {a.data}")
    deviation.distances(["a"], a.measure)
    replace_between(page_of(a)[1], BEGIN, END, "")  # a page without the marks is refused now
    huggingface.read_config(huggingface.fetch(a.model))
    judging.check(evaluation.Settings(judge=a.judge))


# ---- one cell: train one method with one seed, then let it write -------------------------------------------


def run_flags(a: Config, name: str, seed: int) -> list[str]:
    """The command line that trains a cell. `collect` has learning rate 0, so it samples from the start."""
    flags = {"preset": a.train_preset, "model": a.model, "out": a.out, "name": f"{name}-{seed}", "seed": seed}
    flags |= {"keep": 1, "resume": "auto"} | ({} if a.steps < 0 else {"steps": a.steps})
    if name in OFFLINE:
        flags |= {"data": f"{a.out}/collect-{seed}", "method": name, "lr": a.offline_lr}
        flags |= {"pairs": a.prompts_per_step * a.group // 2}
    else:
        more, anchored, strength = GRPO.get(name, (0, False, 0))
        flags |= {"data": a.data, "judge": a.judge, "max_new_tokens": a.max_new_tokens}
        flags |= {"prompts": a.prompts_per_step, "group": a.group + more, "deviation": strength}
        flags |= {"hri": a.hri if anchored else "off", "hri_warmup": min(15, max(a.steps, 0) // 3)}
        flags |= {"similarity": "tfidf", "lr": a.grpo_lr if name in GRPO else 0}
    return [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]


def questions(a: Config, seed: int) -> dict:
    """The settings of eval.py that measure a cell; stories are sampled as eval.py samples."""
    c = train.Config(**train.PRESETS[a.train_preset])
    asked = {"prompts": a.prompts, "limit": a.limit, "samples": a.samples, "seed": seed, "judge": a.judge}
    asked |= {"lengths": a.lengths, "bands": c.bands}
    return asked | {"similarity": a.measure, "thinking": "on" if c.thinking else "off"}


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
        result["report"] = evaluation.evaluate(evaluation.Settings(**asked))
    write_json(folder / "result.json", result)


def figure_of(cell: dict, measure: str, length: int) -> float | None:
    """A cell's mean of one measure of eval.py at one requested length."""
    return cell["report"]["figures"][cell["report"]["models"][0]][measure][f"{length:,}"]["mean"]


# ---- all cells ---------------------------------------------------------------------------------------------


def run_cells(a: Config, argv: list[str]):
    """Every cell that is not finished, in a process of its own: one that fails does not stop the others."""
    seeds, gpus = range(a.seeds), torch.cuda.device_count()
    jobs, failed = a.jobs or gpus or os.cpu_count(), []
    collected = [("collect", s) for s in seeds if set(a.only) & set(OFFLINE)]

    def lane(number: int):
        """Runs one cell after another, each lane on a GPU of its own where there are as many."""
        place = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
        place |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(max(1, os.cpu_count() // jobs))}
        for name, seed in waiting:
            command = [sys.executable, "-m", "scripts.study", *argv, "--cell", f"{name}:{seed}"]
            with open(Path(a.out, f"{name}-{seed}.log"), "w") as log:
                done = subprocess.run(command, env=os.environ | place, stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                failed.append(f"{name}-{seed}")
            bar.update()

    for cells in (collected, [(m, s) for s in seeds for m in a.only]):
        todo = [cell for cell in cells if finished(a, *cell) is None]
        waiting = iter(todo)  # of all lanes: each takes the next cell when it is free
        with tqdm(total=len(todo), desc="cells") as bar, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lane, range(jobs)))
        if failed:
            raise ValueError(f"{', '.join(sorted(failed))} failed: see {a.out}/*.log, then start again")


# ---- what it shows -----------------------------------------------------------------------------------------

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"


def show(values: list[float | None]) -> str | None:
    average, half = (None, None) if None in values else student(values)
    return average if half is None else f"{average:.3f} ± {half:.3f}"


def measured(a: Config, cell: dict) -> list[dict]:
    """What eval.py measures of each story of a cell."""
    bounds = evaluation.bounds_of(questions(a, 0)["bands"], min(a.lengths))
    return [evaluation.measure(row, bounds) for row in stories(a, cell)]


def sentences(a: Config, results: dict[str, list[dict]]) -> list[str]:
    """For each pair of methods what the paired differences support, over seeds and over subjects, no more."""
    told, found = [], {name: [measured(a, c) for c in cells] for name, cells in results.items()}
    for name, base in (pair.split() for pair in COMPARED.split(",")):
        pairs = list(zip(found.get(base, []), found.get(name, [])))
        if len(pairs) == 1:
            told.append(f"- **{name} against {base}**: one seed, so no difference is claimed.")
        if len(pairs) < 2:
            continue
        clear, unclear = [], 0
        for key, at in itertools.product(list(MEASURES)[:3], a.lengths):
            gaps = [[row[key] for row in differences(*pair, key) if row["target"] == at] for pair in pairs]
            average, over_seeds = student([mean(of_seed) for of_seed in gaps])
            half = max(over_seeds, student([mean(of_subject) for of_subject in zip(*gaps)])[1] or 0.0)
            span = f"[{average - half:+.3f}, {average + half:+.3f}]"
            if abs(average) > half:
                clear.append(f"{MEASURES[key]} at {at} {average:+.3f} {span}")
            else:
                unclear += 1
        parts = [f"Clear: {'; '.join(clear)}."] if clear else []
        parts += [f"{unclear} of {unclear + len(clear)} cannot be told apart."] if unclear else []
        told.append(" ".join([f"- **{name} against {base}**, {len(pairs)} seeds.", *parts]))
    return told


def charts_of(a: Config, results: dict[str, list[dict]]) -> list[dict]:
    """Words and quality against the length asked for, a line per method; intervals from three seeds on."""
    longest, charts = max(e.target_words for e in data.read_examples(a.data)), []
    for key, title in {"ratio": "words written / asked", "quality": "quality (offline: form)"}.items():
        lines = {}
        for name, cells in results.items():
            figures = [(n, *student([figure_of(c, key, n) for c in cells])) for n in a.lengths]
            sure = len(cells) > 2
            lines[name] = [point(n, y, [y - half, y + half] if sure else None) for n, y, half in figures]
        charts.append(chart(key, title, "words asked for", lines, beyond=longest))
    return charts


def length_table(a: Config, results: dict[str, list[dict]]) -> str:
    rows, listed = [], judging.OfflineJudge().words
    written = {name: [row for c in cells for row in stories(a, c)] for name, cells in results.items()}
    for n in a.lengths:
        for name, cells in results.items():
            shown = [show([figure_of(c, k, n) for c in cells]) for k in MEASURES]
            told = [row["story"] for row in written[name] if row["target_words"] == n]
            rows.append([n, name, *shown, mean([share_real(story, listed) for story in told])])
    return markdown_table(["asked", "method", *MEASURES.values(), "real words"], rows)


def stories(a: Config, cell: dict) -> list[dict]:
    """What a cell wrote in its evaluation, as eval.py measures it, all lengths of a subject together."""
    folder, report = Path(a.out, f"{cell['method']}-{cell['seed']}", "eval"), cell["report"]
    rows = [row for _, row in read_lines(folder / report["stories"][report["models"][0]])]
    rows = [row | {"unit": strip_length(row["prompt"]), "verdicts": [row["verdict"]]} for row in rows]
    subjects = list(dict.fromkeys(row["unit"] for row in rows))
    return sorted(rows, key=lambda row: subjects.index(row["unit"]))


def three_stories(a: Config, before: dict, after: dict) -> list[str]:
    shown, rows = [], list(zip(stories(a, before), stories(a, after)))
    for first, then in rows[:: a.samples][:3]:
        shown.append(f"**{first['prompt']}**\n")
        for name, story in (("before", first["story"]), ("after", then["story"])):
            quoted = "\n".join(f"> {line}" for line in story.splitlines())
            shown.append(f"{name} ({data.words(story)} words)\n\n{quoted}\n")
    return shown


def page_of(a: Config) -> tuple[Path, str]:
    page = Path(a.page or Path(a.out, "report.md"))
    return page, page.read_text() if page.exists() else f"# What each part buys\n\n{BEGIN}\n{END}\n"


def report(a: Config, argv: list[str]):
    results = {m: [finished(a, m, seed) for seed in range(a.seeds)] for m in METHODS if m in a.only}
    cells = [c for part in results.values() for c in part]
    silent = [c for c in cells for n in a.lengths if figure_of(c, "quality", n) is None]
    if silent:
        names = sorted({f"{c['method']}-{c['seed']}" for c in silent})
        raise ValueError(f"{', '.join(names)}: empty stories, or no verdict; see the stories in {a.out}")
    page, old = page_of(a)
    draw(page.with_suffix(".png"), charts_of(a, results), columns=2, size=(5.5, 4.5))
    text = [
        f"Made by `{' '.join(['python -m scripts.study', *argv])}`: {a.seeds} seed(s), judge: {a.judge}.\n",
        f"![words written and quality against the length asked for]({page.with_suffix('.png').name})\n",
        "## Held-out subjects, by requested length\n",
        length_table(a, results),
        "Mean ± half a 95 % interval over seeds (Student's t). Quality: at most 100; offline: form. In "
        f"band: share with a length in the band. Diversity: 1 - {a.measure} similarity; training uses tf-idf."
        "\n",
        "## What the differences support\n",
        *sentences(a, results),
        "\nBrackets: the wider of two 95 % intervals of the paired difference, over seeds and over subjects "
        "(Student's t). One in twenty is clear by chance.\n",
        *dict.fromkeys(f"- {w.partition(': ')[2] or w}" for c in cells for w in c["report"]["warnings"]),
    ]
    others = [name for name in results if name != "start"]
    if "start" in results and others:
        text.append(f"\n## Three stories, start and {others[-1]}\n")
        text.append("Unchosen: the first three requests, seed 0.\n")
        text += three_stories(a, results["start"][0], results[others[-1]][0])
    write_text(page, replace_between(old, BEGIN, END, "\n".join(text)))
    print("\n".join(text), f"\nwrote {page}")


@exits_cleanly
def main(argv=None):
    argv = [str(x) for x in (sys.argv[1:] if argv is None else argv)]
    torch.set_flush_denormal(True)
    a = parse(Config, argv, __doc__, PRESETS, "demo", "the shortest study")
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
