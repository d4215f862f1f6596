"""hri.py against hand-written float64: the anchored advantages, the human row's gradient, the human row
itself."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import hri
from data import Episode, Example, load_tokenizer, read_examples

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
STORY, NOTES = "The lamp went out. Nobody came.", "Keep it quiet."
EXAMPLE = Example("e1", "A lighthouse, 9 words long", 9, story=STORY, reasoning=NOTES)


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


@pytest.mark.parametrize(
    "change, limit, words",
    [
        ({"reasoning": "<think>plan"}, 200, "2 <think>"),
        ({"story": "A <think> b"}, 200, "2 <think>"),
        ({"reasoning": "x" * 50}, 40, "fills all 40 tokens"),
    ],
)
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
        assert episode.completion_ids[-1] == tokenizer.end_id
        assert episode.completion_ids.count(tokenizer.end_id) == 1


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


def group_of(rewards, human):
    return [Episode(EXAMPLE, [1], [2], None, True, h, "", reward=r) for r, h in zip(rewards, human)]


def ranked(group):
    """The policy's rows with a verdict have some advantage already."""
    for row in group:
        row.advantage = 0.5 if not row.is_human and row.reward is not None else None
    return group


def advantage_by_hand(rewards, w, mode, normalise):
    """The reference is the last of `rewards`: plain Python float64."""
    policy = [r for r in rewards[:-1] if r is not None]
    mean = sum(policy) / len(policy)
    std = math.sqrt(sum((r - mean) ** 2 for r in policy) / (len(policy) - 1))
    ahead = (rewards[-1] - mean) / (std + 1e-6 if normalise else 1)
    return w * (max(0.0, ahead) if mode == "positive" else ahead)


@pytest.mark.parametrize("mode", ["polaris", "positive"])
@pytest.mark.parametrize("normalise", [True, False])
def test_anchor_against_float64_by_hand(mode, normalise):
    rng, signs = random.Random(0), set()
    for _ in range(300):
        rewards = [rng.uniform(-2, 2) for _ in range(2)]
        rewards += [rng.choice([rng.uniform(-2, 2), None]) for _ in range(rng.randint(0, 5))] + [
            rng.uniform(-3, 3)
        ]
        group = ranked(group_of(rewards, [False] * (len(rewards) - 1) + [True]))
        before, w = [row.advantage for row in group[:-1]], rng.random()
        hri.anchor([group], w, mode, normalise)
        expected = advantage_by_hand(rewards, w, mode, normalise)
        assert group[-1].advantage == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert [row.advantage for row in group[:-1]] == before  # the policy's advantages are not its business
        signs.add((group[-1].advantage > 0) - (group[-1].advantage < 0))
    assert signs == ({-1, 1} if mode == "polaris" else {0, 1})


def test_anchor_by_calculator():
    # mean 0.3, std sqrt(0.14 / 4) = 0.187083, A_h = 0.6 / 0.187084 = 3.20712
    group = ranked(group_of([0.1, 0.2, 0.6, 0.3, 0.3, 0.9], [False] * 5 + [True]))
    hri.anchor([group], 0.4)
    assert group[-1].advantage == pytest.approx(0.4 * 3.20712, abs=1e-4)


def test_a_reference_without_a_verdict_or_a_group_without_a_reference_stays_out():
    failed = ranked(group_of([0.1, 0.5, None], [False, False, True]))
    alone = ranked(group_of([0.1, 0.5], [False, False]))
    flat = group_of([0.5, 0.5, 0.9], [False, False, True])  # cannot rank its stories
    hri.anchor([failed, alone, flat], 0.4)
    assert [row.advantage for row in failed + alone + flat] == [0.5, 0.5, None, 0.5, 0.5, None, None, None]


def logp_gradient(table, prompt, completion, coefficient):
    """sum over completion tokens of coefficient * grad log pi, for a bigram table of logits, by hand in
    float64."""
    gradient = np.zeros_like(table)
    for prev, token in zip([prompt[-1], *completion], completion):
        pi = np.exp(table[prev]) / np.exp(table[prev]).sum()
        gradient[prev] += coefficient * (np.eye(len(pi))[token] - pi)
    return gradient


@pytest.mark.parametrize("mode", ["polaris", "positive"])
@pytest.mark.parametrize("reward", [0.7, 0.1])
def test_gradient_of_the_reference(mode, reward):
    """Through the trainer's own loss: the gradient is w * A_h * sum of grad log pi, and never zero by a lost
    mask."""
    import train

    torch.manual_seed(0)
    V, w = 9, 0.3
    table = torch.randn(V, V, dtype=torch.float64, requires_grad=True)
    prompt, completion = [3, 4], [5, 6, 2, 8, 1]
    group = ranked(group_of([0.2, 0.4, 0.9, reward], [False, False, False, True]))
    hri.anchor([group], w, mode)
    row = group[-1]
    row.prompt_ids, row.completion_ids = prompt, completion
    ids = torch.tensor(prompt + completion)
    logp = table[ids[:-1]].log_softmax(-1).gather(1, ids[1:, None])[len(prompt) - 1 :, 0]
    loss, _ = train.batch_loss(train.Config(kl=0.0), logp, logp.detach(), [row], count=1.0)
    loss.backward()
    expected = logp_gradient(table.detach().numpy(), prompt, completion, row.advantage)
    np.testing.assert_allclose(-table.grad.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert (np.abs(expected).max() > 1e-3) == (reward > 0.5 or mode == "polaris")
