"""How good and how long: stories at requested lengths, written, judged, measured, reported.

The claim to test is length generalisation: quality and adherence at three times the training length (POLARIS, arXiv
2606.04095). Each model writes stories for the same held-out prompts at each requested length; rules count what can be
counted, a judge grades the rest, and every figure carries a 95 % bootstrap interval over prompts and their number.

    python eval.py --length 12000                                         # the newest checkpoint, else the tiny base
    python eval.py --lengths 100 200 400 800 1600 --model stories/tiny-base out/tiny/checkpoints/step_000045
    python eval.py --endpoint http://localhost:8000/v1 --model my-27b     # a model behind an OpenAI-compatible server
    python eval.py watch out/tiny                                         # a training run, to look at

Left in out/eval/: report.html, report.json, PNGs, stories/ and log.jsonl, from which a killed run goes on: what was
written or judged is never done twice. Not in this file: how models write (scripts/writers.py), how it is shown
(scripts/report.py), other benchmarks, pairwise comparison and what was memorised (scripts/benchmarks.py).
"""
from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import deviation
import judge as judging
import rollout
from scripts import writers as writing
from scripts.report import METRICS, print_report, report_page, watch, write_file, write_page, write_pngs

ROOT = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------------------------------------
# What is asked: held-out prompts, each at each requested length

LONG = re.compile(r"\d[\d,]*(?=[ -]words?[ -]long)")
SHORT = 500  # words; the paper's bands have absolute minima that make no sense for less


def at_length(prompt: str, words: int) -> str:
    """The same request with another length."""
    if LONG.search(prompt):
        return LONG.sub(str(words), prompt)
    prompt = prompt.rstrip()
    return prompt + "." * (not prompt.endswith((".", "!", "?"))) + f" It should be {words} words long."


def unit(example: data.Example) -> str:
    """What makes two requests the same prompt: all but the length. Intervals resample these."""
    return judging.strip_length(example.prompt)


def requests_for(examples: list[data.Example], lengths: list[int], limit: int) -> list[data.Example]:
    """The first `limit` prompts (0: all), at every length in `lengths`, or at their own where none is given."""
    kept = list(dict.fromkeys(map(unit, examples)))
    kept = kept[:limit] if limit else kept
    if not lengths:
        return [e for e in examples if unit(e) in set(kept)]
    first = {unit(e): e for e in reversed(examples)}  # one request a prompt, whatever lengths the file has it at
    return [replace(first[u], uid=f"{first[u].uid}@{n}", prompt=at_length(first[u].prompt, n), target_words=n, story=None)
            for n in dict.fromkeys(lengths) for u in kept]


def bounds_for(target: int) -> judging.LengthBounds:
    return judging.SHORT_BOUNDS if target < SHORT else judging.LengthBounds()


# ---------------------------------------------------------------------------------------------------------------------
# What is kept: one append-only file, so that nothing is written, judged or paid for twice

class Log:
    """JSON Lines of {"key": ..., ...}. A line goes to the system at once; a kill costs at most the one being written,
    which is cut off at the next start. ValueError: a damaged line."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, self.file = {}, open(path, "ab", buffering=0)
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        os.truncate(path, whole)
        for number, line in enumerate(raw[:whole].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} line {number} is damaged; delete it, and what it held is done again") from None

    def put(self, key: str, **row):
        self.rows[key] = {"key": key, **row}
        self.file.write(json.dumps(self.rows[key], ensure_ascii=False).encode("utf-8", "replace") + b"\n")


# ---------------------------------------------------------------------------------------------------------------------
# Judging

THIRDS_FROM = 150  # words; thirds of less are no passages


def thirds(story: str) -> list[str]:
    """Beginning, middle and end, cut at ends of sentences; [] where the story is too short to fall into three."""
    sentences = [s for s in re.split(r"(?<=[.!?…])(?=[\"'”’)]*\s)|(?<=\n)", story) if s]
    total, parts, seen = data.words(story), ["", "", ""], 0
    for sentence in sentences:
        parts[min(2, 3 * seen // max(1, total))] += sentence
        seen += data.words(sentence)
    return [p.strip() for p in parts] if total >= THIRDS_FROM and all(p.strip() for p in parts) else []


def make_judge(args):
    """A judge that reads where one is set up, else the offline one. ValueError: it is asked for what it cannot do."""
    url, name = args.judge_url or os.environ.get("JUDGE_URL"), args.judge_model or os.environ.get("JUDGE_MODEL")
    if args.judge == "api" or args.judge == "auto" and (url or name):
        return judging.Judge(url, name, rubric=judging.load_rubric(args.rubric), cache=args.out / "verdicts.sqlite")
    if args.rubric != "story_quality":
        raise ValueError(f"--rubric {args.rubric} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL; "
                         "the offline judge fills one rubric only")
    return judging.OfflineJudge()


def describe(judge) -> str:
    if isinstance(judge, judging.OfflineJudge):
        return f"judged by {judge.name}, which measures form, not quality; for a judge that reads set JUDGE_URL, JUDGE_MODEL"
    return f"quality by {judge.name}, rubric {judge.rubric.version}"


def to_judge(row: dict, judge, args) -> list[tuple[str, str, str]]:
    """(key, prompt, text) of the verdicts a story needs: the whole, and its thirds."""
    rubric = getattr(judge, "rubric", judging.RUBRIC).version
    parts = thirds(row["story"]) if args.thirds == "on" else []
    texts = [(row["prompt"], row["story"])] + [
        (f"{row['prompt']} (This is part {i} of 3 of a story for that request.)", text) for i, text in enumerate(parts, 1)]
    return [(f"verdict {writing.key_of(judge.name, rubric, prompt, text)}", prompt, text) for prompt, text in texts]


def write_and_judge(writers: list[writing.Writer], todo: list[data.Example], judge, log: Log, args) -> dict[str, list[dict]]:
    """Every story of every model, each judged while others are being written -> {label: stories in order}.

    A story: what the log keeps of it, and "verdicts": of the whole and, where it is long enough, of its thirds."""
    asked, failed = {}, set()
    bar = tqdm(desc="judged", unit=" texts", position=1, total=0)

    def submit(row):
        for key, prompt, text in to_judge(row, judge, args):
            if key not in log.rows and key not in asked:
                bar.total += 1
                asked[key] = judge.submit(prompt, text)

    def keep(wait=False):
        for key, future in list(asked.items()):
            if key not in log.rows and key not in failed and (wait or future.done()):
                if verdict := future.result():
                    log.put(key, verdict=verdict.to_dict())
                else:
                    failed.add(key)  # no verdict is no score: asked for again at the next start
                bar.update()

    jobs = {w.label: [writing.Job(w.key(r, s, args), r, s, bounds_for(r.target_words).band(r.target_words)[1])
                      for r in todo for s in range(args.samples)] for w in writers}
    try:
        if hasattr(judge, "check") and any(job.key not in log.rows for part in jobs.values() for job in part):
            judge.check()  # a judge that does not answer is known before hours of writing
        for writer in writers:
            missing = [job for job in jobs[writer.label] if job.key not in log.rows]
            for job in jobs[writer.label]:
                if job.key in log.rows:
                    submit(log.rows[job.key])
            for job, story, finished, tokens in writing.write(writer, missing, args) if missing else ():
                request = job.request
                log.put(job.key, model=writer.label, uid=request.uid, unit=unit(request), prompt=request.prompt,
                        sample=job.sample, target_words=request.target_words, story=story, finished=finished, tokens=tokens)
                submit(log.rows[job.key])
                keep()
        keep(wait=True)
    finally:
        judge.close()
        bar.close()
    if failed:
        print(f"{len(failed)} texts got no verdict ({judge.last_error}); they count in no figure, "
              "start again to ask once more", file=sys.stderr)

    def with_verdicts(row):
        return row | {"verdicts": [log.rows.get(key, {}).get("verdict") for key, _, _ in to_judge(row, judge, args)]}
    return {label: [with_verdicts(log.rows[job.key]) for job in part] for label, part in jobs.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is measured

def length_score(requested: int, written: int) -> float:
    """LongBench-Write's length score, 0..100 (arXiv 2408.07055)."""
    if written > requested:
        return 100 * max(0.0, 1 - (written / requested - 1) / 3)
    return 100 * max(0.0, 1 - (requested / written - 1) / 2) if written else 0.0


def number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def measure(row: dict, bounds: judging.LengthBounds) -> dict:
    """What one story shows; None where there is nothing to measure."""
    target, written = row["target_words"], data.words(row["story"])
    low, high = bounds.band(target)
    quality, *parts = [verdict and verdict["score"] for verdict in row["verdicts"]]
    first, second, third = parts or [None] * 3
    return {"unit": row["unit"], "target": target, "written": written, "ratio": written / target,
            "in_band": float(low <= written <= high), "length_score": length_score(target, written),
            "early": float(row["finished"] and written < low), "truncated": float(not row["finished"]),
            "empty": float(not written), "repetition": judging.repetition_penalty(row["story"]),
            "compression": number(deviation.compression_ratio([row["story"]])),
            "quality": quality, "third_1": first, "third_2": second, "third_3": third,
            "decay": None if first is None or third is None else third - first}


def measure_group(rows: list[dict], similarity: str) -> dict:
    """How different the stories of one request are, by a similarity that training did not use."""
    texts = [r["story"] for r in rows if r["story"].strip()]
    d_nn = deviation.distances(texts, similarity, equal_length=True)
    return {"unit": rows[0]["unit"], "target": rows[0]["target_words"], "distinct_2": number(deviation.distinct_n(texts, 2)),
            "distance": number(deviation.mean_pairwise_distance(d_nn)),
            "vendi": number(deviation.vendi_score(d_nn)) if len(texts) > 1 else None}


# ---------------------------------------------------------------------------------------------------------------------
# Statistics: means over prompts, with bootstrap intervals that resample prompts

RESAMPLES = 2000
FEW = 30  # prompts; an interval from fewer is itself uncertain
COMPARED = ("quality", "ratio", "in_band", "length_score", "repetition", "distance")  # between models


def buckets_of(targets: list[int]) -> list[tuple[str, int, int]]:
    """(label, above, up to) in words: each length asked for, or steps of 2,000 words where there are more than eight."""
    distinct = sorted(set(targets))
    if len(distinct) <= 8:
        return [(f"{t:,}", t - 1, t) for t in distinct]
    return [(f"{low:,}-{low + 2000:,}", low, low + 2000) for low in range(0, distinct[-1], 2000)
            if any(low < t <= low + 2000 for t in distinct)]


def published_bands(buckets) -> list[tuple[str, int, int]]:
    """The three bands of the paper's table, where lengths are so many that buckets are steps; they enter no slope."""
    steps = any(high - low > 1 for _, low, high in buckets)
    bands = (("1-4k", 0, 4000), ("4-8k", 4000, 8000), ("8-12k", 8000, 12000))
    return [band for band in bands if steps and band[1] < buckets[-1][2]]


def figures(rows: list[dict], metric: str, buckets, seed: int = 0) -> dict[str, dict]:
    """{bucket or band | "all" | "slope": {mean, interval, prompts}}; the interval is None for fewer than two prompts.

    A bootstrap draw takes prompts with replacement, each with all its stories at all lengths, since those are not
    independent. The slope is that of least squares through the buckets' means against 0, 1, 2 ..."""
    columns = [*buckets, *published_bands(buckets), ("all", 0, math.inf)]
    rows = [r for r in rows if r.get(metric) is not None]
    units = {u: i for i, u in enumerate(dict.fromkeys(r["unit"] for r in rows))}
    labels = [*(label for label, _, _ in columns), "slope"]
    if not units:
        return {label: {"mean": None, "interval": None, "prompts": 0} for label in labels}
    sums, counts = np.zeros((2, len(units), len(columns)))
    for r in rows:
        for c, (_, low, high) in enumerate(columns):
            if low < r["target"] <= high:
                sums[units[r["unit"]], c] += r[metric]
                counts[units[r["unit"]], c] += 1
    draws = np.random.default_rng(seed).multinomial(len(units), [1 / len(units)] * len(units), size=RESAMPLES)
    draws = np.vstack([np.ones((1, len(units))), draws])  # row 0 is the sample itself
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    used = np.flatnonzero(counts.any(0)[:len(buckets)])
    x = used - used.mean()
    slope = means[:, used] @ x / (x @ x) if len(used) > 1 else np.full(len(draws), np.nan)
    found = {}
    prompts = (counts > 0).sum(0)
    poorest = prompts[used].min(initial=len(units))  # a slope is no surer than its poorest bucket
    for label, curve, n in zip(labels, [*means.T, slope], [*prompts, poorest]):
        drawn = curve[1:][np.isfinite(curve[1:])]  # a draw may hold no prompt of a bucket
        sure = n > 1 and math.isfinite(curve[0])
        found[label] = {"mean": number(float(curve[0])), "prompts": int(n),
                        "interval": [float(edge) for edge in np.percentile(drawn, [2.5, 97.5])] if sure else None}
    return found


def differences(a: list[dict], b: list[dict], metric: str) -> list[dict]:
    """b - a for each request that both models answered, as rows: what is paired needs no second kind of statistics."""
    def by_request(rows):
        found = {}
        for r in rows:
            if r.get(metric) is not None:
                found.setdefault((r["unit"], r["target"]), []).append(r[metric])
        return {key: sum(v) / len(v) for key, v in found.items()}
    a, b = by_request(a), by_request(b)
    return [{"unit": u, "target": t, metric: b[u, t] - a[u, t]} for u, t in a if (u, t) in b]


def summarise(stories: dict[str, list[dict]], bounds: judging.LengthBounds, similarity: str) -> dict:
    """Everything that report.json says, from the stories of each model."""
    measured, warnings, labels = {}, [], list(stories)
    for label, rows in stories.items():
        groups = {}
        for row in rows:
            groups.setdefault((row["unit"], row["target_words"]), []).append(row)
        measured[label] = [measure(r, bounds) for r in rows] + [measure_group(g, similarity) for g in groups.values()]
        if unjudged := sum(r["verdicts"][0] is None for r in rows):
            warnings.append(f"{label}: {unjudged} of {len(rows)} stories have no verdict and count in no quality")
    targets = [r["target_words"] for r in stories[labels[0]]]
    buckets = buckets_of(targets)
    columns = [label for label, _, _ in [*buckets, *published_bands(buckets)]] + ["all", "slope"] * (len(buckets) > 1)
    found = {label: {m: figures(rows, m, buckets) for m in METRICS} for label, rows in measured.items()}
    n = min(found[labels[0]]["ratio"][bucket]["prompts"] for bucket, _, _ in buckets)
    if n < FEW:
        where = " at some length" if len(buckets) > 1 else ""
        warnings.insert(0, f"only {n} prompts{where}: intervals from fewer than {FEW} are too narrow, "
                           "and no small difference can be seen")
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1:]]
    return {"models": labels, "figures": found, "warnings": warnings,
            "buckets": {label: float(np.mean([t for t in targets if low < t <= high])) for label, low, high in buckets},
            "columns": columns, "band": [[t, *(edge / t for edge in bounds.band(t))] for t in sorted(set(targets))],
            "differences": [{"of": b, "minus": a, "figures": {
                m: figures(differences(measured[a], measured[b], m), m, buckets) for m in COMPARED}} for a, b in pairs]}


# ---------------------------------------------------------------------------------------------------------------------
# Command line

def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="eval.py", description="Stories at requested lengths: written, judged, measured, reported.",
                                epilog="python eval.py watch RUN [--steps N ...]: a page about a training run")
    p.add_argument("--length", "--lengths", dest="lengths", type=int, nargs="+", default=[], metavar="N",
                   help="words to request; default: what each prompt says itself")
    p.add_argument("--model", "--checkpoint", dest="models", nargs="+", default=[], metavar="MODEL",
                   help="checkpoint folders, hub ids, or names behind --endpoint (default: newest under out/, else stories/tiny-base)")
    p.add_argument("--endpoint", metavar="URL", help="a server for the models that are no folders; key: ENDPOINT_API_KEY")
    p.add_argument("--in_flight", type=int, default=8, help="requests to the endpoint at the same time (%(default)s)")
    p.add_argument("--prompts", metavar="FILE",
                   help="JSON Lines (default: stories/heldout.jsonl, for large models stories/eval.jsonl)")
    p.add_argument("--limit", type=int, metavar="N",
                   help="only the first N prompts, 0: all (default on a CPU: 8, above 2,000 words 4; else all)")
    p.add_argument("--samples", type=int, default=2, help="stories a request; diversity needs two (%(default)s)")
    p.add_argument("--judge", choices=("auto", "api", "offline"), default="auto",
                   help="auto: api where JUDGE_URL is set, else offline (form only)")
    p.add_argument("--judge_url", help="default $JUDGE_URL; the key comes from JUDGE_API_KEY alone")
    p.add_argument("--judge_model", help="default $JUDGE_MODEL; another family than the judge of training")
    p.add_argument("--rubric", default="story_quality", help="a file of rubrics/ (%(default)s)")
    p.add_argument("--thirds", choices=("on", "off"), default="on",
                   help="judge a story's thirds too: four verdicts instead of one (%(default)s)")
    p.add_argument("--similarity", default="char3", choices=tuple(deviation.SIMILARITIES),
                   help="for diversity; another than training used, which is tfidf (%(default)s)")
    for name, default in writing.SAMPLING.items():
        p.add_argument(f"--{name}", type=type(default), default=default, help="(%(default)s)")
    p.add_argument("--max_new_tokens", type=int, default=0,
                   help="cut stories there (default: 1.6 a word of the band's upper end)")
    p.add_argument("--thinking", choices=("auto", "on", "off"), default="auto", help="auto: as the checkpoint was trained")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("out/eval"))
    return p


def find_writers(args) -> list[writing.Writer]:
    """The models that are asked; ValueError on what cannot be compared."""
    if min(args.lengths, default=1) < 1 or args.samples < 1 or (args.limit or 0) < 0 or args.in_flight < 1:
        raise ValueError("--lengths, --samples and --in_flight are at least 1, --limit at least 0")
    if args.endpoint and not args.models:
        raise ValueError("--endpoint needs --model NAME, the name its server knows")
    writers = [writing.find(name, args.endpoint) for name in args.models or [str(rollout.newest_checkpoint())]]
    labels = [w.label for w in writers]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two models are called {twice[0]}; a model goes by the last part of its name, compare different ones")
    return writers


def default_prompts(writers: list[writing.Writer]) -> Path:
    """Prompts as long as the models were made for."""
    configs = [json.loads((w.folder / "config.json").read_text()) for w in writers if w.folder]
    small = any(c.get("text_config", c).get("hidden_size", 0) < 1024 for c in configs)
    return ROOT / "stories" / ("heldout.jsonl" if small else "eval.jsonl")


def evaluate(args, examples: list[data.Example] | None = None, judge=None) -> dict:
    """Write, judge, measure, report -> what report.json holds. scripts/benchmarks.py brings its own examples and judge."""
    writers = find_writers(args)
    path = Path(args.prompts) if args.prompts else default_prompts(writers)
    on_cpu = not torch.cuda.is_available() and any(w.folder for w in writers)
    few = 0 if not on_cpu else 8 if max(args.lengths, default=0) <= 2000 else 4
    todo = requests_for(examples or data.read_examples(path), args.lengths, few if args.limit is None else args.limit)
    judge = judge or make_judge(args)
    notes = [f"{len(set(map(unit, todo)))} prompts of {path.name}, {args.samples} stories each at each length, "
             f"temperature {args.temperature:g}, top-p {args.top_p:g}",
             describe(judge), f"differences between stories by {args.similarity}"]
    if args.limit is None and few:
        notes.append(f"only the first {few} prompts, since there is no GPU; --limit 0 takes all")
    print(*(f"{w.label}: {w.endpoint or w.folder}" for w in writers), *notes, sep="\n", file=sys.stderr)
    log = Log(args.out / "log.jsonl")
    try:
        stories = write_and_judge(writers, todo, judge, log, args)
    finally:
        log.file.close()
    # One kind of band for the whole sweep, set by its shortest request; from 2,400 words on the two kinds agree.
    report = summarise(stories, bounds_for(min(e.target_words for e in todo)), args.similarity)
    report |= {"notes": notes, "settings": {k: v for k, v in vars(args).items() if k != "out"},
               "judged": "form" if isinstance(judge, judging.OfflineJudge) else "quality"}
    for label, rows in stories.items():  # what scripts/blind.py and scripts/benchmarks.py read
        lines = [json.dumps({k: r[k] for k in ("uid", "prompt", "target_words", "story")}, ensure_ascii=False) for r in rows]
        write_file(args.out / "stories" / (re.sub(r"[^\w.-]", "_", label) + ".jsonl"), "\n".join(lines) + "\n")
    page = report_page(report, stories)
    write_pngs(args.out, page["charts"])
    write_page(args.out / "report.html", page)
    write_file(args.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    return report


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    torch.set_flush_denormal(True)  # strong decays fill the delta rule with denormals, up to 12 x slower on a CPU
    try:
        if argv[:1] == ["watch"]:
            watch(argv[1:])
        else:
            args = parser().parse_args(argv)
            print_report(evaluate(args))
            print(f"\n{args.out}/report.html")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
