"""Reads the event stream of one answer as it arrives, and keeps what was seen when."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

_MOST_OF_AN_ERROR = 4096
_DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    def brings_tokens(self) -> bool:
        """Whether the event has something of the answer: the role alone, or the reason of the end alone, is nothing."""
        if self.text or self.token_ids:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls
        )


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class AnswerReader:
    """One answer, fed with the body of its response.

    Args:
        leaves_after: whoever asked has enough after so many events with tokens; None: they want all.

    Attributes:
        arrivals: when each event that brings tokens arrived; seconds of ``time.perf_counter``.
        output_tokens, prompt_tokens, cached_tokens: from ``usage``; None until it came, or if the server does not say.
        error: why this is no whole answer; None while nothing is wrong.
    """

    def __init__(self, leaves_after: int | None = None) -> None:
        self._leaves_after = leaves_after
        self.arrivals = array("d")
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.error: str | None = None
        self._status = 200
        self._rest = b""
        self._data: list[bytes] = []
        self._is_done = False

    @property
    def is_left(self) -> bool:
        """Whether whoever asked has enough of it before its end."""
        return self._leaves_after is not None and len(self.arrivals) >= self._leaves_after and not self._is_done

    def begin(self, status: int) -> None:
        """The response begins with ``status``."""
        self._status = status

    def feed(self, piece: bytes, now: float) -> None:
        """``piece`` of the body arrived at ``now``."""
        data = self._rest + piece
        if self._status != 200:
            self._rest = data[:_MOST_OF_AN_ERROR]
            return
        if b"\r" in data:
            # A CR at the end may be the first half of a line end.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if not line:
                if self._data:
                    self._event(b"\n".join(self._data), now)
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])

    def end(self) -> None:
        """The response ended as HTTP wants it; ``error`` says afterwards whether the answer did, too."""
        if self._status != 200:
            self.error = f"HTTP {self._status}: {_message(self._rest)}"
        elif self.error is None and not self._is_done:
            self.error = "the stream ended before [DONE]"
        elif self.error is None and self.output_tokens is None:
            self.error = "the stream has no usage: the server does not know stream_options.include_usage"
        elif self.error is None and (not self.output_tokens or not self.arrivals):
            self.error = "an answer without tokens"

    def broken(self, why: str) -> None:
        """The connection is gone before the response ended."""
        if self._is_done and self._status == 200:
            self.end()
        elif self.error is None:
            self.error = f"the connection broke: {why}"

    def _event(self, data: bytes, now: float) -> None:
        if self._is_done or self.error is not None:
            return
        if data.strip() == _DONE:
            self._is_done = True
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.error = f"an event is no chunk of an answer: {error}"
            return
        if chunk.error is not None:
            self.error = _message(data)
            return
        for choice in chunk.choices or ():
            if choice.brings_tokens():
                self.arrivals.append(now)
                break
        if (usage := chunk.usage) is not None:
            self.output_tokens, self.prompt_tokens = usage.completion_tokens, usage.prompt_tokens
            if usage.prompt_tokens_details is not None:
                self.cached_tokens = usage.prompt_tokens_details.cached_tokens


def _message(body: bytes) -> str:
    """What an error body says, in one short line."""
    try:
        error = msgspec.json.decode(body)
        while isinstance(error, dict):
            error = error.get("error") or error.get("message") or error.get("detail") or str(error)
        text = str(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body.decode(errors="replace")
    return " ".join(text.split())[:200] or "no message"
