"""What a model copies from the stories it was trained on, which reference injection may make it do.

    python -m scripts.memorised --model out/run/checkpoints/step_000173 --stories out/stories.jsonl

The model goes on from the prompts, and from the first tokens, of stories it was trained on, always with the
most likely token. The result is the longest span of tokens that a continuation shares with any of them,
beside what two human stories share.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from statistics import median
from textwrap import shorten

import data
import rollout
from lib import files, huggingface
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


def measure(spans: list[tuple[int, int]]) -> dict:
    lengths = [n for n, _ in spans]
    found = {"stories": len(lengths), "median": float(median(lengths)) if lengths else None}
    return found | {"longest": max(lengths, default=0), "memorised": sum(n > MEMORISED for n in lengths)}


def memorised(model, tokenizer, examples: list, stop_ids=(), limit: int = 64, tokens: int = 256) -> dict:
    """What continuations of `limit` stories, from their prompts and first tokens, share with all stories."""
    examples = [e for e in examples if e.story]
    if not examples:
        raise ValueError("none of the examples has a human story; give the file the model was trained on")
    stories = [tokenizer.encode(e.story.strip()) for e in examples]
    picked = random.Random(0).sample(range(len(stories)), min(limit, len(stories)))
    how, prefixes, found = {"max_new_tokens": tokens, "stop_ids": stop_ids, "temperature": 0.0}, {}, []
    for prefix in PREFIXES:
        asked = [s for s in picked if len(stories[s]) > prefix]
        # No thinking, even of a model that thinks: what is asked is how the story itself goes on.
        prompts = [tokenizer.chat(examples[s].prompt, False) + stories[s][:prefix] for s in asked]
        written = [story.ids for story in rollout.generate(model, prompts, **how)]
        spans = longest_spans(written, stories)
        prefixes[prefix] = measure(spans)
        for s, ids, (n, at) in zip(asked, written, spans):
            if n > MEMORISED:
                text = tokenizer.decode(ids[at : at + n])
                found.append({"uid": examples[s].uid, "prefix": prefix, "tokens": n, "text": text})
    between = measure(longest_spans([stories[s] for s in picked], stories, picked))
    result = {"stories": len(stories), "asked": len(picked), "prefixes": prefixes, "between_stories": between}
    return result | {"found": sorted(found, key=lambda f: -f["tokens"])}


def show(result: dict) -> str:
    rows = [[f"prompt + {prefix} tokens", *row.values()] for prefix, row in result["prefixes"].items()]
    rows.append(["(another human story)", *result["between_stories"].values()])
    head = f"longest span shared with one of {result['stories']} stories, in tokens (0: under {K}), by"
    lines = [markdown_table([head, "stories", "median", "longest", f"over {MEMORISED}"], rows)]
    for f in result["found"][:5]:
        lines.append(f"{f['uid']}, after {f['prefix']}: {f['tokens']} tokens: {shorten(f['text'], 160)}")
    return "\n".join(lines)


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("--model", help="folder or hub id (default: newest under out/, else stories/tiny-base)")
    p.add_argument("--stories", required=True, help="the file it was trained on")
    p.add_argument("--limit", type=int, default=64, help="stories asked for (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("out/memorised.json"), help="default %(default)s")
    args = p.parse_args(argv)
    examples = data.read_examples(args.stories)
    folder = huggingface.fetch(args.model or rollout.newest_checkpoint())
    model, tokenizer, _ = rollout.open_writer(folder)
    result = memorised(model, tokenizer, examples, rollout.stop_ids(folder, tokenizer), args.limit)
    files.write_json(args.out, result)
    print(f"{folder}\n{show(result)}\n{args.out}")


if __name__ == "__main__":
    main()
