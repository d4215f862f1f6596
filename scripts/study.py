"""What do the human story and deviation buy? A grid of small runs with the same start, seeds and budget, measured alike.

    grpo-5, grpo-6          GRPO with 5 or 6 policy stories a prompt (6: HRI's row count without its human)
    hri                     5 policy stories and the human one
    ...-d0.5, ...-d1        the same with deviation of that strength
    dpo ddpo orpo dorpo divpo   offline, on as many stories, sampled from the start and scored by the same reward

    python -m scripts.study                              # two cores: about 40 runs, one to two hours; resumable cell by cell
    python -m scripts.study --scale gpu --jobs 8         # Qwen3.5-0.8B, long stories, a real judge: one cell a GPU
    python -m scripts.study --seeds 1 --steps 3 --only hri dpo    # a look at the machinery

Every trained model writes several stories for prompts that no run has seen, at lengths inside and beyond the trained
ones. Quality is the judge's, and the offline judge measures form; diversity is the mean distance between stories of one
prompt by a similarity that no run was trained on. Figure and table go to docs/study.md. Sources: see hri.py, deviation.py.
Left out: tuning each method (all share one learning rate a family), human readers, significance beyond seeds.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import queue
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

import data
import deviation
import eval as evaluation
import judge as judging
import model as qwen
import rollout
import train
from scripts import prefer

ROOT = train.ROOT
GRPO = {"grpo-5": (5, "off", 0), "grpo-6": (6, "off", 0), "grpo-5-d0.5": (5, "off", 0.5), "grpo-5-d1": (5, "off", 1),
        "hri": (5, "polaris", 0), "hri-d0.5": (5, "polaris", 0.5), "hri-d1": (5, "polaris", 1)}  # group, HRI, deviation
OFFLINE = ("dpo", "ddpo", "orpo", "dorpo", "divpo")
METHODS = ("start", *GRPO, *OFFLINE)
COMPARED = (("grpo-5", "start", "GRPO"), ("grpo-6", "grpo-5", "A sixth policy story"),
            ("hri", "grpo-5", "The human story in place of none"), ("hri", "grpo-6", "The human story in place of a sixth policy story"),
            ("grpo-5-d0.5", "grpo-5", "Deviation 0.5 without HRI"), ("grpo-5-d1", "grpo-5", "Deviation 1 without HRI"),
            ("hri-d0.5", "hri", "Deviation 0.5 with HRI"), ("hri-d1", "hri", "Deviation 1 with HRI"),
            ("dpo", "start", "DPO"), ("ddpo", "dpo", "Deviation in DPO"), ("orpo", "start", "ORPO"),
            ("dorpo", "orpo", "Deviation in ORPO"), ("divpo", "dpo", "DivPO's pairs in DPO"), ("ddpo", "divpo", "DDPO in place of DivPO"))
MEASURES = {"quality": "quality", "inside": "in band", "beyond": "in band, beyond", "diversity": "diversity"}
SCALES = {
    "tiny": dict(model=str(ROOT / "stories/tiny-base"), data="out/real.jsonl", prompts=str(ROOT / "stories/heldout.jsonl"), steps=24,
                 lengths=[60, 120], beyond=250, eval_prompts=20, samples=3, max_new_tokens=352, judge="offline", grpo_lr=1e-3, offline_lr=1e-4),
    "gpu": dict(model="Qwen/Qwen3.5-0.8B", data="out/stories.jsonl", prompts="out/heldout.jsonl", steps=100, lengths=[1000, 3000],
                beyond=8000, eval_prompts=30, samples=4, max_new_tokens=8192, judge="api", grpo_lr=1e-6, offline_lr=1e-6)}
PRESET = {"tiny": "tiny", "gpu": "polaris-9b"}
PROMPTS, GROUP = 4, 5  # a step: 20 stories, or 10 pairs of them


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", choices=SCALES, default="tiny", help="sets the defaults of all that follows (default tiny)")
    p.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=f"some of: {', '.join(METHODS)}")
    p.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    p.add_argument("--jobs", type=int, help="cells at the same time (default: one a GPU, else one a CPU core)")
    p.add_argument("--model", help="the start of every run")
    p.add_argument("--data", help="prompts and human stories to train on")
    p.add_argument("--prompts", help="prompts to evaluate on, none of them trained")
    p.add_argument("--steps", type=int, help="steps of 20 stories (GRPO) or 10 pairs of stories (offline)")
    p.add_argument("--lengths", type=int, nargs="+", help="lengths asked for inside the trained ones")
    p.add_argument("--beyond", type=int, help="a length beyond them")
    p.add_argument("--eval_prompts", type=int, help="how many of --prompts")
    p.add_argument("--samples", type=int, help="stories a prompt and length, at least 2")
    p.add_argument("--max_new_tokens", type=int, help="limit of a story in training")
    p.add_argument("--judge", choices=("offline", "api"), help="api: JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY")
    p.add_argument("--measure", default="embedding", choices=deviation.SIMILARITIES, help="similarity that measures diversity (default embedding)")
    p.add_argument("--grpo_lr", type=float)
    p.add_argument("--offline_lr", type=float)
    p.add_argument("--out", type=Path, default=Path("out/study"), help="one folder a cell (default out/study)")
    p.add_argument("--doc", type=Path, default=ROOT / "docs/study.md", help="where table and sentences go, the figure beside it")
    p.add_argument("--cell", help=argparse.SUPPRESS)  # METHOD:SEED, how the study starts its own processes
    return p


def parse(argv=None):
    p = parser()
    p.set_defaults(**SCALES[p.parse_known_args(argv)[0].scale])
    return p.parse_args(argv)


def check(a):
    """ValueError or FileNotFoundError, before an hour is spent."""
    if a.seeds < 1 or a.steps < 1 or a.samples < 2 or (a.jobs is not None and a.jobs < 1):
        raise ValueError("--seeds, --steps and --jobs must be at least 1, --samples at least 2 (diversity is a distance between stories)")
    if not Path(a.data).is_file():
        how = {"tiny": "--min_words 30 --max_words 200", "gpu": f"--test_out {a.prompts}"}[a.scale]
        raise FileNotFoundError(f"no {a.data}; build it from books (python -m scripts.anthologies fetch): python -m scripts.anthologies build "
                                f"BOOKS... --out {a.data} {how}, or pass --data stories/tiny.jsonl --beyond 250")
    trained = data.read_examples(a.data)
    if a.beyond <= max(e.target_words for e in trained):
        raise ValueError(f"--beyond {a.beyond} is not beyond: {a.data} asks for up to {max(e.target_words for e in trained)} words")
    asked = {judging.strip_length(e.prompt) for e in trained}
    both = [e.uid for e in data.read_examples(a.prompts) if judging.strip_length(e.prompt) in asked]
    if both:
        raise ValueError(f"{len(both)} prompts of {a.prompts} are trained on in {a.data}, such as {both[0]}; take them out of one of the two")
    if a.measure == "tfidf":
        raise ValueError("--measure tfidf: the runs are trained with it; measure with another similarity")
    deviation.distances(["a"], a.measure)
    qwen.read_config(qwen.fetch(a.model))
    if a.judge == "api" and not (os.environ.get("JUDGE_URL") and os.environ.get("JUDGE_MODEL")):
        raise ValueError("--judge api needs JUDGE_URL and JUDGE_MODEL (and JUDGE_API_KEY); --judge offline measures form, not quality")


# ---------------------------------------------------------------------------------------------------------------------
# One cell: train one method with one seed, then let it write

def train_flags(a, name: str, seed: int) -> list[str]:
    """The command line of a GRPO run; `collect` takes no step (learning rate 0) and so samples from the start."""
    group, hri_mode, strength = GRPO.get(name, (GROUP, "off", 0))
    return [str(x) for x in ("--preset", PRESET[a.scale], "--model", a.model, "--data", a.data, "--out", a.out, "--name", f"{name}-{seed}",
                             "--seed", seed, "--steps", a.steps, "--prompts", PROMPTS, "--group", group, "--hri", hri_mode, "--hri_warmup", min(15, a.steps // 3),
                             "--deviation", strength, "--similarity", "tfidf", "--lr", a.grpo_lr if name in GRPO else 0, "--judge", a.judge,
                             "--max_new_tokens", a.max_new_tokens, "--keep", 1, "--resume", "auto")]


def prefer_flags(a, name: str, seed: int) -> list[str]:
    return [str(x) for x in ("--preset", PRESET[a.scale], "--model", a.model, "--data", a.out / f"collect-{seed}", "--out", a.out, "--name",
                             f"{name}-{seed}", "--seed", seed, "--method", name, "--steps", a.steps, "--pairs", PROMPTS * GROUP // 2, "--lr",
                             a.offline_lr, "--keep", 1, "--resume", "auto")]


def settings(a, name: str, seed: int) -> dict:
    """What a finished cell must have been run with to stand in this study."""
    flags = {} if name == "start" else {"run": prefer_flags(a, name, seed) if name in OFFLINE else train_flags(a, name, seed)}
    return flags | {k: str(getattr(a, k)) for k in ("model", "prompts", "lengths", "beyond", "eval_prompts", "samples", "measure", "judge")}


def finished(a, name: str, seed: int) -> dict | None:
    """The result of a cell, or None. ValueError: it is another study's."""
    folder = a.out / f"{name}-{seed}"
    if (folder / "settings.json").exists():
        was, now = json.loads((folder / "settings.json").read_text()), settings(a, name, seed)
        differs = [k for k in now if was.get(k) != now[k]]
        if differs:  # begun or finished: neither may be continued as something else
            raise ValueError(f"{folder} was run with other settings ({', '.join(differs)}); choose another --out or delete that folder")
    return json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else None


def run_cell(a, name: str, seed: int):
    folder = a.out / f"{name}-{seed}"
    evaluation.write_file(folder / "settings.json", json.dumps(settings(a, name, seed), indent=1))
    if name in OFFLINE:
        prefer.main(prefer_flags(a, name, seed))
    elif name != "start":
        train.main(train_flags(a, name, seed))
    result = {"method": name, "seed": seed}
    if name != "collect":
        newest = a.model if name == "start" else sorted((folder / "checkpoints").glob("step_*"))[-1]
        result |= evaluate(a, newest, seed, folder)
    evaluation.write_file(folder / "result.json", json.dumps(result, indent=1))


def evaluate(a, checkpoint, seed: int, folder: Path) -> dict:
    """Several stories a held-out prompt and length -> the cell's figures; the stories themselves go to stories.jsonl."""
    config = train.parse(train_flags(a, "grpo-5", seed))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = qwen.load(checkpoint, torch.bfloat16 if device == "cuda" else torch.float32, device, fused=True)
    tokenizer, judge, rows = data.load_tokenizer(checkpoint), train.make_judge(config), []
    todo = evaluation.requests_for(data.read_examples(a.prompts), [*a.lengths, a.beyond], a.eval_prompts)
    for target in [*a.lengths, a.beyond]:
        low, high = train.bounds_of(config).band(target)
        requests = [e for e in todo if e.target_words == target for _ in range(a.samples)]
        done = rollout.generate(
            model, [tokenizer.chat(e.prompt, config.thinking) for e in requests], temperature=config.temperature, top_p=config.top_p,
            top_k=config.top_k, repetition_penalty=config.repetition_penalty, stop_ids=(tokenizer.end_id,), seed=seed,
            max_new_tokens=int(1.6 * high) + 64 + 4096 * config.thinking)  # room for a story that is too long to show it
        stories = [data.split_thinking(("<think>" if config.thinking else "") + tokenizer.decode(d.ids))[1] for d in done]
        verdicts = [judge.submit(e.prompt, story) for e, story in zip(requests, stories)]
        for e, story, verdict, d in zip(requests, stories, verdicts, done):
            v, words = verdict.result(), judging.count_words(story)
            rows.append({"uid": e.uid, "prompt": e.prompt, "target": target, "words": words, "in_band": float(low <= words <= high),
                         "quality": v.score / 100 if v else None, "finished": d.finished, "story": story})
    judge.close()
    evaluation.write_file(folder / "stories.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    inside, beyond = ([r for r in rows if (r["target"] == a.beyond) == far] for far in (False, True))
    groups = [[r["story"] for r in inside if r["uid"] == uid and r["story"]] for uid in dict.fromkeys(r["uid"] for r in inside)]
    spread = [deviation.mean_pairwise_distance(deviation.distances(g, a.measure, equal_length=True)) for g in groups if len(g) > 1]
    return {"quality": train.mean([r["quality"] for r in inside]), "inside": train.mean([r["in_band"] for r in inside]),
            "beyond": train.mean([r["in_band"] for r in beyond]), "diversity": train.mean(spread),
            "words_inside": train.mean([r["words"] / r["target"] for r in inside]), "words_beyond": train.mean([r["words"] / r["target"] for r in beyond]),
            "stories": len(rows), "without_verdict": sum(r["quality"] is None for r in rows)}


# ---------------------------------------------------------------------------------------------------------------------
# The grid

def run_grid(a, argv: list[str]):
    """Every cell that is not finished, in a process of its own: memory is given back, and a cell that fails stands alone."""
    seeds = range(a.seeds)
    offline = [m for m in a.only if m in OFFLINE]
    waves = [[("collect", s) for s in seeds if offline], [(m, s) for s in seeds for m in a.only]]
    gpus = torch.cuda.device_count()
    a.out.mkdir(parents=True, exist_ok=True)
    slots = queue.SimpleQueue()
    jobs = a.jobs or gpus or os.cpu_count()
    for slot in range(jobs):
        slots.put(slot)
    failed = []

    def one(cell):
        slot, (name, seed) = slots.get(), cell
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"CUDA_VISIBLE_DEVICES": str(slot % gpus)} if gpus else {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // jobs))})
        with open(a.out / f"{name}-{seed}.log", "w") as log:
            code = subprocess.run([sys.executable, "-m", "scripts.study", *argv, "--cell", f"{name}:{seed}"], env=environment,
                                  stdout=log, stderr=subprocess.STDOUT).returncode
        slots.put(slot)
        if code:
            failed.append(f"{name}-{seed}")
        bar.update()

    for cells in waves:
        todo = [cell for cell in cells if finished(a, *cell) is None]
        with tqdm(total=len(cells), initial=len(cells) - len(todo), desc="cells") as bar, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
        if failed:
            raise ValueError(f"{', '.join(sorted(failed))} failed; {a.out}/{sorted(failed)[0]}.log says why; what is finished is kept: run the same command again")


# ---------------------------------------------------------------------------------------------------------------------
# What it shows

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval over seeds (Student's t); None for a single seed."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, None
    t = T975[n - 2] if n - 2 < len(T975) else 1.96 + 2.7 / (n - 1)
    return mean, t * statistics.stdev(values) / math.sqrt(n)


def show(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def table(results: dict[str, list[dict]]) -> str:
    head = "| method | quality (form) | in band | in band, beyond | words / asked | words / asked, beyond | diversity |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, cells in results.items():
        parts = [show([c[k] for c in cells]) for k in ("quality", "inside", "beyond", "words_inside", "words_beyond", "diversity")]
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def sentences(results: dict[str, list[dict]]) -> list[str]:
    """For each pair of methods what the paired differences over seeds support, and no more."""
    told = []
    for name, base, what in COMPARED:
        if name not in results or base not in results:
            continue
        bases = {c["seed"]: c for c in results[base]}
        pairs = [(c, bases[c["seed"]]) for c in results[name] if c["seed"] in bases]
        clear, unclear = [], []
        for key, label in MEASURES.items():
            mean, half = interval([c[key] - b[key] for c, b in pairs])
            figure = f"{label} {mean:+.3f}" + ("" if half is None else f" [{mean - half:+.3f}, {mean + half:+.3f}]")
            (clear if half is not None and abs(mean) > half else unclear).append(figure)
        told.append(f"- **{what}** ({name} against {base}, {len(pairs)} seed{'s' * (len(pairs) > 1)}): "
                    + ("; ".join(clear) + ". " if clear else "")
                    + ("Cannot be told apart: " + "; ".join(unclear) + "." if unclear and len(pairs) > 1 else "")
                    + ("One seed, so no difference is claimed: " + "; ".join(unclear) + "." if len(pairs) == 1 else ""))
    return told


def figure(results: dict[str, list[dict]], path: Path, measure: str):
    """Quality against diversity, one point a method with its intervals over seeds."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(8, 6), layout="constrained")
    colour = lambda name: "#555555" if name == "start" else "#b5542a" if name in OFFLINE else "#1f4e79" if "hri" in name else "#5f9e6e"
    spots = {name: [interval([c[k] for c in cells]) for k in ("diversity", "quality")] for name, cells in results.items()}
    for i, (name, ((x, dx), (y, dy))) in enumerate(spots.items()):
        bars = ax.errorbar(x, y, xerr=dx, yerr=dy, fmt="o" if "d0.5" not in name and "d1" not in name else "s", color=colour(name), lw=0.8, capsize=2)
        for part in (*bars[1], *bars[2]):
            part.set_alpha(0.4)
        # A name keeps away from points close by: below where they are above it, left where they are on its right.
        near = [(u, v) for other, ((u, _), (v, _)) in spots.items() if other != name and abs(u - x) < 0.015 and abs(v - y) < 0.01]
        left, below = any(u >= x for u, _ in near), any(v >= y for _, v in near) if near else i % 2 == 0
        ax.annotate(name, (x, y), textcoords="offset points", xytext=(-6 if left else 6, -12 if below else 5), fontsize=9,
                    ha="right" if left else "left", color=colour(name))
    ax.set_xlabel(f"diversity: mean distance between stories of one prompt ({measure}, not trained on)")
    ax.set_ylabel("quality by the judge / 100 (offline judge: form)")
    ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    fig.savefig(temporary, dpi=120, format="png")
    plt.close(fig)
    os.replace(temporary, path)


BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"


def report(a, argv: list[str]):
    results = {m: [r for s in range(a.seeds) if (r := finished(a, m, s))] for m in METHODS if m in a.only}
    incomplete = [f"{m}-{c['seed']}" for m, cells in results.items() for c in cells if any(c[k] is None for k in MEASURES)]
    if incomplete:
        raise ValueError(f"{', '.join(incomplete)} wrote nothing that could be measured (empty stories, or no verdict); see stories.jsonl in {a.out}")
    figure(results, a.doc.with_suffix(".png"), a.measure)
    lost = sum(c["without_verdict"] for cells in results.values() for c in cells)
    made = f"`python -m scripts.study {' '.join(argv)}`".replace(" `", "`")
    text = "\n".join([
        BEGIN, f"Made by {made}: {a.seeds} seed(s), {a.steps} steps, {a.eval_prompts} held-out prompts x {a.samples} stories x lengths "
        f"{', '.join(map(str, a.lengths))} inside and {a.beyond} beyond what was trained; judge: {a.judge}; {lost} stories without a verdict.", "",
        f"![quality against diversity]({a.doc.with_suffix('.png').name})", "", table(results), "",
        "Mean ± half a 95 % interval over seeds (Student's t). In band: share of stories whose length lies in the reward's band. "
        f"Diversity: 1 - {a.measure} similarity, texts cut to equal length; the runs were trained with tf-idf.", "", *sentences(results), "",
        f"Each bracket is a 95 % interval of the paired difference over seeds. {len(COMPARED)} comparisons of {len(MEASURES)} figures are "
        "read side by side, so about one in twenty of them would look clear by chance alone.", END])
    page = a.doc.read_text() if a.doc.exists() else f"# What HRI and deviation buy\n\n{BEGIN}\n{END}\n"
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{a.doc} must hold the line {BEGIN} and the line {END} once each; what stands between them is replaced")
    evaluation.write_file(a.doc, page[:page.index(BEGIN)] + text + page[page.index(END) + len(END):])
    print(f"{table(results)}\n\n" + "\n".join(sentences(results)) + f"\n\nwrote {a.doc} and {a.doc.with_suffix('.png')}")


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    a = parse(argv)
    torch.set_flush_denormal(True)
    try:
        check(a)
        if a.cell:
            name, _, seed = a.cell.partition(":")
            run_cell(a, name, int(seed))
        else:
            run_grid(a, argv)
            report(a, argv)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
