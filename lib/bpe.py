"""Byte-level BPE from a Hugging Face tokenizer.json, run by tiktoken, which is several times faster."""

import json
import unicodedata
from pathlib import Path

import tiktoken

CURE = "use the tokenizer.json of a Qwen model"


class BPE:
    """Text to token ids and back.

    added: text -> id of the tokens that no text becomes. Ranks come from the merges, in their order, and from
    nothing else: an entry of the vocabulary that no merge makes is never emitted by Hugging Face, but by
    tiktoken. ValueError: another kind."""

    def __init__(self, path: Path):
        try:
            pattern, ranks = self._read(path)
        except (KeyError, TypeError, AttributeError, StopIteration, json.JSONDecodeError) as error:
            why = f"not a byte-level BPE in Hugging Face's form ({type(error).__name__}: {error})"
            raise ValueError(f"{path} is {why}; {CURE}") from None
        self._bpe = tiktoken.Encoding("bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def _read(self, path: Path) -> tuple[str, dict[bytes, int]]:
        spec = json.loads(path.read_text(encoding="utf-8"))
        vocab, steps = spec["model"]["vocab"], (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
        pattern = next(s["pattern"]["Regex"] for s in steps if s["type"] == "Split")
        normaliser = (spec.get("normalizer") or {}).get("type")
        if normaliser != "NFC":
            raise ValueError(f"{path} normalises text by {normaliser}, not by NFC; {CURE}")
        # GPT-2's table of a letter for each byte: printable bytes stand for themselves, the others,
        # in order, for the letters from U+0100 on.
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}

        def spell(token: str) -> bytes:
            return bytes(byte_of[char] for char in token)

        merged = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in spec["model"]["merges"]]
        ranks, self._ids = {}, []  # bytes -> rank, rank -> token id
        for token in [*byte_of, *merged]:
            if ranks.setdefault(spell(token), len(self._ids)) == len(self._ids):
                self._ids.append(vocab[token])
        self.added = {t["content"]: t["id"] for t in spec["added_tokens"]}
        special = {t["content"] for t in spec["added_tokens"] if t["special"]}
        self._bytes = {i: spell(token) for token, i in vocab.items() if token not in self.added}
        # Added tokens decode to their own text, the special ones among them to nothing.
        self._bytes |= {i: b"" if token in special else token.encode() for token, i in self.added.items()}
        return pattern, ranks

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: no text becomes an added token, whatever it spells."""
        # Hugging Face normalises inside the tokenizer; tiktoken does not do it by itself.
        return [self._ids[rank] for rank in self._bpe.encode_ordinary(unicodedata.normalize("NFC", text))]

    def decode(self, ids: list[int]) -> str:
        """Special tokens are dropped, as in Hugging Face with skip_special_tokens. Ids of padded embedding
        rows and cut characters show as U+FFFD."""
        return b"".join(self._bytes.get(i, b"\xef\xbf\xbd") for i in ids).decode("utf-8", errors="replace")
