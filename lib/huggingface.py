"""Checkpoint folders in Hugging Face's form: fetched, read, written, described by a card, uploaded."""

import json
import re
import shutil
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from huggingface_hub import HfApi, get_token, save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HTTPError  # of whatever HTTP client this version of the hub's package has
from safetensors import SafetensorError, safe_open

from lib import metrics
from lib.files import replace_folder, write_text
from lib.pages import markdown_table

WEIGHTS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "README.md")
BESIDE = (".json", ".jinja", ".txt", ".tiktoken")  # what lies beside the tensors and is copied unchanged
CURE = "download or save it again"
HUB_ID = r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*"  # owner/name


def fetch(path_or_repo, patterns=WEIGHTS) -> Path:
    """A local folder (or file) as it is, else a hub id through huggingface_hub, which resumes a download.
    patterns: which files of the repository. FileNotFoundError: neither exists."""
    folder = Path(path_or_repo)
    if folder.exists():
        return folder
    try:
        return Path(snapshot_download(str(path_or_repo), allow_patterns=list(patterns)))
    except (HTTPError, OSError, ValueError) as error:
        why = f"{path_or_repo} is not a local folder, and the hub did not give it ({type(error).__name__})"
        cure = "check the name and the network, or download it once and pass the folder"
        raise FileNotFoundError(f"{why}; {cure}") from None


@contextmanager
def asking(repo: str, cure: str):
    """ValueError: what went wrong at the hub, in one sentence and without the token."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split()).replace(get_token() or "\0", "***")[:200]
        raise ValueError(f"--push {repo}: {type(error).__name__}, {why}; {cure}") from None


def check_push(repo: str):
    """Makes the repository of --push, a private one, unless it exists; "" is none. ValueError: a name without
    its owner, or the hub cannot be reached or refuses."""
    if repo:
        if "/" not in repo:
            raise ValueError(f"--push {repo}: whose repository? give owner/name")
        with asking(repo, "check the name, the network and the token, or leave --push out"):
            HfApi(token=True).create_repo(repo, private=True, exist_ok=True)  # True: a token is required


def push(checkpoints: Path, repo: str) -> str:
    """Uploads the newest checkpoint without its training state -> a sentence with its address; "" for no
    repository. ValueError: it did not work; the folder is as it was."""
    if not repo:
        return ""
    newest = max(checkpoints.glob("step_*"))
    without = ["state/*", "trainer.json"]
    with asking(repo, f"nothing is lost: {newest} is whole, and --resume auto pushes again"):
        done = HfApi().upload_folder(repo_id=repo, folder_path=newest, ignore_patterns=without)
    return f"pushed {newest.name} to {done.repo_url}"


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {path.parent}; is this a checkpoint folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {CURE}") from None


def read_config(folder: Path) -> dict:
    return read_json(Path(folder) / "config.json")


def open_tensors(folder: Path) -> dict[str, safe_open]:
    """Tensor name -> the open safetensors file that holds it: its `get_tensor(name)` reads the tensor.
    FileNotFoundError: there is no such file. ValueError: one is damaged."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            opened = safe_open(file, "pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); {CURE}") from None
        tensors |= dict.fromkeys(opened.keys(), opened)
    if not tensors:
        raise FileNotFoundError(f"no model.safetensors (nor shards) in {folder}; is this a checkpoint?")
    return tensors


def check_names(folder: Path, tensors: dict, names, within: str):
    """ValueError: the files lack one of `names`, or more below `within` than config.json has a place for."""
    missing = next((name for name in names if name not in tensors), None)
    if missing:
        raise ValueError(f"{folder} lacks the tensor {missing}, or its config.json belongs to another model")
    beyond = next((name for name in tensors if name.startswith(within) and name not in names), None)
    if beyond:
        raise ValueError(f"{folder} holds the tensor {beyond}, which has no place in its config.json")


def write(path, tensors: dict, config: dict, source: Path | None = None, shard_bytes: int = 5 << 30):
    """Writes a folder that transformers and vLLM load; it appears by rename.

    tensors: by their names in the file, on the CPU. source: the folder they came from; what else it holds
    (other tensors, tokenizer, generation config) is passed through unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if source:
        others = {name: file for name, file in open_tensors(source).items() if name not in tensors}
        tensors = tensors | {name: file.get_tensor(name) for name, file in others.items()}
        for file in source.iterdir():
            if file.suffix in BESIDE and "safetensors" not in file.name:
                shutil.copy2(file, partial / file.name)
    save_torch_state_dict(tensors, partial, max_shard_size=shard_bytes)
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    replace_folder(partial, path)


def with_dtype(config: dict, dtype) -> dict:
    """A copy of a config.json that names `dtype` wherever it names a dtype."""
    config = deepcopy(config)
    for part in (config, config.get("text_config", {})):
        for key in {"dtype", "torch_dtype"} & set(part):
            part[key] = str(dtype).removeprefix("torch.")
    return config


def front_matter(folder: Path, key: str) -> str:
    """A value at the head of the README.md of a model's folder; "" where there is none."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    head = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    found = re.search(rf"^{key}: *([\w./-]+) *$", head, re.M)
    return found[1] if found else ""


def plain(value) -> str:
    """One line of text: no table, heading, link or markup begins in it."""
    return re.sub(r"[|<>`\[\]\s]+", " ", str(value)).strip()


def write_card(folder: Path, settings: dict, source: Path, facts: dict, log: Path, names: dict):
    """README.md of a checkpoint. settings: of the run, model and name among them; addresses and paths of this
    machine stay out. source: the files of the model trained from, whose card names its licence. facts:
    {heading: text}. log: metrics.jsonl, if there is one yet. names: {title: metric}, first against last five
    steps."""
    lines, base = metrics.read(log) if log.exists() else [], settings["model"]
    hub_id = base if re.fullmatch(HUB_ID, base) and not Path(base).exists() else ""
    hub_id, licence = hub_id or front_matter(source, "base_model"), front_matter(source, "license")
    head = {"license": licence, "base_model": hub_id, "library_name": "transformers"}
    head = [f"{key}: {value}" for key, value in head.items() if value]
    about = {"base model": hub_id or Path(base).name}
    about |= {"licence": licence or "the base model's files name none; see where it comes from"} | facts
    moved = [[name, *ends] for name, ends in metrics.ends(lines, names).items()]
    kept = [[k, str(v)] for k, v in settings.items() if v not in ("", {}) and "/" not in str(v)]
    parts = ["\n".join(["---", *head, "pipeline_tag: text-generation", "---"])]
    parts += [f"# {plain(settings['name'])}", table(["", ""], about.items())]
    if moved:
        parts += ["## First and last five steps", table(["mean of", "first five", "last five"], moved)]
    parts += ["## Settings", table(["flag", "value"], kept)]
    write_text(folder / "README.md", "\n\n".join(parts))


def table(head: list[str], rows) -> str:
    rows = [[x if x is None or isinstance(x, float) else plain(x) for x in row] for row in rows]
    return markdown_table(head, rows).strip()
