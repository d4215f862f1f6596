"""Stories of several models to the same prompts: JSON Lines of one model per file, checked before use."""

from pathlib import Path

from lib import files

NEEDS = "uid, prompt, target_words and story in each line, as eval.py leaves them in stories/"


def read_set(path: Path) -> dict[str, dict]:
    """JSON Lines -> {uid: {"prompt", "target_words", "stories": [text]}}. ValueError: which line, and why."""
    prompts: dict[str, dict] = {}
    for number, row in files.read_lines(path, NEEDS):
        where = f"{path} line {number}"
        for name, kind in (("uid", str), ("prompt", str), ("target_words", int), ("story", str)):
            if not isinstance(row.get(name), kind):
                raise ValueError(f"{where}: {name!r} is missing or not {kind.__name__}; expected {NEEDS}")
        uid, asked = row["uid"], {"prompt": row["prompt"], "target_words": row["target_words"]}
        entry = prompts.setdefault(uid, {**asked, "stories": []})
        if asked != {k: entry[k] for k in asked}:
            raise ValueError(f"{where}: uid {uid} had another prompt or length before; one uid, one prompt")
        entry["stories"].append(row["story"])
    if not prompts:
        raise ValueError(f"{path}: holds no stories")
    return prompts


def read_sets(arguments: list[str]) -> tuple[dict[str, dict], dict[str, str]]:
    """FILE or NAME=FILE each -> {model: prompts} and {model: its file}; all answer the same prompts."""
    models, paths = {}, {}
    for argument in arguments:
        named = "=" in argument and not Path(argument).exists()
        name, _, path = argument.partition("=") if named else (Path(argument).stem, "", argument)
        if name in models:
            more = f"give them names: one={paths[name]} two={path}"
            raise ValueError(f"two files are named {name}; {more}")
        models[name], paths[name] = read_set(Path(path)), path
    if len(models) < 2:
        raise ValueError("a comparison needs the stories of two models or more")
    first, *others = models
    for other in others:
        # A prompt that one model failed on must not vanish in silence: that would flatter it.
        if lone := sorted(models[first].keys() ^ models[other].keys()):
            told = f"{len(lone)} uids are in one file only (as {lone[0]})"
            more = "write the missing stories or take these uids out of both"
            raise ValueError(f"{first} and {other} answer different prompts: {told}; {more}")
        for uid, entry in models[first].items():
            if any(entry[k] != models[other][uid][k] for k in ("prompt", "target_words")):
                raise ValueError(f"uid {uid}: {first} and {other} differ in its prompt; one uid, one prompt")
    return models, paths
