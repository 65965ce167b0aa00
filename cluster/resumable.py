"""One streamed request over as many connections as it takes, without doing any input or output itself.

``Client`` and ``AsyncClient`` drive it: they send ``request()``, feed the lines of the response, and ask ``seconds_to_wait``
when something went wrong.
"""

from __future__ import annotations

import json
import random
from typing import Any

import httpx

from cluster.api_types import Answer
from cluster.client_errors import ApiStatusError, BrokenStreamError, stream_error

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
# What a server says that may well take the answer up a moment later.
_NOT_NOW = frozenset({"loading", "overloaded"})
# The request did not reach the server whole, so nothing was begun.
_REQUEST_LOST = "request_lost"


class ResumableStream:
    """Parses server-sent events and remembers what a broken stream is taken up with.

    Args:
        request: arguments of httpx's ``stream``.
        max_resumes: connections that may break one after the other without a new event.
    """

    def __init__(self, request: dict[str, Any], max_resumes: int) -> None:
        self.is_complete = False
        self._request = request
        self._max_resumes = max_resumes
        self._can_resume = bool(request["json"].get("return_token_ids"))
        self._breaks = 0
        self._event_id: str | None = None
        self._last_event_id: str | None = None
        self._seed: int | None = None
        self._fingerprint = ""
        self._has_usage = False
        body = request["json"]
        prompt = body.get("prompt", "")
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        count = (len(prompt) if several else 1) * (body.get("n") or 1)
        self._choices: list[dict[str, Any]] = [{"token_ids": [], "finish_reason": None} for _ in range(count)]

    @property
    def has_begun(self) -> bool:
        """An event has arrived."""
        return self._last_event_id is not None

    def request(self) -> dict[str, Any]:
        """What to send now: the whole request, or the request and what has arrived."""
        self._event_id = None
        if self._last_event_id is None:
            return self._request
        resume = {"fingerprint": self._fingerprint, "choices": self._choices}
        return {
            **self._request,
            "json": {**self._request["json"], "seed": self._seed, "resume": resume},
            "headers": {"Last-Event-ID": self._last_event_id},
        }

    def feed(self, line: str) -> Answer | None:
        """The chunk in a line of the response, or None if it has none.

        Raises:
            ApiStatusError: the server ended the stream with an error.
            BrokenStreamError: the line is cut off.
        """
        if line.startswith("id:"):
            self._event_id = line[3:].strip()
            return None
        if not line.startswith("data:"):
            return None
        data = line[5:].strip()
        if data == "[DONE]":
            self.is_complete = True
            return None
        try:
            event = json.loads(data)
        except ValueError:
            raise BrokenStreamError("the server's last event is cut off") from None
        if "error" in event:
            raise stream_error(event["error"])
        chunk = Answer.parse(event)
        return chunk if self._note(chunk) else None

    def end_of_response(self) -> None:
        """Raise BrokenStreamError if the response ended before the answer did."""
        if not self.is_complete:
            raise BrokenStreamError("the server closed the stream before the answer was complete")

    def seconds_to_wait(self, error: Exception) -> float | None:
        """How long to wait before ``request`` is sent again, or None if ``error`` is what the caller gets."""
        if not self._is_broken(error):
            return None
        self._breaks += 1
        if self._breaks > self._max_resumes or not self._can_resume:
            return None
        return min(_FIRST_BACKOFF_S * 2 ** (self._breaks - 1), _MAX_BACKOFF_S) * random.uniform(0.5, 1.0)

    def _note(self, chunk: Answer) -> bool:
        """Remember what arrived; False if the caller has it already."""
        is_new = chunk.usage is None or bool(chunk.choices) or not self._has_usage
        if is_new:
            self._breaks = 0
        self._has_usage |= chunk.usage is not None
        if self._event_id is not None:
            self._last_event_id, self._event_id = self._event_id, None
        elif chunk.choices:
            # A server that gives its events no ids cannot take an answer up.
            self._can_resume = False
        self._seed = chunk.seed if chunk.seed is not None else self._seed
        self._fingerprint = chunk.fingerprint or self._fingerprint
        for choice in chunk.choices:
            known = self._choices[choice.index]
            known["token_ids"] += choice.token_ids or []
            known["finish_reason"] = choice.finish_reason or known["finish_reason"]
        return is_new

    def _is_broken(self, error: Exception) -> bool:
        """Whether ``error`` cut the stream off, so that it can be taken up. Before the first event, nobody to connect to and a
        refusal are no such thing."""
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) or getattr(error, "code", None) in _NOT_NOW:
            return self.has_begun
        if getattr(error, "code", None) == _REQUEST_LOST:
            return True
        return isinstance(error, (httpx.TransportError, BrokenStreamError)) or _is_gateway_error(error)


def _is_gateway_error(error: Exception) -> bool:
    """A proxy's word that the server behind it is gone; this API's own errors have a code."""
    if not isinstance(error, ApiStatusError) or error.status is None:
        return False
    return error.status >= 500 and error.code == ApiStatusError.code
