"""What can be set of an endpoint: one list for every program, each as key=value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Every key of --judge_settings key=value. None: not sent, or no limit. ValueError: it cannot work."""

    temperature: float | None = 0.2
    top_p: float | None = 0.9
    seed: int | None = None
    reasoning_effort: str | None = None  # low, medium, high, where the model knows it
    max_tokens: int | None = 6000  # room for one answer
    in_flight: int = 16  # requests at the same time
    per_minute: tuple[float, float] = (0.0, 0.0)  # most requests and most tokens; 0: no limit
    timeouts: tuple[float, float] = (10.0, 120.0)  # seconds to connect, and without a byte
    deadline: float = 300.0  # seconds for one answer since its first call, retries included
    retries: int = 6
    price: tuple[float, float] = (0.0, 0.0)  # dollars per million tokens, in and out
    budget: float | None = None  # dollars per run; no call is made beyond them

    def __post_init__(self):
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g}: must lie in (0, 1]")
        if self.in_flight < 1 or self.max_tokens == 0:
            raise ValueError("in_flight and max_tokens must be at least 1")
        if self.deadline <= 0 or min(self.timeouts) <= 0:
            raise ValueError("deadline and timeouts are seconds, and must be above 0")
        if self.budget is not None and max(self.price) <= 0:
            raise ValueError("a budget in dollars needs prices: set price=IN,OUT, dollars per million tokens")


def settings(values: dict) -> Settings:
    """{key: text or number} -> Settings. Two numbers of one key are separated by a comma (price=1.25,10);
    "none" takes a key out. ValueError: an unknown key, or a value that cannot be."""
    kinds = {f.name: f.type for f in fields(Settings)}
    if unknown := [key for key in values if key not in kinds]:
        raise ValueError(f"there is no setting {unknown[0]!r}; the settings are {', '.join(kinds)}")
    return Settings(**{key: _value(key, value, kinds[key]) for key, value in values.items()})


def _value(key: str, value, kind: str):
    if str(value).lower() in ("none", ""):
        if "None" not in kind:
            raise ValueError(f"{key} needs a value")
        return None
    if kind.startswith("str"):
        return str(value)
    pair, read = kind.startswith("tuple"), int if kind.startswith("int") else float
    words = value if isinstance(value, (tuple, list)) else str(value).split(",")
    try:
        numbers = tuple(read(word) for word in words)
    except ValueError:
        numbers = ()
    if len(numbers) != 1 + pair or not all(0 <= number < math.inf for number in numbers):
        wanted = "two numbers such as 10,120" if pair else "a whole number" if read is int else "a number"
        raise ValueError(f"{key}={value}: needs {wanted}, not below 0")
    return numbers if pair else numbers[0]
