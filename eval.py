"""How good, how long, and who says so: stories at requested lengths, measured, judged, and shown to others.

The claim to test is length generalisation: quality and adherence at three times the training length (POLARIS, arXiv
2606.04095). Each model writes stories for the same held-out prompts at each requested length; rules count what can be
counted, a judge grades the rest, and every figure carries a 95 % bootstrap interval over prompts and the number of them.

    python eval.py --length 12000                                         # the newest checkpoint, else the tiny base
    python eval.py --lengths 100 200 400 800 1600 --model stories/tiny-base out/tiny/checkpoints/step_40
    python eval.py --endpoint http://localhost:8000/v1 --model my-27b     # a model behind an OpenAI-compatible server
    python eval.py watch out/tiny                                         # a training run, to look at

Left in out/eval/: report.html, report.json, PNGs, stories/ and log.jsonl, from which a killed run goes on: what was
written or judged is never done twice. Left out, see scripts/benchmarks.py: other benchmarks, pairwise, memorisation.
"""
from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import requests
import torch
from tqdm import tqdm

import data
import deviation
import judge as judging
import model as qwen
import rollout

ROOT = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------------------------------------
# What is asked: held-out prompts, each at each requested length

LONG = re.compile(r"\d[\d,]*(?=[ -]words?[ -]long)")


def at_length(prompt: str, words: int) -> str:
    """The same request with another length."""
    if LONG.search(prompt):
        return LONG.sub(str(words), prompt)
    return prompt.rstrip() + ("" if prompt.rstrip().endswith((".", "!", "?")) else ".") + f" It should be {words} words long."


def unit(example: data.Example) -> str:
    """What makes two requests the same prompt: all but the length. Intervals resample these."""
    return judging.strip_length(example.prompt)


def requests_for(examples: list[data.Example], lengths: list[int], limit: int) -> list[data.Example]:
    """The first `limit` prompts (0: all), at every length in `lengths`, or at their own where none is given."""
    kept = list(dict.fromkeys(map(unit, examples)))
    kept = set(kept[:limit] if limit else kept)
    examples = [e for e in examples if unit(e) in kept]
    if not lengths:
        return examples
    first = {unit(e): e for e in reversed(examples)}  # one request a prompt, whatever lengths the file has it at
    return [replace(first[u], uid=f"{first[u].uid}@{n}", prompt=at_length(first[u].prompt, n), target_words=n, story=None)
            for n in dict.fromkeys(lengths) for u in dict.fromkeys(map(unit, examples))]


SHORT = 500  # words


def bounds_for(target: int, args) -> judging.LengthBounds:
    """The band of a target: as flagged, else the paper's, else the short one, without its absolute minima: those make no
    sense under 500 words, and a sweep that goes below has one kind of band all the way (from 2,400 words on they agree)."""
    bounds = judging.SHORT_BOUNDS if min(target, args.shortest) < SHORT else judging.LengthBounds()
    if args.length_low:
        bounds = replace(bounds, **dict(zip(("below_share", "below_min", "below_max"), args.length_low)))
    if args.length_high:
        bounds = replace(bounds, **dict(zip(("above_share", "above_min", "above_max"), args.length_high)))
    return bounds


# ---------------------------------------------------------------------------------------------------------------------
# What is kept: one append-only file, so that nothing is written, judged or paid for twice

class Log:
    """JSON Lines of {"key": ..., ...}. A line goes to the system at once; a kill costs at most the one being written,
    which is cut off at the next start. ValueError: a damaged line, or another process that writes the same file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.lock = path, {}, threading.Lock()
        self.file = open(path, "ab", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another evaluation is writing to {path}; wait for it or choose another --out") from None
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[:whole].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} line {number} is damaged; delete that line, and what it held is done again") from None
        if whole < len(raw):
            os.truncate(path, whole)

    def put(self, key: str, **row):
        line = json.dumps({"key": key, **row}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self.lock:
            self.file.write(line)
            self.rows[key] = {"key": key, **row}


def key_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


# ---------------------------------------------------------------------------------------------------------------------
# Writing

PATIENCE = 1.0  # seconds before an endpoint is asked a second time, then doubled
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Writer:
    """One model: its label, what identifies it in the log, and where it is."""

    def __init__(self, name: str, endpoint: str | None):
        self.name, self.folder, self.endpoint = name, None, None
        if endpoint and not Path(name).exists():
            self.endpoint, self.label, self.identity = endpoint.rstrip("/"), name.rsplit("/", 1)[-1], [endpoint, name]
            return
        self.folder = qwen.fetch(name)
        qwen.read_config(self.folder)
        files = sorted(p for p in self.folder.iterdir() if p.suffix in (".json", ".safetensors"))
        path = Path(name).resolve()
        self.label = f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name
        # A run that overwrites its checkpoint makes another model of it.
        self.identity = [str(path), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]

    def key(self, request: data.Example, sample: int, args) -> str:
        how = [getattr(args, name) for name in SAMPLING] + [args.seed, args.thinking, args.max_new_tokens]
        return "story " + key_of(self.identity, request.prompt, request.target_words, sample, how)


def seed_of(request: data.Example, sample: int, seed: int) -> int:
    """A story's randomness depends on its request alone, not on what else was asked or how far an earlier start came."""
    return int(key_of(request.prompt, sample, seed)[:8], 16)


def token_limit(target: int, thinking: bool, args) -> int:
    """Room for more words than any band allows at 1.6 tokens a word, so that only a story that is too long is cut. It
    depends on the target alone: the same request gives the same story, whatever else is asked."""
    bounds = judging.SHORT_BOUNDS if target < SHORT else judging.LengthBounds()
    return args.max_new_tokens or int(1.6 * bounds.band(target)[1]) + 64 + 4096 * thinking


def write_local(writer: Writer, todo: list, args, finished):
    """todo: [(key, request, sample)]. Calls finished(key, request, sample, story, ended, tokens) as each story ends."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = data.load_tokenizer(writer.folder)
    model = qwen.load(writer.folder, torch.bfloat16 if device == "cuda" else torch.float32, device, fused=True)
    thinking = rollout.thinks(model) if args.thinking == "auto" else args.thinking == "on"
    for target in sorted({request.target_words for _, request, _ in todo}):
        part = [t for t in todo if t[1].target_words == target]
        prompts = [tokenizer.chat(request.prompt, thinking) for _, request, _ in part]
        limit = token_limit(target, thinking, args)
        room = model.config.max_position_embeddings - max(map(len, prompts))
        if limit > room:
            print(f"{writer.label}: {target:,} words would get up to {limit:,} tokens, but the model has positions for {room:,}; "
                  "stories are cut there", file=sys.stderr)
            limit = room
        done = [0] * len(part)
        what = f"{writer.label} writes {target:,} words x {len(part)}"
        with tqdm(desc=what, unit=" tokens", unit_scale=True, mininterval=1) as bar:
            for i, story, ended in rollout.stream(
                    model, prompts, max_new_tokens=limit, stop_ids=[tokenizer.end_id], slots=args.slots or None,
                    seed=[seed_of(request, sample, args.seed) for _, request, sample in part],
                    **{name: getattr(args, name) for name in SAMPLING}):
                bar.update(len(story.ids) - done[i])
                done[i] = len(story.ids)
                if ended:
                    # The prompt opened <think>; a story whose thought never closed is empty, not its own thought.
                    text = ("<think>" if thinking else "") + tokenizer.decode(story.ids)
                    finished(*part[i], data.split_thinking(text)[1], story.finished, len(story.ids))


def write_endpoint(writer: Writer, todo: list, args, finished):
    """The same through /chat/completions. ValueError when it stops answering: what it gave is kept."""
    secret = os.environ.get("ENDPOINT_API_KEY", "").strip()
    url = writer.endpoint.removesuffix("/chat/completions") + "/chat/completions"
    extra = {name: getattr(args, name) for name, off in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0))
             if getattr(args, name) != off}

    def sign(request):
        if secret:
            request.headers["Authorization"] = f"Bearer {secret}"
        return request

    def one(key, request, sample):
        body = {"model": writer.name, "messages": [{"role": "user", "content": request.prompt}], "temperature": args.temperature,
                "top_p": args.top_p, "max_tokens": token_limit(request.target_words, args.thinking != "off", args),
                "seed": seed_of(request, sample, args.seed) % (1 << 31)}
        # Not in OpenAI's form, but vLLM and llama.cpp take them; a server that does not says so, and nothing is dropped unsaid.
        body |= extra
        why = ""
        for attempt in range(5):
            try:
                answer = requests.post(url, json=body, timeout=(10, 1800), auth=sign, allow_redirects=False)
                if answer.status_code == 200:
                    choice = answer.json()["choices"][0]
                    story = data.split_thinking(choice["message"]["content"] or "")[1]
                    tokens = (answer.json().get("usage") or {}).get("completion_tokens")
                    return key, request, sample, story, choice.get("finish_reason") != "length", tokens
                why = f"HTTP {answer.status_code}"
                if answer.status_code not in (408, 429, 500, 502, 503, 504):
                    break
            except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
                why = type(error).__name__
            time.sleep(min(30, PATIENCE * 2 ** attempt))
        raise ValueError(f"the endpoint {url} gave no story ({why}); what it wrote before is kept in {args.out}/log.jsonl: "
                         "start the same command again when it answers")

    with ThreadPoolExecutor(args.in_flight) as pool, tqdm(total=len(todo), desc=f"{writer.label} writes", unit=" stories") as bar:
        jobs = [pool.submit(one, *item) for item in todo]
        try:
            for job in as_completed(jobs):
                finished(*job.result())
                bar.update()
        except ValueError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
    """(judge, a sentence on what it is)."""
    url, name = args.judge_url or os.environ.get("JUDGE_URL"), args.judge_model or os.environ.get("JUDGE_MODEL")
    if args.judge == "api" or args.judge == "auto" and (url or name):
        judge = judging.Judge(url, name, rubric=judging.load_rubric(args.rubric), cache=args.out / "verdicts.sqlite")
        return judge, f"quality by {judge.name}, rubric {judge.rubric.version}"
    if args.rubric != "story_quality":
        raise ValueError(f"--rubric {args.rubric} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL; "
                         "the offline judge fills one rubric only")
    judge = judging.OfflineJudge()
    return judge, f"quality by {judge.name}, which measures form, not quality; set JUDGE_URL and JUDGE_MODEL for a judge that reads"


def verdict_keys(row: dict, judge, args) -> list[tuple[str, str, str]]:
    """(key, prompt, text) of the verdicts a story needs: the whole, and its thirds."""
    rubric = getattr(judge, "rubric", judging.RUBRIC).version
    parts = thirds(row["story"]) if args.thirds == "on" else []
    texts = [(row["prompt"], row["story"])] + [
        (f"{row['prompt']} (This is part {i} of 3 of a story for that request.)", text) for i, text in enumerate(parts, 1)]
    return [(f"verdict {key_of(judge.name, rubric, prompt, text)}", prompt, text) for prompt, text in texts]


def write_and_judge(writers: list[Writer], todo: list[data.Example], judge, log: Log, args) -> dict[str, list[dict]]:
    """Every story of every model, each judged while others are being written -> {label: stories in order}."""
    futures, faults = {}, []
    bar = tqdm(desc="judged", unit=" texts", position=1, total=0)

    def submit(row):
        for key, prompt, text in verdict_keys(row, judge, args):
            if key in log.rows or key in futures:
                continue
            def keep(future, key=key):
                if future.exception() or future.result() is None:
                    faults.append(key)  # no verdict is no score: asked for again at the next start
                else:
                    log.put(key, verdict=future.result().to_dict())
                bar.update()
            bar.total += 1
            futures[key] = judge.submit(prompt, text)
            futures[key].add_done_callback(keep)

    def lacking(key):
        return key not in log.rows or any(k not in log.rows for k, _, _ in verdict_keys(log.rows[key], judge, args))

    result = {}
    try:
        if hasattr(judge, "check") and any(lacking(w.key(r, s, args)) for w in writers for r in todo for s in range(args.samples)):
            judge.check()  # a judge that does not answer is known before hours of writing
        for writer in writers:
            jobs = [(writer.key(r, s, args), r, s) for r in todo for s in range(args.samples)]

            def finished(key, request, sample, story, ended, tokens, writer=writer):
                log.put(key, model=writer.label, uid=request.uid, unit=unit(request), prompt=request.prompt, sample=sample,
                        target_words=request.target_words, story=story, finished=ended, tokens=tokens)
                submit(log.rows[key])

            missing = [job for job in jobs if job[0] not in log.rows]
            for job in jobs:
                if job[0] in log.rows:
                    submit(log.rows[job[0]])
            if missing:
                (write_endpoint if writer.endpoint else write_local)(writer, missing, args, finished)
            result[writer.label] = [log.rows[key] for key, _, _ in jobs]
        for future in futures.values():
            if error := future.exception():
                raise error
    finally:
        judge.close()
        bar.close()
    if faults:
        print(f"{len(faults)} texts got no verdict ({getattr(judge, 'last_error', '')}); they count in no figure, start again to "
              "ask once more", file=sys.stderr)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# What is measured

def length_score(requested: int, written: int) -> float:
    """LongBench-Write's length score, 0..100 (arXiv 2408.07055)."""
    if written > requested:
        return 100 * max(0.0, 1 - (written / requested - 1) / 3)
    return 100 * max(0.0, 1 - (requested / written - 1) / 2) if written else 0.0


def measure(row: dict, judge, log: Log, args) -> dict:
    """What one story shows; None where there is nothing to measure."""
    target, written, bounds = row["target_words"], data.words(row["story"]), bounds_for(row["target_words"], args)
    low, high = bounds.band(target)
    scores = [log.rows.get(key, {}).get("verdict", {}).get("score") for key, _, _ in verdict_keys(row, judge, args)]
    parts = scores[1:] or [None] * 3
    return {"unit": row["unit"], "target": target, "written": written, "ratio": written / target,
            "in_band": float(low <= written <= high), "length_score": length_score(target, written),
            "early": float(row["finished"] and written < low), "truncated": float(not row["finished"]), "empty": float(not written),
            "repetition": judging.repetition_penalty(row["story"]),
            "compression": number(deviation.compression_ratio([row["story"]])),
            "quality": scores[0], "third_1": parts[0], "third_2": parts[1], "third_3": parts[2],
            "decay": None if None in parts else parts[2] - parts[0]}


COPY = 0.2  # share of word trigrams from which two stories are versions of one


def measure_group(rows: list[dict], args) -> dict:
    """How different the stories of one request are, by a similarity that training did not use."""
    texts = [r["story"] for r in rows if r["story"].strip()]
    d_nn = deviation.distances(texts, args.similarity, equal_length=True)
    many = len(texts) > 1
    return {"unit": rows[0]["unit"], "target": rows[0]["target_words"], "distinct_2": number(deviation.distinct_n(texts, 2)),
            "distance": number(deviation.mean_pairwise_distance(d_nn)),
            "vendi": number(deviation.vendi_score(d_nn)) if many else None,
            "classes": float(deviation.distinct_k(deviation.distances(texts, "jaccard"), COPY)) if many else None,
            "self_bleu": number(deviation.self_bleu(texts)) if many and find_spec("sacrebleu") else None}


def number(x: float) -> float | None:
    return x if math.isfinite(x) else None


# ---------------------------------------------------------------------------------------------------------------------
# Statistics: means over prompts, with bootstrap intervals that resample prompts

METRICS = {  # name: (title, digits)
    "written": ("words", 0), "ratio": ("written / requested", 2), "in_band": ("share in band", 2), "length_score": ("length score", 1),
    "early": ("stopped early", 2), "truncated": ("truncated", 2), "empty": ("empty", 2), "repetition": ("repetition", 3),
    "compression": ("compression ratio", 2), "distance": ("pairwise distance", 3), "vendi": ("Vendi score", 2),
    "classes": ("different stories of a prompt", 1), "distinct_2": ("distinct-2", 3), "self_bleu": ("self-BLEU", 3), "quality": ("quality", 1),
    "third_1": ("quality, beginning", 1), "third_2": ("middle", 1), "third_3": ("end", 1), "decay": ("end - beginning", 1)}
RESAMPLES = 2000
FEW = 30  # prompts; an interval from fewer is itself uncertain


def buckets_of(targets: list[int]) -> list[tuple[str, int, int]]:
    """(label, above, up to) in words: each length asked for, or steps of 2,000 words where there are more than eight."""
    distinct = sorted(set(targets))
    if len(distinct) <= 8:
        return [(f"{t:,}", t - 1, t) for t in distinct]
    return [(f"{low:,}-{low + 2000:,}", low, low + 2000) for low in range(0, distinct[-1], 2000)
            if any(low < t <= low + 2000 for t in distinct)]


def published_bands(buckets) -> list[tuple[str, int, int]]:
    """The three bands of the paper's table, where lengths are so many that buckets are steps; they enter no slope."""
    if all(high - low == 1 for _, low, high in buckets):
        return []
    bands = (("1-4k", 0, 4000), ("4-8k", 4000, 8000), ("8-12k", 8000, 12000))
    return [band for band in bands if band[1] < buckets[-1][2]]


def bootstrap_curves(rows: list[dict], metric: str, buckets, resamples: int = RESAMPLES, seed: int = 0, fine: int | None = None):
    """Means of a metric -> (array [1 + resamples, buckets + 2], prompts [buckets + 2]); row 0 is the sample itself.

    Columns: each bucket, all rows together, and the slope: least squares of the means of the first `fine` buckets (None:
    of all) against 0, 1, 2 ... A draw takes prompts with replacement, each with all its stories at all lengths, since
    those are not independent."""
    rows = [r for r in rows if r.get(metric) is not None]
    units = {u: i for i, u in enumerate(dict.fromkeys(r["unit"] for r in rows))}
    B = len(buckets)
    sums, counts = np.zeros((len(units), B + 1)), np.zeros((len(units), B + 1))
    for r in rows:
        for b in [i for i, (_, low, high) in enumerate(buckets) if low < r["target"] <= high] + [B]:
            sums[units[r["unit"]], b] += r[metric]
            counts[units[r["unit"]], b] += 1
    n = max(1, len(units))
    draws = np.random.default_rng(seed).multinomial(len(units), [1 / n] * n, size=resamples)[:, :len(units)]
    draws = np.vstack([np.ones((1, len(units))), draws])
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    used = np.flatnonzero((counts > 0).any(0)[:B if fine is None else fine])
    slope = np.full((len(draws), 1), np.nan)
    if len(used) > 1:
        x = used - used.mean()
        slope = (means[:, used] @ x / (x @ x))[:, None]
    prompts = (counts > 0).sum(0)
    return np.hstack([means, slope]), [*map(int, prompts), int(prompts[B])]


def figures(rows: list[dict], metric: str, buckets) -> dict[str, dict]:
    """{bucket label | "all" | "slope": {mean, interval, prompts}}, the interval None for fewer than two prompts."""
    wide = published_bands(buckets)
    curves, prompts = bootstrap_curves(rows, metric, [*buckets, *wide], fine=len(buckets))
    out = {}
    for b, label in enumerate([label for label, _, _ in [*buckets, *wide]] + ["all", "slope"]):
        column = curves[1:, b][np.isfinite(curves[1:, b])]  # a draw may hold no prompt of a bucket
        interval = [float(x) for x in np.percentile(column, [2.5, 97.5])] if prompts[b] > 1 and len(column) else None
        out[label] = {"mean": number(float(curves[0, b])), "interval": interval if math.isfinite(curves[0, b]) else None,
                      "prompts": prompts[b]}
    return out


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


def summarise(stories: dict[str, list[dict]], judge, log: Log, args) -> dict:
    """Everything that report.json says, from the stories of each model."""
    measured, targets = {}, []
    for label, rows in stories.items():
        groups = {}
        for row in rows:
            groups.setdefault((row["unit"], row["target_words"]), []).append(row)
        measured[label] = [measure(r, judge, log, args) for r in rows] + [measure_group(g, args) for g in groups.values()]
        targets += [r["target_words"] for r in rows]
    buckets = buckets_of(targets)
    report = {"models": list(stories), "buckets": [label for label, _, _ in buckets],
              "columns": [b[0] for b in [*buckets, *published_bands(buckets)]] + ["all", "slope"] * (len(buckets) > 1),
              "figures": {label: {m: figures(rows, m, buckets) for m in METRICS} for label, rows in measured.items()},
              "differences": [], "warnings": []}
    labels = list(stories)
    for i, j in [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]:
        report["differences"].append({"of": labels[j], "minus": labels[i], "figures": {
            m: figures(differences(measured[labels[i]], measured[labels[j]], m), m, buckets)
            for m in ("quality", "ratio", "in_band", "length_score", "repetition", "distance")}})
    n = min(f["ratio"][b]["prompts"] for f in report["figures"].values() for b in report["buckets"])
    if n < FEW:
        report["warnings"].append(f"only {n} prompts {'in some bucket' if len(buckets) > 1 else 'in all'}: intervals from fewer than {FEW} "
                                  "are too narrow, and no small difference can be seen")
    for label, rows in stories.items():
        unjudged = sum(verdict_keys(r, judge, args)[0][0] not in log.rows for r in rows)
        if unjudged:
            report["warnings"].append(f"{label}: {unjudged} of {len(rows)} stories have no verdict and count in no quality")
    return report


def show(figure: dict, digits: int, prompts: int | None = None) -> str:
    """The mean, its interval where there is one, and the number of prompts where it is not `prompts`."""
    if figure["mean"] is None:
        return "-"
    # + 0.0: no -0.00
    mean, *interval = (f"{round(x, digits) + 0.0:,.{digits}f}" for x in (figure["mean"], *(figure["interval"] or ())))
    return (mean + (f" [{', '.join(interval)}]" if interval else "")
            + (f" n={figure['prompts']}" if prompts not in (None, figure["prompts"]) else ""))


def print_table(report: dict):
    for label, by_metric in report["figures"].items():
        print(f"\n{label}")
        names = ["written", "ratio", "in_band", "repetition", "distance", "quality"]
        table = [["requested", *(METRICS[m][0] for m in names), "prompts"]]
        for bucket in report["columns"]:
            n = by_metric["ratio"][bucket]["prompts"]
            table.append([bucket, *(show(by_metric[m][bucket], METRICS[m][1] + (bucket == "slope"), n) for m in names), str(n)])
        widths = [max(map(len, column)) for column in zip(*table)]
        for line in table:
            print("  ".join(cell.rjust(w) for cell, w in zip(line, widths)))


# ---------------------------------------------------------------------------------------------------------------------
# What is shown: one page without a server or a network, report.json, PNGs

COLOURS = ("#2f6f9f", "#c05a2e", "#4d8a3d", "#8a4f9e", "#a8892c", "#3b8f8c", "#b0476b", "#6b6b6b")


def write_file(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def write_page(path: Path, page: dict):
    """scripts/report.html with the page's data inside, as JSON in which no tag can begin; its script shows text as text."""
    template = (ROOT / "scripts" / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    blob = json.dumps(page, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    write_file(path, template.replace("__SCRIPT_HASH__", f"sha256-{digest}", 1).replace("__DATA__", blob, 1))


def story_item(label: str, story: str, target: int, facts: dict, verdict: dict | None) -> dict:
    """A story for the page's reader: numbers beside it, and what the verdict cites, to be marked in the text."""
    verdict = verdict or {}
    quotes = [{"text": q, "key": key, "why": verdict.get("why", {}).get(key, "")}
              for key, cited in verdict.get("quotes", {}).items() for q in cited]
    scores = [[key, value, verdict.get("why", {}).get(key, "")] for key, value in verdict.get("scores", {}).items()]
    return {"label": label, "text": story, "facts": facts | {"words": f"{data.words(story):,} of {target:,}"},
            "quotes": quotes, "scores": scores}


def report_page(report: dict, stories: dict[str, list[dict]], judge, log: Log, args) -> dict:
    labels, buckets = report["models"], report["buckets"]
    x = [float(np.mean([r["target_words"] for r in stories[labels[0]] if low < r["target_words"] <= high]))
         for _, low, high in buckets_of([r["target_words"] for r in stories[labels[0]]])]
    def point(at, figure):
        low, high = figure["interval"] or (None, None)
        return {"x": at, "y": figure["mean"], "low": low, "high": high}
    def chart(metric, title, **more):
        series = [{"name": label, "points": [point(a, f) for a, f in zip(x, (report["figures"][label][metric][b] for b in buckets))
                                             if f["mean"] is not None]} for label in labels]
        return {"title": title, "x": "words requested", "series": series, **more}
    within = {"title": "Quality within a story", "x": "third", "series": [{"name": label, "points": [
        point(i, f) for i in (1, 2, 3) if (f := report["figures"][label][f"third_{i}"]["all"])["mean"] is not None]} for label in labels]}
    keys = report["columns"]
    def table(title, by_metric, names, caption=""):
        n = {k: by_metric["ratio"][k]["prompts"] for k in keys}
        rows = [[METRICS[m][0], *(show(by_metric[m][k], METRICS[m][1] + (k == "slope"), n[k]) for k in keys)]
                for m in names if by_metric[m]["all"]["mean"] is not None]
        return {"title": title, "caption": caption, "columns": ["", *("slope per bucket" if k == "slope" else k for k in keys)],
                "rows": [*rows, ["prompts", *map(str, n.values())]]}
    tables = [table(label, report["figures"][label], METRICS) for label in labels]
    tables += [table(f"{d['of']} minus {d['minus']}", d["figures"], d["figures"], "paired by request") for d in report["differences"]]
    groups = {}
    for label in labels:
        for row in stories[label]:
            verdict = log.rows.get(verdict_keys(row, judge, args)[0][0], {}).get("verdict")
            facts = {"quality": None if verdict is None else round(verdict["score"], 1),
                     "ended": "by itself" if row["finished"] else "cut"}
            name = label if args.samples == 1 else f"{label}, story {row['sample'] + 1}"
            groups.setdefault((row["target_words"], row["prompt"]), []).append(
                story_item(name, row["story"], row["target_words"], facts, verdict))
    return {"title": "How good, how long", "notes": report["notes"], "warnings": report["warnings"],
            "charts": [chart("quality", "Quality"),
                       chart("ratio", "Words written / requested", band=report["band"], reference=1), within],
            "tables": tables, "reader": {"title": "The stories", "groups": [
                {"step": f"{target:,} words", "label": prompt, "items": items} for (target, prompt), items in sorted(groups.items())]}}


def write_pngs(folder: Path, charts: list[dict]):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    for number_, chart in enumerate(charts):
        if not any(s["points"] for s in chart["series"]):
            continue
        fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
        for colour, series in zip(COLOURS * 9, chart["series"]):
            xs, ys = [p["x"] for p in series["points"]], [p["y"] for p in series["points"]]
            ax.plot(xs, ys, "o-", ms=3, color=colour, label=series["name"])
            if any(p["low"] is not None for p in series["points"]):
                edges = ([p["y"] if p[k] is None else p[k] for p in series["points"]] for k in ("low", "high"))
                ax.fill_between(xs, *edges, color=colour, alpha=.15, lw=0)
        if chart.get("band"):
            at, low, high = zip(*chart["band"])
            ax.fill_between(at, low, high, color="#888", alpha=.12, lw=0)
        ax.set(xlabel=chart["x"], title=chart["title"])
        ax.grid(alpha=.25)
        ax.legend(fontsize=8)
        name = re.sub(r"\W+", "_", chart["title"].lower()).strip("_") + ".png"
        fig.savefig(folder / f".{name}", dpi=200, format="png")
        os.replace(folder / f".{name}", folder / name)
        plt.close(fig)


# ---------------------------------------------------------------------------------------------------------------------
# A training run, to look at

WATCHED = {  # chart: metrics of train.py
    "Reward": ("reward/mean", "hri/reward"), "Judged quality / 100": ("reward/quality",),
    "Penalties": ("reward/length", "reward/repetition", "reward/blank"),
    "Human row: weight and weighted advantage": ("hri/weight", "hri/advantage"), "Deviation": ("deviation/mean",),
    "Length": ("length/ratio", "length/in_band", "truncated"), "Entropy": ("entropy",), "Loss": ("loss",),
    "Gradient norm": ("grad_norm",), "Sampler against trainer, per token": ("mismatch/mean", "mismatch/k3", "mismatch/clipped"),
    "Tokens per second": ("rollout/tokens_per_second", "train/tokens_per_second"),
    "Judge: failures": ("judge/failed",), "Judge: dollars": ("judge/dollars",), "Seconds a step": ("seconds",)}
PAGE_BYTES = 40_000_000  # of stories; a browser opens more, but not on a phone


def read_metrics(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the folder of a training run, such as out/tiny")
    whole = path.read_bytes().rpartition(b"\n")[0]  # a running training may be half-way through its last line
    try:
        return [json.loads(line) for line in whole.split(b"\n") if line.strip()]
    except ValueError:
        raise ValueError(f"{path} holds a line that is not JSON; give the folder of a training run") from None


def run_page(folder: Path, steps: list[int]) -> dict:
    metrics = [m for m in read_metrics(folder / "metrics.jsonl") if m.get("step", -1) >= 0]
    if not metrics:
        raise ValueError(f"{folder}/metrics.jsonl has no finished step yet; look again in a while")
    charts, known = [], {name for names in WATCHED.values() for name in names} | {"step"}
    others = [name for name in dict.fromkeys(n for m in metrics for n in m) if name not in known]
    for title, names in [*WATCHED.items(), *((name, (name,)) for name in others)]:
        series = [{"name": name, "points": [{"x": m["step"], "y": m[name], "low": None, "high": None} for m in metrics
                                            if isinstance(m.get(name), (int, float)) and math.isfinite(m[name])]} for name in names]
        if series := [s for s in series if s["points"]]:
            charts.append({"title": title, "x": "step", "series": series})
    files = {int(p.stem.removeprefix("step_")): p for p in sorted((folder / "rollouts").glob("step_*.jsonl"))}
    if missing := sorted(set(steps) - set(files)):
        raise ValueError(f"{folder}/rollouts has no step {missing[0]}; "
                         f"it has {min(files, default='none')} to {max(files, default='none')}")
    chosen, notes = steps or sorted(files), []
    total = sum(files[s].stat().st_size for s in chosen)
    if total > PAGE_BYTES and not steps:  # evenly thinned, first and last kept
        keep = max(2, int(len(chosen) * PAGE_BYTES / total))
        chosen = sorted({chosen[round(i * (len(chosen) - 1) / (keep - 1))] for i in range(keep)})
        notes = [f"stories of {len(chosen)} of {len(files)} steps, to keep this page small; --steps N shows others"]
    groups = []
    for step in chosen:
        by_prompt = {}
        for e in data.read_episodes(files[step]):
            by_prompt.setdefault(e.example.uid, []).append(e)
        for rows in by_prompt.values():
            items = []
            for e in sorted(rows, key=lambda e: -e.advantage):
                facts = {"advantage": round(e.advantage, 3), "reward": None if e.reward is None else round(e.reward, 3),
                         **{name: round(value, 3) for name, value in e.rewards.items()},
                         "ended": "by itself" if e.finished else "cut"}
                items.append(story_item("human" if e.is_human else "policy", e.story, e.example.target_words, facts, e.verdict))
            groups.append({"step": f"step {step}", "label": rows[0].example.prompt, "items": items})
    first, last = metrics[:5], metrics[-5:]
    names = [n for n in dict.fromkeys(n for ns in WATCHED.values() for n in ns)]

    def average(part, name):
        values = [m[name] for m in part if isinstance(m.get(name), (int, float)) and math.isfinite(m[name])]
        return f"{np.mean(values):.4g}" if values else "-"
    rows = [[n, average(first, n), average(last, n)] for n in names if average(metrics, n) != "-"]
    return {"title": f"Run {folder.name}", "notes": notes + [f"{len(metrics)} steps, {metrics[0]['step']} to {metrics[-1]['step']}"],
            "warnings": [], "charts": charts, "reader": {"title": "Groups, sorted by advantage", "groups": groups},
            "tables": [{"title": "First and last steps", "caption": f"means of {len(first)} steps each",
                        "columns": ["", "first", "last"], "rows": rows}]}


# ---------------------------------------------------------------------------------------------------------------------
# Command line

def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="eval.py", description="Write stories at requested lengths, measure and judge them, and report.",
                                epilog="python eval.py watch RUN [--steps N ...]: a page about a training run")
    p.add_argument("--length", "--lengths", dest="lengths", type=int, nargs="+", default=[], metavar="N",
                   help="words to request; default: what each prompt says itself")
    p.add_argument("--model", "--checkpoint", dest="models", nargs="+", default=[], metavar="MODEL",
                   help="checkpoint folders or hub ids, or names behind --endpoint (default: newest under out/, else stories/tiny-base)")
    p.add_argument("--endpoint", metavar="URL",
                   help="an OpenAI-compatible server for the models that are no folders; key: ENDPOINT_API_KEY")
    p.add_argument("--in_flight", type=int, default=8, help="requests to the endpoint at the same time (%(default)s)")
    p.add_argument("--prompts", metavar="FILE",
                   help="JSON Lines of prompts (default: stories/heldout.jsonl, for larger models stories/eval.jsonl)")
    p.add_argument("--limit", type=int,
                   help="only the first N prompts, 0: all (default on a CPU: 8, above 2,000 words 4; else all)")
    p.add_argument("--samples", type=int, default=2, help="stories a request; diversity needs two (%(default)s)")
    p.add_argument("--judge", choices=("auto", "api", "offline"), default="auto",
                   help="auto: api where JUDGE_URL is set, else offline (form only)")
    p.add_argument("--judge_url", help="default $JUDGE_URL; the key comes from JUDGE_API_KEY alone")
    p.add_argument("--judge_model", help="default $JUDGE_MODEL; another family than the judge of training")
    p.add_argument("--rubric", default="story_quality", help="a file of rubrics/ (%(default)s)")
    p.add_argument("--thirds", choices=("on", "off"), default="on",
                   help="judge the thirds of a story too: four verdicts instead of one (%(default)s)")
    p.add_argument("--similarity", default="char3", choices=tuple(deviation.SIMILARITIES),
                   help="for diversity; another than training used, which is tfidf (%(default)s)")
    p.add_argument("--length_low", type=float, nargs=3, metavar=("SHARE", "LEAST", "MOST"),
                   help="the band begins at T - clamp(SHARE T, LEAST, MOST)")
    p.add_argument("--length_high", type=float, nargs=3, metavar=("SHARE", "LEAST", "MOST"),
                   help="and ends at T + clamp(...); default: the paper's, or, where a length under 500 is asked, one for short stories")
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top_p", type=float, default=0.95)
    p.add_argument("--top_k", type=int, default=0)
    p.add_argument("--min_p", type=float, default=0.0)
    p.add_argument("--repetition_penalty", type=float, default=1.0)
    p.add_argument("--max_new_tokens", type=int, default=0,
                   help="cut stories there (default: 1.6 tokens a word of the band's upper end)")
    p.add_argument("--thinking", choices=("auto", "on", "off"), default="auto", help="auto: as the checkpoint was trained")
    p.add_argument("--slots", type=int, default=0, help="stories written at the same time (0: as memory allows)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("out/eval"))
    return p


def check(args, writers):
    """Every impossible combination, before anything is written."""
    if min(args.lengths, default=1) < 1 or args.samples < 1 or (args.limit or 0) < 0 or args.in_flight < 1:
        raise ValueError("--lengths, --samples and --in_flight are at least 1, --limit at least 0")
    labels = [w.label for w in writers]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two models are called {twice[0]}; a model is compared with others, and by the last part of its name")


def default_prompts(writers) -> Path:
    """Prompts as long as the models were made for."""
    local = [json.loads((w.folder / "config.json").read_text()) for w in writers if w.folder]
    sizes = [c.get("text_config", c).get("hidden_size", 0) for c in local]
    long = ROOT / "stories" / "eval.jsonl"
    return long if long.exists() and all(s >= 1024 for s in sizes) else ROOT / "stories" / "heldout.jsonl"


def evaluate(args, examples: list[data.Example] | None = None, judge=None) -> dict:
    """Write, judge, measure, report -> what report.json holds. scripts/benchmarks.py brings its own examples and judge."""
    names = args.models or [str(rollout.newest_checkpoint())]
    if args.endpoint and not args.models:
        raise ValueError("--endpoint needs --model NAME, the name its server knows")
    writers = [Writer(name, args.endpoint) for name in names]
    check(args, writers)
    on_cpu = not torch.cuda.is_available() and any(w.folder for w in writers)
    longest = max(args.lengths, default=0)
    limit = args.limit if args.limit is not None else 0 if not on_cpu else 8 if longest <= 2000 else 4
    path = Path(args.prompts) if args.prompts else default_prompts(writers)
    todo = requests_for(examples or data.read_examples(path), args.lengths, limit)
    args.shortest = min(e.target_words for e in todo)
    judge, who = (judge, f"quality by {judge.name}, rubric {judge.rubric.version}") if judge else make_judge(args)
    notes = [f"{len(set(map(unit, todo)))} prompts of {path.name}, {args.samples} stories each, temperature {args.temperature:g}, "
             f"top-p {args.top_p:g}", who, f"differences between stories by {args.similarity}"]
    if args.limit is None and limit:
        notes.append(f"only the first {limit} prompts, since there is no GPU; --limit 0 takes all")
    print("\n".join(f"{w.label}: {w.endpoint or w.folder}" for w in writers), *notes, sep="\n", file=sys.stderr)
    log = Log(args.out / "log.jsonl")
    try:
        stories = write_and_judge(writers, todo, judge, log, args)
    finally:
        log.file.close()
    report = summarise(stories, judge, log, args) | {"notes": notes, "settings": {k: v for k, v in vars(args).items() if k != "out"}}
    targets = sorted({e.target_words for e in todo})
    report["band"] = [[t, *(edge / t for edge in bounds_for(t, args).band(t))] for t in targets]
    page = report_page(report, stories, judge, log, args)
    for label, rows in stories.items():  # what scripts/blind.py and other tools read
        lines = [json.dumps({k: r[k] for k in ("uid", "prompt", "target_words", "story")}, ensure_ascii=False) for r in rows]
        write_file(args.out / "stories" / (re.sub(r"[^\w.-]", "_", label) + ".jsonl"), "\n".join(lines) + "\n")
    write_file(args.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    write_pngs(args.out, page["charts"])
    write_page(args.out / "report.html", page)
    return report


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    torch.set_flush_denormal(True)  # strong decays fill the delta rule with denormals, up to 12 x slower on a CPU
    try:
        if argv[:1] == ["watch"]:
            p = argparse.ArgumentParser(prog="eval.py watch",
                                        description="A page about a training run: curves, and the groups of any step.")
            p.add_argument("run", type=Path, help="such as out/tiny")
            p.add_argument("--steps", type=int, nargs="+", default=[], metavar="N",
                           help="whose stories to show (default: all that fit on a page)")
            args = p.parse_args(argv[1:])
            write_page(args.run / "report.html", run_page(args.run, args.steps))
            print(args.run / "report.html")
            return 0
        args = parser().parse_args(argv)
        report = evaluate(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(report)
    for warning in report["warnings"]:
        print(f"note: {warning}")
    print(f"\n{args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
