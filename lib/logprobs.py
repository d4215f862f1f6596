"""Log-probabilities of a large vocabulary in little memory."""

import torch
import torch.nn.functional as F

LOGIT_CHUNK = 512  # tokens whose logits exist at once: 0.5 GB in fp32 for a vocabulary of 248,320


class LogProbs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and its entropy, without ever holding the logits of more than
    LOGIT_CHUNK tokens: the backward pass computes them again. h [M, D], W [V, D], targets [M] -> logp [M],
    entropy [M], both fp32.

    A token's gradient g scales that of its logits, g (onehot - p), as a whole, so g is left to rows of h and
    of the result, which are far shorter than rows of the vocabulary.
    """

    @staticmethod
    def log_softmax(h, W, temperature):
        z = F.linear(h, W).float()
        return (z if temperature == 1 else z.div_(temperature)).log_softmax(-1)

    @staticmethod
    def forward(ctx, h, W, targets, temperature):
        logp, entropy = (torch.empty(len(h), device=h.device) for _ in range(2))
        for i in range(0, len(h), LOGIT_CHUNK):
            s = slice(i, i + LOGIT_CHUNK)
            logq = LogProbs.log_softmax(h[s], W, temperature)
            logp[s] = logq.gather(-1, targets[s, None])[:, 0]
            entropy[s] = -torch.linalg.vecdot(logq.exp(), logq)
        ctx.save_for_backward(h, W, targets)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad, _):
        h, W, targets = ctx.saved_tensors
        dh = torch.empty_like(h)
        dW = torch.zeros_like(W, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for i in range(0, len(h), LOGIT_CHUNK):
            s = slice(i, i + LOGIT_CHUNK)
            p = LogProbs.log_softmax(h[s], W, ctx.temperature).exp_()
            # p - onehot in fp32, rounded only then: p - 1 is all that a token which was certain can teach.
            d = p.scatter_add_(-1, targets[s, None], torch.full_like(p[:, :1], -1.0)).to(h.dtype)
            scale = -grad[s, None] / ctx.temperature
            dh[s] = scale * (d @ W)
            if dW is not None:
                dW += d.t() @ (scale * h[s]).to(h.dtype)
        return dh, None if dW is None else dW.to(W.dtype), None, None
