"""Qwen3.5, handwritten: the text model behind every story in this repository.

Three of four layers are Gated DeltaNet (arXiv 2412.06464): per head a matrix of fast weights that forgets (g)
and overwrites (beta) as it reads, so that a token costs the same at position 100 and at position 100,000. The
fourth is gated full attention with a key/value cache. Between them are RMSNorm (zero-centred) and SwiGLU,
nothing else.

Two code paths compute the same numbers: whole sequences in chunks (training, prefill) and one token per row
from a `Cache` (decoding). Parameters carry Hugging Face's names, so load and save are near the identity.

    model = load("Qwen/Qwen3.5-9B", torch.bfloat16, "cuda")   # or a folder
    logp, entropy = model.token_logprobs(Packed(rows))        # rows of ids; the trainer differentiates this

Dimensions: B rows, T tokens of the longest row, N tokens of all rows, M of them with a log-probability, D
hidden size, V vocabulary. Lengths of rows are lists on the host, so no call waits for a GPU to tell them.

Left out: the vision tower and the multi-token-prediction head (passed through on save), dropout, rope
scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lib import huggingface, lora, parallel
from lib.delta import causal_conv, delta_chunked, delta_step, l2norm
from lib.logprobs import LogProbs
from lib.packed import Packed, send

PREFIXES = ("model.language_model.", "model.")  # of the text model, in multimodal and text-only checkpoints
KEEP_FP32 = ("A_log", "linear_attn.norm.weight")  # rounding these alone moves logits visibly
RELEASED = "take it from the folder of a released Qwen3.5 model"


@dataclass
class ModelConfig:
    """The part of a Qwen3.5 `config.json` that the text model needs. Released values, not class defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    layer_types: list[str]
    rope_theta: float
    rotary_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int

    @staticmethod
    def from_hf(config: dict) -> ModelConfig:
        """Reads a Hugging Face config: text-only, or multimodal with `text_config`. ValueError: what this
        file does not implement, which would otherwise show as slightly wrong logits much later."""
        text = config.get("text_config", config)
        values = {"model_type": None, "rope_type": "default", "hidden_act": "silu", "attention_bias": False}
        values |= {"num_hidden_layers": 0, "full_attention_interval": 4, "partial_rotary_factor": 0.25}
        values |= {"tie_word_embeddings": False, "max_position_embeddings": 262144}
        values |= config | text | (text.get("rope_parameters") or text.get("rope_scaling") or {})
        values["tie_word_embeddings"] = config.get("tie_word_embeddings", values["tie_word_embeddings"])
        n, interval = values["num_hidden_layers"], values["full_attention_interval"]
        usual = ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(n)]
        types = values["layer_types"] = values.get("layer_types") or usual
        other = set(types) - {"full_attention", "linear_attention"}
        kind, rope, act = (values[name] for name in ("model_type", "rope_type", "hidden_act"))
        for is_wrong, why in (
            (kind not in ("qwen3_5", "qwen3_5_text"), f"model_type {kind!r}, not qwen3_5 or qwen3_5_text"),
            (rope != "default", f"rope_type {rope!r}; only plain RoPE works here"),
            (len(types) != n, f"num_hidden_layers {n} but {len(types)} layer_types"),
            (other, f"layer_types {sorted(other)}; only full_attention and linear_attention work here"),
            (values["attention_bias"], "attention_bias, which no released Qwen3.5 has"),
            (act != "silu", f"hidden_act {act!r}, not silu"),
        ):
            if is_wrong:
                raise ValueError(f"config.json has {why}; {RELEASED}")
        values["rotary_dim"] = int(values.get("head_dim", 0) * values["partial_rotary_factor"])
        names = [f.name for f in fields(ModelConfig)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; {RELEASED}")
        return ModelConfig(**{name: values[name] for name in names})


# ---------------------------------------------------------------------------------------------------------
# Parts


Linear = partial(nn.Linear, bias=False)  # there is no bias anywhere in Qwen3.5


def rms_norm(x, weight, eps):
    if x.is_cuda:
        return F.rms_norm(x, x.shape[-1:], weight, eps)  # one kernel
    # Written out it is several times faster on a CPU than torch's own.
    return x * torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + eps) * weight


class Norm(nn.Module):
    """RMSNorm with a zero-centred weight (1 + w), computed in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).to(x.dtype)


class GatedNorm(nn.Module):
    """DeltaNet's own norm: plain weight, per head, then times silu(z), in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x, z):
        return (rms_norm(x.float(), self.weight.float(), self.eps) * F.silu(z.float())).to(z.dtype)


class DeltaNet(nn.Module):
    """Gated DeltaNet: project, mix the last few tokens (conv), write to and read the state, gate, project."""

    projections = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.Hk, self.Hv = c.linear_num_key_heads, c.linear_num_value_heads
        self.dk, self.dv = c.linear_key_head_dim, c.linear_value_head_dim
        self.key_dim, self.value_dim = self.Hk * self.dk, self.Hv * self.dv
        self.width = c.linear_conv_kernel_dim
        conv_dim = 2 * self.key_dim + self.value_dim
        self.in_proj_qkv = Linear(c.hidden_size, conv_dim)
        self.in_proj_z = Linear(c.hidden_size, self.value_dim)
        self.in_proj_b = Linear(c.hidden_size, self.Hv)
        self.in_proj_a = Linear(c.hidden_size, self.Hv)
        self.conv1d = nn.Module()
        self.conv1d.weight = nn.Parameter(torch.empty(conv_dim, 1, self.width))
        self.dt_bias = nn.Parameter(torch.ones(self.Hv))
        self.A_log = nn.Parameter(torch.zeros(self.Hv))
        self.norm = GatedNorm(self.dv, c.rms_norm_eps)
        self.out_proj = Linear(self.value_dim, c.hidden_size)

    def heads(self, qkv):
        """After the conv, in fp32: [..., conv_dim] -> unit q (scaled), k [..., Hk, dk], v [..., Hv, dv]."""
        qk, v = F.silu(qkv).float().split([2 * self.key_dim, self.value_dim], -1)
        q, k = l2norm(qk.unflatten(-1, (2, self.Hk, self.dk))).unbind(-3)
        return q * self.dk**-0.5, k, v.unflatten(-1, (self.Hv, self.dv))

    def forward(self, x, rows, memory):
        qkv, z, b, a = project(self, x)
        beta = b.float().sigmoid()
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        mix = self.step if rows.decoding else self.scan
        o = self.norm(mix(qkv, g, beta, rows, memory), z.unflatten(-1, (self.Hv, self.dv)))
        return self.out_proj(o.flatten(-2))

    def taps(self, dtype):
        return self.conv1d.weight[:, 0].t().contiguous().to(dtype)  # [width, conv_dim]

    def scan(self, qkv, g, beta, rows, memory):
        """Whole rows, packed [N, ...] -> o [N, Hv, dv]; fills `memory`, from which decoding goes on."""
        qkv, g, beta = rows.unpack(qkv), rows.unpack(g), rows.unpack(beta)
        if rows.real is not None:  # padding neither decays nor writes
            g, beta = g * rows.real, beta * rows.real
        padded = F.pad(qkv, (0, 0, self.width - 1, 0))
        q, k, v = self.heads(causal_conv(padded, self.taps(qkv.dtype)))
        with torch.autocast(qkv.device.type, enabled=False):  # the state stays fp32 whatever the rest does
            o, state = delta_chunked(q, k, v, g, beta)
        if memory is not None:
            memory[0].copy_(padded[:, qkv.shape[1] :])
            memory[1].copy_(state)
        return rows.pack(o)

    def step(self, qkv, g, beta, rows, memory):
        """One token per row, [B, ...] -> o [B, Hv, dv]; `memory` (conv window, state) moves on by it."""
        conv, state = memory
        window = torch.cat([conv, qkv[:, None]], 1)  # [B, width, conv_dim]
        conv.copy_(window[:, 1:])
        q, k, v = self.heads((window * self.taps(qkv.dtype)).sum(1))
        return delta_step(q, k, v, g, beta, state)


class Attention(nn.Module):
    """Full attention: grouped queries, per-head q/k norm, rotary on the first dims, sigmoid gate."""

    projections = ("q_proj", "k_proj", "v_proj")

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.H, self.Hkv = c.num_attention_heads, c.num_key_value_heads
        self.hd, self.rot = c.head_dim, c.rotary_dim
        self.q_proj = Linear(c.hidden_size, 2 * self.H * self.hd)  # queries come with their gates
        self.k_proj = Linear(c.hidden_size, self.Hkv * self.hd)
        self.v_proj = Linear(c.hidden_size, self.Hkv * self.hd)
        self.o_proj = Linear(self.H * self.hd, c.hidden_size)
        self.q_norm, self.k_norm = Norm(self.hd, c.rms_norm_eps), Norm(self.hd, c.rms_norm_eps)

    def rotate(self, x, cos, sin):
        # Halves, not pairs: dim i turns with dim i + rot/2; dims beyond rot pass.
        a, b, rest = x.float().split([self.rot // 2, self.rot // 2, self.hd - self.rot], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).to(x.dtype)

    def forward(self, x, rows, memory):
        qg, k, v = (y.unflatten(-1, (-1, self.hd)) for y in project(self, x))
        q, gate = qg.unflatten(-2, (self.H, 2)).unbind(-2)  # they alternate per head
        q = self.rotate(self.q_norm(q), rows.cos, rows.sin)
        k = self.rotate(self.k_norm(k), rows.cos, rows.sin)
        o = (self.step if rows.decoding else self.scan)(q, k, v, rows, memory)
        return self.o_proj((o * gate.sigmoid()).flatten(-2))

    def scan(self, q, k, v, rows, memory):
        """Whole rows, packed [N, heads, hd] -> [N, H, hd]."""
        q, k, v = (rows.unpack(t).transpose(1, 2) for t in (q, k, v))
        if memory is not None:
            memory[0][:, :, : k.shape[2]], memory[1][:, :, : k.shape[2]] = k, v
        # Padding is right of every real token, so the causal mask hides it already.
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return rows.pack(o.transpose(1, 2))

    def step(self, q, k, v, rows, memory):
        """One query per row against its cache -> [B, H, hd], as two plain products: query heads that share
        keys read them once, as far as the longest row reaches; shorter rows hide what lies beyond."""
        for buffer, new in zip(memory, (k, v)):
            buffer[rows.index, :, rows.start] = new
        B, L, r = len(q), rows.hidden.shape[-1], self.H // self.Hkv
        K, V = (c[:, :, :L].flatten(0, 1) for c in memory)  # [B * Hkv, L, hd]
        score = torch.bmm((q * self.hd**-0.5).view(B * self.Hkv, r, self.hd), K.transpose(1, 2))
        p = score.float().view(B, self.H, L).masked_fill(rows.hidden, -math.inf).softmax(-1).to(q.dtype)
        return torch.bmm(p.view(B * self.Hkv, r, L), V).view(B, self.H, self.hd)


class MLP(nn.Module):
    """SwiGLU."""

    projections = ("gate_proj", "up_proj")

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        gate, up = project(self, x)
        return self.down_proj(F.silu(gate) * up)


def project(module, x):
    """x through each of the module's projections: as one product where a replica holds them side by side."""
    parts = [getattr(module, name) for name in module.projections]
    if fused := getattr(module, "fused", None):
        return fused(x).split([len(part.weight) for part in parts], -1)
    return [part(x) for part in parts]


class Block(nn.Module):
    def __init__(self, c: ModelConfig, kind: str):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.kind = kind
        if kind == "full_attention":
            self.self_attn = Attention(c)
        else:
            self.linear_attn = DeltaNet(c)
        self.mlp = MLP(c)

    def forward(self, x, rows, memory=None):
        mixer = self.self_attn if self.kind == "full_attention" else self.linear_attn
        x = x + mixer(self.input_layernorm(x), rows, memory)
        return x + self.mlp(self.post_attention_layernorm(x))


# ---------------------------------------------------------------------------------------------------------
# Where rows begin and end, and what decoding remembers


class Rows:
    """Where rows begin and end in a batch of packed tokens [N]. Token mixers see one padded row each,
    everything else runs on packed tokens. Nothing leaks from one row to the next, because conv, recurrence
    and attention only ever see them unpacked to [B, T]. Where all rows are equally long, packed and unpacked
    are views of each other."""

    decoding = False

    def __init__(self, lengths: list[int], config: ModelConfig, device):
        self.shape = B, T = len(lengths), max(lengths)
        positions = torch.cat([torch.arange(n) for n in lengths])
        self.place = self.real = None
        if min(lengths) < T:
            place = torch.cat([torch.arange(i * T, i * T + n) for i, n in enumerate(lengths)])
            real = torch.arange(T) < torch.tensor(lengths)[:, None]
            self.place = send(place, device)  # [N], into B * T
            self.real = send(real, device)[..., None]  # [B, T, 1]
        self.cos, self.sin = rotary(send(positions, device), config)

    def unpack(self, x):
        if self.place is not None:
            B, T = self.shape
            x = x.new_zeros(B * T, *x.shape[1:]).index_copy(0, self.place, x)
        return x.unflatten(0, self.shape)

    def pack(self, x):
        x = x.flatten(0, 1)
        return x if self.place is None else x.index_select(0, self.place)


class Step:
    """What Rows is for whole sequences, for one token per row: where it is, what attention must not see."""

    decoding = True

    def __init__(self, cache: Cache):
        self.index, self.start = cache.index, cache.lengths
        self.cos, self.sin = (table[cache.lengths] for table in cache.rotary)
        self.hidden = (cache.positions[: cache.extent] > cache.lengths[:, None])[:, None]  # [B, 1, extent]


def rotary(positions, config):
    """cos and sin [..., 1, rotary_dim / 2] of these positions, broadcast over heads."""
    half = torch.arange(0, config.rotary_dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions[..., None].float() * config.rope_theta ** (-half / config.rotary_dim)
    return angle.cos().unsqueeze(-2), angle.sin().unsqueeze(-2)


class Cache:
    """What decoding remembers of `rows` sequences: keys and values of the full-attention layers up to
    max_len, conv window and fp32 state of the others. All buffers keep their addresses, so a CUDA graph may
    be captured over them.

    lengths [B], on the device: tokens written so far. extent, on the host: how many positions attention
    reads, at least max(lengths) + 1.
    """

    def __init__(self, config: ModelConfig, rows: int, max_len: int, dtype, device):
        c = config
        self.max_len, self.extent = max_len, 0
        self.index, self.positions = torch.arange(rows, device=device), torch.arange(max_len, device=device)
        self.rotary = rotary(self.positions, c)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        heads, dk, dv = c.linear_num_value_heads, c.linear_key_head_dim, c.linear_value_head_dim
        conv_dim = 2 * c.linear_num_key_heads * dk + heads * dv
        kv, conv = (c.num_key_value_heads, max_len, c.head_dim), (c.linear_conv_kernel_dim - 1, conv_dim)
        shapes = {
            "full_attention": ((kv, dtype), (kv, dtype)),
            "linear_attention": ((conv, dtype), ((heads, dk, dv), torch.float32)),
        }
        self.layers = [
            tuple(torch.zeros(rows, *shape, dtype=of, device=device) for shape, of in shapes[kind])
            for kind in c.layer_types
        ]

    def copy_row(self, source: Cache, row: int):
        """The first row of another, not longer cache becomes this row."""
        for mine, theirs in zip(self.layers, source.layers):
            for a, b in zip(mine, theirs):
                a[row, :, : b.shape[2]] = b[0]  # keys and values are as long as the source, the rest as here
        self.lengths[row] = source.lengths[0]
        self.extent = max(self.extent, source.extent)


def cache_bytes(config: ModelConfig, tokens: int, dtype) -> tuple[int, int]:
    """Bytes of one row of a cache: (states and windows of any length, keys and values of `tokens`)."""
    found = dict.fromkeys(("linear_attention", "full_attention"), 0)
    cache = Cache(config, 1, tokens, dtype, torch.device("meta"))
    for kind, layer in zip(config.layer_types, cache.layers):
        found[kind] += sum(t.nbytes for t in layer)
    return tuple(found.values())


# ---------------------------------------------------------------------------------------------------------
# The model


class Qwen35(nn.Module):
    """model(ids_BT, cache=None) -> hidden [B, T, D], normed, ready for `logits`.

    With a cache, the first call is the prefill (an empty cache) and every further call decodes one token per
    row. Rows of different lengths go through `token_logprobs`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Module()
        self.embed_tokens.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, kind) for kind in config.layer_types)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.checkpointing = False  # recompute each block in the backward pass: the memory of one block
        self.compiled = None  # `blocks`, compiled for decoding (see rollout.replica)
        self.hf_config = None  # the raw config.json, written back as it came
        self.source = None  # the folder the weights came from, for what is passed through on save
        self.prefix = "model."  # how that folder names the text model

    def forward(self, ids_BT, cache: Cache | None = None):
        B, T = ids_BT.shape
        decoding = cache is not None and cache.extent > 0
        if cache is not None:
            cache.extent += T
        rows = Step(cache) if decoding else Rows([T] * B, self.config, ids_BT.device)
        blocks = self.compiled if decoding and self.compiled else self.blocks
        hidden = blocks(ids_BT.flatten(), rows, cache.layers if cache is not None else None)
        if cache is not None:
            cache.lengths += T
        return hidden.view(B, T, -1)

    def blocks(self, ids_N, rows, memories=None):
        x = F.embedding(ids_N, self.embed_tokens.weight)
        for block, memory in zip(self.layers, memories or [None] * len(self.layers)):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rows, memory, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rows, memory)
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)

    def token_logprobs(self, batch: Packed, temperature: float = 1.0):
        """log p(token | the tokens before it in its row) at `temperature`, and the entropy of that
        distribution (no gradient) -> logp [M], entropy [M], fp32, row after row: `logp.split(batch.counts)`
        are the rows."""
        head = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        ids, sources, targets = (send(x, head.device) for x in (batch.ids, batch.sources, batch.targets))
        hidden = self.blocks(ids, Rows(batch.lengths, self.config, head.device))
        return LogProbs.apply(hidden.index_select(0, sources), head, targets, temperature)

    def new_cache(self, rows: int, max_len: int) -> Cache:
        weight = self.embed_tokens.weight
        return Cache(self.config, rows, max_len, weight.dtype, weight.device)


def count(hf_config: dict, lora_rank: int = 0) -> tuple[int, int]:
    """(frozen, trained) parameters of a model of this config: with LoRA its pairs alone are trained."""
    with torch.device("meta"):
        model = Qwen35(ModelConfig.from_hf(hf_config))
    total = sum(p.numel() for p in model.parameters())
    return (total, sum(p.numel() for p in lora.add_lora(model, lora_rank, 1))) if lora_rank else (0, total)


def new(hf_config: dict, seed: int = 0) -> Qwen35:
    """A random model for a Hugging Face config: normal(0, 0.02), memories of one to some thousand tokens."""
    model = Qwen35(ModelConfig.from_hf(hf_config))
    model.hf_config = hf_config
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.data.uniform_(1, 16, generator=generator).log_()
        elif name.endswith("dt_bias"):  # softplus of it spread log-uniformly over 0.001..0.1, as in Mamba-2
            dt = torch.exp(torch.empty_like(p).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
            p.data.copy_(dt + torch.log(-torch.expm1(-dt)))
        elif p.dim() > 1:
            p.data.normal_(0, 0.02 if "conv1d" not in name else 0.3, generator=generator)
    return model


def empty(config: ModelConfig, dtype, device) -> Qwen35:
    """A model whose weights are yet to be written, without ever holding them in another dtype or place."""
    with torch.device("meta"):
        model = Qwen35(config)
    for name, p in model.named_parameters():
        p.data = p.data.to(dtype_of(name, dtype))
    parallel.materialise(model, device)
    return model


def dtype_of(name: str, dtype):
    return torch.float32 if name.endswith(KEEP_FP32) else dtype


def arrange(hf_config: dict, device, half: bool, shards: int, pairs: tuple[int, float, int]) -> Qwen35:
    """A policy as it is trained, its weights yet to be read: fp32, in `shards` (0: whole) with products in
    bf16 where `half`; or, where the rank of `pairs` (rank, alpha, seed) is not 0, a frozen base, bf16 where
    `half`, with LoRA pairs."""
    dtype = torch.bfloat16 if half and pairs[0] else torch.float32
    model = empty(ModelConfig.from_hf(hf_config), dtype, "meta" if shards else device)
    if pairs[0]:
        lora.add_lora(model, *pairs)
    if shards:
        how = {"whole": KEEP_FP32, "methods": ("token_logprobs",)}
        parallel.shard(model, model.layers, device, bf16=half, shards=shards, **how)
    return model


# ---------------------------------------------------------------------------------------------------------
# Hugging Face checkpoints


def load(path_or_repo, dtype=torch.bfloat16, device="cpu") -> Qwen35:
    """A Qwen3.5 checkpoint from a folder or the hub: one file or shards, text-only or multimodal names.

    FileNotFoundError: nothing there. ValueError: another architecture, a missing or damaged tensor, a wrong
    shape, a config.json that disagrees with the weights.
    """
    folder = huggingface.fetch(path_or_repo)
    hf_config = huggingface.read_config(folder)
    return read(empty(ModelConfig.from_hf(hf_config), dtype, device), folder)


@torch.no_grad()
def read(model: Qwen35, folder: Path) -> Qwen35:
    """The weights in `folder` written into `model`, tensor by tensor; of a sharded one each process keeps its
    part. Raises what `load` raises."""
    model.hf_config, model.source = huggingface.read_config(folder), folder
    tensors = huggingface.open_tensors(folder)
    model.prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in tensors), "model.")
    places = {key_of(model, name): p.data for name, p in model.named_parameters() if ".lora_" not in name}
    huggingface.check_names(folder, tensors, places, model.prefix + "layers.")
    if model.lm_head is None and "lm_head.weight" in tensors:
        tied = ("lm_head.weight", key_of(model, "embed_tokens.weight"))
        if not torch.equal(*(tensors[key].get_tensor(key) for key in tied)):
            wrong = f"config.json in {folder} says tie_word_embeddings, but {' differs from '.join(tied)}"
            raise ValueError(f"{wrong}; set tie_word_embeddings to false there")
    for key, place in places.items():
        tensor = tensors[key].get_tensor(key)
        if place.shape != tensor.shape:
            wrong = f"{key} is {tuple(tensor.shape)}, but config.json makes it {tuple(place.shape)}"
            raise ValueError(f"{wrong}; the two do not belong together")
        parallel.write(place, tensor)
    return model


def key_of(model: Qwen35, name: str) -> str:
    return name if name.startswith("lm_head") else model.prefix + name


def save(model: Qwen35, path, dtype=None, write: bool = True, shard_bytes: int = 5 << 30):
    """Writes a Hugging Face folder that transformers and vLLM load: weights under the names they came with,
    whatever else the source held (vision tower, MTP head, tokenizer, generation config) unchanged.

    dtype: what weights are stored in (None: as they are); A_log and the DeltaNet norms stay fp32. Where the
    model is sharded all processes call it (gathering is collective) and only the one with write=True touches
    the disk. The folder appears by rename.
    """
    tensors, stored = {}, dtype or model.embed_tokens.weight.dtype
    for name, tensor in lora.merged_tensors(model, partial(dtype_of, dtype=stored)):
        if write:
            tensors[key_of(model, name)] = tensor.to("cpu", copy=True)  # not a view of what was gathered
    if not write:
        return
    if model.source and model.lm_head is None and "lm_head.weight" in huggingface.open_tensors(model.source):
        # Tied, yet the source stores it twice: so do we.
        tensors["lm_head.weight"] = tensors[key_of(model, "embed_tokens.weight")].clone()
    config = huggingface.with_dtype(model.hf_config, stored)
    huggingface.write(path, tensors, config, model.source, shard_bytes)


def save_adapter(model: Qwen35, path, base: str):
    """The LoRA pairs in PEFT's format, to lie on top of the checkpoint `base`."""
    multimodal = "text_config" in model.hf_config
    name = (model.hf_config.get("architectures") or ["Qwen3_5ForConditionalGeneration"])[0]
    lora.save_adapter(model, path, base, model.prefix, name if multimodal else None)


if __name__ == "__main__":
    print(__doc__.partition("\n")[0])
    print("Imported by rollout.py and train.py; nothing runs here.")
    print('To let it write: python rollout.py --prompt "A lighthouse keeper finds a second moon" --words 120')
