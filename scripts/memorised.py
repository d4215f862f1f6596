"""What a model copies from the stories it was trained on, which reference injection may make it do.

    python -m scripts.memorised --model out/run/checkpoints/step_000173 --stories out/stories.jsonl

The model goes on from the prompts, and from the first tokens, of stories it was trained on. The result is the
longest span of tokens that a continuation shares with any of them, beside what two human stories share.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from statistics import median

import data
import rollout
from lib import files, huggingface
from lib.flags import exits_cleanly, parser

K = 8  # a common span of 2 K - 1 tokens or more is found; a shorter one may be missed


def index_of(stories: list[list[int]], k: int = K) -> dict[tuple, list[tuple[int, int]]]:
    """k-grams at every k-th position: a span of 2k - 1 tokens holds one of them, for a k-th of the memory."""
    found = {}
    for s, ids in enumerate(stories):
        for at in range(0, len(ids) - k + 1, k):
            found.setdefault(tuple(ids[at : at + k]), []).append((s, at))
    return found


def longest_span(
    ids: list[int], stories: list[list[int]], index: dict, k: int = K, skip: int | None = None
) -> tuple[int, int]:
    """(tokens, where in ids) of the longest run that a story has too, story `skip` left out."""
    best = (0, 0)
    for i in range(len(ids) - k + 1):
        for s, at in index.get(tuple(ids[i : i + k]), ()):
            if s == skip:
                continue
            story, low, high = stories[s], 0, k
            while low < min(i, at) and ids[i - low - 1] == story[at - low - 1]:
                low += 1
            while i + high < len(ids) and at + high < len(story) and ids[i + high] == story[at + high]:
                high += 1
            best = max(best, (low + high, i - low), key=lambda b: b[0])
    return best


def memorised(
    model, tokenizer, examples: list[data.Example], stop_ids: tuple[int, ...] = (),
    prefixes=(0, 50, 100, 200), limit: int = 64, tokens: int = 256, threshold: int = 50,
    temperature: float = 0.0, seed: int = 0,
) -> dict:  # fmt: skip
    """Continuations of `limit` stories from their prompts plus their first `prefixes` tokens, against all."""
    with_story = [e for e in examples if e.story and e.story.strip()]
    if not with_story:
        raise ValueError("none of the examples has a human story; give the file the model was trained on")
    stories = [tokenizer.encode(e.story.strip()) for e in with_story]
    index = index_of(stories)
    picked = random.Random(seed).sample(range(len(stories)), min(limit, len(stories)))
    chance = [longest_span(stories[s], stories, index, skip=s)[0] for s in picked]
    by_prefix, found = {}, []
    for prefix in prefixes:
        asked = [s for s in picked if len(stories[s]) > prefix]
        # No thinking, even of a model that thinks: what is asked is how the story itself goes on.
        prompts = [tokenizer.chat(with_story[s].prompt, False) + stories[s][:prefix] for s in asked]
        how = {"max_new_tokens": tokens, "stop_ids": stop_ids, "temperature": temperature, "seed": seed}
        written = rollout.generate(model, prompts, **how)
        spans = [longest_span(w.ids, stories, index) for w in written]
        lengths = [n for n, _ in spans]
        row = {"stories": len(asked), "median": float(median(lengths)) if asked else None}
        row |= {"longest": max(lengths, default=0), "over_threshold": sum(n > threshold for n in lengths)}
        by_prefix[prefix] = row
        for s, w, (n, at) in zip(asked, written, spans):
            if n > threshold:
                text = tokenizer.decode(w.ids[at : at + n])
                found.append({"uid": with_story[s].uid, "prefix": prefix, "tokens": n, "text": text})
    result = {"stories": len(stories), "asked": len(picked), "threshold": threshold, "exact_from": 2 * K - 1}
    result |= {"prefixes": by_prefix, "found": sorted(found, key=lambda f: -f["tokens"])}
    return result | {"between_stories": {"median": float(median(chance)), "longest": max(chance)}}


def show(result: dict) -> str:
    def tokens(n: float | None) -> str:
        least = result["exact_from"]
        return "-" if n is None else f"{n:g}" if n >= least else f"under {least}"

    def spans(r: dict) -> str:
        return f"median {tokens(r['median'])}, longest {tokens(r['longest'])}"

    head = f"continuations of {result['asked']} of {result['stories']} stories"
    lines = [f"{head}; longest span shared with any of them, in tokens"]
    for prefix, r in result["prefixes"].items():
        over = f"over {result['threshold']}: {r['over_threshold']} of {r['stories']}"
        lines.append(f"  prompt + {prefix:>3} tokens: {spans(r)}, {over}")
    lines.append(f"  (two human stories share: {spans(result['between_stories'])})")
    for f in result["found"][:5]:
        text = " ".join(f["text"].split())[:160]
        lines.append(f"  {f['uid']}, after {f['prefix']}: {f['tokens']} tokens: {text}")
    return "\n".join(lines)


@exits_cleanly
def main(argv=None) -> int:
    p = parser(__doc__)
    p.add_argument("--model", help="folder or hub id (default: newest under out/, else stories/tiny-base)")
    p.add_argument("--stories", required=True, help="the file it was trained on")
    p.add_argument("--limit", type=int, default=64, help="stories asked for (%(default)s)")
    p.add_argument("--tokens", type=int, default=256, help="how far a continuation goes (%(default)s)")
    p.add_argument("--threshold", type=int, default=50, help="longer spans are memorised (%(default)s)")
    p.add_argument("--temperature", type=float, default=0.0, help="0: the most likely words (default)")
    p.add_argument("--out", type=Path, default=Path("out/memorised.json"), help="default %(default)s")
    args = p.parse_args(argv)
    folder = huggingface.fetch(args.model or rollout.newest_checkpoint())
    model, tokenizer, _ = rollout.open_writer(folder)
    how = {k: getattr(args, k) for k in ("limit", "tokens", "threshold", "temperature")}
    examples = data.read_examples(args.stories)
    result = memorised(model, tokenizer, examples, rollout.stop_ids(folder, tokenizer), **how)
    print(f"{folder}: {show(result)}")
    files.write_json(args.out, result)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
