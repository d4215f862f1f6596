"""The demo's base model, made from nothing but public-domain books: its tokenizer, its words, its training text.

A small model can only be taught to write better if it can write at all, so `stories/tiny-base/` holds a Qwen3.5 of a few
million parameters that has read some anthologies once. This file is the exact recipe, each command rerunnable:

    python -m scripts.tiny_base tokenizer BOOKS...             -> stories/tiny-base/tokenizer.json (byte-level BPE, 4096 tokens)
    python -m scripts.tiny_base words BOOKS...                 -> stories/words.txt (words that several books share)
    python -m scripts.tiny_base corpus BOOKS... --out out/base -> pretrain.bin (token ids) and lengths.jsonl (prompt, passage)

Left out: any cleverness about data quality beyond dropping verse and plays; the books are old, and the demo sounds like it.
"""
from __future__ import annotations

import argparse
import html
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import data

BASE = Path(__file__).resolve().parent.parent / "stories" / "tiny-base"
VOCABULARY = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# Qwen3.5's pre-tokeniser: combining marks stay with their letters, every digit is a token of its own.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# The part of Qwen's chat template that one user turn and one answer need, in the same characters.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}")


# ---------------------------------------------------------------- reading books, roughly

# One sign for each purpose: a vocabulary of 4096 has no room for four kinds of quotation mark.
PLAIN = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "′": "'",
                       "–": "-", "‐": "-", "‑": "-", "―": "—", "\u2060": "", "\u200b": "", "\ufeff": "", "\u00ad": "",
                       "\u00a0": " ", "\u2009": " ", "\u200a": " ", "\u2002": " ", "\u2003": " ", "\u202f": " "})


def plain(text: str) -> str:
    """Curly quotes, dashes and odd spaces to one sign each; `--` to an em dash; `_italics_` to bare words."""
    text = text.translate(PLAIN).replace("…", "...")
    text = re.sub(r"\s*(?:-{2,}|⸺|⸻)[ \t]*|[ \t]*—+[ \t]*", "—", text)
    return re.sub(r"(?<!\w)_+|_+(?!\w)", "", text)


def rough_text(path: str | Path) -> str:
    """A book as running text, paragraph by paragraph: enough to count words and train a BPE, with front matter left in."""
    path = Path(path)
    if path.suffix == ".epub":
        with zipfile.ZipFile(path) as book:
            pages = sorted(n for n in book.namelist() if n.endswith(".xhtml") and "/text/" in n)
            raw = "\n".join(book.read(n).decode("utf-8") for n in pages)
    else:
        blob = path.read_bytes()
        try:
            raw = blob.decode("utf-8")
        except UnicodeDecodeError:
            raw = blob.decode("cp1252", errors="replace")  # the older Gutenberg files
    if path.suffix != ".txt":
        raw = re.sub(r"(?is)<(head|style|script|pre)\b.*?</\1>", "", raw)
        raw = re.sub(r"(?i)</?(p|div|h\d|br|li|tr|section|blockquote)\b[^>]*>", "\n\n", raw)
        raw = html.unescape(re.sub(r"<[^>]+>", "", raw))
    start = re.search(r"\*\*\* ?START OF TH.*?\*\*\*", raw, re.S)
    end = re.search(r"\*\*\* ?END OF TH|End of (?:the )?Project Gutenberg", raw)
    raw = raw[start.end() if start else 0:end.start() if end else len(raw)].replace("\r", "")
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", raw))  # the hard wraps undone
    return plain("\n\n".join(p for p in paragraphs if p))


# ---------------------------------------------------------------- tokenizer

def train_tokenizer(files: list[str], folder: Path = BASE):
    """Byte-level BPE in Hugging Face's form, with Qwen3.5's pre-tokeniser and the five special tokens at the end."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator((rough_text(f) for f in sorted(files)), trainer)
    # As with Qwen, <think> is a token of its own but not "special": decoding does not drop it.
    bpe.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL[:3]])
    bpe.add_tokens([AddedToken(t, normalized=False, special=False) for t in SPECIAL[3:]])
    if bpe.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the books gave {bpe.get_vocab_size()} tokens instead of {VOCABULARY}: pass more of them")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "clean_up_tokenization_spaces": False, "model_max_length": 4096, "chat_template": CHAT_TEMPLATE}
    write_text(folder / "tokenizer.json", bpe.to_str(pretty=False))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return bpe


def write_text(path: Path, text: str):
    """All or nothing: a kill leaves the old file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    train_tokenizer(sys.argv[2:])
