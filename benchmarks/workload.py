"""The load that every contender gets: closed-loop streams of one prompt length and one answer length."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

PROMPT_TOKENS = 42
ANSWER_TOKENS = 64


@dataclass
class Timings:
    """What one run measured; times in seconds.

    Attributes:
        first_token: from asking to the first token, one a request.
        per_token: mean time between the tokens of a request, one a request.
        tokens, seconds: of the whole run.
        step, device: wall time between saved steps, and device time of a step; in-process runs only.
    """

    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    step: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)

    def add(self, asked: float, arrivals: list[float]) -> None:
        """Enter one request: when it was asked, and when each of its tokens came."""
        self.first_token.append(arrivals[0] - asked)
        self.per_token.append((arrivals[-1] - arrivals[0]) / (len(arrivals) - 1))
        self.tokens += len(arrivals)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def first_token_ms(self) -> float:
        return statistics.median(self.first_token) * 1e3

    @property
    def per_token_ms(self) -> float:
        return statistics.median(self.per_token) * 1e3

    @property
    def step_over_device(self) -> float:
        return statistics.median(self.step) / statistics.median(self.device)


def prompt(number: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    """Token ids of prompt ``number``; no two share a beginning, so that no prefix is found in a cache."""
    return [(7919 * (number + 1) + 104729 * i) % 40_000 + 100 for i in range(tokens)]
