"""The packed linear layer against a plain product, where the build can and where it cannot."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from lib import onednn

needs_onednn = pytest.mark.skipif(
    not onednn.usable(torch.ones(2, 2)), reason="this build of torch has no oneDNN"
)


def linear(n_in=48, n_out=40):
    return nn.Linear(n_in, n_out, bias=False).requires_grad_(False)


@needs_onednn
def test_packed_product_equals_the_plain_one_and_follows_new_weights(monkeypatch):
    monkeypatch.setattr(onednn, "SMALL", 100)
    tree = nn.Sequential(linear(), nn.Sequential(linear(40, 7), nn.Linear(7, 30), linear(7, 3)))
    weights = [tree[0].weight, tree[1][0].weight]
    for _ in range(2):
        onednn.pack(tree)
        assert [type(m) for m in (tree[0], *tree[1])] == [onednn.PackedLinear] * 2 + [nn.Linear] * 2
        assert tree[0].weight is weights[0], "the parameter keeps its name and address"
        for rows in (1, 3, 70):
            x = torch.randn(rows, 2, 48)
            plain = F.linear(F.linear(x, weights[0]), weights[1])
            assert torch.allclose(tree[1][0](tree[0](x)), plain, atol=1e-5)
        weights[0].data.normal_()  # the next round packs again


@needs_onednn
def test_the_compiler_sees_one_operator(monkeypatch):
    monkeypatch.setattr(onednn, "SMALL", 100)
    tree = nn.Sequential(linear(), nn.SiLU())
    onednn.pack(tree)
    x, seen = torch.randn(3, 48), []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    assert torch.allclose(torch.compile(tree, backend=backend, fullgraph=True)(x), tree(x))
    assert any("packed.linear" in target for target in seen), seen


def test_what_cannot_be_packed_is_left_alone(monkeypatch):
    assert not onednn.usable(torch.empty(2, 2, device="meta"))
    assert not onednn.usable(linear().weight.bfloat16())
    with FakeTensorMode():
        assert not onednn.usable(linear().weight)
    monkeypatch.setattr(torch.ops, "mkldnn", object())  # as on builds without oneDNN
    assert not onednn.usable(linear().weight)
