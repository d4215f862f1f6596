"""The demo's base model, made from nothing but public-domain books: its tokenizer, its words, its training text.

A small model can only be taught to write better if it can write at all, so `stories/tiny-base/` holds a Qwen3.5 of a few
million parameters that has read some anthologies once. This file is the exact recipe, each command rerunnable:

    python -m scripts.tiny_base tokenizer BOOKS...             -> stories/tiny-base/tokenizer.json (byte-level BPE, 4096 tokens)
    python -m scripts.tiny_base words BOOKS...                 -> stories/words.txt (words that several books share)
    python -m scripts.tiny_base corpus BOOKS... --out out/base -> pretrain.bin (token ids) and lengths.jsonl (prompt, passage)
    python -m scripts.tiny_base pretrain out/base/pretrain.bin --out out/base/model     -> next-token prediction, from random
and then the trainer's own supervised warm start, which teaches the chat format, where to stop, and roughly how long:
    python train.py --preset tiny --model out/base/model --data out/base/lengths.jsonl --steps 0 --warm_start_steps 1500

Left out: any cleverness about data quality beyond dropping verse and plays; the books are old, and the demo sounds like it.
"""
from __future__ import annotations

import argparse
import html
import json
import math
import os
import random
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data

BASE = Path(__file__).resolve().parent.parent / "stories" / "tiny-base"
VOCABULARY = 4096
SPECIAL = data.NEEDED
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
        pre_tokenizers.Split(Regex(data.QWEN_PATTERN), behavior="isolated"),
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


# ---------------------------------------------------------------- words

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def common_words(texts: list[str], books: int = 4) -> list[str]:
    """The lower-case words that stand in at least `books` of the books: names, misprints and dialect mostly fall out.

    A word counts where it stands in lower case, so that a name that never loses its capital is no word; the
    curly apostrophe has become a straight one. `stories/words.txt` came from all 100 books."""
    seen = Counter()
    for text in texts:
        seen.update({w for w in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text) if WORD.fullmatch(w)})
    return sorted(w for w, n in seen.items() if n >= books and not SLUR.search(w) and (len(w) > 1 or w in "ai"))


# ---------------------------------------------------------------- corpus

NOTE = re.compile(r"gutenberg|transcriber|copyright|footnote|illustration|https?:|↩|\*\*|^\W*(the end|finis)\W*$", re.I)
NOT_A_STORY = re.compile(r"\b(preface|introduction|contents|dedication|notes?|glossary|appendix|foreword|bibliograph\w+|"
                         r"endnotes|colophon|imprint|uncopyright|titlepage|index)\b", re.I)
SPEAKER = re.compile(r"[A-Z][A-Z. ]{2,30}[.:] ")  # HAMLET. Words: a play
SLUR = re.compile(r"\bnigg|\bdarke?y\b|\bdarkies\b|\bkike|\bpickaninn|\bcoons?\b|\bhottentot|\bnegr|\bsambo\b|"
                  r"\bmulatt|\bkaff?ir", re.I)
ARCHAIC = re.compile(r"\b(thou|thee|thy|thine|hath|doth|quoth|ye|unto|o'|th'|wi'|an'|dat|dis|de|dem|yer)\b")


def prose(text: str) -> list[str]:
    """The clean paragraphs of a story; [] where most of it is verse, a play, or something else than prose."""
    kept, dropped = [], 0
    if SLUR.search(text):  # the books are of their time; what the demo writes need not be
        return []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        paragraph = re.sub(r"\s*\[\d+\]|\s*\(\d+\)", "", plain(" ".join(" ".join(lines).split())))
        verse = len(lines) > 2 and sum(map(len, lines)) / len(lines) < 50
        ends = re.search(r"[a-z,][.!?—,:;][\"')]*$", paragraph)
        if verse or not ends or NOTE.search(paragraph) or SPEAKER.match(paragraph):
            dropped += len(paragraph) > 60  # short ones are titles and rules
        else:
            kept.append(paragraph)
    return kept if len(kept) > 4 * dropped and sum(map(len, kept)) > 1500 else []


def ease(paragraphs: list[str], words: set[str]) -> float:
    """How easily a small model learns from a story: known words, few archaic ones, short sentences, some dialogue."""
    text = " ".join(paragraphs)
    tokens = re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)?", text)
    known = sum(t.lower() in words for t in tokens) / len(tokens)
    sentence = len(tokens) / max(1, len(re.findall(r"[.!?]", text)))
    archaic = len(ARCHAIC.findall(text.lower())) / len(tokens)
    dialogue = sum('"' in p for p in paragraphs) / len(paragraphs)
    return 10 * known - 40 * archaic - sentence / 20 + min(dialogue, 0.4)


STOP = set("""a an the and or but nor so if as at by for from in into of off on onto out over to up with without upon than
then that this these those which who whom whose what when where while why how is was were are be been being am had has have
having do did does done will would shall should can could may might must not no he she it they we you i me him them us his
her its their my your our himself herself itself themselves myself there here now very too more most some any all each
every other another such own same only just even still again once ever never through under about after before against
between because until till like said say says went came come go got get made make took take saw see seemed one two""".split())
DULL = set("""way time thing things day man part place side end moment kind sort matter fact case word words rest name number
manner bit lot deal sight point order course world life first last good great little old new few many much long next whole
right left own certain least half most best same following utmost slightest present other others latter former sake""".split())
NOUN_PHRASE = re.compile(r"\b(?:a|an|the|his|her|their|my|this|that) ((?:[a-z]+ly )?(?:[a-z-]{3,} )?[a-z-]{3,})"
                         r"(?=[,.;:!?—\"]| (?:and|of|in|on|at|was|were|is|had|has|with|that|who|which|to|from|for|by|as|"
                         r"he|she|they|I|it|but|when|where|would|could|into|upon|over|under|through|came|went|said)\b)")
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)([A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})?)\b")
VERBS = ("meets", "finds", "loses", "remembers", "waits for", "is afraid of", "looks for", "dreams of", "hides", "brings",
         "comes home to", "will not forget", "wants", "sees", "asks about", "leaves")
JOIN = (" and ", " and ", " with ", " near ", " without ", " who {v} ", " who {v} ", " who {v} ")
FRAMES = ("Write a story about {s}. It should be {n} words long.", "Write a short story about {s}. It should be {n} words long.",
          "Tell me a story, {n} words long, about {s}.", "Tell me a story about {s}. Make it {n} words long.",
          "{S}: write a story {n} words long.", "Please write a short story about {s}, {n} words long.",
          "I would like a story {n} words long about {s}.", "The subject: {s}. Make your story {n} words long.",
          "Write a story {n} words long about {s}.", "{S}. Tell it in a story {n} words long.")


def subjects(passage: str, rarity: dict[str, float], rng: random.Random) -> list[str]:
    """2-3 phrases that stand in the passage, the telling ones first: "an old king", "the ring", "Clara"."""
    found = {}
    lower = passage.lower()
    for match in NOUN_PHRASE.finditer(passage):
        phrase = match[1].split()
        while phrase and (phrase[0] in STOP or phrase[0] in DULL and len(phrase) > 1):
            phrase.pop(0)
        head = phrase[-1] if phrase else ""
        if not head or head in DULL or any(w in STOP or w not in rarity for w in phrase):
            continue
        article = match[0].split()[0]
        if article != "the" or rng.random() < 0.5:
            article = "an" if phrase[0][0] in "aeiou" else "a"
        if head.endswith("s") and not head.endswith("ss"):
            article = "the"
        telling = min(rarity[head], 3) + lower.count(head) + rng.random()
        found.setdefault(head, (article + " " + " ".join(phrase), telling))
    for match in NAME.finditer(passage):
        if match[1].lower() not in rarity:
            found.setdefault(match[1], (match[1], 2 + passage.count(match[1]) + rng.random()))
    best = sorted(found.values(), key=lambda p: -p[1])[:rng.choice((2, 2, 2, 3))]
    best = [p for p, _ in best]
    rng.shuffle(best)
    return best


def request(passage: str, n: int, rarity: dict[str, float], rng: random.Random) -> str | None:
    """A prompt in the demo's manner, made of the passage's own words; None where it has no telling ones."""
    found = subjects(passage, rarity, rng)
    if len(found) < 2:
        return None
    s = found[0] + rng.choice(JOIN).format(v=rng.choice(VERBS)) + " and ".join(found[1:])
    return rng.choice(FRAMES).format(s=s, S=s[0].upper() + s[1:], n=n)


END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bM)(?<!\b[A-Z])([.!?]+[\"')]*)\s+(?=[\"'(]?[A-Z])")


def sentences(paragraphs: list[str]) -> list[tuple[str, bool]]:
    """[(sentence, does its paragraph end here)]"""
    out = []
    for paragraph in paragraphs:
        parts = END.sub(r"\1\n", paragraph).split("\n")
        out += [(part, i == len(parts) - 1) for i, part in enumerate(parts)]
    return out


def passages(paragraphs: list[str], rng: random.Random, low: int = 25, high: int = 190):
    """Pieces of a story that begin and end where sentences do, their lengths spread evenly over low..high words.

    One piece after the other, a paragraph's end preferred to a sentence's; the story's own ending comes several times,
    since an ending is what a passage from the middle cannot teach. Yields text."""
    parts = sentences(paragraphs)
    counts = [data.words(s) for s, _ in parts]
    glue = lambda a, b: "".join(s + ("\n\n" if last else " ") for s, last in parts[a:b]).strip()
    for _ in range(3):  # the last words of the story, from three different starts
        target, total, at = rng.randint(low, high), 0, len(parts)
        while at > 0 and total < target:
            at -= 1
            total += counts[at]
        if low <= total <= high:
            yield glue(at, len(parts))
    at = 0
    while at < len(parts):
        target, total, ends = rng.randint(low, high), 0, []
        for j in range(at, len(parts)):
            total += counts[j]
            if total > high:
                break
            if total >= low:
                ends.append((abs(total - target) + 8 * (not parts[j][1]), j))
        if ends:
            yield glue(at, min(ends)[1] + 1)
        at = min(ends)[1] + 1 if ends else j + 1


def fit(passage: str) -> bool:
    """A piece of telling: people in it, its quotation marks closed, nothing that points outside the page."""
    people = len(re.findall(r"\b(he|she|they|i|his|her|you|we|him|them)\b", passage.lower()))
    return (people >= 0.03 * data.words(passage) and passage.count('"') % 2 == 0 and not re.search(r"[\[\]{}*_|\d]", passage)
            and re.match(r"[\"']?[A-Z]", passage) is not None and re.search(r"[.!?][\"']?$", passage) is not None
            and re.match(r"\W*(And|But|Or|Nor|Which|Yet|Then|Thus|Therefore|However)\b", passage) is None)


def choose_stories(files: list[str], share: float, known: set[str]) -> list[tuple[str, list[str]]]:
    """(book, paragraphs) of the easiest stories, which together hold `share` of all the words."""
    stories = {}
    for path in tqdm(sorted(files), desc="books", unit="book"):
        for title, text in split_stories(path):
            paragraphs = [] if NOT_A_STORY.search(title) else prose(text)
            if paragraphs:  # the same tale stands in several books: keyed by how it begins
                stories.setdefault(paragraphs[0][:60].lower(), (ease(paragraphs, known), Path(path).name, paragraphs))
    ranked = sorted(stories.values(), key=lambda s: -s[0])
    budget, chosen = share * sum(data.words(" ".join(s[2])) for s in ranked), []
    for _, book, paragraphs in ranked:
        if budget <= 0:
            break
        chosen.append((book, paragraphs))
        budget -= data.words(" ".join(paragraphs))
    return chosen


def length_examples(stories, pieces: int, known: set[str], rng: random.Random) -> list[data.Example]:
    """`pieces` passages with a prompt each, the easiest of half as many again. ValueError where the books give none."""
    df = Counter(w for _, paragraphs in stories for w in set(re.findall(r"[a-z]+(?:-[a-z]+)*", " ".join(paragraphs))))
    rarity = {w: math.log(len(stories) / n) for w, n in df.items() if n >= 5}
    found = []
    while len(found) < 1.5 * pieces:  # each round cuts the stories at other places
        before = len(found)
        for book, paragraphs in stories:
            for passage in passages(paragraphs, rng):
                count = data.words(passage)
                # Mostly a round number, so that N is to be met roughly, as in the demo's prompts.
                n = count if rng.random() < 0.15 else max(30, round(count / 10) * 10)
                prompt = request(passage, n, rarity, rng) if fit(passage) else None
                if prompt:
                    example = data.Example(f"{Path(book).stem[:24]}-{len(found)}", prompt, n, passage, None, book)
                    found.append((ease(passage.split("\n\n"), known) + rng.random(), example))
        if len(found) == before:
            raise ValueError("these books gave no passage to learn lengths from: pass more of them")
    examples = [e for _, e in sorted(found, key=lambda pair: -pair[0])[:pieces]]
    rng.shuffle(examples)
    return examples


def corpus(files: list[str], out: Path, share: float = 0.7, pieces: int = 70_000, seed: int = 0):
    """Write out/pretrain.bin (uint16 ids, a story after the other, <|endoftext|> between them) and out/lengths.jsonl."""
    rng = random.Random(seed)
    known = set((BASE.parent / "words.txt").read_text(encoding="utf-8").split())
    stories = choose_stories(files, share, known)
    rng.shuffle(stories)
    tokenizer = data.load_tokenizer(BASE)
    end = tokenizer.token("<|endoftext|>")
    ids = [i for _, paragraphs in tqdm(stories, desc="tokens", unit="story")
           for i in [*tokenizer.encode("\n\n".join(paragraphs)), end]]
    examples = length_examples(stories, pieces, known, rng)
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "pretrain.bin.tmp"
    np.array(ids, dtype=np.uint16).tofile(temporary)
    os.replace(temporary, out / "pretrain.bin")
    data.write_examples(out / "lengths.jsonl", examples)
    print(f"{len(stories)} stories, {len(ids):,} tokens -> {out}/pretrain.bin; {pieces:,} passages -> {out}/lengths.jsonl")


def split_stories(path: str):
    """(title, text) of each story in a book."""
    from scripts.anthologies import split_anthology
    return [(s.title, s.text) for s in split_anthology(path)]


# ---------------------------------------------------------------- command line

# ---------------------------------------------------------------- pretraining

# A Qwen3.5 in everything but size. Widths that are multiples of 16 keep a CPU's vector units busy.
CONFIG = dict(
    architectures=["Qwen3_5ForCausalLM"], model_type="qwen3_5_text", vocab_size=VOCABULARY, hidden_size=192, intermediate_size=640,
    num_hidden_layers=4, layer_types=["linear_attention"] * 3 + ["full_attention"], num_attention_heads=4, num_key_value_heads=2,
    head_dim=48, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=48,
    linear_conv_kernel_dim=4, tie_word_embeddings=True, rms_norm_eps=1e-6, hidden_act="silu", attention_bias=False,
    max_position_embeddings=32768, initializer_range=0.02, eos_token_id=4093, pad_token_id=4091, dtype="bfloat16",
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[4, 4, 4]))


def pretrain(tokens: Path, out: Path, steps: int, rows: int = 24, length: int = 256, lr: float = 4e-3):
    """Next-token prediction on `tokens` (uint16 ids): AdamW, warm-up, constant, then down to a quarter; bf16 matrix products."""
    import torch
    import torch.nn.functional as F
    import model as qwen
    torch.set_flush_denormal(True)
    text = torch.from_numpy(np.fromfile(tokens, dtype=np.uint16).astype(np.int64))
    model = qwen.new(CONFIG, seed=0)
    matrices = [p for name, p in model.layers.named_parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimiser = torch.optim.AdamW([dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)],
                                  lr=lr, betas=(0.9, 0.95))
    windows = (len(text) - 1) // length
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(0)).tolist()
    bar = tqdm(range(steps), desc="pretrain", mininterval=5)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 40, max(0.25, (steps - step) / (0.4 * steps)))
        picked = [order[(step * rows + i) % windows] * length for i in range(rows)]
        ids = torch.stack([text[at:at + length + 1] for at in picked])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(ids[:, :-1]))
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            qwen.save(model, out)
            data.load_tokenizer(BASE).save(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("tokenizer", "train the BPE of the tiny preset"), ("words", "list the words several books share"),
                       ("corpus", "cut the books into training text")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("books", nargs="+", help="Project Gutenberg txt or htm, Standard Ebooks epub")
        if name == "corpus":
            sub.add_argument("--out", type=Path, required=True, help="folder for pretrain.bin and lengths.jsonl")
            sub.add_argument("--share", type=float, default=0.7, help="keep the easiest share of the words")
            sub.add_argument("--pieces", type=int, default=70_000, help="lines of lengths.jsonl")
    sub = commands.add_parser("pretrain", help="next-token prediction on pretrain.bin, from random weights")
    sub.add_argument("tokens", type=Path, help="pretrain.bin")
    sub.add_argument("--out", type=Path, required=True, help="folder of the model")
    sub.add_argument("--steps", type=int, default=1200, help="of 24 x 256 tokens")
    args = parser.parse_args()
    try:
        if args.command == "pretrain":
            return pretrain(args.tokens, args.out, args.steps)
        if missing := [b for b in args.books if not Path(b).is_file()]:
            raise FileNotFoundError(f"no book {missing[0]}; give Project Gutenberg txt or htm or Standard Ebooks epub files")
        if args.command == "tokenizer":
            train_tokenizer(args.books)
        elif args.command == "words":
            found = common_words([rough_text(b) for b in args.books])
            write_text(BASE.parent / "words.txt", "\n".join(found) + "\n")
        else:
            corpus(args.books, args.out, args.share, args.pieces)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
