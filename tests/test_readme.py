"""What the README promises exists: files, links, and every flag of every command it shows."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if re.search(r"train\.py|rollout\.py|eval\.py|-m scripts\.", line.split("#")[0])
]


def program(command: str) -> tuple[str, ...]:
    """The part before the flags: ("train.py",) or ("-m", "scripts.anthologies", "build")."""
    words = command.split()
    at = next(i for i, w in enumerate(words) if w.endswith(".py") or w == "-m")
    found = words[at : at + 2] if words[at] == "-m" else words[at : at + 1]
    rest = words[at + len(found) :]
    return tuple(found + (rest[:1] if found[-1] == "scripts.anthologies" else []))


@cache
def help_of(program: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_links_and_files_exist():
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(
        r"^\| `([a-z]+\.py)`", README, re.M
    ):
        assert (ROOT / name).exists(), name


def test_every_flag_in_the_readme_is_a_flag():
    assert len(COMMANDS) > 10
    with ThreadPoolExecutor(2) as pool:  # most of a --help is importing torch
        list(pool.map(help_of, {program(c) for c in COMMANDS}))
    for command in COMMANDS:
        for flag in re.findall(r"(?<= )--[a-z_]+", command):
            if flag != "--nproc_per_node":
                text = help_of(program(command))
                text += (
                    help_of(("train.py",)) if "flags of train.py" in text else ""
                )  # scripts.plan takes a run's own flags
                assert flag in text, f"{command}: {flag}"


@pytest.mark.parametrize(
    "script", sorted(p.name for p in (ROOT / "scripts").glob("*.py") if "__main__" in p.read_text())
)
def test_scripts_say_what_they_do(script):
    text = help_of(("-m", f"scripts.{script[:-3]}"))
    assert text.startswith(f"usage: python -m scripts.{script[:-3]} ") and len(text.splitlines()) > 5


@pytest.mark.parametrize("command", ["train.py", "eval.py", "eval.py watch", "rollout.py", "judge.py"])
def test_help_names_the_program_as_it_was_called(command):
    assert help_of(tuple(command.split())).startswith(f"usage: {command} ")


@pytest.mark.parametrize("package", ["anthologies", "bench"])
def test_help_of_a_package(package):
    assert help_of(("-m", f"scripts.{package}")).startswith(f"usage: python -m scripts.{package} ")
