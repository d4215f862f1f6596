"""The demo's base model, made from public-domain books alone: its tokenizer, its words, its training text.

A small model can only be taught to write better if it can write at all, so `stories/tiny-base/` holds a
Qwen3.5 of a few million parameters that has read some anthologies once. SPLIT is what
`python -m scripts.anthologies split BOOKS... --out SPLIT` finds, one story per line:

    python -m scripts.tiny_base tokenizer SPLIT   -> tokenizer.json: byte-level BPE, 4096 tokens
    python -m scripts.tiny_base words SPLIT       -> words.txt: words that several books share
    python -m scripts.tiny_base corpus SPLIT      -> pretrain.bin (token ids), lengths.jsonl (prompt, passage)
    python -m scripts.tiny_base pretrain out/base/pretrain.bin     -> model/: next-token prediction

All of it goes to out/base (--out). scripts.warm_start on lengths.jsonl follows, which teaches the chat
format, where to stop and roughly how long. The tokenizer and the words under stories/ come from whole books,
so a new run differs from them in rare words. Left out: any choice by quality beyond dropping verse and plays.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import model as qwen
from lib import huggingface
from lib.files import atomic, lock, read_lines, write_text
from lib.flags import called, exits_cleanly
from lib.text import FLAGGED

BASE = Path(__file__).resolve().parent.parent / "stories" / "tiny-base"
VOCABULARY = 4096
SPECIAL = data.NEEDED


# ---- stories ----------------------------------------------------------------------------------

# One sign for each purpose: a vocabulary of 4096 has no room for four kinds of quotation mark.
PLAIN = str.maketrans("“”„«»‘’‚′–‐‑―", '"' * 5 + "'" * 4 + "---—")
PLAIN |= str.maketrans(dict.fromkeys("\u2060\u200b\ufeff\u00ad", ""))
PLAIN |= str.maketrans(dict.fromkeys("\u00a0\u2009\u200a\u2002\u2003\u202f", " "))


def plain(text: str) -> str:
    """Curly quotes, dashes and odd spaces to one sign each; `--` to an em dash; `_italics_` to bare words."""
    text = text.translate(PLAIN).replace("…", "...")
    text = re.sub(r"\s*(?:-{2,}|⸺|⸻)[ \t]*|[ \t]*—+[ \t]*", "—", text)
    return re.sub(r"(?<!\w)_+|_+(?!\w)", "", text)


def read_split(path: str) -> dict[str, list[tuple[str, str]]]:
    """{book: (title, text) of each story} of what `anthologies split` wrote."""
    books = {}
    for number, row in read_lines(path, "a story per line"):
        if not all(isinstance(row.get(key), str) for key in ("story", "title", "source")):
            raise ValueError(f"{path} line {number}: give what `python -m scripts.anthologies split` wrote")
        books.setdefault(row["source"], []).append((row["title"], row["story"]))
    return books


def whole(stories: list[tuple[str, str]]) -> str:
    """A book as running text, one line per paragraph."""
    parts = re.split(r"\n\s*\n", "\n\n".join(text for _, text in stories))
    return plain("\n\n".join(" ".join(part.split()) for part in parts))


# ---- tokenizer and words ----------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], folder: Path):
    """Byte-level BPE as Qwen3.5 has it, the special tokens at the end. ValueError: too little text."""
    import tokenizers as hf

    bpe, qwens = hf.Tokenizer(hf.models.BPE()), hf.Tokenizer.from_file(str(BASE / "tokenizer.json"))
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = qwens.normalizer, qwens.pre_tokenizer, qwens.decoder
    how = {"show_progress": False, "initial_alphabet": hf.pre_tokenizers.ByteLevel.alphabet()}
    bpe.train_from_iterator(texts, hf.trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), **how))
    # As with Qwen, <think> is a token of its own but not "special": decoding does not drop it.
    bpe.add_special_tokens([hf.AddedToken(t, normalized=False, special=True) for t in SPECIAL[:3]])
    bpe.add_tokens([hf.AddedToken(t, normalized=False, special=False) for t in SPECIAL[3:]])
    if bpe.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the books gave {bpe.get_vocab_size()} tokens, not {VOCABULARY}: pass more of them")
    write_text(folder / "tokenizer.json", bpe.to_str(pretty=False))
    # The names of the special tokens, and Qwen's chat template for one user turn and one answer.
    shutil.copy(BASE / "tokenizer_config.json", folder)


WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def common_words(texts: list[str], books: int = 4) -> list[str]:
    """The lower-case words in at least `books` of the books: names, misprints and dialect mostly fall out."""
    seen = Counter()
    for text in texts:
        seen.update({w for w in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text) if WORD.fullmatch(w)})
    shared = (w for w, n in seen.items() if n >= books and (len(w) > 1 or w in "ai"))
    return sorted(w for w in shared if not SLUR.search(w))


# ---- corpus ----------------------------------------------------------------------------------

NOTE = r"gutenberg|transcriber|copyright|footnote|illustration|https?:|↩|\*\*|^\W*(the end|finis)\W*$"
NOTE = re.compile(NOTE, re.I)
MATTER = r"preface|introduction|contents|dedication|notes?|glossary|appendix|foreword|bibliograph\w+|endnotes"
MATTER += r"|colophon|imprint|uncopyright|titlepage|index"
NOT_A_STORY = re.compile(rf"\b({MATTER})\b", re.I)
SPEAKER = re.compile(r"[A-Z][A-Z. ]{2,30}[.:] ")  # HAMLET. Words: a play
SLUR = re.compile(rf"{FLAGGED.pattern}|\bnegr\w+", re.I)
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
    """How easily a small model learns from it: known words, few archaic ones, short sentences, dialogue."""
    text = " ".join(paragraphs)
    tokens = re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)?", text)
    known = sum(t.lower() in words for t in tokens) / len(tokens)
    sentence = len(tokens) / max(1, len(re.findall(r"[.!?]", text)))
    archaic = len(ARCHAIC.findall(text.lower())) / len(tokens)
    dialogue = sum('"' in p for p in paragraphs) / len(paragraphs)
    return 10 * known - 40 * archaic - sentence / 20 + min(dialogue, 0.4)


STOP = """a an the and or but nor so if as at by for from in into of off on onto out over to up with
without upon than then that this these those which who whom whose what when where while why how is was were
are be been being am had has have having do did does done will would shall should can could may might must
not no he she it they we you i me him them us his her its their my your our himself herself itself
themselves myself there here now very too more most some any all each every other another such own same
only just even still again once ever never through under about after before against between because until
till like said say says went came come go got get made make took take saw see seemed one two"""
STOP = frozenset(STOP.split())
DULL = """way time thing things day man part place side end moment kind sort matter fact case word words
rest name number manner bit lot deal sight point order course world life first last good great little old
new few many much long next whole right left own certain least half most best same following utmost
slightest present other others latter former sake"""
DULL = frozenset(DULL.split())
NOUN_PHRASE = r"\b(?:a|an|the|his|her|their|my|this|that) ((?:[a-z]+ly )?(?:[a-z-]{3,} )?[a-z-]{3,})"
NOUN_PHRASE += (
    r"(?=[,.;:!?—\"]| (?:and|of|in|on|at|was|were|is|had|has|with|that|who|which|to|from|for|by|as|"
)
NOUN_PHRASE += r"he|she|they|I|it|but|when|where|would|could|into|upon|over|under|through|came|went|said)\b)"
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)([A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})?)\b")
VERBS = "meets|finds|loses|remembers|waits for|is afraid of|looks for|dreams of|hides|brings|comes home to"
VERBS = [*VERBS.split("|"), "will not forget", "wants", "sees", "asks about", "leaves"]
JOIN = (" and ", " and ", " with ", " near ", " without ", " who {v} ", " who {v} ", " who {v} ")
FRAMES = """Write a story about {s}. It should be {n} words long.
Write a short story about {s}. It should be {n} words long.
Tell me a story, {n} words long, about {s}.
Tell me a story about {s}. Make it {n} words long.
{S}: write a story {n} words long.
Please write a short story about {s}, {n} words long.
I would like a story {n} words long about {s}.
The subject: {s}. Make your story {n} words long.
Write a story {n} words long about {s}.
{S}. Tell it in a story {n} words long."""


def subjects(passage: str, rarity: dict[str, float], rng: random.Random) -> list[str]:
    """2-3 phrases that stand in the passage, the telling ones first: "an old king", "the ring", "Clara"."""
    found = {}
    lower = passage.lower()
    for match in re.finditer(NOUN_PHRASE, passage):
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
    ranked = sorted(found.values(), key=lambda p: -p[1])
    best = [p for p, _ in ranked[: rng.choice((2, 2, 2, 3))]]
    rng.shuffle(best)
    return best


def request(passage: str, n: int, rarity: dict[str, float], rng: random.Random) -> str | None:
    """A prompt in the demo's manner, made of the passage's own words; None where it has no telling ones."""
    found = subjects(passage, rarity, rng)
    if len(found) < 2:
        return None
    s = found[0] + rng.choice(JOIN).format(v=rng.choice(VERBS)) + " and ".join(found[1:])
    return rng.choice(FRAMES.splitlines()).format(s=s, S=s[0].upper() + s[1:], n=n)


# The end of a sentence, but for the point after a title or an initial.
END = r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bM)(?<!\b[A-Z])([.!?]+[\"')]*)\s+(?=[\"'(]?[A-Z])"
END = re.compile(END)


def sentences(paragraphs: list[str]) -> list[tuple[str, bool]]:
    """[(sentence, does its paragraph end here)]"""
    out = []
    for paragraph in paragraphs:
        parts = END.sub(r"\1\n", paragraph).split("\n")
        out += [(part, i == len(parts) - 1) for i, part in enumerate(parts)]
    return out


def passages(paragraphs: list[str], rng: random.Random, low: int = 25, high: int = 190):
    """Yields pieces of low..high words, all lengths alike, that begin and end where sentences do.

    Ends of paragraphs come first; the story's own ending comes several times, since only it can teach one."""
    parts = sentences(paragraphs)
    counts = [data.words(s) for s, _ in parts]

    def glue(a: int, b: int) -> str:
        return "".join(s + ("\n\n" if last else " ") for s, last in parts[a:b]).strip()

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
    if people < 0.03 * data.words(passage) or passage.count('"') % 2 or re.search(r"[\[\]{}*_|\d]", passage):
        return False
    if re.match(r"\W*(And|But|Or|Nor|Which|Yet|Then|Thus|Therefore|However)\b", passage):
        return False
    return bool(re.match(r"[\"']?[A-Z]", passage) and re.search(r"[.!?][\"']?$", passage))


def choose_stories(books: dict, share: float, known: set[str]) -> list[tuple[str, list[str]]]:
    """(book, paragraphs) of the easiest stories, which together hold `share` of all the words."""
    stories = {}
    for book, found in tqdm(sorted(books.items()), desc="books", unit="book"):
        for title, text in found:
            paragraphs = [] if NOT_A_STORY.search(title) else prose(text)
            if paragraphs:  # the same tale is in several books: keyed by how it begins
                stories.setdefault(paragraphs[0][:60].lower(), (ease(paragraphs, known), book, paragraphs))
    ranked = sorted(stories.values(), key=lambda s: -s[0])
    budget, chosen = share * sum(data.words(" ".join(s[2])) for s in ranked), []
    for _, book, paragraphs in ranked:
        if budget <= 0:
            break
        chosen.append((book, paragraphs))
        budget -= data.words(" ".join(paragraphs))
    return chosen


def length_examples(stories, pieces: int, known: set[str], rng: random.Random) -> list[data.Example]:
    """`pieces` passages with a prompt each, the easiest of half as many again. ValueError: the books give
    none."""
    texts = [" ".join(paragraphs) for _, paragraphs in stories]
    df = Counter(w for text in texts for w in set(re.findall(r"[a-z]+(?:-[a-z]+)*", text)))
    rarity = {w: math.log(len(stories) / n) for w, n in df.items() if n >= 5}
    found = []
    while len(found) < 1.5 * pieces:  # each round cuts the stories at other places
        before = len(found)
        for book, passage in [(b, p) for b, paragraphs in stories for p in passages(paragraphs, rng)]:
            count = data.words(passage)
            # Mostly a round number, so that N is to be met roughly, as in the demo's prompts.
            n = count if rng.random() < 0.15 else max(30, round(count / 10) * 10)
            if prompt := request(passage, n, rarity, rng) if fit(passage) else None:
                uid = f"{Path(book).stem[:24]}-{len(found)}"
                example = data.Example(uid, prompt, n, passage, None, book)
                found.append((ease(passage.split("\n\n"), known) + rng.random(), example))
        if len(found) == before:
            raise ValueError("these books gave no passage to learn lengths from: pass more of them")
    examples = [e for _, e in sorted(found, key=lambda pair: -pair[0])[:pieces]]
    rng.shuffle(examples)
    return examples


def corpus(books: dict, out: Path, share: float = 0.7, pieces: int = 70_000, seed: int = 0):
    """Writes pretrain.bin (uint16 ids, <|endoftext|> between stories) and lengths.jsonl."""
    rng = random.Random(seed)
    known = set((BASE.parent / "words.txt").read_text(encoding="utf-8").split())
    stories = choose_stories(books, share, known)
    rng.shuffle(stories)
    tokenizer, ids = data.load_tokenizer(BASE), []
    for _, paragraphs in tqdm(stories, desc="tokens", unit="story"):
        ids += [*tokenizer.encode("\n\n".join(paragraphs)), tokenizer.token("<|endoftext|>")]
    examples = length_examples(stories, pieces, known, rng)
    with atomic(out / "pretrain.bin") as temporary:
        np.array(ids, dtype=np.uint16).tofile(temporary)
    data.write_examples(out / "lengths.jsonl", examples)
    print(f"{len(stories)} stories, {len(ids):,} tokens, {pieces:,} passages -> {out}")


# ---- pretraining ----------------------------------------------------------------------------------


def pretrain(tokens: Path, out: Path, steps: int, rows: int = 24, length: int = 256, lr: float = 4e-3):
    """Next-token prediction on uint16 ids: AdamW, warm-up, constant, down to a quarter; bf16 products."""
    torch.set_flush_denormal(True)
    text = torch.from_numpy(np.fromfile(tokens, dtype=np.uint16).astype(np.int64))
    model = qwen.new(huggingface.read_config(BASE), seed=0)  # a Qwen3.5 in everything but size
    matrices = [p for name, p in model.layers.named_parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    order = torch.randperm((len(text) - 1) // length, generator=torch.Generator().manual_seed(0)).tolist()
    bar = tqdm(range(steps), desc="pretrain", mininterval=5)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 40, max(0.25, (steps - step) / (0.4 * steps)))
        picked = [order[(step * rows + i) % len(order)] * length for i in range(rows)]
        ids = torch.stack([text[at : at + length + 1] for at in picked])
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


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog=called(), description=__doc__, formatter_class=form)
    commands = p.add_subparsers(dest="command", required=True)
    told = {"tokenizer": "train the BPE of the tiny preset", "words": "words that several books share"}
    told |= {"corpus": "cut the stories into training text", "pretrain": "next-token prediction, from random"}
    for name, text in told.items():
        sub = commands.add_parser(name, help=text)
        sub.add_argument("source", help="pretrain.bin" if name == "pretrain" else "what `split` wrote")
        sub.add_argument("--out", type=Path, default=Path("out/base"), help="folder (%(default)s)")
        if name == "corpus":
            sub.add_argument("--share", type=float, default=0.7, help="keep the easiest share of the words")
            sub.add_argument("--pieces", type=int, default=70_000, help="lines of lengths.jsonl")
        if name == "pretrain":
            sub.add_argument("--steps", type=int, default=1200, help="of 24 x 256 tokens")
    return p


@exits_cleanly
def main(argv=None):
    args = parser().parse_args(argv)
    with lock(args.out):
        books = {} if args.command == "pretrain" else read_split(args.source)
        texts = [whole(stories) for stories in books.values()]
        if args.command == "tokenizer":
            train_tokenizer(texts, args.out)
        elif args.command == "words":
            write_text(args.out / "words.txt", "\n".join(common_words(texts)) + "\n")
        elif args.command == "corpus":
            corpus(books, args.out, args.share, args.pieces)
        else:
            pretrain(Path(args.source), args.out / "model", args.steps)


if __name__ == "__main__":
    main()
