"""What the library returns; names are those of vLLM's library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.outputs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sequence of an answer.

    Attributes:
        index: among those of its prompt.
        text: what was generated, without the stop that ended it.
        token_ids: generated tokens, a stop token included.
        finish_reason: "stop", "length" or "tool_calls".
        stop_reason: the stop string, token id or token sequence that matched; None for end-of-sequence and length.
        logprobs: one entry a token if they were asked for, else empty.
        reasoning: of a chat, where the model's reasoning is parted from its text.
        tool_calls: of a chat with tools, as the API has them.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | list[int] | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt.

    Attributes:
        prompt: its text; None if it was given as tokens, or is a conversation.
        prompt_token_ids: what the model read.
        outputs: one a sequence.
        seed: with it, the same call gives the same tokens, here and over HTTP.
        fingerprint: of everything that the tokens depend on besides.
        num_cached_tokens: prompt tokens found in the prefix cache.
        prompt_logprobs: one entry a prompt token if they were asked for, the first None; else None.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    seed: int
    fingerprint: str
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def text(self) -> str:
        """Of the first sequence, which is the only one unless more were asked for."""
        return self.outputs[0].text
