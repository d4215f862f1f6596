"""The CUDA, FSDP2 and HSDP paths on a pretended GPU: tests/gpu_rehearsal.py in a process of its own, because
torch asks once, while it is imported, who answers for CUDA."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).resolve().parent
NAMES = re.findall(r"^def (test_\w+)", (HERE / "gpu_rehearsal.py").read_text(), re.M)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{name: text of each failure} of all rehearsals."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler for tests/pretend_gpu.cpp: apt-get install g++")
    report = tmp_path_factory.mktemp("rehearsal") / "report.xml"
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_gpu", "--junitxml", report]
    command += ["-p", "no:cacheprovider", HERE / "gpu_rehearsal.py"]
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert report.exists(), done.stdout + done.stderr
    found = {name: [] for name in NAMES}
    seen = set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name").partition("[")[0]
        seen.add(name)
        found[name] += [f"{case.get('name')}: {part.text}" for part in case.findall("failure")]
        found[name] += [f"{case.get('name')}: {part.text}" for part in case.findall("error")]
    assert seen == set(NAMES), done.stdout
    return found


@pytest.mark.parametrize("name", NAMES)
def test_on_a_pretended_gpu(outcomes, name):
    assert not outcomes[name], "\n".join(outcomes[name])
