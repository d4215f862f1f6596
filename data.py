"""Data that flows: Example (a request, and the human story that answers it) -> Episode (one row of a group)."""
from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Example:
    """One request for a story; `story` is the human one, where there is one."""
    uid: str
    prompt: str                   # says "N words long"
    target_words: int             # N
    story: str | None = None      # written by a person; None: no reference to inject
    reasoning: str | None = None  # what the writer noted first; None: an empty <think>
    source: str = ""              # book, author, id: where the story comes from


@dataclass
class Episode:
    """One row of a group: what was asked, what was written, what it was worth."""
    example: Example
    prompt_ids: list[int]
    completion_ids: list[int]              # the end token is kept, so that stopping is learned
    sampler_logprobs: list[float] | None   # None for the human row: nobody sampled it
    finished: bool                         # False: cut at the token limit
    is_human: bool
    story: str                             # text without thinking
    rewards: dict[str, float] = field(default_factory=dict)  # named parts
    reward: float | None = None            # None: the judge failed, the row leaves its group
    advantage: float = 0.0
    verdict: dict | None = None            # the judge's raw verdict
