"""A blinded human study of stories: pages for readers, a key for the researcher, statistics that join the two.

`make` draws pairs of stories written to the same prompt by different models, gives each annotator their own random
order and sides, and writes one HTML page per annotator that works from disk, without a server or a network, and
names no model. `report` joins the downloaded answers with key.json: win rate, sign test, agreement, ratings.
The set-up (60 blinded pairs, two annotators, better or tie, 95 % bootstrap interval) follows the POLARIS human
study; sets of several stories per prompt, rated for quality and diversity, follow Diverse Creative Writing.

    python -m scripts.blind make base.jsonl trained=out/run/stories.jsonl --out study --annotators ann1 ann2 --pairs 60
    python -m scripts.blind report --key study/key.json answers-ann1.json answers-ann2.json --out study/report.json

Input: JSON Lines with uid, prompt, target_words, story, as eval.py leaves them in stories/; several lines with one uid
make a set. Hand out only the .html files. Left out: assigning different pairs to different annotators, mixed-effects
models, a correction for many model pairs. The hashes show which study an answer belongs to and that nobody edited it in
passing; they are no proof against a forger, who has the page and can compute them too.
"""
from __future__ import annotations

import argparse
import base64
import bisect
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from lib.stats import bootstrap, cohen, krippendorff, sign_test

TEMPLATE = Path(__file__).with_suffix(".html")
EDGES = (500, 1000, 2000, 4000, 6000, 8000, 12000)  # upper ends of the length buckets, in requested words
CHOICES = {"A": "“A is better”", "tie": "“Tie”", "B": "“B is better”"}
SCALES = ("quality", "diversity")
FEW = 30          # fewer prompts than this: the interval itself is not to be trusted
READING = 240     # words a minute; careful reading of fiction


def digest(value) -> str:
    """SHA-256 of compact JSON, as the page has it from JSON.stringify: integers, text, lists and objects only."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def bucket(target_words: int) -> str:
    place = bisect.bisect_left(EDGES, target_words)
    return f"{[0, *EDGES][place] + 1}-{EDGES[place]}" if place < len(EDGES) else f"over {EDGES[-1]}"


def unit(prompt: str) -> str:
    """The prompt without its length: asked for at five lengths it is still one prompt, and figures resample prompts."""
    return re.sub(r"\d[\d,]*(?=[ -]words?)", "N", prompt)


# ---------------------------------------------------------------------------------------------------------------------
# make: stories -> pages and key

def read_stories(path: Path) -> dict[str, dict]:
    """JSON Lines -> {uid: {"prompt", "target_words", "stories": [text]}}; ValueError names the file and the line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give JSON Lines with uid, prompt, target_words and story")
    prompts: dict[str, dict] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = {**json.loads(line)}
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair passes json.loads but fits no page
        except (json.JSONDecodeError, TypeError, UnicodeError) as problem:
            raise ValueError(f"{where}: not a JSON object in valid UTF-8 ({problem})") from None
        for name, kind in (("uid", str), ("prompt", str), ("target_words", int), ("story", str)):
            if not isinstance(row.get(name), kind):
                raise ValueError(f"{where}: {name!r} is missing or not {kind.__name__}; "
                                 "each line needs uid, prompt, target_words and story")
        if not row["story"].strip():
            raise ValueError(f"{where}: the story of {row['uid']} is empty; write it again, or take this uid "
                             "out of every model's file")
        asked = {"prompt": row["prompt"], "target_words": row["target_words"]}
        entry = prompts.setdefault(row["uid"], {**asked, "stories": []})
        if asked != {k: entry[k] for k in asked}:
            raise ValueError(f"{where}: uid {row['uid']} had another prompt or target_words before; one uid, one prompt")
        entry["stories"].append(row["story"])
    if not prompts:
        raise ValueError(f"{path}: holds no stories")
    return prompts


def read_models(arguments: list[str]) -> tuple[dict[str, dict], dict[str, dict]]:
    """FILE or NAME=FILE each -> {model: prompts} and {model: where they came from}; all answer the same prompts."""
    models, files = {}, {}
    for argument in arguments:
        name, _, path = argument.partition("=") if "=" in argument and not Path(argument).exists() else ("", "", argument)
        name = name or Path(path).stem
        if name in models:
            raise ValueError(f"two files are named {name}; give them names: one={files[name]['file']} two={path}")
        models[name] = read_stories(Path(path))
        files[name] = {"file": path, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    if len(models) < 2:
        raise ValueError("a comparison needs the stories of two models or more")
    first, *others = models
    for other in others:
        # A prompt that one model failed on must not vanish in silence: that would flatter the model that failed.
        if lone := sorted(models[first].keys() ^ models[other].keys()):
            raise ValueError(f"{first} and {other} answer different prompts: {len(lone)} uids are in one file only "
                             f"(such as {lone[0]}); write the missing stories or take these uids out of both")
        for uid, entry in models[first].items():
            if any(entry[k] != models[other][uid][k] for k in ("prompt", "target_words")):
                raise ValueError(f"uid {uid} has different prompts in {first} and {other}; one uid, one prompt")
    return models, files


def spread(prompts: dict[str, dict], rng: random.Random) -> list[str]:
    """Uids in random order, dealt in turn from the length buckets, so that any prefix covers the lengths evenly."""
    piles = defaultdict(list)
    for uid in rng.sample(sorted(prompts), len(prompts)):
        piles[bucket(prompts[uid]["target_words"])].append(uid)
    turn = {uid: place for pile in piles.values() for place, uid in enumerate(pile)}
    return sorted(turn, key=lambda uid: turn[uid])


def plant(story: str, choice: str, rng: random.Random) -> str:
    """Puts the note of an attention check between two paragraphs of the story's second half, or at its end."""
    parts = story.rstrip().split("\n\n")
    at = rng.randint((len(parts) + 1) // 2, len(parts))
    note = f"[A note to the reader, not part of the story: for this pair, please answer {CHOICES[choice]}.]"
    return "\n\n".join(parts[:at] + [note] + parts[at:])


def draw_pairs(models: dict[str, dict], n_pairs: int, n_checks: int, n_stories: int, rng: random.Random) -> dict[str, dict]:
    """{pair id: uid, unit, models, target_words, stories (indices), words, check}; the same pairs for all annotators."""
    prompts = next(iter(models.values()))
    duels = list(combinations(models, 2))
    if n_pairs > len(prompts) * len(duels):
        raise ValueError(f"--pairs {n_pairs}: {len(prompts)} prompts and {len(duels)} pairs of models give at most "
                         f"{len(prompts) * len(duels)} pairs; lower --pairs or add prompts")
    order = spread(prompts, rng)
    plan = [(order[i // len(duels)], duels[i % len(duels)], False) for i in range(n_pairs)]
    # Checks cost reading time too: prompts not read anyway, the shortest first.
    used = {uid for uid, _, _ in plan}
    words = {uid: sum(len(m[uid]["stories"][0].split()) for m in models.values()) for uid in order}
    spare = sorted(order, key=lambda uid: (uid in used, words[uid]))
    plan += [(spare[i % len(spare)], rng.choice(duels), True) for i in range(n_checks)]
    ids = rng.sample(range(0x1000, 0x10000), len(plan))  # ids tell nothing: not the prompt, not which are checks
    pairs = {}
    for number, (uid, duel, check) in zip(ids, plan):
        chosen = {m: sorted(rng.sample(range(len(models[m][uid]["stories"])), n_stories)) for m in duel}
        texts = [models[m][uid]["stories"][i] for m in duel for i in chosen[m]]
        pairs[f"p{number:x}"] = {"uid": uid, "unit": unit(prompts[uid]["prompt"]), "models": list(duel),
                                 "target_words": prompts[uid]["target_words"], "stories": chosen,
                                 "words": sum(len(t.split()) for t in texts), "check": check}
    return pairs


def lay_out(pairs: dict[str, dict], models: dict[str, dict], rng: random.Random) -> tuple[list[dict], dict[str, dict]]:
    """One annotator's page: its items in random order, and what the key must know of them (sides, expected answers)."""
    flips = {}
    for duel in {tuple(p["models"]): None for p in pairs.values()}:  # each model is on the left in half of its pairs
        ids = [i for i, p in pairs.items() if tuple(p["models"]) == duel]
        start = rng.randint(0, 1)
        flips |= {i: (start + place) % 2 for place, i in enumerate(rng.sample(ids, len(ids)))}
    items, secret = [], {}
    for i in rng.sample(list(pairs), len(pairs)):
        pair = pairs[i]
        sides = pair["models"][::-1] if flips[i] else pair["models"]
        texts = [[models[m][pair["uid"]]["stories"][k] for k in rng.sample(pair["stories"][m], len(pair["stories"][m]))]
                 for m in sides]
        secret[i] = {"sides": list(sides)}
        if pair["check"]:
            secret[i]["expected"] = rng.choice(list(CHOICES))
            side = rng.choice(texts)
            at = rng.randrange(len(side))
            side[at] = plant(side[at], secret[i]["expected"], rng)
        items.append({"id": i, "prompt": models[sides[0]][pair["uid"]]["prompt"], "A": texts[0], "B": texts[1]})
    return items, secret


def page_html(study: str, annotator: str, items: list[dict]) -> str:
    """The template with the data inside. "<" is escaped, so no story can close the script element; and the policy in
    the page's head allows only the page's own script, by its hash: whatever a story contains cannot run."""
    html = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", html, re.S).group(1)
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps({"study": study, "annotator": annotator, "items": items}, ensure_ascii=False)
    return html.replace("__SCRIPT_HASH__", allowed, 1).replace("__STUDY__", data.replace("<", "\\u003c"), 1)


def make(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if (out / "key.json").exists():
        raise ValueError(f"{out / 'key.json'} exists, and its answers are worth nothing without it; choose another --out")
    models, files = read_models(args.stories_files)
    for name in args.annotators:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or args.annotators.count(name) > 1 or name in models:
            raise ValueError(f"--annotators {name}: use different names of letters, digits, - and _, none a model's")
    if args.pairs < 1 or args.checks < 0 or (args.stories is not None and args.stories < 1):
        raise ValueError("--pairs and --stories must be at least 1, --checks at least 0")
    fewest = min(len(entry["stories"]) for prompts in models.values() for entry in prompts.values())
    n_stories = args.stories or fewest
    if n_stories > fewest:
        raise ValueError(f"--stories {n_stories}: some model has only {fewest} for some prompt")
    rng = random.Random(args.seed)
    pairs = draw_pairs(models, args.pairs, args.checks, n_stories, rng)
    pages = {name: lay_out(pairs, models, rng) for name in args.annotators}
    key = {"seed": args.seed, "models": files, "pairs": pairs,
           "pages": {name: {"sha256": digest(items), "items": secret} for name, (items, secret) in pages.items()}}
    key["study"] = digest(key)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "key.json", json.dumps(key, ensure_ascii=False, indent=1) + "\n")
    for name, (items, _) in pages.items():
        write_text(out / f"{name}.html", page_html(key["study"], name, items))
    hours = sum(p["words"] for p in pairs.values()) / READING / 60
    print(f"{len(args.annotators)} pages in {out}: {args.pairs} pairs and {args.checks} checks each, "
          f"{n_stories} + {n_stories} stories a pair, about {hours:.1f} h of reading at {READING} words a minute")
    print(f"hand out the .html files only; {out / 'key.json'} stays with you")
    texts = {text for items, _ in pages.values() for item in items for text in (item["prompt"], *item["A"], *item["B"])}
    for name in models:  # the page itself names nobody, but a model may have signed its work
        if signed := sum(bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.I)) for text in texts):
            print(f"warning: {name!r}, a model's name, stands in {signed} of the texts; see whether it gives the model away")


# ---------------------------------------------------------------------------------------------------------------------
# report: key and answers -> judgements -> figures

def read_json(path: str) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: not JSON ({problem}); was the download cut short?") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; give the file that the page downloaded")
    return value


def read_key(path: str) -> dict:
    key = read_json(path)
    if key.get("study") != digest({k: v for k, v in key.items() if k != "study"}):
        raise ValueError(f"{path}: not a key of this program, or altered since it was made; restore the original key.json")
    return key


def read_answers(path: str, key: dict) -> dict:
    """One annotator's file, checked: this study, this annotator's page, unaltered, answers of the kinds the page gives."""
    file = read_json(path)
    if not {"study", "annotator", "page", "answers", "sha256"} <= file.keys():
        raise ValueError(f"{path}: not an answers file; give the file that the page downloaded")
    if file["study"] != key["study"]:
        raise ValueError(f"{path}: answers of another study; use the key.json that was made with its page")
    if file["sha256"] != digest({k: v for k, v in file.items() if k != "sha256"}):
        raise ValueError(f"{path}: altered since it was downloaded; ask the annotator for the file as the page wrote it")
    page = key["pages"].get(file["annotator"])
    if page is None or file["page"] != page["sha256"]:
        raise ValueError(f"{path}: the page of {file['annotator']!r} is not the one made for this study; its texts differ")
    ids = [a["id"] for a in file["answers"]]
    if len(set(ids)) < len(ids) or not set(ids) <= page["items"].keys():
        raise ValueError(f"{path}: an answer is given twice or to a pair that the page does not hold")
    for a in file["answers"]:
        rated = all(r in range(1, 6) for r in a["ratings"].values())
        if a["choice"] not in CHOICES or type(a["ms"]) is not int or not rated:
            raise ValueError(f"{path}: the answer to {a['id']} has a choice, rating or time that the page cannot give")
    return file


def unblind(file: dict, key: dict) -> list[dict]:
    """Answers -> judgements: score is 1, 0.5 or 0 for the first model of the pair, ratings go by model."""
    rows = []
    for a in file["answers"]:
        pair, item = key["pairs"][a["id"]], key["pages"][file["annotator"]]["items"][a["id"]]
        sides = dict(zip("AB", item["sides"]))
        winner = sides.get(a["choice"])  # None: a tie
        score = 0.5 if winner is None else float(winner == pair["models"][0])
        ratings = {m: {s: a["ratings"][f"{side}_{s}"] for s in SCALES if f"{side}_{s}" in a["ratings"]}
                   for side, m in sides.items()}
        rows.append({"annotator": file["annotator"], "pair": a["id"],
                     **{k: pair[k] for k in ("uid", "unit", "target_words", "words", "models")},
                     "sides": sides, "choice": a["choice"], "winner": winner, "score": score, "ratings": ratings,
                     "reason": a["reason"], "seconds": a["ms"] / 1000,
                     "check_passed": a["choice"] == item["expected"] if pair["check"] else None})
    return rows


def by_prompt(rows: list[dict], value) -> dict[str, list[float]]:
    groups = defaultdict(list)
    for row in rows:
        if (v := value(row)) is not None:
            groups[row["unit"]].append(v)
    return groups


def by_length(rows: list[dict], figures) -> dict:
    """{length bucket, the shortest first: figures of its rows}."""
    piles = defaultdict(list)
    for r in sorted(rows, key=lambda r: r["target_words"]):
        piles[bucket(r["target_words"])].append(r)
    return {b: figures(pile) for b, pile in piles.items()}


def compare(rows: list[dict]) -> dict:
    """Figures of one pair of models; the sign test takes each prompt once, by the sum of its annotators' votes."""
    first, second = rows[0]["models"]
    scores = by_prompt(rows, lambda r: r["score"])
    votes = Counter(int(np.sign(sum(s - 0.5 for s in prompt))) for prompt in scores.values())
    both = {s: [r for r in rows if all(s in r["ratings"][m] for m in (first, second))] for s in SCALES}
    gaps = {s: by_prompt(both[s], lambda r: r["ratings"][first][s] - r["ratings"][second][s]) for s in SCALES}
    won, tied, lost = (sum(r["score"] == score for r in rows) for score in (1, 0.5, 0))
    return {"judgements": len(rows), "won": won, "tied": tied, "lost": lost, "win_rate": bootstrap(scores),
            "sign_test": {"prompts_won": votes[1], "prompts_tied": votes[0], "prompts_lost": votes[-1],
                          "p": sign_test(votes[1], votes[-1])},
            "rating_difference": {scale: bootstrap(values) for scale, values in gaps.items() if values}}


def rate(rows: list[dict]) -> dict:
    """{model: {scale: mean and interval}} of the sets' ratings, {} where pairs hold single stories."""
    result = defaultdict(dict)
    for model in sorted({m for r in rows for m in r["models"]}):
        for scale in SCALES:
            if values := by_prompt(rows, lambda r: r["ratings"].get(model, {}).get(scale)):
                result[model][scale] = bootstrap(values)
    return dict(result)


def agree(rows: list[dict]) -> dict:
    """Agreement on who won (by model, not by side) and on the ratings, over what more than one annotator answered."""
    label = {(r["annotator"], r["pair"]): r["score"] for r in rows}
    units, rated = defaultdict(list), {scale: defaultdict(list) for scale in SCALES}
    for r in rows:
        units[r["pair"]].append(r["score"])
        for model, ratings in r["ratings"].items():
            for scale, value in ratings.items():
                rated[scale][r["pair"], model].append(value)
    kappas = []
    for one, two in combinations(sorted({r["annotator"] for r in rows}), 2):
        shared = [p for p in units if (one, p) in label and (two, p) in label]
        a, b = [label[one, p] for p in shared], [label[two, p] for p in shared]
        kappas.append({"annotators": [one, two], "pairs": len(shared), "kappa": cohen(a, b),
                       "agreed": sum(x == y for x, y in zip(a, b)) / len(shared) if shared else None})
    alphas = {s: krippendorff(list(values.values()), interval=True) for s, values in rated.items() if values}
    return {"cohen": kappas, "krippendorff_alpha": krippendorff(list(units.values())), "krippendorff_alpha_ratings": alphas}


def describe(rows: list[dict], page: dict, pairs: dict[str, dict]) -> dict:
    """How one annotator worked: share answered, checks passed, leaning to a side, time and speed."""
    real, checks = ([r for r in rows if pairs[r["pair"]]["check"] == check] for check in (False, True))
    asked = sum(pair["check"] for pair in pairs.values())
    sided = [r["choice"] for r in real if r["choice"] != "tie"]
    speeds = [60 * r["words"] / r["seconds"] for r in real if r["seconds"]]
    return {"answered": len(real), "of": len(page["items"]) - asked,
            "checks_passed": sum(r["check_passed"] for r in checks), "checks_answered": len(checks),
            "checks_of": asked,
            "chose_side_A": sided.count("A") / len(sided) if sided else None,
            "median_seconds": float(np.median([r["seconds"] for r in real])) if real else None,
            "median_words_a_minute": float(np.median(speeds)) if speeds else None}


def report(key: dict, files: list[dict]) -> dict:
    rows = [row for file in files for row in unblind(file, key)]
    real = [row for row in rows if row["check_passed"] is None]
    if not real:
        raise ValueError("none of the files answers a single pair; nothing to report")
    annotators = {f["annotator"]: describe([r for r in rows if r["annotator"] == f["annotator"]],
                                           key["pages"][f["annotator"]], key["pairs"]) for f in files}
    duels = {duel: [r for r in real if r["models"] == list(duel)] for duel in combinations(key["models"], 2)}
    comparisons = [{"models": list(duel), **compare(mine), "by_length": by_length(mine, compare)}
                   for duel, mine in duels.items() if mine]
    result = {"study": key["study"], "annotators": annotators, "absent": sorted(key["pages"].keys() - annotators.keys()),
              "comparisons": comparisons, "ratings": rate(real),
              "ratings_by_length": by_length(real, rate),
              "agreement": agree(real)}
    return {**result, "warnings": warn(result), "judgements": rows}


def warn(result: dict) -> list[str]:
    """What a reader of the figures has to know first. Nobody is left out: leave a file off the command line to do so."""
    notes = [f"no answers from {name}: the figures rest on the others" for name in result["absent"]]
    for name, a in result["annotators"].items():
        if a["answered"] < a["of"]:
            notes.append(f"{name} answered {a['answered']} of {a['of']} pairs; the rest is missing, not tied")
        if a["checks_passed"] < a["checks_answered"]:
            notes.append(f"{name} passed only {a['checks_passed']} of {a['checks_answered']} answered attention checks")
        if (a["median_words_a_minute"] or 0) > 3 * READING:
            notes.append(f"{name} took {a['median_words_a_minute']:.0f} words a minute (median): too fast to have read them")
    for c in result["comparisons"]:
        duel, win = " against ".join(c["models"]), c["win_rate"]
        if win["prompts"] < FEW:
            notes.append(f"{duel}: only {win['prompts']} prompts (n < {FEW}), intervals are rough")
        if win["interval"] and win["interval"][0] == win["interval"][1]:
            notes.append(f"{duel}: all prompts agree, so the interval has no width; read the sign test")
    return notes


def show(result: dict) -> str:
    def figure(f, scale=1.0, unit=""):
        around = "[{:.1f}, {:.1f}]".format(*(scale * x for x in f["interval"])) if f["interval"] else "[no interval]"
        return f"{scale * f['mean']:.1f}{unit} {around}, n = {f['prompts']}"
    lines = []
    for c in result["comparisons"]:
        lines.append(f"{' against '.join(c['models'])}: win rate {figure(c['win_rate'], 100, ' %')} prompts; {c['won']} won, "
                     f"{c['tied']} tied, {c['lost']} lost; sign test p = {c['sign_test']['p']:.3g}")
        lines += [f"  {b} words: {figure(d['win_rate'], 100, ' %')}" for b, d in c["by_length"].items()]
    for model, scales in result["ratings"].items():
        lines.append(f"{model}: " + "; ".join(f"{scale} {figure(f)}" for scale, f in scales.items()))
    number = lambda x: "undefined" if x is None else f"{x:.2f}"
    for k in result["agreement"]["cohen"]:
        lines.append(f"{' and '.join(k['annotators'])}: Cohen's kappa {number(k['kappa'])} over {k['pairs']} shared pairs")
    lines.append(f"Krippendorff's alpha {number(result['agreement']['krippendorff_alpha'])}")
    return "\n".join(lines + [f"warning: {note}" for note in result["warnings"]])


def run_report(args: argparse.Namespace) -> None:
    key = read_key(args.key)
    files: dict[str, dict] = {}
    for path in args.answers:
        file = read_answers(path, key)
        if file["annotator"] in files:
            raise ValueError(f"{path}: a second file of annotator {file['annotator']}; give each annotator's last file once")
        files[file["annotator"]] = file
    result = report(key, list(files.values()))
    write_text(Path(args.out), json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(show(result))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.blind", description="A blinded human study of stories.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("make", help="stories of two or more models -> a page per annotator and key.json")
    one.add_argument("stories_files", nargs="+", metavar="FILE",
                     help="JSON Lines of one model, FILE or NAME=FILE; win rates are the earlier file's against the later")
    one.add_argument("--out", required=True, help="folder for the pages and key.json")
    one.add_argument("--annotators", nargs="+", required=True, metavar="NAME", help="one page each")
    one.add_argument("--pairs", type=int, default=60, help="pairs each annotator reads (default %(default)s)")
    one.add_argument("--stories", type=int, help="stories a side; 2 or more are rated for quality and diversity "
                                                 "(default: as many as every prompt has)")
    one.add_argument("--checks", type=int, default=3, help="attention checks on top of the pairs (default %(default)s)")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=make)
    two = commands.add_parser("report", help="key.json and downloaded answers -> win rates, agreement, ratings")
    two.add_argument("answers", nargs="+", metavar="ANSWERS", help="one downloaded file per annotator")
    two.add_argument("--key", required=True)
    two.add_argument("--out", required=True, help="report.json to write")
    two.set_defaults(run=run_report)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, FileNotFoundError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
