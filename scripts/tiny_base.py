"""The demo's base model: its tokenizer, its training text, its random start.

A small model can only learn to write better if it can write at all. Models of a few million parameters write
grammatical stories where the language is simple and uniform (TinyStories, arXiv 2305.07759). So
`stories/tiny-base/`, a Qwen3.5 of that size, reads the simplest passages of the public-domain anthologies,
then `stories/simple.jsonl`. Both have requests with a length, so it learns the chat format, where to stop and
roughly how long from the first step on.

    python -m scripts.tiny_base out/split.jsonl      # what `anthologies split BOOKS...` wrote

In out/base it leaves passages.jsonl (simple passages of 30 to 500 words), stories.jsonl (each story 6 times,
with other names, animals), words.txt and grams.bin (what the offline judge counts by) and new/ (tokenizer of
both texts, random weights). Then scripts.warm_start and scripts.pretrain train on both: see the README.
"""

import itertools
import math
import random
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

import data
import model as qwen
from lib import form
from lib.files import atomic, read_lines, write_text
from lib.flags import exits_cleanly, parser
from lib.huggingface import read_config

BASE = Path(__file__).resolve().parent.parent / "stories" / "tiny-base"
SIMPLE = BASE.parent / "simple.jsonl"
VOCABULARY = 3072

# One sign for each purpose: a small vocabulary has no room for four kinds of quotation mark.
PLAIN = str.maketrans("“”‘’′–‑", '"' * 2 + "'" * 3 + "--")


def plain(text: str) -> str:
    """Curly quotes and dashes to one sign each; `--` to an em dash; `_italics_` to bare words."""
    text = text.translate(PLAIN).replace("…", "...")
    text = re.sub(r"\s*(?:-{2,}|⸺|⸻)[ \t]*|[ \t]*—+[ \t]*", "—", text)
    return re.sub(r"(?<!\w)_+|_+(?!\w)", "", text)


def read_split(path: str) -> dict[str, list[str]]:
    """{book: its stories} of what `anthologies split` wrote."""
    books = {}
    for number, row in read_lines(path, "a story per line"):
        if not all(isinstance(row.get(key), str) for key in ("story", "source")):
            raise ValueError(f"{path} line {number}: give what `python -m scripts.anthologies split` wrote")
        books.setdefault(row["source"], []).append(row["story"])
    return books


# ---- tokenizer and words ----------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], folder: Path):
    """Byte-level BPE as Qwen3.5 has it, the special tokens at the end. ValueError: too little text."""
    import tokenizers as hf

    bpe = hf.Tokenizer.from_file(str(BASE / "tokenizer.json"))  # all but its vocabulary stays as it is
    how = {"show_progress": False, "initial_alphabet": hf.pre_tokenizers.ByteLevel.alphabet()}
    bpe.train_from_iterator(texts, hf.trainers.BpeTrainer(vocab_size=VOCABULARY - len(data.NEEDED), **how))
    if bpe.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the books gave {bpe.get_vocab_size()} tokens, not {VOCABULARY}: pass more of them")
    write_text(folder / "tokenizer.json", bpe.to_str(pretty=False))
    # The names of the special tokens, and Qwen's chat template for one user turn and one answer.
    shutil.copy(BASE / "tokenizer_config.json", folder)


def common_words(texts: list[str]) -> set[str]:
    """The lower-case words in at least four of the texts: names, misprints and dialect mostly fall out."""
    seen = Counter()
    for text in texts:
        words = set(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text))
        seen.update(w for w in words if re.fullmatch(r"[a-z]+(?:'[a-z]+)?", w))
    return {w for w, n in seen.items() if n >= 4 and (len(w) > 1 or w in "ai") and not SLUR.search(w)}


# ---- corpus ----------------------------------------------------------------------------------

NOTE = r"gutenberg|transcriber|copyright|footnote|illustration|https?:|↩|\*\*|^\W*(the end|finis)\W*$"
NOTE = re.compile(NOTE, re.I)
SPEAKER = re.compile(r"[A-Z][A-Z. ]{2,30}[.:] ")  # HAMLET. Words: a play
SLUR = re.compile(rf"{data.FLAGGED.pattern}|\bnegr\w+", re.I)
LOWER = re.compile(r"(?<![\w'])[a-z]+(?:'[a-z]+)?")  # words in small letters: no names


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


STOP = """a an the and or but nor so if as at by for from in into of off on onto out over to up with
without upon than then that this these those which who whom whose what when where while why how is was were
are be been being am had has have having do did does done will would shall should can could may might must
not no he she it they we you i me him them us his her its their my your our himself herself itself
themselves myself there here now very too more most some any all each every other another such own same
only just even still again once ever never through under about after before against between because until
till like said say says went came come go got get made make took take saw see seemed one two""".split()
DULL = """way time thing things day man part place side end moment kind sort matter fact case word words
rest name number manner bit lot deal sight point order course world life first last good great little old
new few many much long next whole right left own certain least half most best same following utmost
slightest present other others latter former sake""".split()
AFTER = "and of in on at was were is had has with that who which to from for by as he she they I it but when"
AFTER += " where would could into upon over under through came went said"
NOUN_PHRASE = r"\b(?:a|an|the|his|her|their|my|this|that) ((?:[a-z]+ly )?(?:[a-z-]{3,} )?[a-z-]{3,})"
NOUN_PHRASE += rf"(?=[,.;:!?—\"]| (?:{AFTER.replace(' ', '|')})\b)"
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)([A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})?)\b")
VERBS = "meets|finds|loses|remembers|waits for|is afraid of|looks for|dreams of|hides|brings|comes home to"
VERBS = (VERBS + "|will not forget|wants|sees|asks about|leaves").split("|")
JOIN = (" and ", " and ", " with ", " near ", " without ", " who {v} ", " who {v} ", " who {v} ")
FRAMES = """Write a story about {s}. It should be {n} words long.
Tell me a story about {s}. Make it {n} words long.
Tell me a story, {n} words long, about {s}.
Write a story {n} words long about {s}.
{S}: write a story {n} words long."""


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


def passages(paragraphs: list[str], rng: random.Random, low: int = 30, high: int = 500):
    """Yields pieces of low..high words, all lengths alike, that begin and end where sentences do; ends of
    paragraphs come first."""
    parts = []  # each sentence with what follows it
    for paragraph in paragraphs:
        *found, last = END.sub(r"\1\n", paragraph).split("\n")
        parts += [*(f"{sentence} " for sentence in found), f"{last}\n\n"]
    counts, at = [data.words(part) for part in parts], 0
    while at < len(parts):
        target, total, ends = rng.randint(low, high), 0, []
        for j in range(at, len(parts)):
            total += counts[j]
            if total > high:
                break
            if total >= low:
                ends.append((abs(total - target) + 8 * (not parts[j].endswith("\n")), j))
        if ends:
            yield "".join(parts[at : min(ends)[1] + 1]).strip()
        at = min(ends)[1] + 1 if ends else j + 1


def fit(passage: str) -> bool:
    """A piece of telling: people in it, its quotation marks closed, nothing that points outside the page."""
    people = len(re.findall(r"\b(he|she|they|i|his|her|you|we|him|them)\b", passage.lower()))
    if people < 0.03 * data.words(passage) or passage.count('"') % 2 or re.search(r"[\[\]{}*_|\d]", passage):
        return False
    if re.match(r"\W*(And|But|Or|Nor|Which|Yet|Then|Thus|Therefore|However)\b", passage):
        return False
    return bool(re.match(r"[\"']?[A-Z]", passage) and re.search(r"[.!?][\"']?$", passage))


# ---- texts to learn from -----------------------------------------------------------------------------------


def simple(paragraph: str, common: set[str]) -> bool:
    """Sentences of at most 20 words on average, and 95 of 100 words common; names do not count."""
    tokens = LOWER.findall(paragraph)
    long = data.words(paragraph) > 20 * max(1, len(re.findall(r"[.!?]", paragraph)))
    return bool(tokens) and not long and sum(t in common for t in tokens) >= 0.95 * len(tokens)


def simple_runs(books: dict, texts: list[str]):
    """Yields (book, paragraphs) of each run of simple paragraphs in a story; a tale that several books hold
    comes once. texts: of whole books."""
    counts = Counter(w for text in texts for w in LOWER.findall(text))
    common, seen = {w for w, _ in counts.most_common(6000)}, set()
    for book, stories in tqdm(sorted(books.items()), desc="books", unit="book"):
        for paragraphs in map(prose, stories):
            if not paragraphs or (begins := paragraphs[0][:60].lower()) in seen:
                continue
            seen.add(begins)
            for easy, run in itertools.groupby(paragraphs, lambda p: simple(p, common)):
                if easy:
                    yield book, list(run)


def passage_examples(books: dict, texts: list[str], rng: random.Random) -> list[data.Example]:
    """Simple passages with a request each, cut twice, at other places."""
    runs = list(simple_runs(books, texts))
    found = (set(re.findall(r"[a-z]+(?:-[a-z]+)*", " ".join(paragraphs))) for _, paragraphs in runs)
    df = Counter(w for words in found for w in words)
    rarity = {w: math.log(len(runs) / n) for w, n in df.items() if n >= 5}
    examples, seen = [], set()
    for _ in range(2):
        rng.shuffle(runs)
        for book, passage in [(b, p) for b, paragraphs in runs for p in passages(paragraphs, rng)]:
            n = asked(passage, rng)
            if passage in seen:
                continue
            seen.add(passage)
            if fit(passage) and (prompt := request(passage, n, rarity, rng)):
                uid = f"{Path(book).stem[:24]}-{len(examples)}"
                examples.append(data.Example(uid, prompt, n, passage, None, book))
    return examples


def asked(story: str, rng: random.Random) -> int:
    """The length to ask for: mostly a round number, so that it is to be met roughly."""
    count = data.words(story)
    return count if rng.random() < 0.15 else max(30, round(count / 10) * 10)


# Of the names in stories/simple.jsonl, those that are no other word ("May I?"), and kinds of animals.
SWAPPED = """Tom Ben Sam Max Jack Finn Leo Otto Hugo Peter Paul Adam Oscar
Anna Mia Lily Rosa Nora Ella Ida Kate Jane Lucy Emma Clara Molly Ruth
cat dog goat bear duck hen frog rabbit squirrel badger hedgehog pig cow turtle snail crow horse donkey"""


def swapped(text: str, rng: random.Random) -> str:
    """The text with other names and animals: they are to be taken from the request, not from memory."""
    to = {}
    for words in map(str.split, SWAPPED.splitlines()):
        to |= dict(zip(words, rng.sample(words, len(words))))
    return re.sub(rf"\b({'|'.join(to)})(?=s?\b)", lambda found: to[found[1]], text)


def story_examples(stories: list[data.Example], copies: int, rng: random.Random) -> list[data.Example]:
    """Each story `copies` times, with other names and animals, in other words of request."""
    examples = []
    for copy in range(copies):
        for e in rng.sample(stories, len(stories)):
            s = re.match(r"Write a story about (.+)\. It should be \d+ words long\.$", e.prompt)[1]
            s, story = swapped(f"{s}\n{e.story}", rng).split("\n", 1)
            n = asked(story, rng)
            prompt = rng.choice(FRAMES.splitlines()).format(s=s, S=s[0].upper() + s[1:], n=n)
            examples.append(data.Example(f"{e.uid}-{copy}", prompt, n, story, None, e.source))
    return examples


def gram_table(stories: list[str], passages: list[str]) -> form.Grams:
    """What the offline judge knows of English: the pairs and triples of words that the stories have, or three
    of the passages; and which words and pairs come early or late in the stories, by a z-test at 2.5."""
    counts, places = Counter(), defaultdict(list)
    for text in passages:
        counts.update(run for some in form.runs(form.tokens(text)) for run in set(some))
    known = {run for run, n in counts.items() if n >= 3}
    for text in stories:
        known.update(run for some in form.runs(form.tokens(text)) for run in some)
        parts = form.sentences(text)
        for k, found in enumerate(map(form.tokens, parts)):
            for run in {(t,) for t in found} | set(form.runs(found)[0]):
                places[run].append(k / max(1, len(parts) - 1) - 0.5)
    for run, at in places.items():
        z = math.fsum(at) / math.sqrt(len(at)) / 0.3  # places spread evenly have a deviation of 0.3
        if len(at) >= 8 and abs(z) > 2.5:
            known.add((form.LATE if z > 0 else form.EARLY, *run))
    return form.Grams.of(known, size=384 * 1024)


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("split", help="what `python -m scripts.anthologies split` wrote")
    p.add_argument("--out", type=Path, default=Path("out/base"), help="folder (%(default)s)")
    args = p.parse_args(argv)
    books, told = read_split(args.split), data.read_examples(SIMPLE)
    texts = [plain("\n\n".join(stories)) for stories in books.values()]
    cut = passage_examples(books, texts, random.Random(0))
    data.write_examples(args.out / "passages.jsonl", cut)
    data.write_examples(args.out / "stories.jsonl", story_examples(told, 6, random.Random(0)))
    stories, passages = [[e.story for e in part] for part in (told, cut)]
    words = sorted(common_words(texts) | common_words(stories))
    write_text(args.out / "words.txt", "\n".join(words) + "\n")
    with atomic(args.out / "grams.bin") as file:
        file.write_bytes(gram_table(stories, passages).bits)
    qwen.save(qwen.new(read_config(BASE), seed=0), args.out / "new")
    train_tokenizer(stories * 4 + passages, args.out / "new")


if __name__ == "__main__":
    main()
