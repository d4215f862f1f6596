"""What a story is worth: rubric -> verdict -> score -> reward.

A judge fills a rubric (rubrics/story_quality.md: strengths P, faults N, an open bonus and penalty, each with
quotes). The score is computed here from the dimensions, never taken from the judge's own total. The reward
then subtracts what no judge has to count: words, repetition, blank text. Recipe: POLARIS (arXiv 2606.04095).
`Judge` asks an OpenAI-compatible endpoint, pays for each verdict once and survives what HTTP does.
`OfflineJudge` measures form, not quality, for demos and tests without a network. Modes: a story alone, a
pair (beside the person's story, in both orders), or a ranking of a whole group.

    python judge.py score stories/tiny.jsonl           # the offline judge, without JUDGE_URL and JUDGE_MODEL
    python judge.py agree A.jsonl B.jsonl              # do two files of verdicts agree?
    python judge.py calibrate stories/tiny.jsonl       # noise and soft spots of a judge, before it is trusted

Left out: fine-tuned reward models, tournaments (scripts/pairwise.py), frameworks around requests.
"""

from __future__ import annotations

import os
import runpy
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib import comparisons, form, stats
from lib.answers import messages
from lib.endpoint import Endpoint, known, settings, then
from lib.flags import opt
from lib.form import strip_length
from lib.form import words as count_words
from lib.grams import Grams
from lib.rubric import Rubric, Verdict, read_rubric
from lib.settings import Settings
from lib.store import Ledger

ROOT = Path(__file__).resolve().parent


def load_rubric(name: str | Path, criteria: list[dict] | None = None) -> Rubric:
    """rubrics/<name>.md, or a path; see `read_rubric`."""
    return read_rubric(Path(name) if str(name).endswith(".md") else ROOT / "rubrics" / f"{name}.md", criteria)


RUBRIC = load_rubric("story_quality")

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
    steep: float = 1  # how fast the penalty rises outside

    def band(self, target_words: float) -> tuple[float, float]:
        """(lowest, highest) number of words without a penalty."""
        below = min(max(self.below_share * target_words, self.below_min), self.below_max)
        above = min(max(self.above_share * target_words, self.above_min), self.above_max)
        return max(0.0, target_words - below), target_words + above


# One choice for training and evaluation. paper: stories of 1,000 words and more. short: 30 to 500 words.
BANDS = {"paper": LengthBounds(), "short": LengthBounds(below_min=8, above_min=12, blank_words=15, steep=4)}


def bounds(name: str) -> LengthBounds:
    if name not in BANDS:
        raise ValueError(f"there is no length band {name!r}; choose one of {', '.join(BANDS)}")
    return BANDS[name]


def check_room(targets: list[int], tokens_per_word: float, limit: int, bounds: LengthBounds) -> str:
    """A note where stories of the lengths asked for need more than `limit` tokens, else ""."""
    least = [bounds.band(target)[0] * tokens_per_word for target in targets]
    if not (long := sum(tokens > limit for tokens in least)):
        return ""
    told = f"note: {long} of {len(targets)} requests need more than --max_new_tokens {limit}"
    return f"{told}, up to {max(least):.0f}; their stories are cut, and stay below the length band"


def length_penalty(words: int, target_words: float, bounds: LengthBounds = BANDS["paper"]) -> float:
    """0 inside the band, rising to 1: at no words, and at twice the upper bound, or `steep` times as fast."""
    low, high = bounds.band(target_words)
    outside = 1 - words / low if words < low else max(0.0, words / high - 1)
    return min(1.0, bounds.steep * outside)


def repetition_penalty(text: str) -> float:
    """0..1.5 from repeated 4-grams (anywhere: r4; within 64 positions: rl) and repeated lines (rd)."""
    r4, rl, rd = form.repeats(text)
    # A story may say a thing twice: the first 8 % of repeats are free.
    return min(1.5, 0.8 * (0.7 * max(0.0, r4 - 0.08) + 0.3 * rl) + 0.4 * rd)


def blank_penalty(text: str, bounds: LengthBounds = BANDS["paper"]) -> float:
    """1 for a text that is not a story: too few words, or nearly all white space. Else 0."""
    visible = sum(not c.isspace() and c.isprintable() for c in text)
    return float(count_words(text) < bounds.blank_words or visible < 0.1 * len(text))


PARTS = ("quality", "length", "repetition", "blank")


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
# Which judge, and how it is asked


@dataclass
class Flags:
    """The flags of the programs beside train.py that ask a judge."""

    judge: Literal["auto", "api", "offline"] = opt("auto", "auto: api where JUDGE_URL is set", "judge")
    judge_url: str = opt(os.environ.get("JUDGE_URL", ""), "OpenAI-compatible address; key: JUDGE_API_KEY")
    judge_model: str = opt(os.environ.get("JUDGE_MODEL", ""), "its model, default $JUDGE_MODEL")
    judge_mode: Literal["story", "pair", "group"] = opt("story", "alone, beside the person's, or ranked")
    judge_samples: int = opt(1, "verdicts averaged per story", low=1)
    judge_settings: dict[str, str] = opt({}, "any of " + ", ".join(Settings.__dataclass_fields__))


def offline(c) -> bool:
    return c.judge == "offline" or (c.judge == "auto" and not (c.judge_url or os.environ.get("JUDGE_URL")))


def check(c):
    """ValueError: flags that no judge can follow. c: the fields of `Flags`, and watch."""
    if c.judge_samples > 1 and c.judge_mode == "group":
        raise ValueError("--judge_mode group ranks a group once; leave --judge_samples out")
    try:
        Settings(**settings(c.judge_settings))
    except ValueError as error:
        raise ValueError(f"--judge_settings: {error}") from None
    url, model = c.judge_url or os.environ.get("JUDGE_URL"), c.judge_model or os.environ.get("JUDGE_MODEL")
    if not offline(c) and getattr(c, "steps", 1) and not (url and model):
        raise ValueError(
            "no judge: set JUDGE_URL and JUDGE_MODEL (and JUDGE_API_KEY), or --judge_url and --judge_model, "
            "to an OpenAI-compatible endpoint, or pass --judge offline, which measures form, not quality"
        )
    watch = {"every": "10"} | getattr(c, "watch", {})
    right = set(watch) == {"url", "model", "every"} and watch["every"].isdigit() and int(watch["every"])
    if getattr(c, "watch", {}) and not right:
        raise ValueError("--watch needs url=ADDRESS model=NAME, and may have every=STEPS")


def make(c, rubric: Rubric = RUBRIC, cache: str | Path | None = None, learned: dict | None = None):
    """The judge of a run or an evaluation. c: see `check`, and out and name. cache: default OUT/judge.sqlite.
    learned: what `try_out` found. ValueError: it cannot work."""
    check(c)
    if offline(c):
        if rubric.version != RUBRIC.version:
            raise ValueError(
                f"rubric {rubric.version} needs a judge that reads: set JUDGE_URL and JUDGE_MODEL"
            )
        return OfflineJudge()
    cache, run, how = cache or Path(c.out, "judge.sqlite"), getattr(c, "name", ""), settings(c.judge_settings)
    judge = Judge(
        c.judge_url, c.judge_model, rubric=rubric, samples=c.judge_samples, cache=cache, run=run, **how
    )
    vars(judge).update(learned or {})
    return judge


def try_out(c) -> dict:
    """One small call before a run -> what it found out about the server, for `make`. ValueError: none."""
    with closing(make(c, cache=":memory:")) as judge:
        judge.check()
        return judge.learned()


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


# ------------------------------------------------------------------------------------------------------------
# The two judges


class OfflineJudge:
    """Measures FORM, not quality: which words follow which, the order of sentences, their shape, repetition,
    words of the request. stories/words.txt lists real words, stories/grams.bin pairs and triples of them.
    Deterministic, free, and blind to meaning: a dull story in good form beats a fine one in bad form. For
    demos and tests, never for a claim.
    """

    def __init__(self, folder: Path = ROOT / "stories"):
        self.words = frozenset((folder / "words.txt").read_text(encoding="utf-8").split())
        self.grams = Grams((folder / "grams.bin").read_bytes())
        self.name = "offline-form-2"  # the form of a story, by the second way to measure it
        self.rubric, self.counts, self.ledger = RUBRIC, Counter(), Ledger()
        self.out_of_budget, self.last_error = False, ""

    def score(self, prompt: str, story: str) -> Verdict:
        if not story.split():
            return RUBRIC.empty(self.name)
        scores = form.grade(story, strip_length(prompt), self.words, self.grams)
        return Verdict(scores, RUBRIC.score(scores), rubric=RUBRIC.version, judge=self.name)

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        return known(self.score(prompt, story))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        order = sorted(range(len(stories)), key=lambda i: -self.score(prompt, stories[i]).score)
        points = comparisons.rank_scores(order)
        return [known(Verdict({}, p, rubric=RUBRIC.version, judge=self.name)) for p in points]

    def beside(self, prompt: str, story: str, other: str, draw: int = 0) -> Future:
        return known(comparisons.by_points(RUBRIC, self.score(prompt, story), self.score(prompt, other)))

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self):
        pass

    learned, check = metrics, close  # there is no server to learn about or to check


def pointwise_messages(rubric: Rubric, prompt: str, story: str) -> list[dict]:
    return messages([rubric.instructions()], {"REQUEST": strip_length(prompt), "STORY": story})


class Judge(Endpoint):
    """Asks an OpenAI-compatible endpoint. score() blocks, submit() gives a Future; both are thread-safe. A
    verdict that cannot be had is None. how: see lib/settings.py. ValueError: cannot work."""

    def __init__(
        self, url: str | None = None, model: str | None = None, api_key: str | None = None, *,
        rubric: Rubric = RUBRIC, samples: int = 1, **how,
    ):  # fmt: skip
        if samples < 1:
            raise ValueError("the judge's samples must be at least 1")
        self.rubric, self.samples = rubric, samples
        url, model = url or os.environ.get("JUDGE_URL"), model or os.environ.get("JUDGE_MODEL")
        key = os.environ.get("JUDGE_API_KEY", "") if api_key is None else api_key
        super().__init__(url, model, key, **how)

    def score(self, prompt: str, story: str) -> Verdict | None:
        return self.submit(prompt, story).result()

    def submit(self, prompt: str, story: str, draw: int = 0) -> Future:
        """Future of a Verdict, or of None when none could be had. With samples > 1 the mean of those that
        came. Another `draw` of the same story is another verdict, bought and kept apart."""
        if not story.strip():
            return known(self.rubric.empty(self.name))
        draws = range(draw * self.samples, (draw + 1) * self.samples)
        futures = [self._pointwise("pointwise", sample, prompt, story) for sample in draws]
        return then(futures, lambda values: self.rubric.mean([Verdict(**v) for v in values if v]))

    def submit_group(self, prompt: str, stories: list[str], draw: int = 0) -> list[Future]:
        """One call ranks all stories of a group -> per story a future of a Verdict (score 100 for the best ..
        0 for the last), or of None."""
        order = comparisons.shown_order(prompt, stories, draw)
        task = comparisons.rank_task(self.rubric, strip_length(prompt), stories, order)
        ranking = self.ask("groupwise", draw, prompt, stories, *task)

        def verdict(ranked: dict | None, i: int) -> Verdict | None:
            return ranked and Verdict({}, ranked["scores"][i], rubric=self.rubric.version, judge=self.name)

        return [then([ranking], lambda values, i=i: verdict(values[0], i)) for i in range(len(stories))]

    def beside(self, prompt: str, story: str, other: str, draw: int = 0) -> Future:
        """Future of the Verdict of `story` beside `other`, asked in both orders: score -100 .. 100, 0 for
        equals. None where an order could not be had."""
        if story.strip() == other.strip():
            return known(comparisons.level(self.rubric, self.name, 0.0, "the stories are the same"))
        if not story.strip():
            return known(comparisons.level(self.rubric, self.name, -1.0, "the story is empty"))
        answers = []
        for sample in range(draw * self.samples, (draw + 1) * self.samples):
            for pair in ([story, other], [other, story]):
                task = comparisons.pair_task(self.rubric, strip_length(prompt), *pair)
                answers.append(self.ask("pair", sample, prompt, pair, *task))
        return then(answers, lambda values: comparisons.beside(self.rubric, self.name, values))

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
        story = "The lamp went out. Mara climbed the stairs in the dark, counting, and lit it again."
        kind = f"check {secrets.token_hex(8)}"  # never answered from the store
        if self._pointwise(kind, 0, "Write about a keeper.", story, 2, True).result() is None:
            raise ValueError(
                f"the judge {self.name} at {self.endpoint} gave no verdict ({self.last_error}); "
                "check JUDGE_URL, JUDGE_MODEL and JUDGE_API_KEY"
            )

    def _pointwise(self, kind, draw, prompt, story, retries=None, find_mode=False) -> Future:
        def read(answer: dict) -> dict:
            return rubric.read(answer, story, self.name).to_dict()

        rubric = self.rubric  # a copy of this judge may get another one meanwhile
        task = pointwise_messages(rubric, prompt, story)
        return self.ask(kind, draw, prompt, [story], task, rubric.schema(), read, retries, find_mode)


# ------------------------------------------------------------------------------------------------------------
# Guard: is the judge being fooled? Pure functions, one line each in the loop


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
    rows = rows[:: max(1, -(-len(rows) // most))] if judge else []
    verdicts = [f.result() for f in [judge.submit(prompt, story) for prompt, story, _ in rows]]
    pairs = [(own, verdict.score) for (*_, own), verdict in zip(rows, verdicts) if verdict]
    own, other = stats.mean(a for a, _ in pairs), stats.mean(b for _, b in pairs)
    found = {
        "watch/failed": float(len(rows) - len(pairs)) if rows else None,
        "watch/score": other,
        "watch/gap": own - other if pairs else None,
        "watch/correlation": stats.correlation(*map(list, zip(*pairs))) if pairs else None,
    }
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
    signs = {name: sign for name, (sign, _) in ALARMS.items()}
    gain, moves = stats.rising_together(history, "reward/mean", signs, window)
    tell = "the reward rose by {:.3f} in {} steps while {} ({} by {:.3f}): is the judge being gamed?"
    found = [tell.format(gain, window, ALARMS[name][1], name, move) for name, move in moves.items()]
    flips = stats.mean(entry.get("judge/order_flip") for entry in history[-window:]) or 0.0
    if flips > MOST_FLIPS:
        found.append(f"the judge changes its winner with the order in {flips:.0%} of pairs: it says little")
    return found


if __name__ == "__main__":
    # The commands are scripts, which import this file; arrows between files never run back.
    command = "agree" if sys.argv[1:2] == ["agree"] else "calibrate"
    runpy.run_module(f"scripts.{command}", run_name="__main__")
