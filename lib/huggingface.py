"""Checkpoint folders in Hugging Face's form: found here or fetched from the hub, read, written."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lib.files import replace_folder

WEIGHTS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "README.md")
BESIDE = (".json", ".jinja", ".txt", ".tiktoken")  # what lies beside the tensors and is copied unchanged


def fetch(path_or_repo, patterns=WEIGHTS) -> Path:
    """A local folder (or file) as it is, else a hub id through huggingface_hub, which resumes a download.
    patterns: which files of the repository. FileNotFoundError: neither exists."""
    folder = Path(path_or_repo)
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(str(path_or_repo), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = f"{path_or_repo} is not a local folder, and the hub did not give it ({type(error).__name__})"
        cure = "check the name and the network, or download it once and pass the folder"
        raise FileNotFoundError(f"{why}; {cure}") from None


@contextmanager
def asking(repo: str, cure: str):
    """ValueError: what went wrong at the hub, in one sentence and without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:  # the bases: whatever HTTP client this version of the hub's package has
        yield
    except (*HfHubHTTPError.__bases__, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split()).replace(get_token() or "\0", "***")[:200]
        raise ValueError(f"--push {repo}: {type(error).__name__}, {why}; {cure}") from None


def check_push(repo: str):
    """ValueError: `repo` cannot be pushed to, as far as the hub tells before there is anything to push.
    "" is no repository, and well."""
    if not repo:
        return
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    if not get_token():
        raise ValueError(f"--push {repo}: there is no token; run `hf auth login` or set HF_TOKEN")
    with asking(repo, "check the name, the network and the token, or leave --push out"):
        validate_repo_id(repo)
        me = HfApi().whoami()
    owners = [me["name"], *(group["name"] for group in me.get("orgs", []))]
    if repo.partition("/")[0] not in owners or "/" not in repo:
        raise ValueError(f"--push {repo}: the token writes to {', '.join(owners)}; name {owners[0]}/NAME")


def push(checkpoints: Path, repo: str) -> str:
    """Uploads the newest checkpoint without its training state -> a sentence with its address; "" for no
    repository. A new one is private. ValueError: it did not work; the folder is as it was."""
    if not repo:
        return ""
    from huggingface_hub import HfApi

    newest = max(checkpoints.glob("step_*"))
    with asking(repo, f"nothing is lost: {newest} is whole, and --resume auto pushes again"):
        url = HfApi().create_repo(repo, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=newest, ignore_patterns=["state/*", "trainer.json"])
    return f"pushed {newest.name} to {url}"


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {path.parent}; is this a checkpoint folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download or save it again") from None


def read_config(folder: Path) -> dict:
    return read_json(Path(folder) / "config.json")


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, for one safetensors file or for shards with an index. FileNotFoundError."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        return read_json(index)["weight_map"]
    if not single.exists():
        raise FileNotFoundError(f"no model.safetensors (nor shards) in {folder}; is this a checkpoint?")
    try:
        with safe_open(single, "pt") as opened:
            return dict.fromkeys(opened.keys(), single.name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{single} is damaged ({error}); download or save it again") from None


def check_names(folder: Path, index: dict[str, str], names, within: str):
    """ValueError: the files lack one of `names`, or more below `within` than config.json has a place for."""
    missing = next((name for name in names if name not in index), None)
    if missing:
        raise ValueError(f"{folder} lacks the tensor {missing}, or its config.json belongs to another model")
    beyond = next((name for name in index if name.startswith(within) and name not in names), None)
    if beyond:
        raise ValueError(f"{folder} holds the tensor {beyond}, which has no place in its config.json")


def check_shared(folder: Path, index: dict[str, str], twin: str, name: str):
    """ValueError: config.json says that `twin` is the tensor `name`, but the files hold another."""
    if twin in index:
        first, second = (tensor for _, tensor in read_tensors(folder, index, (twin, name)))
        if not torch.equal(first, second):
            wrong = f"config.json in {folder} says tie_word_embeddings, but {twin} differs from {name}"
            raise ValueError(f"{wrong}; set tie_word_embeddings to false there")


def read_tensors(folder: Path, index: dict[str, str], names):
    """Yields (name, tensor on the CPU) in the order of `names`. ValueError: a file is damaged."""
    opened = {}
    for name in names:
        file = folder / index[name]
        try:
            if file not in opened:
                opened[file] = safe_open(file, "pt")
            tensor = opened[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or missing ({error}); download or save it again") from None
        yield name, tensor


def write(path, tensors: dict, config: dict, source: Path | None = None, shard_bytes: int = 5 << 30):
    """Writes a folder that transformers and vLLM load; it appears by rename.

    tensors: by their names in the file, on the CPU. source: the folder they came from; what else it holds
    (other tensors, tokenizer, generation config) is passed through unchanged.
    """
    from huggingface_hub import save_torch_state_dict

    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if source:
        index = read_index(source)
        tensors = tensors | dict(read_tensors(source, index, [n for n in index if n not in tensors]))
        for file in source.iterdir():
            if file.suffix in BESIDE and "safetensors" not in file.name:
                shutil.copy2(file, partial / file.name)
    save_torch_state_dict(tensors, partial, max_shard_size=shard_bytes)
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    replace_folder(partial, path)


def with_dtype(config: dict, dtype) -> dict:
    """A copy of a config.json that names `dtype` wherever it names a dtype."""
    config = json.loads(json.dumps(config))
    for part in (config, config.get("text_config", {})):
        for key in {"dtype", "torch_dtype"} & set(part):
            part[key] = str(dtype).removeprefix("torch.")
    return config
