"""Human-reference injection (HRI): a story written by a person joins each group of the policy's own stories.

The reference is fed to the model token by token (teacher forcing) and judged by the same judge and reward as
the policy's stories. It is an anchor: mean and standard deviation are those of the policy's rewards alone, so
that the advantage of the reference says how far a person is ahead of the model, and the policy's own
advantages are the same with and without it. A weight that grows from 0 keeps it small at first.

Source: POLARIS (arXiv 2606.04095). The coefficient of grad log pi for each token of the reference, with
A_h = (R_h - mean) / (std + 1e-6) and w = `weight(step)`:

    polaris     w * A_h
    positive    w * max(0, A_h): never pushes away from the reference

The policy did not sample the reference, so its row has no ratio to an old policy, no clip and no correction
for the sampler (see `policy_loss` in train.py). `train.py --hri off` runs without references.
Left out: LUFFY's shaping (2504.14945), a decay of the weight, references written by other models.
"""

from statistics import fmean, stdev

from data import Episode, Example, without_thinking


def reference_episode(example: Example, tokenizer, thinking: bool = True, max_tokens: int = 8192) -> Episode:
    """The reference row of a group: the story of `example` as if the policy had written it, without a reward.

    The end token is kept, so that the row also teaches where to stop; reasoning, when `thinking` and given,
    is trained too. A row of more than `max_tokens` completion tokens is cut, as the policy's rows are, and
    `story` is cut with it: judge and gradient see the same text. ValueError: nothing of the story survives
    the cut, or the sequence would hold any other number of <think> than one. Needs no model."""
    prompt_ids = tokenizer.chat(example.prompt, thinking)
    ids = tokenizer.completion(example.story, example.reasoning, thinking)
    # The prompt already opens <think>: a row that opens it again trains the model to, and no curve shows it.
    if (thinks := tokenizer.decode(prompt_ids + ids).count("<think>")) != 1:
        where = f"example {example.uid!r}: its reference holds {thinks} <think> instead of one"
        raise ValueError(f"{where}; take the tags out of its prompt, story and reasoning")
    finished, story = len(ids) <= max_tokens, example.story.strip()
    if not finished:
        ids = ids[:max_tokens]
        story = without_thinking("<think>" * thinking + tokenizer.decode(ids))
        if not story:
            where = f"example {example.uid!r}: its reasoning fills all {max_tokens} tokens of its row"
            raise ValueError(f"{where}; shorten it or raise the token limit")
    return Episode(example, prompt_ids, ids, None, finished, is_human=True, story=story)


def weight(step: int, peak: float = 0.4, warmup: int = 15) -> float:
    """w = peak * min(1, step / warmup), step from 0: no reference at step 0, no decay; warmup 0: at once."""
    return peak * min(1.0, step / warmup) if warmup > 0 else peak


def anchor(groups: list[list[Episode]], weight: float, mode: str = "polaris", normalise_std: bool = True):
    """Sets the advantage of each group's reference: how far it leads the policy's rows, times `weight`.

    The policy's rows have their advantages already; where they have none, because the group cannot rank its
    stories, the reference gets none either, and so does one without a verdict. normalise_std: divide by the
    unbiased standard deviation + 1e-6, as for the policy. No floor, no cap."""
    for group in groups:
        rewards = [row.reward for row in group if not row.is_human and row.advantage is not None]
        for row in group:
            if row.is_human and row.reward is not None and rewards:
                ahead = row.reward - fmean(rewards)
                ahead /= stdev(rewards) + 1e-6 if normalise_std else 1.0
                row.advantage = weight * (max(0.0, ahead) if mode == "positive" else ahead)


if __name__ == "__main__":
    print("Human-reference injection: a person's story joins each group of the policy's own stories.")
    print("Imported by train.py, which calls reference_episode, weight and anchor; nothing runs here.")
    print("To see what it does: python train.py against python train.py --hri off.")
