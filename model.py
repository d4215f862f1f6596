"""Qwen3.5, handwritten: the text model behind every story in this repository.

Three of four layers are Gated DeltaNet (arXiv 2412.06464): a matrix of fast weights per head that forgets (g) and
overwrites (beta) as it reads, so that a token costs the same at position 100 and at position 100,000. The fourth is
gated full attention with a key/value cache. Between them RMSNorm (zero-centred) and SwiGLU, nothing else.

Two code paths compute the same numbers: whole sequences in chunks of 64 (training, prefill) and one token a row from
a `Cache` (decoding). Parameters carry Hugging Face's names, so load and save are near the identity; a decoder that
wants fewer, larger matrix products asks for `fused=True` and gets the same weights side by side.

    model = load("Qwen/Qwen3.5-9B", torch.bfloat16, "cuda")     # or a folder
    logp = model.token_logprobs(ids_BT, lengths)                # what the trainer differentiates

Left out: the vision tower and the multi-token-prediction head (passed through on save), dropout, rope scaling.
"""
from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

CHUNK = 64          # longest delta-rule chunk: large enough to be matrix products, small enough for one triangular solve
LOGIT_CHUNK = 512   # tokens whose logits exist at once: 0.5 GB in fp32 at the 9B's vocabulary
KEEP_LOGITS = 1 << 25  # up to so many (128 MB in fp32) are kept for the backward pass
KEEP_FP32 = ("A_log", "linear_attn.norm.weight")  # stored in fp32: rounding them alone moves logits visibly


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
    layer_types: tuple[str, ...]
    rope_theta: float
    rotary_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int

    @staticmethod
    def from_hf(config: dict) -> "ModelConfig":
        """Reads a Hugging Face config (text-only, or multimodal with `text_config`). ValueError: another architecture."""
        text = config.get("text_config", config)
        kind = text.get("model_type", config.get("model_type"))
        if kind not in ("qwen3_5", "qwen3_5_text"):
            raise ValueError(f"this checkpoint is a {kind!r} model; this code runs Qwen3.5 (model_type qwen3_5 or qwen3_5_text)")
        if kind == "qwen3_5" and "text_config" not in config:
            raise ValueError("config.json says qwen3_5 (multimodal) but has no text_config; take config.json from the original folder")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        partial = rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
        theta = rope.get("rope_theta", text.get("rope_theta"))
        n = text["num_hidden_layers"]
        interval = text.get("full_attention_interval", 4)
        types = text.get("layer_types") or ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(n)]
        # What this file does not implement must fail here, not as slightly wrong logits later.
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rope_type {rope['rope_type']!r} is not supported; only plain RoPE (rope_type default)")
        if theta is None:
            raise ValueError("config.json names no rope_theta; copy rope_parameters from the released config")
        if text.get("attention_bias"):
            raise ValueError("attention_bias is true in config.json; released Qwen3.5 models have none")
        if text.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act {text['hidden_act']!r} is not supported; Qwen3.5 uses silu")
        same = {f.name: text[f.name] for f in fields(ModelConfig) if f.name in text}
        tie = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        same |= dict(layer_types=tuple(types), rope_theta=float(theta), head_dim=head_dim, tie_word_embeddings=tie,
                     rotary_dim=int(head_dim * partial))
        same.setdefault("max_position_embeddings", 262144)
        missing = [f.name for f in fields(ModelConfig) if f.name not in same]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}; copy them from the released config")
        return ModelConfig(**same)


# ---------------------------------------------------------------------------------------------------------------------
# Parts

class Linear(nn.Module):
    """y = x W^T, and + scale * x A^T B^T once LoRA (arXiv 2106.09685) was added. No bias anywhere in Qwen3.5."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.lora_A = self.lora_B = None
        self.lora_scale = 0.0
        self.packed = False  # whether a CPU replica's weight also stands in the order that few rows read fastest (see rollout.pack)

    def forward(self, x):
        if self.packed:
            return (torch.ops.stories.packed_linear if torch.compiler.is_compiling() else packed_linear)(x, self.weight)
        y = F.linear(x, self.weight)
        if self.lora_A is not None:
            y = y + F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B).to(y.dtype) * self.lora_scale
        return y


def packed_linear(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight.packed, None, "none", [], "")


# An operator of its own, because a compiler cannot look into a packed tensor: it sees the plain weight that carries it.
LIBRARY = torch.library.Library("stories", "DEF")
LIBRARY.define("packed_linear(Tensor x, Tensor weight) -> Tensor")
LIBRARY.impl("packed_linear", packed_linear, "CPU")
LIBRARY.impl("packed_linear", lambda x, weight: x.new_empty(*x.shape[:-1], len(weight)), "Meta")


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


def l2norm(x):
    # The epsilon inside the root keeps the gradient finite at a zero vector.
    return x * torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] + 1e-6)


class Conv(torch.autograd.Function):
    """Causal depthwise conv, one pass a tap: padded [B, T + width - 1, C], taps [width, C] -> [B, T, C]. Autograd's own
    backward of these slices would fill and add a whole zero tensor for each of them."""

    @staticmethod
    def forward(ctx, padded, taps):
        ctx.save_for_backward(padded, taps)
        T = padded.shape[1] - len(taps) + 1
        y = padded[:, :T] * taps[0]
        for j in range(1, len(taps)):
            y.addcmul_(padded[:, j:j + T], taps[j])
        return y

    @staticmethod
    def backward(ctx, grad):
        padded, taps = ctx.saved_tensors
        T, product = grad.shape[1], torch.empty_like(grad)
        d_padded = torch.zeros_like(padded)
        for j in range(len(taps)):
            d_padded[:, j:j + T].addcmul_(grad, taps[j])
        return d_padded, torch.stack([torch.mul(padded[:, j:j + T], grad, out=product).sum((0, 1)) for j in range(len(taps))])


def delta_chunked(q, k, v, g, beta, state=None):
    """The gated delta rule over whole sequences, a chunk at a time, in fp32 (arXiv 2412.06464, section 3.3).

    q, k: [B, T, Hk, dk], unit length, q already scaled; v: [B, T, Hv, dv]; g (log decay, <= 0), beta: [B, T, Hv].
    state: [B, Hv, dk, dv] or None (zeros). Returns o [B, T, Hv, dv] and the state after the last token.
    A padded position with g = beta = 0 leaves the state untouched, which makes right padding exact.

    Within a chunk, with G the running sum of g and S the state before it, the written values solve
        (I + A) U = beta V - (beta K e^G) S,     A_ij = beta_i e^(G_i - G_j) k_i.k_j  for j < i
    so one triangular solve on [beta V | beta K e^G] gives U0 and W with U = U0 - W S, and
        S' = (e^(G_C) I - Kd^T W) S + Kd^T U0,   Kd = K e^(G_C - G)
    is one affine map a chunk: the only sequential part. Key heads are never repeated: r = Hv / Hk value heads share one.
    """
    B, T, Hk, dk = k.shape
    Hv, dv, r = v.shape[2], v.shape[3], v.shape[2] // k.shape[2]
    C = min(CHUNK, max(16, dk))  # about as long as a key is wide, so that what grows with either weighs the same
    pad = -T % C
    n = (T + pad) // C
    q, k, v, g, beta = (F.pad(x.float(), (0, 0) * (x.dim() - 2) + (0, pad)) if pad else x.float() for x in (q, k, v, g, beta))
    q, k = (x.view(B, n, C, Hk, 1, dk).permute(0, 3, 4, 1, 2, 5) for x in (q, k))              # [B, Hk, 1, n, C, dk]
    v = v.view(B, n, C, Hk, r, dv).permute(0, 3, 4, 1, 2, 5)                                  # [B, Hk, r, n, C, dv]
    g, beta = (x.view(B, n, C, Hk, r).permute(0, 3, 4, 1, 2) for x in (g, beta))               # [B, Hk, r, n, C]

    G = g.cumsum(-1)
    # Mask before exp: above the diagonal the difference is positive and would overflow, and inf * 0 poisons gradients.
    above = torch.full((C, C), -math.inf, device=G.device).triu(1)
    decay = (G[..., :, None] + (-G)[..., None, :]).add_(above).exp_()
    A = (k @ k.transpose(-1, -2)) * decay * beta[..., None]
    right = torch.cat([v * beta[..., None], k * (beta * G.exp())[..., None]], -1)
    U0, W = torch.linalg.solve_triangular(A, right, upper=False, unitriangular=True).split([dv, dk], -1)
    last = G[..., -1:]
    Kd = k * (last - G).exp()[..., None]
    # [B, Hk, r, n, ...] -> n leading, the rest one batch: what the loop below multiplies.
    M = torch.diag_embed(last.exp().expand(*last.shape[:-1], dk)) - Kd.transpose(-1, -2) @ W
    N = Kd.transpose(-1, -2) @ U0
    M, N = (x.permute(3, 0, 1, 2, 4, 5).reshape(n, B * Hv, dk, -1) for x in (M, N))
    S = v.new_zeros(B * Hv, dk, dv) if state is None else state.float().reshape(B * Hv, dk, dv)
    before = []
    for M_c, N_c in zip(M.unbind(0), N.unbind(0)):
        before.append(S)
        S = torch.baddbmm(N_c, M_c, S)
    S_n = torch.stack(before, 1).view(B, Hk, r, n, dk, dv)
    U = U0 - W @ S_n
    o = (q * G.exp()[..., None]) @ S_n + ((q @ k.transpose(-1, -2)) * decay) @ U
    o = o.permute(0, 3, 4, 1, 2, 5).reshape(B, n * C, Hv, dv)
    return o[:, :T], S.view(B, Hv, dk, dv)


def delta_step(q, k, v, g, beta, state):
    """One token a row: q, k [B, Hk, dk]; v [B, Hv, dv]; g, beta [B, Hv]; state [B, Hv, dk, dv] fp32, updated in place.

    The state is the largest thing a DeltaNet step reads, so it is read once for both k and q:
        [r_q; r_k] = [q; k] S,   d = beta (v - e^g r_k),   o = e^g r_q + (q.k) d,   S <- e^g S + k d^T
    """
    B, Hv, dv = v.shape
    Hk, dk = k.shape[1:]
    qk = torch.stack([q, k], 2).unsqueeze(2).expand(B, Hk, Hv // Hk, 2, dk).reshape(B * Hv, 2, dk)
    S = state.view(B * Hv, dk, dv)
    decay = g.exp().view(B * Hv, 1, 1)
    q, k = qk.split(1, 1)                                        # [B * Hv, 1, dk]
    r_q, r_k = (torch.bmm(qk, S) * decay).split(1, 1)
    d = (v.reshape(B * Hv, 1, dv) - r_k) * beta.reshape(B * Hv, 1, 1)
    S.mul_(decay).addcmul_(k.transpose(1, 2), d)
    return (r_q + (q * k).sum(-1, keepdim=True) * d).view(B, Hv, dv)


class DeltaNet(nn.Module):
    """Gated DeltaNet: project, mix the last few tokens (causal conv), write to and read from the state, gate, project."""

    def __init__(self, c: ModelConfig, fused: bool):
        super().__init__()
        self.Hk, self.Hv, self.dk, self.dv = (c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim,
                                              c.linear_value_head_dim)
        self.key_dim, self.value_dim, self.width = self.Hk * self.dk, self.Hv * self.dv, c.linear_conv_kernel_dim
        self.conv_dim = 2 * self.key_dim + self.value_dim
        self.parts = dict(in_proj_qkv=self.conv_dim, in_proj_z=self.value_dim, in_proj_b=self.Hv, in_proj_a=self.Hv)
        add_projections(self, "in_proj", c.hidden_size, self.parts, fused)
        self.conv1d = nn.Module()
        self.conv1d.weight = nn.Parameter(torch.empty(self.conv_dim, 1, self.width))
        self.dt_bias = nn.Parameter(torch.ones(self.Hv))
        self.A_log = nn.Parameter(torch.zeros(self.Hv))
        self.norm = GatedNorm(self.dv, c.rms_norm_eps)
        self.out_proj = Linear(self.value_dim, c.hidden_size)

    def heads(self, qkv):
        # After the conv: [..., conv_dim] -> q and k [..., 2, Hk, dk] of unit length, v [..., Hv, dv], in fp32
        qk, v = F.silu(qkv).float().split([2 * self.key_dim, self.value_dim], -1)
        return l2norm(qk.unflatten(-1, (2, self.Hk, self.dk))), v.unflatten(-1, (self.Hv, self.dv))

    def forward(self, x, rows, memory):
        qkv, z, b, a = project(self, "in_proj", x)
        beta = b.float().sigmoid()
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        taps = self.conv1d.weight[:, 0].t().contiguous().to(qkv.dtype)                             # [width, conv_dim]
        if rows.decoding:
            conv, state = memory
            window = torch.cat([conv, qkv], 1)                                                     # [B, width, conv_dim]
            conv.copy_(window[:, 1:])
            qk, v = self.heads((window * taps).sum(1))
            o = delta_step(qk[:, 0] * self.dk ** -0.5, qk[:, 1], v, g[:, 0], beta[:, 0], state)[:, None]
        else:
            qkv, g, beta = rows.unpack(qkv), rows.unpack(g), rows.unpack(beta)
            if rows.real is not None:  # padding neither decays nor writes
                g, beta = g * rows.real, beta * rows.real
            padded = F.pad(qkv, (0, 0, self.width - 1, 0))
            qk, v = self.heads(Conv.apply(padded, taps))
            with torch.autocast(x.device.type, enabled=False):  # the state stays fp32 whatever the rest does
                o, state = delta_chunked(qk[..., 0, :, :] * self.dk ** -0.5, qk[..., 1, :, :], v, g, beta)
            if memory is not None:
                # The window that decoding continues from ends at each row's own last token, not at the padding.
                ends = rows.lengths[:, None] + torch.arange(self.width - 1, device=x.device)
                memory[0].copy_(padded.gather(1, ends[..., None].expand(-1, -1, self.conv_dim)))
                memory[1].copy_(state)
            o = rows.pack(o)
        o = self.norm(o, z.unflatten(-1, (self.Hv, self.dv)))
        return self.out_proj(o.flatten(-2))


class Attention(nn.Module):
    """Full attention: grouped queries, per-head q/k norm, rotary on the first dims, output gated by a sigmoid."""

    def __init__(self, c: ModelConfig, fused: bool):
        super().__init__()
        self.H, self.Hkv, self.hd, self.rot = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rotary_dim
        self.parts = dict(q_proj=2 * self.H * self.hd, k_proj=self.Hkv * self.hd, v_proj=self.Hkv * self.hd)
        add_projections(self, "qkv_proj", c.hidden_size, self.parts, fused)
        self.o_proj = Linear(self.H * self.hd, c.hidden_size)
        self.q_norm, self.k_norm = Norm(self.hd, c.rms_norm_eps), Norm(self.hd, c.rms_norm_eps)

    def rotate(self, x, cos, sin):
        # Halves, not pairs: dim i turns with dim i + rot/2; dims beyond rot pass.
        a, b, rest = x.float().split([self.rot // 2, self.rot // 2, self.hd - self.rot], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).to(x.dtype)

    def forward(self, x, rows, memory):
        qg, k, v = project(self, "qkv_proj", x)
        q, gate = qg.unflatten(-1, (self.H, 2 * self.hd)).chunk(2, -1)   # query and gate alternate per head
        k, v = k.unflatten(-1, (self.Hkv, self.hd)), v.unflatten(-1, (self.Hkv, self.hd))
        q, k = self.rotate(self.q_norm(q), rows.cos, rows.sin), self.rotate(self.k_norm(k), rows.cos, rows.sin)
        if rows.decoding:
            for buffer, new in zip(memory, (k, v)):
                buffer[rows.index, :, rows.start] = new[:, 0]
            o = self.read(q, *memory, rows.hidden)
        else:
            q, k, v = (rows.unpack(t).transpose(1, 2) for t in (q, k, v))
            if memory is not None:
                memory[0][:, :, :k.shape[2]], memory[1][:, :, :k.shape[2]] = k, v
            # Padding stands right of every real token, so the causal mask hides it already.
            o = rows.pack(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2))
        return self.o_proj((o * gate.sigmoid()).flatten(-2))

    def read(self, q, K, V, hidden):
        # One query a row against its cache, as two plain products: query heads that share keys read them once, and only
        # the part of the buffer that some row has filled. A shorter row hides what it has not written yet.
        B, L, r = len(q), hidden.shape[-1], self.H // self.Hkv
        K, V = (c[:, :, :L].flatten(0, 1) for c in (K, V))                                         # [B * Hkv, L, hd]
        score = torch.bmm((q * self.hd ** -0.5).view(B * self.Hkv, r, self.hd), K.transpose(1, 2))
        p = score.float().view(B, self.H, L).masked_fill(hidden, -math.inf).softmax(-1).to(q.dtype)
        return torch.bmm(p.view(B * self.Hkv, r, L), V).view(B, 1, self.H, self.hd)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: ModelConfig, fused: bool):
        super().__init__()
        self.parts = dict(gate_proj=c.intermediate_size, up_proj=c.intermediate_size)
        add_projections(self, "gate_up_proj", c.hidden_size, self.parts, fused)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        gate, up = project(self, "gate_up_proj", x)
        return self.down_proj(F.silu(gate) * up)


def add_projections(module, name, n_in, parts, fused):
    """One Linear a part under its Hugging Face name, or all of them side by side under `name` (decoding)."""
    if fused:
        setattr(module, name, Linear(n_in, sum(parts.values())))
    else:
        for part, n_out in parts.items():
            setattr(module, part, Linear(n_in, n_out))


def project(module, name, x):
    if name in module._modules:
        return module._modules[name](x).split(list(module.parts.values()), -1)
    return tuple(getattr(module, part)(x) for part in module.parts)


class Block(nn.Module):
    def __init__(self, c: ModelConfig, index: int, fused: bool):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.kind = c.layer_types[index]
        if self.kind == "full_attention":
            self.self_attn = Attention(c, fused)
        else:
            self.linear_attn = DeltaNet(c, fused)
        self.mlp = MLP(c, fused)

    def forward(self, x, rows, memory=None):
        mixer = self.self_attn if self.kind == "full_attention" else self.linear_attn
        x = x + mixer(self.input_layernorm(x), rows, memory)
        return x + self.mlp(self.post_attention_layernorm(x))


# ---------------------------------------------------------------------------------------------------------------------
# Where rows begin and end, and what decoding remembers

class Rows:
    """Bounds of the rows in a batch. Token mixers see one padded row each; everything else may run on packed tokens.

    Packed ids [N] with lengths [B] are the B rows one after another, without padding: nothing can leak from one row to
    the next, because conv, recurrence and attention only ever see them unpacked to [B, T].
    """

    decoding = False

    def __init__(self, ids, lengths, config):
        self.packed = ids.dim() == 1
        if self.packed:
            B, T = len(lengths), int(lengths.max())
            self.lengths = lengths
            self.row = torch.repeat_interleave(torch.arange(B, device=ids.device), lengths)
            first = (lengths.cumsum(0) - lengths)[self.row]
            self.pos = torch.arange(len(ids), device=ids.device) - first
            positions = self.pos
        else:
            B, T = ids.shape
            self.lengths = torch.full((B,), T, device=ids.device) if lengths is None else lengths
            positions = torch.arange(T, device=ids.device)
        self.shape = (B, T)
        padded = lengths is not None and (not self.packed or B > 1)
        self.real = (torch.arange(T, device=ids.device) < self.lengths[:, None])[..., None] if padded else None
        self.cos, self.sin = rotary(positions, config)

    def unpack(self, x):
        if not self.packed:
            return x
        return x.new_zeros(*self.shape, *x.shape[1:]).index_put((self.row, self.pos), x)

    def pack(self, x):
        return x[self.row, self.pos] if self.packed else x


def rotary(positions, config):
    """cos and sin [..., 1, rotary_dim / 2] of these positions, broadcast over heads."""
    half = torch.arange(0, config.rotary_dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions[..., None].float() * config.rope_theta ** (-half / config.rotary_dim)
    return angle.cos().unsqueeze(-2), angle.sin().unsqueeze(-2)


class Step:
    """What Rows is for whole sequences, for one token a row: where it stands and what attention may not see."""
    decoding = True

    def __init__(self, cache):
        self.index, self.start = cache.index, cache.lengths
        self.cos, self.sin = (table[cache.lengths][:, None] for table in cache.rotary)
        self.hidden = (cache.positions[:cache.extent] > cache.lengths[:, None])[:, None]           # [B, 1, extent]


class Cache:
    """What decoding remembers of `rows` sequences: keys and values of the full-attention layers up to max_len, the conv
    window and the fp32 state of the others. All buffers keep their addresses, so a CUDA graph may be captured over them.

    lengths [rows]: tokens written so far. extent: how many positions attention reads, at least max(lengths) + 1.
    """

    def __init__(self, config: ModelConfig, rows: int, max_len: int, dtype, device):
        c = config
        self.max_len, self.extent, self.kinds = max_len, 0, c.layer_types
        self.index, self.positions = torch.arange(rows, device=device), torch.arange(max_len, device=device)
        self.rotary = rotary(self.positions, c)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        conv = 2 * c.linear_num_key_heads * c.linear_key_head_dim + c.linear_num_value_heads * c.linear_value_head_dim
        kv = (rows, c.num_key_value_heads, max_len, c.head_dim)
        self.layers = [
            (torch.zeros(kv, dtype=dtype, device=device), torch.zeros(kv, dtype=dtype, device=device))
            if kind == "full_attention" else
            (torch.zeros(rows, c.linear_conv_kernel_dim - 1, conv, dtype=dtype, device=device),
             torch.zeros(rows, c.linear_num_value_heads, c.linear_key_head_dim, c.linear_value_head_dim, device=device))
            for kind in c.layer_types]

    def copy_rows(self, source: "Cache", from_rows, to_rows):
        """Rows `from_rows` of another cache become rows `to_rows` of this one (index tensors of equal length)."""
        n = source.extent
        for kind, mine, theirs in zip(self.kinds, self.layers, source.layers):
            for a, b in zip(mine, theirs):
                if kind == "full_attention":
                    a[to_rows, :, :n] = b[from_rows, :, :n]
                else:
                    a[to_rows] = b[from_rows]
        self.lengths[to_rows] = source.lengths[from_rows]
        self.extent = max(self.extent, n)

    def nbytes(self) -> int:
        return sum(t.nbytes for layer in self.layers for t in layer)


# ---------------------------------------------------------------------------------------------------------------------
# The model

class LogProbs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and its entropy, without ever holding the logits of more than LOGIT_CHUNK
    tokens: the backward pass computes them again. h [N, D], W [V, D], targets [N] -> logp [N], entropy [N], both fp32.

    A token's gradient g scales that of its logits, g (onehot - p), as a whole, so g is left to rows of h and of the result,
    which are far shorter than rows of the vocabulary.
    """

    @staticmethod
    def log_softmax(h, W, temperature):
        z = F.linear(h, W).float()
        return (z if temperature == 1 else z.div_(temperature)).log_softmax(-1)

    @staticmethod
    def minus_onehot(p, targets):
        # In fp32, and rounded only then: of a token that was certain, p - 1 is all that is left to learn from.
        return p.scatter_add_(-1, targets[:, None], torch.full_like(p[:, :1], -1.0))

    @staticmethod
    def forward(ctx, h, W, targets, temperature):
        logp, entropy = (torch.empty(len(h), device=h.device) for _ in range(2))
        kept = []
        for i in range(0, len(h), LOGIT_CHUNK):
            s = slice(i, i + LOGIT_CHUNK)
            logq = LogProbs.log_softmax(h[s], W, temperature)
            logp[s] = logq.gather(-1, targets[s, None])[:, 0]
            p = logq.exp()
            entropy[s] = -torch.linalg.vecdot(p, logq)
            if len(h) * len(W) <= KEEP_LOGITS:  # a tiny vocabulary: to compute it again would cost a tenth of a training step
                kept.append(LogProbs.minus_onehot(p, targets[s]).to(h.dtype))
        ctx.save_for_backward(h, W, targets, *kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad, _):
        h, W, targets, *kept = ctx.saved_tensors
        dh = torch.empty_like(h)
        dW = torch.zeros_like(W, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for i in range(0, len(h), LOGIT_CHUNK):
            s = slice(i, i + LOGIT_CHUNK)
            d = kept.pop(0) if kept else LogProbs.minus_onehot(LogProbs.log_softmax(h[s], W, ctx.temperature).exp_(), targets[s]).to(h.dtype)
            scale = -grad[s, None] / ctx.temperature
            dh[s] = scale * (d @ W)
            if dW is not None:
                dW += d.t() @ (scale * h[s]).to(h.dtype)
        return dh, None if dW is None else dW.to(W.dtype), None, None


class Qwen35(nn.Module):
    """model(ids_BT, lengths=None, cache=None) -> hidden [B, T, D], normed, ready for `logits`.

    lengths [B]: rows are right-padded. Packed ids [N] with lengths [B] give hidden [N, D]. With a cache, the first call
    is the prefill (an empty cache) and every further call decodes one token a row.
    """

    def __init__(self, config: ModelConfig, fused: bool = False):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Module()
        self.embed_tokens.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, i, fused) for i in range(len(config.layer_types)))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.checkpointing = False   # recompute each block in the backward pass: memory of one block instead of all
        self.packed = False          # as Linear.packed, for the head
        self.compiled = None         # `blocks`, compiled for decoding (see rollout.replica)
        self.hf_config = None        # the raw config.json, written back as it came
        self.source = None           # the folder the weights came from, for what is passed through on save
        self.prefix = "model."       # how that folder names the text model

    def forward(self, ids, lengths=None, cache=None):
        decoding = cache is not None and cache.extent > 0
        if decoding and ids.shape[1] != 1:
            raise ValueError(f"a filled cache takes one token a row, not {ids.shape[1]}; use a new cache for a new prompt")
        if cache is not None:
            cache.extent = cache.extent + 1 if decoding else ids.shape[1]
            if cache.extent > cache.max_len:
                raise ValueError(f"{cache.extent} tokens do not fit a cache of {cache.max_len}; ask for a larger max_len")
        rows = Step(cache) if decoding else Rows(ids, lengths, self.config)
        memories = cache.layers if cache is not None else [None] * len(self.layers)
        hidden = (self.compiled if decoding and self.compiled else self.blocks)(ids, rows, memories)
        if cache is not None:
            cache.lengths += 1 if decoding else rows.lengths
        return hidden

    def blocks(self, ids, rows, memories):
        x = F.embedding(ids, self.embed_tokens.weight)
        for block, memory in zip(self.layers, memories):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rows, memory, use_reentrant=False)
            else:
                x = block(x, rows, memory)
        return self.norm(x)

    def logits(self, hidden):
        if self.packed:
            return packed_linear(hidden, self.head_weight())
        return F.linear(hidden, self.head_weight())

    def head_weight(self):
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def token_logprobs(self, ids_BT, lengths=None, temperature: float = 1.0, return_entropy: bool = False):
        """log p(ids[:, t+1] | ids[:, :t+1]) at `temperature` -> [B, T-1] fp32, zero beyond each row's end; with
        return_entropy also the entropy of each of those distributions (no gradient). Runs on packed tokens."""
        B, T = ids_BT.shape
        if lengths is None:
            lengths = torch.full((B,), T, device=ids_BT.device)
        at = torch.arange(T, device=ids_BT.device)
        hidden = self(ids_BT[at < lengths[:, None]], lengths)
        has_next = (at < lengths[:, None] - 1)[at < lengths[:, None]]
        inner = at[1:] < lengths[:, None]
        logp, entropy = LogProbs.apply(hidden[has_next], self.head_weight(), ids_BT[:, 1:][inner], temperature)
        logp, entropy = (torch.zeros(B, T - 1, device=ids_BT.device).masked_scatter(inner, x) for x in (logp, entropy))
        return (logp, entropy) if return_entropy else logp

    def new_cache(self, rows: int, max_len: int) -> Cache:
        return Cache(self.config, rows, max_len, self.embed_tokens.weight.dtype, self.embed_tokens.weight.device)

    def place(self, name: str):
        """The storage behind the parameter that Hugging Face calls `name` (a view into a fused weight where it is one)."""
        owner, _, leaf = name.rpartition(".")
        path, _, part = owner.rpartition(".")
        parent = self.get_submodule(path)
        if part in getattr(parent, "parts", {}) and part not in parent._modules:
            fused = next(m for key, m in parent._modules.items() if isinstance(m, Linear) and key not in ("out_proj", "o_proj", "down_proj"))
            at = list(parent.parts).index(part)
            return fused.weight.data.narrow(0, sum(list(parent.parts.values())[:at]), parent.parts[part])
        return self.get_parameter(name).data


def new(hf_config: dict, seed: int = 0, dtype=torch.float32, device="cpu") -> Qwen35:
    """A random model for a Hugging Face config: normal(0, 0.02), memories that last from one to some thousand tokens."""
    model = Qwen35(ModelConfig.from_hf(hf_config))
    model.hf_config = hf_config
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.data.uniform_(1, 16, generator=generator).log_()
        elif name.endswith("dt_bias"):  # softplus(dt_bias) spread log-uniformly over 0.001..0.1, as in Mamba-2
            dt = torch.exp(torch.empty_like(p).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
            p.data.copy_(dt + torch.log(-torch.expm1(-dt)))
        elif p.dim() > 1:
            p.data.normal_(0, 0.02 if "conv1d" not in name else 0.3, generator=generator)
    return cast(model, dtype).to(device)


def cast(model: Qwen35, dtype) -> Qwen35:
    for name, p in model.named_parameters():
        p.data = p.data.to(torch.float32 if name.endswith(KEEP_FP32) else dtype)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Sharding

def shard(model: Qwen35, bf16: bool, shards: int):
    """FSDP2, one group of parameters a block: fp32 masters, bf16 compute where asked, gradients reduced in fp32.
    With fewer shards than processes, each `shards` neighbours hold the whole model between them (HSDP).

    What must stay fp32 is left whole on every rank (a few kB): mixed precision would round it. Its gradients are
    averaged by `average_replicated`.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    replicas = torch.distributed.get_world_size() // shards
    mesh = torch.distributed.init_device_mesh(model.norm.weight.device.type, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    mesh = mesh if replicas > 1 else mesh["shard"]
    # Inputs are not cast: token ids stay integers and the rotary tables fp32.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else MixedPrecisionPolicy()
    whole = {p for name, p in model.named_parameters() if name.endswith(KEEP_FP32)}
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=False)
    register_fsdp_forward_method(model, "token_logprobs")


def is_sharded(p) -> bool:
    return hasattr(p, "to_local")


def average_replicated(params):
    """Averages over ranks the gradients that FSDP does not know (see `shard`); a no-op where nothing is sharded."""
    if any(is_sharded(p) for p in params):
        for p in params:
            if not is_sharded(p) and p.grad is not None:
                torch.distributed.all_reduce(p.grad)
                p.grad /= torch.distributed.get_world_size()


@torch.no_grad()
def clip_gradients(params, max_norm: float) -> float:
    """Scales the gradients of whole and sharded parameters to a global L2 norm of at most max_norm -> the norm before."""
    square = lambda ps: sum((p.grad.to_local() if is_sharded(p) else p.grad).float().square().sum() for p in ps)
    sharded = [p for p in params if is_sharded(p) and p.grad is not None]
    total = square([p for p in params if not is_sharded(p) and p.grad is not None])
    if sharded:
        part = square(sharded)
        torch.distributed.all_reduce(part)
        mesh = sharded[0].device_mesh
        total = total + part / (mesh.size(0) if mesh.ndim == 2 else 1)  # each shard was counted once a replica
    norm = float(total) ** 0.5
    if norm > max_norm:
        for p in params:
            if p.grad is not None:
                p.grad.mul_(max_norm / (norm + 1e-6))
    return norm


# ---------------------------------------------------------------------------------------------------------------------
# LoRA

def add_lora(model: Qwen35, rank: int, alpha: float, seed: int = 0):
    """Adds a trainable low-rank pair (fp32) to every Linear of every block and freezes the rest.

    A ~ uniform as in the paper's code (kaiming), B = 0, so the model is unchanged at first. Returns the new parameters.
    ValueError: rank < 1, or nothing to bind to.
    """
    if rank < 1:
        raise ValueError(f"--lora_rank is {rank}; LoRA needs a rank of at least 1 (8 to 64 is usual)")
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.requires_grad_(False)
    added = []
    for module in model.layers.modules():
        if isinstance(module, Linear):
            n_out, n_in = module.weight.shape
            A = torch.empty(rank, n_in).uniform_(-1, 1, generator=generator) * math.sqrt(1 / n_in) * math.sqrt(3)
            module.lora_A = nn.Parameter(A.to(module.weight.device))
            module.lora_B = nn.Parameter(torch.zeros(n_out, rank, device=module.weight.device))
            module.lora_scale = alpha / rank
            added += [module.lora_A, module.lora_B]
    if not added:
        raise ValueError("LoRA found no linear layer to bind to; was the model fused, or are there no blocks?")
    return added


@torch.no_grad()
def named_tensors(model: Qwen35):
    """(Hugging Face name without prefix, whole tensor) of every weight: shards gathered, LoRA merged. A generator: one
    tensor exists at a time. Under FSDP every rank must run through it (gathering is collective)."""
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    for name, p in model.named_parameters():
        if ".lora_" in name:
            continue
        tensor = whole(p.data)
        owner = model.get_submodule(name.rpartition(".")[0])
        if getattr(owner, "lora_A", None) is not None:
            delta = owner.lora_scale * whole(owner.lora_B.data) @ whole(owner.lora_A.data)
            tensor = (tensor.float() + delta).to(tensor.dtype)
        yield name, tensor


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face checkpoints

def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, for one safetensors file or for shards with an index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return json.loads(index.read_text())["weight_map"]
    single = folder / "model.safetensors"
    if not single.exists():
        raise FileNotFoundError(f"no model.safetensors (nor an index of shards) in {folder}; is this a checkpoint folder?")
    try:
        with safe_open(single, "pt") as f:
            return {name: single.name for name in f.keys()}
    except Exception as error:  # safetensors raises its own type for a truncated header
        raise ValueError(f"{single} is damaged ({error}); download or save it again") from None


def fetch(path_or_repo) -> Path:
    """A local folder as it is, else a hub id through huggingface_hub (resumes, shows progress). FileNotFoundError: neither."""
    folder = Path(path_or_repo)
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(path_or_repo), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:
        raise FileNotFoundError(f"{path_or_repo} is no local folder, and the hub did not give it ({type(error).__name__}); "
                                "check the name and the network, or download it once and pass the folder") from None


def read_config(folder: Path) -> dict:
    try:
        return json.loads((Path(folder) / "config.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no config.json in {folder}; is this a checkpoint folder?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}/config.json is not JSON ({error})") from None


def load(path_or_repo, dtype=torch.bfloat16, device="cpu", fused: bool = False) -> Qwen35:
    """A Qwen3.5 checkpoint from a folder or the hub: one file or shards, text-only or multimodal names.

    FileNotFoundError: nothing there. ValueError: another architecture, a missing or damaged tensor, a wrong shape.
    """
    folder = fetch(path_or_repo)
    hf_config = read_config(folder)
    with torch.device("meta"):
        model = Qwen35(ModelConfig.from_hf(hf_config), fused)
    cast(model, dtype)
    model.to_empty(device=device)
    index = read_index(folder)
    model.hf_config, model.source = hf_config, folder
    model.prefix = next((p for p in ("model.language_model.", "model.") if p + "embed_tokens.weight" in index), None)
    if model.prefix is None:
        raise ValueError(f"{folder} holds no model.embed_tokens.weight nor model.language_model.embed_tokens.weight; "
                         "this is not a Qwen3.5 language model")
    with torch.device("meta"):
        names = [name for name, _ in Qwen35(model.config).named_parameters()]
    opened = {}
    for name in names:
        key = name if name.startswith("lm_head") else model.prefix + name
        if key not in index:
            raise ValueError(f"{folder} lacks the tensor {key}; the checkpoint is incomplete")
        try:
            file = opened.setdefault(index[key], None) or safe_open(folder / index[key], "pt")
            opened[index[key]] = file
            tensor = file.get_tensor(key)
        except Exception as error:
            raise ValueError(f"{folder / index[key]} is damaged or missing ({error}); download or save it again") from None
        place = model.place(name)
        if place.shape != tensor.shape:
            raise ValueError(f"{key} is {tuple(tensor.shape)}, but config.json makes it {tuple(place.shape)}; the two do not belong together")
        place.copy_(tensor)
    return model


def save(model: Qwen35, path, dtype=None, write: bool = True, shard_bytes: int = 5 << 30):
    """Writes a Hugging Face folder that transformers and vLLM load: the weights under the names they came with, whatever
    else the source held (vision tower, MTP head, tokenizer, generation config) unchanged.

    dtype: what weights are stored in (None: as they are); A_log and the DeltaNet norms stay fp32. Under FSDP all ranks
    call it (gathering is collective) and only the one with write=True touches the disk. The folder appears by rename.
    """
    from huggingface_hub import save_torch_state_dict
    tensors = {}
    for name, tensor in named_tensors(model):
        if write:
            key = name if name.startswith("lm_head") else model.prefix + name
            tensors[key] = tensor.to("cpu", torch.float32 if name.endswith(KEEP_FP32) else dtype or tensor.dtype)
    if not write:
        return
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if model.source:
        for key, file in read_index(model.source).items():
            if key == "lm_head.weight" and model.lm_head is None:  # tied, yet the source stored it twice: so do we
                tensors[key] = tensors[model.prefix + "embed_tokens.weight"].clone()
            elif key not in tensors:
                with safe_open(model.source / file, "pt") as f:
                    tensors[key] = f.get_tensor(key)
        for file in model.source.iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".tiktoken") and "safetensors" not in file.name:
                shutil.copy2(file, partial / file.name)
    save_torch_state_dict(tensors, partial, max_shard_size=shard_bytes)
    hf = json.loads(json.dumps(model.hf_config))
    for part in (hf, hf.get("text_config", {})):
        for key in {"dtype", "torch_dtype"} & set(part):
            part[key] = str(dtype or model.embed_tokens.weight.dtype).removeprefix("torch.")
    (partial / "config.json").write_text(json.dumps(hf, indent=2))
    replace_folder(partial, path)


def replace_folder(partial: Path, path: Path):
    """Puts a finished folder in place by rename: a kill leaves the old folder or the new one, never half."""
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old)
    else:
        os.replace(partial, path)


@torch.no_grad()
def save_adapter(model: Qwen35, path, base: str):
    """The LoRA pairs in PEFT's format (adapter_model.safetensors, adapter_config.json), for `peft` on top of `base`."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors, modules, rank, alpha = {}, set(), 0, 0.0
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None) is not None:
            rank = module.lora_A.shape[0]
            alpha = module.lora_scale * rank
            modules.add(name.rpartition(".")[2])
            for part in ("lora_A", "lora_B"):
                tensors[f"base_model.model.{model.prefix}{name}.{part}.weight"] = getattr(module, part).detach().cpu().contiguous()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(
        dict(peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=str(base), r=rank, lora_alpha=alpha,
             lora_dropout=0.0, bias="none", target_modules=sorted(modules)), indent=1))
