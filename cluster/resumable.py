"""The client's memory of a stream, so that a broken connection costs nothing: what was asked, and what has arrived."""

from __future__ import annotations

import random
from typing import Any

from cluster.api_types import Answer

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0


class ResumableStream:
    """One streamed request over as many connections as it takes.

    Args:
        request: arguments of httpx's ``stream``.
        max_resumes: connections that may break one after the other without a new event.
    """

    def __init__(self, request: dict[str, Any], max_resumes: int) -> None:
        self._request = request
        self._max_resumes = max_resumes
        self._can_resume = bool(request["json"].get("return_token_ids"))
        self._breaks = 0
        self._last_event_id: str | None = None
        self._seed: int | None = None
        self._fingerprint = ""
        body = request["json"]
        prompt = body.get("prompt", "")
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        count = (len(prompt) if several else 1) * (body.get("n") or 1)
        self._choices: list[dict[str, Any]] = [{"token_ids": [], "finish_reason": None} for _ in range(count)]

    @property
    def has_begun(self) -> bool:
        """An event has arrived."""
        return self._last_event_id is not None

    def note(self, event_id: str | None, chunk: Answer) -> None:
        """An event arrived."""
        self._breaks = 0
        self._can_resume &= event_id is not None
        self._last_event_id = event_id
        self._seed = chunk.seed if chunk.seed is not None else self._seed
        self._fingerprint = chunk.fingerprint or self._fingerprint
        for choice in chunk.choices:
            known = self._choices[choice.index]
            known["token_ids"] += choice.token_ids or []
            known["finish_reason"] = choice.finish_reason or known["finish_reason"]

    def seconds_to_wait(self) -> float | None:
        """The connection broke: how long to wait before ``request``, or None if it must not be tried again."""
        self._breaks += 1
        if self._breaks > self._max_resumes or not self._can_resume:
            return None
        return min(_FIRST_BACKOFF_S * 2 ** (self._breaks - 1), _MAX_BACKOFF_S) * random.uniform(0.5, 1.0)

    def request(self) -> dict[str, Any]:
        """What to send now: the whole request, or the request and what has arrived."""
        if self._last_event_id is None:
            return self._request
        resume = {"fingerprint": self._fingerprint, "choices": self._choices}
        return {
            **self._request,
            "json": {**self._request["json"], "seed": self._seed, "resume": resume},
            "headers": {"Last-Event-ID": self._last_event_id},
        }
