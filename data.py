"""Data that flows: Example (a request, and the human story that answers it) -> Episode (one row of a group).

Both are lines of JSON on disk. Between them stands the tokenizer: Qwen's byte-level BPE run by tiktoken, and Qwen3.5's
chat format for one user turn and one answer, with thinking on or off. Text is data: "<|im_end|>" typed in a prompt or
a story becomes ordinary letters, never the token that ends a turn, and a sequence holds exactly one <think> token.

    from data import load_tokenizer, read_examples
    tokenizer = load_tokenizer("stories/tiny-base")    # a folder, a tokenizer.json, a .tiktoken file or a hub id
    ids = tokenizer.chat("Write about a lighthouse. It should be 120 words long.", thinking=False)

Left out: system prompts, tools, pictures, several turns, tokenizers other than Qwen's family of byte-level BPE.
"""
from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tiktoken


@dataclass
class Example:
    """One request for a story; `story` is the human one, where there is one."""
    uid: str
    prompt: str                   # says "N words long"
    target_words: int             # N
    story: str | None = None      # written by a person; None: no reference to inject
    reasoning: str | None = None  # what the writer noted first; None: an empty <think>
    source: str = ""              # book, author, id: where the story comes from


@dataclass
class Episode:
    """One row of a group: what was asked, what was written, what it was worth."""
    example: Example
    prompt_ids: list[int]
    completion_ids: list[int]              # the end token is kept, so that stopping is learned
    sampler_logprobs: list[float] | None   # None for the human row: nobody sampled it
    finished: bool                         # False: cut at the token limit
    is_human: bool
    story: str                             # text without thinking
    rewards: dict[str, float] = field(default_factory=dict)  # named parts
    reward: float | None = None            # None: the judge failed, the row leaves its group
    advantage: float = 0.0
    verdict: dict | None = None            # the judge's raw verdict


def words(text: str) -> int:
    """How long a story is: runs of word characters, the count that every length in this project means."""
    return len(re.findall(r"\w+", text))


def order(n: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch visits n prompts: the same on every machine, rank and restart."""
    indices = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(indices)  # a string seed hashes alike in every Python
    return indices


# ---------------------------------------------------------------- JSON Lines

KEYS = ("uid", "prompt", "target_words", "story", "reasoning", "source")
NEEDS = 'every line needs a "prompt", and "target_words" or the words "N words long" in the prompt'


def read_examples(path: str | Path) -> list[Example]:
    """Examples of a JSON Lines file with the keys of `Example`; "target_word_count" is read as "target_words".

    A missing uid becomes the file's name and the line's number. Raises FileNotFoundError or ValueError, in one sentence
    that names file, line and cure; a bad line is never skipped."""
    examples, seen = [], {}
    for number, row in _read_lines(path):
        where = f"{path} line {number}"
        example = _example(row, where, f"{Path(path).stem}-{number}")
        if example.uid in seen:
            raise ValueError(f'{where}: uid "{example.uid}" stands already on line {seen[example.uid]}; make it unique')
        seen[example.uid] = number
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} holds no examples; {NEEDS}")
    return examples


def write_examples(path: str | Path, examples: list[Example]):
    """Written under a temporary name and renamed: a kill leaves the old file or the new one."""
    _write_lines(path, (asdict(e) for e in examples))


def read_episodes(path: str | Path) -> list[Episode]:
    """What `write_episodes` wrote. Raises FileNotFoundError or ValueError naming the line."""
    episodes = []
    for number, row in _read_lines(path):
        try:
            episodes.append(Episode(**{**row, "example": Example(**row["example"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number}: no episode ({error}); give a file from a run's rollouts/") from None
    return episodes


def write_episodes(path: str | Path, episodes: list[Episode]):
    """One line an episode, token ids and verdict included; atomic like `write_examples`."""
    _write_lines(path, (asdict(e) for e in episodes))


def _example(row: dict, where: str, uid: str) -> Example:
    """One checked line. Types are checked here, once, so that no other room has to."""
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
            raise ValueError(f'{where}: "{key}" is {type(value).__name__}, not text; put it in quotation marks')
        if key in ("prompt", "story", "uid") and value is not None and not value.strip():
            raise ValueError(f'{where}: "{key}" is empty; ' + (NEEDS if key == "prompt" else "fill it or leave the key out"))
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f'{where}: "{key}" holds half a surrogate pair, which is no character; repair it') from None
    target = row.get("target_words")
    if target is None:
        found = re.search(r"(\d[\d,]*)[ -]words?[ -]long", row["prompt"])
        if not found:
            raise ValueError(f'{where}: no "target_words", and the prompt does not say "N words long"; {NEEDS}')
        target = int(found[1].replace(",", ""))
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise ValueError(f'{where}: "target_words" is {json.dumps(target)}; it must be a whole number of at least 1')
    return Example(row.get("uid") or uid, row["prompt"], target, row.get("story"), row.get("reasoning"),
                   row.get("source") or "")


def _read_lines(path: str | Path):
    """(line number, object) of each line that is not blank."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a JSON Lines file of examples, such as stories/tiny.jsonl")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} line {number}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number}: not JSON ({error.msg} at character {error.pos + 1}); "
                             "put one whole object on each line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number}: a {type(row).__name__}, not an object in braces; {NEEDS}")
        yield number, row


def _write_lines(path: str | Path, rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- tokenizer

# Qwen3.5: combining marks stay with their letters (Qwen2 cut them off), every digit is a token of its own.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# The added tokens of Qwen3.5 in the order of their ids, which follow the last rank: 248044, 248045, ...
QWEN_ADDED = ("<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
              "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
              "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
              "<|file_sep|> <tool_response> </tool_response> <think> </think> <|audio_start|> <|audio_end|> <tts_pad> "
              "<tts_text_bos> <tts_text_eod> <tts_text_bos_single> <|audio_pad|>").split()
NEEDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
         "merges.txt", "added_tokens.json")


class Tokenizer:
    """Text to token ids and back; made by `load_tokenizer`.

    ranks: bytes -> order of merging, for every token that merging can produce; ids: rank -> token id;
    added: text -> id of the tokens that no text becomes; vocabulary: id -> bytes, entries without a rank included."""

    def __init__(self, pattern: str, ranks: dict[bytes, int], ids: list[int], added: dict[str, int],
                 vocabulary: dict[int, bytes], files: list[Path]):
        missing = [t for t in NEEDED if t not in added]
        if missing:
            raise ValueError(f"{files[0]} has no token {missing[0]}, which Qwen3.5's chat format needs; use its tokenizer")
        self._bpe = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._ids, self._bytes, self._added, self._files = ids, vocabulary, added, files
        self.end_id = added["<|im_end|>"]
        self.vocab_size = max(*vocabulary, *added.values()) + 1  # a checkpoint may pad its embedding beyond this

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: no text, whatever it spells, becomes a special token."""
        # Hugging Face normalises inside the tokenizer; tiktoken does not do it by itself.
        ids = self._ids
        return [ids[rank] for rank in self._bpe.encode_ordinary(unicodedata.normalize("NFC", text))]

    def token(self, name: str) -> int:
        """Id of an added token such as "<|endoftext|>". Raises KeyError."""
        return self._added[name]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids. Turn marks and the end token are dropped, <think> and </think> are kept, as in Hugging Face
        with skip_special_tokens. Ids of padded embedding rows and cut characters show as U+FFFD, since they can be sampled."""
        return b"".join(self._bytes.get(i, b"\xef\xbf\xbd") for i in ids).decode("utf-8", errors="replace")

    def chat(self, prompt: str, thinking: bool) -> list[int]:
        """Qwen3.5's template for one user turn, up to where the assistant's words begin; holds the sequence's one <think>.
        With thinking off an empty thought is closed at once, as the template does."""
        start, end = self._added["<|im_start|>"], self.end_id
        ids = [start, *self.encode("user\n" + prompt.strip()), end, *self.encode("\n"), start, *self.encode("assistant\n"),
               self._added["<think>"]]
        return ids + (self.encode("\n") if thinking
                      else [*self.encode("\n\n"), self._added["</think>"], *self.encode("\n\n")])

    def completion(self, story: str, reasoning: str | None = None, thinking: bool = False) -> list[int]:
        """What follows `chat`: reasoning, </think> (both only with thinking on), the story, <|im_end|>.
        Reasoning that brings its own <think> tags loses them, since `chat` has opened the thought already."""
        if not thinking:
            return [*self.encode(story.strip()), self.end_id]
        thought = (reasoning or "").strip().removeprefix("<think>").removesuffix("</think>").strip()
        return [*self.encode(thought + "\n"), self._added["</think>"], *self.encode("\n\n" + story.strip()), self.end_id]

    def save(self, folder: str | Path):
        """Copy the files it was read from, so that a checkpoint keeps the tokenizer its source had."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in self._files:
            if file.resolve() == (folder / file.name).resolve():
                continue
            temporary = folder / (file.name + ".tmp")
            shutil.copyfile(file, temporary)
            os.replace(temporary, folder / file.name)


def split_thinking(text: str) -> tuple[str | None, str]:
    """(reasoning, story) of an assistant's words: what stands before the first </think>, without the tags, and the rest.
    (None, text) where no thought was closed; an opened one that never closed is all reasoning: (text, "")."""
    thought, closed, story = text.partition("</think>")
    if closed:
        return thought.replace("<think>", "", 1).strip(), story.strip()
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>").strip(), ""
    return None, text.strip()


def load_tokenizer(path_or_repo: str | Path) -> Tokenizer:
    """Tokenizer from a folder, a tokenizer.json, a .tiktoken rank file or a hub id such as "Qwen/Qwen3.5-9B".

    Raises FileNotFoundError where there is none, ValueError where the file is another kind of tokenizer."""
    path = Path(path_or_repo)
    if not path.exists():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path_or_repo)):
            raise FileNotFoundError(f"no tokenizer at {path_or_repo}; "
                                    "give a folder with tokenizer.json, a .tiktoken file or a hub id")
        path = _download(str(path_or_repo))
    if path.is_dir():
        ranks = sorted(path.glob("*.tiktoken"))
        if not (path / "tokenizer.json").is_file() and not ranks:
            raise FileNotFoundError(f"no tokenizer.json and no .tiktoken file in {path}; copy the model's tokenizer there")
        path = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else ranks[0]
    return _from_ranks(path) if path.suffix == ".tiktoken" else _from_hugging_face(path)


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download  # comes with transformers; most runs never need it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(repo, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"no tokenizer {repo}: neither a folder here nor in the cache, and the hub gave none "
                                f"({type(error).__name__}); check the name and the connection") from None


def _from_ranks(path: Path) -> Tokenizer:
    """A .tiktoken file: base64 of the token, its rank. Entries that are no merge products come out whole, as it says."""
    try:
        rows = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError as error:
        raise ValueError(f"{path} is no .tiktoken file ({error}); every line must be a base64 token and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError(f"{path} is cut or damaged: its ranks do not run from 0 without a gap, or a byte has none; "
                         "fetch it again")
    added = {token: len(ranks) + i for i, token in enumerate(QWEN_ADDED)}
    vocabulary = {rank: token for token, rank in ranks.items()}
    return _with_added(QWEN_PATTERN, ranks, list(range(len(ranks))), added, set(QWEN_ADDED) - KEPT, vocabulary, [path])


def _from_hugging_face(path: Path) -> Tokenizer:
    """A tokenizer.json with byte-level BPE. Ranks come from its merges, in their order, and from nothing else: an entry
    of the vocabulary that no merge makes is never emitted by Hugging Face, though tiktoken would emit it whole."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
        steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
        pattern = next(s["pattern"]["Regex"] for s in steps if s["type"] == "Split")
        normaliser = (spec.get("normalizer") or {}).get("type")
        unit = {char: byte for byte, char in enumerate(_byte_letters())}
        spell = lambda token: bytes(unit[char] for char in token)
        ranks = {bytes([byte]): byte for byte in range(256)}
        ids = [vocab[char] for char in _byte_letters()]
        for merge in merges:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if ranks.setdefault(spell(left + right), len(ids)) == len(ids):
                ids.append(vocab[left + right])
        added = {t["content"]: t["id"] for t in spec["added_tokens"]}
        special = {t["content"] for t in spec["added_tokens"] if t["special"]}
        vocabulary = {i: spell(token) for token, i in vocab.items() if token not in added}
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError) as error:
        raise ValueError(f"{path} is no byte-level BPE in Hugging Face's form ({type(error).__name__}: {error}); "
                         "use the tokenizer.json of a Qwen model") from None
    if normaliser != "NFC":
        raise ValueError(f"{path} normalises text by {normaliser}, Qwen's tokenizers by NFC; "
                         "use the tokenizer.json of a Qwen model")
    files = [path.with_name(name) for name in FILES if path.with_name(name).is_file()]
    return _with_added(pattern, ranks, ids, added, special, vocabulary, files)


KEPT = {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"}  # not "special" at Qwen


def _with_added(pattern, ranks, ids, added, special, vocabulary, files) -> Tokenizer:
    """Added tokens decode to their own text, the special ones among them to nothing."""
    vocabulary |= {i: b"" if token in special else token.encode() for token, i in added.items()}
    return Tokenizer(pattern, ranks, ids, added, vocabulary, files)


def _byte_letters() -> str:
    """The letter that stands for each byte in tokenizer.json (GPT-2's table): printable bytes stand for themselves,
    the others, in order, for the letters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return "".join(chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256))
