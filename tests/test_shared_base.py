"""With LoRA the policy itself decodes: the same tokens as its merged replica, and no second copy."""

from pathlib import Path

import pytest
import torch

import model as qwen
import rollout
from lib.lora import add_lora, merged_tensors
from lib.packed import Packed

BASE = Path(__file__).resolve().parent.parent / "stories/tiny-base"
PROMPTS = [[5, 6, 7], [5, 6, 7], [9] * 20, [11, 12]]
REQUEST = {"max_new_tokens": 20, "slots": 3}


@pytest.fixture
def policy():
    """A trained model, in fp32, with pairs that change its stories."""
    model = qwen.load(BASE, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for p in add_lora(model, 4, 16.0):
        p.data.normal_(0, 0.05, generator=generator)
    return model


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=str)
def test_the_policy_writes_what_its_merged_replica_writes(policy, how):
    own = rollout.generate(policy, PROMPTS, **REQUEST, **how)
    merged = rollout.generate(rollout.replica(policy), PROMPTS, **REQUEST, **how)
    assert [s.ids for s in own] == [s.ids for s in merged] and len({tuple(s.ids) for s in own}) > 1
    for a, b, prompt in zip(own, merged, PROMPTS):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5, rel=1e-5)
        trained = policy.token_logprobs(Packed([prompt + a.ids], [len(prompt)]), how["temperature"] or 1.0)[0]
        assert a.logprobs == pytest.approx(trained.tolist(), abs=1e-4)


def test_pairs_matter_and_no_copy_is_made(policy, monkeypatch):
    monkeypatch.setattr(rollout, "replica", None)  # whoever calls it fails
    own = rollout.generate(policy, PROMPTS, temperature=0, **REQUEST)
    for name, p in policy.named_parameters():
        if name.endswith("lora_B"):
            p.data.zero_()
    assert [s.ids for s in rollout.generate(policy, PROMPTS, temperature=0, **REQUEST)] != [
        s.ids for s in own
    ]


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float32])
def test_tensors_are_merged_in_the_dtype_asked_for(policy, to):
    whole = dict(merged_tensors(policy, lambda name: torch.float32))
    for name, tensor in merged_tensors(policy, lambda name: to):
        assert tensor.dtype == to and torch.equal(tensor, whole[name].to(to)), name


def test_a_bf16_base_multiplies_the_pair_in_bf16():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                self.size = max(self.size, out.numel())
            return out

    layer = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)])
    add_lora(layer, 2, 2.0)
    with Largest() as fp32:
        layer[0](torch.ones(1000, 64, dtype=torch.bfloat16)).sum().backward()
    assert fp32.size <= 2 * 64  # the pair and its gradients, never the input
    assert layer[0].lora_B.grad.dtype == torch.float32
