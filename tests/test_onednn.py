"""The packed linear layer against a plain product, where the processor can and where it cannot."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from lib import onednn

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def asks_again():
    """Forgets what was found out about this processor, before and after a test that changes the answer."""
    onednn.works_with.cache_clear()
    yield
    onednn.works_with.cache_clear()


def linear(n_in=48, n_out=40, dtype=torch.float32):
    layer = nn.Linear(n_in, n_out, bias=False, dtype=dtype)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_product_equals_the_plain_one_and_follows_new_weights(dtype):
    if not onednn.works_with(dtype):
        pytest.skip(f"this processor cannot pack {dtype}")
    tree = nn.Sequential(
        linear(dtype=dtype), nn.Sequential(linear(40, 7, dtype), nn.Linear(7, 3, dtype=dtype))
    )
    weights = [tree[0].weight, tree[1][0].weight]
    for _ in range(2):
        onednn.pack(tree)
        assert [type(m) for m in (tree[0], tree[1][0], tree[1][1])] == [onednn.PackedLinear] * 2 + [nn.Linear]
        assert tree[0].weight is weights[0], "the parameter keeps its name and address"
        for rows in (1, 3, 70):
            x = torch.randn(rows, 2, 48).to(dtype)
            plain = F.linear(F.linear(x, weights[0]), weights[1])
            assert torch.allclose(
                tree[1][0](tree[0](x)), plain, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
            )
        weights[0].data.normal_()  # the next round packs again


def test_the_compiler_sees_one_operator():
    tree = nn.Sequential(linear(), nn.SiLU())
    onednn.pack(tree)
    if not isinstance(tree[0], onednn.PackedLinear):
        pytest.skip("this processor cannot pack fp32")
    x, seen = torch.randn(3, 48), []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    assert torch.allclose(torch.compile(tree, backend=backend, fullgraph=True)(x), tree(x))
    assert any("packed.linear" in target for target in seen), seen


def refuse(*_):
    raise RuntimeError("bf16 path needs the cpu support avx512bw")


@pytest.mark.parametrize("how", ["refused", "missing", "wrong"])
def test_a_processor_or_build_that_cannot_is_noticed(how, monkeypatch, asks_again):
    if how == "refused":
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    elif how == "missing":  # as on builds without oneDNN: torch.ops raises AttributeError
        monkeypatch.setattr(onednn.torch.ops, "mkldnn", object())
    else:
        monkeypatch.setattr(onednn, "product", lambda x, weight: x.new_zeros(2, 32))
    weight = linear(dtype=torch.bfloat16).weight
    assert not onednn.usable(weight)


def test_other_devices_and_fake_tensors_are_left_alone(asks_again):
    assert not onednn.usable(torch.empty(2, 2, device="meta"))
    with FakeTensorMode():
        assert not onednn.usable(linear().weight)
    assert onednn.works_with.cache_info().currsize == 0, "a fake tensor must not decide for real ones"


WRITES = """
import json, sys, torch
torch.set_num_threads(1)
import model as qwen, rollout
from lib import onednn
asked = {str(dtype): onednn.works_with(dtype) for dtype in (torch.float32, torch.bfloat16)}
model = qwen.load(sys.argv[1], fused=True)  # the default dtype, bf16
stories = rollout.generate(model, [[5, 6, 7]] * 2, max_new_tokens=6, temperature=0)
plain = rollout.generate(qwen.load(sys.argv[1], torch.float32), [[5, 6, 7]], max_new_tokens=6, temperature=0)
print(json.dumps([asked, [s.ids for s in stories], plain[0].ids]))
"""


@pytest.mark.parametrize("isa", ["as it is", "AVX2"])
def test_generate_writes_in_bf16_with_and_without_avx512(isa):
    """The same machine asked twice: oneDNN and torch limited to AVX2 refuse to pack bf16, and stories come
    out anyway."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if isa == "AVX2" else {}
    command = [sys.executable, "-c", WRITES, os.path.join(root, "stories/tiny-base")]
    done = subprocess.run(command, cwd=root, env=os.environ | limits, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked, stories, plain = json.loads(done.stdout)
    if isa == "AVX2":
        assert not asked["torch.bfloat16"]
    assert len(stories[0]) == 6 and stories[0] == stories[1] and len(plain) == 6
