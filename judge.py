"""What a story is worth: rubric -> verdict -> score -> reward.

A judge fills a rubric (rubrics/story_quality.md: strengths P, faults N, an open bonus and penalty, each with
quotes). The score is computed here from the dimensions, never taken from the judge's own total. The reward
then subtracts what no judge has to count: words, repetition, blank text. Recipe: POLARIS (arXiv 2606.04095).
`Judge` asks an OpenAI-compatible endpoint and pays for each verdict once; `OfflineJudge` measures form, not
quality, for demos and tests. Modes: a story alone, beside the person's in both orders, or a group's ranking.
`python judge.py COMMAND` tries a judge before it is trusted: see scripts/calibrate.py.

Left out: fine-tuned reward models, tournaments (scripts/pairwise.py), frameworks around requests.
"""

import json
import os
import random
import runpy
import secrets
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib import form, stats
from lib.answers import messages, rank_scores, ranking_schema, read_ranking
from lib.endpoint import Endpoint, Later, Settings, known, settings
from lib.flags import opt
from lib.form import strip_length
from lib.form import words as count_words
from lib.rubric import MARKS, MOST, Rubric, Verdict, read_rubric

ROOT = Path(__file__).resolve().parent


def load_rubric(name: str | Path, criteria: list[dict] | None = None) -> Rubric:
    """rubrics/<name>.md, or a path; see `read_rubric`."""
    return read_rubric(Path(name) if str(name).endswith(".md") else ROOT / "rubrics" / f"{name}.md", criteria)


RUBRIC = load_rubric("story_quality")

# ---- The reward: what the judge says, less what a rule can count -------------------------------------------


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
    steep: float = 1  # how fast the penalty rises outside

    def band(self, target_words: float) -> tuple[float, float]:
        """(lowest, highest) number of words without a penalty."""
        below = min(max(self.below_share * target_words, self.below_min), self.below_max)
        above = min(max(self.above_share * target_words, self.above_min), self.above_max)
        return max(0.0, target_words - below), target_words + above


# One choice for training and evaluation. paper: stories of 1,000 words and more. short: 30 to 500 words.
BANDS = {"paper": LengthBounds(), "short": LengthBounds(below_min=8, above_min=12, blank_words=15, steep=8)}


def check_room(targets: list[int], tokens_per_word: float, limit: int, bounds: LengthBounds) -> str:
    """A note where stories of the lengths asked for need more than `limit` tokens, else ""."""
    least = [bounds.band(target)[0] * tokens_per_word for target in targets]
    long = sum(tokens > limit for tokens in least)
    told = f"note: {long} of {len(targets)} requests need more than --max_new_tokens {limit}"
    more = f", up to {max(least):.0f}; their stories are cut, and stay below the length band"
    return told + more if long else ""


def length_penalty(words: int, target_words: float, bounds: LengthBounds) -> float:
    """0 inside the band, rising to 1: at no words, and at twice the upper bound, or `steep` times as fast."""
    low, high = bounds.band(target_words)
    outside = 1 - words / low if words < low else max(0.0, words / high - 1)
    return min(1.0, bounds.steep * outside)


def repetition_penalty(text: str) -> float:
    """0..1.5 from repeated 4-grams (anywhere: r4; within 64 positions: rl) and repeated lines (rd)."""
    r4, rl, rd = form.repeats(text)
    # A story may say a thing twice: the first 8 % of repeats are free.
    return min(1.5, 0.8 * (0.7 * max(0.0, r4 - 0.08) + 0.3 * rl) + 0.4 * rd)


def blank_penalty(text: str, bounds: LengthBounds) -> float:
    """1 for a text that is not a story: too few words, or nearly all white space. Else 0."""
    visible = sum(not c.isspace() and c.isprintable() for c in text)
    return float(count_words(text) < bounds.blank_words or visible < 0.1 * len(text))


PARTS = ("quality", "length", "repetition", "blank")


def reward(verdict: Verdict, story: str, target_words: float, bounds: LengthBounds) -> dict[str, float]:
    """quality (S / 100), length, repetition, blank (penalties before their weights), and total in [-2, 2]."""
    parts = {
        "quality": verdict.score / 100,
        "length": length_penalty(count_words(story), target_words, bounds),
        "repetition": repetition_penalty(story),
        "blank": blank_penalty(story, bounds),
    }
    total = parts["quality"] - 1.5 * parts["repetition"] - 0.8 * parts["length"] - 1.0 * parts["blank"]
    return {**parts, "total": max(-2.0, min(2.0, total))}


# ---- Which judge, and how it is asked ----------------------------------------------------------------------


@dataclass
class Flags:
    """The flags of every program that asks a judge."""

    judge: Literal["auto", "api", "offline"] = opt("auto", "auto: api where JUDGE_URL is set", "judge")
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "OpenAI-compatible address; key: JUDGE_API_KEY")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "its model, default $JUDGE_MODEL")
    judge_mode: Literal["story", "pair", "group"] = opt("story", "alone, beside the person's, or ranked")
    judge_samples: int = opt(1, "verdicts averaged per story", low=1)
    judge_settings: dict[str, str] = opt({}, "any of " + ", ".join(Settings.__dataclass_fields__))


def offline(c) -> bool:
    return c.judge == "offline" or (c.judge == "auto" and not c.judge_url)


def check(c):
    """ValueError: flags that no judge can follow. c: the fields of `Flags`, and watch."""
    if c.judge_samples > 1 and c.judge_mode == "group":
        raise ValueError("--judge_mode group ranks a group once; leave --judge_samples out")
    settings(c.judge_settings)
    if not offline(c) and getattr(c, "steps", 1) and not (c.judge_url and c.judge_model):
        raise ValueError(
            "no judge: set JUDGE_URL and JUDGE_MODEL (and JUDGE_API_KEY), or --judge_url and --judge_model, "
            "to an OpenAI-compatible endpoint, or pass --judge offline, which measures form, not quality"
        )
    if watch := getattr(c, "watch", {}):
        every = watch.get("every", "10")
        if {*watch, "every"} != {"url", "model", "every"} or not every.isdigit() or not int(every):
            raise ValueError("--watch needs url=ADDRESS model=NAME, and may have every=STEPS")


def make(c, rubric: Rubric = RUBRIC, cache: str | Path | None = None, learned: dict | None = None):
    """The judge of a run or an evaluation. c: see `check`, and out and name. cache: default OUT/judge.sqlite.
    learned: what `try_out` found. ValueError: it cannot work."""
    check(c)
    if not offline(c):
        how = {"rubric": rubric, "samples": c.judge_samples, "run": getattr(c, "name", "")}
        how["cache"] = cache or Path(c.out, "judge.sqlite")
        judge = Judge(c.judge_url, c.judge_model, **how, **c.judge_settings)
        vars(judge).update(learned or {})
        return judge
    if rubric.version != RUBRIC.version:
        raise ValueError(f"rubric {rubric.version} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL")
    return OfflineJudge()


def try_out(c) -> dict:
    """One small call before a run -> what it found out about the server, for `make`. ValueError: none."""
    with closing(make(c, cache=":memory:")) as judge:
        return judge.check()


class Asked:
    """The verdicts of one group, each asked for when its story is finished, or all when the last one is.
    group: rows with .example, .story, .is_human, .completion_ids (empty while a story is being written)."""

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
        elif self.mode == "pair":
            row = self.group[i]
            person = row.story if row.is_human else row.example.story  # who joins the group or not
            self.futures[i] = self.judge.beside(prompt, row.story, person)
        elif all(row.completion_ids for row in self.group):
            self.futures = self.judge.submit_group(prompt, [row.story for row in self.group])


def settle(groups: list[Asked], bounds: LengthBounds):
    """Waits for the verdicts of these groups, and sets each row's verdict, rewards (named parts) and reward.
    A verdict that cannot be had leaves the reward None: no number stands for a failure."""
    for row, future in ((r, f) for asked in groups for r, f in zip(asked.group, asked.futures)):
        verdict = future.result()
        row.verdict, row.rewards = verdict.to_dict() if verdict else None, {}
        if verdict:
            row.rewards = reward(verdict, row.story, row.example.target_words, bounds)
        row.reward = row.rewards.pop("total", None)


# ---- What a judge is asked, in the words that it reads. A task: messages, JSON schema, reader of its answer

ALONE = "Answer with one JSON object and nothing else. For every dimension: why (1-3 sentences), quotes "
ALONE += "({}), then score. No total."
QUOTES = "0-2 exact quotes from the story, at most 12 words each"
PROOFS = "two exact quotes from the story for each fault counted, in turn, at most 12 words each"
PAIR = f"""Two stories answer one request. Compare them heading by heading: which is better there, and by how
much. Under a strength (P, BONUS) the better story has more of it, under a fault (N, PENALTY) less. Neither
their order nor their length is a reason. Answer with one JSON object and nothing else. For every heading: why
(1-2 sentences), quotes_1 and quotes_2 (0-2 exact quotes from each story, at most 12 words each), then better,
a whole number from {MOST} (story 1 is far better) over 0 (they are alike) to -{MOST} (story 2 is far better).
No total."""
RANKING = "Rank the {} stories below, which answer one request, by these standards. Answer with one JSON "
RANKING += 'object and nothing else: {{"why": "...", "order": [numbers of all stories, the best first]}}.'


def story_task(rubric: Rubric, prompt: str, story: str, judge: str = "") -> tuple:
    told, schema = rubric.ask(ALONE.format(PROOFS if rubric.rule == "rate" else QUOTES))
    texts = {"REQUEST": strip_length(prompt), "STORY": story}
    return messages(told, texts), schema, lambda said: rubric.read(said, story, judge).to_dict()


def pair_task(rubric: Rubric, prompt: str, first: str, second: str) -> tuple:
    """A comparison in one order."""
    told, schema = rubric.ask(PAIR, MARKS)
    texts = {"REQUEST": strip_length(prompt), "STORY 1": first, "STORY 2": second}
    return messages(told, texts), schema, lambda said: rubric.read_pair(said, first, second)


def rank_task(rubric: Rubric, prompt: str, stories: list[str], draw: int = 0) -> tuple:
    """A ranking. The stories are shuffled under their numbers, so that no place belongs to one of them."""
    n = len(stories)
    order = random.Random(json.dumps([prompt, stories, draw])).sample(range(n), n)
    told = [rubric.preamble, RANKING.format(n), rubric.standards()]
    texts = {"REQUEST": strip_length(prompt)} | {f"STORY {i + 1}": stories[s] for i, s in enumerate(order)}
    return messages(told, texts), ranking_schema(n), lambda said: read_ranking(said, order)


# ---- The two judges ----------------------------------------------------------------------------------------


def bare(judge, score: float, orders: list[float] | None = None) -> Verdict:
    """A verdict without points: a place in a ranking, or a comparison that needs no call."""
    return Verdict({}, score, rubric=judge.rubric.version, judge=judge.name, orders=orders)


class OfflineJudge:
    """Measures FORM, not quality: which words follow which, the order of sentences, their shape, repetition,
    words of the request. stories/words.txt lists real words, stories/grams.bin pairs and triples of them.
    Deterministic, free, blind to meaning: a dull story in good form beats a fine one in bad form. Never for a
    claim."""

    def __init__(self, folder: Path = ROOT / "stories"):
        self.words = frozenset((folder / "words.txt").read_text(encoding="utf-8").split())
        self.grams = form.Grams((folder / "grams.bin").read_bytes())
        self.name = "offline-form-2"  # the form of a story, by the second way to measure it
        self.rubric, self.out_of_budget, self.last_error = RUBRIC, False, ""

    def score(self, prompt: str, story: str) -> Verdict:
        if not story.split():
            return RUBRIC.empty(self.name)
        scores = form.grade(story, strip_length(prompt), self.words, self.grams)
        return Verdict(scores, RUBRIC.score(scores), rubric=RUBRIC.version, judge=self.name)

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        return known(self.score(prompt, story))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        order = sorted(range(len(stories)), key=lambda i: -self.score(prompt, stories[i]).score)
        return [known(bare(self, points)) for points in rank_scores(order)]

    def beside(self, prompt: str, story: str, other: str, draw: int = 0) -> Future:
        ahead = self.score(prompt, story).score - self.score(prompt, other).score
        share = ahead / sum(d.high for d in RUBRIC.dimensions)  # of all points, strengths and faults
        return known(bare(self, 100 * share, [share, share]))

    def metrics(self) -> dict[str, float]:
        return {}

    check = metrics  # there is no server to learn about

    def close(self):
        pass


class Judge(Endpoint):
    """Asks an OpenAI-compatible endpoint, from any thread. A verdict that cannot be had is None. how: see
    `Settings`. ValueError: cannot work."""

    def __init__(self, url: str, model: str, api_key: str | None = None, rubric=RUBRIC, samples=1, **how):
        self.rubric, self.samples = rubric, samples
        key = os.environ.get("JUDGE_API_KEY", "") if api_key is None else api_key
        super().__init__(url, model, key, **how)

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        """Future of a Verdict, or of None when none could be had. With samples > 1 the mean of those that
        came. Another `draw` of the same story is another verdict, bought and kept apart."""
        if not story.strip():
            return known(self.rubric.empty(self.name))
        answers = []
        for sample in range(draw * self.samples, (draw + 1) * self.samples):
            task = story_task(self.rubric, prompt, story, self.name)
            answers.append(self._ask("pointwise", sample, prompt, [story], task))
        return Later(answers, lambda values: self.rubric.mean([Verdict(**v) for v in values if v]))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        """One call ranks all stories of a group -> per story a future of a Verdict (score 100 for the best ..
        0 for the last), or of None."""
        task = rank_task(self.rubric, prompt, stories, draw)
        ranking = self._ask("groupwise", draw, prompt, stories, task)

        def place(i: int) -> Later:
            return Later([ranking], lambda said: said[0] and bare(self, said[0]["scores"][i]))

        return [place(i) for i in range(len(stories))]

    def beside(self, prompt: str, story: str, other: str, draw: int = 0) -> Future:
        """Future of the Verdict of `story` beside `other`, asked in both orders: score -100 .. 100, 0 for
        equals. None where an order could not be had."""
        if story.strip() == other.strip():
            return known(bare(self, 0.0))  # counts as no pair
        if not story.strip():
            return known(bare(self, -100.0, [-1.0, -1.0]))
        answers = []
        for sample in range(draw * self.samples, (draw + 1) * self.samples):
            for pair in ([story, other], [other, story]):
                task = pair_task(self.rubric, prompt, *pair)
                answers.append(self._ask("pair", sample, prompt, pair, task))
        return Later(answers, lambda values: self.rubric.beside(self.name, values))

    def check(self) -> dict:
        """One small call before a run, which finds the schema mode -> what it found out about the server.
        ValueError: the reason it fails."""
        story = "The lamp went out. Mara climbed the stairs in the dark, counting, and lit it again."
        prompt, kind = "Write about a keeper.", f"check {secrets.token_hex(8)}"  # never in the store
        task = story_task(self.rubric, prompt, story)
        if not self.find_mode(lambda: self._ask(kind, 0, prompt, [story], task)):
            told = f"the judge {self.name} at {self.endpoint} gave no verdict ({self.last_error})"
            raise ValueError(f"{told}; check JUDGE_URL, JUDGE_MODEL and JUDGE_API_KEY")
        return {"schema_mode": self.schema_mode, "token_field": self.token_field}

    def _ask(self, kind: str, draw: int, prompt: str, stories: list[str], task: tuple) -> Future:
        return self.answer([kind, self.rubric.version, prompt, stories], draw, *task)


# ---- Guard: is the judge being fooled? Pure functions, one line each in the loop ---------------------------


def verdict_metrics(verdicts: list[dict | None]) -> dict[str, float]:
    """Of saved verdicts. judge/evidence: mean share of the quotes found. In pair mode judge/order_flip: share
    of pairs whose winner changes with the order; judge/win_rate: over the person, a tie is half a win."""
    verdicts = [v for v in verdicts if v]
    pairs = [v for v in verdicts if v.get("orders")]
    found = {
        "judge/evidence": stats.mean(v["evidence"] for v in verdicts),
        "judge/order_flip": stats.mean(v["orders"][0] * v["orders"][1] < 0 for v in pairs),
        "judge/win_rate": stats.mean((v["score"] > 0) + 0.5 * (v["score"] == 0) for v in pairs),
    }
    return {name: value for name, value in found.items() if value is not None}


def make_watch(c) -> Judge | None:
    """A second judge that is never trained on, one for the whole run; None without c.watch."""
    if not c.watch:
        return None
    cache, key = Path(c.out, "judge.sqlite"), os.environ.get("WATCH_API_KEY", "")
    return Judge(c.watch["url"], c.watch["model"], key, cache=cache, run=f"{c.name}/watch")


def watch(judge: Judge | None, rows: list[tuple[str, str, float]], most: int = 8) -> dict[str, float]:
    """watch/*: at most `most` of the step's rows (prompt, story, score of the judge trained on) before the
    watch judge. watch/gap = trained judge - watch judge: when it grows, the policy learns the judge and not
    the craft."""
    if judge is None or not rows:
        return {}
    rows = rows[:: max(1, -(-len(rows) // most))]
    verdicts = [f.result() for f in [judge.submit(prompt, story) for prompt, story, _ in rows]]
    pairs = [(own, verdict.score) for (*_, own), verdict in zip(rows, verdicts) if verdict]
    found = {"watch/failed": float(len(rows) - len(pairs))}
    if pairs:
        own, other = map(list, zip(*pairs))
        found |= {"watch/score": stats.mean(other), "watch/gap": stats.mean(own) - stats.mean(other)}
        found["watch/correlation"] = stats.correlation(own, other)
    return {name: value for name, value in found.items() if value is not None}


ALARMS = {
    "reward/repetition": (1, "repetition rises"),
    "reward/length": (1, "the length penalty rises"),
    "judge/evidence": (-1, "fewer of the judge's quotes are in the stories"),
    "watch/gap": (1, "the gap to the watch judge widens"),
}
MOST_FLIPS = 0.4  # of pairs; a judge that tosses a coin flips half of them


def alarms(history: list[dict], window: int = 20) -> list[str]:
    """Warnings when, over the last `window` steps, the reward rises and a sign of cheating does too, each by
    more than two standard errors. history: metrics, one dict per step."""
    found, gain = [], stats.rise(history, "reward/mean", window)
    for name, (sign, told) in ALARMS.items():
        if gain and (move := stats.rise(history, name, window, sign)):
            more = f"while {told} ({name} by {move:.3f}): is the judge being gamed?"
            found.append(f"the reward rose by {gain:.3f} in {window} steps {more}")
    flips = stats.mean(entry.get("judge/order_flip") for entry in history[-window:]) or 0.0
    if flips > MOST_FLIPS:
        found.append(f"the judge changes its winner with the order in {flips:.0%} of pairs: it says little")
    return found


if __name__ == "__main__":
    # The commands are a script, which imports this file; arrows between files never run back.
    runpy.run_module("scripts.calibrate", run_name="__main__")
