"""One streamed request over as many connections as it takes, without doing any input or output itself.

``Client`` and ``AsyncClient`` drive it: they send ``request()``, feed the lines of the response, and ask ``seconds_to_wait``
when something went wrong.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from cluster.client.api_types import Answer
from cluster.client.errors import ApiStatusError, BrokenStreamError, stream_error

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_KNOCK_S = 0.2
# What a server says that may well take the answer up a moment later.
_OVERLOADED, _LOADING = "overloaded", "loading"
# Header of a stream: seconds after which its server has written something, if only a comment.
MAX_SILENCE_HEADER = "bireme-max-silence"
# Header of a request, 0 or 1: its client wants a streamed answer whose events have ids, to take it up where it breaks.
RESUMABLE_HEADER = "bireme-resumable"
# Header of a stream: the port on which Serve keeps a proxy of its own beside HAProxy, on the head node of the cluster.
FALLBACK_PORT_HEADER = "bireme-fallback-port"
# A busy server may be late by so much; the answer should go on within four seconds.
_LATE_S = 1.0
# A server begins its response within this time, if only to say that it works on it.
_BEGIN_S = 1.5
# The request did not reach the server whole, so nothing was begun.
_REQUEST_LOST = "request_lost"
# What Serve's proxies answer for any path before they have heard of the application.
_NO_ROUTE = "/-/routes"
_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout)


class ResumableStream:
    """Parses server-sent events and remembers what a broken stream is taken up with.

    Args:
        request: arguments of httpx's ``stream``, with the path in place of the URL.
        max_resumes: connections to each address that may break one after the other without a new event.
        num_addresses: under which the service may answer; each is tried before it counts as not there.
        now: seconds of a clock that does not go back.
    """

    def __init__(
        self,
        request: dict[str, Any],
        max_resumes: int,
        num_addresses: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_complete = False
        self._request = request
        self._num_addresses = num_addresses
        self._refusals = 0
        self._max_resumes = max_resumes
        self._can_resume = bool(request["json"].get("return_token_ids"))
        self._breaks = 0
        self._now = now
        self._knock_until = float("-inf")
        self._has_arrived = False
        self._data: str | None = None
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

    @property
    def was_taken(self) -> bool:
        """Somebody had the request, and may have worked on it."""
        return self.has_begun or self._breaks > 0

    def request(self, address: str = "") -> dict[str, Any]:
        """What to send to ``address`` now: the whole request, or the request and what has arrived."""
        self._data = self._event_id = None
        request = {**self._request, "url": address + self._request["url"]}
        headers = {RESUMABLE_HEADER: "1"} if self._can_resume else {}
        if self._last_event_id is None:
            return {**request, "headers": headers}
        resume = {"fingerprint": self._fingerprint, "choices": self._choices}
        return {
            **request,
            "json": {**request["json"], "seed": self._seed, "resume": resume},
            "headers": {**headers, "Last-Event-ID": self._last_event_id},
        }

    def begin_limit(self, longest_s: float) -> float:
        """Seconds until a response must begin, at most ``longest_s``; see ``_patience``."""
        return self._patience(_BEGIN_S + _LATE_S, longest_s)

    def silence_limit(self, headers: Mapping[str, str], longest_s: float) -> float:
        """Seconds without a byte after which a response with ``headers`` counts as broken, at most ``longest_s``."""
        try:
            promised_s = float(headers[MAX_SILENCE_HEADER])
        except (KeyError, ValueError):
            return longest_s
        return self._patience(promised_s + _LATE_S, longest_s) if promised_s > 0 else longest_s

    def _patience(self, seconds: float, longest_s: float) -> float:
        """Twice ``seconds`` each time every address has broken off without a new event, so that servers that are merely slow are
        not asked again and again; who cannot ask again has all the patience."""
        if not self._max_resumes or not self._can_ask_again:
            return longest_s
        return min(longest_s, seconds * 2 ** (self._breaks // self._num_addresses))

    def feed(self, line: str) -> Answer | None:
        """The chunk of the event that a line of the response ends, or None if it ends none. An event that is cut off in the
        middle does not count: it comes again.

        Raises:
            ApiStatusError: the server ended the stream with an error.
            BrokenStreamError: an event is no JSON.
        """
        if line.startswith("id:"):
            self._event_id = line[3:].strip()
        elif line.startswith("data:"):
            self._data = line[5:].strip()
            self.is_complete |= self._data == "[DONE]"
        if line or self._data is None or self.is_complete:
            return None
        data, self._data = self._data, None
        try:
            event = json.loads(data)
        except ValueError:
            raise BrokenStreamError("the server's last event is no JSON") from None
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
        if isinstance(error, _NOBODY_THERE) and not self.was_taken:
            self._refusals += 1
            return 0.0 if self._refusals < self._num_addresses else None
        if not self._is_broken(error):
            return None
        nobody_there = _is_nobody(error)
        now = self._now()
        if nobody_there and now < self._knock_until:
            return min(_KNOCK_S, self._knock_until - now)
        self._breaks += 1
        if self._breaks > self._max_resumes * self._num_addresses or not self._can_ask_again:
            return None
        rounds = (self._breaks - 1) // self._num_addresses
        wait_s = min(_FIRST_BACKOFF_S * 2**rounds, _MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
        if not nobody_there:
            return wait_s
        # Being refused costs nobody anything: meanwhile it is asked now and then whether somebody is there.
        self._knock_until = now + wait_s
        return min(_KNOCK_S, wait_s)

    def _note(self, chunk: Answer) -> bool:
        """Remember what arrived; False if the caller has it already."""
        is_new = chunk.usage is None or bool(chunk.choices) or not self._has_usage
        if is_new:
            self._breaks = 0
        self._has_arrived = True
        # A server may be asked for the usage so far in every chunk, too.
        self._has_usage |= chunk.usage is not None and not chunk.choices
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

    @property
    def _can_ask_again(self) -> bool:
        """Nothing has arrived that could be lost, or it can be taken up."""
        return self._can_resume or not self._has_arrived

    def _is_broken(self, error: Exception) -> bool:
        """Whether ``error`` cut the stream off, so that it can be taken up. A full queue does no such thing before the first
        event, and nobody to connect to or a server that is still loading none before somebody took the request."""
        code = getattr(error, "code", None)
        if code == _OVERLOADED:
            return self.has_begun
        if code == _LOADING:
            return self.was_taken
        if code == _REQUEST_LOST:
            return True
        return isinstance(error, (httpx.TransportError, BrokenStreamError)) or _is_gateway_error(error)


def _is_nobody(error: Exception) -> bool:
    """Nobody listens yet, or a proxy that has not heard of the application yet."""
    return isinstance(error, _NOBODY_THERE) or (isinstance(error, ApiStatusError) and _has_no_route(error))


def _has_no_route(error: ApiStatusError) -> bool:
    # HAProxy as `bireme serve` starts it says 503 with the same words.
    return error.status in (404, 503) and _NO_ROUTE in error.message


def _is_gateway_error(error: Exception) -> bool:
    """A proxy's word that the server behind it is gone; this API's own errors have a code."""
    if not isinstance(error, ApiStatusError) or error.status is None:
        return False
    is_from_here = error.code != ApiStatusError.code
    return not is_from_here and (error.status >= 500 or _has_no_route(error))
