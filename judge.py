"""What a story is worth: rubric -> verdict -> score -> reward.

A judge fills a rubric (rubrics/story_quality.md: strengths P, faults N, an open bonus and penalty, each with
quotes). The score is computed here from the dimensions, never taken from the judge's own total. The reward
then subtracts what no judge has to count: words, repetition, blank text. Recipe: POLARIS (arXiv 2606.04095).
Two judges: `Judge` asks an OpenAI-compatible endpoint, pays for each verdict once and survives what HTTP
does. `OfflineJudge` measures form, not quality, for demos and tests without a network. Either judges in one
of three modes: a story alone, a pair (each story beside the person's, in both orders), or a ranking of a
whole group.

    python judge.py score stories/tiny.jsonl              # the offline judge
    JUDGE_URL=http://localhost:8000/v1 JUDGE_MODEL=my-judge JUDGE_API_KEY=... python judge.py score
    stories.jsonl
    python judge.py agree A.jsonl B.jsonl                 # do two files of verdicts agree?
    python judge.py calibrate stories/tiny.jsonl          # noise and soft spots of a judge, before it is
    trusted

Left out: fine-tuned reward models, tournaments (scripts/benchmarks.py), frameworks around requests.
"""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import secrets
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lib import form, stats
from lib.answers import Fault, closed, fenced
from lib.endpoint import Endpoint, known, settings, then
from lib.flags import opt
from lib.form import between
from lib.form import words as count_words
from lib.rubric import Rubric, read_rubric
from lib.settings import Settings
from lib.store import Ledger

ROOT = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------------------------
# Rubric and verdict


def load_rubric(name: str | Path, criteria: list[dict] | None = None) -> Rubric:
    """rubrics/<name>.md, or a path; see `read_rubric`."""
    return read_rubric(Path(name) if str(name).endswith(".md") else ROOT / "rubrics" / f"{name}.md", criteria)


RUBRIC = load_rubric("story_quality")


@dataclass
class Verdict:
    scores: dict[str, float]  # dimension -> points; beside the person's story: -3 (worse) .. 3 (better)
    score: float  # aggregate(scores), the rank's points, or 100 * pair_score
    why: dict[str, str] = field(default_factory=dict)
    quotes: dict[str, list[str]] = field(default_factory=dict)
    evidence: float | None = None  # share of the cited quotes found in the story; None: none were due
    rubric: str = RUBRIC.version
    judge: str = ""
    samples: int = 1  # verdicts averaged
    orders: list[float] | None = None  # of a pair: the score shown first, and shown second

    def to_dict(self) -> dict:
        return asdict(self)


def aggregate(scores: dict[str, float], rubric: Rubric = RUBRIC) -> float:
    """Score of a verdict's dimensions. points: S = P - N + B' - Pen' in [-159, 108]; mean, range: 0..100."""
    if rubric.rule == "points":
        P = sum(scores[d.key] for d in rubric.dimensions if d.key[0] == "P" and d.key != "PENALTY")
        N = sum(scores[d.key] for d in rubric.dimensions if d.key[0] == "N")
        bonus = 0.0 if N > P / 2 else scores["BONUS"]  # no prize for a badly flawed story
        penalty = min(3.0, scores["PENALTY"]) if P > 1.5 * N else scores["PENALTY"]  # spares a good one
        return max(-159.0, min(108.0, P - N + bonus - penalty))
    # Benchmarks grade every line on one scale; a fault counts from the other end.
    shares, base = 0.0, 0.0
    for d in rubric.dimensions:
        low = d.low if rubric.rule == "range" else 0.0
        score = d.high + d.low - scores[d.key] if d.key[0] == "N" else scores[d.key]
        shares, base = shares + d.weight * ((score - low) / (d.high - low)) ** d.power, base + d.weight
    return 100 * shares / base


def mean_verdict(verdicts: list[Verdict], rubric: Rubric) -> Verdict | None:
    """Dimensions averaged, then aggregated; words and quotes are the first judge's. None of none."""
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else None
    scores = {d.key: statistics.fmean(v.scores[d.key] for v in verdicts) for d in rubric.dimensions}
    evidence = stats.mean(v.evidence for v in verdicts)
    score = aggregate(scores, rubric)
    return replace(verdicts[0], scores=scores, score=score, samples=len(verdicts), evidence=evidence)


def empty_verdict(rubric: Rubric, judge: str) -> Verdict:
    """An empty story is not a failed call: it earns nothing and bears every fault, and no judge is paid to
    say so."""
    bad = {d.key: d.high if d.key[0] == "N" or d.key == "PENALTY" else d.low for d in rubric.dimensions}
    why = dict.fromkeys(bad, "the story is empty")
    return Verdict(bad, aggregate(bad, rubric), why, rubric=rubric.version, judge=judge)


# ------------------------------------------------------------------------------------------------------------
# The reward: what the judge says, less what a rule can count


@dataclass(frozen=True)
class LengthBounds:
    """How far a story may stray from the words asked for: a share, within absolute limits."""

    below_share: float = 0.15
    below_min: float = 350
    below_max: float = 1000
    above_share: float = 0.25
    above_min: float = 600
    above_max: float = 1500
    blank_words: int = 150  # a story with fewer words counts as blank

    def band(self, target_words: float) -> tuple[float, float]:
        """(lowest, highest) number of words without a penalty."""
        below = min(max(self.below_share * target_words, self.below_min), self.below_max)
        above = min(max(self.above_share * target_words, self.above_min), self.above_max)
        return max(0.0, target_words - below), target_words + above


# One choice for training and evaluation. paper: stories of 1,000 words and more. short: 30 to 500 words.
BANDS = {"paper": LengthBounds(), "short": LengthBounds(below_min=8, above_min=12, blank_words=15)}
SHORT_BOUNDS = BANDS["short"]  # until callers move


def bounds(name: str) -> LengthBounds:
    if name not in BANDS:
        raise ValueError(f"there is no length band {name!r}; choose one of {', '.join(BANDS)}")
    return BANDS[name]


def length_penalty(words: int, target_words: float, bounds: LengthBounds = BANDS["paper"]) -> float:
    """0 inside the band, rising to 1 at no words, and at twice the upper bound."""
    low, high = bounds.band(target_words)
    if words < low:
        return 1 - words / low
    return min(1.0, words / high - 1) if words > high else 0.0


def repetition_penalty(text: str) -> float:
    """0..1.5 from repeated 4-grams (anywhere: r4; within the last 64 positions: rl) and repeated lines
    (rd)."""
    r4, rl, rd = form.repeats(text)
    # A story may say a thing twice: the first 8 % of repeats are free.
    return min(1.5, 0.8 * (0.7 * max(0.0, r4 - 0.08) + 0.3 * rl) + 0.4 * rd)


def blank_penalty(text: str, bounds: LengthBounds = BANDS["paper"]) -> float:
    """1 for a text that is not a story: too few words, or nearly all white space. Else 0."""
    visible = sum(not c.isspace() and c.isprintable() for c in text)
    return float(count_words(text) < bounds.blank_words or visible < 0.1 * len(text))


def reward(
    verdict: Verdict, story: str, target_words: float, bounds: LengthBounds = BANDS["paper"]
) -> dict[str, float]:
    """quality (S / 100), length, repetition, blank (penalties before their weights), and total in [-2, 2].
    ValueError: there is no verdict."""
    if verdict is None:
        raise ValueError("a story without a verdict has no reward: take it out of its group")
    parts = {
        "quality": verdict.score / 100,
        "length": length_penalty(count_words(story), target_words, bounds),
        "repetition": repetition_penalty(story),
        "blank": blank_penalty(story, bounds),
    }
    total = parts["quality"] - 1.5 * parts["repetition"] - 0.8 * parts["length"] - 1.0 * parts["blank"]
    return {**parts, "total": max(-2.0, min(2.0, total))}


# ------------------------------------------------------------------------------------------------------------
# What is asked of a judge, and what may count as an answer


def strip_length(prompt: str) -> str:
    """The request without its length, which the rule measures better: the sentence goes, or, where it asks
    for more, its clause."""
    clause = re.compile(
        r"[\s,]*\(?\b(?:(?:that|which) (?:is|are) |at )?(?:about |around |roughly |approximately |exactly )?"
        r"\d[\d,]*(?:[\s-]words?[\s-](?:long|in length)|-word)\b\)?",
        re.I,
    )
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+", prompt.strip()):
        rest, found = clause.subn("", sentence)
        if not found or count_words(rest) > 5:
            kept.append(rest if found else sentence)
    return " ".join(kept).strip() or prompt


def pointwise_messages(rubric: Rubric, prompt: str, story: str) -> list[dict]:
    """The rubric first (the same for each call, so that providers can cache it), then the fenced request and
    story."""
    lines = [f"## {d.key} {d.title} ({d.low:g}-{d.high:g})\n{d.text}".strip() for d in rubric.dimensions]
    entry = '"{}": {{"why": "...", "quotes": ["..."], "score": {:g}-{:g}}}'
    shape = ", ".join(entry.format(d.key, d.low, d.high) for d in rubric.dimensions)
    rules = (
        "Answer with one JSON object and nothing else. For every dimension: why (1-3 sentences), quotes (0-2 exact "
        f"quotes from the story, at most 12 words each), then score. No total.\n{{{shape}}}"
    )
    return _messages([rubric.preamble, *lines, rules], {"REQUEST": strip_length(prompt), "STORY": story})


def _messages(system: list[str], texts: dict[str, str]) -> list[dict]:
    return [{"role": "system", "content": "\n\n".join(system)}, {"role": "user", "content": fenced(texts)}]


def read_verdict(answer: dict, story: str, rubric: Rubric, judge: str) -> Verdict:
    """Checks a judge's answer against the rubric. Keys of its own, totals say, are dropped. Raises Fault."""
    scores, why, quotes = {}, {}, {}
    for d in rubric.dimensions:
        item = _item(answer, d.key)
        scores[d.key] = _number(item, "score", d.key, d.low, d.high)
        why[d.key], quotes[d.key] = str(item.get("why", "")), _quotes(item, "quotes", d.key)
    found = evidence(scores, quotes, story)
    return Verdict(scores, aggregate(scores, rubric), why, quotes, found, rubric.version, judge)


def _item(answer: dict, key: str) -> dict:
    if not isinstance(answer.get(key), dict):
        raise Fault("schema", "ask", f"{key} has no score")
    return answer[key]


def _number(item: dict, name: str, key: str, low: float, high: float) -> float:
    if name not in item:
        raise Fault("schema", "ask", f"{key} has no {name}")
    score = item[name]
    if isinstance(score, str) and re.fullmatch(r"[+-]?\d{1,3}(\.\d+)?", score.strip()):
        score = float(score)  # the number is not in doubt, only its quotation marks
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not low <= score <= high:
        raise Fault("schema", "ask", f"{key} is {str(score)[:40]!r}, not a number in {low:g}-{high:g}")
    return float(score)


def _quotes(item: dict, name: str, key: str) -> list[str]:
    cited = item.get(name, [])
    if not isinstance(cited, list) or not all(isinstance(q, str) for q in cited):
        raise Fault("schema", "ask", f"the {name} of {key} are not a list of strings")
    return [q for q in cited if q.strip()]


def evidence(scores: dict[str, float], quotes: dict[str, list[str]], story: str) -> float | None:
    """Share of the quotes that are in the story, white space, case and quotation marks folded. A fault
    claimed without a quote counts as one that was not found: a judge that cites nothing has seen nothing.
    None: nothing claimed."""
    page, found = fold(story), []
    for key, score in scores.items():
        found += [bool(fold(q)) and fold(q) in page for q in quotes.get(key, [])]
        if score > 0 and not quotes.get(key) and (key[0] == "N" or key in ("BONUS", "PENALTY")):
            found.append(False)
    return sum(found) / len(found) if found else None


def fold(text: str) -> str:
    return " ".join(re.sub(r"[\"'“”‘’«»`]", "", text).casefold().split()).strip(" .,;:!?…")


def rank_task(rubric: Rubric, prompt: str, stories: list[str], draw: int = 0):
    """Messages, schema and reader of a ranking: all stories of a group in one prompt, by number, shuffled."""
    order = shown_order(prompt, stories, draw)
    task = (
        f"Rank the {len(stories)} stories below, which answer one request, by these standards. Answer with one JSON "
        'object and nothing else: {"why": "...", "order": [numbers of all stories, the best first]}.'
    )
    texts = {"REQUEST": strip_length(prompt)} | {f"STORY {i + 1}": stories[s] for i, s in enumerate(order)}
    number = {"type": "integer", "minimum": 1, "maximum": len(stories)}
    numbers = {"type": "array", "minItems": len(stories), "maxItems": len(stories), "items": number}
    schema = closed({"why": {"type": "string", "maxLength": 1000}, "order": numbers})

    def read(answer: dict) -> dict:
        ranked = answer.get("order")
        all_once = sorted(str(i + 1) for i in range(len(stories)))
        if not isinstance(ranked, list) or sorted(map(str, ranked)) != all_once:
            raise Fault("schema", "ask", "the order does not name each story once")
        return {"scores": rank_scores([order[int(number) - 1] for number in ranked])}

    return _messages([rubric.preamble, task, rubric.standards()], texts), schema, read


def shown_order(prompt: str, stories: list[str], draw: int = 0) -> list[int]:
    """shown_order[i]: which story is shown as number i + 1. Shuffled, so that no place in the list belongs to
    a row."""
    return random.Random(json.dumps([prompt, stories, draw])).sample(range(len(stories)), len(stories))


def rank_scores(order: list[int]) -> list[float]:
    """order: indices, the best first -> points for each index, 100 for the best .. 0 for the last, evenly
    spaced."""
    points = {index: 100 * (1 - place / max(1, len(order) - 1)) for place, index in enumerate(order)}
    return [points[index] for index in range(len(order))]


# ------------------------------------------------------------------------------------------------------------
# The two judges

MODES = ("story", "pair", "group")


@dataclass
class Flags:
    """The flags of every program that asks a judge."""

    judge: str = opt("auto", "auto: api where JUDGE_URL is set", "judge", ("auto", "api", "offline"))
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "OpenAI-compatible address; key: JUDGE_API_KEY")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "its model, default $JUDGE_MODEL")
    judge_samples: int = opt(1, "verdicts averaged per story")
    judge_settings: dict[str, str] = opt({}, "any of " + ", ".join(Settings.__dataclass_fields__))


def make(c, rubric: Rubric = RUBRIC, cache=None, learned: dict | None = None) -> OfflineJudge | Judge:
    """The judge of a run or an evaluation. learned: what `try_out` returned. c: judge ("api", "offline" or "auto"), judge_url, judge_model,
    judge_settings, and where it has them judge_samples, judge_mode, out, name. ValueError: it cannot work."""
    url = c.judge_url or os.environ.get("JUDGE_URL")
    model = c.judge_model or os.environ.get("JUDGE_MODEL")
    mode = getattr(c, "judge_mode", "story")
    if mode not in MODES:
        raise ValueError(f"--judge_mode {mode}: choose one of {', '.join(MODES)}")
    try:
        how = settings(c.judge_settings)
        Settings(**how)
    except ValueError as error:
        raise ValueError(f"--judge_settings: {error}") from None
    if c.judge == "offline" or (c.judge == "auto" and not (url or model)):
        if rubric.version != RUBRIC.version:
            raise ValueError(
                f"rubric {rubric.version} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL; the offline "
                "judge fills story_quality alone"
            )
        return OfflineJudge(mode=mode)
    samples, cache = getattr(c, "judge_samples", 1), cache or Path(c.out, "judge.sqlite")
    run = getattr(c, "name", "")
    judge = Judge(url, model, rubric=rubric, samples=samples, mode=mode, cache=cache, run=run, **how)
    vars(judge).update(learned or {})
    return judge


def check(c):
    """ValueError: flags of a training run that no judge can follow."""
    settings(c.judge_settings)
    if c.judge == "api" and c.steps and not (c.judge_url and c.judge_model):
        raise ValueError(
            f"the {c.preset} preset needs a judge: set JUDGE_URL and JUDGE_MODEL (and JUDGE_API_KEY) or --judge_url and "
            "--judge_model to an OpenAI-compatible endpoint, or pass --judge offline, which measures form, not quality"
        )
    if c.judge_mode == "group" and c.judge_samples > 1:
        raise ValueError("--judge_mode group ranks a group once; leave --judge_samples out")
    if bool(c.watch_url) != bool(c.watch_model):
        raise ValueError("the watch judge needs both --watch_url and --watch_model")


def try_out(c) -> dict:
    """One small call before anything is loaded or written -> what it showed about the server, for `make`.
    ValueError: no verdict."""
    judge = make(c, cache=":memory:")
    try:
        judge.check()
        return judge.learned()
    finally:
        judge.close()


class Asked:
    """The verdicts of one group, each asked for as soon as its story is finished, or all once the last one is.

    group: rows with .example, .story, .completion_ids (empty while a story is being written)."""

    def __init__(self, judge, mode: str, group: list):
        self.judge, self.mode, self.group, self.futures = judge, mode, group, [None] * len(group)
        for i, row in enumerate(group):
            if row.completion_ids:
                self.finished(i)

    def finished(self, i: int):
        """Story i is there."""
        prompt = self.group[i].example.prompt
        if self.mode == "story":
            self.futures[i] = self.judge.submit(prompt, self.group[i].story)
        elif all(row.completion_ids for row in self.group):
            self.futures = self.judge.submit_group(prompt, [row.story for row in self.group])

    def settle(self, bounds: LengthBounds):
        """Waits, and sets each row's verdict, rewards (named parts) and reward. A verdict that cannot be had leaves
        the reward None: no number stands for a failure."""
        for row, future in zip(self.group, self.futures):
            verdict = future.result()
            row.verdict, row.rewards = verdict.to_dict() if verdict else None, {}
            if verdict:
                row.rewards = reward(verdict, row.story, row.example.target_words, bounds)
            row.reward = row.rewards.pop("total", None)


class OfflineJudge:
    """Measures FORM, not quality: whole sentences, their shape, repetition, words of the request, things and
    people named, and, where stories/words.txt lists real words (one per line, lower case), the share of them.
    Deterministic, free, and blind to meaning: a dull story in good form beats a fine one in bad form. For
    demos and tests, never for a claim.
    """

    def __init__(self, words: str | Path | None = ROOT / "stories" / "words.txt", mode: str = "story"):
        listed = words and Path(words).is_file()
        self.words = frozenset(Path(words).read_text(encoding="utf-8").split()) if listed else None
        self.name = "offline-form-1" + ("+words" if self.words else "")  # what it measures, and by what
        self.mode, self.rubric, self.counts, self.ledger = mode, RUBRIC, Counter(), Ledger()
        self.out_of_budget, self.last_error = False, ""

    def score(self, prompt: str, story: str) -> Verdict:
        if not story.split():
            return empty_verdict(RUBRIC, self.name)
        text, bribes = TO_THE_JUDGE.subn(" ", story)
        scores = form_points(form.measure(text, strip_length(prompt), self.words), bool(bribes))
        return Verdict(scores, aggregate(scores), rubric=RUBRIC.version, judge=self.name)

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        return known(self.score(prompt, story))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        order = sorted(range(len(stories)), key=lambda i: -self.score(prompt, stories[i]).score)
        points = rank_scores(order)
        return [known(Verdict({}, p, rubric=RUBRIC.version, judge=self.name)) for p in points]

    def metrics(self) -> dict[str, float]:
        return {}

    def check(self):
        pass

    def learned(self) -> dict:
        return {}

    def close(self):
        pass


# Words to the judge are not part of the story: the rest is measured as if they were not there, then marked
# down.
TO_THE_JUDGE = re.compile(
    r"\b(?:(?:ignore|disregard|forget|override) (?:all|any|the|every|previous|your|these)\b[^.!?]{0,40}?"
    r"(?:instruction|rule|criteri|prompt|rubric)"
    r"|(?:give|award|assign)\b[^.!?]{0,30}?(?:full|top|maximum|highest|perfect) (?:marks|points|score|rating)"
    r"|full marks|maximum score|the rubric|language model|(?:grade|rate|score) this)[^.!?]*[.!?]*",
    re.I,
)


def form_points(f: form.Form, bribed: bool) -> dict[str, float]:
    """A story's form as points of rubrics/story_quality.md, each in its range."""
    # Strengths count only as far as the text holds together: word lists, loops and crumbs of text earn
    # little.
    shouted, stolen = between(f.capitals, 0.3, 0.6), between(f.copied, 0.1, 0.6)
    sound = between(f.words, 4, 32) * between(f.sentences, 0, 3) * (0.3 if bribed else 1.0)
    unreal, unjoined = between(f.unreal, 0.02, 0.35), between(f.unjoined, 0.01, 0.1)
    for flaw in (between(f.loops, 0.1, 0.6), unreal, unjoined, shouted, f.stuffed, stolen):
        sound *= 1 - flaw
    cut_off, crumb = 0.5 * (1 - f.finished), 1 - between(f.words, 4, 24)
    breakdown = max(cut_off, between(f.loops, 0.1, 0.5), between(f.doubled, 0, 0.1), crumb)
    several, speech = between(f.sentences, 1, 5), f.quotes >= 2 and f.quotes % 2 == 0
    points = {
        "P1": 15 * sound * min(1.0, f.used),
        "P2": 20 * sound * (0.6 * f.finished + 0.4 * several),
        "P3": 15 * sound * (f.people + f.acts) / 2,
        "P4": 15 * sound * (between(f.spread, 0.1, 0.4) + f.openers) / 2,
        "P5": 20 * sound * (f.things + f.richness) / 2,
        "P6": 15 * sound * (0.8 * f.feelings + 0.2 * speech),
        "N1": 15 * max(bribed, stolen, f.stuffed),
        "N2": 20 * between(f.unjoined, 0.0, 0.12),
        "N3": 15 * (1 - f.richness) * 0.5,
        "N4": 15 * f.ragged,
        "N5": 15 * between(f.loops, 0.02, 0.4),
        "N6": 20 * breakdown,
        "N7": 15 * 0.5 * (f.quotes % 2),
        "N8": 8 * max(between(f.odd_marks, 0, 0.1), f.lower_starts, shouted),
        "N9": 8 * (1 - f.openers) * between(f.sentences, 1, 4),
        "N10": 20 * between(f.unreal, 0.02, 0.3),
        "BONUS": 0,
        "PENALTY": 8 * bribed,
    }
    return {key: float(value) for key, value in points.items()}


class Judge(Endpoint):
    """Asks an OpenAI-compatible endpoint. score() blocks, submit() gives a Future; both are thread-safe. A
    verdict that cannot be had is None. how: see lib/settings.py. ValueError: cannot work."""

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        *,
        rubric: Rubric = RUBRIC,
        samples: int = 1,
        mode: str = "story",
        **how,
    ):
        if samples < 1:
            raise ValueError("the judge's samples must be at least 1")
        self.rubric, self.samples, self.mode = rubric, samples, mode
        url, model = url or os.environ.get("JUDGE_URL"), model or os.environ.get("JUDGE_MODEL")
        if not url or not model:
            raise ValueError(
                "no judge: set JUDGE_URL (such as http://localhost:8000/v1) and JUDGE_MODEL, or pass --judge_url "
                "and --judge_model"
            )
        key = os.environ.get("JUDGE_API_KEY", "") if api_key is None else api_key
        super().__init__(url, model, key, **how)

    def score(self, prompt: str, story: str) -> Verdict | None:
        return self.submit(prompt, story).result()

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        """Future of a Verdict, or of None when none could be had. With samples > 1 the mean of those that
        came. Another `draw` of the same story is another verdict, bought and kept apart: it measures the
        judge's noise."""
        if not story.strip():
            return known(empty_verdict(self.rubric, self.name))
        draws = range(draw * self.samples, (draw + 1) * self.samples)
        futures = [self._pointwise("pointwise", sample, prompt, story) for sample in draws]
        return then(futures, lambda values: mean_verdict([Verdict(**v) for v in values if v], self.rubric))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        """One call ranks all stories of a group -> per story a future of a Verdict (score 100 for the best ..
        0 for the last), or of None."""
        task = rank_task(self.rubric, prompt, stories, draw)
        ranking = self.ask("groupwise", draw, prompt, stories, *task)

        def verdict(ranked: dict | None, i: int) -> Verdict | None:
            return ranked and Verdict({}, ranked["scores"][i], rubric=self.rubric.version, judge=self.name)

        return [then([ranking], lambda values, i=i: verdict(values[0], i)) for i in range(len(stories))]

    def ask(
        self, kind: str, draw: int, prompt: str, stories: list[str], messages: list[dict], schema: dict,
        read: Callable[[dict], dict], retries: int | None = None, find_mode: bool = False,
    ) -> Future:  # fmt: skip
        """Any question about stories -> Future of read(answer), or of None; `read` checks the answer, raises
        Fault."""
        identity = [kind, self.rubric.version, prompt, stories]
        return self.answer(identity, draw, messages, schema, read, retries, find_mode)

    def check(self):
        """One small call before a run, which also finds the schema mode. ValueError: the reason it fails."""
        story = "The lamp went out. Mara climbed the stairs in the dark, counting, and lit it again before the boats turned."
        kind = f"check {secrets.token_hex(8)}"  # never answered from the store
        if self._pointwise(kind, 0, "Write about a keeper.", story, 2, True).result() is None:
            raise ValueError(
                f"the judge {self.name} at {self.endpoint} gave no verdict ({self.last_error}); "
                "check JUDGE_URL, JUDGE_MODEL and JUDGE_API_KEY"
            )

    def learned(self) -> dict:
        """What `check` found out about the server."""
        return {"schema_mode": self.schema_mode, "token_field": self.token_field}

    def _pointwise(self, kind, draw, prompt, story, retries=None, find_mode=False) -> Future:
        def read(answer: dict) -> dict:
            return read_verdict(answer, story, rubric, self.name).to_dict()

        rubric = self.rubric  # a copy of this judge may get another one meanwhile
        messages = pointwise_messages(rubric, prompt, story)
        return self.ask(kind, draw, prompt, [story], messages, rubric.schema(), read, retries, find_mode)


# ------------------------------------------------------------------------------------------------------------
# Guard: is the judge being fooled? Pure functions, one line each in the loop


def evidence_metrics(verdicts: list[dict | None]) -> dict[str, float]:
    """judge/evidence: mean share of quotes found, over saved verdicts that cite any. {} when none does."""
    share = stats.mean(v["evidence"] for v in verdicts if v)
    return {} if share is None else {"judge/evidence": share}


def make_watch(c) -> Judge | None:
    """A second judge that is never trained on, one for the whole run; None without c.watch_url."""
    if not c.watch_url:
        return None
    cache, key = Path(c.out, "judge.sqlite"), os.environ.get("WATCH_API_KEY", "")
    return Judge(c.watch_url, c.watch_model, key, cache=cache, run=f"{c.name}/watch")


def watch(judge: Judge | None, rows: list[tuple[str, str, float]], most: int = 8) -> dict[str, float]:
    """watch/*: at most `most` of the step's rows (prompt, story, score of the judge trained on) before the
    watch judge. {} without one."""
    rows = rows[:: max(1, len(rows) // most)][:most] if judge else []
    futures = [judge.submit(prompt, story) for prompt, story, _ in rows]
    return watch_metrics([score for *_, score in rows], [f.result() for f in futures]) if rows else {}


def watch_metrics(trained: list[float], watched: list[Verdict | None]) -> dict[str, float]:
    """A held-out judge beside the one trained on, over the same stories. trained: scores the reward was made
    from. watch/gap = trained judge - watch judge: when it grows, the policy learns the judge and not the
    craft."""
    pairs = [(a, b.score) for a, b in zip(trained, watched, strict=True) if b is not None]
    metrics = {"watch/failed": float(len(watched) - len(pairs))}
    if pairs:
        own, other = map(list, zip(*pairs))
        metrics["watch/score"] = statistics.fmean(other)
        metrics["watch/gap"] = statistics.fmean(own) - statistics.fmean(other)
        if (r := stats.correlation(own, other)) is not None:
            metrics["watch/correlation"] = r
    return metrics


ALARMS = {
    "reward/repetition": (1, "repetition rises"),
    "reward/length": (1, "the length penalty rises"),
    "judge/evidence": (-1, "fewer of the judge's quotes are in the stories"),
    "watch/gap": (1, "the gap to the watch judge widens"),
}


def alarms(history: list[dict], window: int = 20) -> list[str]:
    """Warnings when, from the first to the second half of the last `window` steps, the reward rises and a
    sign of cheating does too, each by more than two standard errors. history: metrics, one dict per step;
    steps without a metric are skipped."""
    recent = history[-window:]

    def rise(name: str, sign: int = 1) -> float:
        halves = recent[: window // 2], recent[window // 2 :]
        return stats.rise(*([sign * m[name] for m in half if name in m] for half in halves))

    gain = rise("reward/mean") if len(recent) == window else 0.0
    found = []
    for name, (sign, what) in ALARMS.items():
        if gain and (move := rise(name, sign)):
            sentence = f"the reward rose by {gain:.3f} in {window} steps while {what} ({name} by {move:.3f})"
            found.append(f"{sentence}: is the judge being gamed?")
    return found


# ------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    # score, agree and calibrate are a script, which imports this file; arrows between files never run back.
    runpy.run_module("scripts.calibrate", run_name="__main__")
