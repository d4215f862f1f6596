"""Other benchmarks' prompts through eval.py, graded with the rubric of that name.

    python -m scripts.benchmarks longbench-write longbench_write_en.jsonl --model stories/tiny-base

The prompt file keeps its own licence; none is shipped. All further flags are eval.py's. Left out: the
benchmarks' own judges, leaderboards, several chapters, Glicko.
"""

import copy
from pathlib import Path

import data
import eval as evaluation
import judge as judging
from lib import files, flags, huggingface

WORDS = 1000  # asked for where a prompt names no length
BENCHMARKS = {  # name: (rubric, key of the prompt, key of its length)
    "story-quality": ("story_quality", "prompt", "target_word_count"),
    "longbench-write": ("longbench_write", "prompt", "length"),
    "eqbench-creative": ("eqbench_creative", "writing_prompt", None),
    "eqbench-longform": ("eqbench_longform", "writing_prompt", None),
    "writingbench-d4": ("writingbench", "query", None),
}


def read_benchmark(name: str, path: Path) -> tuple[list[data.Example], dict[str, list[dict]]]:
    """The prompts of a benchmark's file, and WritingBench's criteria by prompt. ValueError: another schema,
    and where."""
    _, prompt_key, length_key = BENCHMARKS[name]
    examples, criteria = [], {}
    if name.startswith("eqbench"):  # one JSON object of all prompts; the others are JSON Lines
        rows = huggingface.read_json(path)
        rows = rows.values() if isinstance(rows, dict) else rows
    else:
        rows = [row for _, row in files.read_lines(path)]
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        prompt = row.get(prompt_key) if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'{where}: no "{prompt_key}"; this is not a prompt file of {name}')
        if name == "writingbench-d4":
            if "literature" not in str(row.get("domain1", "")).lower() or row.get("lang", "en") != "en":
                continue  # D4 is literature and art, in English
            if not isinstance(row.get("checklist"), list):
                raise ValueError(f'{where}: no "checklist", the criteria WritingBench grades by')
            criteria[prompt] = row["checklist"]
        length = row.get(length_key) if length_key else 0
        if not isinstance(length, int):
            raise ValueError(f'{where}: "{length_key}" is {length!r}, not a number of words')
        # EQ-Bench varies a prompt by seeds; the first of them, so that a prompt stays one prompt.
        prompt = prompt.replace("<SEED>", (row.get("seed_modifiers") or [""])[0])
        examples.append(data.Example(f"{name}-{number}", prompt, length or WORDS, source=name))
    if not examples:
        raise ValueError(f"{path} holds no prompt of {name}")
    return examples, criteria


def grade_by(judge: judging.Judge, rubrics: dict[str, judging.Rubric]):
    """Has the judge use each prompt's own rubric: WritingBench writes five criteria for each query."""

    def submit(prompt: str, story: str):
        view = copy.copy(judge)  # the same workers, bill and cache
        view.rubric = next(rubric for query, rubric in rubrics.items() if prompt.startswith(query))
        return judging.Judge.submit(view, prompt, story)

    judge.submit = submit


@flags.exits_cleanly
def main(argv=None):
    p = flags.parser(__doc__, epilog="All further flags are eval.py's.")
    p.add_argument("name", choices=tuple(BENCHMARKS))
    p.add_argument("file", type=Path, help="the benchmark's own prompt file")
    args, rest = p.parse_known_args(argv)
    examples, criteria = read_benchmark(args.name, args.file)
    c = flags.parse(evaluation.Settings, rest, __doc__)
    c.rubric, c.thirds, c.prompts = BENCHMARKS[args.name][0], "off", c.prompts or str(args.file)
    c.out, judge = c.out or str(Path("out", args.name)), None
    if criteria:
        judge = judging.make(c, judging.load_rubric(c.rubric), Path(c.out, "verdicts.sqlite"))
        grade_by(judge, {p: judging.load_rubric(c.rubric, criteria=own) for p, own in criteria.items()})
    report = evaluation.evaluate(c, examples, judge)
    for label, figures in report["figures"].items():
        quality, length = figures["quality"]["all"]["mean"], figures["length_score"]["all"]["mean"]
        if quality is not None:
            both = f", length score {length:.1f}, mean of both {(quality + length) / 2:.1f}"
            print(f"{label}: {args.name} {quality:.1f}{both if args.name == 'longbench-write' else ''}")


if __name__ == "__main__":
    main()
