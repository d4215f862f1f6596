"""One token per row from its logits: temperature, truncation, repetition penalty, noise decided by a seed.

Dimension suffixes: B rows, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch

from lib.flags import check_ranges, opt


@dataclass
class Sampling:
    """How a token is drawn. ValueError: a setting outside of its range."""

    temperature: float = opt(1.0, "0 is greedy", low=0)
    top_p: float = opt(1.0, "nucleus; 1: off", above=0, high=1)
    top_k: int = opt(0, "0: off", low=0)
    min_p: float = opt(0.0, "least share of the likeliest token's probability; 0: off", low=0, high=1)
    repetition_penalty: float = opt(1.0, "1: off", above=0)

    def __post_init__(self):
        check_ranges(self)
        self.truncates = self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)
        self.penalises = self.repetition_penalty != 1


GOLDEN, MIX_1, MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix(key, counter):
    """splitmix64 as a counter-based generator: 64 random bits (int64) that depend on (key, counter) alone."""
    x = (counter + 1) * GOLDEN + key
    for shift, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor  # the mask: torch shifts the sign in
    return x


def keys_of(seeds: list[int]):
    """Seeds of any size spread over 64 bits, so that stories with neighbouring seeds share nothing."""
    return splitmix(0, torch.tensor([(seed + (1 << 63)) % (1 << 64) - (1 << 63) for seed in seeds]))


def gumbel(keys_B, position_B, n: int):
    """Gumbel noise [B, n] fp32 that depends on (key, position, column) alone."""
    bits = splitmix(keys_B[:, None], position_B[:, None] * n + torch.arange(n, device=keys_B.device))
    u = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2**53
    return -torch.log(-torch.log(u)).float()


def block_size(vocab: int) -> int:
    """The divisor of the vocabulary nearest above its root: 512 of 248,320 and 64 of 4,096."""
    return next(b for b in range(math.isqrt(vocab - 1) + 1, vocab + 1) if vocab % b == 0)


def noise_size(vocab: int) -> int:
    return vocab // block_size(vocab) + block_size(vocab)


def draw(z_BV, noise):
    """Samples softmax(z) exactly, with noise for a block and for a token within it instead of one for each of
    V tokens. Returns token [B] and logsumexp [B], a by-product of the blocks. noise: [B, V / b + b]."""
    B, V = z_BV.shape
    b = block_size(V)
    blocks = z_BV.view(B, V // b, b)
    lse = blocks.logsumexp(-1)
    block = (lse + noise[:, : V // b]).argmax(-1)
    within = blocks[torch.arange(B, device=z_BV.device), block] + noise[:, V // b :]
    return block * b + within.argmax(-1), lse.logsumexp(-1)


def bend(z_BV, s: Sampling, seen_BV=None):
    """Logits at the temperature -> those that are sampled from, in Hugging Face's order: repetition penalty,
    then -inf for what top-k, top-p and min-p leave out; at least one token stays."""
    if s.penalises:
        factor = torch.where(z_BV > 0, 1 / s.repetition_penalty, s.repetition_penalty)
        z_BV = torch.where(seen_BV, z_BV * factor, z_BV)
    if not s.truncates:
        return z_BV
    if s.top_k:
        top = z_BV.topk(min(s.top_k, z_BV.shape[-1])).values
        z_BV = z_BV.masked_fill(z_BV < top[:, -1:], -math.inf)
    if s.top_p < 1:
        top = top if s.top_k else z_BV.sort(descending=True).values
        p = top.softmax(-1)
        last = ((p.cumsum(-1) - p) < s.top_p).sum(-1, keepdim=True).clamp(min=1) - 1
        z_BV = z_BV.masked_fill(z_BV < top.gather(-1, last), -math.inf)
    if s.min_p:
        z_BV = z_BV.masked_fill(z_BV < z_BV.amax(-1, keepdim=True) + math.log(s.min_p), -math.inf)
    return z_BV


def pick(logits_BV, noise, s: Sampling, seen_BV=None):
    """One token per row -> token [B] and its log-prob [B] at the temperature over the whole vocabulary."""
    raw = logits_BV if s.temperature in (0, 1) else logits_BV / s.temperature
    bent = bend(raw, s, seen_BV)
    if s.temperature:
        token, lse = draw(bent, noise)
    else:
        token, lse = bent.argmax(-1), raw.logsumexp(-1)
    if s.penalises or s.truncates:
        lse = raw.logsumexp(-1)
    return token, raw.gather(-1, token[:, None])[:, 0] - lse


def check_request(config, prompts, max_new_tokens: int, seed) -> tuple[list[tuple[int, ...]], list[int]]:
    """Prompts as tuples, and a seed for each. ValueError: a request that cannot be met by a model with
    config.vocab_size tokens and config.max_position_embeddings positions."""
    vocab, reach = config.vocab_size, config.max_position_embeddings
    prompts = [tuple(prompt) for prompt in prompts]
    for i, prompt in enumerate(prompts):
        if max(prompt) >= vocab:
            alien = f"outside the vocabulary of {vocab}; it belongs to another tokenizer"
            raise ValueError(f"prompt {i} holds token {max(prompt)}, {alien}")
        if len(prompt) + max_new_tokens > reach:
            asked = f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} more are asked for"
            cure = "shorten the prompt or lower max_new_tokens"
            raise ValueError(f"{asked}, but the model reaches {reach}; {cure}")
    seeds = [seed * 1_000_003 + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    return prompts, seeds
