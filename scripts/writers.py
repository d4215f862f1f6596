"""Who writes the stories of an evaluation: a checkpoint on this machine, or a model behind an OpenAI-compatible endpoint
(vLLM, llama.cpp, a vendor). Both are asked for the same jobs and hand over each story as it ends; eval.py keeps them.

An endpoint that is busy is asked again, up to five times; one that stops answering ends in one sentence, after everything
that it did answer was handed over. Its key comes from ENDPOINT_API_KEY and is sent nowhere else. Run by eval.py.
"""
from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, NamedTuple

import requests
import torch
from tqdm import tqdm

import data
import model as qwen
import rollout

SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # flags, defaults
PATIENCE = 1.0  # seconds before an endpoint is asked a second time, then doubled


def key_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


class Job(NamedTuple):
    """One story to write: under which key it is kept, and from how many words on it may be cut."""
    key: str
    request: data.Example
    sample: int
    most_words: float

    def seed(self, seed: int) -> int:
        """A story's randomness depends on its request alone, not on what else was asked or how far an earlier start came."""
        return int(key_of(self.request.prompt, self.sample, seed)[:8], 16)

    def tokens(self, thinking: bool, args) -> int:
        return args.max_new_tokens or int(1.6 * self.most_words) + 64 + 4096 * thinking  # 1.6 tokens a word are plenty


@dataclass
class Writer:
    """A model: what --model said, its name in the report, what tells it from any other, and where it is."""
    name: str
    label: str
    identity: list
    folder: Path | None = None
    endpoint: str = ""

    def key(self, request: data.Example, sample: int, args) -> str:
        how = [getattr(args, name) for name in SAMPLING] + [args.seed, args.thinking, args.max_new_tokens]
        return "story " + key_of(self.identity, request.prompt, request.target_words, sample, how)


def find(name: str, endpoint: str | None) -> Writer:
    """FileNotFoundError or ValueError where `name` is no checkpoint, and there is no endpoint to ask for it."""
    if endpoint and not Path(name).exists():
        return Writer(name, name.rsplit("/", 1)[-1], [endpoint, name], endpoint=endpoint)
    folder, path = qwen.fetch(name), Path(name).resolve()
    qwen.read_config(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))
    # A run that overwrites its checkpoint makes another model of it.
    identity = [str(path), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]
    label = f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name
    return Writer(name, label, identity, folder)


def write(writer: Writer, jobs: list[Job], args) -> Iterator[tuple[Job, str, bool, int | None]]:
    """Yields (job, story without thinking, whether it ended by itself, tokens) as each story ends, in any order."""
    return (write_endpoint if writer.endpoint else write_local)(writer, jobs, args)


def write_local(writer: Writer, jobs: list[Job], args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = data.load_tokenizer(writer.folder)
    model = qwen.load(writer.folder, torch.bfloat16 if device == "cuda" else torch.float32, device, fused=True)
    thinking = rollout.thinks(model) if args.thinking == "auto" else args.thinking == "on"
    for target in sorted({job.request.target_words for job in jobs}):
        part = [job for job in jobs if job.request.target_words == target]
        prompts = [tokenizer.chat(job.request.prompt, thinking) for job in part]
        limit, room = part[0].tokens(thinking, args), model.config.max_position_embeddings - max(map(len, prompts))
        if limit > room:
            print(f"{writer.label}: {target:,} words would get up to {limit:,} tokens, but the model has positions for "
                  f"{room:,}; stories are cut there", file=sys.stderr)
        written = [0] * len(part)
        what = f"{writer.label} writes {target:,} words x {len(part)}"
        with tqdm(desc=what, unit=" tokens", unit_scale=True, mininterval=1) as bar:
            for i, story, ended in rollout.stream(
                    model, prompts, max_new_tokens=min(limit, room), stop_ids=[tokenizer.end_id],
                    seed=[job.seed(args.seed) for job in part], **{name: getattr(args, name) for name in SAMPLING}):
                bar.update(len(story.ids) - written[i])
                written[i] = len(story.ids)
                if ended:
                    # The prompt opened <think>; a story whose thought never closed is empty, not its own thought.
                    text = ("<think>" if thinking else "") + tokenizer.decode(story.ids)
                    yield part[i], data.split_thinking(text)[1], story.finished, len(story.ids)


def write_endpoint(writer: Writer, jobs: list[Job], args):
    """ValueError at the end if one job failed; the rest is then not asked for, but what was on its way is handed over."""
    def one(job):
        body = {"model": writer.name, "messages": [{"role": "user", "content": job.request.prompt}],
                "max_tokens": job.tokens(args.thinking != "off", args), "seed": job.seed(args.seed) % (1 << 31)}
        # Not all are in OpenAI's form: what is off is not sent, and a server that does not know the rest says so.
        body |= {name: getattr(args, name) for name, default in SAMPLING.items()
                 if name in ("temperature", "top_p") or getattr(args, name) != default}
        text, ended, tokens = complete(writer.endpoint, body)
        return job, data.split_thinking(text)[1], ended, tokens

    failure, bar = None, tqdm(total=len(jobs), desc=f"{writer.label} writes", unit=" stories")
    with bar, ThreadPoolExecutor(args.in_flight) as pool:
        asked = [pool.submit(one, job) for job in jobs]
        try:
            for future in as_completed(asked):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = error
                    for other in asked:
                        other.cancel()
                else:
                    yield future.result()
                    bar.update()
        finally:  # also when whoever reads this stops
            for future in asked:
                future.cancel()
    if failure:
        raise failure


def complete(endpoint: str, body: dict) -> tuple[str, bool, int | None]:
    """(text, whether it ended by itself, tokens or None where the server does not say). ValueError: no answer."""
    url, why = endpoint.rstrip("/").removesuffix("/chat/completions") + "/chat/completions", ""

    def sign(request):
        if secret := os.environ.get("ENDPOINT_API_KEY", "").strip():
            request.headers["Authorization"] = f"Bearer {secret}"
        return request
    for attempt in range(5):
        try:
            # A redirect would take the key elsewhere. The second timeout is for a whole story of a slow server.
            answer = requests.post(url, json=body, timeout=(10, 1800), auth=sign, allow_redirects=False)
            if answer.status_code == 200:
                answer = answer.json()
                choice = answer["choices"][0]
                return (choice["message"]["content"] or "", choice.get("finish_reason") != "length",
                        (answer.get("usage") or {}).get("completion_tokens"))
            why = f"HTTP {answer.status_code}"
            if answer.status_code not in (408, 429, 500, 502, 503, 504):
                break
        except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
            why = type(error).__name__
        time.sleep(min(30, PATIENCE * 2 ** attempt))
    raise ValueError(f"the endpoint {url} gave no story ({why}); what it wrote before is kept: "
                     "start the same command again when it answers")
