"""How good and how long: stories at requested lengths, written, judged, measured.

The claim to test is length generalisation: quality and adherence at three times the training length (POLARIS,
arXiv 2606.04095). Each model writes stories for the same held-out prompts at each requested length. Rules count
what can be counted, a judge grades the rest, and every figure carries a 95 % bootstrap interval over prompts.

    python eval.py --length 12000                  # the newest checkpoint, else the tiny base
    python eval.py --lengths 100 200 400 --model stories/tiny-base out/tiny/checkpoints/step_000045
    python eval.py --endpoint http://localhost:8000/v1 --model my-27b  # behind an OpenAI-compatible server
    torchrun --nproc_per_node=4 eval.py --length 12000  # requests shared over processes, one report
    python eval.py watch out/tiny                  # a training run, to look at (scripts/watch.py)

Each evaluation has a folder under out/eval/, named for what was asked and of whom: report.html, report.json,
pictures, stories/ and log.jsonl. A killed evaluation goes on from its log: no work is done twice. Left out: the
page (scripts/report.py), other benchmarks, pairwise comparison, memorisation (scripts/benchmarks.py and others).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import data
import deviation
import judge as judging
import model as qwen
import rollout
from lib import files, processes, stats, sweep
from lib.asking import Pending, complete_all
from lib.endpoint import Endpoint
from lib.flags import add_fields, exits_cleanly, opt
from lib.processes import LOCAL_RANK, MAIN, RANK, WORLD
from lib.text import split_evenly

ROOT = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------------------------
# What is asked: held-out prompts, each at each requested length

LONG = re.compile(r"\d[\d,]*(?=[ -]words?[ -]long)")
SHORT = 500  # words; the paper's bands have absolute minima that make no sense for less
BANDS = {"paper": judging.LengthBounds(), "short": judging.SHORT_BOUNDS}


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
    """The first `limit` prompts (0: all), at each of `lengths`, or at their own where none is given."""
    kept = list(dict.fromkeys(map(unit, examples)))
    kept = kept[:limit] if limit else kept
    if not lengths:
        return [e for e in examples if unit(e) in set(kept)]
    first = {unit(e): e for e in reversed(examples)}  # one request per prompt, whatever lengths the file has
    found = []
    for n in dict.fromkeys(lengths):
        for e in (first[u] for u in kept):
            at = at_length(e.prompt, n)
            found.append(replace(e, uid=f"{e.uid}@{n}", prompt=at, target_words=n, story=None))
    return found


def bounds_of(bands: str, target: int) -> judging.LengthBounds:
    """The band of a length: the one named by --bands, or the one made for stories of that length."""
    return BANDS[("short" if target < SHORT else "paper") if bands == "auto" else bands]


# ------------------------------------------------------------------------------------------------------------
# Who writes: a checkpoint on this machine, or a model behind an endpoint

SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def key_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


class Job(NamedTuple):
    """One story to write. Its randomness depends on its request alone, not on what else is asked."""

    key: str  # in the log
    request: data.Example
    sample: int
    seed: int
    tokens: int  # the story is cut there; a thought gets THOUGHT more


THOUGHT = 4096  # tokens


@dataclass
class Writer:
    """A model: what --model said, its name in the report, what tells it from any other, where it is."""

    name: str
    label: str
    identity: list
    folder: Path | None = None
    endpoint: str = ""

    def jobs(self, todo: list[data.Example], args) -> list[Job]:
        how = [getattr(args, name) for name in SAMPLING] + [args.seed, args.thinking, args.max_new_tokens]
        how += [args.bands] * (args.bands != "auto")
        found = []
        for request in todo:
            target = request.target_words
            # 1.6 tokens per word are plenty.
            tokens = args.max_new_tokens or int(1.6 * bounds_of(args.bands, target).band(target)[1]) + 64
            for sample in range(args.samples):
                key = "story " + key_of(self.identity, request.prompt, target, sample, how)
                seed = int(key_of(request.prompt, sample, args.seed)[:8], 16)
                found.append(Job(key, request, sample, seed, tokens))
        return found


def find_writer(name: str, endpoint: str | None) -> Writer:
    """FileNotFoundError or ValueError where `name` is not a checkpoint, and no endpoint is given."""
    if endpoint and not Path(name).exists():
        return Writer(name, name.rsplit("/", 1)[-1], [endpoint, name], endpoint=endpoint)
    folder, path = qwen.fetch(name), Path(name).resolve()
    qwen.read_config(folder)
    parts = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))
    # A run that overwrites its checkpoint makes another model of it.
    identity = [str(path), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in parts]]
    label = f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name
    return Writer(name, label, identity, folder)


def stop_ids(folder: Path, tokenizer: data.Tokenizer) -> list[int]:
    """Every token that ends a story of this model."""
    config = folder / "generation_config.json"
    ends = json.loads(config.read_text()).get("eos_token_id") if config.is_file() else None
    return sorted({tokenizer.end_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])})


def write_local(writer: Writer, jobs: list[Job], args, grew):
    """Yields (job, story without its thought, whether it ended by itself, tokens) as each story ends, in any
    order. grew(n): n more tokens have been written."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", LOCAL_RANK) if on_gpu else torch.device("cpu")
    tokenizer = data.load_tokenizer(writer.folder)
    model = qwen.load(writer.folder, torch.bfloat16 if on_gpu else torch.float32, device, fused=True)
    if not on_gpu:
        processes.choose_threads(sum(p.numel() for p in model.parameters()))
    thinking = rollout.thinks(model) if args.thinking == "auto" else args.thinking == "on"
    how = {name: getattr(args, name) for name in SAMPLING} | {"stop_ids": stop_ids(writer.folder, tokenizer)}
    for target in sorted({job.request.target_words for job in jobs}):
        part = [job for job in jobs if job.request.target_words == target]
        prompts = [tokenizer.chat(job.request.prompt, thinking) for job in part]
        limit = part[0].tokens + (0 if args.max_new_tokens else THOUGHT * thinking)
        room = model.config.max_position_embeddings - max(map(len, prompts))
        if limit > room:
            say(
                f"{writer.label}: {target:,} words would get up to {limit:,} tokens, but the model has positions "
                f"for {room:,}; stories are cut there"
            )
        seen = [0] * len(part)
        seeds = [job.seed for job in part]
        for i, story, ended in rollout.stream(
            model, prompts, max_new_tokens=min(limit, room), seed=seeds, **how
        ):
            grew(len(story.ids) - seen[i])
            seen[i] = len(story.ids)
            if ended:
                # The prompt opened <think>: a story whose thought never closed is empty.
                text = ("<think>" if thinking else "") + tokenizer.decode(story.ids)
                yield part[i], data.split_thinking(text)[1], story.finished, len(story.ids)


def write_endpoint(writer: Writer, jobs: list[Job], args, grew):
    """As `write_local`. ValueError at the end if the server did not answer."""
    line = Endpoint(
        writer.endpoint,
        writer.name,
        os.environ.get("ENDPOINT_API_KEY", ""),
        **{"temperature": None, "top_p": None, "max_tokens": None, "in_flight": args.in_flight},
        **{"timeouts": (10, 1800), "deadline": 3600, "retries": 4},  # seconds; a whole story may take long
    )
    # What is off is sent too: a server's own defaults would change the figures.
    how, more = {name: getattr(args, name) for name in SAMPLING}, THOUGHT
    if args.thinking != "auto":
        how["chat_template_kwargs"] = {"enable_thinking": args.thinking == "on"}
    if args.max_new_tokens or args.thinking == "off":
        more = 0
    questions = []
    for job in jobs:
        params = how | {"max_tokens": job.tokens + more, "seed": job.seed % (1 << 31)}
        questions.append(([{"role": "user", "content": job.request.prompt}], params))
    for i, answer in complete_all(line, questions, spare=("top_k", "min_p", "repetition_penalty", "seed")):
        cut = answer.finish == "length"
        # A server's template may open <think>: a thought that was cut is not a story.
        opened = cut and args.thinking == "on" and not answer.thought and "<think>" not in answer.text
        grew(answer.tokens or 0)
        text = ("<think>" if opened else "") + answer.text
        yield jobs[i], data.split_thinking(text)[1], not cut, answer.tokens
    if line.spared:
        say(f"{writer.label}: the server refuses {', '.join(sorted(line.spared))}; its own values applied")


def say(text: str):
    """One line of the first process."""
    if MAIN:
        tqdm.write(text, file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------
# Judging

THIRDS_FROM = 150  # words; a third of less is not a passage


def make_judge(args):
    """A judge that reads where one is set up, else the offline one. ValueError: it cannot do what is asked."""
    url, name = (
        args.judge_url or os.environ.get("JUDGE_URL"),
        args.judge_model or os.environ.get("JUDGE_MODEL"),
    )
    if args.judge == "api" or args.judge == "auto" and (url or name):
        rubric = judging.load_rubric(args.rubric)
        return judging.Judge(url, name, rubric=rubric, cache=Path(args.out, "verdicts.sqlite"))
    if args.rubric != "story_quality":
        raise ValueError(
            f"--rubric {args.rubric} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL; "
            "the offline judge fills one rubric only"
        )
    return judging.OfflineJudge()


def describe(judge) -> str:
    if isinstance(judge, judging.OfflineJudge):
        return (
            f"judged by {judge.name}, which measures form, not quality; for a judge that reads set JUDGE_URL, "
            "JUDGE_MODEL"
        )
    return f"quality by {judge.name}, rubric {judge.rubric.version}"


def texts_of(row: dict, judge, args) -> list[tuple[str, str, str]]:
    """(key, prompt, text) of what is judged of a story: the whole and, where it is long enough, its thirds."""
    prompt, texts, parts = row["prompt"], [(row["prompt"], row["story"])], []
    if args.thirds == "on" and data.words(row["story"]) >= THIRDS_FROM:
        parts = split_evenly(row["story"], 3, data.words)
    for i, part in enumerate(parts, 1):
        texts.append((f"{prompt} (This is part {i} of 3 of a story for that request.)", part))
    how = judge.name, getattr(judge, "rubric", judging.RUBRIC).version
    return [(f"verdict {key_of(*how, prompt, text)}", prompt, text) for prompt, text in texts]


def write_and_judge(
    writers: list[Writer], todo: list[data.Example], judge, log, args
) -> dict[str, list[dict]]:
    """Every story of every model, in order: what the log keeps of it, and "verdicts" of it and of its thirds.

    Each process writes and judges its share, then all of them have all stories."""
    jobs = {w.label: w.jobs(todo, args) for w in writers}
    # What is missing is dealt out first, so that every process has as much of it.
    shares = {k: sorted(part, key=lambda job: job.key in log.rows)[RANK::WORLD] for k, part in jobs.items()}
    missing = sum(job.key not in log.rows for share in shares.values() for job in share)
    processes.gather([])  # nothing is written before all have read what there is
    if missing and hasattr(judge, "check"):
        judge.check()  # a judge that does not answer is known before hours of writing
    verdicts, tokens = Pending(log, "verdict", judging.Verdict.to_dict), 0
    bar = tqdm(total=missing, unit=" stories", miniters=0, mininterval=0.5, disable=not MAIN)

    def progress(more_tokens=0, stories=0):
        nonlocal tokens
        tokens += more_tokens
        bar.set_postfix_str(f"{tokens:,} tokens, {len(verdicts.waiting)} texts with the judge", refresh=False)
        bar.update(stories)

    def ask(row):
        for key, prompt, text in texts_of(row, judge, args):
            verdicts.ask(key, judge.submit, prompt, text)

    with bar:
        for writer in writers:
            bar.set_description(f"{writer.label} writes")
            for row in write_share(writer, shares[writer.label], log, args, progress):
                ask(row)
                list(verdicts.keep())
        for _ in verdicts.keep(wait=True):
            progress()
    told = []
    for job in (job for share in shares.values() for job in share):
        found = [
            log.rows.get(key, {}).get("verdict") for key, _, _ in texts_of(log.rows[job.key], judge, args)
        ]
        told.append((job.key, log.rows[job.key] | {"verdicts": found}))
    rows = dict(processes.gather(told))
    failed = processes.gather([(len(verdicts.failed), judge.last_error)] if verdicts.failed else [])
    if failed:
        say(
            f"{sum(n for n, _ in failed)} texts got no verdict ({failed[0][1]}); they count in no figure, "
            "start again to ask once more"
        )
    return {label: [rows[job.key] for job in part] for label, part in jobs.items()}


def write_share(writer: Writer, share: list[Job], log: files.Journal, args, progress):
    """Yields the log's row of each story of a share: what is there, then what is written now."""
    missing = [job for job in share if job.key not in log.rows]
    yield from (log.rows[job.key] for job in share if job.key in log.rows)
    write = write_endpoint if writer.endpoint else write_local
    for job, story, finished, tokens in write(writer, missing, args, progress) if missing else ():
        request = job.request
        row = {"model": writer.label, "uid": request.uid, "unit": unit(request), "prompt": request.prompt}
        row |= {"sample": job.sample, "target_words": request.target_words}
        log.put(job.key, **row, story=story, finished=finished, tokens=tokens)
        progress(stories=1)
        yield log.rows[job.key]


# ------------------------------------------------------------------------------------------------------------
# What is measured

METRICS = ("quality", "third_1", "third_2", "third_3", "decay", "written", "ratio", "in_band", "length_score")
METRICS += ("early", "truncated", "empty", "repetition", "compression", "distinct_2", "distance", "vendi")
PUBLISHED = (("1-4k", 0, 4000), ("4-8k", 4000, 8000), ("8-12k", 8000, 12000))  # of the paper's table
COMPARED = ("quality", "ratio", "in_band", "length_score", "repetition", "distance")  # between models


def length_score(requested: int, written: int) -> float:
    """LongBench-Write's length score, 0..100 (arXiv 2408.07055)."""
    if written > requested:
        return 100 * max(0.0, 1 - (written / requested - 1) / 3)
    return 100 * max(0.0, 1 - (requested / written - 1) / 2) if written else 0.0


def measure(row: dict, bounds: judging.LengthBounds) -> dict:
    """What one story shows; None where there is nothing to measure."""
    target, written = row["target_words"], data.words(row["story"])
    low, high = bounds.band(target)
    quality, *parts = [verdict and verdict["score"] for verdict in row["verdicts"]]
    first, second, third = parts or [None] * 3
    return {
        "unit": row["unit"],
        "target": target,
        "written": written,
        "ratio": written / target,
        "in_band": float(low <= written <= high),
        "length_score": length_score(target, written),
        "early": float(row["finished"] and written < low),
        "truncated": float(not row["finished"]),
        "empty": float(not written),
        "repetition": judging.repetition_penalty(row["story"]),
        "compression": stats.finite(deviation.compression_ratio([row["story"]])),
        "quality": quality,
        "third_1": first,
        "third_2": second,
        "third_3": third,
        "decay": None if first is None or third is None else third - first,
    }


def measure_group(rows: list[dict], similarity: str) -> dict:
    """How different the stories of one request are, by a similarity that training did not use."""
    texts = [r["story"] for r in rows if r["story"].strip()]
    d_nn = deviation.distances(texts, similarity, equal_length=True)
    return {
        "unit": rows[0]["unit"],
        "target": rows[0]["target_words"],
        "distinct_2": stats.finite(deviation.distinct_n(texts, 2)),
        "distance": stats.finite(deviation.mean_pairwise_distance(d_nn)),
        "vendi": stats.finite(deviation.vendi_score(d_nn)) if len(texts) > 1 else None,
    }


def summarise(stories: dict[str, list[dict]], bounds: judging.LengthBounds, similarity: str) -> dict:
    """Everything that report.json says of the stories of each model."""
    measured, warnings = {}, []
    for label, rows in stories.items():
        groups = {}
        for row in rows:
            groups.setdefault((row["unit"], row["target_words"]), []).append(row)
        measured[label] = [measure(row, bounds) for row in rows]
        measured[label] += [measure_group(group, similarity) for group in groups.values()]
        if unjudged := sum(row["verdicts"][0] is None for row in rows):
            warnings.append(
                f"{label}: {unjudged} of {len(rows)} stories have no verdict and count in no quality"
            )
    targets = [row["target_words"] for row in next(iter(stories.values()))]
    report = sweep.summarise(measured, METRICS, COMPARED, targets, PUBLISHED)
    band = [[t, *(edge / t for edge in bounds.band(t))] for t in sorted(set(targets))]
    return report | {"warnings": report["warnings"] + warnings, "band": band}


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass
class Settings:
    """The flags of eval.py."""

    lengths: list[int] = opt(
        [], "words to request (or --length); default: what each prompt says itself", "what"
    )
    model: list[str] = opt(
        [], "folders, hub ids, names behind --endpoint; default: newest under out/, or tiny-base"
    )
    endpoint: str = opt("", "a server for the models that are not folders; key: ENDPOINT_API_KEY")
    in_flight: int = opt(8, "requests to the endpoint at the same time")
    prompts: str = opt("", "JSON Lines; default: stories/heldout.jsonl, from 500 words on stories/eval.jsonl")
    limit: int = opt(-1, "first N prompts, 0: all; -1: all, without a GPU 8, above 2,000 words 4")
    samples: int = opt(2, "stories per request; diversity needs two")
    temperature: float = opt(0.8, "0: greedy", "sampling")
    top_p: float = opt(0.95, "1: off")
    top_k: int = opt(0, "0: off")
    min_p: float = opt(0.0, "0: off")
    repetition_penalty: float = opt(1.0, "1: off")
    max_new_tokens: int = opt(0, "stories are cut there; 0: 1.6 per word of the band's upper end")
    thinking: str = opt("auto", "auto: as the checkpoint was trained", choices=("auto", "on", "off"))
    seed: int = opt(0, "of all stories")
    judge: str = opt("auto", "auto: api where JUDGE_URL is set", "judge", ("auto", "api", "offline"))
    judge_url: str = opt("", "default $JUDGE_URL; the key comes from JUDGE_API_KEY alone")
    judge_model: str = opt("", "default $JUDGE_MODEL; another family than the judge of training")
    rubric: str = opt("story_quality", "a file of rubrics/")
    thirds: str = opt("on", "judge a story's thirds too: four verdicts instead of one", choices=("on", "off"))
    similarity: str = opt(
        "char3", "for diversity; training uses tfidf", choices=tuple(deviation.SIMILARITIES)
    )
    bands: str = opt(
        "auto", "lengths without a penalty; auto: short below 500 words", choices=("auto", *BANDS)
    )
    out: str = opt("", "default: a folder under out/eval/ named for the question")

    def check(self):
        if min(self.lengths, default=1) < 1 or self.samples < 1 or self.limit < -1 or self.in_flight < 1:
            raise ValueError("--lengths, --samples and --in_flight are at least 1, --limit at least -1")
        if self.endpoint and not self.model:
            raise ValueError("--endpoint needs --model NAME, the name its server knows")


def parse(argv=None) -> Settings:
    p = argparse.ArgumentParser(
        prog="eval.py",
        description="Stories at requested lengths: written, judged, measured, reported.",
        epilog="python eval.py watch RUN ...: a page about training runs (scripts/watch.py)",
    )
    add_fields(p, Settings, {})
    return Settings(**vars(p.parse_args(argv)))


def evaluate(args: Settings, examples: list[data.Example] | None = None, judge=None) -> dict:
    """Write, judge, measure, report -> what report.json holds. scripts/benchmarks.py brings examples and judge."""
    args.check()
    writers = [find_writer(name, args.endpoint) for name in args.model or [str(rollout.newest_checkpoint())]]
    labels = [w.label for w in writers]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(
            f"two models are called {twice[0]}; a model goes by the last part of its name, compare different ones"
        )
    prompts = "heldout" if min(args.lengths, default=0) < SHORT else "eval"
    path = Path(args.prompts or ROOT / "stories" / f"{prompts}.jsonl")
    few = 0 if torch.cuda.is_available() else 8 if max(args.lengths, default=0) <= 2000 else 4
    todo = requests_for(
        examples or data.read_examples(path), args.lengths, few if args.limit < 0 else args.limit
    )
    if not todo:
        raise ValueError(f"{path} holds no prompt; give JSON Lines with uid, prompt and target_words")
    asked = {"lengths": args.lengths or "own-lengths", "model": labels}
    args.out = args.out or str(Path("out", "eval", files.short_name(asked, vars(args), vars(Settings()))))
    judge = judge or make_judge(args)
    notes = [
        f"{len(set(map(unit, todo)))} prompts of {path.name}, {args.samples} stories each at each length, "
        f"temperature {args.temperature:g}, top-p {args.top_p:g}",
        describe(judge),
        f"differences between stories by {args.similarity}",
    ]
    if args.limit < 0 and few:
        notes.append(f"only the first {few} prompts, since there is no GPU; --limit 0 takes all")
    for line in [f"{w.label}: {w.endpoint or w.folder}" for w in writers] + notes:
        say(line)
    folder = Path(args.out)
    lock = files.lock(folder) if MAIN else None
    log = files.Journal(folder / (f"log.{RANK}.jsonl" if RANK else "log.jsonl"), folder.glob("log*.jsonl"))
    try:
        stories = write_and_judge(writers, todo, judge, log, args)
    finally:
        judge.close()
        log.close()
    # One kind of band for the whole sweep, set by its shortest request; from 2,400 words on the two agree.
    bounds = bounds_of(args.bands, min(e.target_words for e in todo))
    report = summarise(stories, bounds, args.similarity) | {"notes": notes}
    report["settings"] = {name: value for name, value in vars(args).items() if name != "out"}
    report["judged"] = "form" if isinstance(judge, judging.OfflineJudge) else "quality"
    if MAIN:
        write_report(folder, report, stories)
        lock.close()
    return report


def write_report(folder: Path, report: dict, stories: dict[str, list[dict]]):
    """report.json, stories/ and what scripts/report.py makes of them. A report of other questions is set aside."""
    report["stories"] = {label: f"stories/{files.plain_name(label)}.jsonl" for label in stories}
    old = folder / "report.json"
    if old.exists() and json.loads(old.read_text())["settings"] != report["settings"]:
        parts = [p for p in folder.iterdir() if not p.name.startswith(("log", "verdicts"))]
        say(f"{folder} held a report of other settings; it is now in {files.move_aside(folder, parts)}")
    for label, rows in stories.items():
        names = ("uid", "prompt", "target_words", "story", "sample", "finished")
        kept = [{k: row[k] for k in names} | {"verdict": row["verdicts"][0]} for row in rows]
        files.write_lines(folder / report["stories"][label], kept)
    files.write_json(old, report)
    start("report", str(folder))


def start(script: str, *arguments: str):
    """Runs a program of scripts/ as `python -m` would; no file of this floor imports one."""
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_module(f"scripts.{script}", run_name="__main__")
    finally:
        sys.argv = before


@exits_cleanly
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["watch"]:
        start("watch", *argv[1:])
        return 0
    args = parse(argv)
    torch.set_flush_denormal(True)  # strong decays fill the delta rule with denormals, up to 12 x slower
    if WORLD > 1:
        processes.connect()
    try:
        evaluate(args)
    except KeyboardInterrupt:
        say(f"stopped; what was written is kept in {args.out}: the same command goes on from there")
        raise
    finally:
        processes.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
