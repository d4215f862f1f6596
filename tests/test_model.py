"""The handwritten Qwen3.5 against transformers, and what goes into and comes out of a checkpoint folder."""

import importlib.util
import json
import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

import model as qwen
from lib import logprobs
from lib.delta import delta_chunked
from lib.lora import add_lora
from lib.packed import Packed

torch.set_num_threads(1)  # matrices this small only lose by waiting for a second thread
VOCAB = 97


def text_config(seed: int) -> dict:
    """A random small architecture: head ratios, sizes and conv width that released models do not have,
    too."""
    r = random.Random(seed)
    heads, key_heads = r.choice([2, 4, 6]), r.choice([1, 2, 3])
    head_dim = r.choice([16, 32])
    rotary = head_dim // 4
    return {
        "vocab_size": VOCAB,
        "hidden_size": r.choice([32, 48, 56]),
        "intermediate_size": r.choice([40, 72]),
        "num_hidden_layers": r.choice([4, 5]),
        "num_attention_heads": heads,
        "num_key_value_heads": r.choice([h for h in (1, 2, 3) if heads % h == 0]),
        "head_dim": head_dim,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * r.choice([1, 2, 3]),
        "linear_key_head_dim": r.choice([8, 16]),
        "linear_value_head_dim": r.choice([8, 16, 24]),
        "linear_conv_kernel_dim": 2 + seed % 4,
        "tie_word_embeddings": seed % 2 == 1,
        "full_attention_interval": r.choice([2, 4]),
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": r.choice([1e4, 1e7]),
            "partial_rotary_factor": 0.25,
            "mrope_section": [rotary // 2 - 2 * (rotary // 8), rotary // 8, rotary // 8],
        },
    }


def theirs(seed: int):
    torch.manual_seed(seed)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**text_config(seed))).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from zeros and ones, where a wrong norm or bias would not show
            p += 0.05 * torch.randn_like(p)
    return model


@pytest.fixture(params=range(7))
def pair(request, tmp_path):
    hf = theirs(request.param)
    hf.save_pretrained(tmp_path / "hf")
    return hf, qwen.load(tmp_path / "hf", torch.float32), tmp_path


def worst(a, b):
    return (a - b).abs().max().item()


def per_token(logits_TV, row, temperature=1.0):
    """Log-probability of each token of a row but the first."""
    return (logits_TV[:-1] / temperature).log_softmax(-1).gather(-1, torch.tensor(row)[1:, None])[:, 0]


def test_parity_with_transformers(pair):
    """Logits, log-probs of packed rows and gradients, prefill + decode, greedy tokens, and back."""
    hf, ours, tmp_path = pair
    ids, lengths = torch.randint(0, VOCAB, (3, 131)), [131, 77, 5]  # odd, and across chunk borders
    with torch.no_grad():
        expected = hf(ids).logits
        assert worst(ours.logits(ours(ids)), expected) < 1e-4

        # rows of a cache that were filled with prompts of different lengths, then one token per row
        more = torch.randint(0, VOCAB, (3, 9))
        cache = ours.new_cache(3, 150)
        for i, n in enumerate(lengths):
            one = ours.new_cache(1, n)
            ours(ids[i : i + 1, :n], one)
            cache.copy_row(one, i)
        steps = torch.stack([ours.logits(ours(more[:, j : j + 1], cache)[:, 0]) for j in range(9)], 1)
        for i, n in enumerate(lengths):
            whole = hf(torch.cat([ids[i, :n], more[i]])[None]).logits[0, n:]
            assert worst(steps[i], whole) < 1e-4

        cache, token, greedy = ours.new_cache(1, 60), ids[:1, :21], []
        for _ in range(32):
            token = ours.logits(ours(token, cache)[:, -1]).argmax(-1, keepdim=True)
            greedy.append(token.item())
        peer = hf.generate(
            ids[:1, :21], max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert greedy == peer[0, 21:].tolist()

    rows = [row[:n] for row, n in zip(ids.tolist(), lengths)]
    logp = ours.token_logprobs(Packed(rows))[0]
    expected = torch.cat([per_token(hf(torch.tensor([row])).logits[0], row) for row in rows])
    assert worst(logp, expected) < 1e-4
    advantage = torch.cat([torch.full((n - 1,), a) for n, a in zip(lengths, (1.0, -0.5, 2.0))])
    (logp * advantage).sum().backward()
    (expected * advantage).sum().backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in hf.named_parameters()}
    # Sums that cancel (a decay's bias, over all tokens) keep fp32's rounding of their terms: hence the floor
    # of 1e-6.
    scale = torch.stack([g.norm() for g in gradients.values()]).norm()
    for name, p in ours.named_parameters():
        assert (p.grad - gradients[name]).norm() < 1e-3 * gradients[name].norm() + 1e-6 * scale, name

    qwen.save(ours, tmp_path / "ours")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(back(ids).logits, hf(ids).logits)


def test_checkpointing_and_compute_dtype_do_not_change_the_gradient():
    model = qwen.new(text_config(2) | {"model_type": "qwen3_5_text"}, seed=1)
    ids, grads = torch.randint(0, VOCAB, (2, 70)), []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model.token_logprobs(Packed(ids.tolist()))[0].sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_rows_of_a_packed_batch_do_not_see_each_other():
    model = qwen.new(text_config(4) | {"model_type": "qwen3_5_text"})
    rows = [torch.randint(0, VOCAB, (n,)).tolist() for n in (40, 11, 23)]
    others = [torch.randint(0, VOCAB, (40,)).tolist(), list(rows[1]), torch.randint(0, VOCAB, (23,)).tolist()]

    def second(rows):
        batch = Packed(rows)
        return model.token_logprobs(batch)[0].split(batch.counts)[1]

    assert torch.equal(second(rows), second(others))
    others[1][3] = (rows[1][3] + 1) % VOCAB  # and the comparison above can fail
    assert not torch.equal(second(rows), second(others))


def test_starts_ask_for_the_ends_of_rows_alone():
    model = qwen.new(text_config(4) | {"model_type": "qwen3_5_text"})
    rows = [torch.randint(0, VOCAB, (n,)).tolist() for n in (9, 30, 30, 4)]
    whole, part = Packed(rows), Packed(rows, [3, 29, 30, 1])
    assert part.counts == [6, 1, 0, 3] and whole.counts == [8, 29, 29, 3]
    for all_, some in zip(model.token_logprobs(whole, 0.8), model.token_logprobs(part, 0.8)):
        tails = [x[len(x) - n :] for x, n in zip(all_.split(whole.counts), part.counts)]
        assert torch.allclose(some, torch.cat(tails), atol=1e-6)


def test_equally_long_rows_are_packed_and_unpacked_without_a_copy():
    config = qwen.ModelConfig.from_hf(text_config(4) | {"model_type": "qwen3_5_text"})
    x = torch.randn(24, 2, 3)
    for lengths in ([24], [8, 8, 8]):
        rows = qwen.Rows(lengths, config, x.device)
        there = rows.unpack(x)
        assert there.shape == (len(lengths), lengths[0], 2, 3)
        assert there.data_ptr() == x.data_ptr() == rows.pack(there).data_ptr()
    rows = qwen.Rows([5, 12, 7], config, x.device)
    there = rows.unpack(x)
    assert there[0, 5:].eq(0).all() and torch.equal(there[1], x[5:17]) and torch.equal(rows.pack(there), x)


def test_the_text_config_wins_over_the_keys_around_it():
    flat = text_config(2) | {"model_type": "qwen3_5_text"}
    inner = flat | {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    config = qwen.ModelConfig.from_hf(flat | {"text_config": inner, "tie_word_embeddings": True})
    assert config.layer_types == ["linear_attention"] and config.tie_word_embeddings


@pytest.mark.parametrize(
    "rows, starts, says",
    [([[1], []], None, "row 1 of 0 tokens"), ([[1, 2]], [0], "starts at 0"), ([[1, 2]], [3], "starts at 3")],
)
def test_impossible_batches_say_what_is_wrong(rows, starts, says):
    with pytest.raises(ValueError, match=says):
        Packed(rows, starts)


def delta_by_hand(q, k, v, g, beta):
    """The gated delta rule, token by token in float64 (arXiv 2412.06464, equation 10); q, k as many heads as
    v."""
    B, T, H, dk = k.shape
    S, out = torch.zeros(B, H, dk, v.shape[-1], dtype=torch.float64), []
    for t in range(T):
        S = S * g[:, t, :, None, None].exp()
        read = torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - read))
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(out, 1), S


@pytest.mark.parametrize(
    "decay", [0.05, 30.0], ids=["long memory", "strong decay, where exp of a difference overflows"]
)
@pytest.mark.parametrize("dk", [8, 40, 70], ids=["chunks of 16", "chunks of 40", "chunks of 64"])
def test_delta_rule_against_float64(decay, dk):
    torch.manual_seed(0)
    B, T, Hk, r, dv = 2, 150, 2, 3, 5
    q, k = (F.normalize(torch.randn(B, T, Hk, dk), dim=-1) for _ in range(2))
    v, g, beta = torch.randn(B, T, Hk * r, dv), -decay * torch.rand(B, T, Hk * r), torch.rand(B, T, Hk * r)
    inputs = [x.requires_grad_() for x in (q, k, v, g, beta)]
    o, state = delta_chunked(*inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    o64, state64 = delta_by_hand(*(x.repeat_interleave(r, 2) for x in exact[:2]), *exact[2:])
    assert worst(o, o64) < 1e-5 and worst(state, state64) < 1e-5
    weight = torch.randn_like(o)
    (o * weight).sum().backward()
    (o64 * weight).sum().backward()
    for x, y in zip(inputs, exact):
        assert (x.grad - y.grad).norm() < 1e-4 * y.grad.norm() + 1e-6


@pytest.mark.parametrize("tied", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_against_cross_entropy(tied, temperature, monkeypatch):
    monkeypatch.setattr(logprobs, "LOGIT_CHUNK", 16)  # several chunks, the last one not full
    model = qwen.new(text_config(tied) | {"model_type": "qwen3_5_text"})
    ids = torch.randint(0, VOCAB, (2, 45))
    logp, entropy = model.token_logprobs(Packed(ids.tolist()), temperature)
    hidden = model(ids)[:, :-1].flatten(0, 1)
    head = model.embed_tokens.weight if tied else model.lm_head.weight
    nll = F.linear_cross_entropy(hidden / temperature, head, ids[:, 1:].flatten(), reduction="none")
    assert worst(logp, -nll) < 1e-5
    full = torch.log_softmax(model.logits(model(ids)[:, :-1]) / temperature, -1)
    assert worst(entropy, -(full.exp() * full).sum(-1).flatten()) < 1e-5
    weight = torch.randn_like(logp)
    ours = torch.autograd.grad((logp * weight).sum(), list(model.parameters()))
    naive = torch.autograd.grad((-nll * weight).sum(), list(model.parameters()))
    for a, b in zip(ours, naive):
        assert (a - b).norm() < 1e-4 * b.norm() + 1e-7


def test_gradient_of_a_token_that_was_certain_survives_bf16():
    """p - 1 of a likely target is small: formed after rounding to bf16 it would be zero, or twice too
    large."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(4, 8, generator=g).bfloat16()
    h = (0.6 * W[2:3]).requires_grad_()
    z = (h.detach().double() @ W.double().t())[0]
    target = z.argmax()
    assert 1e-4 < 1 - z.softmax(-1)[target] < 2e-3, (
        "a case where bf16, with steps of 4e-3 below one, sees no difference"
    )
    (dh,) = torch.autograd.grad(logprobs.LogProbs.apply(h, W, target[None], 1.0)[0].sum(), h)
    exact = (F.one_hot(target, 4) - z.softmax(-1)) @ W.double()
    assert (dh.double() - exact).norm() < 0.02 * exact.norm()


# ---- folders


def multimodal(tmp_path, shards: bool):
    """A multimodal checkpoint as released: language weights under model.language_model., beside the vision
    tower, and a multi-token-prediction head that transformers itself ignores."""
    torch.manual_seed(0)
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 4,
        "num_position_embeddings": 16,
    }
    config = Qwen3_5Config(
        text_config=text_config(2) | {"hidden_size": 48}, vision_config=vision, tie_word_embeddings=False
    )
    hf = Qwen3_5ForConditionalGeneration(config).eval()
    hf.save_pretrained(tmp_path / "hf", **({"max_shard_size": "60KB"} if shards else {}))
    extra = {"mtp.fc.weight": torch.randn(4, 6).bfloat16(), "mtp.norm.weight": torch.randn(6)}
    if shards:
        index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
        save_file(extra, tmp_path / "hf/mtp.safetensors", metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(extra, "mtp.safetensors")
        (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    else:
        tensors = load_file(tmp_path / "hf/model.safetensors") | extra
        save_file(tensors, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "hf/preprocessor_config.json").write_text('{"kept": true}')
    return hf


def all_tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("shards", [False, True])
def test_multimodal_checkpoint_keeps_what_is_not_ours(tmp_path, shards):
    hf = multimodal(tmp_path, shards)
    ours = qwen.load(tmp_path / "hf", torch.float32)
    ids = torch.randint(0, VOCAB, (1, 30))
    with torch.no_grad():
        assert worst(ours.logits(ours(ids)), hf(input_ids=ids).logits) < 1e-4
        ours.layers[0].mlp.up_proj.weight.mul_(1.5)  # training happened
        qwen.save(ours, tmp_path / "ours", shard_bytes=50_000 if shards else 5 << 30)
        before, after = all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "ours")
        assert before.keys() == after.keys()
        changed = [
            k for k in before if before[k].dtype != after[k].dtype or not torch.equal(before[k], after[k])
        ]
        assert changed == ["model.language_model.layers.0.mlp.up_proj.weight"]
        assert (tmp_path / "ours/preprocessor_config.json").exists()
        assert (
            len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
            if shards
            else (tmp_path / "ours/model.safetensors").exists()
        )
        back = Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=torch.float32)
        assert worst(ours.logits(ours(ids)), back(input_ids=ids).logits) < 1e-4
        assert worst(hf(input_ids=ids).logits, back(input_ids=ids).logits) > 1e-3


def test_bf16_export_keeps_decays_in_fp32(tmp_path):
    model = qwen.new(text_config(3) | {"model_type": "qwen3_5_text"})
    qwen.save(model, tmp_path / "m", torch.bfloat16)
    for name, tensor in load_file(tmp_path / "m/model.safetensors").items():
        assert tensor.dtype == (torch.float32 if name.endswith(qwen.KEEP_FP32) else torch.bfloat16), name
    ids = torch.randint(0, VOCAB, (1, 30))
    again = qwen.load(tmp_path / "m", torch.float32)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        assert worst(again.logits(again(ids)), hf(ids).logits) < 1e-4


def test_lora_merged_is_base_plus_adapter(tmp_path):
    model = qwen.new(text_config(2) | {"model_type": "qwen3_5_text"})
    ids = torch.randint(0, VOCAB, (2, 33))
    with torch.no_grad():
        base = model.logits(model(ids))
    added = add_lora(model, 4, 8.0)
    with torch.no_grad():
        assert torch.equal(model.logits(model(ids)), base)  # B = 0: nothing changed yet
    model.token_logprobs(Packed(ids.tolist()))[0].sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} <= {id(p) for p in added}
    assert sum(p.grad.abs().sum() for p in added) > 0
    with torch.no_grad():
        for p in added:
            p += 0.1 * torch.randn_like(p)
        adapted = model.logits(model(ids))
        assert worst(adapted, base) > 1e-2
        qwen.save(model, tmp_path / "merged")
        merged = qwen.load(tmp_path / "merged", torch.float32)
        assert worst(merged.logits(merged(ids)), adapted) < 1e-4
        hf = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        assert worst(hf(ids).logits, adapted) < 1e-4


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("kind", ["text", "multimodal"])
def test_peft_loads_the_adapter(tmp_path, kind, recwarn):
    """On top of a base that is open already, and by the adapter's folder alone: peft picks the base's class
    itself."""
    from peft import AutoPeftModelForCausalLM, PeftModel

    if kind == "multimodal":
        base = multimodal(tmp_path, False)
    else:
        base = theirs(2)
        base.save_pretrained(tmp_path / "hf")
    model = qwen.load(tmp_path / "hf", torch.float32)
    ids = torch.randint(0, VOCAB, (1, 30))
    with torch.no_grad():
        before = base(input_ids=ids).logits
        for p in add_lora(model, 3, 6.0):
            p += 0.1 * torch.randn_like(p)
        ours = model.logits(model(ids))
        qwen.save_adapter(model, tmp_path / "adapter", str(tmp_path / "hf"))
        alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
        for peer in (alone, adapted):
            logits = peer.eval()(input_ids=ids).logits
            assert worst(logits, ours) < 1e-4 and worst(logits, before) > 1e-2
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]


# ---- bad input: one sentence that names the place and the cure


@pytest.fixture
def folder(tmp_path):
    qwen.save(qwen.new(text_config(1) | {"model_type": "qwen3_5_text"}), tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("share", [0.5, 0.001], ids=["in the tensors", "in the header"])
@pytest.mark.parametrize("shards", [False, True])
def test_truncated_safetensors(tmp_path, share, shards):
    qwen.save(
        qwen.new(text_config(1) | {"model_type": "qwen3_5_text"}),
        tmp_path / "m",
        shard_bytes=40_000 if shards else 5 << 30,
    )
    file = sorted((tmp_path / "m").glob("*.safetensors"))[-1]
    with open(file, "r+b") as f:
        f.truncate(int(file.stat().st_size * share))
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        qwen.load(tmp_path / "m")


def test_missing_and_misshapen_tensors(folder):
    tensors = load_file(folder / "model.safetensors")
    up = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != up}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"lacks the tensor {up}"):
        qwen.load(folder)
    save_file(tensors | {up: tensors[up][:3].clone()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not belong together"):
        qwen.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        qwen.load(folder)


@pytest.mark.parametrize(
    "layers, match",
    [
        (3, r"holds the tensor model.layers.[34]\..*has no place"),
        (6, r"lacks the tensor model.layers.[45]\."),
    ],
)
def test_config_with_another_number_of_layers(folder, layers, match):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match=match):
        qwen.load(folder)


@pytest.mark.parametrize("same", [True, False])
def test_tied_in_the_config_while_the_file_holds_a_head(folder, tmp_path, same):
    """An equal duplicate is what some exports write; another head would be ignored in silence."""
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[3, 1] += 0.0 if same else 1e-3
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    if not same:
        with pytest.raises(ValueError, match="tie_word_embeddings, but lm_head.weight differs"):
            qwen.load(folder)
        return
    model = qwen.load(folder, torch.float32)
    with torch.no_grad():
        model.embed_tokens.weight += 1.0
    qwen.save(model, tmp_path / "again")  # still held twice, and still the same
    again = load_file(tmp_path / "again/model.safetensors")
    assert torch.equal(again["lm_head.weight"], again["model.embed_tokens.weight"])
    assert torch.equal(again["lm_head.weight"], head + 1.0)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"layer_types": ["full_attention"]}, "but 1 layer_types"),
        ({"layer_types": ["sliding_attention"] * 5}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"rope_parameters": {}}, "rope_theta"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_config_of_another_architecture(folder, change, match):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=match):
        qwen.load(folder)


def test_what_is_not_a_checkpoint_folder(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no/such is not a local folder"
    ):  # HF_HUB_OFFLINE is set for all tests
        qwen.load("no/such")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        qwen.load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        qwen.load(tmp_path / "empty")
