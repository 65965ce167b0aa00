"""Answers as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.api_errors import ApiError
from cluster.client.resumable import FALLBACK_PORT_HEADER, MAX_SILENCE_HEADER
from deployments.answers.choice import Choice
from deployments.answers.generation import Generation
from deployments.answers.response_builder import ResponseBuilder
from deployments.answers.token_lanes import TokenLanes, encoded, token_lanes
from deployments.http.body_writer import BodyWriter, body_writer
from deployments.http.connection import ClientGoneError, while_connected
from deployments.http.eager import begin
from deployments.http.json_pieces import write_json
from deployments.http.large_requests import large_requests
from deployments.start.serve_environment import fallback_port

logger = logging.getLogger("ray.serve")

_KEEP_ALIVE_S = 0.75
# Who was promised nothing is told less and less often: some readers count lines without data, and give up after 300.
_LONGEST_KEEP_ALIVE_S = 10.0
_KEEP_ALIVE_GROWTH = 1.5
# Between events every reader knows blank lines, and not every one comments: those that expect JSON in each line or block fail
# on them. Two, because some split the stream where two line ends follow one another, and do not strip what is left.
_BLANK = b"\n\n"
# Behind an event with an id some decoders take a blank line for one more event, whose JSON is empty. A comment without one
# belongs to the next event.
_COMMENT = b": keep-alive\n"

_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
    **({FALLBACK_PORT_HEADER: str(port)} if (port := fallback_port()) else {}),
}
_PROMISE = {MAX_SILENCE_HEADER: f"{2 * _KEEP_ALIVE_S:g}"}


def encode_events(objects: list[dict[str, Any]], ids: Sequence[str] = (), in_pieces: bool = False) -> bytes:
    """One event an object, with its id if there are any. Data comes first: some readers know nothing else."""
    tails = [f"\nid: {event_id}\n\n" for event_id in ids] or ["\n\n"] * len(objects)
    parts = [("data: ", *write_json(item, in_pieces), tail) for tail, item in zip(tails, objects)]
    return b"".join([encoded(piece) for part in parts for piece in part])


class EventStream(Response):
    """Writes a generation as it grows. Chunks that pile up behind a slow client leave as one.

    A client that asked to be able to resume gets an id with each event and, while there is nothing to write, a comment every
    0.75 to 1.5 seconds, and a header says so: it may take longer silence for that of a process that hangs. Others get blank
    lines, ever more rarely. Proxies close a connection that is silent for long, and writing is how a client that has gone is
    noticed behind those that do not tell.
    """

    media_type = "text/event-stream"

    def __init__(
        self, generation: Generation, answer: ResponseBuilder, first: dict[int, str], resumable: bool, client: str = ""
    ) -> None:
        """``first`` is what the first ``Generation.read`` returned, or empty: a status can no longer be sent after it. ``client``
        is for whom it is built (``Peer.name``)."""
        super().__init__(headers={**_HEADERS, **(_PROMISE if resumable else {})})
        del self.headers["content-length"]
        self._generation = generation
        self._answer = answer
        self._first = first
        self._resumable = resumable
        self._client = client
        self._has_written = False
        self._send: Send
        self._writer: BodyWriter | None = None
        self._lanes: TokenLanes | None = None
        self._timer: asyncio.TimerHandle
        self._showing: asyncio.Task | None = None
        self._sending: asyncio.Task | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, self._write(send))
        except (ClientGoneError, OSError):
            pass
        finally:
            self._generation.close()

    async def _write(self, send: Send) -> None:
        texts, generation, answer = self._first, self._generation, self._answer
        self._send, self._writer = send, body_writer()
        if self._writer is not None and not self._resumable:
            self._lanes = token_lanes(generation.choices, generation.put_token, answer, self._writer)
        self._timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE_S, self._look, _KEEP_ALIVE_S)
        try:
            while True:
                if len(texts) == 1 and answer.is_plain(index := next(iter(texts))):
                    events = self._plain_event(index, texts[index])
                else:
                    events = await large_requests.build(self._client, answer.num_values(texts), self._events, texts)
                if generation.finished:
                    break
                if events:
                    self._has_written = True
                    await _send_body(send, events)
                    events = b""
                generation.take, generation.lanes = self._pass_on, self._lanes
                texts = await generation.read()
                generation.take = generation.lanes = None
                if self._sending is not None:
                    await self._sending
                    self._sending = None
            # What was made last leaves with the end.
            usage = answer.usage_chunk()
            tail = events + (encode_events([usage]) if usage is not None else b"")
        except ApiError as error:
            tail = encode_events([error.body()])
        finally:
            generation.take = generation.lanes = None
            self._timer.cancel()
            for task in filter(None, (self._sending, self._showing)):
                task.cancel()
        await send({"type": "http.response.body", "body": tail + b"data: [DONE]\n\n", "more_body": False})

    def _pass_on(self, choice: Choice, token: int) -> bool:
        """Write an event for a token in the middle of a choice, at once and without waking who reads, if nothing holds it up."""
        output = choice.output
        if self._sending is not None or not output.is_plain or not self._answer.is_plain(choice.index):
            return False
        event = self._plain_event(choice.index, output.push_token(token))
        if event:
            self._has_written = True
            # A sign of life that waits does so for a slow client, to whom nothing is written past it.
            if self._writer is None or not self._writer.write(event):
                self._sending = begin(_send_body(self._send, event))
        if self._lanes is not None:
            self._lanes.took(choice, may_open=self._sending is None)
        return True

    def _plain_event(self, index: int, text: str) -> bytes:
        chunk = self._answer.plain_chunk(index, text)
        if not chunk:
            return b""
        tail = f"\nid: {self._answer.event_ids[0]}\n\n" if self._resumable else "\n\n"
        return encoded(f"data: {chunk}{tail}")

    def _events(self, in_pieces: bool, texts: dict[int, str]) -> bytes:
        # Choice by choice, so that of a long answer little is there at once: the collector looks at all of it, and holds all up.
        parts = [{index: text} for index, text in texts.items()] if in_pieces else [texts]
        return b"".join([self._encoded_chunks(part, in_pieces) for part in parts])

    def _encoded_chunks(self, texts: dict[int, str], in_pieces: bool) -> bytes:
        chunks = self._answer.chunks(texts)
        return encode_events(chunks, self._answer.event_ids if self._resumable else (), in_pieces)

    def _look(self, pause_s: float) -> None:
        """Show that the stream is alive if nothing was written for ``pause_s`` seconds, and look again."""
        if self._lanes is not None and self._lanes.have_written():
            self._has_written = True
        if self._has_written:
            pause_s = _KEEP_ALIVE_S
        elif self._showing is None or self._showing.done():
            self._showing = begin(_send_body(self._send, _COMMENT if self._resumable else _BLANK))
            if self._showing is not None:
                self._showing.add_done_callback(self._shown)
            pause_s = pause_s if self._resumable else longer(pause_s)
        self._has_written = False
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._look, pause_s)

    def _shown(self, showing: asyncio.Task) -> None:
        """Without signs of life a stream may fall silent, and its promise is broken: it ends instead."""
        error = None if showing.cancelled() else showing.exception()
        if error is None or isinstance(error, OSError):
            # The client is gone, or has it.
            return
        logger.error("the signs of life of a stream ended", exc_info=error)
        why = "internal error: the stream could not be kept alive"
        self._generation.fail(ApiError(500, why, code="internal_error"))


def longer(pause_s: float) -> float:
    """How long a stream that was silent for ``pause_s`` seconds may be silent next, to a client that was promised nothing."""
    return min(pause_s * _KEEP_ALIVE_GROWTH, _LONGEST_KEEP_ALIVE_S)


def _send_body(send: Send, body: bytes) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": body, "more_body": True})
