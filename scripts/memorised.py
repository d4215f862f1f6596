"""What a model copies from the stories it was trained on, which reference injection may make it do.

    python -m scripts.memorised --model out/run/checkpoints/step_000173 --stories out/stories.jsonl

The model goes on from the prompts, and from the first tokens, of stories it was trained on, always with the
most likely token. The result is the longest span of tokens that a continuation shares with any of them,
beside what two human stories share.
"""

import random
from collections import defaultdict
from statistics import median

import data
import rollout
from lib import huggingface
from lib.flags import exits_cleanly, parser
from lib.pages import markdown_table

K = 8  # shorter spans are not looked for
MEMORISED = 50  # tokens; a longer span is memorised
PREFIXES = (0, 50, 100, 200)  # tokens of the story that the model is given


def longest_spans(texts: list[list[int]], stories: list[list[int]], own: list[int] | None = None):
    """Of each text (tokens, where in it) of the longest run that a story has too; (0, 0) below K tokens.
    own: the index of the story that a text is, which is left out."""
    index, best = defaultdict(list), [(0, 0)] * len(texts)
    for t, ids in enumerate(texts):
        for at in range(len(ids) - K + 1):
            index[tuple(ids[at : at + K])].append((t, at))
    for s, story in enumerate(stories):
        runs = {}  # (text, place in it): length of the run whose last K tokens begin there
        for at in range(len(story) - K + 1):
            hits = index.get(tuple(story[at : at + K]), ())
            runs = {(t, i): runs.get((t, i - 1), K - 1) + 1 for t, i in hits if not own or own[t] != s}
            for (t, i), n in runs.items():
                best[t] = max(best[t], (n, i + K - n), key=lambda span: span[0])
    return best


def measure(spans: list[tuple[int, int]]) -> list:
    """How many texts, and of their spans the median, the longest, and how many are memorised."""
    lengths = [n for n, _ in spans] or [0]
    return [len(spans), median(lengths), max(lengths), sum(n > MEMORISED for n in lengths)]


def memorised(model, tokenizer, examples: list, stop_ids=(), limit: int = 64, tokens: int = 256):
    """What continuations of `limit` stories, from their prompts and first tokens, share with all stories ->
    (rows of `measure`, each behind what was given; memorised spans, longest first)."""
    examples = [e for e in examples if e.story]
    if not examples:
        raise ValueError("none of the examples has a human story; give the file the model was trained on")
    stories = [tokenizer.encode(e.story.strip()) for e in examples]
    picked = random.Random(0).sample(range(len(stories)), min(limit, len(stories)))
    how, rows, found = {"max_new_tokens": tokens, "stop_ids": stop_ids, "temperature": 0.0}, [], []
    for prefix in PREFIXES:
        asked = [s for s in picked if len(stories[s]) > prefix]
        # No thinking, even of a model that thinks: what is asked is how the story itself goes on.
        prompts = [tokenizer.chat(examples[s].prompt, False) + stories[s][:prefix] for s in asked]
        written = [story.ids for story in rollout.generate(model, prompts, **how)]
        spans = longest_spans(written, stories)
        rows.append([f"prompt + {prefix} tokens", *measure(spans)])
        for s, ids, (n, at) in zip(asked, written, spans):
            if n > MEMORISED:
                text = " ".join(tokenizer.decode(ids[at : at + n]).split())
                found.append((n, f"{examples[s].uid}, after {prefix}: {n} tokens: {text}"))
    between = measure(longest_spans([stories[s] for s in picked], stories, picked))
    rows.append(["(another human story)", *between])
    return rows, [text for _, text in sorted(found, reverse=True)]


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("--model", help="folder or hub id (default: newest under out/, else stories/tiny-base)")
    p.add_argument("--stories", required=True, help="the file it was trained on")
    p.add_argument("--limit", type=int, default=64, help="stories asked for (%(default)s)")
    args = p.parse_args(argv)
    examples = data.read_examples(args.stories)
    folder = huggingface.fetch(args.model or rollout.newest_checkpoint())
    model, tokenizer, _ = rollout.open_writer(folder)
    stopping = rollout.stop_ids(folder, tokenizer)
    rows, found = memorised(model, tokenizer, examples, stopping, args.limit)
    print(f"{folder}: longest spans shared with a story of {args.stories}, in tokens (0: under {K})")
    print(markdown_table(["given", "asked", "median", "longest", f"over {MEMORISED}"], rows))
    print("\n".join(found))


if __name__ == "__main__":
    main()
