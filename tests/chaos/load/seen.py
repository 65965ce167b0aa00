"""What a client saw of its request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster.client.api_types import Answer, AnswerChoice, ToolCall
from tests.chaos.load.openai_streams import OPENAI_KINDS

# A fault takes effect within this time.
UNDER_WAY_S = 3.0
AFTERMATH_S = 30.0  # until the last one to know has learned of a process that is gone


@dataclass
class SeenCall:
    """A call of a tool, as far as it came. Ids follow from that of the answer, and are another run's no more."""

    name: str = ""
    arguments: str = ""
    num_ids: int = 0

    def add(self, call: ToolCall) -> None:
        self.name += call.name or ""
        self.arguments += call.arguments
        self.num_ids += call.id is not None

    def begins(self, whole: SeenCall) -> bool:
        return (self.name, self.num_ids) == (whole.name, whole.num_ids) and whole.arguments.startswith(self.arguments)


@dataclass
class SeenChoice:
    """One choice of an answer, as far as it came; ``logprobs`` are those of its tokens."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    reasoning: str = ""
    calls: dict[int, SeenCall] = field(default_factory=dict)

    def add(self, choice: AnswerChoice) -> None:
        """The next piece, or the whole."""
        self.token_ids += choice.token_ids or []
        self.text += choice.text
        self.reasoning += choice.reasoning
        for call in choice.tool_calls:
            self.calls.setdefault(call.index, SeenCall()).add(call)
        self.finish_reason = choice.finish_reason or self.finish_reason
        self.stop_reason = choice.stop_reason if choice.stop_reason is not None else self.stop_reason
        told = choice.logprobs or {}
        self.logprobs += told.get("token_logprobs") or [token["logprob"] for token in told.get("content") or []]

    def begins(self, whole: SeenChoice) -> bool:
        """Whether ``whole`` may come of this."""
        known = len(self.token_ids)
        return (
            self.token_ids == whole.token_ids[:known]
            and self.logprobs == whole.logprobs[: len(self.logprobs)]
            and whole.text.startswith(self.text)
            and whole.reasoning.startswith(self.reasoning)
            and all(i in whole.calls and call.begins(whole.calls[i]) for i, call in self.calls.items())
        )


Twin = tuple[list[SeenChoice], tuple[int, int] | None]


@dataclass
class Seen:
    """One request as its client saw it.

    Attributes:
        kind: "resuming" and "slow" stream and take broken streams up, "whole" asks for the answer as one, "plain" does not take
            anything up, nor do "openai" and "openai with ids", which are read through the official client, "vanishing" left.
        times: of each chunk, of ``time.monotonic``; the first is the time of sending.
        ended: when the answer was complete, or its client was told that it will not be.
        is_break: the error is that of a connection, or of a proxy that has lost the server behind it.
        usage: tokens of the prompt and of all choices.
        stall_s: the client reads nothing for so long before its next chunk.
    """

    number: int
    kind: str
    times: list[float] = field(default_factory=list)
    choices: dict[int, SeenChoice] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    error: str | None = None
    is_break: bool = False
    stall_s: float = 0.0
    ended: float = 0.0

    @property
    def answer(self) -> Twin:
        return [choice for _, choice in sorted(self.choices.items())], self.usage

    @property
    def takes_up(self) -> bool:
        """Whether a broken connection is no excuse."""
        return self.kind not in ("plain", *OPENAI_KINDS)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())

    def note(self, chunk: Answer) -> None:
        """A chunk came, or the whole answer."""
        self.times.append(time.monotonic())
        for choice in chunk.choices:
            self.choices.setdefault(choice.index, SeenChoice()).add(choice)
        if chunk.usage is not None:
            self.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def begins(self, twin: Twin) -> bool:
        """Whether all that came so far is how ``twin`` begins."""
        return all(index < len(twin[0]) and choice.begins(twin[0][index]) for index, choice in self.choices.items())

    def might_feel(self, earliest: float, latest: float) -> bool:
        """Whether a connection that broke between these moments, or in the aftermath, may have been this one's."""
        return earliest <= self.ended and latest + AFTERMATH_S >= self.times[0]

    def wait_at(self, moment: float) -> tuple[float, float] | None:
        """Begin and end of the longest wait for a chunk that began before ``moment`` or soon after, when chunks that were under
        way had arrived; what was waited before ``moment`` does not make it longer. None if the request was not running."""
        if not self.times or not self.times[0] <= moment < self.times[-1]:
            return None
        waits = [(a, b) for a, b in zip(self.times, self.times[1:]) if b > moment and a < moment + UNDER_WAY_S]
        return max(waits, key=lambda wait: wait[1] - max(wait[0], moment))
