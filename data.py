"""Data that flows: Example (a request, and the human story that answers it) -> Episode (one row of a group).

Both are lines of JSON on disk. The tokenizer connects them: Qwen's byte-level BPE, run by tiktoken, and
Qwen3.5's chat format for one user turn and one answer, with thinking on or off. Text is data: "<|im_end|>"
typed in a prompt or a story becomes ordinary letters, never the token that ends a turn, and a sequence holds
exactly one <think>.

    tokenizer = load_tokenizer("stories/tiny-base")    # a folder or a hub id
    ids = tokenizer.chat("Write about a lighthouse. It should be 120 words long.", thinking=False)

Left out: system prompts, tools, pictures, several turns, tokenizers other than byte-level BPE like Qwen's.
"""

import json
import random
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten

from lib.bpe import BPE
from lib.files import read_lines, write_lines
from lib.form import words  # the length of a story: every length in this project is counted like this
from lib.huggingface import fetch
from lib.packed import Packed


@dataclass
class Example:
    """One request for a story; `story` is the reference, where there is one."""

    uid: str
    prompt: str  # says "N words long"
    target_words: int  # N
    story: str | None = None  # written by a person; None: no reference to inject
    reasoning: str | None = None  # the writer's notes before the story; None: an empty <think>
    source: str = ""  # book, author, id: where the story comes from


@dataclass
class Episode:
    """One row of a group: what was asked, what was written, what it was worth."""

    example: Example
    prompt_ids: list[int]
    completion_ids: list[int]  # the end token is kept, so that stopping is learned
    sampler_logprobs: list[float] | None  # None for the reference: it was not sampled
    finished: bool  # False: cut at the token limit
    is_human: bool  # the reference of its group
    story: str  # text without thinking
    rewards: dict[str, float] = field(default_factory=dict)  # named parts
    reward: float | None = None  # None: the judge failed, the row leaves its group
    advantage: float | None = None  # None: not learned from
    verdict: dict | None = None  # the judge's raw verdict


def length(row: Episode) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def packed(rows: list[Episode]) -> Packed:
    """Rows as a model reads them, with the log-probabilities of their completions asked for."""
    return Packed([r.prompt_ids + r.completion_ids for r in rows], [len(r.prompt_ids) for r in rows])


LENGTH = re.compile(r"((?:\d[\d.,'’\u00a0\u202f]*)?\d)[ -]words?[ -]long")


def at_length(prompt: str, words: int) -> str:
    """The same request with another length."""
    if LENGTH.search(prompt):
        return LENGTH.sub(lambda said: said[0].replace(said[1], str(words)), prompt)
    prompt = prompt.strip()
    return prompt + "." * (not prompt.endswith((".", "!", "?"))) + f" It should be {words} words long."


# Words that wound today and were common in print then. The list names words, it does not judge stories.
FLAGGED = re.compile(
    r"\b(nigg(er|ah|uh)s?|darke?(y|ie)s?|coons?|pickaninn(y|ies)|piccaninn(y|ies)|sambo|mulatto(es)?|"
    r"quadroons?|octoroons?|half-?breeds?|half-?castes?|squaws?|redskins?|injuns?|chinam[ae]n|chinks?|japs?|"
    r"coolies?|dagoe?s?|kikes?|sheen(y|ies)|kaffirs?|hottentots?|wops?|negress(es)?)\b",
    re.I,
)


# ---- the order of prompts ------------------------------------------------------------


def order(n: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch visits n prompts: the same on every machine, rank and restart."""
    indices = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(indices)  # a string seed hashes alike in every Python
    return indices


def batch(n: int, step: int, count: int, seed: int) -> list[int]:
    """The `count` of n prompts that a step visits. A last partial batch is skipped: none spans two epochs."""
    epoch, at = divmod(step, n // count)
    return order(n, epoch, seed)[at * count : (at + 1) * count]


# ---- JSON Lines ----------------------------------------------------------------------------------------

KEYS = ("uid", "prompt", "target_words", "story", "reasoning", "source")
NEEDS = 'every line needs a "prompt", and "target_words" or the words "N words long" in the prompt'
EXAMPLES = "a JSON Lines file of examples, such as stories/tiny.jsonl"


def read_examples(path: str | Path) -> list[Example]:
    """Examples of a JSON Lines file with the keys of `Example`. A missing uid becomes the file's name and the
    line's number. FileNotFoundError, ValueError: names file, line and cure; a bad line is never skipped."""
    examples, seen = [], {}
    for number, row in read_lines(path, EXAMPLES):
        where = f"{path} line {number}"
        example = _example(row, where, f"{Path(path).stem}-{number}")
        if example.uid in seen:
            raise ValueError(f'{where}: uid "{example.uid}" is also on line {seen[example.uid]}; change one')
        seen[example.uid] = number
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} holds no examples; {NEEDS}")
    return examples


def write_examples(path: str | Path, examples: list[Example] | list[Episode]):
    """One line per row: of an episode, token ids and verdict included."""
    write_lines(path, map(asdict, examples))


def read_episodes(path: str | Path) -> list[Episode]:
    """The rollouts of a step. FileNotFoundError, ValueError: names the line."""
    return [episode(row, f"{path} line {n}") for n, row in read_lines(path, "a file from a run's rollouts/")]


def episode(row: dict, where: str) -> Episode:
    try:
        return Episode(**{**row, "example": Example(**row["example"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: not an episode ({error}); give a file from a run's rollouts/") from None


def _example(row: dict, where: str, uid: str) -> Example:
    """One checked line. Types are checked here, once, so that no other file has to."""
    published = row.pop("target_word_count", None)  # as the POLARIS prompt set calls it (arXiv 2606.04095)
    row.setdefault("target_words", published)
    if unknown := sorted(set(row) - set(KEYS)):
        raise ValueError(f'{where}: unknown key "{unknown[0]}"; the keys are {", ".join(KEYS)}')
    texts = {key: row[key] for key in KEYS if key != "target_words" and row.get(key) is not None}
    if "prompt" not in texts:
        raise ValueError(f'{where}: no "prompt"; {NEEDS}')
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f'{where}: "{key}" is {type(text).__name__}, not text; put it in quotes')
        if key in ("prompt", "story", "uid") and not text.strip():
            cure = NEEDS if key == "prompt" else "fill it or leave the key out"
            raise ValueError(f'{where}: "{key}" is empty; {cure}')
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f'{where}: "{key}" holds half a surrogate pair; repair it')
    return Example(**{"uid": uid} | texts, target_words=_target(row, where))


def _target(row: dict, where: str) -> int:
    """The words asked for: in "target_words", in the prompt, or in both alike."""
    target, said = row["target_words"], LENGTH.search(row["prompt"])
    if said and not re.fullmatch(r"\d+|\d{1,3}(,\d{3})+", said[1]):
        raise ValueError(f'{where}: "{said[0]}" in the prompt is ambiguous; write 1200 or 1,200')
    asked = int(said[1].replace(",", "")) if said else target
    target = asked if target is None else target
    if target is None:
        raise ValueError(f'{where}: no "target_words", and the prompt does not say "N words long"; {NEEDS}')
    if type(target) is not int or target < 1:
        raise ValueError(f'{where}: "target_words" is {json.dumps(target)}; give a whole number above 0')
    if asked != target:
        raise ValueError(f'{where}: "target_words" is {target}, the prompt asks for {asked}; make them equal')
    return target


# ---- tokenizer ------------------------------------------------------------

FRAME = 16  # most tokens that `chat` adds to a prompt
NEEDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES += ("vocab.json", "merges.txt", "chat_template.jinja")


class Tokenizer(BPE):
    """Text to token ids and back, and Qwen3.5's chat format; made by `load_tokenizer`."""

    def __init__(self, path: Path):
        super().__init__(path)
        missing = [t for t in NEEDED if t not in self.added]
        if missing:
            raise ValueError(f"{path} has no token {missing[0]}, as chat needs; use Qwen3.5's tokenizer")
        self.end_id = self.added["<|im_end|>"]

    def chat(self, prompt: str, thinking: bool) -> list[int]:
        """Qwen3.5's template for one user turn, up to where the assistant's words begin; it holds the
        sequence's one <think>. With thinking off an empty thought is closed at once, as the template does."""
        start, newline = self.added["<|im_start|>"], self.encode("\n")
        ids = [start, *self.encode("user\n" + prompt.strip()), self.end_id, *newline]
        ids += [start, *self.encode("assistant\n"), self.added["<think>"]]
        if thinking:
            return ids + newline
        return [*ids, *self.encode("\n\n"), self.added["</think>"], *self.encode("\n\n")]

    def completion(self, story: str, reasoning: str | None = None, thinking: bool = False) -> list[int]:
        """What follows `chat`: reasoning, </think> (both only with thinking on), the story, <|im_end|>.
        Reasoning that brings its own <think> tags loses them, since `chat` has opened the thought already."""
        if not thinking:
            return [*self.encode(story.strip()), self.end_id]
        thought = (reasoning or "").strip().removeprefix("<think>").removesuffix("</think>").strip()
        thought = [*self.encode(thought + "\n"), self.added["</think>"]]
        return [*thought, *self.encode("\n\n" + story.strip()), self.end_id]


def without_thinking(text: str) -> str:
    """What follows the first thought of an assistant's words; "" where it was never closed."""
    _, closed, story = text.partition("</think>")
    if closed:
        return story.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def describe(path: str | Path, examples: list[Example]) -> str:
    """A data file in a line: its name, how many examples and references it has, the words asked for."""
    asked, told = [e.target_words for e in examples], sum(bool(e.story) for e in examples)
    how = f"{min(asked):,} to {max(asked):,} words, {told:,} with a reference story"
    return f"{Path(path).name}, {len(examples):,} examples of {how}"


def best_and_worst(rows: list[Episode]) -> list[str]:
    """The policy's stories with the highest and the lowest advantage, for the terminal: how each begins, in
    letters alone (a story may hold what moves a cursor). [] where no row has an advantage."""
    rows = [row for row in rows if row.advantage is not None and not row.is_human]
    rows = sorted(rows, key=lambda row: row.advantage)
    told = []
    for which, row in zip(("best", "worst"), (rows[-1], rows[0]) if rows else ()):
        of = f"{words(row.story)} of {row.example.target_words} words"
        lines = [f"{which} advantage {row.advantage:+.2f}, reward {row.reward:.2f}, {of}"]
        lines += [shorten(text, 350, placeholder=" ...") for text in (row.example.prompt, row.story)]
        told.append("\n  ".join("".join(c for c in line if c.isprintable()) for line in lines))
    return told


def load_tokenizer(path_or_repo: str | Path) -> Tokenizer:
    """Tokenizer of a folder or a hub id such as "Qwen/Qwen3.5-9B". FileNotFoundError: there is none.
    ValueError: the file is another kind of tokenizer."""
    path = fetch(path_or_repo, FILES) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {path.parent}; copy the model's tokenizer there")
    return Tokenizer(path)


if __name__ == "__main__":
    print(__doc__.partition("\n")[0])
    print("Imported by hri.py, rollout.py, train.py and eval.py; nothing runs here.")
    print("To start something: python train.py (the demo), python -m scripts.anthologies (more stories).")
