"""Stories of two or more models -> one HTML page per annotator, and the key that the researcher keeps."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from itertools import combinations
from pathlib import Path

from lib import files, sets
from lib.pages import write_page
from lib.sweep import buckets_of

PAGE = Path(__file__).with_name("page.html")
CHOICES = {"A": "“A is better”", "tie": "“Tie”", "B": "“B is better”"}
READING = 240  # words per minute; careful reading of fiction


def digest(value) -> str:
    """SHA-256 of compact JSON, equal to that of the page's JSON.stringify: integers, text, lists, objects.

    Half a surrogate pair becomes a question mark, as in the files."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def by_length(rows: list[dict]) -> dict[str, list[dict]]:
    """{length bucket, the shortest first: the rows that ask for it}."""
    piles = {}
    for label, low, up in buckets_of([row["target_words"] for row in rows]):
        piles[label] = [row for row in rows if low < row["target_words"] <= up]
    return piles


def unit(prompt: str) -> str:
    """The prompt without its length: asked for at five lengths it is still one prompt."""
    return re.sub(r"\d[\d,]*(?=[ -]words?)", "N", prompt)


def spread(prompts: dict[str, dict], rng: random.Random) -> list[str]:
    """Uids in random order, dealt in turn from the length buckets: any prefix covers the lengths evenly."""
    shuffled = [{"uid": uid, **prompts[uid]} for uid in rng.sample(sorted(prompts), len(prompts))]
    turn = {row["uid"]: place for pile in by_length(shuffled).values() for place, row in enumerate(pile)}
    return sorted(turn, key=turn.get)


def plant(story: str, choice: str, rng: random.Random) -> str:
    """Puts the note of an attention check between two paragraphs of the second half, or at the end."""
    parts = story.rstrip().split("\n\n")
    at = rng.randint((len(parts) + 1) // 2, len(parts))
    note = f"[A note to the reader, not part of the story: for this pair, please answer {CHOICES[choice]}.]"
    return "\n\n".join([*parts[:at], note, *parts[at:]])


def draw_pairs(models, n_pairs: int, n_checks: int, n_stories: int, rng: random.Random) -> dict[str, dict]:
    """{pair id: uid, unit, models, target_words, stories (indices), words, check}, the same for everyone."""
    prompts = next(iter(models.values()))
    duels = list(combinations(models, 2))
    if n_pairs > (most := len(prompts) * len(duels)):
        told = f"{len(prompts)} prompts and {len(duels)} pairs of models give at most {most} pairs"
        raise ValueError(f"--pairs {n_pairs}: {told}; lower --pairs or add prompts")
    order = spread(prompts, rng)
    plan = [(order[i // len(duels)], duels[i % len(duels)], False) for i in range(n_pairs)]
    # Checks cost reading time too: prompts that are not read anyway, the shortest first.
    used = {uid for uid, _, _ in plan}
    words = {uid: sum(len(m[uid]["stories"][0].split()) for m in models.values()) for uid in order}
    spare = sorted(order, key=lambda uid: (uid in used, words[uid]))
    plan += [(spare[i % len(spare)], rng.choice(duels), True) for i in range(n_checks)]
    ids = rng.sample(range(0x1000, 0x10000), len(plan))  # ids tell nothing: neither prompt nor check
    pairs = {}
    for number, (uid, duel, check) in zip(ids, plan):
        chosen = {m: sorted(rng.sample(range(len(models[m][uid]["stories"])), n_stories)) for m in duel}
        texts = [models[m][uid]["stories"][i] for m in duel for i in chosen[m]]
        pair = {"uid": uid, "unit": unit(prompts[uid]["prompt"]), "models": list(duel)}
        pair |= {"target_words": prompts[uid]["target_words"], "stories": chosen}
        pairs[f"p{number:x}"] = pair | {"words": sum(len(t.split()) for t in texts), "check": check}
    return pairs


def lay_out(pairs: dict[str, dict], models, rng: random.Random) -> tuple[list[dict], dict[str, dict]]:
    """One annotator's page: its items in random order, and what the key must know of them."""
    flips = {}
    for duel in dict.fromkeys(tuple(p["models"]) for p in pairs.values()):  # on the left in half of its pairs
        ids = [i for i, p in pairs.items() if tuple(p["models"]) == duel]
        start = rng.randint(0, 1)
        flips |= {i: (start + place) % 2 for place, i in enumerate(rng.sample(ids, len(ids)))}
    items, secret = [], {}
    for i in rng.sample(list(pairs), len(pairs)):
        pair = pairs[i]
        sides, texts = pair["models"][::-1] if flips[i] else pair["models"], []
        for m in sides:
            shuffled = rng.sample(pair["stories"][m], len(pair["stories"][m]))
            texts.append([models[m][pair["uid"]]["stories"][k] for k in shuffled])
        secret[i] = {"sides": list(sides)}
        if pair["check"]:
            secret[i]["expected"] = rng.choice(list(CHOICES))
            side = rng.choice(texts)
            at = rng.randrange(len(side))
            side[at] = plant(side[at], secret[i]["expected"], rng)
        prompt = models[sides[0]][pair["uid"]]["prompt"]
        items.append({"id": i, "prompt": prompt, "A": texts[0], "B": texts[1]})
    return items, secret


def check(args: argparse.Namespace, models: dict[str, dict]) -> int:
    """-> stories per side. ValueError: settings that cannot work, or a story without a word."""
    for name in args.annotators:
        good = re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) and args.annotators.count(name) == 1
        if not good or name in models:
            more = "use different names of letters, digits, - and _, none a model's"
            raise ValueError(f"--annotators {name}: {more}")
    if args.pairs < 1 or args.checks < 0 or (args.stories is not None and args.stories < 1):
        raise ValueError("--pairs and --stories must be at least 1, --checks at least 0")
    for name, prompts in models.items():
        for uid, entry in prompts.items():
            if not all(story.strip() for story in entry["stories"]):
                more = "write it again, or take this uid out of every model's file"
                raise ValueError(f"the story of {uid} is empty in the file of {name}; {more}")
    fewest = min(len(entry["stories"]) for prompts in models.values() for entry in prompts.values())
    if (args.stories or 0) > fewest:
        raise ValueError(f"--stories {args.stories}: some model has only {fewest} for some prompt")
    return args.stories or fewest


def make(args: argparse.Namespace):
    out, rng = Path(args.out), random.Random(args.seed)
    if (out / "key.json").exists():
        more = "its answers are worth nothing without it; choose another --out"
        raise ValueError(f"{out / 'key.json'} exists, and {more}")
    models, paths = sets.read_sets(args.stories_files)
    n_stories = check(args, models)
    consent = Path(args.consent).read_text(encoding="utf-8").strip() if args.consent else ""
    pairs = draw_pairs(models, args.pairs, args.checks, n_stories, rng)
    pages = {name: lay_out(pairs, models, rng) for name in args.annotators}
    hashes = {name: {"sha256": digest(items), "items": secret} for name, (items, secret) in pages.items()}
    sources = {name: {"file": path, "sha256": files.digest(path)} for name, path in paths.items()}
    key = {"seed": args.seed, "models": sources, "pairs": pairs, "pages": hashes}
    key |= {"consent": consent} if consent else {}
    key["study"] = digest(key)
    files.write_json(out / "key.json", key)
    for name, (items, _) in pages.items():
        page = {"study": key["study"], "annotator": name, "items": items, "consent": consent}
        write_page(out / f"{name}.html", page, PAGE)
    hours = sum(p["words"] for p in pairs.values()) / READING / 60
    each = f"{args.pairs} pairs and {args.checks} checks each, {n_stories} + {n_stories} stories per pair"
    print(f"{len(pages)} pages in {out}: {each}, {hours:.1f} h of reading at {READING} words per minute")
    print(f"hand out the .html files only; {out / 'key.json'} stays with you")
    warn_of_names(models, pages)


def warn_of_names(models: dict[str, dict], pages: dict[str, tuple]):
    """The page itself names no model, but a model may have signed its work."""
    texts = set()
    for items, _ in pages.values():
        texts |= {text for item in items for text in (item["prompt"], *item["A"], *item["B"])}
    for name in models:
        if signed := sum(bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.I)) for text in texts):
            more = f"is in {signed} of the texts; see whether it gives the model away"
            print(f"warning: {name!r}, a model's name, {more}")
