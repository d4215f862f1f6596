"""rollout.py against transformers' generate and samplers, single runs, arithmetic in plain Python, and
injected faults."""

import json
import math
import os
import time
from collections import Counter
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp

import data
import model as qwen
import rollout
from launch import SMALL, free_port
from lib import sampling
from lib.lora import add_lora
from lib.packed import Packed
from lib.parallel import shard
from lib.sampling import Sampling
from rollout import generate, replica

BASE = os.path.join(os.path.dirname(rollout.__file__), "stories", "tiny-base")


def config(**changes):
    hf = SMALL | {"architectures": ["Qwen3_5ForCausalLM"], "vocab_size": 96, "hidden_size": 48}
    hf |= {"num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_key_heads": 2}
    hf |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12}
    return hf | {"max_position_embeddings": 4096} | changes


def lively(hf, seed=0):
    """A random model whose next token really depends on the text: larger weights than at initialisation."""
    model = qwen.new(hf, seed)
    for name, p in model.named_parameters():
        if p.dim() > 1 and "conv" not in name:
            p.data *= 6
    return model


@pytest.fixture(scope="module")
def model():
    return lively(config())


def prompts_of(lengths, vocab=96, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=g).tolist() for n in lengths]


# ---------------------------------------------------------------- the same tokens as transformers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "linear_num_key_heads": 4,
            "linear_conv_kernel_dim": 3,
            "vocab_size": 101,
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
        },
        {"num_hidden_layers": 3, "full_attention_interval": 3, "linear_num_value_heads": 2, "head_dim": 24},
    ],
)
def test_greedy_tokens_equal_those_of_transformers(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = lively(config(**changes), seed=1)
    qwen.save(model, tmp_path / "m")
    peer = transformers.Qwen3_5ForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    prompts = prompts_of([1, 2, 5, 17, 40, 64, 65, 100], model.config.vocab_size)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    theirs = peer.generate(
        ids, attention_mask=mask, max_new_tokens=256, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ours = generate(model, prompts, max_new_tokens=256, temperature=0)
    assert [c.ids for c in ours] == theirs[:, width:].tolist()
    assert min(len(set(c.ids)) for c in ours) > 3, "a model that repeats one token proves nothing"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_training_path(model, temperature):
    prompts = prompts_of([3, 30, 64, 90, 7, 11, 1, 128])
    done = generate(model, prompts, max_new_tokens=250, temperature=temperature, seed=5)  # 2,000 tokens
    assert sum(len(c.ids) for c in done) == 2000
    for prompt, c in zip(prompts, done):
        again = model.token_logprobs(Packed([prompt + c.ids], [len(prompt)]), temperature)[0]
        assert (again - torch.tensor(c.logprobs)).abs().max() < 1e-4


# ---- a story depends on its prompt and its seed alone


def test_slot_refill_writes_what_single_runs_write(model):
    prompts = prompts_of(torch.randint(1, 60, (64,), generator=torch.Generator().manual_seed(1)).tolist())
    seeds, copy = list(range(100, 164)), replica(model)
    request = {"max_new_tokens": 40, "stop_ids": range(6)}
    together = generate(copy, prompts, seed=seeds, slots=8, **request)
    alone = [generate(copy, [p], seed=[s], **request)[0] for p, s in zip(prompts, seeds)]
    assert [c.ids for c in together] == [c.ids for c in alone]
    lengths = Counter(len(c.ids) for c in together)
    assert len(lengths) > 10, "stories of one length never refill a slot out of step"


def test_a_group_reads_its_prompt_once_and_its_members_differ(model, monkeypatch):
    copy, prefills = replica(model), []
    plain = qwen.Qwen35.forward

    def forward(self, ids, *args, **kwargs):
        prefills.extend([ids.shape[1]] * (ids.shape[1] > 1))
        return plain(self, ids, *args, **kwargs)

    monkeypatch.setattr(qwen.Qwen35, "forward", forward)
    a, b = prompts_of([20, 33])
    done = generate(copy, [a, b] * 4, max_new_tokens=12, seed=3, slots=3)
    assert sorted(prefills) == [19, 32]
    assert len({tuple(c.ids) for c in done[::2]}) == 4
    again = generate(copy, [b, a], max_new_tokens=12, seed=[3 * 1_000_003 + 1, 3 * 1_000_003])
    assert [c.ids for c in again] == [done[1].ids, done[0].ids]


def test_one_seed_one_story(model):
    prompt = prompts_of([9])[0]
    a, b, c = generate(model, [prompt] * 3, max_new_tokens=30, seed=[7, 7, 8])
    assert a == b and a.ids != c.ids
    a, b = (generate(model, [prompt], max_new_tokens=30, seed=[seed])[0].ids for seed in (-1, 2**70))
    assert a != b


# ---------------------------------------------------------------- the distribution


def splitmix(key, counter):
    x = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_noise_is_splitmix64_in_arbitrary_precision():
    seeds, positions = (0, 5, 2**63, -1, 2**70 + 3), [0, 3, 100_000, 1, 2]
    keys = [splitmix(0, seed) for seed in seeds]
    assert [k % 2**64 for k in sampling.keys_of(seeds).tolist()] == keys
    noise = sampling.gumbel(sampling.keys_of(seeds), torch.tensor(positions), 7)
    for i, (key, position) in enumerate(zip(keys, positions)):
        for j in range(7):
            u = ((splitmix(key, position * 7 + j) >> 11) + 0.5) / 2**53
            assert noise[i, j].item() == pytest.approx(-math.log(-math.log(u)), abs=1e-5)


@pytest.mark.parametrize("vocab", [12, 97, 4096, 248320])
def test_block_size_divides(vocab):
    b = sampling.block_size(vocab)
    assert vocab % b == 0 and b >= math.isqrt(vocab)


@pytest.mark.parametrize(
    "s", [Sampling(), Sampling(temperature=0.6), Sampling(top_k=4), Sampling(top_p=0.7), Sampling(min_p=0.2)]
)
def test_draws_follow_the_distribution(s):
    n, V = 40_000, 12
    logits = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5
    noise = sampling.gumbel(sampling.keys_of(range(n)), torch.arange(n) % 50, 3 + 4)
    token, logp = sampling.pick(logits.expand(n, V), noise, s)
    p = sampling.bend((logits / s.temperature)[None], s)[0].softmax(-1)
    counts = torch.bincount(token, minlength=V)
    assert (counts[p == 0] == 0).all()
    chi2 = ((counts - n * p).square() / (n * p))[p > 0].sum().item()
    assert chi2 < 2.5 * (p > 0).sum().item() + 15, chi2
    assert torch.allclose(logp, (logits / s.temperature).log_softmax(-1)[token], atol=1e-5)


def test_truncation_and_penalty_equal_those_of_transformers():
    t = pytest.importorskip("transformers")
    g = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(16, 60, generator=g) * 2, torch.randint(0, 60, (16, 9), generator=g)
    seen = torch.zeros(16, 60, dtype=torch.bool).scatter_(1, ids, True)
    for s in (
        Sampling(0.8, top_k=7),
        Sampling(1.3, top_p=0.6),
        Sampling(0.5, min_p=0.1),
        Sampling(0.9, top_p=0.8, top_k=20, min_p=0.05),
        Sampling(0.8, repetition_penalty=1.3),
        Sampling(1.1, top_k=5, repetition_penalty=0.7),
    ):
        chain = [t.RepetitionPenaltyLogitsProcessor(s.repetition_penalty)]
        chain += [t.TemperatureLogitsWarper(s.temperature)]
        chain += [t.TopKLogitsWarper(s.top_k)] if s.top_k else []
        chain += [t.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
        chain += [t.MinPLogitsWarper(s.min_p)] if s.min_p else []
        theirs = t.LogitsProcessorList(chain)(ids, logits.clone()).log_softmax(-1)
        ours = sampling.bend(logits / s.temperature, s, seen).log_softmax(-1)
        assert torch.equal(ours.isinf(), theirs.isinf()) and torch.allclose(
            ours.exp(), theirs.exp(), atol=1e-5
        ), s
        token, logp = sampling.pick(
            logits, sampling.gumbel(torch.arange(16), torch.zeros(16, dtype=torch.long), 16), s, seen
        )
        assert not theirs.gather(-1, token[:, None]).isinf().any(), s
        raw = (logits / s.temperature).log_softmax(-1)
        assert torch.allclose(logp, raw.gather(-1, token[:, None])[:, 0], atol=1e-5), s


def test_repetition_penalty_counts_the_prompt_and_what_was_written(model):
    prompt = prompts_of([25])[0]
    done = generate(model, [prompt], max_new_tokens=40, temperature=0, repetition_penalty=1e6)[0]
    assert len(set(prompt + done.ids)) == len(set(prompt)) + 40, "a prohibitive penalty never repeats a token"


# ---------------------------------------------------------------- ends, order, calls


def test_stop_token_is_kept_and_the_limit_holds(model):
    prompts = prompts_of([4] * 20)
    free = generate(model, prompts, max_new_tokens=30, seed=1)
    stop = Counter(t for c in free for t in c.ids).most_common(1)[0][0]
    done = generate(model, prompts, max_new_tokens=30, seed=1, stop_ids=[stop])
    for a, b in zip(free, done):
        cut = a.ids.index(stop) + 1 if stop in a.ids else 30
        assert b.ids == a.ids[:cut] and len(b.logprobs) == len(b.ids) and b.finished == (stop in a.ids)
    assert any(c.finished for c in done) and not all(c.finished for c in done)


def test_a_story_ends_once_while_others_are_written(model):
    how = {"max_new_tokens": 60, "seed": 2, "slots": 4, "stop_ids": range(8)}
    ends = [(i, list(c.ids)) for i, c, ended in rollout.stream(model, prompts_of([5] * 12), **how) if ended]
    done = generate(model, prompts_of([5] * 12), **how)
    assert sorted(i for i, _ in ends) == list(range(12)) and [i for i, _ in ends] != list(range(12))
    assert all(ids == done[i].ids for i, ids in ends)


def test_greedy_ignores_seed_and_truncation(model):
    prompt = prompts_of([6])
    a = generate(model, prompt, max_new_tokens=20, temperature=0, seed=1, top_p=0.1, top_k=3)
    assert a == generate(model, prompt, max_new_tokens=20, temperature=0, seed=2)
    again = model.token_logprobs(Packed([prompt[0] + a[0].ids], [6]))[0]
    assert torch.allclose(again, torch.tensor(a[0].logprobs), atol=1e-4), (
        "greedy log-probs are those at temperature 1"
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"prompts": [[1], [96]]}, "prompt 1 holds token 96"),
        ({"prompts": [[1] * 4000], "max_new_tokens": 97}, "the model reaches 4096"),
        ({"temperature": -1}, "temperature -1: must be at least 0"),
        ({"temperature": math.nan}, "temperature nan: must be a finite number"),
        ({"top_p": 0}, "top_p 0: must be above 0"),
        ({"top_p": 1.1}, "top_p 1.1: must be at most 1"),
        ({"top_k": -1}, "top_k -1: must be at least 0"),
        ({"min_p": 1.5}, "min_p 1.5: must be at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0: must be above 0"),
    ],
)
def test_bad_requests_say_what_is_wrong(model, wrong, says):
    request = {"prompts": [[1, 2]], "max_new_tokens": 4} | wrong
    with pytest.raises(ValueError, match=says):
        generate(model, request.pop("prompts"), **request)


def test_no_prompts_no_stories(model):
    assert generate(model, [], max_new_tokens=4) == []


def test_nan_logits_name_the_prompt():
    broken = lively(config())
    broken.embed_tokens.weight.data[5] = math.nan  # the head is tied: every logit row meets it
    with pytest.raises(ValueError, match="NaN logits for prompt 0"):
        generate(broken, [[1, 2, 3]], max_new_tokens=4)


def test_memory_is_planned_before_the_start(model, monkeypatch):
    slots = rollout.Slots(model, 3, 500, Sampling())
    held = sum(t.nbytes for layer in slots.cache.layers for t in layer) / 3
    assert sum(qwen.cache_bytes(model.config, 500, torch.float32)) == held
    each = sum(qwen.cache_bytes(model.config, 1 + 50, torch.float32)) + 4 * 4 * model.config.vocab_size
    monkeypatch.setattr(rollout, "free_bytes", lambda device: int(2.5 * each / 0.9))
    assert rollout.plan_slots(model, 10, 51, 0) == 2
    assert len(generate(model, [[1]] * 5, max_new_tokens=50)) == 5
    with pytest.raises(ValueError, match="room for 2; lower max_new_tokens"):
        generate(model, [[1]] * 5, max_new_tokens=50, slots=4)
    monkeypatch.setattr(rollout, "free_bytes", lambda device: each // 2)
    with pytest.raises(ValueError, match=r"1 slot\(s\) of 51 tokens need"):
        generate(model, [[1]], max_new_tokens=50)


# ---------------------------------------------------------------- the replica


def test_a_refreshed_replica_keeps_addresses_merges_lora_and_leaves_the_model_alone(model):
    trained = lively(config())
    added = add_lora(trained, 2, 8.0)
    copy = replica(trained)
    before = {name: p.data_ptr() for name, p in copy.named_parameters()}
    prompt = prompts_of([12])
    first = generate(copy, prompt, max_new_tokens=20, seed=4)[0]
    for p in added:
        p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    trained.train()
    replica(trained, last=copy)
    assert before == {name: p.data_ptr() for name, p in copy.named_parameters()}
    for module in (m for m in copy.modules() if hasattr(m, "fused")):
        parts = [getattr(module, name).weight for name in module.projections]
        assert torch.equal(module.fused.weight, torch.cat(parts)), "the views follow"
    second = generate(copy, prompt, max_new_tokens=20, seed=4)[0]
    assert first.ids != second.ids, "the pair was merged"
    assert generate(trained, prompt, max_new_tokens=20, seed=4)[0].ids == second.ids
    again = trained.token_logprobs(Packed([prompt[0] + second.ids], [12]))[0]
    assert (again - torch.tensor(second.logprobs)).abs().max() < 1e-4
    again.sum().backward()
    assert all(p.grad is not None for p in added) and not any(p.requires_grad for p in copy.parameters())


def test_a_compiled_replica_writes_the_same_and_follows_new_weights(model, monkeypatch):
    # Tracing alone takes seconds; the graph that it hands over is what would be turned into C++ in a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, plain = replica(model, compile=True), replica(model)
    request = {"max_new_tokens": 9, "seed": 3, "slots": 2}
    other = lively(config(), seed=9)
    for weights in (model, other):
        copies = [replica(weights, last=copy) for copy in (compiled, plain)]
        ours, theirs = (generate(copy, prompts_of([5, 9, 7]), **request) for copy in copies)
        assert [c.ids for c in ours] == [c.ids for c in theirs]


def test_a_bf16_replica_stays_close(model):
    prompt = prompts_of([12])
    done = generate(replica(model, torch.bfloat16), prompt, max_new_tokens=30, seed=4)[0]
    again = model.token_logprobs(Packed([prompt[0] + done.ids], [12]))[0]
    gap = (again - torch.tensor(done.logprobs)).abs().mean().item()
    assert 0 < gap < 0.3, gap


def uneven(rank, world, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    sharded = lively(config())
    whole = generate(sharded, [[3, 4]], max_new_tokens=9, seed=1)[0].ids
    shard(sharded, sharded.layers, bf16=False, shards=world)
    copy = replica(sharded)
    for _ in range(2):  # the first rank writes 200 times as much as the last; all meet at the next replica
        tokens = (600, 40, 9, 3)[rank]
        done = generate(copy, [[3, 4]], max_new_tokens=tokens, seed=1)[0].ids
        assert len(done) == tokens and done[:9] == whole[:tokens]
        replica(sharded, last=copy)
    torch.distributed.barrier()
    open(os.path.join(folder, str(rank)), "w").close()
    torch.distributed.destroy_process_group()


def test_ranks_with_uneven_stories_do_not_hang(tmp_path):
    context = mp.spawn(uneven, (4, free_port(), str(tmp_path)), nprocs=4, join=False)
    deadline = time.monotonic() + 120
    while not context.join(timeout=5):  # returns as soon as one of them ends
        assert time.monotonic() < deadline, "a rank hangs"
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_write_what_the_cpu_writes(model):
    prompts = prompts_of([5, 40, 500])
    on_gpu = lively(config()).to("cuda")
    how = {"max_new_tokens": 100, "seed": 1, "slots": 5, "stop_ids": range(3)}
    ours, theirs = (generate(m, prompts * 4, **how) for m in (on_gpu, model))
    same = sum(a.ids == b.ids for a, b in zip(ours, theirs))
    assert same >= 11, "one story may flip on a rounding of its own"


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path):
    import shutil

    qwen.save(lively(config(vocab_size=4096)), tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(BASE, name), tmp_path / "m" / name)
    return tmp_path / "m"


def test_command_streams_a_story_and_says_why_it_stopped(folder, capsys):
    args = ["--prompt", "A lighthouse keeper finds a second moon"]
    args += f"--words 12 --checkpoint {folder} --max_new_tokens 30".split()
    rollout.main(args)
    out, err = capsys.readouterr()
    assert "A lighthouse keeper finds a second moon. It should be 12 words long." in err
    assert out.splitlines()[-1].split(" words written")[0].isdigit() and "12 requested" in out
    assert out.endswith("cut at 30 tokens\n")
    rollout.main(args)
    assert capsys.readouterr().out.rpartition("\n\n")[0] == out.rpartition("\n\n")[0]


@pytest.mark.parametrize(
    "args, says",
    [
        (["--words", "-1"], "--words -1: must be at least 0"),
        (["--prompt", ""], "pass --prompt"),
        (["--checkpoint", "nowhere/at/all"], "nowhere/at/all"),
        (["--temperature", "-2"], "--temperature -2: must be at least 0"),
        (["--max_new_tokens", "9999"], "the model reaches 4096"),
    ],
)
def test_command_names_what_is_wrong(folder, args, says, capsys):
    with pytest.raises(SystemExit) as end:
        rollout.main(["--prompt", "x", "--checkpoint", str(folder), *args])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.splitlines()[-1].startswith("error: ") and says in err


@pytest.mark.parametrize(
    "named, more", [(None, ()), ({}, ()), ({"eos_token_id": 7}, (7,)), ({"eos_token_id": [3069, 9]}, (9,))]
)
def test_a_story_ends_at_every_end_token_of_its_model(folder, named, more):
    tokenizer = data.load_tokenizer(folder)
    if named is not None:
        (folder / "generation_config.json").write_text(json.dumps(named))
    ends = rollout.stop_ids(folder, tokenizer)
    assert ends == (tokenizer.added["<|im_end|>"], tokenizer.added["<|endoftext|>"], *more)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="generation_config.json is not JSON"):
        rollout.stop_ids(folder, tokenizer)


def test_newest_checkpoint_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rollout.newest_checkpoint().name == "tiny-base"
    for age, name in enumerate(
        ["b/checkpoints/step_000009", "a/checkpoints/step_000002", "a/checkpoints/.step_000003.partial"]
    ):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "config.json").write_text("{}")
        os.utime(tmp_path / "out" / name / "config.json", (1000 + age, 1000 + age))
    assert str(rollout.newest_checkpoint()) == "out/a/checkpoints/step_000002"
