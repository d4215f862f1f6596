"""A blinded human study of stories: pages for readers, a key for the researcher, statistics from both.

`make` draws pairs of stories that different models wrote to the same prompt, gives each annotator their own
random order and sides, and writes one HTML page per annotator, which works from disk and names no model.
`report` joins the downloaded answers with key.json; `python judge.py agree --pairs` reads its judgements. The
set-up (60 blinded pairs, two annotators, better or tie) is that of the POLARIS human study; sets of several
stories per prompt, rated for quality and diversity, are those of Diverse Creative Writing.

    python -m scripts.blind make base.jsonl trained=out/eval/NAME/stories/MODEL.jsonl --annotators ann1 ann2
    python -m scripts.blind report --key out/blind/key.json answers-ann1.json answers-ann2.json

Hand out only the .html files. Left out: different pairs for different annotators, mixed-effects models, a
correction for many model pairs. The hashes show which study an answer belongs to and that it was not edited
in passing. They do not stop a forger, who can compute them too.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import median

from lib import files, sets
from lib.flags import exits_cleanly, parser
from lib.pages import estimate, markdown_table, table, write_page
from lib.stats import FEW, bootstrap, buckets_of, cohen, krippendorff, mean, sign_test

PAGE = Path(__file__).with_name("blind.html")
CHOICES = {"A": "“A is better”", "tie": "“Tie”", "B": "“B is better”"}
NOTE = "[A note to the reader, not part of the story: for this pair, please answer {}.]"
SCALES = ("quality", "diversity")
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


# ---- make: stories of models -> a page per annotator, and the key that the researcher keeps ----------------


def spread(prompts: dict[str, dict], rng: random.Random) -> list[str]:
    """Uids in random order, dealt in turn from the length buckets: any prefix covers the lengths evenly."""
    shuffled = [{"uid": uid, **prompts[uid]} for uid in rng.sample(sorted(prompts), len(prompts))]
    turn = {row["uid"]: place for pile in by_length(shuffled).values() for place, row in enumerate(pile)}
    return sorted(turn, key=turn.get)


def draw_pairs(models, n_pairs: int, n_checks: int, n_stories: int, rng: random.Random) -> dict[str, dict]:
    """{pair id: uid, prompt, unit, target_words, models, their stories, words, check}, the same for all."""
    prompts = next(iter(models.values()))
    duels = list(combinations(models, 2))
    if n_pairs > (most := len(prompts) * len(duels)):
        told = f"{len(prompts)} prompts and {len(duels)} pairs of models give at most {most} pairs"
        raise ValueError(f"--pairs {n_pairs}: {told}; lower --pairs or add prompts")
    order = spread(prompts, rng)
    plan = [(order[i // len(duels)], duels[i % len(duels)], False) for i in range(n_pairs)]
    # Checks cost reading time too: prompts that are not read anyway, the shortest first.
    used = {uid for uid, _, _ in plan}
    spare = sorted(order, key=lambda uid: (uid in used, prompts[uid]["target_words"]))
    plan += [(spare[i % len(spare)], rng.choice(duels), True) for i in range(n_checks)]
    ids = rng.sample(range(0x1000, 0x10000), len(plan))  # ids tell nothing: neither prompt nor check
    pairs = {}
    for number, (uid, duel, check) in zip(ids, plan):
        stories = {m: rng.sample(models[m][uid]["stories"], n_stories) for m in duel}
        unit = re.sub(r"\d[\d,]*(?=[ -]words?)", "N", prompts[uid]["prompt"])  # all but the length
        pair = {"uid": uid, **prompts[uid], "unit": unit, "models": list(duel), "stories": stories}
        words = sum(len(story.split()) for side in stories.values() for story in side)
        pairs[f"p{number:x}"] = pair | {"words": words, "check": check}
    return pairs


def lay_out(pairs: dict[str, dict], rng: random.Random) -> tuple[list[dict], dict[str, dict]]:
    """One annotator's page: its items in random order, and what the key must know of them."""
    # Of each two models, either is on the left in half of the pairs.
    ids = sorted(rng.sample(list(pairs), len(pairs)), key=lambda i: pairs[i]["models"])
    flips = {i: place % 2 for place, i in enumerate(ids, rng.randint(0, 1))}
    items, secret = [], {}
    for i in rng.sample(list(pairs), len(pairs)):
        pair = pairs[i]
        sides = pair["models"][::-1] if flips[i] else pair["models"]
        texts = [rng.sample(pair["stories"][m], len(pair["stories"][m])) for m in sides]
        secret[i] = {"sides": list(sides)}
        if pair["check"]:  # a note between two paragraphs of the second half of a story, or at its end
            secret[i]["expected"] = choice = rng.choice(list(CHOICES))
            side = rng.choice(texts)
            at = rng.randrange(len(side))
            parts = side[at].rstrip().split("\n\n")
            parts.insert(rng.randint((len(parts) + 1) // 2, len(parts)), NOTE.format(CHOICES[choice]))
            side[at] = "\n\n".join(parts)
        items.append({"id": i, "prompt": pair["prompt"], "A": texts[0], "B": texts[1]})
    return items, secret


def check(args, models: dict[str, dict]) -> int:
    """-> stories per side. ValueError: settings that cannot work, or a story without a word."""
    for name in args.annotators:
        unfit = not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name in models
        if unfit or args.annotators.count(name) > 1:
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


def make(args):
    out, rng = Path(args.out), random.Random(args.seed)
    if (out / "key.json").exists():
        more = "its answers are worth nothing without it; choose another --out"
        raise ValueError(f"{out / 'key.json'} exists, and {more}")
    models, paths = sets.read_sets(args.stories_files)
    n_stories = check(args, models)
    consent = Path(args.consent).read_text(encoding="utf-8").strip() if args.consent else ""
    pairs = draw_pairs(models, args.pairs, args.checks, n_stories, rng)
    pages = {name: lay_out(pairs, rng) for name in args.annotators}
    hashes = {name: {"sha256": digest(items), "items": secret} for name, (items, secret) in pages.items()}
    key = {"seed": args.seed, "models": paths, "pairs": pairs, "pages": hashes, "consent": consent}
    key["study"] = digest(key)
    files.write_json(out / "key.json", key)
    for name, (items, _) in pages.items():
        page = {"study": key["study"], "annotator": name, "items": items, "consent": consent}
        write_page(out / f"{name}.html", page, PAGE)
    hours = sum(p["words"] for p in pairs.values()) / READING / 60
    each = f"{args.pairs} pairs and {args.checks} checks each, {n_stories} + {n_stories} stories per pair"
    print(f"{len(pages)} pages in {out}: {each}, {hours:.1f} h of reading at {READING} words per minute")
    print(f"hand out the .html files only; {out / 'key.json'} stays with you")
    texts = {pair["prompt"] for pair in pairs.values()}
    for pair in pairs.values():
        texts.update(*pair["stories"].values())
    for name in models:  # the page itself names no model, but a model may have signed its work
        if signed := sum(bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.I)) for text in texts):
            more = f"is in {signed} of the texts; see whether it gives the model away"
            print(f"warning: {name!r}, a model's name, {more}")


# ---- report: key and answers -> judgements -> win rates, sign test, agreement, ratings ---------------------


def read_sealed(path: str, seal: str, what: str) -> dict:
    """A JSON object that holds the hash of the rest of it as `seal`. ValueError: it is not `what`."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: not JSON ({problem}); was the download cut short?") from None
    rest = {k: v for k, v in value.items() if k != seal} if isinstance(value, dict) else value
    if rest == value or value[seal] != digest(rest):
        raise ValueError(f"{path}: not {what}")
    return value


def read_answers(path: str, key: dict) -> list[dict]:
    """One annotator's file -> judgements with their texts: story_1 is the first model's, score is 1, 0.5 or 0
    for it, ratings are (model, scale, points). ValueError: altered, or of another study or page."""
    what = "an answers file, or altered since it was downloaded; give the file that the page wrote"
    file, rows = read_sealed(path, "sha256", what), []
    page = key["pages"].get(file["annotator"], {})
    if file["study"] != key["study"] or file["page"] != page.get("sha256"):
        raise ValueError(f"{path}: answers of another study, or to other texts; use its own key.json")
    for a in file["answers"]:
        pair, secret = key["pairs"][a["id"]], page["items"][a["id"]]
        sides, (first, second) = dict(zip("AB", secret["sides"])), pair["models"]
        row = {"annotator": file["annotator"], "pair": a["id"], **pair, **secret}
        one, two = row.pop("stories").values()
        row |= {"story_1": "\n\n".join(one), "story_2": "\n\n".join(two)}  # of a set, all its stories
        given = [(m, s, a["ratings"].get(f"{side}_{s}")) for side, m in sides.items() for s in SCALES]
        row["ratings"] = [(m, s, points) for m, s, points in given if points]
        winner = {**sides, "tie": None}[a["choice"]]
        preferred, score = {first: ("1", 1.0), second: ("2", 0.0), None: ("tie", 0.5)}[winner]
        row |= {"choice": a["choice"], "winner": winner, "preferred": preferred, "score": score}
        rows.append(row | {"reason": a["reason"], "seconds": a["ms"] / 1000})
    return rows


def grouped(pairs) -> dict:
    """(key, value) pairs -> {key: its values}."""
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def compare(rows: list[dict]) -> dict:
    """Figures of one pair of models; the sign test takes each prompt once, by the sum of its votes."""
    scores = grouped((r["unit"], r["score"]) for r in rows)
    votes = [sum(prompt) - len(prompt) / 2 for prompt in scores.values()]
    won, lost = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    signs = {"prompts_won": won, "prompts_tied": votes.count(0), "prompts_lost": lost}
    signs |= {"p": sign_test(won, lost)}
    won, tied, lost = (sum(r["score"] == score for r in rows) for score in (1, 0.5, 0))
    found = {"judgements": len(rows), "won": won, "tied": tied, "lost": lost}
    return found | {"win_rate": bootstrap(scores), "sign_test": signs}


def rate(rows: list[dict]) -> dict:
    """{model: {scale: mean and interval}} of the sets' ratings, {} where pairs hold single stories."""
    result = defaultdict(dict)
    rated = grouped(((model, scale), (r["unit"], x)) for r in rows for model, scale, x in r["ratings"])
    for (model, scale), values in sorted(rated.items()):
        result[model][scale] = bootstrap(grouped(values))
    return dict(result)


def agree(rows: list[dict]) -> list[dict]:
    """Agreement on who won (by model, not by side) and on the ratings, where several annotators answered."""
    votes = grouped((r["annotator"], (r["pair"], r["score"])) for r in rows)
    rated = grouped((scale, ((r["pair"], model), x)) for r in rows for model, scale, x in r["ratings"])
    said = grouped((r["pair"], r["score"]) for r in rows)
    found = [("all readers, Krippendorff's alpha", len(said), krippendorff(list(said.values())))]
    for one, two in combinations(sorted(votes), 2):
        other = dict(votes[two])
        both = [(score, other[pair]) for pair, score in votes[one] if pair in other]
        kappa = cohen([a for a, _ in both], [b for _, b in both])
        found.append((f"{one} and {two}, Cohen's kappa", len(both), kappa))
    for scale, values in rated.items():
        sides = list(grouped(values).values())
        found.append((f"{scale}, alpha of the ratings", len(sides), krippendorff(sides, interval=True)))
    return [dict(zip(("who", "cases", "agreement"), row)) for row in found]


def describe(rows: list[dict], key: dict) -> tuple[dict[str, dict], list[str]]:
    """{annotator: share answered, checks passed, leaning to a side, speed}, and warnings."""
    found, notes, due = {}, [], sum(not pair["check"] for pair in key["pairs"].values())
    for name, mine in grouped((row["annotator"], row) for row in rows).items():
        real, checks = ([r for r in mine if r["check"] == check] for check in (False, True))
        speeds = [60 * r["words"] / r["seconds"] for r in real if r["seconds"]]
        passed, speed = sum(r["choice"] == r["expected"] for r in checks), median(speeds) if speeds else None
        leaning = mean(r["choice"] == "A" for r in real if r["choice"] != "tie")
        found[name] = {"answered": len(real), "of": due}
        found[name] |= {"checks_passed": passed, "checks_answered": len(checks)}
        found[name] |= {"chose_side_A": leaning, "median_words_a_minute": speed}
        if len(real) < due:
            notes.append(f"{name} answered {len(real)} of {due} pairs; the rest is missing, not tied")
        if passed < len(checks):
            notes.append(f"{name} passed only {passed} of {len(checks)} answered attention checks")
        if (speed or 0) > 3 * READING:
            notes.append(f"{name} took {speed:.0f} words per minute (median): too fast to have read them")
    return found, notes


def report(key: dict, rows: list[dict], real: list[dict]) -> dict:
    """Figures of all judgements, and of those that are no attention checks; "warnings": what a reader of them
    has to know first. Leave a file off the command line to leave it out."""
    annotators, notes = describe(rows, key)
    absent, comparisons = sorted(key["pages"].keys() - annotators.keys()), []
    notes = [f"no answers from {name}: the figures rest on the others" for name in absent] + notes
    for duel in combinations(key["models"], 2):
        if not (mine := [r for r in real if r["models"] == list(duel)]):
            continue
        lengths = {length: compare(part) for length, part in by_length(mine).items()}
        comparisons.append({"models": list(duel), **compare(mine), "by_length": lengths})
        who, win = " against ".join(duel), comparisons[-1]["win_rate"]
        if win["prompts"] < FEW:
            notes.append(f"{who}: only {win['prompts']} prompts (n < {FEW}), intervals are rough")
        if win["interval"] and win["interval"][0] == win["interval"][1]:
            notes.append(f"{who}: all prompts agree, so the interval has no width; read the sign test")
    result = {"study": key["study"], "annotators": annotators, "absent": absent, "comparisons": comparisons}
    rated = {length: rate(part) for length, part in by_length(real).items()}
    result |= {"ratings": rate(real), "ratings_by_length": rated, "agreement": agree(real)}
    return result | {"warnings": notes}


# ---- the page of a report ----------------------------------------------------------------------------------


def figure(f: dict, scale: float = 1.0) -> str:
    around = [scale * x for x in f["interval"] or ()]
    return f"{estimate(scale * f['mean'], around, 1)}, n = {f['prompts']}"


def show(result: dict, rows: list[dict]) -> tuple[list[str], list[dict]]:
    """What the interval of each win rate supports, in a sentence; tables of win rates by length, agreement,
    ratings, how each reader worked, and what they said."""
    lead, wins, readers = [], [], []
    for c in result["comparisons"]:
        duel, (low, high) = " against ".join(c["models"]), c["win_rate"]["interval"] or (0, 1)
        better = c["models"][0] if low > 0.5 else c["models"][1] if high < 0.5 else ""
        said = f"readers prefer {better}" if better else "no clear preference"
        lead.append(f"{duel}, win rate in %: {figure(c['win_rate'], 100)} prompts; {said}.")
        for length, f in {"all": c, **c["by_length"]}.items():
            p, counts = f"{f['sign_test']['p']:.3g}", [f["won"], f["tied"], f["lost"]]
            wins.append([duel, length, figure(f["win_rate"], 100), *counts, p])
    agreed = [[a["who"], a["cases"], estimate(a["agreement"], None, 2)] for a in result["agreement"]]
    rated = [[m, *(figure(f[s]) if s in f else "-" for s in SCALES)] for m, f in result["ratings"].items()]
    for name, a in result["annotators"].items():
        pairs, checks = f"{a['answered']} of {a['of']}", f"{a['checks_passed']} of {a['checks_answered']}"
        leaning, speed = estimate(a["chose_side_A"], None, 2), estimate(a["median_words_a_minute"], None, 0)
        readers.append([name, pairs, checks, leaning, speed])
    said = [[r["annotator"], r["winner"] or "tie", r["reason"]] for r in rows if r["reason"]]
    columns = ["models", "words requested", "win rate in %", "won", "tied", "lost", "sign test p"]
    worked = ["reader", "pairs answered", "checks passed", "share that chose A", "words per minute"]
    tables = [
        table("Win rates", columns, wins, caption="[95 % interval over prompts]"),
        table("Agreement", ["who", "pairs or sides", "agreement"], agreed),
        table("Ratings, 1 to 5", ["model", *SCALES], rated),
        table("Readers", worked, readers),
        table("What readers said", ["reader", "preferred", "why"], said, fold="Reasons"),
    ]
    return lead, [t for t in tables if t["rows"]]


def run(args):
    what = "a key of this program, or altered since it was made; restore the original key.json"
    key, rows, out = read_sealed(args.key, "study", what), [], Path(args.out)
    if not all("stories" in pair for pair in key["pairs"].values()):
        raise ValueError(f"{args.key}: made by an older version; report it with the commit that made it")
    for path in args.answers:
        mine = read_answers(path, key)
        if {row["annotator"] for row in mine} & {row["annotator"] for row in rows}:
            raise ValueError(f"{path}: a second file of one annotator; give each one's last file once")
        rows += mine
    real = [row for row in rows if not row["check"]]
    if not real:
        raise ValueError("none of the files answers a single pair; nothing to report")
    result = report(key, rows, real)
    lead, tables = show(result, real)
    page = {"title": "Which stories readers prefer", "warnings": result["warnings"], "lead": lead}
    files.write_json(out, result)
    files.write_lines(out.with_suffix(".jsonl"), real)
    write_page(out.with_suffix(".html"), page | {"tables": tables})
    print("\n".join(lead) + "\n")
    for t in tables:
        if "fold" not in t:
            print(f"{t['title']}\n\n{markdown_table(t['columns'], t['rows'])}")
    print("\n".join([*(f"warning: {note}" for note in result["warnings"]), str(out.with_suffix(".html"))]))


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    commands = p.add_subparsers(required=True)
    sub = commands.add_parser("make", help="stories of models -> a page per annotator and key.json")
    sub.set_defaults(run=make)
    add = sub.add_argument
    more = "stories of one model, FILE or NAME=FILE; win rates are the earlier file's against the later"
    add("stories_files", nargs="+", metavar="FILE", help=more)
    add("--out", default="out/blind", help="folder for the pages and key.json (%(default)s)")
    add("--annotators", nargs="+", required=True, metavar="NAME", help="one page each")
    add("--pairs", type=int, default=60, help="pairs each annotator reads (%(default)s)")
    add("--stories", type=int, help="per side; 2 and more are rated too (default: all that there are)")
    add("--checks", type=int, default=3, help="attention checks beside the pairs (%(default)s)")
    add("--consent", metavar="FILE", help="a text that readers agree to before they begin (default: none)")
    add("--seed", type=int, default=0)
    sub = commands.add_parser("report", help="key.json and answers -> win rates, agreement, ratings")
    sub.set_defaults(run=run)
    add = sub.add_argument
    add("answers", nargs="+", metavar="ANSWERS", help="one downloaded file per annotator")
    add("--key", required=True)
    more = "the figures; a page of them and the judgements are written beside it (%(default)s)"
    add("--out", default="out/blind/report.json", help=more)
    args = p.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
