"""On fake tensors nothing is computed: a value that the host reads back, or a shape that depends on data,
raises. On a GPU each of these is a hidden wait."""

import pytest
import torch
from test_model import text_config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import model as qwen
import rollout
from lib.lora import add_lora, merged_tensors
from lib.packed import Packed
from lib.sampling import Sampling

CONFIG = text_config(2) | {"model_type": "qwen3_5_text", "max_position_embeddings": 512}
ROWS = [[5] * 130, [7] * 30, [9] * 61]


def fake_model(dtype=torch.float32):
    return qwen.empty(qwen.ModelConfig.from_hf(CONFIG), dtype, torch.device("cpu"))


@pytest.mark.parametrize("how", ["plain", "one row", "lora", "checkpointing", "bf16"])
def test_forward_and_backward_of_token_logprobs_never_wait(how):
    with FakeTensorMode():
        model = fake_model(dtype=torch.bfloat16 if how == "bf16" else torch.float32)
        model.checkpointing = how == "checkpointing"
        trained = add_lora(model, 2, 4.0) if how == "lora" else list(model.parameters())
        batch = Packed(ROWS[:1]) if how == "one row" else Packed(ROWS, [100, 1, 20])
        logp, entropy = model.token_logprobs(batch, 0.7)
        assert logp.shape == entropy.shape == (sum(batch.counts),)
        logp.sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in trained)


@pytest.mark.parametrize(
    "s",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(0.7, top_p=0.9),
        Sampling(top_k=5),
        Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.2),
        Sampling(0.9, 0.9, 7, 0.05, 1.1),
    ],
    ids=str,
)
def test_filling_slots_and_decoding_never_wait(s):
    with FakeTensorMode(), torch.inference_mode():
        slots = rollout.Slots(fake_model(), 3, 64, s)
        slots.fill(0, (5, 6, 7), slots.keys[1])
        slots.fill(2, (5, 6, 7), slots.keys[2])
        slots.fill(1, (8,), slots.keys[0])
        token, logp = slots.decode(3)
        slots.empty(1)
        slots.decode(1)
        assert token.shape == logp.shape == (3, 3)
        with pytest.raises(DataDependentOutputException):  # what reads the tokens back is noticed
            slots.run(1)


def test_making_a_replica_never_waits():
    with FakeTensorMode():
        model = fake_model()
        add_lora(model, 2, 4.0)
        copy = rollout.replica(model, torch.bfloat16)
        merged = merged_tensors(model, lambda name: torch.float32)
        own = [p for name, p in copy.named_parameters() if ".fused." not in name]
        assert sum(t.numel() for _, t in merged) == sum(p.numel() for p in own)


def test_a_value_read_in_the_middle_of_a_block_is_noticed(monkeypatch):
    honest = qwen.MLP.forward

    def reads(self, x):
        x.sum().item()
        return honest(self, x)

    monkeypatch.setattr(qwen.MLP, "forward", reads)
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        fake_model().token_logprobs(Packed(ROWS))
