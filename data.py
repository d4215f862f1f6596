"""Data that flows: Example (a request, and the human story that answers it) -> Episode (one row of a group).

Both are lines of JSON on disk. The tokenizer connects them: Qwen's byte-level BPE, run by tiktoken, and
Qwen3.5's chat format for one user turn and one answer, with thinking on or off. Text is data: "<|im_end|>"
typed in a prompt or a story becomes ordinary letters, never the token that ends a turn, and a sequence holds
exactly one <think>.

    from data import load_tokenizer, read_examples
    tokenizer = load_tokenizer("stories/tiny-base")    # a folder, a tokenizer.json or a hub id
    ids = tokenizer.chat("Write about a lighthouse. It should be 120 words long.", thinking=False)

Left out: system prompts, tools, pictures, several turns, tokenizers other than Qwen's family of byte-level
BPE.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tiktoken

from lib.files import atomic, read_lines, write_lines
from lib.huggingface import fetch


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
    advantage: float = 0.0
    verdict: dict | None = None  # the judge's raw verdict


def words(text: str) -> int:
    """The length of a story: runs of word characters. Every length in this project is counted like this."""
    return len(re.findall(r"\w+", text))


# ---- the order of prompts ----------------------------------------------------------------------------------------


def order(n: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch visits n prompts: the same on every machine, rank and restart."""
    indices = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(indices)  # a string seed hashes alike in every Python
    return indices


def next_batch(n: int, position: int, count: int, seed: int) -> tuple[list[int], int]:
    """`count` indices of n prompts from `position` on -> (indices, the position after them).

    position counts prompts over all epochs. A batch never spans two epochs: a last partial batch is
    skipped."""
    if position % n + count > n:
        position = (position // n + 1) * n
    at = position % n
    return order(n, position // n, seed)[at : at + count], position + count


# ---- JSON Lines ----------------------------------------------------------------------------------------

KEYS = ("uid", "prompt", "target_words", "story", "reasoning", "source")
NEEDS = 'every line needs a "prompt", and "target_words" or the words "N words long" in the prompt'
EXAMPLES = "a JSON Lines file of examples, such as stories/tiny.jsonl"
LENGTH = re.compile(r"((?:\d[\d.,'’\u00a0\u202f]*)?\d)[ -]words?[ -]long")


def read_examples(path: str | Path) -> list[Example]:
    """Examples of a JSON Lines file with the keys of `Example`; "target_word_count" is read as
    "target_words".

    A missing uid becomes the file's name and the line's number. FileNotFoundError, ValueError: one sentence
    that names file, line and cure; a bad line is never skipped."""
    examples, seen = [], {}
    for number, row in read_lines(path, EXAMPLES):
        where = f"{path} line {number}"
        example = _example(row, where, f"{Path(path).stem}-{number}")
        if example.uid in seen:
            raise ValueError(
                f'{where}: uid "{example.uid}" is already on line {seen[example.uid]}; make it unique'
            )
        seen[example.uid] = number
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} holds no examples; {NEEDS}")
    return examples


def write_examples(path: str | Path, examples: list[Example]):
    write_lines(path, (asdict(e) for e in examples))


def read_episodes(path: str | Path) -> list[Episode]:
    """What `write_episodes` wrote. FileNotFoundError, ValueError: names the line."""
    return [episode(row, f"{path} line {n}") for n, row in read_lines(path, "a file from a run's rollouts/")]


def episode(row: dict, where: str) -> Episode:
    try:
        return Episode(**{**row, "example": Example(**row["example"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: not an episode ({error}); give a file from a run's rollouts/") from None


def write_episodes(path: str | Path, episodes: list[Episode]):
    """One line per episode, token ids and verdict included."""
    write_lines(path, (asdict(e) for e in episodes))


def _example(row: dict, where: str, uid: str) -> Example:
    """One checked line. Types are checked here, once, so that no other file has to."""
    if "target_word_count" in row:  # the name in the published POLARIS prompt set (arXiv 2606.04095)
        row = {**row, "target_words": row.get("target_words", row["target_word_count"])}
        del row["target_word_count"]
    if unknown := sorted(set(row) - set(KEYS)):
        raise ValueError(f'{where}: unknown key "{unknown[0]}"; the keys are {", ".join(KEYS)}')
    if row.get("prompt") is None:
        raise ValueError(f'{where}: no "prompt"; {NEEDS}')
    for key in ("prompt", "story", "reasoning", "uid", "source"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f'{where}: "{key}" is {type(value).__name__}, not text; put it in quotation marks'
            )
        if key in ("prompt", "story", "uid") and value is not None and not value.strip():
            cure = NEEDS if key == "prompt" else "fill it or leave the key out"
            raise ValueError(f'{where}: "{key}" is empty; {cure}')
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f'{where}: "{key}" holds half a surrogate pair, not a character; repair it'
            ) from None
    return Example(
        row.get("uid") or uid,
        row["prompt"],
        _target(row, where),
        *map(row.get, ("story", "reasoning")),
        row.get("source") or "",
    )


def _target(row: dict, where: str) -> int:
    """The words asked for: in "target_words", in the prompt, or in both alike."""
    target, said = row.get("target_words"), LENGTH.search(row["prompt"])
    asked = None
    if said:
        if not re.fullmatch(r"\d+|\d{1,3}(,\d{3})+", said[1]):
            raise ValueError(
                f'{where}: "{said[0]}" in the prompt is ambiguous; write the number as 1200 or 1,200'
            )
        asked = int(said[1].replace(",", ""))
    if target is None and asked is None:
        raise ValueError(f'{where}: no "target_words", and the prompt does not say "N words long"; {NEEDS}')
    target = asked if target is None else target
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise ValueError(
            f'{where}: "target_words" is {json.dumps(target)}; it must be a whole number of at least 1'
        )
    if asked not in (None, target):
        raise ValueError(
            f'{where}: "target_words" is {target}, but the prompt asks for {asked}; make them equal'
        )
    return target


# ---- tokenizer ----------------------------------------------------------------------------------------

NEEDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


class Tokenizer:
    """Text to token ids and back; made by `load_tokenizer`.

    ranks: bytes -> order of merging, for every token that merging can produce; ids: rank -> token id; added:
    text -> id of the tokens that no text becomes; vocabulary: id -> bytes, entries without a rank
    included."""

    def __init__(
        self,
        pattern: str,
        ranks: dict[bytes, int],
        ids: list[int],
        added: dict[str, int],
        vocabulary: dict[int, bytes],
        files: list[Path],
    ):
        missing = [t for t in NEEDED if t not in added]
        if missing:
            raise ValueError(
                f"{files[0]} has no token {missing[0]}, which Qwen3.5's chat format needs; use its tokenizer"
            )
        self._bpe = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._ids, self._bytes, self._added, self._files = ids, vocabulary, added, files
        self.end_id = added["<|im_end|>"]
        self.vocab_size = (
            max(*vocabulary, *added.values()) + 1
        )  # a checkpoint may pad its embedding beyond this

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: no text becomes a special token, whatever it spells."""
        # Hugging Face normalises inside the tokenizer; tiktoken does not do it by itself.
        ids = self._ids
        return [ids[rank] for rank in self._bpe.encode_ordinary(unicodedata.normalize("NFC", text))]

    def token(self, name: str) -> int:
        """Id of an added token such as "<|endoftext|>". Raises KeyError."""
        return self._added[name]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids. Turn marks and the end token are dropped, <think> and </think> are kept, as in
        Hugging Face with skip_special_tokens. Ids of padded embedding rows and cut characters show as
        U+FFFD."""
        return b"".join(self._bytes.get(i, b"\xef\xbf\xbd") for i in ids).decode("utf-8", errors="replace")

    def chat(self, prompt: str, thinking: bool) -> list[int]:
        """Qwen3.5's template for one user turn, up to where the assistant's words begin; it holds the
        sequence's one <think>. With thinking off an empty thought is closed at once, as the template does."""
        start, end = self._added["<|im_start|>"], self.end_id
        ids = [
            start,
            *self.encode("user\n" + prompt.strip()),
            end,
            *self.encode("\n"),
            start,
            *self.encode("assistant\n"),
            self._added["<think>"],
        ]
        if thinking:
            return ids + self.encode("\n")
        return [*ids, *self.encode("\n\n"), self._added["</think>"], *self.encode("\n\n")]

    def completion(self, story: str, reasoning: str | None = None, thinking: bool = False) -> list[int]:
        """What follows `chat`: reasoning, </think> (both only with thinking on), the story, <|im_end|>.
        Reasoning that brings its own <think> tags loses them, since `chat` has opened the thought already."""
        if not thinking:
            return [*self.encode(story.strip()), self.end_id]
        thought = (reasoning or "").strip().removeprefix("<think>").removesuffix("</think>").strip()
        return [
            *self.encode(thought + "\n"),
            self._added["</think>"],
            *self.encode("\n\n" + story.strip()),
            self.end_id,
        ]

    def save(self, folder: str | Path):
        """Copies the files it was read from, so that a checkpoint keeps the tokenizer of its source."""
        for file in self._files:
            target = Path(folder) / file.name
            if file.resolve() != target.resolve():
                with atomic(target) as temporary:
                    shutil.copyfile(file, temporary)


def split_thinking(text: str) -> tuple[str | None, str]:
    """(reasoning, story) of an assistant's words: the text before the first </think>, without the tags, and
    the rest. (None, text) where no thought was closed; a thought that was opened and never closed is all
    reasoning: (text, "")."""
    thought, closed, story = text.partition("</think>")
    if closed:
        return thought.replace("<think>", "", 1).strip(), story.strip()
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>").strip(), ""
    return None, text.strip()


def load_tokenizer(path_or_repo: str | Path) -> Tokenizer:
    """Tokenizer from a folder, a tokenizer.json or a hub id such as "Qwen/Qwen3.5-9B".

    FileNotFoundError: there is none. ValueError: the file is another kind of tokenizer."""
    path = Path(path_or_repo)
    path = path if path.is_file() else fetch(path_or_repo, FILES) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no tokenizer.json in {path.parent}; copy the model's tokenizer there"
        )
    try:
        return _read_tokenizer(path)
    except (KeyError, TypeError, AttributeError, StopIteration, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a byte-level BPE in Hugging Face's form ({type(error).__name__}: {error}); "
            "use the tokenizer.json of a Qwen model"
        ) from None


def _read_tokenizer(path: Path) -> Tokenizer:
    """Ranks come from the merges, in their order, and from nothing else: an entry of the vocabulary that no
    merge makes is never emitted by Hugging Face, though tiktoken would emit it whole."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
    pattern = next(s["pattern"]["Regex"] for s in steps if s["type"] == "Split")
    normaliser = (spec.get("normalizer") or {}).get("type")
    if normaliser != "NFC":
        raise ValueError(
            f"{path} normalises text by {normaliser}, Qwen's tokenizers by NFC; "
            "use the tokenizer.json of a Qwen model"
        )
    letters = _byte_letters()
    byte_of = {char: byte for byte, char in enumerate(letters)}

    def spell(token: str) -> bytes:
        return bytes(byte_of[char] for char in token)

    ranks = {bytes([byte]): byte for byte in range(256)}
    ids = [vocab[char] for char in letters]
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if ranks.setdefault(spell(left + right), len(ids)) == len(ids):
            ids.append(vocab[left + right])
    added = {t["content"]: t["id"] for t in spec["added_tokens"]}
    special = {t["content"] for t in spec["added_tokens"] if t["special"]}
    vocabulary = {i: spell(token) for token, i in vocab.items() if token not in added}
    # Added tokens decode to their own text, the special ones among them to nothing.
    vocabulary |= {i: b"" if token in special else token.encode() for token, i in added.items()}
    files = [path.with_name(name) for name in FILES if path.with_name(name).is_file()]
    return Tokenizer(pattern, ranks, ids, added, vocabulary, files)


def _byte_letters() -> str:
    """The letter that stands for each byte in tokenizer.json (GPT-2's table): printable bytes stand for
    themselves, the others, in order, for the letters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return "".join(chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256))


if __name__ == "__main__":
    print(__doc__)
