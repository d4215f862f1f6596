"""Text to token ids and back, by a Hugging Face tokenizer.json; no text becomes one of its added tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer


class BPE:
    """added: text -> id of the tokens that no text becomes, such as "<|im_end|>". vocab_size: a checkpoint
    may pad its embedding beyond it. ValueError: the file holds no tokenizer."""

    def __init__(self, path: Path):
        try:
            self._whole = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            why = f"not a tokenizer in Hugging Face's form ({error})"
            raise ValueError(f"{path} is {why}; use the tokenizer.json of a Qwen model") from None
        # The same without added tokens, for encoding: "<|im_end|>" typed in a story becomes ordinary letters.
        self._plain = Tokenizer(self._whole.model)
        self._plain.normalizer = self._whole.normalizer
        self._plain.pre_tokenizer = self._whole.pre_tokenizer
        self.added = {token.content: i for i, token in self._whole.get_added_tokens_decoder().items()}
        self.vocab_size = max(self._whole.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only, whatever the text spells."""
        return self._plain.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """Special tokens are dropped. Ids of padded embedding rows and cut characters show as U+FFFD."""
        runs = [[]]
        for i in ids:
            if i < self.vocab_size:
                runs[-1].append(i)
            else:
                runs.append([])
        return "\ufffd".join(map(self._whole.decode, runs))
