"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464): whole sequences in chunks, or token by token.

Within a chunk, with G the running sum of g and S the state before it, the written values solve
    (I + A) U = beta V - (beta K e^G) S,     A_ij = beta_i e^(G_i - G_j) k_i.k_j  for j < i
so one triangular solve on [beta V | beta K e^G] gives U0 and W with U = U0 - W S, and
    S' = (e^(G_C) I - Kd^T W) S + Kd^T U0,   Kd = K e^(G_C - G)
is one affine map per chunk: the only sequential part. Hv / Hk value heads share one key head.
"""

import math

import torch
import torch.nn.functional as F

CHUNK = 64  # the longest chunk: large enough to be matrix products, small enough for one triangular solve


def l2norm(x):
    # The epsilon inside the root keeps the gradient finite at a zero vector.
    return x * torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] + 1e-6)


def causal_conv(padded, taps):
    """Depthwise: padded [B, width - 1 + T, C], taps [width, C] -> [B, T, C]. Faster than F.conv1d."""
    T = padded.shape[1] - len(taps) + 1
    y = padded[:, :T] * taps[0]
    for j in range(1, len(taps)):
        y = torch.addcmul(y, padded[:, j : j + T], taps[j])
    return y


def delta_chunked(q, k, v, g, beta):
    """The gated delta rule over whole sequences, a chunk at a time, in fp32 (arXiv 2412.06464, section 3.3).

    q, k: [B, T, Hk, dk], unit length, q already scaled; v: [B, T, Hv, dv]; g (log decay, <= 0), beta:
    [B, T, Hv]. Returns o [B, T, Hv, dv] and the state [B, Hv, dk, dv] after the last token; before the first
    it is zero. A padded position with g = beta = 0 leaves the state untouched: right padding is exact.
    """
    B, T, Hk, dk = k.shape
    Hv, dv, r = v.shape[2], v.shape[3], v.shape[2] // k.shape[2]
    C = min(CHUNK, max(16, dk))  # about as long as a key is wide: what grows with either weighs the same
    pad = -T % C
    n = (T + pad) // C
    q, k, v, g, beta = (x.float() for x in (q, k, v, g, beta))
    if pad:
        q, k, v, g, beta = (F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad)) for x in (q, k, v, g, beta))
    q, k = (x.view(B, n, C, Hk, 1, dk).permute(0, 3, 4, 1, 2, 5) for x in (q, k))  # [B, Hk, 1, n, C, dk]
    v = v.view(B, n, C, Hk, r, dv).permute(0, 3, 4, 1, 2, 5)  # [B, Hk, r, n, C, dv]
    g, beta = (x.view(B, n, C, Hk, r).permute(0, 3, 4, 1, 2) for x in (g, beta))  # [B, Hk, r, n, C]

    G = g.cumsum(-1)
    # Mask before exp: above the diagonal the difference is positive and overflows, and inf * 0 is NaN.
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
    S = v.new_zeros(B * Hv, dk, dv)
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
    """One token per row: q, k [B, Hk, dk]; v [B, Hv, dv]; g, beta [B, Hv]; state [B, Hv, dk, dv] fp32,
    updated in place.

    The state is the largest thing a DeltaNet step reads, so it is read once for both k and q:
        [r_q; r_k] = [q; k] S,   d = beta (v - e^g r_k),   o = e^g r_q + (q.k) d,   S <- e^g S + k d^T
    """
    B, Hv, dv = v.shape
    Hk, dk = k.shape[1:]
    qk = torch.stack([q, k], 2).unsqueeze(2).expand(B, Hk, Hv // Hk, 2, dk).reshape(B * Hv, 2, dk)
    S = state.view(B * Hv, dk, dv)
    decay = g.exp().view(B * Hv, 1, 1)
    q, k = qk.split(1, 1)  # [B * Hv, 1, dk]
    r_q, r_k = (torch.bmm(qk, S) * decay).split(1, 1)
    d = (v.reshape(B * Hv, 1, dv) - r_k) * beta.reshape(B * Hv, 1, 1)
    S.mul_(decay).addcmul_(k.transpose(1, 2), d)
    return (r_q + (q * k).sum(-1, keepdim=True) * d).view(B, Hv, dv)
