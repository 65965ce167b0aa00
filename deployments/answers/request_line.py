"""One line of an ingress's log a request: of one that is over when it was where, what it had, and how it ended; of one that was
refused why."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from cluster.api_errors import ApiError
from cluster.process.logs import log_fields, log_value
from deployments.answers.choice import Choice

logger = logging.getLogger("ray.serve")

RequestLog = Literal["text", "json", "off"]

# The engine's own words of a request come after its last token, over another way.
_LATE_S = 0.6
# A line costs some 50 µs; of more requests a second their number is logged.
_LINES_PER_S = 100


class RequestLines:
    """Of one ingress; belongs to its event loop.

    Args:
        style: fields (name=value), one JSON object, or nothing.
        write: takes a line.
    """

    def __init__(self, model_id: str, style: RequestLog = "off", write: Callable[[str], None] = logger.info) -> None:
        self._model_id = model_id
        self._style = style
        self._write = write
        self._second = 0
        self._num_written = self._num_left_out = 0

    def when_over(self, answer_id: str, name: str, choices: Sequence[Choice]) -> None:
        """A request is over; ``name`` is its X-Request-ID."""
        if self._style != "off":
            asyncio.get_running_loop().call_later(_LATE_S, self._log, answer_id, name, choices)

    def refused(self, name: str, endpoint: str, error: ApiError) -> None:
        """A request got ``error``, and nothing was begun. The error's message and parameter may be its client's own text."""
        if self._style != "off" and self._may_write():
            fields = {"endpoint": endpoint, "status": error.status, "code": error.code}
            self._write_line({"x_request_id": name, "model": self._model_id, **fields})

    def _log(self, answer_id: str, name: str, choices: Sequence[Choice]) -> None:
        if self._may_write():
            self._write_line({"id": answer_id, "x_request_id": name, "model": self._model_id, **figures(choices)})

    def _may_write(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._num_left_out:
                self._write(f"event=request left_out={self._num_left_out} model={log_value(self._model_id)}")
            self._second, self._num_written, self._num_left_out = second, 0, 0
        if self._num_written >= _LINES_PER_S:
            self._num_left_out += 1
            return False
        self._num_written += 1
        return True

    def _write_line(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields) if self._style == "json" else log_fields(**{k: _text(v) for k, v in fields.items()})
        self._write(f"event=request {line}")


def figures(choices: Sequence[Choice]) -> dict[str, Any]:
    """What a line says of the sequences of a request.

    ``queue_ms`` until the first of them had a slot in an engine; ``first_token_ms`` until the first token of any; both since the
    request came, and None where it never was so far. ``tokens_per_s`` of all from the first token to the last; None of less than
    two.
    """
    received = min(choice.times.received for choice in choices)
    firsts = [choice.times.first for choice in choices if choice.times.first is not None]
    taken = [choice.entry.marks["scheduled"] for choice in choices if "scheduled" in choice.entry.marks]
    arrived = time.time() - (time.monotonic() - received)
    num_tokens = sum(len(choice.output.token_ids) for choice in choices)
    rate = None
    if firsts and num_tokens > len(firsts):
        span = max(choice.times.last for choice in choices) - min(firsts)
        rate = round((num_tokens - len(firsts)) / span, 1) if span > 0 else None
    return {
        "queue_ms": round(1e3 * max(0.0, min(taken) - arrived), 1) if taken else None,
        "first_token_ms": round(1e3 * (min(firsts) - received), 1) if firsts else None,
        "prompt_tokens": sum({id(c.entry.prompt_token_ids): len(c.entry.prompt_token_ids) for c in choices}.values()),
        "tokens": num_tokens,
        "tokens_per_s": rate,
        "finish": _each_once(choice.times.ended or "abort" for choice in choices),
        "engine": _each_once(choice.entry.engine_id for choice in choices if choice.entry.engine_id),
        "attempts": max(choice.entry.attempt for choice in choices) + 1,
    }


def _each_once(words: Any) -> str:
    return ",".join(dict.fromkeys(words))


def _text(value: object) -> object:
    return "-" if value is None or value == "" else value
