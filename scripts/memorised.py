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

import data
import rollout
from lib import files, huggingface
from lib.flags import exits_cleanly, parser

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


def memorised(model, tokenizer, examples: list, stop_ids=(), limit: int = 64, tokens: int = 256) -> dict:
    """What continuations of `limit` stories, from their prompts and first tokens, share with all stories."""
    with_story = [e for e in examples if e.story and e.story.strip()]
    if not with_story:
        raise ValueError("none of the examples has a human story; give the file the model was trained on")
    stories = [tokenizer.encode(e.story.strip()) for e in with_story]
    picked = random.Random(0).sample(range(len(stories)), min(limit, len(stories)))
    by_prefix, found = {}, []
    for prefix in PREFIXES:
        asked = [s for s in picked if len(stories[s]) > prefix]
        # No thinking, even of a model that thinks: what is asked is how the story itself goes on.
        prompts = [tokenizer.chat(with_story[s].prompt, False) + stories[s][:prefix] for s in asked]
        how = {"max_new_tokens": tokens, "stop_ids": stop_ids, "temperature": 0.0}
        written = [story.ids for story in rollout.generate(model, prompts, **how)]
        spans = longest_spans(written, stories)
        lengths = [n for n, _ in spans]
        row = {"stories": len(asked), "median": float(median(lengths)) if asked else None}
        row |= {"longest": max(lengths, default=0), "memorised": sum(n > MEMORISED for n in lengths)}
        by_prefix[prefix] = row
        for s, ids, (n, at) in zip(asked, written, spans):
            if n > MEMORISED:
                text = tokenizer.decode(ids[at : at + n])
                found.append({"uid": with_story[s].uid, "prefix": prefix, "tokens": n, "text": text})
    chance = [n for n, _ in longest_spans([stories[s] for s in picked], stories, picked)]
    result = {"stories": len(stories), "asked": len(picked), "prefixes": by_prefix}
    result["found"] = sorted(found, key=lambda f: -f["tokens"])
    return result | {"between_stories": {"median": float(median(chance)), "longest": max(chance)}}


def show(result: dict) -> str:
    head = f"continuations of {result['asked']} of {result['stories']} stories"
    lines = [f"{head}; longest span shared with any of them, in tokens (0: under {K})"]
    for prefix, r in result["prefixes"].items():
        over = f"over {MEMORISED}: {r['memorised']} of {r['stories']}"
        lines.append(f"  prompt + {prefix:>3} tokens: median {r['median']}, longest {r['longest']}, {over}")
    between = result["between_stories"]
    lines.append(f"  (two human stories share: median {between['median']}, longest {between['longest']})")
    for f in result["found"][:5]:
        text = " ".join(f["text"].split())[:160]
        lines.append(f"  {f['uid']}, after {f['prefix']}: {f['tokens']} tokens: {text}")
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
    print(f"{folder}: {show(result)}")
    files.write_json(args.out, result)
    print(args.out)


if __name__ == "__main__":
    main()
