"""hri.py against hand-written float64: the anchored advantages, the human row's gradient, the human row itself."""
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import hri
from data import Example, load_tokenizer, read_examples


STORIES = Path(hri.__file__).parent / "stories"


class CharTokenizer:
    """The contract of data.Tokenizer in a few lines: one id a character, special tokens as single ids."""
    SHOWN = ["", "", "<think>", "</think>"]  # <|im_start|> and <|im_end|> are not
    end_id = 1

    def encode(self, text):
        return [ord(c) + 10 for c in text]

    def decode(self, ids):
        return "".join(self.SHOWN[i] if i < 10 else chr(i - 10) for i in ids)

    def chat(self, prompt, thinking):
        head = [0, *self.encode("user\n" + prompt), 1, 0, *self.encode("assistant\n"), 2, *self.encode("\n")]
        return head if thinking else [*head, *self.encode("\n"), 3, *self.encode("\n\n")]

    def completion(self, story, reasoning=None, thinking=False):
        thought = [*self.encode((reasoning or "") + "\n"), 3, *self.encode("\n\n")] if thinking else []
        return [*thought, *self.encode(story), 1]


TOKENIZER = CharTokenizer()
EXAMPLE = Example(uid="e1", prompt="A lighthouse, 9 words long", target_words=9,
                  story="The lamp went out. Nobody came.", reasoning="Keep it quiet.")


@pytest.mark.parametrize("thinking", [True, False])
def test_reference_episode_is_what_the_policy_would_have_written(thinking):
    episode = hri.reference_episode(EXAMPLE, TOKENIZER, thinking, max_tokens=200)
    assert episode.prompt_ids == TOKENIZER.chat(EXAMPLE.prompt, thinking)
    assert episode.completion_ids[-1] == TOKENIZER.end_id and episode.finished and episode.is_human
    text = TOKENIZER.decode(episode.prompt_ids + episode.completion_ids)
    assert text.count("<think>") == 1 and text.count("</think>") == 1
    assert text.endswith(EXAMPLE.story) and ("Keep it quiet." in text) == thinking
    assert episode.story == EXAMPLE.story and episode.sampler_logprobs is None and episode.reward is None


def test_reference_episode_cut_at_the_limit_is_judged_as_it_is_trained():
    whole = hri.reference_episode(EXAMPLE, TOKENIZER, True, max_tokens=200)
    cut = hri.reference_episode(EXAMPLE, TOKENIZER, True, max_tokens=len(whole.completion_ids) - 10)
    assert not cut.finished and TOKENIZER.end_id not in cut.completion_ids
    assert cut.completion_ids == whole.completion_ids[:-10]
    assert cut.story == EXAMPLE.story[:-9].strip()  # 10 tokens less, one of them the end token
    exact = hri.reference_episode(EXAMPLE, TOKENIZER, True, max_tokens=len(whole.completion_ids))
    assert exact == whole


@pytest.mark.parametrize("change, limit, words", [
    (dict(story=None), 200, "no human story"), (dict(story=" \n"), 200, "no human story"),
    (dict(reasoning="<think>plan"), 200, "2 <think>"), (dict(story="A <think> b"), 200, "2 <think>"),
    (dict(reasoning="x" * 50), 40, "fills all 40 tokens")])
def test_reference_episode_says_what_is_wrong(change, limit, words):
    example = Example(**{**EXAMPLE.__dict__, **change})
    with pytest.raises(ValueError, match=words) as error:
        hri.reference_episode(example, TOKENIZER, True, max_tokens=limit)
    assert "'e1'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("thinking", [True, False])
def test_human_rows_of_the_shipped_stories_with_the_shipped_tokenizer(thinking):
    tokenizer = load_tokenizer(STORIES / "tiny-base")
    examples = read_examples(STORIES / "tiny.jsonl")
    for example in examples[:20]:
        example.reasoning = "<think>\nShort, then shorter.\n</think>"  # some data sets bring the tags along
        episode = hri.reference_episode(example, tokenizer, thinking, 4096)
        text = tokenizer.decode(episode.prompt_ids + episode.completion_ids)
        assert text.count("<think>") == text.count("</think>") == 1
        assert text.partition("</think>")[2].strip() == episode.story
        assert episode.completion_ids[-1] == tokenizer.end_id and episode.completion_ids.count(tokenizer.end_id) == 1


def test_a_tokenizer_that_opens_think_twice_is_refused():
    class Twice(CharTokenizer):
        def completion(self, story, reasoning=None, thinking=False):
            return [2, *super().completion(story, reasoning, thinking)]
    with pytest.raises(ValueError, match="instead of one"):
        hri.reference_episode(EXAMPLE, Twice(), True, 200)


def test_weight_warms_up_from_nothing():
    assert hri.weight(0) == 0 and hri.weight(15) == hri.weight(999) == 0.4
    assert hri.weight(3) == pytest.approx(0.08) and hri.weight(1, peak=1.0, warmup=4) == 0.25
    assert hri.weight(0, warmup=0) == 0.4


def by_hand(rewards, human, w, mode, normalise):
    """One group in plain Python float64."""
    rows = [i for i, r in enumerate(rewards) if not math.isnan(r) and (mode == "luffy" or not human[i])]
    values = [rewards[i] for i in rows]
    if len(values) < 2 or max(values) - min(values) <= 1e-6:
        return [0.0] * len(rewards), False
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    out = []
    for r, is_human in zip(rewards, human):
        a = 0.0 if math.isnan(r) else (r - mean) / (std + 1e-6 if normalise else 1)
        if is_human:
            a = {"polaris": w * a, "positive": w * max(0.0, a), "luffy": a, "off": 0.0}[mode]
        out.append(a)
    return out, True


@pytest.mark.parametrize("mode", hri.MODES)
@pytest.mark.parametrize("normalise", [True, False])
def test_group_advantages_against_float64_by_hand(mode, normalise):
    rng = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(100):
        P, G = rng.randint(1, 4), rng.randint(1, 7)
        rewards = [[rng.choice([rng.uniform(-2, 2), 0.25, math.nan]) for _ in range(G)] for _ in range(P)]
        human = [[g == G - 1 and rng.random() < 0.8 for g in range(G)] for _ in range(P)]
        w = rng.random()
        out, kept = hri.group_advantages(torch.tensor(rewards, dtype=torch.float64), human, w, mode, normalise)
        for p in range(P):
            expected, keep = by_hand(rewards[p], human[p], w, mode, normalise)
            assert bool(kept[p]) == keep
            np.testing.assert_allclose(out[p].numpy(), expected, rtol=1e-9, atol=1e-12)
            seen[keep] += 1
    assert min(seen.values()) > 20  # the cases meet both


def test_the_person_does_not_move_the_policys_advantages_except_in_luffy():
    rewards = torch.tensor([[0.1, 0.2, 0.6, 0.3, 0.3, 0.9]])
    human = torch.tensor([[False] * 5 + [True]])
    alone, _ = hri.group_advantages(rewards[:, :5], human[:, :5], 0.0, "off")
    for mode in ("polaris", "positive", "off"):
        out, _ = hri.group_advantages(rewards, human, 0.4, mode)
        assert torch.equal(out[:, :5], alone)
    out, _ = hri.group_advantages(rewards, human, 0.4, "luffy")
    assert not torch.allclose(out[:, :5], alone)
    # 0.6/0.3/... by calculator: mean 0.3, std sqrt(0.14/4) = 0.187083, A_h = 0.6 / 0.187084 = 3.20712
    out, _ = hri.group_advantages(rewards, human, 0.4)
    assert out[0, 5].item() == pytest.approx(0.4 * 3.20712, abs=1e-4)


def test_a_person_worse_than_the_model_is_pushed_away_only_in_polaris():
    rewards, human = [[0.5, 0.7, 0.9, -0.5]], [[False, False, False, True]]
    assert hri.group_advantages(rewards, human, 0.4, "polaris")[0][0, 3] < -1
    assert hri.group_advantages(rewards, human, 0.4, "positive")[0][0, 3] == 0


def test_groups_that_cannot_rank_are_dropped():
    nan = math.nan
    rewards = [[0.5, 0.5, 0.5, 0.9],           # equal policy rows: A_h would be 0.4 / 1e-6
               [0.5, 0.5 + 1e-9, 0.5, 0.9],    # equal but for rounding
               [0.5, nan, nan, 0.9], [nan] * 4, [0.4, 0.6, nan, nan]]
    human = [[False, False, False, True]] * 5
    for normalise in (True, False):
        out, kept = hri.group_advantages(torch.tensor(rewards, dtype=torch.float64), human, 0.4, "polaris", normalise)
        assert kept.tolist() == [False] * 4 + [True]
        assert out[:4].count_nonzero() == 0 and out.isfinite().all()
        assert out[4, :2].count_nonzero() == 2 and out[4, 2:].count_nonzero() == 0  # failed judge: no advantage


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown HRI mode 'lufy'.*polaris"):
        hri.group_advantages([[1.0, 2.0]], [[False, True]], 0.4, "lufy")
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        hri.group_advantages([[1.0, 2.0]], [[False, True, True]], 0.4)


def logp_gradient(table, prompt, completion, coefficient):
    """sum over completion tokens of coefficient(pi) * grad log pi, for a bigram table of logits, by hand in float64."""
    gradient = np.zeros_like(table)
    for prev, token in zip([prompt[-1], *completion], completion):
        pi = np.exp(table[prev]) / np.exp(table[prev]).sum()
        gradient[prev] += coefficient(pi[token]) * (np.eye(len(pi))[token] - pi)
    return gradient


@pytest.mark.parametrize("mode", hri.MODES)
def test_gradient_of_the_human_row(mode):
    """The row carries a mask and a reward, and its gradient is coefficient * A_h * sum of grad log pi, as tabled."""
    torch.manual_seed(0)
    V, w, g = 9, 0.3, 0.1
    table = torch.randn(V, V, dtype=torch.float64, requires_grad=True)
    prompt, completion = [3, 4], [5, 6, 2, 8, 1]
    ids = torch.tensor(prompt + completion)
    mask = torch.tensor([0, 1, 1, 1, 1, 1])  # position t scores token t + 1
    assert mask.sum() == len(completion) > 0
    rewards, human = torch.tensor([[0.2, 0.4, 0.9, 0.7]], dtype=torch.float64), [[False, False, False, True]]
    advantage = hri.group_advantages(rewards, human, w, mode)[0][0, 3]

    logp = table[ids[:-1]].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    ratio = hri.shape(logp, g) if mode == "luffy" else (logp - logp.detach()).exp()
    (ratio * advantage * mask).sum().backward()

    a_h = by_hand([0.2, 0.4, 0.9, 0.7], human[0], 1.0, "luffy" if mode == "luffy" else "polaris", True)[0][3]
    coefficient = {"polaris": lambda pi: w * a_h, "positive": lambda pi: w * max(0.0, a_h), "off": lambda pi: 0.0,
                   "luffy": lambda pi: a_h * g * pi / (pi + g) ** 2}[mode]
    expected = logp_gradient(table.detach().numpy(), prompt, completion, coefficient)
    np.testing.assert_allclose(table.grad.numpy(), expected, rtol=1e-10, atol=1e-14)
    assert (np.abs(expected).max() > 1e-3) == (mode != "off")


def test_shape_is_finite_at_both_ends():
    logp = torch.tensor([-1e4, -50.0, -1e-7, 0.0], requires_grad=True)
    out = hri.shape(logp)
    out.sum().backward()
    assert out.isfinite().all() and logp.grad.isfinite().all()
    assert out[-1].item() == pytest.approx(1 / 1.1) and logp.grad[-1].item() == pytest.approx(0.1 / 1.1 ** 2)
