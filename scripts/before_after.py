"""What did a run change? The same held-out requests, written by its start and by its newest checkpoint.

    python -m scripts.before_after out/tiny          # `make train` ends with it

Three requests that no run trains on, the same seeds before and after; per story the words asked for and
written, its form (the offline judge: not quality) and the share of real words. `eval.py` measures many.
"""

from pathlib import Path

import data
import eval as evaluation
import judge as judging
import rollout
import train
from lib import form
from lib.flags import exits_cleanly, parser
from lib.huggingface import read_json
from lib.pages import markdown_table


def write(folder: str, requests: list[data.Example], c: train.Config) -> list[str]:
    model, tokenizer, _ = rollout.open_writer(folder)
    how = {name: getattr(evaluation.Settings(), name) for name in evaluation.SAMPLING}
    how |= {"max_new_tokens": c.max_new_tokens, "stop_ids": rollout.stop_ids(folder, tokenizer)}
    prompts = [tokenizer.chat(e.prompt, c.thinking) for e in requests]
    stories = rollout.generate(model, prompts, seed=list(range(len(prompts))), **how)
    return [rollout.story_of(tokenizer.decode(story.ids), c.thinking) for story in stories]


@exits_cleanly
def main(argv=None):
    p = parser(__doc__)
    p.add_argument("run", type=Path, help="folder of a run of train.py, such as out/tiny")
    run = p.parse_args(argv).run
    c = train.Config(**read_json(run / "config.json"))
    asked = data.read_examples(train.ROOT / "stories/heldout.jsonl")
    requests = [asked[0], asked[3], asked[4]]  # three subjects, of 50, 120 and 50 words
    judge, rows = judging.OfflineJudge(), []
    checkpoint = max((run / "checkpoints").glob("step_*"), default=None)
    if checkpoint is None:
        raise FileNotFoundError(f"no checkpoint in {run}; train.py saves one at the end of a run")
    told = [write(str(folder), requests, c) for folder in (c.model, checkpoint)]
    for request, *stories in zip(requests, *told):
        print(f"\n\n=== {request.prompt}")
        for when, story in zip(("before", "after"), stories):
            print(f"\n--- {when}\n{story}")
            score, real = judge.score(request.prompt, story).score, form.share_real(story, judge.words)
            rows.append([when, request.target_words, data.words(story), f"{score:.0f}", real])
    print("\n" + markdown_table(["", "words asked", "written", "form", "real words"], rows))


if __name__ == "__main__":
    main()
