"""What runs on a pretended GPU, in a process of its own: see test_gpu_rehearsal.py, which starts it."""

import pytest
import torch
from tqdm import tqdm

import eval as evaluation
import model as qwen
import rollout
import train
from launch import FLAGS, SMALL
from lib import huggingface, parallel
from lib.packed import Packed
from lib.rehearsal import rehearsal
from lib.sampling import Sampling
from scripts import plan

CUDA = torch.device("cuda", 0)
LENGTHS = ["--max_prompt_tokens", "24", "--max_new_tokens", "60", "--micro_batch_tokens", "200"]
SAMPLINGS = [Sampling(), Sampling(temperature=0), Sampling(0.7, top_p=0.9), Sampling(top_k=5)]
SAMPLINGS += [Sampling(min_p=0.1), Sampling(repetition_penalty=1.2), Sampling(0.9, 0.9, 7, 0.05, 1.1)]
RUNS = {"whole": (1, []), "LoRA": (1, ["--lora_rank", "4"])}
RUNS |= {"LoRA, all kept": (1, ["--lora_rank", "4", "--checkpointing", "False"])}
RUNS |= {"reference model": (1, ["--kl", "0.1"]), "4 shards": (4, ["--parallel", "fsdp"])}
RUNS |= {"4 shards, all kept, two updates": (4, ["--checkpointing", "False", "--updates_per_batch", "2"])}
RUNS |= {"4 shards, reference": (4, ["--kl", "0.1"]), "2 x 2": (4, ["--parallel", "hsdp"])}


def config(*flags):
    return train.parse([*FLAGS, *LENGTHS, "--checkpointing", "True", "--keep_replica", "False", *flags])


def rehearse(name, device="cuda"):
    world, flags = RUNS[name]
    return plan.rehearse(config(*flags), SMALL, world, 2, device=device)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_waits_twice_per_update_and_never_while_it_decodes(name):
    """Set-up, update, refresh, decode, update. The waits: the gradients' norm, and the statistics."""
    updates = 2 if "two" in name else 1
    on_gpu, on_cpu = rehearse(name), rehearse(name, "cpu")
    assert on_gpu["waits"]["learning"] == updates + 1 and not on_gpu["waits"]["writing 3"]
    for phase in ("learning", "writing 1"):
        assert on_gpu[phase].total() == pytest.approx(on_cpu[phase].total(), rel=0.05)


def test_a_value_read_in_the_loop_over_micro_batches_is_noticed(monkeypatch):
    honest = train.batch_loss

    def reads(*args):
        loss, sums = honest(*args)
        loss.item()
        return loss, sums

    monkeypatch.setattr(train, "batch_loss", reads)
    with pytest.raises(AssertionError):
        test_a_run_waits_twice_per_update_and_never_while_it_decodes("4 shards")
    assert rehearse("4 shards")["waits"]["learning"] == 4  # one more for each of two micro-batches


def test_a_copy_that_waits_is_noticed():
    with rehearsal() as ledger:
        x = torch.zeros(8).to(CUDA, non_blocking=True)
        assert ledger.waits.total() == 0
        x.cpu()
        torch.ones(8).to(CUDA)
        assert ledger.waits.total() == 2


def test_a_tensor_left_on_the_cpu_is_noticed(monkeypatch):
    honest = qwen.rotary
    monkeypatch.setattr(qwen, "rotary", lambda *args: [x.cpu() for x in honest(*args)])
    with pytest.raises(RuntimeError, match="cuda.*cpu|cpu.*cuda"):
        rehearse("LoRA")


def test_another_dtype_is_noticed(monkeypatch):
    monkeypatch.setattr(qwen.Norm, "forward", lambda self, x: x.float() * (1 + self.weight.float()))
    with pytest.raises(RuntimeError, match="scalar type"):
        rehearse("LoRA")


def fake():
    return qwen.empty(qwen.ModelConfig.from_hf(SMALL), torch.bfloat16, CUDA)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_decoding_waits_once_for_eight_steps(sampling):
    with rehearsal() as ledger, torch.no_grad(), plan.as_on_a_gpu():
        slots = rollout.Slots(fake(), 3, 64, sampling)
        slots.fill(0, (5, 6, 7), slots.keys[1])
        slots.fill(2, (5, 6, 7), slots.keys[2])
        slots.decode(8)
        assert ledger.waits.total() == 0
        slots.run(8)
        assert ledger.waits.total() == 2  # ids and log-probabilities, back to back


def test_a_sharded_model_is_gathered_in_bf16_and_saved(monkeypatch, tmp_path):
    written = {}
    monkeypatch.setattr(huggingface, "write", lambda path, tensors, *_: written.update(tensors))
    with rehearsal(4) as ledger, plan.as_on_a_gpu():
        model, scorer = plan.build(config("--parallel", "fsdp"), SMALL, True, ledger, "weights", CUDA)
        model.hf_config = SMALL
        assert all(parallel.is_sharded(p) != n.endswith(qwen.KEEP_FP32) for n, p in model.named_parameters())
        biggest = max(p.numel() for p in model.parameters())
        ledger.peaks.clear()
        before = ledger.held.total()
        ledger.enter("refresh")
        copy = rollout.replica(model, torch.bfloat16)
        replica = sum(p.nbytes for p in copy.parameters())
        # The largest tensor in bf16: its shard, the gathered parts, and the whole made of them.
        assert ledger.peaks["refresh"].total() - before - replica <= 2.3 * 2 * biggest
        qwen.save(model, tmp_path / "m", torch.bfloat16)
        whole = {n: torch.float32 if n.endswith(qwen.KEEP_FP32) else torch.bfloat16 for n in written}
        assert {n: t.dtype for n, t in written.items()} == whole
        assert len(written) == len(list(model.parameters()))
        assert all(t.device.type == "cpu" for t in written.values())


def test_the_reference_does_not_stay_gathered():
    with rehearsal(4) as ledger, plan.as_on_a_gpu(), torch.no_grad():
        _, scorer = plan.build(config("--parallel", "fsdp"), SMALL, True, ledger, "reference", CUDA)
        held = ledger.held.total()
        scorer(Packed([[5] * 40]), 1.0)
        assert ledger.held.total() == held


def test_evals_writer(monkeypatch):
    folder = evaluation.ROOT / "stories/tiny-base"
    settings = evaluation.Settings()
    writer = evaluation.Writer(str(folder), "tiny", [], folder)
    row = {"prompt": "Write a story. It should be 50 words long.", "target_words": 50}
    job = evaluation.Job("key", row, 1, 40)
    monkeypatch.setattr(qwen, "load", lambda *args: fake())
    with rehearsal(), plan.as_on_a_gpu():
        done = list(evaluation.write_local(writer, [job, job], settings, tqdm(disable=True)))
    assert len(done) == 2
