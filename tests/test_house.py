"""The house: three floors with arrows that run downwards only, sizes, and the number of flags."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).resolve().parent.parent
BELOW = {  # what each of the eight files may import of the eight, besides lib/
    **dict.fromkeys(("model", "data", "deviation", "judge"), set()),
    "rollout": {"model", "data"},
    "hri": {"data"},
    **dict.fromkeys(("train", "eval"), {"rollout", "judge", "hri", "deviation", "model", "data"}),
}
LINES = {"train": 515, "model": 578, "rollout": 360, "judge": 420, "eval": 390}  # the others 350
PRODUCT = 11_645  # lines of all that is not a test: something goes before something comes
PARTS_OF = {"study": {"prefer"}}  # scripts that another script starts


def imports(path: Path) -> set[str]:
    """Names of ours that a file imports: "train", "lib.files", "scripts.prefer"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            package = node.module in ("lib", "scripts")
            found |= {f"{node.module}.{alias.name}" if package else node.module for alias in node.names}
    return {name for name in found if name.partition(".")[0] in {*BELOW, "lib", "scripts"}}


def product() -> list[Path]:
    return [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), *ROOT.glob("scripts/**/*.py")]


def test_only_the_eight_are_at_the_top():
    assert {p.stem for p in ROOT.glob("*.py")} == set(BELOW)


def test_arrows_run_downwards():
    wrong = []
    for path in product():
        ours, package = imports(path), path.relative_to(ROOT).parts[0]
        if package == "lib":
            allowed = {name for name in ours if name.startswith("lib")}
        elif package == "scripts":
            program = path.relative_to(ROOT / "scripts").parts[0].removesuffix(".py")
            mine = {program} | PARTS_OF.get(program, set())
            allowed = {n for n in ours if not n.startswith("scripts") or n.split(".")[1] in mine}
        else:
            allowed = {
                n for n in ours if n.startswith("lib") and path.stem != "deviation" or n in BELOW[path.stem]
            }
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in ours - allowed]
    assert not wrong


@pytest.mark.parametrize("name", ["model", "hri", "data"])
def test_what_only_others_call_says_so_in_three_lines(name):
    done = subprocess.run(
        [sys.executable, f"{name}.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    callers = {f"{file}.py" for file in BELOW if name in imports(ROOT / f"{file}.py")} - {f"{name}.py"}
    said = done.stdout.splitlines()
    assert len(said) == 3 and all(len(line) <= 110 for line in said)
    assert set(re.findall(r"\w+\.py", said[1])) == callers


def test_sizes():
    sizes = {path: len(path.read_text().splitlines()) for path in product()}
    most = {
        p: LINES.get(p.stem, 350) if p.parent == ROOT else 400 if "scripts" in p.parts[-3:] else 250
        for p in sizes
    }
    most[ROOT / "lib/endpoint.py"] = 430
    assert not {str(p.relative_to(ROOT)): (n, most[p]) for p, n in sizes.items() if n > most[p]}
    assert sum(sizes.values()) <= PRODUCT


def test_functions_fit_on_a_screen():
    long = []
    for path in product():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                limit = 90 if (path.name, node.name) == ("train.py", "run") else 45
                if (n := node.end_lineno - node.lineno + 1) > limit:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {n} lines")
    assert not long


def test_flags_of_the_trainer():
    assert len(fields(train.Config)) <= 55
    assert all(f.metadata["help"] for f in fields(train.Config))


@pytest.mark.parametrize("line", ["hri.anchor(", "deviation.weigh("])
def test_the_loop_has_one_line_for_each_part(line):
    source = (ROOT / "train.py").read_text()
    assert len(re.findall(rf"^ +{re.escape(line)}.*# delete this line", source, re.M)) == 1
