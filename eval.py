"""How good and how long: stories at requested lengths, written, judged, measured.

The claim to test is length generalisation: quality and adherence at three times the training length (POLARIS,
arXiv 2606.04095). Each model writes stories for the same held-out prompts at each requested length. Rules
count what can be counted, a judge grades the rest; each figure has a 95 % bootstrap interval over prompts.

    python eval.py --length 12000  # the newest checkpoint under out/, else stories/tiny-base
    python eval.py --lengths 100 200 400 --model stories/tiny-base out/tiny/checkpoints/step_000045
    python eval.py --endpoint http://localhost:8000/v1 --model my-27b  # behind an OpenAI-compatible server
    torchrun --nproc_per_node=4 eval.py --length 12000  # requests shared over processes, one report
    python eval.py watch out/tiny  # a page about a training run (scripts/watch.py)

Each evaluation has a folder under out/eval/, named for lengths, models and prompts: report.html, report.json,
report.csv, pictures, stories/, and log.sqlite and verdicts.sqlite, from which a killed evaluation goes on.
"""

import json
import os
import re
import sys
from concurrent.futures import as_completed
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

import data
import deviation
import judge as judging
import rollout
from lib import files, flags, huggingface, processes, stats
from lib.endpoint import Endpoint
from lib.flags import opt
from lib.form import strip_length
from lib.processes import MAIN, RANK, WORLD, say
from lib.sampling import Sampling
from lib.store import Store

ROOT = Path(__file__).resolve().parent
SHORT = 500  # words; the paper's bands have absolute minima that make no sense for less


@dataclass
class Settings(judging.Flags, Sampling):
    """The flags of eval.py."""

    lengths: list[int] = opt([], "words to request (or --length); empty: the prompts' own", "question", low=1)
    model: list[str] = opt([], "folders, hub ids or served names; default: newest under out/, else tiny-base")
    endpoint: str = opt("", "a server for the models that are not folders; key: ENDPOINT_API_KEY")
    in_flight: int = opt(8, "requests to the endpoint at the same time", low=1)
    prompts: str = opt("", "JSON Lines; default: stories/heldout.jsonl, from 500 words on stories/eval.jsonl")
    limit: int = opt(-1, "first N prompts, 0: all; -1: all, without a GPU 8, above 2,000 words 4", low=-1)
    samples: int = opt(2, "stories per request; diversity needs two", low=1)
    bands: Literal["auto", "paper", "short"] = opt("auto", "length bands; auto: short below 500 words")
    rubric: str = opt("story_quality", "a file of rubrics/")
    thirds: Literal["on", "off"] = opt("on", "judge a story's thirds too: four verdicts, not one")
    similarity: Literal["char3", "tfidf", "jaccard", "embedding"] = opt("char3", "training uses tfidf")
    out: str = opt("", "default: a folder under out/eval/ that is named for the question")
    max_new_tokens: int = opt(0, "cut stories there; 0: 1.6 per word of the band's upper end", low=0)
    thinking: Literal["auto", "on", "off"] = opt("auto", "auto: as the checkpoint was trained")
    seed: int = opt(0, "a story's randomness depends on this and on its request alone")

    temperature: float = opt(0.7, "0: greedy", "sampling", low=0)
    top_p: float = opt(0.95, "nucleus; 1: off", above=0, high=1)


SAMPLING = tuple(f.name for f in fields(Sampling))
LLAMA = {"repeat_last_n": 1 << 16, "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"]}

# ---- what is asked: held-out prompts, each at each requested length ----------------


def requests_for(examples: list[data.Example], lengths: list[int], limit: int) -> list[data.Example]:
    """The first `limit` prompts (0: all), at each of `lengths`, or at their own where none is given. Requests
    that differ in the length alone have the same prompt: they are one unit, and intervals resample units."""
    kept = list(dict.fromkeys(strip_length(e.prompt) for e in examples))[: limit or None]
    if not lengths:
        return [e for e in examples if strip_length(e.prompt) in set(kept)]
    first = {strip_length(e.prompt): e for e in reversed(examples)}  # one, whatever lengths the file has
    asked = [(n, first[u], data.at_length(first[u].prompt, n)) for n in dict.fromkeys(lengths) for u in kept]
    return [replace(e, uid=f"{e.uid}@{n}", prompt=p, target_words=n, story=None) for n, e, p in asked]


def bounds_of(bands: str, target: int) -> judging.LengthBounds:
    return judging.BANDS[("short" if target < SHORT else "paper") if bands == "auto" else bands]


# ---- who writes: a checkpoint on this machine, or a model behind an endpoint -------

THOUGHT = 4096  # tokens that a thought may take before its story


class Job(NamedTuple):
    """One story to write."""

    key: str  # in the log
    row: dict  # uid, unit, prompt, target_words, sample
    seed: int
    tokens: int  # the story is cut there, its thought not counted


@dataclass
class Writer:
    """A model: what --model said, its name in the report, what tells it from any other, where it is."""

    name: str
    label: str
    identity: list
    folder: Path | None = None  # None: behind --endpoint


def find_writer(name: str, endpoint: str) -> Writer:
    """FileNotFoundError or ValueError where `name` is not a checkpoint, and no endpoint is given."""
    if endpoint and not Path(name).exists():
        return Writer(name, name.rsplit("/", 1)[-1], [endpoint, name])
    folder, path = huggingface.fetch(name), Path(name).resolve()
    huggingface.read_config(folder)
    # A run that overwrites its checkpoint makes another model of it.
    parts = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))
    identity = [str(path), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in parts]]
    label = f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name
    return Writer(name, label, identity, folder)


def jobs_of(writer: Writer, todo: list[data.Example], c: Settings) -> list[Job]:
    how, jobs = [getattr(c, name) for name in (*SAMPLING, "seed", "thinking", "max_new_tokens", "bands")], []
    for e in todo:
        target = e.target_words
        row = {"uid": e.uid, "unit": strip_length(e.prompt), "prompt": e.prompt, "target_words": target}
        tokens = c.max_new_tokens or int(1.6 * bounds_of(c.bands, target).band(target)[1]) + 64
        for sample in range(c.samples):
            key = "story " + files.key_of(writer.identity, e.prompt, target, sample, how)
            seed = int(files.key_of(e.prompt, sample, c.seed)[:8], 16)
            jobs.append(Job(key, row | {"sample": sample}, seed, tokens))
    return jobs


def write_local(writer: Writer, jobs: list[Job], c: Settings, progress):
    """Yields (job, story without its thought, whether it ended by itself, tokens) as each story ends."""
    model, tokenizer, thinking = rollout.open_writer(writer.folder, c.thinking)
    how = {name: getattr(c, name) for name in SAMPLING}
    how["stop_ids"] = rollout.stop_ids(writer.folder, tokenizer)
    wrote = {}  # tokens of each story so far
    for target in sorted({job.row["target_words"] for job in jobs}):
        part = [job for job in jobs if job.row["target_words"] == target]
        prompts = [tokenizer.chat(job.row["prompt"], thinking) for job in part]
        limit = part[0].tokens + (0 if c.max_new_tokens else THOUGHT * thinking)
        room = model.config.max_position_embeddings - max(map(len, prompts))
        if limit > room:
            there = f"the model has positions for {room:,}; stories are cut there"
            say(f"{writer.label}: {target:,} words would get up to {limit:,} tokens, but {there}", sys.stderr)
        how |= {"max_new_tokens": min(limit, room), "seed": [job.seed for job in part]}
        for i, story, ended in rollout.stream(model, prompts, **how):
            wrote[part[i].key] = len(story.ids)
            progress.set_postfix_str(f"{sum(wrote.values()):,} tokens", refresh=False)
            progress.update(0)
            if ended:
                text = rollout.story_of(tokenizer.decode(story.ids), thinking)
                yield part[i], text, story.finished, len(story.ids)


def write_endpoint(writer: Writer, jobs: list[Job], c: Settings, progress):
    """As `write_local`. ValueError, at the end: the server gave no story. No more are asked for then, and
    what was under way is handed over."""
    how = {name: getattr(c, name) for name in SAMPLING} | LLAMA  # what is off is sent too
    how["repeat_penalty"] = c.repetition_penalty  # llama.cpp's name and, in LLAMA, order
    if c.thinking != "auto":
        how["chat_template_kwargs"] = {"enable_thinking": c.thinking == "on"}
    spare, asked, failed = (*SAMPLING[2:], "repeat_penalty", *LLAMA, "seed"), {}, ""
    thought = 0 if c.max_new_tokens or c.thinking == "off" else THOUGHT
    unset = {"temperature": None, "top_p": None, "max_tokens": None}  # each question brings its own
    patience = {"timeouts": (10, 1800), "deadline": 3600, "retries": 4}  # seconds; a story takes its time
    key = os.environ.get("ENDPOINT_API_KEY", "")
    line = Endpoint(c.endpoint, writer.name, key, in_flight=c.in_flight, **unset, **patience)
    with closing(line):
        for job in jobs:
            params = how | {"max_tokens": job.tokens + thought, "seed": job.seed % (1 << 31)}
            asked[line.complete([{"role": "user", "content": job.row["prompt"]}], params, spare)] = job
        for future in as_completed(asked):
            answer = None if future.cancelled() else future.result()
            if answer is None:
                failed = line.last_error or "no answer"
                for waiting in asked:
                    waiting.cancel()
                continue
            cut = answer.finish == "length"
            # A server's template may open <think>: a thought that was cut is not a story.
            opened = cut and c.thinking == "on" and not answer.thought and "<think>" not in answer.text
            text = answer.text.encode("utf-8", "replace").decode()  # half a surrogate pair: "?"
            yield asked[future], rollout.story_of(text, opened), not cut, answer.tokens or 0
    if failed:
        why = f"{line.endpoint} gave no answer ({failed}); what came before is kept"
        raise ValueError(f"the endpoint {why}: start the same command again when it answers")
    if line.spared:
        say(f"{writer.label}: the server refuses {', '.join(sorted(line.spared))}; its own apply", sys.stderr)


# ---- writing and judging, shared over processes ------------------------------------

THIRDS_FROM = 150  # words; a third of less is not a passage


def thirds(story: str) -> list[str]:
    """Three parts of about as many words, cut at ends of sentences; [] where one would be empty."""
    sentences = [s for s in re.split(r"(?<=[.!?…])(?=[\"'”’)]*\s)|(?<=\n)", story) if s]
    total, found, seen = data.words(story), ["", "", ""], 0
    for sentence in sentences:
        found[min(2, 3 * seen // max(1, total))] += sentence
        seen += data.words(sentence)
    found = [part.strip() for part in found]
    return found if all(found) else []


def ask(judge, row: dict, c: Settings) -> list:
    """Futures of the verdicts of a story and, where it is long, of its thirds."""
    prompt, story, parts = row["prompt"], row["story"], []
    if c.thirds == "on" and data.words(story) >= THIRDS_FROM:
        parts = thirds(story)
    prompts = [prompt, *(f"{prompt} (This is part {i} of 3 of a story for that request.)" for i in (1, 2, 3))]
    return [judge.submit(*text) for text in zip(prompts, [story, *parts])]


def write_and_judge(writers: list[Writer], todo, judge, store: Store, c) -> dict[str, list[dict]]:
    """Every story of every model, in order: what the store keeps of it, and "verdicts" of it and its thirds.
    Each process writes and judges its share, then all of them have all stories. A verdict that was paid for
    before comes from the judge's own store."""
    jobs, failed = {w.label: jobs_of(w, todo, c) for w in writers}, []
    mine = {label: part[RANK::WORLD] for label, part in jobs.items()}
    rows = {job.key: row for part in mine.values() for job in part if (row := store.get(job.key))}
    missing = {label: [job for job in part if job.key not in rows] for label, part in mine.items()}
    if count := sum(map(len, missing.values())):
        judge.check()  # a judge that does not answer is known before hours of writing
    asked = {key: ask(judge, row, c) for key, row in rows.items()}
    with tqdm(total=count, unit=" stories", miniters=0, mininterval=0.5, disable=not MAIN) as progress:
        for writer in (w for w in writers if missing[w.label]):
            progress.set_description(f"{writer.label} writes")
            write = write_local if writer.folder else write_endpoint
            for job, story, finished, tokens in write(writer, missing[writer.label], c, progress):
                row = job.row | {"story": story, "finished": finished}
                store.record(writer.label, (0, tokens), 0.0, job.key, row)
                progress.update()
                rows[job.key], asked[job.key] = row, ask(judge, row, c)
        for n, (key, futures) in enumerate(asked.items(), 1):
            verdicts = [future.result() for future in futures]
            failed += [judge.last_error for verdict in verdicts if verdict is None]
            rows[key]["verdicts"] = [verdict and verdict.to_dict() for verdict in verdicts]
            progress.set_description(f"{n} of {len(asked)} stories judged", refresh=False)
            progress.update(0)
    rows = dict(processes.gather(rows.items()))
    if failed := processes.gather(failed):
        more = "they count in no figure, start again to ask once more"
        say(f"{len(failed)} texts got no verdict ({failed[0]}); {more}", sys.stderr)
    return {label: [rows[job.key] for job in part] for label, part in jobs.items()}


# ---- what is measured --------------------------------------------------------------

COMPARED = ("quality", "ratio", "in_band", "length_score", "repetition", "distance")  # between models


def length_score(requested: int, written: int) -> float:
    """LongBench-Write's length score, 0..100 (arXiv 2408.07055)."""
    if written > requested:
        return 100 * max(0.0, 1 - (written / requested - 1) / 3)
    return 100 * max(0.0, 1 - (requested / written - 1) / 2) if written else 0.0


def measure(row: dict, bounds: judging.LengthBounds) -> dict:
    """What one story shows, by the names of the report's metrics; None where there is nothing to measure."""
    target, written, finished = row["target_words"], data.words(row["story"]), row["finished"]
    low, high = bounds.band(target)
    quality, *parts = [verdict and verdict["score"] for verdict in row["verdicts"]]
    first, second, third = parts or [None] * 3
    found = {"unit": row["unit"], "target": target, "quality": quality}
    found |= {"third_1": first, "third_2": second, "third_3": third}
    found |= {"decay": None if first is None or third is None else third - first}
    found |= {"written": written, "ratio": written / target, "in_band": float(low <= written <= high)}
    found |= {"length_score": length_score(target, written), "early": float(finished and written < low)}
    found |= {"truncated": float(not finished), "empty": float(not written)}
    found |= {"repetition": judging.repetition_penalty(row["story"])}
    return found | {"compression": deviation.compression_ratio([row["story"]])}


def measure_group(rows: list[dict], similarity: str) -> dict:
    """How different the stories of one request are, by a similarity that training did not use."""
    texts = [r["story"] for r in rows if r["story"].strip()]
    d_nn = deviation.distances(texts, similarity, equal_length=True)
    found = {"unit": rows[0]["unit"], "target": rows[0]["target_words"]}
    found |= {"distinct_2": deviation.distinct_n(texts), "distance": deviation.mean_pairwise_distance(d_nn)}
    return found | {"vendi": deviation.vendi_score(d_nn)}


def summarise(stories: dict[str, list[dict]], bounds: judging.LengthBounds, similarity: str) -> dict:
    """Everything that report.json says of the stories of each model."""
    measured, warnings = {}, []
    for label, rows in stories.items():
        groups = {}
        for row in rows:
            groups.setdefault((row["unit"], row["target_words"]), []).append(row)
        measured[label] = [measure(row, bounds) for row in rows]
        measured[label] += [measure_group(group, similarity) for group in groups.values()]
        if n := sum(row["verdicts"][0] is None for row in rows):
            warnings.append(f"{label}: {n} of {len(rows)} stories have no verdict and count in no quality")
    targets = [row["target_words"] for row in next(iter(stories.values()))]
    report = stats.sweep(measured, COMPARED, targets)
    band = [[t, *(edge / t for edge in bounds.band(t))] for t in sorted(set(targets))]
    return report | {"warnings": report["warnings"] + warnings, "band": band}


# ---- from the question to the report -----------------------------------------------


def evaluate(c: Settings, examples: list[data.Example] | None = None, judge=None) -> dict:
    """Write, judge, measure, report -> what report.json holds. examples, judge: of another benchmark."""
    if c.endpoint and not c.model:
        raise ValueError("--endpoint needs --model NAME, the name its server knows")
    writers = [find_writer(name, c.endpoint) for name in c.model or [str(rollout.newest_checkpoint())]]
    labels = [w.label for w in writers]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two models are called {twice[0]} (by the last part of a name); compare others")
    few = 0 if torch.cuda.is_available() or c.limit >= 0 else 8 if max(c.lengths, default=0) <= 2000 else 4
    kind = "heldout" if min(c.lengths, default=0) < SHORT else "eval"
    path = Path(c.prompts or ROOT / "stories" / f"{kind}.jsonl")
    todo = requests_for(examples or data.read_examples(path), c.lengths, few or max(0, c.limit))
    name = "_".join(["-".join(map(str, c.lengths)) or "own-lengths", *labels, path.stem])
    c.out = c.out or str(Path("out", "eval", files.plain_name(name)[:100]))
    judge = judge or judging.make(c, judging.load_rubric(c.rubric), Path(c.out, "verdicts.sqlite"))
    how = f"{c.samples} stories each at each length, temperature {c.temperature:g}, top-p {c.top_p:g}"
    if isinstance(judge, judging.OfflineJudge):
        judged, more = "form", "for a judge that reads set JUDGE_URL, JUDGE_MODEL"
        reader = f"judged by {judge.name}, which measures form, not quality; {more}"
    else:
        judged = "contradictions per 1,000 words" if judge.rubric.rule == "rate" else "quality"
        reader = f"quality by {judge.name}, rubric {judge.rubric.version}"
    n = len({strip_length(e.prompt) for e in todo})
    notes = [f"{n} prompts of {path.name}, {how}", reader, f"differences between stories by {c.similarity}"]
    if n == few:
        notes.append(f"only the first {few} prompts, since there is no GPU; --limit 0 takes all")
    say("\n".join([*(f"{w.label}: {w.folder or c.endpoint}" for w in writers), *notes]), sys.stderr)
    folder = Path(c.out)
    with closing(judge), files.lock(folder) if MAIN else nullcontext():
        stories = write_and_judge(writers, todo, judge, Store(folder / "log.sqlite", ""), c)
        # One kind of band for the whole sweep, set by its shortest request; from 2,400 words on they agree.
        bounds = bounds_of(c.bands, min(e.target_words for e in todo))
        report = summarise(stories, bounds, c.similarity) | {"notes": notes, "judged": judged}
        report["settings"] = {name: value for name, value in asdict(c).items() if name != "out"}
        if MAIN:
            write_report(folder, report, stories)
    return report


def write_report(folder: Path, report: dict, stories: dict[str, list[dict]]):
    """report.json, stories/, and what scripts/report.py makes of them. A report of other settings is kept."""
    report["stories"] = {label: f"stories/{files.plain_name(label)}.jsonl" for label in stories}
    path = folder / "report.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] != report["settings"]:
        aside = files.set_aside(folder, keep=("log", "verdicts"))
        say(f"{folder} held a report of other settings; it is now in {aside}")
    names = ("uid", "prompt", "target_words", "story", "sample", "finished")
    for label, rows in stories.items():
        kept = [{k: row[k] for k in names} | {"verdict": row["verdicts"][0]} for row in rows]
        files.write_lines(folder / report["stories"][label], kept)
    files.write_json(path, report)
    flags.start("scripts.report", str(folder))


@flags.exits_cleanly
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["watch"]:
        return flags.start("scripts.watch", *argv[1:])
    c = flags.parse(Settings, argv, __doc__)
    if WORLD > 1:
        processes.connect()
    try:
        evaluate(c)
    except KeyboardInterrupt:
        say(f"\nwhat was written is kept in {c.out}: the same command goes on from there", sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
