"""Stories of two or more models -> one HTML page per annotator, and the key that the researcher keeps."""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

from lib import files, sets
from lib.form import strip_length
from lib.pages import write_page

PAGE = Path(__file__).with_name("page.html")
READING = 240  # words per minute; careful reading of fiction


def spread(prompts: dict[str, dict], rng: random.Random) -> list[str]:
    """Uids in random order, dealt in turn from the requested lengths: any prefix covers them evenly."""
    seen, turn = Counter(), {}
    for uid in rng.sample(sorted(prompts), len(prompts)):
        length = prompts[uid]["target_words"]
        turn[uid] = seen[length]
        seen[length] += 1
    return sorted(turn, key=turn.get)


def draw_pairs(models, n_pairs: int, rng: random.Random) -> dict[str, dict]:
    """{pair id: uid, unit, models, target_words, words}, the same for everyone."""
    prompts = next(iter(models.values()))
    duels = list(combinations(models, 2))
    if n_pairs > (most := len(prompts) * len(duels)):
        told = f"{len(prompts)} prompts and {len(duels)} pairs of models give at most {most} pairs"
        raise ValueError(f"--pairs {n_pairs}: {told}; lower --pairs or add prompts")
    order, pairs = spread(prompts, rng), {}
    for i, number in enumerate(rng.sample(range(0x1000, 0x10000), n_pairs)):  # ids tell nothing
        uid, duel = order[i // len(duels)], duels[i % len(duels)]
        words = sum(len(models[m][uid]["stories"][-1].split()) for m in duel)
        pair = {"uid": uid, "unit": strip_length(prompts[uid]["prompt"]), "models": list(duel)}
        pairs[f"p{number:x}"] = pair | {"target_words": prompts[uid]["target_words"], "words": words}
    return pairs


def lay_out(pairs: dict[str, dict], models, rng: random.Random) -> tuple[list[dict], dict[str, list]]:
    """One annotator's page: its items in random order, and {pair id: models on the left and on the right}."""
    flips = {}
    for duel in combinations(models, 2):  # each model is on the left in half of the pairs of a duel
        ids = [i for i, pair in pairs.items() if pair["models"] == list(duel)]
        start = rng.randint(0, 1)
        flips |= {i: (start + place) % 2 for place, i in enumerate(rng.sample(ids, len(ids)))}
    items, sides = [], {}
    for i in rng.sample(list(pairs), len(pairs)):
        sides[i] = pairs[i]["models"][::-1] if flips[i] else pairs[i]["models"]
        left, right = (models[m][pairs[i]["uid"]] for m in sides[i])
        item = {"id": i, "prompt": left["prompt"], "A": left["stories"][-1], "B": right["stories"][-1]}
        items.append(item)
    return items, sides


def check(args: argparse.Namespace, models: dict[str, dict]):
    """ValueError: settings that cannot work, or a story without a word."""
    for name in args.annotators:
        good = re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) and args.annotators.count(name) == 1
        if not good or name in models:
            more = "use different names of letters, digits, - and _, none a model's"
            raise ValueError(f"--annotators {name}: {more}")
    if args.pairs < 1:
        raise ValueError(f"--pairs {args.pairs}: must be at least 1")
    for name, prompts in models.items():
        for uid, entry in prompts.items():
            if not entry["stories"][-1].strip():
                more = "write it again, or take this uid out of every model's file"
                raise ValueError(f"the story of {uid} is empty in the file of {name}; {more}")


def make(args: argparse.Namespace):
    out, rng = Path(args.out), random.Random(args.seed)
    if (out / "key.json").exists():
        more = "its answers are worth nothing without it; choose another --out"
        raise ValueError(f"{out / 'key.json'} exists, and {more}")
    models, paths = sets.read_sets(args.stories)
    check(args, models)
    pairs = draw_pairs(models, args.pairs, rng)
    pages = {name: lay_out(pairs, models, rng) for name in args.annotators}
    sources = {name: {"file": path, "sha256": files.digest(path)} for name, path in paths.items()}
    key = {"seed": args.seed, "models": sources, "pairs": pairs}
    key["pages"] = {name: sides for name, (_, sides) in pages.items()}
    key["study"] = files.key_of(key)
    files.write_json(out / "key.json", key)
    for name, (items, _) in pages.items():
        page = {"study": key["study"], "annotator": name, "items": items}
        write_page(out / f"{name}.html", page, PAGE)
    hours = sum(p["words"] for p in pairs.values()) / READING / 60
    speed = f"{hours:.1f} h of reading at {READING} words a minute"
    print(f"{len(pages)} pages in {out}: {args.pairs} pairs each, {speed}")
    print(f"hand out the .html files only; {out / 'key.json'} stays with you")
