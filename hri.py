"""Human-reference injection (HRI): one story by a person joins each group of the policy's own.

The person's story is fed word by word to the model (teacher forcing), judged by the same judge and reward as the
policy's stories, and becomes one more row of the group. It is an anchor: the mean and the standard deviation are the
policy's alone, so the human row's advantage says how far a person stands from what the model writes now, and the
policy's advantages are the same with and without it. A weight that grows from 0 keeps it from shouting at the start.

Sources: POLARIS (arXiv 2606.04095) for `polaris`; LUFFY (arXiv 2504.14945) for `luffy`.
Use: `train.py` calls it between judging and the update; `python train.py --hri off` takes it out.
What multiplies A_h * grad log pi of a token of the human row, where pi is that token's probability now, w is
`weight(step)`, and A_h = (R_h - mean) / (std + 1e-6):

    mode        mean, std over       coefficient
    polaris     policy rows          w
    positive    policy rows          w if A_h > 0, else 0: never pushes away from the person
    luffy       policy rows + human  g * pi / (pi + g)^2, g = 0.1: no weight; largest where pi = g
    off         policy rows          0

Left out: LUFFY without shaping (coefficient pi), references written by other models, any decay of the weight.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from data import Episode, Example

MODES = ("polaris", "positive", "luffy", "off")
EPS = 1e-6  # in the published denominator; a group whose rewards differ by less has no signal, only rounding


def reference_episode(example: Example, tokenizer, thinking: bool = True, max_tokens: int = 8192) -> Episode:
    """The human row of a group: the story of `example` as if the policy had written it, still without a reward.

    The end token is kept, so that the row also teaches where to stop; reasoning, when `thinking` and given, is trained
    too. More than `max_tokens` completion tokens are cut, as the policy's are, and then `story` is what is left:
    judge and gradient see the same text. ValueError when there is no story, nothing of it survives the cut, or the
    sequence would hold anything but one <think>. Cheap (no model): build all of them before the first step.
    """
    if not example.story or not example.story.strip():
        raise ValueError(f"example {example.uid!r} has no human story to inject: "
                         "give it a non-empty 'story' or leave the human row out of its group")
    prompt_ids = tokenizer.chat(example.prompt, thinking)
    ids = tokenizer.completion(example.story, reasoning=example.reasoning if thinking else None, thinking=thinking)
    # The chat prompt already opens <think>; a row that opens it again trains the model to do so, and no curve shows it.
    thinks = tokenizer.decode(prompt_ids + ids).count("<think>")
    if thinks != 1:
        raise ValueError(f"the human row of example {example.uid!r} holds {thinks} <think> instead of one: "
                         "take the tags out of its prompt, story and reasoning")
    finished, story = len(ids) <= max_tokens, example.story.strip()
    if not finished:
        ids = ids[:max_tokens]
        # Thinking is over where </think> stands; with thinking off it was closed in the prompt.
        text = tokenizer.decode(ids)
        story = text.partition("</think>")[2].strip() if thinking else text.strip()
        if not story:
            raise ValueError(f"the reasoning of example {example.uid!r} fills all {max_tokens} tokens of its row: "
                             "shorten it or raise the token limit")
    return Episode(example=example, prompt_ids=prompt_ids, completion_ids=ids, sampler_logprobs=None,
                   finished=finished, is_human=True, story=story)


def weight(step: int, peak: float = 0.4, warmup: int = 15) -> float:
    """w = peak * min(1, step / warmup), step from 0: no human row at step 0, no decay; warmup 0 is `peak` at once."""
    return peak * min(1.0, step / warmup) if warmup > 0 else peak


def group_advantages(rewards_PG, is_human_PG, weight: float, mode: str = "polaris",
                     normalise_std: bool = True) -> tuple[Tensor, Tensor]:
    """Advantages of P groups of G rows, the human rows' already times their weight -> (advantages_PG, kept_P).

    `rewards_PG`: float, NaN where the judge failed: that row left its group, its advantage is 0 and no mean sees it.
    `is_human_PG`: bool. `normalise_std`: divide by the group's unbiased standard deviation + 1e-6.
    `kept_P` is False for a group that cannot rank its stories (fewer than two rows in the statistics, or all equal):
    all its advantages are 0. Without that rule a human row over a std of 0 would weigh a million. There is no floor
    and no cap otherwise, as published. ValueError for an unknown mode or shapes that differ.
    """
    if mode not in MODES:
        raise ValueError(f"unknown HRI mode {mode!r}: choose one of {', '.join(MODES)}")
    rewards = torch.as_tensor(rewards_PG)
    human = torch.as_tensor(is_human_PG, dtype=torch.bool, device=rewards.device)
    if rewards.dim() != 2 or rewards.shape != human.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and is_human {tuple(human.shape)} "
                         "must both be [prompts, group]")
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    rewards = rewards.double()  # a handful of numbers; the std of near-equal rewards is where rounding would show

    valid = rewards.isfinite()
    counted = valid if mode == "luffy" else valid & ~human
    n = counted.sum(1, keepdim=True)
    mean = rewards.where(counted, 0).sum(1, keepdim=True) / n.clamp(min=1)
    centred = (rewards - mean).where(valid, 0)
    std = (centred.where(counted, 0).square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
    spread = rewards.where(counted, -math.inf).amax(1) - rewards.where(counted, math.inf).amin(1)
    kept = (n[:, 0] >= 2) & (spread > EPS)

    advantages = centred / (std + EPS) if normalise_std else centred
    if mode == "polaris":
        anchored = weight * advantages
    if mode == "positive":
        anchored = weight * advantages.clamp(min=0)
    if mode == "luffy":
        anchored = advantages  # its coefficient depends on the token: see `shape`
    if mode == "off":
        anchored = torch.zeros_like(advantages)
    advantages = torch.where(human, anchored, advantages).where(kept[:, None], 0)
    return advantages.to(dtype), kept


def shape(logp: Tensor, gamma: float = 0.1) -> Tensor:
    """LUFFY's f(pi) = pi / (pi + gamma) of log-probabilities, any shape; as a sigmoid it cannot overflow.

    It stands where the ratio stands in the surrogate and is not clipped; its gradient is gamma * pi / (pi + gamma)^2
    times grad log pi. So the policy loss needs one `if` for the human rows, which no old policy ever sampled:

        human_ratio = shape(logp) if mode == "luffy" else exp(logp - logp.detach())   # the second: 1, with gradient
        objective = where(is_human, human_ratio * advantage, min(ratio * advantage, clip(ratio) * advantage))
    """
    return torch.sigmoid(logp - math.log(gamma))
