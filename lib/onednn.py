"""Linear layers for decoding on a CPU: each weight kept a second time in oneDNN's blocked order.

A product of few rows with a large weight reads that order up to twice as fast as plain rows. The operators
are private to torch and not in every build: `usable` asks first.
"""

import torch
import torch.nn as nn

SMALL = 1 << 17  # weights with fewer elements gain less than the call of the operator costs


class PackedLinear(nn.Module):
    """y = x W^T for inference. `weight` stays as it was, name and address; `pack` again when it changes."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight
        self.pack()

    def pack(self):
        self.weight.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)

    def forward(self, x):
        if torch.compiler.is_compiling():
            return torch.ops.packed.linear(x, self.weight)
        return product(x, self.weight)


def product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight.packed, None, "none", [], "")


# An operator of its own, because a compiler cannot look into a packed tensor: it sees the plain weight.
LIBRARY = torch.library.Library("packed", "DEF")
LIBRARY.define("linear(Tensor x, Tensor weight) -> Tensor")
LIBRARY.impl("linear", product, "CPU")
LIBRARY.impl("linear", lambda x, weight: x.new_empty(*x.shape[:-1], len(weight)), "Meta")


def usable(weight) -> bool:
    """Whether a weight like this one can be packed here: whole, in fp32 and on a CPU (bf16 would need
    AVX-512), in a build of torch that has oneDNN."""
    real = type(weight.data) is torch.Tensor and weight.device.type == "cpu"  # not sharded, not a fake tensor
    return real and weight.dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.no_grad()
def pack(module):
    """Replaces every bias-free nn.Linear below `module` by a PackedLinear, and packs those again; not the
    small ones."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                child.pack()
            elif isinstance(child, nn.Linear) and child.bias is None and child.weight.numel() >= SMALL:
                setattr(parent, name, PackedLinear(child.weight))
