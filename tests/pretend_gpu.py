"""Fake CUDA tensors in a build of torch without CUDA: `pytest -p pretend_gpu tests/gpu_rehearsal.py`.

FakeTensorMode knows shapes, dtypes and devices of CUDA tensors, and raises where two devices meet. The
autograd engine and indexing also ask CUDA for its current device and stream; pretend_gpu.cpp answers. torch
looks for one of the answers while it is imported, so this module comes first. Nothing is computed: speed,
CUDA graphs, kernels and fragmentation are not seen.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

SOURCE = Path(__file__).with_name("pretend_gpu.cpp")


def build() -> Path:
    """Compiles the answers, once for each torch, Python and version of the source."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    version = (importlib.metadata.version("torch"), *sys.version_info[:2], int(SOURCE.stat().st_mtime))
    library = Path(tempfile.gettempdir(), f"pretend_gpu-{'-'.join(map(str, version))}.so")
    if not library.exists():
        partial = library.with_name(f"{library.name}.{os.getpid()}")
        include = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        link = [f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", *include, SOURCE, "-o", partial, *link]
        subprocess.run(command, check=True)
        partial.rename(library)
    return library


class Nothing:
    """A stream, an event or a graph: every method returns at once, with the thing itself."""

    device_index = stream_id = 0

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: self


def pretend():
    """The part of torch.cuda that FSDP and the sampler call, for one card of 80 GiB."""
    import torch
    from torch._dynamo import trace_rules
    from torch._subclasses.fake_tensor import FakeTensorMode

    trace_rules.get_torch_obj_rule_map()  # a table of torch's functions, made before some are replaced
    only, memory = Nothing(), (80 << 30, 80 << 30)
    answers = {"Stream": Nothing, "Event": Nothing, "CUDAGraph": Nothing}
    answers |= dict.fromkeys(("is_available", "is_initialized"), lambda: True)
    answers |= dict.fromkeys(("stream", "graph"), lambda *args, **kwargs: nullcontext())
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *args: only)
    answers |= dict.fromkeys(("current_device", "memory_reserved", "memory_allocated"), lambda *args: 0)
    answers |= dict.fromkeys(("_lazy_init", "set_device", "synchronize"), lambda *args: None)
    answers |= {"device_count": lambda: 1, "mem_get_info": lambda *args: memory}
    answers |= {"graph_pool_handle": lambda: None}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    FakeTensorMode.avoid_device_init = True  # constants stay on the CPU
    torch.Tensor.pin_memory = lambda tensor, *args: tensor  # there is no driver that could pin it


if shutil.which("g++"):
    if "torch" in sys.modules:
        raise ImportError("import pretend_gpu before torch, which asks for CUDA while it is imported")
    answers = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    pretend()
    answers.set_guard()
